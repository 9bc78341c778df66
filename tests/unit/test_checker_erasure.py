"""The drill's checker on erased users: nothing is left of them, and no mail comes."""

import pytest

from tests.drill.checker import check
from tests.drill.history import Call, Key, Row, Transaction
from tests.drill.planted import Case, Cases
from tests.drill.sample import SILENCE, TAKEN, Draft, address, calls, drop, edit, good, mail, of

CASES = Cases()
breaks, allows, edge = CASES.breaks, CASES.allows, CASES.edge


@breaks("erasure: erased, and nobody asked for it [ada.1]", "lost: a 201 without its key [ada] at 1.250")
def marker_without_an_erasure(d: Draft) -> None:
    drop(d.rows, of("ada.1"))
    drop(d.keys, of("ada.1"))
    d.rows.append(Row(event_id="ada.1", place="erased"))


@breaks("erasure: erased, and still in dead_letter [dan.4]", "ledger: a dead letter without its outcome [dan.4]")
def dead_letter_of_the_erased(d: Draft) -> None:
    d.letter("dan.4", "dead")


@breaks("erasure: erased, and still in queue [dan.4]", "settled: still in queue [dan.4]", "ledger: a gap of -1")
def queue_entry_of_the_erased(d: Draft) -> None:
    d.rows.append(Row(event_id="dan.4", place="queue"))


@breaks(
    "erasure: erased, and still in dead_letter, queue [dan.4]",
    "ledger: a dead letter without its outcome [dan.4]",
    "ledger: a gap of -1",
    "settled: still in queue [dan.4]",
)
def two_rows_of_the_erased(d: Draft) -> None:
    d.letter("dan.4", "dead")
    d.rows.append(Row(event_id="dan.4", place="queue"))


@breaks(
    "erasure: erased, and its key is still there [dan.4]",
    "ledger: a gap of 1",
    "erasure: a key of before the 204 [dan.4] at 11.250",
)
def key_of_the_erased(d: Draft) -> None:
    d.key("dan.4", 9.125)


@breaks("erasure: erased, and its key is still there [ada.1]", "ledger: a gap of 1")
def unheard_erasure_is_half_done(d: Draft) -> None:
    d.call("erase", "ada", 2.5, None)
    edit(d.rows, of("ada.1"), place="erased")


@breaks(
    "erasure: its key is erased, and it is still in sent [dan.4]",
    "ledger: a gap of -1",
    "verdict: attempt with answer dot 0, which the SMTP server has not given [dan.4] at 11.125",
)
def outcome_of_the_erased(d: Draft) -> None:
    edit(d.rows, of("dan.4"), place="sent")
    edit(d.rows, of("dan.4"), attempts=(SILENCE,), verdicts=("sent",), total=1)


@breaks("erasure: a key of before the 204 [dan.4] at 11.250")
def nothing_was_erased(d: Draft) -> None:
    drop(d.rows, of("dan.4"))
    d.key("dan.4", 9.125)
    d.row("dan.4", "sent", ("sent", TAKEN, 10.125))


@edge("erasure", last=32.0 - 0.05, first=32.0 - 0.051)  # who is registered again: by the key's time
def key_of_before_beside_one_of_after(d: Draft, at: float) -> None:
    edit(d.keys, of("ivy.12"), at=at)
    edit(d.transactions, mail("ivy.12"), began=32.5)  # else it would tell as well


@allows
def key_without_a_time_is_not_judged_by_it(d: Draft) -> None:
    edit(d.keys, of("ivy.12"), at=0.0)


@edge("erasure", last=12.25, first=12.251)
def mail_after_the_204(d: Draft, at: float) -> None:
    edit(d.transactions, mail("dan.4"), began=at)


@edge("erasure", last=13.25, first=13.251)
def mail_after_the_204_of_a_server_that_stood_still(d: Draft, at: float) -> None:
    d.more["stood_still_s"] = 1.0
    edit(d.transactions, mail("dan.4"), began=at)


@breaks("erasure: a mail begun 2.8 s after the 204 [dan.4] at 14.000")
def mail_after_the_204_says_which(d: Draft) -> None:
    edit(d.transactions, mail("dan.4"), began=14.0)


