"""The drill's checker: a good history passes, and each planted bad one is caught by exactly the law that it breaks.

Here: nothing is lost, and there are no ghosts. The other laws are in the files beside this one.
"""

import pytest

from tests.drill.checker import LAWS, check, excused
from tests.drill.evidence import Evidence, Violation, event_in, revision_in
from tests.drill.history import History, Row, Transaction
from tests.drill.planted import Case, Cases
from tests.drill.sample import RULES, Draft, address, calls, drop, edit, good, mail, of, vanish

CASES = Cases()
breaks, allows, edge = CASES.breaks, CASES.allows, CASES.edge


def test_good_history_passes() -> None:
    assert check(good().history()) == []
    assert excused(good().history()) == {"untold": 1}


@pytest.mark.parametrize("what", ["keys", "rows", "transactions"])
def test_nothing_can_be_left_out(what: str) -> None:
    """Each key, row and dialogue of the good history is missed when it is gone; keys and rows also when there twice.

    But for the mails of erased users: of them nothing is known any more.
    """
    erased = {row.event_id for row in good().rows if row.place == "erased"}
    for n in range(len(getattr(good(), what))):
        less, more = good(), good()
        gone = getattr(less, what).pop(n)
        getattr(more, what).append(gone)
        if not (isinstance(gone, Transaction) and event_in(gone.message_id or "") in erased):
            assert check(less.history()), gone
        assert what == "transactions" or check(more.history()), gone


def test_no_mail_comes_again() -> None:
    """Each mail of the good history, once more two seconds later, is a copy without excuse."""
    for n in range(len(good().transactions)):
        d = good()
        mail = d.transactions[n]
        if mail.accepted_at is not None:
            d.taken(event_in(mail.message_id or ""), mail.began + 2.5)
            assert {violation.law for violation in check(d.history())} >= {"duplicate"}, mail


def test_empty_history_passes() -> None:
    assert check(History(rules=RULES)) == []
    assert excused(History(rules=RULES)) == {}


def test_law_is_named_as_its_function() -> None:
    laws = [law.__name__ for law in LAWS]
    assert len(laws) == len(set(laws)) == 12


def test_violation_says_where() -> None:
    assert str(Violation(law="lost", what="gone")) == "lost: gone"
    assert str(Violation(law="lost", what="gone", user="ada")) == "lost: gone [ada]"
    assert str(Violation(law="lost", what="gone", event="ada.1", user="ada", at=0.0)) == "lost: gone [ada.1] at 0.000"


@breaks("lost: a 201 without its key [ada] at 1.250")
def key_of_a_201_is_gone(d: Draft) -> None:
    vanish(d, "ada.1")


@breaks("lost: a 201 without its key [fay] at 15.250")
def only_the_resend_is_left(d: Draft) -> None:
    vanish(d, "fay.6")


@breaks("lost: a 201 without its key [new] at 50.250")
def key_never_was(d: Draft) -> None:
    d.call("register", "new", 50.0, 201)


@allows
def key_of_a_201_may_be_erased(d: Draft) -> None:
    vanish(d, "ada.1")
    d.call("erase", "ada", 2.5, None)


def _laws(d: Draft) -> list[str]:
    return [violation.law for violation in check(d.history())]


@pytest.mark.parametrize(("status", "lost"), [(199, False), (200, True), (299, True), (300, False), (503, False)])
def test_what_promises_a_mail(status: int, lost: bool) -> None:
    d = good()
    d.call("register", "new", 50.0, status, user_id="new")
    assert [law for law in _laws(d) if law != "answer"] == ["lost"] * lost


@pytest.mark.parametrize(("status", "latest"), [(None, 80.25), (204, 50.25), (499, 50.25), (500, 80.25), (503, 80.25)])
def test_when_a_call_can_have_happened(status: int | None, latest: float) -> None:
    d = Draft()
    d.call("erase", "new", 50.0, status)
    assert Evidence(d.history()).latest(d.calls[0]) == latest


@pytest.mark.parametrize(
    ("event", "revision"), [("ada.12", 12), ("ada", 0), ("ada.", 0), ("ada.x", 0), ("ada.\u00b2", 0), ("", 0)]
)
def test_revision_of_an_event(event: str, revision: int) -> None:
    assert revision_in(event) == revision


@allows
def calls_and_dialogues_in_any_order(d: Draft) -> None:
    for items in (d.calls, d.transactions, d.keys, d.rows, d.changes, d.faults):
        items.reverse()


