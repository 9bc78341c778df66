"""The rules of the breaker, one test a rule: record, event and time in; record out."""

from datetime import UTC, datetime, timedelta
from typing import Any

import msgspec
import pytest

from contracts.control import FAR, Answer, Ask, Blame, Breaker, BreakerRecord, Permit, Report, Result, paused_until
from user_svc.breaker import (
    CONFIGURATION,
    POLICY,
    Memory,
    Opening,
    Rules,
    asked,
    closed,
    first,
    opened,
    resulted,
    ticked,
)

NOW = datetime(2026, 1, 1, 12, tzinfo=UTC)
RULES = Rules()
LAPSE_S = 35.0


def later(seconds: float) -> datetime:
    return NOW + timedelta(seconds=seconds)


def half_open(**changes: Any) -> BreakerRecord:
    """Epoch 7, round 1, nothing issued."""
    record = BreakerRecord(state=Breaker.HALF_OPEN, epoch=7, since=NOW, round=1)
    return msgspec.structs.replace(record, **changes)


def permit(nonce: int = 1, round_: int = 1, state: Any = "out", given_s: float = 0.0) -> Permit:
    return Permit(nonce=nonce, round=round_, state=state, given_at=later(given_s), lapses_at=later(given_s + LAPSE_S))


def ask(worker: str = "w", nonce: int = 1, epoch: int = 7) -> Ask:
    return Ask(worker=worker, nonce=nonce, epoch=epoch, lapse_s=LAPSE_S)


def result(how: Any, worker: str = "w", nonce: int = 1, epoch: int = 7, verdict: str = "") -> Result:
    return Result(worker=worker, nonce=nonce, epoch=epoch, how=how, verdict=verdict)


class Hears:
    """A closed breaker of epoch 3 and one replica's memory."""

    def __init__(self, **changes: Any) -> None:
        self.memory = Memory()
        self.record = msgspec.structs.replace(first(NOW, RULES), epoch=3, **changes)

    def __call__(
        self, blame: str | None = None, *, ok: int = 0, verdict: str = "path", epoch: int = 3, at_s: float = 0.0
    ) -> Opening | None:
        blamed = None if blame is None else Blame(event_id=blame, verdict=verdict)
        return self.memory.hear(self.record, Report(epoch=epoch, successes=ok, blame=blamed), later(at_s), RULES)


# --- report ---------------------------------------------------------------------------------------------------------


def test_failures_in_a_row_open_at_the_threshold() -> None:
    """F - 1 do not open, the F-th does, for T."""
    hears = Hears()
    assert [hears(f"e{n}") for n in range(4)] == [None] * 4
    assert hears("e4") == Opening(reason="path failures of 5 mails in a row", for_s=RULES.open_s)


def test_a_run_is_not_bound_to_the_window() -> None:
    """Five in a row are five in a row, however slowly they come."""
    hears = Hears()
    assert [hears(f"e{n}", at_s=60.0 * n) is None for n in range(5)] == [True] * 4 + [False]


def test_successes_before_a_failure_reset_the_run() -> None:
    """The report's successes come first: its own failure is the first of a new run."""
    hears = Hears()
    for n in range(4):
        hears(f"e{n}")
    assert hears("e4", ok=1) is None
    assert hears.memory.run == 1


def test_one_event_counts_once_a_window() -> None:
    """A mail that fails again and again does not pass for a sick path; after 30 s it counts again."""
    hears = Hears()
    assert [hears("e", at_s=n) for n in range(30)] == [None] * 30
    assert hears.memory.run == 1
    assert [hears("e", at_s=at_s) for at_s in (30.0, 30.1, 60.1)] == [None] * 3
    assert hears.memory.run == 2


