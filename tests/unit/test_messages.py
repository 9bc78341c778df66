"""The history of a mail's attempts, and what is made of bytes that no version of ours has written."""

from datetime import UTC, datetime, timedelta
from typing import Any

import msgspec
import pytest

from contracts.messages import KINDS, Attempt, Attempts, Codec, History, Outcome, State, ledger_row

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


EVENT = "abcdefghijklmnopqrstuvwx27.42"
SENT = Outcome(event_id=EVENT, state=State.SENT, at=T, reason="as written")
PENDING = Attempts(event_id=EVENT, history=History().add(_attempts(1)[0], charged=True), due_at=T)
_encode = msgspec.json.Encoder().encode


@pytest.mark.parametrize("codec", KINDS.values(), ids=list(KINDS))
@pytest.mark.parametrize("data", [b"", b"\xff", b'{"kind":"\xff"}', b'{"x":' + b"[" * 100_000], ids=repr)
def test_what_is_no_message_is_refused_in_one_way(codec: Codec[Any], data: bytes) -> None:
    """Not UTF-8 and nested without end are refused like the rest: who reads a stream catches one exception."""
    with pytest.raises(msgspec.DecodeError):
        codec.decode(data)


@pytest.mark.parametrize(
    ("kind", "data", "row"),
    [
        ("outcome.sent", _encode(SENT), (SENT, True)),
        ("attempts", _encode(PENDING), (PENDING, True)),
        ("outcome.sent", b"", State.SENT),
        ("outcome.erased", b"\xff", State.ERASED),
        ("outcome.dead", b"[" * 100_000, State.DEAD),
        ("outcome.expired", _encode(SENT), State.EXPIRED),
        ("outcome.sent", _encode(PENDING), State.SENT),
        ("outcome.bogus", _encode(SENT), State.DEAD),
        ("outcome.sent", _encode(msgspec.structs.replace(SENT, event_id="another")), State.SENT),
        ("attempts", b"", None),
        ("attempts", _encode(SENT), None),
        ("attempts", _encode(msgspec.structs.replace(PENDING, event_id="another")), None),
    ],
)
def test_a_row_that_cannot_be_read_is_what_its_subject_says(kind: str, data: bytes, row: object) -> None:
    """The broker counts by subject, so that decides; of attempts nothing is known, and the next one is due."""
    found, readable = ledger_row(f"deliveries.{EVENT}.{kind}", data, T)
    if isinstance(row, tuple):
        assert (found, readable) == row
        return
    assert not readable
    assert found.event_id == EVENT
    if row is None:
        assert found == Attempts(event_id=EVENT, history=History(), due_at=T)
    else:
        assert isinstance(found, Outcome)
        assert (found.state, found.at, found.history) == (row, T, History())
