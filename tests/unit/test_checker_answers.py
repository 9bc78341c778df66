"""The drill's checker on what clients were told: who is taken, and who is there."""

from dataclasses import replace

import pytest

from tests.drill.evidence import Evidence
from tests.drill.history import Fault
from tests.drill.planted import Case, Cases
from tests.drill.sample import (
    Draft,
    address,
    calls,
    drop,
    edit,
    good,
    mail,
    of,
)

CASES = Cases()
breaks, allows, edge = CASES.breaks, CASES.allows, CASES.edge


@breaks("truth: one address, several ids [ada]")
def another_id_for_the_same_address(d: Draft) -> None:
    edit(d.calls, calls("ada", "register"), key="key-ada")
    d.call("register", "ada", 3.0, 201, key="key-ada", user_id="abe")


@breaks("truth: one address, several ids [ada]")
def another_id_for_another_spelling(d: Draft) -> None:
    d.call("register", "ada", 3.0, 201, key="key-ada", user_id="abe", email="Ada@EXAMPLE.com")


@breaks("truth: one address, several ids", "lost: a 201 without its key at 50.250")
def registration_without_an_id(d: Draft) -> None:
    d.call("register", "new", 50.0, 201, user_id=None)


@breaks("truth: one id, several addresses [ada]")
def one_id_for_two_addresses(d: Draft) -> None:
    d.call("register", "abe", 3.0, 201, user_id="ada")


@breaks(
    "truth: a record under another id than was told [abe.20]",
    "ledger: a gap of 1",
    "lost: nowhere: neither pending nor ended [abe.20]",
)
def record_under_another_id(d: Draft) -> None:
    d.key("abe.20", 3.0)
    edit(d.keys, of("abe.20"), email=address("ada"))


@breaks("truth: two registrations of one address, and no erasure between them [ada] at 3.250")
def registered_twice(d: Draft) -> None:
    d.call("register", "ada", 3.0, 201, key="other")


@breaks("truth: two registrations of one address, and no erasure between them [ada] at 5.250")
def registered_twice_after_a_repetition(d: Draft) -> None:
    d.call("register", "ada", 3.0, 201, key="key-ada")
    d.call("register", "ada", 5.0, 201, key="other")


@breaks("truth: two registrations of one address, and no erasure between them [ada] at 3.250")
def registered_twice_without_keys(d: Draft) -> None:
    edit(d.calls, calls("ada", "register"), key=None)
    d.call("register", "ada", 3.0, 201)


@allows
def repeated_with_its_key(d: Draft) -> None:
    d.call("register", "ada", 3.0, 201, key="key-ada")


@breaks("truth: two registrations of one address, and no erasure between them [ivy] at 36.250")
def one_erasure_makes_room_for_one(d: Draft) -> None:
    edit(d.calls, lambda c: c.email == address("ivy") and c.began == 33.0, key="other")
    d.call("register", "ivy", 36.0, 201, key="third")


@breaks("truth: two registrations of one address, and no erasure between them [ivy] at 36.250")
def one_unheard_erasure_makes_room_for_one(d: Draft) -> None:
    edit(d.calls, calls("ivy", "erase", 204), status=None)
    edit(d.calls, lambda c: c.email == address("ivy") and c.began == 33.0, key="other")
    d.call("register", "ivy", 36.0, 201, key="third")


@allows
def two_erasures_make_room_for_two(d: Draft) -> None:
    edit(d.calls, lambda c: c.email == address("ivy") and c.began == 33.0, key="other")
    d.call("erase", "ivy", 32.5, 503)
    d.call("register", "ivy", 36.0, 201, key="third")


@edge("truth", last=-29.249, first=-29.25)
def erasure_came_before_both(d: Draft, at: float) -> None:
    d.call("erase", "ada", at, None)
    d.call("register", "ada", 3.0, 201, key="other")


@edge("truth", last=3.25 - 0.001, first=3.25)
def erasure_came_after_both(d: Draft, at: float) -> None:
    d.call("erase", "ada", at, None)
    d.call("register", "ada", 3.0, 201, key="other")


@edge("truth", last=35.0, first=35.001)  # when what held up the erasure began: it may come about until 50 + 30
def erasure_was_held_up(d: Draft, at: float) -> None:
    d.call("erase", "ada", 4.75, None)
    d.faults.append(Fault(kind="freeze", target="user_svc-2", began=at, ended=50.0))
    edit(d.calls, calls("ada", "register"), began=54.75, ended=55.0)
    d.call("register", "ada", 56.0, 201, key="other")
    drop(d.transactions, mail("ada.1"))
    edit(d.keys, of("ada.1"), at=0.0)
    edit(d.rows, of("ada.1"), place="expired", at=200.0, attempts=(), verdicts=(), attempted_at=(), total=0)
    d.letter("ada.1", "expired")


@pytest.mark.parametrize(
    ("target", "ended", "late"),
    [
        ("broker", 4.0, True),
        ("client~user_svc", 4.0, True),
        ("user_svc~broker", 4.0, True),
        ("user_svc-2", 4.0, True),
        ("user_svc-2", 3.999, False),
        ("email_svc", 4.0, False),
        ("email_svc~broker", 4.0, False),
        ("smtp", 4.0, False),
    ],
)
def test_what_holds_up_a_call(target: str, ended: float, late: bool) -> None:
    """An erasure without an answer, begun at 4, may come about until 34.25; with a fault on its way it is later."""
    d = good()
    d.call("erase", "gus", 4.0, None)
    d.faults.append(Fault(kind="cut", target=target, began=0.0, ended=ended))
    assert_late(d, 34.25)
    d.faults[-1] = replace(d.faults[-1], ended=30.0 if ended == 4.0 else ended)
    assert_late(d, 60.0 if late else 34.25)