@pytest.mark.parametrize(
    ("ok", "failed", "opens"),
    [
        (5, 4, False),  # 9 are too few, and 4 of 9 too small a share
        (4, 5, False),  # 9 are too few
        (5, 5, True),  # half of ten
        (6, 5, False),  # below half
        (15, 15, True),
        (0, 4, False),
    ],
)
def test_half_of_ten_within_the_window_open(ok: int, failed: int, opens: bool) -> None:
    """>= 50 % of >= 10 within 30 s."""
    hears = Hears()
    # Never two failures in a row, so that the run has no part in it; the surplus of successes first.
    assert hears(ok=max(0, ok - failed)) is None
    pairs = [hears(f"e{n}", ok=1 if n < ok else 0, at_s=n * 0.1) for n in range(failed)]
    reason = f"{failed} path failures of {ok + failed} within 30 s"
    assert pairs[-1] == (Opening(reason=reason, for_s=RULES.open_s) if opens else None)


def test_what_is_older_than_the_window_does_not_count() -> None:
    """Four failures of 40 s ago and one of now are one of one."""
    hears = Hears()
    for n in range(4):
        hears(f"e{n}", ok=1)
    assert hears("e9", ok=1, at_s=40.0) is None
    assert hears.memory.counts(later(40.0)) == (1, 1)
    assert hears.memory.counts(later(70.0)) == (1, 1)
    assert hears.memory.counts(later(70.1)) == (0, 0)


def test_what_leaves_the_window_leaves_the_rest() -> None:
    """Two of now stay when one of 20 s ago goes."""
    hears = Hears()
    hears("e0", ok=1)
    hears("e1", ok=2, at_s=20.0)
    assert hears.memory.counts(later(20.0)) == (3, 2)
    assert hears.memory.counts(later(40.0)) == (2, 1)


def test_configuration_opens_at_once_for_five_minutes() -> None:
    """Waiting 30 s does not mend a password."""
    opening = Hears()("e", verdict=CONFIGURATION)
    assert opening == Opening(reason="configuration: we are refused for what we are", for_s=300.0)


def test_more_than_20_policy_refusals_of_50_are_a_surge() -> None:
    """20 are not enough; the 21st opens with surge."""
    hears = Hears()
    heard = [hears(f"e{n}", ok=1, verdict=POLICY) for n in range(21)]
    assert heard[:20] == [None] * 20
    reason = "surge: 21 of the last 42 mails were refused by policy"
    assert heard[20] == Opening(reason=reason, for_s=RULES.open_s, surge=True)


def test_the_last_50_are_50() -> None:
    """A refusal, 29 good mails and 20 refusals: the first one still counts."""
    hears = Hears()
    hears("e0", verdict=POLICY)
    hears(ok=29)
    heard = [hears(f"e{n}", verdict=POLICY) for n in range(1, 21)]
    assert heard[:19] == [None] * 19
    assert heard[19] is not None
    assert heard[19].reason == "surge: 21 of the last 50 mails were refused by policy"


def test_a_policy_refusal_of_one_event_counts_once() -> None:
    """One mail refused 100 times is no surge."""
    hears = Hears()
    assert [hears("e", verdict=POLICY) for _ in range(100)] == [None] * 100


def test_old_refusals_leave_the_last_50() -> None:
    """20 refusals, then 30 good mails, then one more refusal pushes the first out."""
    hears = Hears()
    for n in range(20):
        hears(f"e{n}", verdict=POLICY)
    hears(ok=30)
    assert hears("e20", verdict=POLICY) is None
    assert hears("e21", ok=5, verdict=POLICY) is None


def test_a_policy_refusal_is_a_success_of_the_path() -> None:
    """It ends the run of failures."""
    hears = Hears()
    for n in range(4):
        hears(f"e{n}")
    hears("p", verdict=POLICY)
    assert hears.memory.run == 0
    assert hears.memory.counts(NOW) == (1, 4)


@pytest.mark.parametrize("state", [Breaker.OPEN, Breaker.HALF_OPEN])
def test_reports_are_ignored_unless_closed(state: Breaker) -> None:
    """Workers that go on alone report too: they cannot open what is open, nor close it."""
    hears = Hears(state=state)
    assert [hears(f"e{n}") for n in range(30)] == [None] * 30
    assert hears.memory.run == 0


