"""The drill's checker on second copies of a mail: what excuses one, and what does not."""

from collections.abc import Callable
from dataclasses import replace

import pytest

from tests.drill.checker import check, excused
from tests.drill.history import Fault
from tests.drill.planted import Case, Cases
from tests.drill.sample import (
    Draft,
    edit,
    fault,
    good,
    mail,
    of,
)

CASES = Cases()
breaks, allows, edge = CASES.breaks, CASES.allows, CASES.edge


def again(d: Draft, at: float = 3.0, *, stored: float | None = None) -> None:
    """A second copy of ada's mail, by the other worker, who wrote the outcome; or it was written before."""
    d.taken("ada.1", at, worker="email_svc-2")
    if stored is None:
        edit(d.rows, of("ada.1"), at=at + 0.125, stored_at=at + 0.1875)
    else:
        edit(d.rows, of("ada.1"), stored_at=stored)


@breaks("duplicate: a second copy without excuse, 1.0 s after the first [ada.1] at 3.000")
def second_copy_for_no_reason(d: Draft) -> None:
    again(d)


@breaks("duplicate: a second copy without excuse, 2.0 s after the first [gus.8] at 24.000")
def third_copy_needs_its_own_excuse(d: Draft) -> None:
    d.taken("gus.8", 24.0)


@breaks("duplicate: a second copy without excuse, 0.5 s after the first [dan.4] at 10.500")
def second_copy_of_the_erased(d: Draft) -> None:
    d.taken("dan.4", 10.5)


@breaks("duplicate: two Message-IDs of one event [gus.8] at 22.000")
def copy_with_another_message_id(d: Draft) -> None:
    edit(d.transactions, lambda t: t.began == 22.0, message_id="<gus.8@elsewhere>")


@breaks("duplicate: a mail without Message-ID at 2.000", "lost: sent, but the SMTP server never took it [ada.1]")
def mail_without_message_id(d: Draft) -> None:
    edit(d.transactions, mail("ada.1"), message_id=None)


@edge("duplicate", last=2.0625, first=2.0624)  # when the first one was taken
def untold_and_begun_after(d: Draft, at: float) -> None:
    again(d, at)
    edit(d.transactions, lambda t: t.began == 2.0, told=False)


@edge("duplicate", last=3.25, first=3.2501)  # who begins a second after the outcome has seen it
def outcome_was_there(d: Draft, at: float) -> None:
    again(d, at, stored=2.25)
    edit(d.transactions, lambda t: t.began == 2.0, told=False)


@edge("duplicate", last=4.0, first=4.0001)
def outcome_was_there_and_the_server_stood_still(d: Draft, at: float) -> None:
    again(d, at, stored=2.25)
    edit(d.transactions, lambda t: t.began == 2.0, told=False)
    d.more["stood_still_s"] = 0.75


@edge("duplicate", last=4.0, first=4.0001)
def outcome_was_there_and_commands_were_delayed(d: Draft, at: float) -> None:
    again(d, at, stored=2.25)
    edit(d.transactions, lambda t: t.began == 2.0, told=False)
    d.faults += [
        Fault(kind="delay", target="email_svc~smtp", began=80.0, ended=81.0, delay_s=0.75),
        Fault(kind="delay", target="email_svc-2~smtp", began=82.0, ended=83.0, delay_s=0.25),
        Fault(kind="delay", target="email_svc~broker", began=82.0, ended=83.0, delay_s=5.0),
        Fault(kind="cut", target="email_svc~smtp", began=82.0, ended=83.0, delay_s=5.0),
    ]


@edge("duplicate", last=3.0625, first=3.063)  # without the broker's time, the outcome's own
def outcome_without_a_time_of_storing(d: Draft, at: float) -> None:
    again(d, at, stored=0.0)
    edit(d.rows, of("ada.1"), at=2.0625)
    edit(d.transactions, lambda t: t.began == 2.0, told=False)


@edge("duplicate", last=3.0, first=3.001)
def worker_killed_before_the_second_began(d: Draft, at: float) -> None:
    again(d)
    fault(d, "kill", "email_svc", at, 9.0)


