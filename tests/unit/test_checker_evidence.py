"""What the laws of the drill's checker lean on: ids taken apart, what may be assumed of a call, who came when."""

import math
from dataclasses import replace

import pytest

from tests.drill.evidence import LATE_S, Evidence, could_have, event_in, happened, revision_in
from tests.drill.history import Call, History, Key, Transaction
from tests.drill.sample import RULES

CALL = Call(kind="register", began=1.0, ended=2.0, status=201, email="ann@example.com")


@pytest.mark.parametrize(
    ("event", "revision"),
    [("ann.7", 7), ("ann.0", 0), ("ann", 0), ("ann.", 0), ("ann.x", 0), ("ann.\u0663", 0), ("ann.7.8", 0), ("", 0)],
)
def test_revision_of_an_event(event: str, revision: int) -> None:
    """0 where it is no event's id."""
    assert revision_in(event) == revision


@pytest.mark.parametrize("message_id", ["<ann.7@example.com>", " <ann.7@example.com> ", "<ann.7@a@b>", "ann.7"])
def test_event_of_a_message_id(message_id: str) -> None:
    """What is before the first `@`."""
    assert event_in(message_id) == "ann.7"


@pytest.mark.parametrize(
    ("status", "sure", "may_be"),
    [
        (None, False, True),
        (199, False, False),
        (200, True, True),
        (299, True, True),
        (300, False, False),
        (499, False, False),
        (500, False, True),
        (503, False, True),
    ],
)
def test_what_may_be_assumed_of_a_call(status: int | None, sure: bool, may_be: bool) -> None:
    """The table of the module; what is not sure may come about later."""
    call = replace(CALL, status=status)
    assert (happened(call), could_have(call)) == (sure, may_be)
    open_end = status is None or status >= 500
    assert Evidence(History(rules=RULES, calls=(call,))).latest(call) == (2.0 + LATE_S if open_end else 2.0)


def test_an_event_was_asked_for_before_the_next_known_one() -> None:
    """Revisions rise with time; of the last one nobody knows."""
    keys = [Key(event_id=f"u.{n}", user_id="u", kind="u", email="", at=at) for n, at in ((3, 0.5), (5, 5.0), (9, 0.0))]
    seen = Evidence(History(rules=RULES, keys=tuple(keys)))
    assert [seen.asked_by(f"u.{n}") for n in (1, 3, 4, 5, 6, 9)] == [0.5, 0.5, 5.0, 5.0, math.inf, math.inf]


def test_another_mail_was_taken_between_two_moments() -> None:
    """Both included; one's own does not count."""
    mail = Transaction(worker=None, began=1.0, rcpt="u@example.com", message_id="<u.1@x>", accepted_at=2.0)
    seen = Evidence(History(rules=RULES, transactions=(mail,)))
    assert seen.others_taken("u.2", 2.0, 2.0)
    assert seen.others_taken("u.2", 0.0, 9.0)
    assert not seen.others_taken("u.2", 2.1, 9.0)
    assert not seen.others_taken("u.2", 0.0, 1.9)
    assert not seen.others_taken("u.1", 0.0, 9.0)
