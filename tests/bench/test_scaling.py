"""One small iteration of the measurement, so that it cannot rot."""

from tests.bench.scaling import WAYS, table


async def test_figures_come_out() -> None:
    """A line for each way, a figure and a ratio in each cell."""
    lines = (await table(mails=20, rounds=1)).splitlines()
    assert [line.split(" | ")[0].removeprefix("| ") for line in lines[2:]] == list(WAYS)
    assert all(line.count("(x") == 3 for line in lines[2:])
