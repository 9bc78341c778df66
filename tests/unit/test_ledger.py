"""The books: what the gap means, how fast mails end, how old the oldest is."""

import asyncio
from typing import Any

import pytest

from user_svc.ledger import Books, Drain, oldest_age_s


def books(**counts: int) -> Books:
    """Books in which nothing is, but for what is given."""
    none = dict.fromkeys(("live", "erasing", "outbox", "queue", "sent", "dead", "expired"), 0)
    return Books(**none | counts)


@pytest.mark.parametrize(
    ("counts", "gap"),
    [
        ({}, 0),
        ({"live": 10, "outbox": 1, "queue": 2, "sent": 3, "dead": 1, "expired": 3}, 0),
        ({"live": 10, "sent": 9}, 1),  # one is nowhere
        ({"live": 10, "queue": 1, "sent": 10}, -1),  # one is being handed over, or its ack was lost
        ({"live": 10, "outbox": 10, "erasing": 3}, 0),  # keys that erase are no events
    ],
)
def test_the_gap_is_what_is_nowhere(counts: dict[str, int], gap: int) -> None:
    """Live events less those in the outbox, in the queue, sent, dead, expired."""
    assert books(**counts).gap == gap


def test_ended_are_those_with_an_outcome() -> None:
    """Sent, dead and expired; not what waits."""
    assert books(live=99, outbox=5, queue=7, sent=3, dead=2, expired=1).ended == 6


class Loop:
    """The loop's clock, set by hand."""

    def __init__(self) -> None:
        self.now = 1000.0

    def time(self) -> float:
        return self.now


@pytest.fixture
def loop(monkeypatch: pytest.MonkeyPatch) -> Loop:
    """What `Drain` takes for the running loop."""
    made = Loop()
    monkeypatch.setattr(asyncio, "get_running_loop", lambda: made)
    return made


@pytest.mark.parametrize(
    ("samples", "per_s"),
    [
        ([], 0.0),
        ([(0, 50)], 0.0),  # one look tells no speed
        ([(0, 0), (10, 50)], 5.0),
        ([(0, 0), (5, 50), (10, 50)], 5.0),
        ([(0, 0), (0, 50)], 0.0),  # two looks at once neither
        ([(0, 50), (10, 20)], 0.0),  # erased users take their outcomes with them: never negative
        ([(0, 0), (30, 900), (60, 900), (90, 900)], 0.0),  # only the last minute
        ([(0, 0), (30, 900), (60, 900), (89, 959)], 1.0),
        ([(0, 0), (61, 600)], 0.0),
    ],
)
def test_the_drain_is_that_of_the_last_minute(loop: Loop, samples: list[tuple[float, int]], per_s: float) -> None:
    """(when, ended so far) -> events ended a second."""
    drain, began = Drain(), loop.now
    for at_s, ended in samples:
        loop.now = began + at_s
        drain.sample(books(sent=ended))
    assert drain.per_s == per_s


@pytest.mark.parametrize(
    ("messages", "first", "now", "age_s"),
    [
        (0, "0001-01-01T00:00:00Z", "2026-01-01T00:00:00Z", 0.0),
        (2, "2026-01-01T00:00:00Z", "2026-01-01T00:01:30.5Z", 90.5),
        (2, "2026-01-01T00:00:00.000000001Z", "2026-01-01T00:00:00Z", 0.0),
    ],
)
def test_the_oldest_is_as_old_as_the_broker_says(messages: int, first: str, now: str, age_s: float) -> None:
    """By the broker's clock at both ends; an empty queue has no age."""
    stream: dict[str, Any] = {"state": {"messages": messages, "first_ts": first}, "ts": now}
    assert oldest_age_s(stream) == age_s