@edge("lost", last=-29.249, first=-29.25)  # without an answer, it may come about 30 s later: until the 201 began
def erasure_was_over_before(d: Draft, at: float) -> None:
    vanish(d, "ada.1")
    d.call("erase", "ada", at, None)


@breaks("lost: a 201 without its key [ada] at 1.250", "answer: erase answered 401 at 2.750")
def only_an_erasure_that_failed(d: Draft) -> None:
    vanish(d, "ada.1")
    d.call("erase", "ada", 2.5, 401)


@breaks("lost: a 202 without its key [fay.7] at 17.250")
def key_of_a_202_is_gone(d: Draft) -> None:
    vanish(d, "fay.7")


@breaks("lost: 2 times 202, 1 resends kept [fay] at 19.250")
def fewer_resends_than_202s(d: Draft) -> None:
    edit(d.calls, calls("fay", "resend", 202), event_id=None)
    d.call("resend", "fay", 19.0, 202)


@breaks("lost: 1 times 202, 0 resends kept [hal] at 40.250")
def replay_is_no_resend(d: Draft) -> None:
    d.call("resend", "hal", 40.0, 202)


@breaks("lost: 1 times 202, 0 resends kept [ada] at 40.250")
def registration_is_no_resend(d: Draft) -> None:
    d.call("resend", "ada", 40.0, 202)


@breaks("lost: 1 times 202, 0 resends kept at 40.250")
def resend_of_a_stranger(d: Draft) -> None:
    d.call("resend", "new", 40.0, 202)


@breaks("lost: nowhere: neither pending nor ended [ada.1]", "ledger: a gap of 1")
def event_is_nowhere(d: Draft) -> None:
    drop(d.rows, of("ada.1"))


@breaks(
    "lost: nowhere: neither pending nor ended [eve.5]",
    "ledger: a gap of 1",
    "ledger: a dead letter without its outcome [eve.5]",
)
def dead_letter_is_no_end(d: Draft) -> None:
    drop(d.rows, of("eve.5", "expired"))


@breaks("lost: sent, but the SMTP server never took it [ada.1]")
def mail_was_never_taken(d: Draft) -> None:
    edit(d.transactions, mail("ada.1"), accepted_at=None)


@breaks("lost: dead without its dead letter [bob.2]")
def dead_letter_is_gone(d: Draft) -> None:
    drop(d.rows, of("bob.2", "dead_letter"))


@breaks("lost: expired without its dead letter [eve.5]")
def dead_letter_of_the_expired_is_gone(d: Draft) -> None:
    drop(d.rows, of("eve.5", "dead_letter"))


@breaks("lost: dead without its dead letter [hal.9]")
def replay_was_of_another(d: Draft) -> None:
    edit(d.keys, of("hal.10"), replays="bob.2")


@allows
def replayed_letter_may_still_be_there(d: Draft) -> None:
    d.letter("hal.9", "dead")


@breaks("ghost: a mail that nobody asked for [zoe.99] at 50.000")
def mail_to_a_stranger(d: Draft) -> None:
    d.taken("zoe.99", 50.0)


@breaks("ghost: a mail that nobody asked for [zoe.99] at 50.000", "answer: register answered 422 at 49.250")
def mail_to_who_was_refused(d: Draft) -> None:
    d.call("register", "zoe", 49.0, 422)
    d.taken("zoe.99", 50.0)


@breaks(
    "ghost: a mail that nobody asked for [zoe.99] at 50.000",
    "ghost: a key that nobody asked for [zoe.99]",
    "truth: 409, but nobody can have the address at 49.250",
)
def mail_to_who_got_409(d: Draft) -> None:
    d.call("register", "zoe", 49.0, 409)
    d.key("zoe.99", 49.125)
    d.sent("zoe.99", 50.0)


@breaks("ghost: a mail that nobody asked for at 50.000", "duplicate: a mail without Message-ID at 50.000")
def mail_to_a_stranger_without_message_id(d: Draft) -> None:
    d.taken("zoe.99", 50.0)
    edit(d.transactions, mail("zoe.99"), message_id=None)


@edge("ghost", last=2.0 - 0.001, first=2.0)
def call_began_with_the_mail(d: Draft, at: float) -> None:
    edit(d.calls, calls("ada", "register"), began=at)


