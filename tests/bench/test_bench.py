"""One tiny iteration of every measurement, so that none can rot; and that the page says what the targets are."""

import asyncio
import re
import shutil
import xml.etree.ElementTree as ET
from pathlib import Path

import pytest

from tests.bench.__main__ import COLD, SCALE, bench
from tests.bench.plot import plot
from tests.bench.report import report
from tests.bench.results import FLOOR, PEERS, RATES, SELF, STACKS, SYNCS, Results
from tests.bench.speed import SERVICES
from tests.bench.target import targets

_EVERYBODYS = {
    *RATES,
    *(f"{what} p{p} ms" for what in ("registration", "POST to accepted") for p in (50, 99)),
    *(f"{measure.format(what)}" for what in SERVICES for measure in ("peak MB of the {}", "CPU of the {} a user ms")),
}
_OF_A_BROKER = {"queue to ack p50 ms", "queue to ack p99 ms"}
_OURS = {"drain after an outage s"}
PAGE = Path(__file__).parent / "RESULTS.md"


@pytest.fixture(scope="module")
def run() -> Results:
    return asyncio.run(bench((*STACKS, COLD, SCALE), ["always"], 1, quick=True))


def test_mailflow_and_its_floor_are_measured(run: Results) -> None:
    """Every figure comes out, and is one."""
    for stack in (SELF, FLOOR):
        figures = run.speed["always"][stack]
        assert set(figures) == _EVERYBODYS | _OF_A_BROKER | _OURS
        assert all(value > 0 for name, values in figures.items() for value in values if not name.startswith("CPU"))
    assert set(run.cold) == {SELF, FLOOR}
    assert all(value > 0 for found in run.scale.values() for value in found.values())
    absolute = [target for target in targets() if "÷" not in target.what and SYNCS["1s"] not in target.what]
    assert all(target.found(run) is not None for target in absolute)


@pytest.mark.parametrize("peer", PEERS)
def test_a_peer_is_measured(run: Results, peer: str) -> None:
    """Or is left out, and the page says what to install."""
    if peer in run.skipped:
        assert f"{peer} was not measured: it needs {run.skipped[peer]}" in report(run)
        pytest.skip(f"{peer} needs {run.skipped[peer]}")
    assert set(run.speed["always"][peer]) >= _EVERYBODYS


def test_a_run_becomes_a_page_and_a_plot(run: Results) -> None:
    """With a column for each stack, a row for each measure, and a bar for each ratio."""
    page = report(run)
    for measure in run.speed["always"][SELF]:
        assert f"\n| {measure} |" in page
    others = [stack for stack in run.speed["always"] if stack != SELF]
    bars = list(ET.fromstring(plot(run)).iter("{http://www.w3.org/2000/svg}rect"))
    assert len(bars) == 1 + 3 + len(others) * len(RATES)  # ground, legend


def test_a_missed_target_is_said() -> None:
    """Ratios are those of the same round; what is at the bound is met."""
    run = Results()
    for mine, theirs in ((85, 100), (170, 200), (100, 90)):
        run.add("always", SELF, {"registrations/s": mine, "mails/s": 69})
        run.add("always", FLOOR, {"registrations/s": theirs, "mails/s": 100})
    page = report(run)
    assert "| registrations/s ÷ floor, fsync always | ≥ 0.85 | 0.85 | yes |" in page
    assert "| mails/s ÷ floor, fsync always | ≥ 0.7 | 0.69 | **no** |" in page
    assert "fsync each second" not in page


def test_the_page_shows_every_target() -> None:
    """RESULTS.md is of a whole run, with both peers, and of these targets."""
    page = PAGE.read_text()
    for target in targets():
        assert re.search(rf"^\| {re.escape(target.what)} \| [≥≤] {target.bound:g} ", page, re.MULTILINE), target.what
    assert all(f"\n## {name.capitalize()}\n" in page for name in SYNCS.values())
    assert "was not measured" not in page


def test_the_cold_start_is_that_of_the_readme() -> None:
    """`uv run just up`: with uv, which CI has."""
    assert shutil.which("uv")