@breaks("erasure: a mail begun 2.8 s after the 204 [dan] at 14.000")
def refused_mail_after_the_204(d: Draft) -> None:
    d.refused("dan.4", 14.0, SILENCE)


@breaks("erasure: a mail begun 1.8 s after the 404 [dan.4] at 14.000")
def mail_after_the_404_of_a_repeated_erasure(d: Draft) -> None:
    edit(d.calls, calls("dan", "erase", 204), status=None)
    edit(d.transactions, mail("dan.4"), began=14.0)


@allows
def mail_just_after_the_404_of_a_repeated_erasure(d: Draft) -> None:
    edit(d.calls, calls("dan", "erase", 204), status=None)
    edit(d.transactions, mail("dan.4"), began=13.25)


@allows
def mail_after_an_erasure_that_nobody_heard_of(d: Draft) -> None:
    edit(d.calls, calls("dan", "erase", 204), status=None)
    drop(d.calls, calls("dan", "erase", 404))
    edit(d.transactions, mail("dan.4"), began=14.0)


@breaks("erasure: a mail begun 2.8 s after the 204 [ivy.11] at 35.000")
def mail_of_before_to_who_is_registered_again(d: Draft) -> None:
    edit(d.transactions, mail("ivy.11"), told=False)
    d.taken("ivy.11", 35.0)


@breaks("erasure: a mail begun 1.8 s after the 204 [ivy.11] at 34.001")
def first_mail_of_before_to_who_is_registered_again(d: Draft) -> None:
    """Others' keys tell how old the event is."""
    edit(d.transactions, mail("ivy.11"), began=34.001)
    d.key("ivy.12", 31.0)
    drop(d.keys, lambda k: k.event_id == "ivy.12" and k.at == 31.0)
    d.registered("old.11", 30.5)
    d.sent("old.11", 31.0)


@edge("erasure", last=32.0 - 0.05, first=32.0 - 0.051)  # of the next younger key
def age_of_an_event_by_others(d: Draft, at: float) -> None:
    edit(d.transactions, mail("ivy.11"), began=34.0)
    d.registered("old.11", at - 0.125)
    d.sent("old.11", 33.5)


@allows
def mail_of_after_to_who_is_registered_again(d: Draft) -> None:
    d.refused("ivy.12", 34.5, SILENCE)
    edit(d.transactions, mail("ivy.12"), began=35.0)


@edge("erasure", last=34.5 - 0.001, first=34.5)  # when the only call of after began
def mail_began_before_it_was_asked_for_again(d: Draft, at: float) -> None:
    edit(d.calls, lambda c: c.email == address("ivy") and c.began == 33.0, began=at)
    d.refused("ivy.11", 34.5, SILENCE)
    edit(d.transactions, mail("ivy.12"), began=36.0)


@edge("erasure", last=32.001, first=32.0)  # the latest that the registration before it can have come about
def registration_overtook_the_erasure(d: Draft, ended: float) -> None:
    edit(d.calls, lambda c: c.email == address("ivy") and c.began == 30.0, ended=ended)
    drop(d.calls, lambda c: c.email == address("ivy") and c.began == 33.0)
    edit(d.keys, of("ivy.12"), at=32.0)


def test_mails_of_a_stranger_are_not_mixed_with_those_of_nobody() -> None:
    """Dialogues that did not come to a recipient are nobody's."""
    d = good()
    d.transactions.append(Transaction(worker=None, began=60.0, rcpt=""))
    d.calls.append(Call(kind="register", began=50.0, ended=50.25, status=503, email=""))
    d.keys.append(Key(event_id="ada.30", user_id="ada", kind="again", email="", at=50.0, replays="ada.1"))
    d.row("ada.30", "expired", at=200.0)
    d.letter("ada.30", "expired")
    assert check(d.history()) == []


@pytest.mark.parametrize("case", CASES.all, ids=str)
def test_checker_judges(case: Case) -> None:
    found, expected = case.said()
    assert found == expected
