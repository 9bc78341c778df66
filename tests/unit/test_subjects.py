"""Names on the broker: what is an id, and what subjects are made of it."""
# ruff: noqa: RUF001 - characters of other scripts are the point

import pytest

from contracts import subjects as s
from contracts.streams import topology

USER = "abcdefghijklmnopqrstuvwx27"


def test_event_ids_are_split_where_they_were_joined() -> None:
    """User id and revision, both back."""
    assert s.event_id(USER, 42) == f"{USER}.42"
    assert s.split_event_id(s.event_id(USER, 42)) == (USER, 42)


@pytest.mark.parametrize(
    "event",
    [
        "",
        USER,
        f"{USER}.",
        f"{USER}.0",
        f"{USER}.01",
        f"{USER}.-1",
        f"{USER}.1.2",
        f"{USER}.1x",
        f"{USER}.{'1' * 20}",
        f"{USER}.²",
        f"{USER}.١",
        f"{USER[:-1]}.1",
        f"{USER}a.1",
        f"{USER.upper()}.1",
        f"{USER[:-1]}*.1",
        f"{USER[:-1]}1.1",
        ".1",
        f"{USER}.>",
        f"{USER}.*",
    ],
)
def test_other_texts_are_no_event_ids(event: str) -> None:
    """Least of all a wildcard."""
    with pytest.raises(ValueError, match="is not an event id"):
        s.split_event_id(event)


def test_a_refused_event_id_is_quoted_shortly() -> None:
    """What came in may be of any size."""
    with pytest.raises(ValueError, match="is not an event id") as caught:
        s.split_event_id("x" * 100_000)
    assert len(str(caught.value)) < 200


@pytest.mark.parametrize(
    ("subject", "event"),
    [
        (s.attempts(f"{USER}.7"), f"{USER}.7"),
        (s.outcome(f"{USER}.70", "sent"), f"{USER}.70"),
        (s.dead_letter(f"{USER}.7", "dead"), f"{USER}.7"),
        (s.welcome_requested(f"{USER}.7"), f"{USER}.7"),
    ],
)
def test_the_event_is_found_in_any_subject_of_it(subject: str, event: str) -> None:
    """Queue, ledger and dead letters put it in different places."""
    assert s.event_in(subject, USER) == event


def _matches(pattern: str, subject: str) -> bool:
    wanted, found = pattern.split("."), subject.split(".")
    if wanted[-1] == ">":
        return len(found) >= len(wanted) and all(w in ("*", f) for w, f in zip(wanted[:-1], found, strict=False))
    return len(wanted) == len(found) and all(w in ("*", f) for w, f in zip(wanted, found, strict=True))


@pytest.mark.parametrize(
    ("subject", "stream"),
    [
        (s.user_key(USER), s.USERS),
        (s.again_key(USER, "2026-01-01-1"), s.USERS),
        (s.erase_key(USER), s.USERS),
        (s.USER_ID_KEY_FINGERPRINT, s.USERS),
        (s.idempotency_key(USER), s.IDEMPOTENCY),
        (s.welcome_requested(f"{USER}.7"), s.WELCOME_EMAILS),
        (s.attempts(f"{USER}.7"), s.DELIVERIES),
        (s.outcome(f"{USER}.7", "sent"), s.DELIVERIES),
        (s.dead_letter(f"{USER}.7", "dead"), s.DEAD_LETTERS),
        (s.quarantined(7), s.DEAD_LETTERS),
    ],
)
def test_every_subject_belongs_to_exactly_one_stream(subject: str, stream: str) -> None:
    """The stream that the design says, and no other."""
    takers = [t.name for t in topology() if any(_matches(p, subject) for p in t.fixed["subjects"])]
    assert takers == [stream]


def test_each_outbox_key_is_seen_by_one_filter_of_the_relay() -> None:
    """Overlapping filters would be refused by the broker; a missing one would lose mails."""
    keys = [s.user_key(USER), s.again_key(USER, "r7"), s.erase_key(USER)]
    filters = [s.USER_KEYS, s.AGAIN_KEYS, s.ERASE_KEYS]
    assert [[_matches(f, key) for f in filters].count(True) for key in keys] == [1, 1, 1]
    assert not any(_matches(f, s.USER_ID_KEY_FINGERPRINT) for f in filters)
