"""The drill's checker on how a mail ended: what a verdict needs."""

from dataclasses import replace

import pytest

from tests.drill.checker import check
from tests.drill.history import Reply
from tests.drill.laws_mails import permanent
from tests.drill.planted import Case, Cases
from tests.drill.sample import GREYLISTED, NOBODY, OK, TAKEN, Draft, drop, edit, fault, good, mail, of

CASES = Cases()
breaks, allows, edge = CASES.breaks, CASES.allows, CASES.edge


@breaks(
    "verdict: several outcomes: expired, sent [ada.1]",
    "verdict: expired, though the SMTP server took it [ada.1] at 200.000",
    "ledger: a gap of -1",
)
def two_outcomes(d: Draft) -> None:
    d.row("ada.1", "expired", at=200.0)
    d.letter("ada.1", "expired")


@breaks(
    "verdict: dead, but the SMTP server has not refused it for good [bob.2] at 5.125",
    "verdict: attempt with answer rcpt 550, which the SMTP server has not given [bob.2] at 5.125",
)
def refusal_that_never_was(d: Draft) -> None:
    edit(d.transactions, lambda t: NOBODY in t.replies, replies=(OK["mail"], GREYLISTED))


@breaks("verdict: dead, but the SMTP server has not refused it for good [bob.2] at 5.125")
def refusal_was_not_for_good(d: Draft) -> None:
    edit(d.transactions, lambda t: NOBODY in t.replies, replies=(OK["mail"], replace(NOBODY, text="5.7.1 blocked")))


@breaks("verdict: dead, but the SMTP server has not refused it for good [bob.2] at 5.125")
def dead_for_good_without_an_answer(d: Draft) -> None:
    edit(d.rows, of("bob.2", "dead"), attempts=(None,))


@breaks(
    "verdict: dead, but the SMTP server has not refused it for good [bob.2] at 5.125",
    "verdict: attempt with answer rcpt 550, which the SMTP server has not given [bob.2] at 5.125",
)
def refusal_was_of_another(d: Draft) -> None:
    edit(d.transactions, lambda t: NOBODY in t.replies, rcpt="ada@example.com")


@edge("verdict", last=5.1875, first=5.188)  # when the outcome was stored: the worker's clock may be behind
def refusal_came_after_the_death(d: Draft, at: float) -> None:
    edit(d.transactions, lambda t: NOBODY in t.replies, began=at)


@allows
def recipient_in_another_spelling(d: Draft) -> None:
    edit(d.transactions, lambda t: NOBODY in t.replies, rcpt="Bob@EXAMPLE.com")


@breaks("verdict: dead after 3 charged attempts, the last one transient [hal.9] at 26.125")
def dead_before_the_budget_was_spent(d: Draft) -> None:
    edit(d.rows, of("hal.9"), attempts=(GREYLISTED,) * 3, verdicts=("transient",) * 3, total=3, counted=3)
    edit(d.rows, of("hal.9"), attempted_at=(24.125, 25.125, 26.125), at=26.125)


@breaks("verdict: 5 attempts charged, with a budget of 3 retries [hal.9] at 27.125")
def dead_after_the_budget_was_overspent(d: Draft) -> None:
    d.refused("hal.9", 27.5, GREYLISTED)
    edit(d.rows, of("hal.9"), attempts=(GREYLISTED,) * 5, verdicts=("transient",) * 5, total=5, counted=5)
    edit(d.rows, of("hal.9"), attempted_at=(24.125, 25.125, 26.125, 27.125, 27.625))


@breaks("verdict: 4 attempts charged, with a budget of 3 retries [hal.9] at 28.125")
def refused_for_good_after_the_budget_was_spent(d: Draft) -> None:
    d.refused("hal.9", 28.0, NOBODY)
    edit(d.rows, of("hal.9"), attempts=(*(GREYLISTED,) * 4, NOBODY), verdicts=(*("transient",) * 4, "permanent"))
    edit(d.rows, of("hal.9"), attempted_at=(24.125, 25.125, 26.125, 27.125, 28.125), total=5, at=28.125)


@breaks(
    "verdict: 4 attempts charged, with a budget of 3 retries [hal.9] at 28.125",
    "lost: sent, but the SMTP server never took it [hal.9]",
)
def sent_after_the_budget_was_spent(d: Draft) -> None:
    edit(d.rows, of("hal.9"), attempts=(*(GREYLISTED,) * 4, None), verdicts=(*("transient",) * 4, "sent"))
    edit(d.rows, of("hal.9"), attempted_at=(24.125, 25.125, 26.125, 27.125, 28.125), total=5, at=28.125, place="sent")