@edge("duplicate", last=2.5, first=2.501)
def worker_killed_before_the_outcome(d: Draft, at: float) -> None:
    again(d, stored=2.5)
    fault(d, "kill", "email_svc", at, 9.0)


@edge("duplicate", last=2.0 - 0.05, first=1.949)
def worker_killed_before_the_first_began(d: Draft, at: float) -> None:
    again(d)
    fault(d, "kill", "email_svc", at, 9.0)


@edge("duplicate", last=1.0 - 0.05, first=0.949)
def blow_was_late_for_the_drill_stood_still(d: Draft, at: float) -> None:
    again(d)
    fault(d, "kill", "email_svc", at, 9.0)
    d.more["stood_still_s"] = 1.0


@edge("duplicate", last=2.0625, first=2.063)  # both in hand: when the first one was taken
def worker_killed_though_the_second_began_at_once(d: Draft, at: float) -> None:
    again(d, 2.03125)
    fault(d, "kill", "email_svc", at, 9.0)


def no_excuse(spoil: Callable[[Draft], None]) -> None:
    breaks("duplicate: a second copy without excuse, 1.0 s after the first [ada.1] at 3.000")(spoil)


@no_excuse
def other_worker_killed(d: Draft) -> None:
    again(d)
    fault(d, "kill", "email_svc-2", 2.5)


@no_excuse
def unknown_worker_killed(d: Draft) -> None:
    again(d)
    edit(d.transactions, mail("ada.1"), worker=None)
    fault(d, "kill", "email_svc", 2.5)
    fault(d, "freeze", "None~broker", -50.0, 50.0)
    fault(d, "cut", "None~broker", -50.0, 50.0)


@no_excuse
def worker_restarted_politely(d: Draft) -> None:
    again(d)
    fault(d, "restart", "email_svc", 2.5)


@no_excuse
def worker_stood_still_for_a_moment(d: Draft) -> None:
    again(d)
    fault(d, "freeze", "email_svc", 1.5, 2.5)


@no_excuse
def user_svc_killed(d: Draft) -> None:
    again(d)
    fault(d, "kill", "user_svc", 2.5)
    fault(d, "purge", "breaker", 2.5)


@pytest.mark.parametrize(
    ("kind", "target"), [("freeze", "broker"), *((k, "email_svc~broker") for k in ("cut", "black_hole", "half_open"))]
)
@pytest.mark.parametrize(
    ("began", "ended", "allowed"), [(3.0, 9.0, True), (3.001, 9.0, False), (0.0, 2.0, True), (0.0, 1.999, False)]
)
@pytest.mark.parametrize("which", [0, 1])
def test_worker_stopped_while_the_broker_was_away(
    kind: str, target: str, began: float, ended: float, allowed: bool, which: int
) -> None:
    """Both at some time between the first one's MAIL and the second's."""
    d = good()
    again(d)
    times = [(2.5, 2.5), (2.5, 2.5)]
    times[which] = (began, ended)
    fault(d, "restart", "email_svc", *times[0])
    fault(d, kind, target, *times[1])
    assert excused(d.history()).get("stopped", 0) == allowed
    assert [violation.law for violation in check(d.history())] == ([] if allowed else ["duplicate"])


@no_excuse
def worker_stopped_while_the_other_was_cut_off(d: Draft) -> None:
    again(d)
    fault(d, "restart", "email_svc", 2.5)
    fault(d, "cut", "email_svc-2~broker", 2.5)


@no_excuse
def other_worker_stopped_while_the_broker_was_away(d: Draft) -> None:
    again(d)
    fault(d, "restart", "email_svc-2", 2.5)
    fault(d, "freeze", "broker", 2.5)


@no_excuse
def worker_was_cut_off_for_a_moment(d: Draft) -> None:
    again(d)
    fault(d, "cut", "email_svc~broker", 2.0, 4.0)


@pytest.mark.parametrize("kind", ["kill", "restart", "leader_kill"])
@pytest.mark.parametrize(
    ("began", "ended", "allowed"), [(3.0, 9.0, True), (3.001, 9.0, False), (0.0, 2.0, True), (0.0, 1.999, False)]
)
def test_broker_was_dead(kind: str, began: float, ended: float, allowed: bool) -> None:
    """At some time between the first one's MAIL and the second's."""
    d = good()
    again(d)
    fault(d, kind, "broker", began, ended)
    assert excused(d.history()).get("broker", 0) == allowed
    assert [violation.law for violation in check(d.history())] == ([] if allowed else ["duplicate"])


