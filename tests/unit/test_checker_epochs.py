"""The drill's checker on the record of the circuit breaker: its epochs, rounds and moves."""

import pytest

from tests.drill.checker import check
from tests.drill.history import Change
from tests.drill.planted import Case, Cases
from tests.drill.sample import Draft, change, drop, edit, fault

CASES = Cases()
breaks, allows, edge = CASES.breaks, CASES.allows, CASES.edge


@breaks("breaker: 4 permits in a round of 3 at 45.500")
def more_permits_than_a_round_has(d: Draft) -> None:
    change(d, 3, issued=4)


@breaks("breaker: -1 permits in a round of 3 at 45.250")
def fewer_permits_than_none(d: Draft) -> None:
    change(d, 2, issued=-1)


@allows
def as_many_permits_as_a_round_has(d: Draft) -> None:
    change(d, 3, issued=3)


@breaks("breaker: round 3 after round 1 at 45.750")
def round_was_left_out(d: Draft) -> None:
    change(d, 4, round=3)


@edge("breaker", last=45.25, first=45.2499)  # the last write of the round before
def round_was_missed_while_deaf(d: Draft, until: float) -> None:
    change(d, 4, round=3)
    drop(d.changes, lambda c: c.at == 45.5)
    d.more["deaf"] = ((45.0, until),)


@breaks("breaker: round 2 before round 1 at 45.500")
def rounds_in_another_order(d: Draft) -> None:
    change(d, 3, round=2)


@edge("breaker", last=45.7001, first=45.6999)
def next_round_at_almost_the_same_time(d: Draft, at: float) -> None:
    change(d, 3, at=at, round=2)


@breaks("breaker: epoch 3 is half_open and closed at 45.500")
def two_states_of_one_epoch(d: Draft) -> None:
    change(d, 3, state="closed")


@breaks("breaker: not by one epoch: open 2 to half_open 4 at 45.250")
def epoch_was_left_out(d: Draft) -> None:
    for n in range(2, 6):
        change(d, n, epoch=d.changes[n].epoch + 1)


@edge("breaker", last=45.25, first=45.2501)
def epoch_was_missed_while_deaf(d: Draft, since: float) -> None:
    epoch_was_left_out(d)
    d.more["deaf"] = ((since, 50.0),)
    drop(d.changes, lambda c: c.at == 48.0)


@edge("breaker", last=35.0, first=34.9999)
def epoch_was_missed_after_being_deaf(d: Draft, until: float) -> None:
    epoch_was_left_out(d)
    d.more["deaf"] = ((30.0, until),)


@breaks("breaker: not by one epoch: half_open 3 to closed 5 at 48.000")
def epoch_was_left_out_after_another_was_heard(d: Draft) -> None:
    d.more["deaf"] = ((45.25, 45.5),)
    change(d, 5, epoch=5)


@breaks("breaker: back in time: closed 1 to open 2 at 35.000")
def epochs_in_another_order(d: Draft) -> None:
    change(d, 0, at=36.0)


@breaks(
    "breaker: not a move: closed 1 to half_open 2 at 35.000",
    "breaker: before its time: closed 1 to half_open 2 at 35.000",
)
def half_open_from_closed(d: Draft) -> None:
    change(d, 1, state="half_open")
    drop(d.changes, lambda c: c.epoch == 3)
    for n in (2,):
        change(d, n, epoch=3)
    d.changes[2:2] = [Change(at=35.0, epoch=2, state="half_open", issued=n) for n in (1, 2)]


@edge("breaker", last=45.2999, first=45.3001)
def half_open_before_its_time(d: Draft, until: float) -> None:
    change(d, 1, until=until)


@breaks("breaker: before its time: open 2 to half_open 3 at 45.250")
def half_open_though_held_open(d: Draft) -> None:
    change(d, 1, until=None)


MOVES = ("closed", "open", "half_open")
LEGAL = {("closed", "open"), ("open", "half_open"), ("half_open", "closed"), ("half_open", "open")}


@pytest.mark.parametrize("by_hand", [False, True])
@pytest.mark.parametrize("old", MOVES)
@pytest.mark.parametrize("new", MOVES)
def test_every_move(old: str, new: str, by_hand: bool) -> None:
    """By itself only as the table says; an operator may open and close it from any state."""
    d = Draft()
    until = 5.0 if old == "open" else None
    d.changes = [Change(at=1.0, epoch=7, state=old, until=until), Change(at=9.0, epoch=8, state=new)]  # type: ignore[arg-type]
    if by_hand:
        fault(d, "queue_full", "breaker", 8.5, 9.5)
    legal = (old, new) in LEGAL or (by_hand and new != "half_open")
    assert ([violation.what for violation in check(d.history())] == []) == legal


@edge("breaker", last=48.05, first=48.06)
def operator_closed_it_before_the_fault_began(d: Draft, began: float) -> None:
    operated(d, began, 60.0)


@edge("breaker", last=43.0, first=42.999)
def operator_closed_it_long_after(d: Draft, ended: float) -> None:
    operated(d, 40.0, ended)


def operated(d: Draft, began: float, ended: float) -> None:
    """Closed at 48 from open."""
    drop(d.changes, lambda c: c.epoch == 3)
    change(d, 2, epoch=3)
    edit(d.transactions, lambda t: t.began in (46.0, 47.0), began=49.0)
    fault(d, "breaker_open", "breaker", began, ended)


@breaks("breaker: not a move: open 2 to closed 3 at 48.000")
def closed_from_open_by_nobody(d: Draft) -> None:
    operated(d, 40.0, 50.0)
    edit(d.faults, lambda f: f.kind == "breaker_open", kind="freeze")


@pytest.mark.parametrize("case", CASES.all, ids=str)
def test_checker_judges(case: Case) -> None:
    found, expected = case.said()
    assert found == expected