@breaks(
    "verdict: 4 attempts charged, with a budget of 3 retries [hal.9] at 27.125",
    "settled: still to be tried again [hal.9]",
    "ledger: a gap of 1",
)
def pending_after_the_budget_was_spent(d: Draft) -> None:
    edit(d.rows, of("hal.9"), place="attempts")


@breaks("verdict: dead after 0 charged attempts, the last one unusable [bob.2] at 5.125")
def dead_for_an_unusable_mail(d: Draft) -> None:
    edit(d.rows, of("bob.2", "dead"), verdicts=("unusable",))


@breaks(
    "verdict: dead after 3 charged attempts, the last one sent [hal.9] at 27.125",
    "verdict: 3 attempts charged, with a budget of 2 retries [hal.9] at 27.125",
)
def dead_though_sent(d: Draft) -> None:
    d.rules = replace(d.rules, retries=2)
    edit(d.rows, of("hal.9"), attempts=(*(GREYLISTED,) * 3, None), verdicts=(*("transient",) * 3, "sent"), counted=3)


@breaks("verdict: dead after 0 charged attempts, the last one none [bob.2]")
def dead_without_an_attempt(d: Draft) -> None:
    drop(d.rows, of("bob.2", "dead"))
    d.row("bob.2", "dead")


@breaks("verdict: sent, after an attempt that was none [ada.1]")
def sent_without_an_attempt(d: Draft) -> None:
    drop(d.rows, of("ada.1"))
    d.row("ada.1", "sent")


@breaks("verdict: sent, after an attempt that was path [ada.1] at 2.125")
def sent_after_a_failure(d: Draft) -> None:
    edit(d.rows, of("ada.1"), verdicts=("path",))


@edge("verdict", last=113.125 - 0.01, first=113.1149)
def expired_before_its_deadline(d: Draft, at: float) -> None:
    edit(d.rows, of("eve.5", "expired"), at=at)


@breaks("verdict: expired before its deadline [eve.5] at 113.125")
def expired_of_unknown_age(d: Draft) -> None:
    edit(d.rows, of("eve.5", "expired"), requested_at=0.0)


@breaks("verdict: expired, though the SMTP server took it [eve.5] at 113.125")
def expired_though_taken(d: Draft) -> None:
    d.taken("eve.5", 20.0)


@allows
def expired_though_taken_and_untold(d: Draft) -> None:
    d.taken("eve.5", 20.0, told=False)


@breaks("verdict: dead, though the SMTP server took it [bob.2] at 5.125")
def dead_though_taken_before(d: Draft) -> None:
    d.taken("bob.2", 4.5)


@breaks("verdict: dead, though the SMTP server took it [bob.2] at 5.125")
def taken_after_it_was_dead(d: Draft) -> None:
    d.taken("bob.2", 6.0, told=False)


@edge("verdict", last=6.1875, first=6.188)  # a second after the outcome was written, nobody begins
def taken_after_it_was_dead_and_the_consumer_deleted(d: Draft, at: float) -> None:
    d.taken("bob.2", at)
    fault(d, "consumer_deleted", "queue", 5.0)


@edge("verdict", last=6.0, first=6.001)
def taken_after_it_was_dead_at_a_time_unknown(d: Draft, at: float) -> None:
    d.taken("bob.2", at)
    fault(d, "consumer_deleted", "queue", 5.0)
    edit(d.rows, of("bob.2", "dead"), stored_at=0.0, at=5.0)


@breaks("verdict: 1 attempts charged, where 0 to 0 may be [eve.5] at 113.125")
def path_failure_was_charged(d: Draft) -> None:
    edit(d.rows, of("eve.5", "expired"), counted=1)


def two_path_failures(d: Draft, first: float, second: float, *, verdict: str = "path", counted: int = 1) -> None:
    """Of eve. Mails of others were out at 16.125 and 18.125."""
    edit(d.rows, of("eve.5", "expired"), attempts=(None, None), verdicts=(verdict, verdict), total=2, counted=counted)
    edit(d.rows, of("eve.5", "expired"), attempted_at=(first, second))


@edge("verdict", last=16.625, first=16.626)
def another_mail_passed_before_the_last_attempt(d: Draft, first: float) -> None:
    two_path_failures(d, first, 17.0)