def assert_late(d: Draft, until: float) -> None:
    seen = Evidence(d.history())
    assert seen.latest(next(c for c in d.calls if c.kind == "erase" and c.status is None)) == until


@breaks("truth: 409, but nobody can have the address at 50.250")
def conflict_with_nobody(d: Draft) -> None:
    d.call("register", "new", 50.0, 409)


@breaks("truth: 409, but nobody can have the address at 3.750")
def conflict_with_ones_own_key(d: Draft) -> None:
    d.call("register", "bob", 3.5, 409, key="key-bob")


@allows
def conflict_with_ones_own_lost_call(d: Draft) -> None:
    d.call("register", "zoe", 49.0, None)
    d.call("register", "zoe", 50.0, 409)


@edge("truth", last=50.25 - 0.001, first=50.25)
def conflict_with_who_came_later(d: Draft, at: float) -> None:
    d.call("register", "zoe", 50.0, 409)
    d.call("register", "zoe", at, None)


@breaks("truth: 409, but nobody can have the address at 12.500")
def conflict_with_the_erased(d: Draft) -> None:
    d.call("register", "dan", 12.25, 409)


@edge("truth", last=11.25, first=11.251)  # when a 409 begins, while or after the 204 is answered
def conflict_while_erasing(d: Draft, at: float) -> None:
    d.call("register", "dan", at, 409)
    drop(d.calls, calls("dan", "erase", 404))


@edge("truth", last=11.0, first=11.0 - 0.001)  # the erased may have been registered as late as the erasure began
def conflict_with_who_overtook_the_erasure(d: Draft, ended: float) -> None:
    edit(d.calls, calls("dan", "register"), ended=ended)
    d.call("register", "dan", 14.0, 409)
    drop(d.calls, calls("dan", "erase", 404))


@allows
def conflict_with_who_is_perhaps_erased(d: Draft) -> None:
    edit(d.calls, calls("dan", "erase", 204), status=503)
    drop(d.calls, calls("dan", "erase", 404))
    d.call("register", "dan", 14.0, 409)


@allows
def conflict_with_the_second_of_two(d: Draft) -> None:
    """The first one is its own lost call."""
    d.call("register", "zoe", 48.0, None, key="key-zoe")
    d.call("register", "zoe", 49.0, None)
    d.call("register", "zoe", 50.0, 409, key="key-zoe")


@breaks("truth: 409, but nobody can have the address at 14.250")
def conflict_with_who_is_known_to_be_gone(d: Draft) -> None:
    edit(d.calls, calls("dan", "erase", 204), status=None)
    d.call("register", "dan", 14.0, 409)


@breaks("truth: 404, but the user is there [ada] at 3.250")
def erase_404_of_who_is_there(d: Draft) -> None:
    d.call("erase", "ada", 3.0, 404)


@breaks("truth: 404, but the user is there [ada] at 3.250")
def resend_404_of_who_is_there(d: Draft) -> None:
    d.call("resend", "ada", 3.0, 404)


@edge("truth", last=1.25, first=1.251)
def not_found_while_registering(d: Draft, at: float) -> None:
    d.call("erase", "ada", at, 404)


@edge("truth", last=3.25 - 0.001, first=3.25)
def not_found_before_the_erasure_began(d: Draft, at: float) -> None:
    d.call("resend", "ada", 3.0, 404)
    d.call("erase", "ada", at, None)


@breaks("truth: 404, but the user is there [ada] at 3.250", "answer: erase answered 401 at 2.250")
def not_found_though_the_erasure_failed(d: Draft) -> None:
    d.call("erase", "ada", 2.0, 401)
    d.call("resend", "ada", 3.0, 404)


@breaks(
    "answer: register answered 422 at 50.250",
    "answer: register answered 500 at 51.250",
    "answer: erase answered 403 at 52.250",
    "answer: resend answered 409 at 53.250",
)
def a_refusal_that_nobody_expects(d: Draft) -> None:
    d.call("register", "zoe", 50.0, 422)
    d.call("register", "zoe", 51.0, 500)
    d.call("erase", "ada", 52.0, 403)
    d.call("resend", "ada", 53.0, 409)


@allows
def not_now(d: Draft) -> None:
    for status in (None, 408, 503):
        d.call("register", "zoe", 50.0, status)
        d.call("resend", "ada", 50.0, status)


@breaks("truth: 429, but at most 2 resends [fay] at 20.250")
def too_many_resends_at_the_third(d: Draft) -> None:
    d.call("resend", "fay", 19.0, 503)
    d.call("resend", "fay", 20.0, 429)


@allows
def too_many_resends_at_the_fourth(d: Draft) -> None:
    d.call("resend", "fay", 18.0, 503)
    d.call("resend", "fay", 19.0, None)
    d.call("resend", "fay", 20.0, 429)


@edge("truth", last=20.25 - 0.001, first=20.25)
def third_resend_came_later(d: Draft, at: float) -> None:
    d.call("resend", "fay", 18.0, 503)
    d.call("resend", "fay", 20.0, 429)
    d.call("resend", "fay", at, 503)


@pytest.mark.parametrize("case", CASES.all, ids=str)
def test_checker_judges(case: Case) -> None:
    found, expected = case.said()
    assert found == expected
