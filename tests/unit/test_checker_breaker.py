"""The drill's checker on the circuit breaker: which mails may begin while it is open or half-open."""

from dataclasses import replace

import pytest

from tests.drill.checker import check
from tests.drill.history import Change
from tests.drill.planted import Case, Cases
from tests.drill.sample import (
    Draft,
    begin,
    change,
    drop,
    edit,
    fault,
    good,
    mail,
)

CASES = Cases()
breaks, allows, edge = CASES.breaks, CASES.allows, CASES.edge


# Open from 35 to 45, half-open at 45.25 with permits at 45.5 and 45.75 for the mails at 46 and 47, closed at 48.


@breaks("breaker: nothing was heard of it")
def nothing_heard(d: Draft) -> None:
    d.changes.clear()


@breaks("breaker: a mail begun 5.0 s after it had opened at 40.000")
def mail_while_open(d: Draft) -> None:
    begin(d, 40.0)


@edge("breaker", last=37.0499, first=37.05)  # the age of a worker's reading
def mail_just_after_the_opening(d: Draft, at: float) -> None:
    begin(d, at)


@edge("breaker", last=37.5499, first=37.55)
def mail_just_after_the_opening_seen_late(d: Draft, at: float) -> None:
    d.more["stood_still_s"] = 0.5
    begin(d, at)


@edge("breaker", last=45.25 - 0.05, first=45.1999)
def mail_just_before_the_half_opening(d: Draft, at: float) -> None:
    begin(d, at)


@allows
def first_state_reaches_back(d: Draft) -> None:
    change(d, 0, at=30.0)


@breaks("breaker: a mail begun 3.0 s after it had opened at 38.000")
def opened_until_the_end(d: Draft) -> None:
    drop(d.changes, lambda c: c.epoch > 2)
    drop(d.transactions, lambda t: t.began > 45.0)
    drop(d.calls, lambda c: c.email.startswith(("jan", "kim")))
    drop(d.keys, lambda k: k.user_id in ("jan", "kim"))
    drop(d.rows, lambda r: r.event_id in ("jan.13", "kim.14"))
    begin(d, 38.0)


@edge("breaker", last=39.0, first=38.9999)  # a second before its mail
def thawed_just_before(d: Draft, ended: float) -> None:
    fault(d, "freeze", "email_svc", 36.0, ended)
    begin(d, 40.0)


@edge("breaker", last=38.5, first=38.4999)
def thawed_just_before_and_seen_late(d: Draft, ended: float) -> None:
    d.more["stood_still_s"] = 0.5
    fault(d, "freeze", "email_svc", 36.0, ended)
    begin(d, 40.0)


@edge("breaker", last=37.0, first=37.0001)  # while a reading of before was good
def frozen_in_time(d: Draft, began: float) -> None:
    fault(d, "freeze", "email_svc", began, 39.5)
    begin(d, 40.0)


@edge("breaker", last=37.5, first=37.5001)
def frozen_in_time_and_seen_late(d: Draft, began: float) -> None:
    d.more["stood_still_s"] = 0.5
    fault(d, "freeze", "email_svc", began, 39.5)
    begin(d, 40.0)


@breaks("breaker: a mail begun 5.0 s after it had opened at 40.000")
def other_worker_thawed(d: Draft) -> None:
    fault(d, "freeze", "email_svc-2", 36.0, 39.5)
    fault(d, "cut", "email_svc", 36.0, 39.5)
    begin(d, 40.0)


@breaks("breaker: a mail begun 5.0 s after it had opened at 40.000")
def unknown_worker_thawed(d: Draft) -> None:
    fault(d, "freeze", "email_svc", 36.0, 39.5)
    begin(d, 40.0)
    edit(d.transactions, lambda t: t.began == 40.0, worker=None)


def alone(d: Draft, at: float, *faults: tuple[str, str, float, float]) -> None:
    """The pause lapses at 40, and nobody is there to end it before 45.25; a mail begins."""
    change(d, 1, until=35.0)
    for each in faults:
        fault(d, *each)
    begin(d, at)


def gone(began: float = 35.0, ended: float = 45.0) -> tuple[str, str, float, float]:
    return ("kill", "user_svc-2", began, ended)


@edge("breaker", last=40.0 - 0.05, first=39.9499)
def alone_before_the_pause_lapsed(d: Draft, at: float) -> None:
    alone(d, at, ("kill", "user_svc", 35.0, 45.0), gone())


@edge("breaker", last=40.0, first=40.001)  # the pause lapsed
def owner_went_too_late(d: Draft, began: float) -> None:
    alone(d, 43.0, ("freeze", "user_svc", began, 45.0), gone())


@edge("breaker", last=39.0, first=38.9999)  # 4 s before the mail
def owner_was_back(d: Draft, ended: float) -> None:
    alone(d, 43.0, ("restart", "user_svc", 35.0, ended), gone())


@edge("breaker", last=38.5, first=38.4999)
def owner_was_back_and_mail_seen_late(d: Draft, ended: float) -> None:
    d.more["stood_still_s"] = 0.5
    alone(d, 43.0, ("restart", "user_svc", 35.0, ended), gone())


@pytest.mark.parametrize(
    ("kind", "target", "allowed"),
    [
        *((kind, "user_svc", True) for kind in ("kill", "restart", "freeze")),
        *((kind, "user_svc~broker", True) for kind in ("cut", "black_hole", "half_open")),
        ("delay", "user_svc~broker", False),
        ("cut", "client~user_svc", False),
        ("cut", "user_svc", False),
        ("kill", "user_svc~broker", False),
        ("kill", "user_svc-3", False),
    ],
)
def test_worker_is_alone_when_every_owner_is_away(kind: str, target: str, allowed: bool) -> None:
    d = good()
    alone(d, 43.0, (kind, target, 35.0, 45.0), gone())
    found = [] if allowed else ["breaker: a mail begun 8.0 s after it had opened at 43.000"]
    assert [str(violation) for violation in check(d.history())] == found


