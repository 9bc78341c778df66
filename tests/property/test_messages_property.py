"""Laws of the wire: what is decoded is what was encoded, of every kind and for all values."""

from datetime import UTC

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from contracts import messages as m

TEXT = st.text(st.characters(codec="utf-8"), max_size=50)
TIMES = st.datetimes(timezones=st.just(UTC))
INTS = st.integers(0, 2**53)
ATTEMPTS = st.builds(
    m.Attempt,
    at=TIMES,
    verdict=TEXT,
    phase=TEXT,
    code=st.none() | INTS,
    enhanced=st.none() | TEXT,
    text=TEXT,
    seconds=st.floats(allow_nan=False, allow_infinity=False),
)
HISTORIES = st.lists(st.tuples(ATTEMPTS, st.booleans()), max_size=25).map(
    lambda items: _history([a for a, _ in items], [c for _, c in items])
)


def _history(attempts: list[m.Attempt], charged: list[bool]) -> m.History:
    history = m.History()
    for attempt, counts in zip(attempts, charged, strict=True):
        history = history.add(attempt, charged=counts)
    return history


def _field(kind: object) -> st.SearchStrategy[object]:
    return FIELDS[kind]


FIELDS: dict[object, st.SearchStrategy[object]] = {
    str: TEXT,
    int: INTS,
    int | None: st.none() | INTS,
    m.Time: TIMES,
    m.Time | None: st.none() | TIMES,
    m.Why: st.sampled_from(m.Why),
    m.State: st.sampled_from(m.State),
    m.History: HISTORIES,
}


def _kind_of(tag: str) -> type[msgspec.Struct]:
    return next(kind for kind in m.Wire.__subclasses__() if kind.__struct_config__.tag == tag)


@pytest.mark.parametrize("tag", sorted(m.KINDS))
@given(data=st.data())
def test_decode_undoes_encode(tag: str, data: st.DataObject) -> None:
    """decode(encode(m)) == m; a new field of a new type has to be added to FIELDS to get past this."""
    kind = _kind_of(tag)
    values = {field.name: data.draw(_field(field.type), label=field.name) for field in msgspec.structs.fields(kind)}
    message = kind(**values)
    codec = m.KINDS[tag]
    assert codec.decode(codec.encode(message)) == message


@given(st.binary(max_size=200))
def test_anything_else_is_refused_in_one_way(data: bytes) -> None:
    """DecodeError (ValidationError included) and no other exception, whatever the bytes."""
    for codec in m.KINDS.values():
        with pytest.raises(msgspec.DecodeError):
            codec.decode(data)


@given(st.lists(st.tuples(ATTEMPTS, st.booleans()), max_size=60))
def test_history_keeps_the_first_three_and_the_last_seventeen(items: list[tuple[m.Attempt, bool]]) -> None:
    """In order, without repeats, and with the totals of all."""
    attempts = [a for a, _ in items]
    history = _history(attempts, [c for _, c in items])
    assert history.first == tuple(attempts[:3])
    assert history.last == tuple(attempts[3:][-17:])
    assert history.total == len(items)
    assert history.charged == sum(c for _, c in items)