@edge("verdict", last=17.125, first=17.126)
def another_mail_passed_before_a_server_stood_still(d: Draft, first: float) -> None:
    two_path_failures(d, first, 17.5)
    d.more["stood_still_s"] = 0.5


@edge("verdict", last=15.625, first=15.6249)
def another_mail_passed_after_this_attempt(d: Draft, second: float) -> None:
    two_path_failures(d, 14.0, second)


@edge("verdict", last=15.5625, first=15.5624)
def mail_whose_end_is_not_known_passed_when_taken(d: Draft, second: float) -> None:
    two_path_failures(d, 14.0, second)
    edit(d.transactions, mail("fay.6"), ended=0.0)


@allows
def configuration_fault_may_be_charged_like_a_path_failure(d: Draft) -> None:
    two_path_failures(d, 14.0, 17.0, verdict="configuration")


@breaks("verdict: 2 attempts charged, where 0 to 1 may be [eve.5] at 113.125")
def first_path_failure_was_charged(d: Draft) -> None:
    two_path_failures(d, 14.0, 17.0, counted=2)


@breaks("verdict: 1 attempts charged, where 0 to 0 may be [eve.5] at 113.125")
def path_failure_at_an_unknown_time_was_charged(d: Draft) -> None:
    two_path_failures(d, 14.0, 17.0)
    edit(d.rows, of("eve.5", "expired"), attempted_at=())


@edge("verdict", last=21.625, first=21.624)  # a mail of its own, at 21.125, is not another's
def only_its_own_mail_passed(d: Draft, second: float) -> None:
    d.taken("eve.5", 21.0, told=False)
    edit(d.transactions, lambda t: t.began == 20.0, ended=20.5)
    two_path_failures(d, 21.001, second)


@breaks("verdict: 0 attempts charged, where 1 to 1 may be [cyd.3] at 8.125")
def transient_refusal_was_not_charged(d: Draft) -> None:
    edit(d.rows, of("cyd.3"), counted=0)


@breaks("verdict: 0 attempts charged, where 1 to 1 may be [gus.8] at 22.125")
def unknown_outcome_was_not_charged(d: Draft) -> None:
    edit(d.rows, of("gus.8"), counted=0)


@pytest.mark.parametrize("counted", [0, 1])
def test_policy_refusal_may_be_charged_or_not(counted: int) -> None:
    """Not in a surge."""
    d = good()
    edit(d.rows, of("cyd.3"), verdicts=("policy", "sent"), counted=counted)
    assert check(d.history()) == []


@breaks("verdict: 2 attempts charged, where 1 to 1 may be [cyd.3] at 8.125")
def success_was_charged(d: Draft) -> None:
    edit(d.rows, of("cyd.3"), counted=2)


@breaks("verdict: 3 attempts, 2 of them kept with 2 verdicts [cyd.3] at 8.125")
def attempt_was_left_out(d: Draft) -> None:
    edit(d.rows, of("cyd.3"), total=3)


@breaks(
    "verdict: 2 attempts, 2 of them kept with 1 verdicts [cyd.3] at 8.125",
    "verdict: sent, after an attempt that was transient [cyd.3] at 8.125",
)
def verdict_was_left_out(d: Draft) -> None:
    edit(d.rows, of("cyd.3"), verdicts=("transient",))


@breaks("verdict: 2 attempts, 2 of them kept with 2 verdicts [cyd.3] at 8.125")
def time_was_left_out(d: Draft) -> None:
    edit(d.rows, of("cyd.3"), attempted_at=(7.125,))


def many(d: Draft, total: int, kept: int, *, counted: int = 0) -> None:
    """Path failures of eve, one of them in three charged perhaps; the times are not known."""
    edit(d.rows, of("eve.5", "expired"), attempts=(None,) * kept, verdicts=("path",) * kept, attempted_at=())
    edit(d.rows, of("eve.5", "expired"), total=total, counted=counted)


@allows
def long_history_keeps_twenty(d: Draft) -> None:
    many(d, 21, 20, counted=1)


@breaks("verdict: 2 attempts charged, where 0 to 1 may be [eve.5] at 113.125")
def more_charged_than_were_left_out(d: Draft) -> None:
    many(d, 21, 20, counted=2)


@breaks("verdict: 21 attempts, 21 of them kept with 21 verdicts [eve.5] at 113.125")
def long_history_keeps_more(d: Draft) -> None:
    many(d, 21, 21)


