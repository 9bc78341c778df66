"""Which dead letters a filter takes, and what a replay is told to take."""

from datetime import UTC, datetime, timedelta
from typing import Any

import msgspec
import pytest

from contracts import messages as m
from user_svc.dead_letters import Filter, Replay

NOW = datetime(2026, 11, 25, 12, tzinfo=UTC)
EVENTS = [f"{'a' * 26}.{n}" for n in range(1, 1002)]


def letter(age_s: float, event: str = EVENTS[0]) -> m.DeadLetter:
    """One that ended so long ago."""
    at = NOW - timedelta(seconds=age_s)
    return m.DeadLetter(event_id=event, user_id="a" * 26, state=m.State.DEAD, reason="550 no", at=at, code=550)


@pytest.mark.parametrize(
    ("filter_", "ages_s"),
    [
        ({}, [-5, 0, 3599, 3600, 7200]),
        ({"older_than": "1h"}, [3600, 7200]),
        ({"younger_than": "1h"}, [-5, 0, 3599]),  # of a clock that is ahead too
        ({"older_than": "1h", "younger_than": "2h"}, [3600]),
        ({"older_than": "2h", "younger_than": "1h"}, []),
        ({"younger_than": "0s"}, [-5]),
    ],
)
def test_an_age_is_older_or_younger_and_never_both(filter_: dict[str, str], ages_s: list[float]) -> None:
    """By the end of the mail; together they are a span."""
    takes = Filter(**filter_).at(NOW)  # type: ignore[arg-type]
    assert [age for age in (-5, 0, 3599, 3600, 7200) if takes(letter(age))] == ages_s


@pytest.mark.parametrize("text", ["", "1", "h", "-1h", "1y", "1h2m", "9" * 400 + "d", "400d", "１h"])  # noqa: RUF001
@pytest.mark.parametrize("name", ["older_than", "younger_than"])
def test_what_is_no_duration_is_refused_by_name(name: str, text: str) -> None:
    """In a filter of a replay too."""
    for kind, body in ((Filter, {name: text}), (Replay, {"filter": {name: text}})):
        with pytest.raises(msgspec.ValidationError, match=f"{name}: expected"):
            msgspec.convert(body, kind)


def test_selected_letters_are_those_and_no_others() -> None:
    """An id that is no letter's selects nothing."""
    takes = msgspec.convert({"event_ids": [*EVENTS[:2], EVENTS[-1]]}, Replay).chosen.at(NOW)
    assert [takes(letter(0, event)) for event in EVENTS[:3]] == [True, True, False]


@pytest.mark.parametrize(
    "body",
    [{}, {"all": False}, {"event_ids": []}, {"event_ids": EVENTS}, {"event_ids": "x"}, {"event_ids": [1]},
     {"event_ids": EVENTS[:1], "all": True}, {"event_id": EVENTS[0], "event_ids": EVENTS[:1]},
     {"event_ids": EVENTS[:1], "filter": {}}],
)  # fmt: skip
def test_a_replay_takes_one_word_for_what(body: dict[str, Any]) -> None:
    """Never nothing, nor two, nor more than a thousand selected."""
    with pytest.raises(msgspec.ValidationError):
        msgspec.convert(body, Replay)


@pytest.mark.parametrize(
    "text", ["", "x", "a" * 26, f"{'a' * 26}.0", f"{'a' * 26}.1.2", f"{'A' * 26}.1", "ann@example.com"]
)
def test_what_is_no_event_id_is_refused(text: str) -> None:
    """It would be found nowhere but in the audit, which holds ids only."""
    for chosen in ({"event_id": text}, {"event_ids": [EVENTS[0], text]}):
        for kind, body in ((Filter, chosen), (Replay, chosen), (Replay, {"filter": chosen})):
            with pytest.raises(msgspec.ValidationError, match="is not an event id"):
                msgspec.convert(body, kind)


def test_the_audit_names_a_few_of_many() -> None:
    """A record is not as large as a selection, nor as what somebody looks for in a reason."""
    assert Replay(event_id=EVENTS[0]).target == EVENTS[0]
    assert Replay(event_ids=frozenset(EVENTS[:2])).target == f"2 selected: {EVENTS[0]}, {EVENTS[1]}"
    assert len(Replay(event_ids=frozenset(EVENTS[:1000])).target) < 120
    assert "550" in Replay(filter=Filter(code=550, older_than="1h")).target
    assert Replay(filter=Filter(reason="ab" * 5000)).target.count("ab") == 50
