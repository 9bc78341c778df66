"""The bracket around the broker's clock contains the truth."""

import math
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from contracts.runtime.clock import BrokerClock

EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
START = 1_767_225_600.0


def shown(seconds: float) -> datetime:
    return EPOCH + timedelta(seconds=seconds)


class Machine:
    """A host and a broker whose clocks run apart by a constant rate."""

    def __init__(self, drift: float = 0.0) -> None:
        self.mono = 0.0
        self.drift = drift
        self.leapt_s = 0.0
        self.clock = BrokerClock(lambda: self.mono)

    @property
    def truth(self) -> float:
        return START + self.leapt_s + self.mono * (1 + self.drift)

    def wait(self, seconds: float) -> None:
        self.mono += seconds

    def sample(self, there_s: float, back_s: float, *, both_ends: bool = True) -> None:
        sent = self.mono
        self.wait(there_s)
        ts = shown(self.truth)
        self.wait(back_s)
        self.clock.sample(ts, sent=sent if both_ends else None, received=self.mono)


latencies = st.floats(0, 0.01) | st.floats(0, 2)


@settings(deadline=None, max_examples=200)
@given(
    st.floats(-499e-6, 499e-6),
    st.lists(
        st.tuples(st.floats(0, 5) | st.floats(0, 4000), latencies, latencies, st.booleans()), min_size=1, max_size=20
    ),
    st.floats(0, 4000),
)
def test_the_bracket_contains_the_truth(
    drift: float, samples: list[tuple[float, float, float, bool]], after_s: float
) -> None:
    """Whatever the latencies, and with clocks that drift by up to 500 ppm."""
    machine = Machine(drift)
    for wait_s, there_s, back_s, both_ends in samples:
        machine.wait(wait_s)
        machine.sample(there_s, back_s, both_ends=both_ends)
        assert machine.clock.low() <= machine.truth <= machine.clock.high()
        if both_ends:  # never worse than this sample alone
            assert machine.clock.high() - machine.clock.low() <= (there_s + back_s) * 1.001 + 1e-5
    machine.wait(after_s)
    assert machine.clock.low() <= machine.truth <= machine.clock.high()
    assert machine.clock.known == any(both for *_, both in samples)


def test_unknown_until_a_sample_with_both_ends() -> None:
    """A broadcast alone gives the lower end."""
    machine = Machine()
    assert not machine.clock.known
    machine.sample(0.1, 0.1, both_ends=False)
    assert not machine.clock.known
    assert machine.clock.low() == pytest.approx(START + 0.1, abs=1e-5)
    assert machine.clock.high() == math.inf
    machine.sample(0.1, 0.1)
    assert machine.clock.known


def test_samples_narrow_it() -> None:
    """A slow way there bounds one end, a slow way back the other: together they are better than each."""
    machine = Machine()
    machine.sample(0.0, 0.5)
    machine.sample(0.5, 0.0)
    assert machine.clock.high() - machine.clock.low() < 0.002


def test_age_widens_it() -> None:
    """By 500 ppm on either side."""
    machine = Machine()
    machine.sample(0.0, 0.0)
    machine.wait(100.0)
    assert machine.clock.high() - machine.clock.low() == pytest.approx(0.1, abs=1e-4)


@pytest.mark.parametrize("leap_s", [-3600.0, -1.0, 1.0, 3600.0])
def test_a_contradiction_starts_anew(leap_s: float) -> None:
    """Another leader's clock is what counts from now on; the old bracket has no part in it."""
    machine = Machine()
    machine.sample(0.01, 0.01)
    machine.leapt_s = leap_s
    machine.wait(1.0)
    machine.sample(0.2, 0.2)
    assert machine.clock.low() <= machine.truth <= machine.clock.high()
    assert machine.clock.high() - machine.clock.low() == pytest.approx(0.4, abs=3e-4)


def test_a_contradiction_by_a_broadcast_leaves_the_upper_end_open() -> None:
    """Unknown is better than wrong."""
    machine = Machine()
    machine.sample(0.01, 0.01)
    machine.leapt_s = 60.0
    machine.sample(0.01, 0.01, both_ends=False)
    assert not machine.clock.known
    assert machine.clock.low() <= machine.truth


def test_now_is_not_after_the_truth() -> None:
    """Who waits for a time by it never begins before."""
    machine = Machine()
    machine.sample(0.003, 0.004)
    assert machine.clock.now() <= shown(machine.truth)
    assert machine.clock.now().tzinfo is UTC