@pytest.mark.parametrize("status", [None, 200, 299, 500, 503, 599])
def test_mail_of_a_call_that_could_have_succeeded_is_no_ghost(status: int | None) -> None:
    d = good()
    d.call("register", "zoe", 49.0, status, user_id="zoe")
    d.key("zoe.99", 50.0)
    d.sent("zoe.99", 51.0)
    assert set(_laws(d)) <= {"answer"}


@pytest.mark.parametrize("status", [199, 300, 400, 422, 499])
def test_mail_of_a_call_that_failed_is_a_ghost(status: int) -> None:
    d = good()
    d.call("register", "zoe", 49.0, status)
    d.key("zoe.99", 50.0)
    d.sent("zoe.99", 51.0)
    assert set(_laws(d)) == {"ghost", "answer"}


@breaks("ghost: a mail of an event that the broker does not know [ada.99]")
def mail_of_an_unknown_event(d: Draft) -> None:
    d.call("resend", "ada", 3.0, 503)
    d.taken("ada.99", 4.0)


@breaks("ghost: a mail of somebody else's event [ada.1] at 3.000", "lost: a 201 without its key [new] at 2.750")
def mail_of_another_users_event(d: Draft) -> None:
    d.call("register", "new", 2.5, 201)
    d.taken("ada.1", 3.0)
    edit(d.transactions, lambda t: t.began == 3.0, rcpt=address("new"))
    edit(d.transactions, lambda t: t.began == 2.0, told=False)


@breaks("ghost: more mails than were asked for [ada.20] at 50.000", "ghost: a key that nobody asked for [ada.20]")
def second_mail_without_a_resend(d: Draft) -> None:
    d.key("ada.20", 49.0, "again")
    d.sent("ada.20", 50.0)


@breaks("ghost: more mails than were asked for [fay.20] at 50.000")
def third_mail_for_two_calls(d: Draft) -> None:
    d.key("fay.20", 49.0, "again")
    d.sent("fay.20", 50.0)


@allows
def mail_of_a_resend_that_nobody_heard_of(d: Draft) -> None:
    d.call("resend", "ada", 48.0, None)
    d.key("ada.20", 48.125, "again")
    d.sent("ada.20", 50.0)


@edge("ghost", last=31.75, first=31.75 - 0.001)  # when its mail begins an operator's replay has begun, or not
def erased_event_may_have_been_a_replay(d: Draft, at: float) -> None:
    edit(d.faults, lambda f: f.kind == "replay", began=31.75)
    d.taken("ivy.20", at)
    d.rows.append(Row(event_id="ivy.20", place="erased"))
    drop(d.calls, lambda c: c.email == address("ivy") and c.began == 33.0)
    drop(d.keys, of("ivy.12"))
    drop(d.rows, of("ivy.12"))
    drop(d.transactions, mail("ivy.12"))


@allows
def nothing_was_replayed(d: Draft) -> None:
    drop(d.faults, lambda f: f.kind == "replay")


@breaks(
    "ghost: a mail that nobody asked for [zoe.98] at 50.000",
    "ghost: a mail that nobody asked for [zoe.99] at 51.000",
    "ghost: a mail that nobody asked for at 52.000",
    "ghost: a mail of an event that the broker does not know [ada.99]",
    "duplicate: a mail without Message-ID at 52.000",
    "duplicate: a mail without Message-ID at 53.000",
)
def many_ghosts(d: Draft) -> None:
    d.call("resend", "ada", 3.0, 503)
    d.taken("zoe.98", 50.0)
    d.taken("zoe.99", 51.0)
    d.taken("zoe.97", 52.0)
    d.taken("ada.98", 53.0)
    edit(d.transactions, lambda t: t.began in (52.0, 53.0), message_id=None)
    d.taken("ada.99", 54.0)


@breaks("ghost: a key that nobody asked for [zoe.99]")
def key_of_a_stranger(d: Draft) -> None:
    d.key("zoe.99", 49.0)
    d.row("zoe.99", "expired", at=200.0)
    d.letter("zoe.99", "expired")


@breaks("ghost: a key that nobody asked for [ada.20]")
def key_of_a_resend_that_nobody_asked_for(d: Draft) -> None:
    d.key("ada.20", 49.0, "again")
    d.row("ada.20", "expired", at=200.0)
    d.letter("ada.20", "expired")


@pytest.mark.parametrize("case", CASES.all, ids=str)
def test_checker_judges(case: Case) -> None:
    found, expected = case.said()
    assert found == expected
