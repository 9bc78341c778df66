"""The history of a mail's attempts."""

from datetime import UTC, datetime, timedelta

from contracts.messages import Attempt, History

T = datetime(2026, 1, 1, tzinfo=UTC)


def _attempts(n: int) -> list[Attempt]:
    return [Attempt(at=T + timedelta(seconds=i), verdict="v", phase="p") for i in range(n)]


def test_history_begins_empty() -> None:
    """Nothing tried, nothing charged."""
    assert (History().total, History().charged, History().attempts) == (0, 0, ())


def test_twenty_attempts_are_kept_whole() -> None:
    """The first 3 and the last 17 are all of them."""
    history = History()
    for attempt in _attempts(20):
        history = history.add(attempt, charged=False)
    assert history.attempts == tuple(_attempts(20))


def test_the_fourth_is_the_first_to_go() -> None:
    """What began it stays, and what is newest."""
    history = History()
    for i, attempt in enumerate(_attempts(21)):
        history = history.add(attempt, charged=i % 2 == 0)
    assert history.attempts == (*_attempts(21)[:3], *_attempts(21)[4:])
    assert (history.total, history.charged) == (21, 11)


def test_adding_changes_nothing_that_was() -> None:
    """Immutable: a write that fails leaves the old history."""
    before = History().add(_attempts(1)[0], charged=True)
    before.add(_attempts(2)[1], charged=True)
    assert before.total == 1
