"""The drill's plan of faults: a pure function of its seed, of every kind, and all is mended at the end."""

import pytest

from tests.drill.faults import FAULTS
from tests.drill.plan import CLUSTER_KINDS, KINDS, QUIET_S, plan


def test_same_seed_same_plan() -> None:
    """A drill can be repeated."""
    assert plan(7, 20.0) == plan(7, 20.0)
    assert plan(7, 20.0) != plan(8, 20.0)
    assert plan(7, 20.0, cluster=True) == plan(7, 20.0, cluster=True)


@pytest.mark.parametrize("cluster", [False, True])
def test_every_kind_occurs_in_a_long_plan(cluster: bool) -> None:
    """Whatever the seed; and each can be carried out."""
    wanted = KINDS.keys() | (CLUSTER_KINDS.keys() if cluster else set())
    for seed in range(20):
        assert {step.kind for step in plan(seed, 200.0, cluster=cluster)} == wanted
    assert wanted <= FAULTS.keys()


def test_every_target_is_hit_sooner_or_later() -> None:
    """Both replicas, every link."""
    for kind, targets in KINDS.items():
        hit = {step.target for seed in range(20) for step in plan(seed, 600.0) if step.kind == kind}
        assert hit == set(targets), kind


@pytest.mark.parametrize("seconds", [5.0, 20.0, 200.0, 1800.0])
def test_all_is_mended_before_the_end(seconds: float) -> None:
    """And quiet at the beginning; in order of time."""
    for seed in range(50):
        steps = plan(seed, seconds)
        assert [step.at for step in steps] == sorted(step.at for step in steps)
        for step in steps:
            assert step.at >= QUIET_S
            assert step.at + step.seconds <= seconds - QUIET_S


def test_nothing_is_broken_twice_at_once() -> None:
    """A thing that is broken already is left alone."""
    for seed in range(50):
        steps = plan(seed, 200.0, cluster=True)
        for i, step in enumerate(steps):
            for later in steps[i + 1 :]:
                assert later.target != step.target or later.at >= step.at + step.seconds


def test_there_are_enough() -> None:
    """Ten and more in the twenty seconds of a short drill; sixty and more in CI's."""
    assert all(len(plan(seed, 20.0)) >= 10 for seed in range(200))
    assert all(len(plan(seed, 170.0)) >= 60 for seed in range(100))