@allows
def owners_are_told(d: Draft) -> None:
    d.more["owners"] = ("user_svc-2",)
    alone(d, 43.0, gone())


@breaks("breaker: a mail begun 8.0 s after it had opened at 43.000")
def alone_while_an_operator_holds_it_open(d: Draft) -> None:
    alone(d, 43.0, ("kill", "user_svc", 35.0, 45.0), gone())
    change(d, 1, until=None)
    fault(d, "breaker_open", "breaker", 34.0, 45.0)
    change(d, 2, state="closed", round=0)
    drop(d.changes, lambda c: c.epoch > 2 and c.at > 45.25)


@breaks("breaker: 3 mails begun half-open, with 2 permits at 47.500")
def third_probe_of_two(d: Draft) -> None:
    begin(d, 47.5)


@allows
def third_probe_of_three(d: Draft) -> None:
    d.changes.insert(4, Change(at=47.25, epoch=3, state="half_open", round=1, issued=3))
    begin(d, 47.5)


@breaks("breaker: 3 mails begun half-open, with 2 permits at 47.500")
def permit_is_counted_once(d: Draft) -> None:
    """Written again, with its result."""
    d.changes.insert(4, Change(at=47.25, epoch=3, state="half_open", round=1, issued=2))
    begin(d, 47.5)


@breaks("breaker: 4 mails begun half-open, with 3 permits at 47.750")
def permit_that_was_given_back_was_granted(d: Draft) -> None:
    d.changes[4:4] = [
        Change(at=47.125, epoch=3, state="half_open", round=1, issued=1),
        Change(at=47.25, epoch=3, state="half_open", round=1, issued=2),
    ]
    begin(d, 47.5, 47.75)


@breaks("breaker: 5 mails begun half-open, with 4 permits at 47.750")
def permits_of_all_rounds(d: Draft) -> None:
    d.changes[4:4] = [
        Change(at=47.125, epoch=3, state="half_open", round=2, issued=1),
        Change(at=47.25, epoch=3, state="half_open", round=2, issued=2),
    ]
    begin(d, 47.3125, 47.5, 47.75)


@edge("breaker", last=45.25 + 0.0499, first=45.3)
def third_probe_just_after_the_half_opening(d: Draft, at: float) -> None:
    begin(d, at)


@edge("breaker", last=48.0 - 0.05, first=47.9499)
def third_probe_just_before_the_closing(d: Draft, at: float) -> None:
    begin(d, at)


@edge("breaker", last=46.2999, first=46.3)
def third_probe_seen_late(d: Draft, at: float) -> None:
    d.more["stood_still_s"] = 1.0
    edit(d.transactions, mail("jan.13"), began=46.5)
    begin(d, at)


@edge("breaker", last=47.25, first=47.2501)  # two seconds after the half-opening
def third_probe_of_a_thawed_worker(d: Draft, began: float) -> None:
    fault(d, "freeze", "email_svc", began, 47.25)
    edit(d.transactions, lambda t: t.began in (46.0, 47.0), worker="email_svc-2")
    begin(d, 47.5)


@edge("breaker", last=40.0, first=40.0001)
def mail_while_deaf_is_not_judged(d: Draft, since: float) -> None:
    d.more["deaf"] = ((since, 41.0),)
    begin(d, 40.0)


@edge("breaker", last=40.0, first=39.9999)
def mail_after_being_deaf_is_judged(d: Draft, until: float) -> None:
    d.more["deaf"] = ((39.0, until),)
    begin(d, 40.0)


@pytest.mark.parametrize(("probes", "allowed"), [(5, True), (6, False)])
def test_deaf_may_have_missed_a_round_of_permits(probes: int, allowed: bool) -> None:
    """Three more than were heard of; whoever was seen to begin meanwhile does not count."""
    d = good()
    d.more["deaf"] = ((47.125, 47.25),)
    begin(d, 47.1875, *(47.375 + n / 16 for n in range(probes - 2)))
    assert ([violation.law for violation in check(d.history())] == []) == allowed


@pytest.mark.parametrize("deaf", [(48.0, 48.25), (44.0, 45.25)])
def test_deaf_at_the_ends_of_a_half_open_epoch(deaf: tuple[float, float]) -> None:
    d = good()
    d.more["deaf"] = (deaf,)
    begin(d, 47.5)
    assert check(d.history()) == []


@pytest.mark.parametrize("deaf", [(48.001, 48.25), (44.0, 45.2499)])
def test_deaf_beyond_the_ends_of_a_half_open_epoch(deaf: tuple[float, float]) -> None:
    d = good()
    d.more["deaf"] = (deaf,)
    begin(d, 47.5)
    assert [violation.law for violation in check(d.history())] == ["breaker"]


@pytest.mark.parametrize(("probes", "allowed"), [(9, True), (10, False)])
def test_round_missed_while_deaf(probes: int, allowed: bool) -> None:
    """Rounds 1 and 3 were heard of, with 2 and 1 permits: 3 of round 2, and 3 for whatever else was missed."""
    d = good()
    d.rules = replace(d.rules, rate_per_s=0.0)
    d.more["deaf"] = ((46.5, 46.6),)
    d.changes.insert(4, Change(at=46.6, epoch=3, state="half_open", round=3, issued=1))
    begin(d, *(47.125 + n / 16 for n in range(probes - 2)))
    assert ([violation.law for violation in check(d.history())] == []) == allowed


@pytest.mark.parametrize("case", CASES.all, ids=str)
def test_checker_judges(case: Case) -> None:
    found, expected = case.said()
    assert found == expected
