"""One small iteration of the measurement, so that it cannot rot; and its page has what it measures."""

import re
from pathlib import Path

from tests.bench.scaling import WAYS, ledger, table
from tests.support.processes import ROOT


async def test_figures_come_out(tmp_path: Path) -> None:
    """A line for each way, a figure and a ratio in each cell; what an event of the ledger costs."""
    lines = (await table(mails=20, rounds=1)).splitlines()
    assert [line.split(" | ")[0].removeprefix("| ") for line in lines[2:]] == list(WAYS)
    assert all(line.count("(x") == 3 for line in lines[2:])
    assert re.fullmatch(r"1,000 sent mails: .* KB of memory, .* KB on disk each; .* s", await ledger(tmp_path, 1000))


def test_the_page_has_the_table() -> None:
    """deploy/SCALING.md shows those lines, filled in."""
    page = (ROOT / "deploy" / "SCALING.md").read_text()
    for way in WAYS:
        assert re.search(rf"^\| {way} (\| [\d,]+ \(x[\d.]+\) ){{3}}\|$", page, re.MULTILINE), way
    assert re.search(r"[\d,]+ sent mails: [\d.]+ KB of memory", page)