@pytest.mark.parametrize("epoch", [2, 4])
def test_reports_of_another_epoch_are_ignored(epoch: int) -> None:
    """A late outcome says nothing of now."""
    hears = Hears()
    assert [hears(f"e{n}", epoch=epoch) for n in range(30)] == [None] * 30


def test_a_new_epoch_forgets() -> None:
    """Run and window are of one epoch."""
    hears = Hears()
    for n in range(4):
        hears(f"e{n}")
    hears.record = msgspec.structs.replace(hears.record, epoch=5)
    assert hears("e4", epoch=5) is None
    assert hears.memory.run == 1
    assert hears.memory.counts(NOW) == (0, 1)


# --- open, closed, tick ---------------------------------------------------------------------------------------------


def test_there_is_a_first_record() -> None:
    """Closed."""
    assert first(NOW, RULES) == BreakerRecord(
        state=Breaker.CLOSED, epoch=1, since=NOW, open_s=RULES.open_s, reason="first start"
    )


def test_each_new_state_says_how_long_it_opens() -> None:
    """Workers wait by it, so it must be the setting of now."""
    rules = Rules(open_s=7.0)
    old = opened(first(NOW, RULES), NOW, RULES, reason="", for_s=0.0)
    new = [first(NOW, rules), opened(old, NOW, rules, reason="", for_s=1.0), closed(old, NOW, rules, reason="")]
    assert [record.open_s for record in (*new, ticked(old, NOW, rules) or old)] == [7.0] * 4


@pytest.mark.parametrize("state", list(Breaker))
@pytest.mark.parametrize("for_s", [30.0, None])
def test_opened_from_any_state_starts_afresh(state: Breaker, for_s: float | None) -> None:
    """Epoch + 1, no permits, no successes; without a time it is held open."""
    record = half_open(state=state, issued=2, ok=1, round=4, permits={"w": permit()})
    new = opened(record, NOW, RULES, reason="operator", for_s=for_s)
    assert new == BreakerRecord(
        state=Breaker.OPEN,
        epoch=8,
        since=NOW,
        open_until=None if for_s is None else later(for_s),
        open_s=RULES.open_s,
        reason="operator",
    )
    assert paused_until(new) == (FAR if for_s is None else later(for_s + 5))


@pytest.mark.parametrize("state", list(Breaker))
def test_closed_from_any_state_starts_afresh(state: Breaker) -> None:
    """Epoch + 1; no permits, no surge, no pause."""
    record = half_open(state=state, issued=2, ok=1, surge=True, permits={"w": permit()})
    new = closed(record, NOW, RULES, reason="operator")
    assert new == BreakerRecord(state=Breaker.CLOSED, epoch=8, since=NOW, open_s=RULES.open_s, reason="operator")
    assert paused_until(new) is None


def test_a_surge_lasts_until_closed() -> None:
    """Over half-open, a failed probe and an operator's opening: refusals by policy stay path failures."""
    record = opened(first(NOW, RULES), NOW, RULES, reason="", for_s=1.0, surge=True)
    record = ticked(record, later(1), RULES) or record
    assert record.surge
    assert opened(record, NOW, RULES, reason="operator", for_s=None).surge
    _, answer = asked(record, 1, ask(epoch=record.epoch), later(1), RULES)
    record = asked(record, 1, ask(epoch=record.epoch), later(1), RULES)[0] or record
    assert answer.word == "go"
    failed = resulted(record, result("failed", epoch=record.epoch), later(2), RULES)
    assert failed is not None
    assert failed.surge
    assert not closed(failed, NOW, RULES, reason="").surge


@pytest.mark.parametrize(("at_s", "ticks"), [(29.999, False), (30.0, True), (1e6, True)])
def test_half_open_when_the_time_is_over_and_not_before(at_s: float, ticks: bool) -> None:
    """The tick at open_until: epoch + 1, round 1, nothing issued."""
    record = opened(first(NOW, RULES), NOW, RULES, reason="", for_s=30.0)
    new = ticked(record, later(at_s), RULES)
    assert (new is not None) is ticks
    if new is not None:
        reason = "the open time is over"
        assert new == half_open(epoch=3, since=later(at_s), open_s=RULES.open_s, reason=reason)


