"""One small iteration of the measurement, so that it cannot rot."""

from tests.bench.open_pages import compared


async def test_figures_come_out() -> None:
    """Both figures of a round, with none and as the ratio of three pages to none."""
    none, ratios = await compared(3, 1, 0.5)
    assert none.keys() == ratios.keys()
    assert len(none) == 2
    assert all(value > 0 for figures in (none, ratios) for values in figures.values() for value in values)
