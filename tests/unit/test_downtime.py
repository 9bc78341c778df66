"""The simulated downtime is a function of the broker's time."""

import math
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from contracts.control import DowntimeRecord
from email_svc.downtime import spared_until
from email_svc.policies.downtime import Schedule, down_until, next_down

ON = Schedule(enabled=True, interval_s=300.0, duration_s=30.0)
OFF = Schedule(enabled=False)


@pytest.mark.parametrize(
    ("now", "until"),
    [(0.0, None), (269.9, None), (270.0, 300.0), (299.9, 300.0), (300.0, None), (570.0, 600.0), (870.5, 900.0)],
)
def test_down_at_the_end_of_each_interval(now: float, until: float | None) -> None:
    """[interval - duration, interval), of each interval."""
    assert down_until(ON, now) == until


@pytest.mark.parametrize("now", [0.0, 270.0, 299.9])
def test_without_a_schedule_it_is_up(now: float) -> None:
    """Unless it was asked for."""
    assert down_until(OFF, now) is None
    assert next_down(OFF, now) is None
    assert down_until(OFF, now, forced_until=now + 5) == now + 5


@pytest.mark.parametrize(
    ("now", "forced_until", "until"),
    [
        (10.0, 20.0, 20.0),
        (20.0, 20.0, None),
        (280.0, 290.0, 300.0),  # the later of the two
        (280.0, 310.0, 310.0),
    ],
)
def test_down_on_demand_until_a_time(now: float, forced_until: float, until: float | None) -> None:
    """Beside the schedule; the later end counts."""
    assert down_until(ON, now, forced_until=forced_until) == until


@pytest.mark.parametrize(
    ("now", "spared_until", "until"), [(280.0, 300.0, None), (570.0, 300.0, 600.0), (280.0, 280.0, 300.0)]
)
def test_ended_by_hand_the_schedule_is_spared_once(now: float, spared_until: float, until: float | None) -> None:
    """The next downtime comes as always."""
    assert down_until(ON, now, spared_until=spared_until) == until


def test_sparing_the_schedule_does_not_end_what_was_asked_for() -> None:
    """Only the schedule is overruled."""
    assert down_until(ON, 280.0, forced_until=290.0, spared_until=300.0) == 290.0


@pytest.mark.parametrize(("now", "begins"), [(0.0, 270.0), (269.9, 270.0), (270.0, 570.0), (299.0, 570.0)])
def test_when_the_next_one_begins(now: float, begins: float) -> None:
    """While it is down: the one after this."""
    assert next_down(ON, now) == begins


@settings(deadline=None, max_examples=100)
@given(st.floats(1.8e9, 1.9e9), st.floats(2, 3600), st.floats(0.01, 0.99))
def test_up_until_it_begins_and_down_until_it_ends(now: float, interval_s: float, share: float) -> None:
    """`next_down` and `down_until` tell of the same downtime, of the configured length."""
    schedule = Schedule(enabled=True, interval_s=interval_s, duration_s=interval_s * share)
    begins = next_down(schedule, now)
    assert begins is not None
    assert now < begins <= now + interval_s + 1e-5
    ends = down_until(schedule, begins + 1e-3)
    assert ends is not None
    assert ends - begins == pytest.approx(schedule.duration_s, abs=1e-5)
    assert down_until(schedule, begins - 1e-3) in (None, pytest.approx(begins - (1 - share) * interval_s, abs=1e-5))


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"duration_s": 0.0}, r"duration_s=0\.0: expected above 0"),
        ({"duration_s": -1.0}, r"duration_s=-1\.0: expected above 0"),
        ({"duration_s": 300.0}, r"below the interval of 300\.0 s"),
        ({"interval_s": 10.0}, r"duration_s=30\.0: .* below the interval of 10\.0 s"),
        ({"duration_s": math.nan}, "duration_s=nan"),
    ],
)
def test_nonsense_is_refused(wrong: dict[str, Any], said: str) -> None:
    """With value and bound."""
    with pytest.raises(ValueError, match=said):
        Schedule(enabled=True, **wrong)


@pytest.mark.parametrize(
    ("record", "until"),
    [
        (DowntimeRecord(), 0.0),
        (DowntimeRecord(spared_until=300.0), 300.0),  # as version 1 wrote it
        (DowntimeRecord(ended_at=269.9), 0.0),  # nothing was on
        (DowntimeRecord(ended_at=270.0), 300.0),
        (DowntimeRecord(ended_at=299.9), 300.0),
        (DowntimeRecord(ended_at=300.0), 0.0),
        (DowntimeRecord(ended_at=571.0, spared_until=300.0), 600.0),
    ],
)
def test_who_ends_a_downtime_need_not_know_the_schedule(record: DowntimeRecord, until: float) -> None:
    """The one that was on when it was ended is spared, and no other."""
    assert spared_until(ON, record) == until
    assert spared_until(OFF, record) == record.spared_until