@pytest.mark.parametrize(("brokers", "allowed"), [(1, False), (2, True), (3, True)])
def test_broker_that_stood_still_counts_in_a_cluster(brokers: int, allowed: bool) -> None:
    d = good()
    again(d)
    fault(d, "freeze", "broker", 2.5)
    d.more["brokers"] = brokers
    assert (check(d.history()) == []) == allowed


@pytest.mark.parametrize("kind", ["purge", "consumer_deleted"])
@pytest.mark.parametrize(("at", "allowed"), [(-8.0, True), (-8.001, False), (3.0, True), (3.001, False)])
def test_queue_was_removed_while_in_hand(kind: str, at: float, allowed: bool) -> None:
    """Up to 10 s before the first one's MAIL, until the second's."""
    d = good()
    again(d)
    fault(d, kind, "queue", at)
    assert excused(d.history()).get("removed", 0) == allowed
    assert [violation.law for violation in check(d.history())] == ([] if allowed else ["duplicate"])


FROZEN = [
    ("freeze", "email_svc"),
    ("freeze", "broker"),
    *((k, "email_svc~broker") for k in ("cut", "black_hole", "half_open")),
]


@pytest.mark.parametrize(("kind", "target"), FROZEN)
@pytest.mark.parametrize(
    ("began", "ended", "second", "allowed"),
    [
        (2.0, 20.0, 21.0, True),  # 18 s: ack_wait less 12
        (2.0, 19.999, 21.0, False),
        (2.0, 30.0, 20.0, True),
        (2.0, 30.0, 19.999, False),
        (2.0625, 30.0, 21.0, True),  # since the mail was taken, at the latest
        (2.063, 30.0, 21.0, False),
        (-20.0, 1.0, 21.0, True),  # until a second before its MAIL, at the earliest
        (-20.0, 0.999, 21.0, False),
    ],
)
def test_first_worker_was_away(
    kind: str, target: str, began: float, ended: float, second: float, allowed: bool
) -> None:
    d = good()
    again(d, second)
    fault(d, kind, target, began, ended)
    assert excused(d.history()).get("frozen", 0) == allowed
    assert [violation.law for violation in check(d.history())] == ([] if allowed else ["duplicate"])


@pytest.mark.parametrize(
    ("began", "ended", "allowed"),
    [(-16.0, 30.0, True), (-15.999, 30.0, False), (-16.0, 20.0, True), (-16.0, 19.999, False)],
)
def test_second_worker_was_away(began: float, ended: float, allowed: bool) -> None:
    """It had the message first, and thaws after the outcome: no look-up stops it (at most a second before its MAIL)."""
    d = good()
    again(d, 21.0, stored=2.1875)
    fault(d, "freeze", "email_svc-2", began, ended)
    assert excused(d.history()).get("frozen", 0) == allowed
    assert [violation.law for violation in check(d.history())] == ([] if allowed else ["duplicate"])


def test_ack_wait_is_a_rule() -> None:
    d = good()
    again(d, 21.0)
    fault(d, "freeze", "email_svc", 2.0, 20.0)
    d.rules = replace(d.rules, ack_wait_s=30.001)
    assert [violation.law for violation in check(d.history())] == ["duplicate"]


def test_excuses_are_counted() -> None:
    """Each copy but the first, by its first excuse."""
    d = good()
    again(d)
    d.taken("ada.1", 3.5)
    fault(d, "kill", "email_svc", 2.5)
    fault(d, "kill", "email_svc-2", 3.25)
    edit(d.rows, of("ada.1"), stored_at=4.0)
    assert check(d.history()) == []
    assert excused(d.history()) == {"untold": 1, "killed": 2}


@pytest.mark.parametrize("case", CASES.all, ids=str)
def test_checker_judges(case: Case) -> None:
    found, expected = case.said()
    assert found == expected
