"""The README quotes the ratios of RESULTS.md, and no others."""

import re
from pathlib import Path

from tests.bench.results import RATES, SYNCS

_RESULTS = Path(__file__).parent / "RESULTS.md"
_README = Path(__file__).parents[2] / "README.md"


def _cells(page: str, row: str) -> list[str]:
    found = re.search(rf"^\| {re.escape(row)} \|(.+)\|$", page, re.MULTILINE)
    assert found, row
    return [cell.strip() for cell in found[1].split("|")]


def test_the_readme_quotes_the_ratios_that_were_measured() -> None:
    """Each cell is the ratio with fsync on each write, and that with fsync each second."""
    sections = {title: body for title, _, body in (s.partition("\n") for s in _RESULTS.read_text().split("\n## "))}
    quoted = _README.read_text().partition("\n## How fast\n")[2].partition("\n## ")[0]
    for rate in RATES:
        measured = [_cells(sections[sync.capitalize()], rate)[2::2] for sync in SYNCS.values()]
        assert _cells(quoted, rate) == [" · ".join(pair) for pair in zip(*measured, strict=True)]


def test_the_readme_quotes_the_way_to_the_mail_server() -> None:
    """Milliseconds from POST to accepted, with fsync on each write."""
    always = _RESULTS.read_text().partition("\n## Fsync always\n")[2].partition("\n## ")[0]
    p50, p99 = (float(_cells(always, f"POST to accepted p{p} ms")[0].partition(" ")[0]) for p in (50, 99))
    assert f"in {p50:.1f} ms (median; p99 {p99:.0f} ms)" in _README.read_text().replace("\n", " ")