def test_an_operators_open_never_ticks() -> None:
    """Until further notice means that."""
    held = opened(first(NOW, RULES), NOW, RULES, reason="", for_s=None)
    assert ticked(held, later(1e8), RULES) is None


@pytest.mark.parametrize("state", [Breaker.CLOSED, Breaker.HALF_OPEN])
def test_nothing_else_ticks(state: Breaker) -> None:
    """Only open has a time."""
    assert ticked(half_open(state=state), later(1e6), RULES) is None


# --- ask ------------------------------------------------------------------------------------------------------------


def test_closed_says_go_whatever_the_epoch() -> None:
    """And writes nothing."""
    record = first(NOW, RULES)
    new, answer = asked(record, 4, ask(epoch=99), NOW, RULES)
    assert (new, answer) == (None, Answer(word="go", record=record, revision=4))


def test_open_says_wait_a_second() -> None:
    """And writes nothing."""
    record = opened(first(NOW, RULES), NOW, RULES, reason="", for_s=30)
    new, answer = asked(record, 4, ask(epoch=2), NOW, RULES)
    assert (new, answer) == (None, Answer(word="wait", record=record, revision=4, wait_s=1.0))


@pytest.mark.parametrize("epoch", [0, 6, 8])
def test_half_open_grants_nothing_to_another_epoch(epoch: int) -> None:
    """*again*: the worker adopts the record, which the answer carries, and asks at once."""
    record = half_open()
    new, answer = asked(record, 4, ask(epoch=epoch), NOW, RULES)
    assert (new, answer) == (None, Answer(word="again", record=record, revision=4))


def test_permits_are_granted_up_to_p() -> None:
    """P a round, to whoever asks; the next one waits."""
    record = half_open()
    for n in range(RULES.half_open_permits):
        new, answer = asked(record, 4, ask(f"w{n}"), NOW, RULES)
        assert new is not None
        assert (answer.word, new.issued, new.round, new.epoch) == ("go", n + 1, 1, 7)
        assert new.permits[f"w{n}"] == permit()
        record = new
    new, answer = asked(record, 4, ask("w9"), NOW, RULES)
    assert (new, answer.word) == (None, "wait")


def test_the_same_nonce_is_the_same_permit() -> None:
    """A lost answer: go again, and nothing more is issued."""
    record = half_open(issued=3, permits={"w": permit()})
    assert asked(record, 4, ask(), later(1.0), RULES)[0] is None
    assert asked(record, 4, ask(), later(1.0), RULES)[1].word == "go"


def test_no_permit_lasts_longer_than_an_hour() -> None:
    """Whatever its worker asks for: else it would hold the round for ever, or end in no time at all."""
    for lapse_s in (3601.0, 1e9, 1e300):
        new, _ = asked(half_open(), 4, msgspec.structs.replace(ask(), lapse_s=lapse_s), NOW, RULES)
        assert new is not None
        assert new.permits["w"].lapses_at == later(3600.0)


def test_a_pause_until_the_end_of_time_is_one_until_further_notice() -> None:
    """Nothing overflows: what the guard cannot reckon it could not close either."""
    last = datetime(9999, 12, 31, 23, 59, 59, tzinfo=UTC)
    until = paused_until(BreakerRecord(state=Breaker.OPEN, epoch=1, since=NOW, open_until=last))
    assert until is not None
    assert abs((until - FAR).total_seconds()) < 10


@pytest.mark.parametrize("at_s", [1.1, 34.0, 100.0])
def test_an_older_permit_is_renewed(at_s: float) -> None:
    """Beyond a second its time and lapse are written anew, even if it had lapsed: nobody has taken its place."""
    record = half_open(issued=3, permits={"w": permit()})
    new, answer = asked(record, 4, ask(), later(at_s), RULES)
    assert answer.word == "go"
    assert new == half_open(issued=3, permits={"w": permit(given_s=at_s)})


