"""The drill's checker on the books at rest, and on the rate limit."""

from dataclasses import replace

import pytest

from tests.drill.checker import check
from tests.drill.history import Books, Change, Row
from tests.drill.planted import Case, Cases
from tests.drill.sample import (
    GREYLISTED,
    TAKEN,
    Draft,
    begin,
    drop,
    edit,
    fault,
    good,
    of,
)

CASES = Cases()
breaks, allows, edge = CASES.breaks, CASES.allows, CASES.edge


@pytest.mark.parametrize("place", ["outbox", "queue"])
def test_what_is_on_its_way_has_not_settled(place: str) -> None:
    d = good()
    edit(d.rows, of("ada.1"), place=place)
    assert [str(violation) for violation in check(d.history())] == [f"settled: still in {place} [ada.1]"]


@breaks("settled: still in outbox, queue [ada.1]", "ledger: a gap of -1")
def handed_over_and_not_settled(d: Draft) -> None:
    edit(d.rows, of("ada.1"), place="queue")
    d.rows.append(Row(event_id="ada.1", place="outbox"))


@breaks("settled: still to be tried again [cyd.3]", "ledger: a gap of 1")
def still_to_be_tried(d: Draft) -> None:
    edit(d.rows, of("cyd.3"), place="attempts")


@breaks("settled: still in queue [cyd.3]")
def still_to_be_tried_and_queued(d: Draft) -> None:
    edit(d.rows, of("cyd.3"), place="attempts")
    d.rows.append(Row(event_id="cyd.3", place="queue"))


@breaks("settled: 1 erasures still under way")
def erasure_goes_on(d: Draft) -> None:
    d.books = replace(d.history().books, erasing=1)


@pytest.mark.parametrize("off", [-1, 1])
@pytest.mark.parametrize("place", ["live", "outbox", "queue", "sent", "dead", "expired"])
def test_counter_is_what_is_found(place: str, off: int) -> None:
    """Each counter alone, one up or down: it differs from what is there, and the sum has a gap."""
    d = good()
    books = d.history().books
    was = getattr(books, place)
    d.books = replace(books, **{place: was + off})
    gap = off if place == "live" else -off
    assert sorted(str(violation) for violation in check(d.history())) == sorted(
        [f"ledger: {place}: counted {was + off}, found {was}", f"ledger: a gap of {gap}"]
    )


@breaks("ledger: live: counted 13, found 12", "ledger: sent: counted 10, found 9")
def counters_agree_only_with_each_other(d: Draft) -> None:
    books = d.history().books
    d.books = Books(live=books.live + 1, outbox=0, queue=0, sent=books.sent + 1, dead=books.dead, expired=1)


@breaks("ledger: 2 keys of one event [ada.1]", "ledger: a gap of 1")
def event_has_two_keys(d: Draft) -> None:
    d.key("ada.1", 1.125)


@breaks(
    "ledger: 2 times in sent [ada.1]",
    "ledger: a gap of -1",
    "verdict: several outcomes: sent, sent [ada.1]",
    "verdict: attempt with answer dot 250, which the SMTP server has not given [ada.1] at 2.125",
)
def event_has_an_outcome_twice(d: Draft) -> None:
    d.rows.append(next(row for row in d.rows if row.event_id == "ada.1"))


@breaks("ledger: attempts beside the outcome [cyd.3]")
def attempts_were_not_removed(d: Draft) -> None:
    d.rows.append(Row(event_id="cyd.3", place="attempts"))


def attempts_came_back(d: Draft, killed_at: float) -> None:
    """cyd.3 was refused twice, the first row of attempts is there again after the broker's death."""
    edit(
        d.rows,
        of("cyd.3"),
        attempts=(GREYLISTED, GREYLISTED, TAKEN),
        verdicts=("transient", "transient", "sent"),
        attempted_at=(7.125, 7.5, 8.125),
        total=3,
        counted=2,
    )
    d.refused("cyd.3", 7.25, GREYLISTED)
    d.rows.append(
        Row(
            event_id="cyd.3",
            place="attempts",
            attempts=(GREYLISTED,),
            verdicts=("transient",),
            attempted_at=(7.125,),
            total=1,
            counted=1,
            stored_at=7.25,
        )
    )
    fault(d, "kill", "broker", killed_at)


@allows
def attempts_came_back_from_the_dead(d: Draft) -> None:
    attempts_came_back(d, 20.0)


