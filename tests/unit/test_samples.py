"""The reckoning of the overview: rates, and the rows of its charts."""

import json

from contracts import replica
from contracts.replica import ReplicaAnswer
from user_svc.samples import ROWS, Pace, Samples, VerdictPace, row_of


def test_a_pace_is_the_growth_of_the_last_five_seconds() -> None:
    """0 at the first look and while the number shrinks; over a pause it is spread over all of it."""
    pace = Pace()
    assert [pace.per_s(now, total) for now, total in ((0, 100), (1, 110), (2, 120))] == [0.0, 10.0, 10.0]
    assert [pace.per_s(now, 120) for now in (3, 4, 5, 6, 7, 8)] == [6.667, 5.0, 4.0, 2.0, 0.0, 0.0]
    assert pace.per_s(68, 720) == 10.0
    assert pace.per_s(69, 0) == 0.0


def test_a_row_has_the_figures_of_its_snapshot() -> None:
    """Each under its own name, the breaker as the metric numbers it; without a snapshot nothing but the time."""
    for number, state in enumerate(("closed", "half_open", "open")):
        snapshot = {
            "accepted": {"per_second": 1.5},
            "sent": {"per_second": 2.5},
            "queue": {"size": 3, "oldest_age_seconds": 4.5},
            "breaker": {"state": state},
        }
        row = row_of(5, snapshot, {"sent": 6.5})
        assert row == {
            "at": 5,
            "accepted_per_second": 1.5,
            "sent_per_second": 2.5,
            "queue_size": 3,
            "oldest_age_seconds": 4.5,
            "breaker": number,
            "verdicts_per_second": {"sent": 6.5},
        }
    gap = row_of(5)
    assert gap.pop("at") == 5
    assert set(gap.pop("verdicts_per_second").values()) == set(gap.values()) == {None}


def answered(name: str, sent: int, started: int = 0) -> ReplicaAnswer:
    """What a worker says."""
    return replica.ANSWER.decode(
        json.dumps(
            {
                "kind": "replica.answer.v1",
                "service": "email_svc",
                "replica": name,
                "started_at": f"2026-01-01T00:00:{started:02}Z",
                "version": "1",
                "ready": True,
                "verdicts": {"sent": sent},
            }
        ).encode()
    )


def test_verdicts_are_summed_over_workers_and_restarts() -> None:
    """A worker that is new, that missed a question or began anew makes no peak and no hole below zero."""
    pace = VerdictPace()
    assert pace.per_s(0, [answered("a", 1000)])["sent"] is None
    assert pace.per_s(5, [answered("a", 1010), answered("b", 500)])["sent"] == 2.0
    assert pace.per_s(10, [answered("b", 505)])["sent"] == 1.0
    assert pace.per_s(15, [])["sent"] is None
    assert pace.per_s(20, [answered("a", 1020), answered("b", 505)])["sent"] == 1.0
    assert pace.per_s(25, [answered("a", 3, started=9)])["sent"] == 0.0


def test_samples_keep_fifteen_minutes_with_their_gaps() -> None:
    """180 rows; what was missed is null; a clock that was set back begins anew."""
    samples = Samples()
    assert samples.columns()["at"] == []
    for at in (1000, 1005, 1020):
        samples.add(row_of(at, verdicts={"sent": 1.0, "path": 0.0, "message": 0.0, "other": 0.0}))
    columns = samples.columns()
    assert columns["at"] == [1000, 1005, 1010, 1015, 1020]
    assert columns["verdicts_per_second"]["sent"] == [1.0, 1.0, None, None, 1.0]
    samples.add(row_of(90_000))
    assert len(samples.columns()["at"]) == ROWS
    assert samples.columns()["at"][-1] == 90_000
    samples.add(row_of(500))
    assert samples.columns()["at"] == [500]