@pytest.mark.parametrize(
    ("known", "nonce"),
    [
        (permit(nonce=5), 4),  # a lower one
        (permit(nonce=5), 1),
        (permit(nonce=5, state="ok"), 5),
        (permit(nonce=5, state="back"), 5),
        (permit(nonce=5, round_=1), 5),  # of the last round
    ],
)
def test_a_nonce_that_had_its_turn_is_old(known: Permit, nonce: int) -> None:
    """Settled, of an earlier round, or lower than the highest: nothing is granted for it again."""
    record = half_open(round=2 if known.state == "out" and nonce == 5 else 1, permits={"w": known})
    new, answer = asked(record, 4, ask(nonce=nonce), NOW, RULES)
    assert (new, answer.word) == (None, "old")


def test_a_higher_nonce_takes_the_place_of_the_lower() -> None:
    """Of each worker only the highest is kept; it is another permit and counts."""
    new, answer = asked(half_open(issued=1, permits={"w": permit()}), 4, ask(nonce=2), NOW, RULES)
    assert new is not None
    assert (answer.word, new.issued, new.permits["w"].nonce) == ("go", 2, 2)


@pytest.mark.parametrize("settled", ["ok", "back"])
def test_a_new_round_when_all_are_settled(settled: str) -> None:
    """Round + 1, issued 1; successes are kept."""
    permits = {f"w{n}": permit(state=settled) for n in range(3)}
    new, answer = asked(half_open(issued=3, ok=1, permits=permits), 4, ask("w9"), NOW, RULES)
    assert new is not None
    assert (answer.word, new.round, new.issued, new.ok, new.epoch) == ("go", 2, 1, 1, 7)
    assert new.permits["w9"].round == 2


@pytest.mark.parametrize(("at_s", "word"), [(34.99, "wait"), (35.0, "go")])
def test_a_new_round_when_the_last_has_lapsed(at_s: float, word: str) -> None:
    """A permit that never reports cannot jam it."""
    permits = {"a": permit(), "b": permit(given_s=-1), "c": permit(state="ok")}
    new, answer = asked(half_open(issued=3, permits=permits), 4, ask("w9"), later(at_s), RULES)
    assert answer.word == word
    assert (new is not None) is (word == "go")


def test_wait_is_at_most_until_the_next_lapse() -> None:
    """And at most a second."""
    permits = {"a": permit(), "b": permit(given_s=-20)}
    record = half_open(issued=3, permits=permits)
    assert asked(record, 4, ask("w9"), later(14.75), RULES)[1].wait_s == pytest.approx(0.25)
    assert asked(record, 4, ask("w9"), later(1), RULES)[1].wait_s == 1.0


def test_permits_of_this_and_the_last_round_are_kept() -> None:
    """Older ones go; their results are late."""
    permits = {
        "a": permit(round_=1, state="ok"),
        "b": permit(round_=2, state="back"),
        "c": permit(round_=2, state="ok"),
    }
    new, _ = asked(half_open(round=2, issued=3, permits=permits), 4, ask("d"), NOW, RULES)
    assert new is not None
    assert set(new.permits) == {"b", "c", "d"}


# --- result ---------------------------------------------------------------------------------------------------------


def test_a_success_counts_and_the_s_th_closes() -> None:
    """S = 2."""
    record = half_open(issued=2, permits={"a": permit(), "b": permit()})
    one = resulted(record, result("ok", "a"), NOW, RULES)
    assert one == half_open(issued=2, ok=1, permits={"a": permit(state="ok"), "b": permit()})
    two = resulted(one, result("ok", "b"), NOW, RULES)
    assert two is not None
    assert two == closed(half_open(), NOW, RULES, reason="2 probes succeeded")


def test_a_success_counts_once() -> None:
    """The repeat of a result whose acknowledgement was lost changes nothing, whatever it says now."""
    record = half_open(issued=1, ok=1, permits={"w": permit(state="ok")})
    for how in ("ok", "failed", "unused"):
        assert resulted(record, result(how), NOW, RULES) is None


@pytest.mark.parametrize("state", ["out", "back"])
def test_a_success_of_an_earlier_round_counts(state: str) -> None:
    """It shows all the same that the path works."""
    record = half_open(round=2, issued=1, ok=1, permits={"w": permit(state=state)})
    new = resulted(record, result("ok"), NOW, RULES)
    assert new is not None
    assert new.state is Breaker.CLOSED