@breaks("verdict: attempt with answer rcpt 450, which the SMTP server has not given [hal.9] at 27.125")
def answered_less_often_than_written(d: Draft) -> None:
    drop(d.transactions, lambda t: t.began == 26.0)


@breaks("verdict: attempt with answer dot 250, which the SMTP server has not given [fay.7] at 18.125")
def rows_of_a_user_share_the_answers(d: Draft) -> None:
    edit(d.transactions, mail("fay.7"), replies=tuple(OK.values()))


@breaks("verdict: attempt with answer data 554, which the SMTP server has not given [eve.5] at 113.125")
def answer_to_data_never_was(d: Draft) -> None:
    edit(d.rows, of("eve.5", "expired"), attempts=(Reply(phase="data", code=554),), verdicts=("policy",), counted=1)


@pytest.mark.parametrize("phase", ["connect", "greeting", "ehlo", "starttls", "auth", "mail"])
def test_answer_before_the_recipient_was_named_is_nobodys(phase: str) -> None:
    d = good()
    edit(d.rows, of("eve.5", "expired"), attempts=(Reply(phase=phase, code=421),))
    assert check(d.history()) == []


@breaks("verdict: attempt with answer unheard 0, which the SMTP server has not given [eve.5] at 113.125")
def unknown_outcome_without_a_dialogue(d: Draft) -> None:
    edit(d.rows, of("eve.5", "expired"), verdicts=("unknown",), counted=1)


@allows
def unknown_outcome_of_a_dot_on_its_way(d: Draft) -> None:
    edit(d.rows, of("eve.5", "expired"), verdicts=("unknown",), counted=1)
    d.refused("eve.5", 13.5, OK["data"])


@breaks("verdict: attempt with answer unheard 0, which the SMTP server has not given [eve.5] at 113.125")
def unknown_outcome_before_the_data(d: Draft) -> None:
    edit(d.rows, of("eve.5", "expired"), verdicts=("unknown",), counted=1)
    d.refused("eve.5", 13.5, replace(OK["data"], code=451))


@breaks(
    "verdict: attempt with answer unheard 0, which the SMTP server has not given [gus.8] at 22.125",
    "duplicate: a second copy without excuse, 2.0 s after the first [gus.8] at 22.000",
)
def unknown_outcome_though_told(d: Draft) -> None:
    edit(d.transactions, mail("gus.8"), told=True)


@breaks("verdict: attempt with answer unheard 0, which the SMTP server has not given [gus.8] at 22.125")
def unknown_outcome_twice_with_one_dialogue(d: Draft) -> None:
    edit(d.rows, of("gus.8"), verdicts=("unknown", "unknown", "sent"), attempts=(None, None, TAKEN), total=3, counted=2)
    edit(d.rows, of("gus.8"), attempted_at=(20.125, 21.0, 22.125))


@pytest.mark.parametrize(
    ("phase", "code", "text", "for_good"),
    [
        ("rcpt", 550, "5.1.1 nobody", True),
        ("data", 554, "5.6.0 what a mail", True),
        ("dot", 550, "", True),
        ("rcpt", 500, "", True),
        ("rcpt", 504, "", True),
        ("rcpt", 599, "", True),
        ("rcpt", 499, "", False),
        ("rcpt", 600, "", False),
        ("mail", 550, "5.1.1 nobody", False),
        ("rcpt", 550, "5.7.1 blocked", False),
        ("rcpt", 550, " 5.7.1 blocked", False),
        ("rcpt", 554, "", False),
        ("rcpt", 554, "no", False),
        ("rcpt", 552, "", False),
        ("rcpt", 552, "5.3.4 too big", True),
        ("rcpt", 550, "5.2.2 full", False),
        ("rcpt", 550, "4.2.2 full", False),
        ("rcpt", 550, "see 5.7.1", True),
        *(("rcpt", code, "", False) for code in (530, 534, 535, 538)),
        ("rcpt", 550, "5.1.8 our sender", False),
        ("rcpt", 550, "5.17.8 something", True),
    ],
)
def test_what_refuses_for_good(phase: str, code: int, text: str, for_good: bool) -> None:
    assert permanent(Reply(phase=phase, code=code, text=text)) == for_good


@pytest.mark.parametrize("case", CASES.all, ids=str)
def test_checker_judges(case: Case) -> None:
    found, expected = case.said()
    assert found == expected