@breaks(
    "ledger: attempts beside the outcome [cyd.3]",
    "verdict: attempt with answer rcpt 450, which the SMTP server has not given [cyd.3]",
)
def attempts_came_back_without_a_death(d: Draft) -> None:
    attempts_came_back(d, 7.75)


@breaks("ledger: a dead letter without its outcome [ada.1]")
def dead_letter_of_the_sent(d: Draft) -> None:
    d.letter("ada.1", "sent")


@breaks("ledger: a dead letter without its outcome [bob.2]")
def dead_letter_of_another_state(d: Draft) -> None:
    d.letter("bob.2", "expired")


@breaks("ledger: a dead letter without its outcome [bob.2]")
def two_dead_letters(d: Draft) -> None:
    d.letter("bob.2", "dead")


@breaks(
    "ledger: a row of an event without a key [ada.1]",
    "ledger: a gap of -1",
    "lost: a 201 without its key [ada] at 1.250",
)
def outcome_without_a_key(d: Draft) -> None:
    drop(d.keys, of("ada.1"))


@breaks(
    "ledger: a row of an event without a key [zoe.99]",
    "ledger: a gap of -1",
    "verdict: expired before its deadline [zoe.99] at 50.000",
)
def outcome_of_a_stranger(d: Draft) -> None:
    d.row("zoe.99", "expired", at=50.0)


@breaks("quarantine: 1 quarantined that were not planted")
def quarantined(d: Draft) -> None:
    d.more["quarantined"] = 1


@breaks("quarantine: 2 quarantined that were not planted")
def more_quarantined_than_planted(d: Draft) -> None:
    d.more |= {"quarantined": 3, "planted": 1}


@pytest.mark.parametrize("quarantined", [0, 2, 3])
def test_planted_messages_may_be_quarantined(quarantined: int) -> None:
    """A queue that was purged meanwhile had some of them."""
    d = good()
    d.more |= {"quarantined": quarantined, "planted": 3}
    assert check(d.history()) == []


def begun(*times: float) -> Draft:
    """Nothing else: 10 a second, burst 5, and 0.4 s later."""
    d = Draft()
    d.changes.append(Change(at=0.0, epoch=1, state="closed"))
    begin(d, *times)
    return d


@pytest.mark.parametrize(("times", "says"), [
    ([20.5] * 9, ""),
    ([20.5] * 10, "rate: 10 mails begun within 0.000 s at 20.500"),
    ([20.5] * 9 + [21.0] * 5, ""),
    ([20.5] * 9 + [20.9999] * 5, "rate: 14 mails begun within 0.500 s at 21.000"),
    ([20.5] * 9 + [21.0] * 6, "rate: 15 mails begun within 0.500 s at 21.000"),
    ([20.5, *[22.0] * 9], ""),
    ([20.5, *[22.0] * 10], "rate: 10 mails begun within 0.000 s at 22.000"),
    ([20.5] * 9 + [20.5 + n / 10 for n in range(1, 30)], ""),
    ([20.5] * 9 + [20.5 + n / 10.1 for n in range(1, 30)], "rate: 38 mails begun within 2.871 s at 23.371"),
    ([22.0] * 10 + [20.5], "rate: 10 mails begun within 0.000 s at 22.000"),
    ([18.5] * 10 + [20.5] * 12 + [28.5] * 11, "rate: 12 mails begun within 0.000 s at 20.500"),
])  # fmt: skip
def test_token_bucket(times: list[float], says: str) -> None:
    """Of several windows that are too full the worst is told, and the law holds wherever a window begins."""
    assert [str(violation) for violation in check(begun(*times).history())] == [says] * bool(says)


@pytest.mark.parametrize(("n", "allowed"), [(19, True), (20, False)])
def test_what_stood_still_counts_twice(n: int, allowed: bool) -> None:
    d = begun(*[20.5] * n)
    d.more["stood_still_s"] = 0.5
    assert (check(d.history()) == []) == allowed


@pytest.mark.parametrize(("n", "allowed"), [(14, True), (15, False)])
def test_what_the_gates_delayed_counts_once(n: int, allowed: bool) -> None:
    d = begun(*[20.5] * n)
    fault(d, "delay", "email_svc~smtp", 60.0, 61.0, delay_s=0.5)
    assert (check(d.history()) == []) == allowed


def test_no_limit() -> None:
    d = begun(*[20.5] * 100)
    d.rules = replace(d.rules, rate_per_s=0.0)
    assert check(d.history()) == []


@pytest.mark.parametrize("case", CASES.all, ids=str)
def test_checker_judges(case: Case) -> None:
    found, expected = case.said()
    assert found == expected