@pytest.mark.parametrize(("verdict", "for_s"), [("path", 30.0), (CONFIGURATION, 300.0)])
def test_a_failed_probe_opens(verdict: str, for_s: float) -> None:
    """Epoch + 1, for T; for a configuration fault 5 min."""
    record = half_open(issued=1, ok=1, permits={"w": permit()})
    new = resulted(record, result("failed", verdict=verdict), NOW, RULES)
    assert new is not None
    assert (new.state, new.epoch, new.open_until) == (Breaker.OPEN, 8, later(for_s))
    assert new.reason == "a probe failed"


def test_the_failure_of_an_earlier_round_is_only_acknowledged() -> None:
    """It is of a time that is over."""
    record = half_open(round=2, issued=1, permits={"w": permit()})
    assert resulted(record, result("failed"), NOW, RULES) is None


@pytest.mark.parametrize(("round_", "issued"), [(1, 2), (2, 3)])
def test_unused_gives_back_only_in_its_round(round_: int, issued: int) -> None:
    """The mark always, issued - 1 only if it was issued in this round."""
    record = half_open(round=round_, issued=3, permits={"w": permit()})
    new = resulted(record, result("unused"), NOW, RULES)
    assert new == half_open(round=round_, issued=issued, permits={"w": permit(state="back")})
    assert resulted(new, result("unused"), NOW, RULES) is None


def test_what_was_given_back_is_granted_again() -> None:
    """To another, in the same round."""
    record = resulted(half_open(issued=3, permits={"w": permit()}), result("unused"), NOW, RULES)
    assert record is not None
    new, answer = asked(record, 4, ask("w9"), NOW, RULES)
    assert new is not None
    assert (answer.word, new.round, new.issued) == ("go", 1, 3)


@pytest.mark.parametrize("how", ["ok", "failed", "unused"])
@pytest.mark.parametrize(
    ("record", "wrong"),
    [
        (half_open(issued=1, permits={"w": permit()}), {"epoch": 6}),
        (half_open(issued=1, permits={"w": permit()}), {"epoch": 8}),
        (half_open(issued=1, permits={"w": permit()}), {"worker": "x"}),
        (half_open(issued=1, permits={"w": permit()}), {"nonce": 2}),
        (half_open(issued=1, permits={"w": permit(nonce=2)}), {"nonce": 1}),
        (half_open(state=Breaker.OPEN), {}),
        (half_open(state=Breaker.CLOSED), {}),
    ],
)
def test_results_that_fit_nothing_are_only_acknowledged(record: BreakerRecord, wrong: dict[str, Any], how: str) -> None:
    """Another epoch, another state, a permit that is not known."""
    assert resulted(record, result(how, **wrong), NOW, RULES) is None


# --- settings -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"failure_threshold": 0}, "failure_threshold=0: expected 1 or more"),
        ({"success_threshold": -1}, "success_threshold=-1: expected 1 or more"),
        ({"half_open_permits": 0}, "half_open_permits=0: expected 1 or more"),
        ({"open_s": 0.0}, "open_s=0.0: expected above 0"),
        ({"open_s": float("nan")}, "open_s=nan: expected above 0"),
    ],
)
def test_nonsense_is_refused(wrong: dict[str, Any], said: str) -> None:
    """With value and bound."""
    with pytest.raises(ValueError, match=f"^{said}$"):
        Rules(**wrong)


def test_what_is_just_sense_is_taken() -> None:
    """One of each, and any time above 0."""
    least = Rules(failure_threshold=1, success_threshold=1, half_open_permits=1, open_s=0.1)
    assert opened(half_open(), NOW, least, reason="", for_s=least.open_s).open_until == later(0.1)


def test_the_defaults_are_those_of_the_readme() -> None:
    """`CIRCUIT_BREAKER_*`."""
    assert Rules() == Rules(failure_threshold=5, success_threshold=2, open_s=30.0, half_open_permits=3)
