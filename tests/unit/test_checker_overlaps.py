"""The drill's checker once more: calls that overlap, or of which only one side was heard. Mutants survived here."""

import pytest

from tests.drill.history import Transaction
from tests.drill.planted import Case, Cases
from tests.drill.sample import NOBODY, Draft, address, calls, edit, of

CASES = Cases()
breaks, allows = CASES.breaks, CASES.allows


@breaks("truth: two registrations of one address, and no erasure between them [ada] at 3.250")
def a_repeat_does_not_hide_another_registration(d: Draft) -> None:
    d.call("register", "ada", 2.0, 201, key="key-ada")
    d.call("register", "ada", 3.0, 201, key="another")


@allows
def conflict_with_who_came_after_ones_own_lost_call(d: Draft) -> None:
    d.call("register", "cyd", 5.0, None, key="key-lost")
    edit(d.calls, calls("cyd", "register", 409), key="key-lost")


@allows
def refused_mail_of_a_resend_that_overtook_the_erasure(d: Draft) -> None:
    d.call("resend", "dan", 10.5, None)
    d.refused("dan.4", 14.0, NOBODY)


@allows
def unfinished_mail_of_an_event_that_none_was_taken_of(d: Draft) -> None:
    message_id = "<ivy.90@mailflow.local>"
    d.transactions.append(
        Transaction(worker="email_svc", began=35.0, rcpt=address("ivy"), message_id=message_id, ended=35.125)
    )


@breaks(
    "erasure: a key of before the 204 [lou.15] at 51.250",
    "ghost: a key that nobody asked for [lou.15]",
    "settled: still in queue [lou.15]",
)
def key_of_who_is_known_by_the_erasure_alone(d: Draft) -> None:
    d.call("register", "lou", 50.0, None)
    d.key("lou.15", 50.125)
    d.row("lou.15", "queue")
    edit(d.keys, of("lou.15"), email="")
    d.call("erase", "lou", 51.0, 204)


@pytest.mark.parametrize("case", CASES.all, ids=str)
def test_checker_judges(case: Case) -> None:
    found, expected = case.said()
    assert found == expected
