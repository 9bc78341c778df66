"""Laws of the policies, for everything."""

import math
from itertools import accumulate

from hypothesis import given
from hypothesis import strategies as st

from email_svc.policies.backoff import CAP_S, backoff_s, jittered
from email_svc.policies.token_bucket import TokenBucket

draws = st.floats(0, 1, exclude_max=True)
buckets = st.builds(TokenBucket, st.floats(0.01, 1000), st.integers(1, 50))
starts = st.floats(0, 1e6)


def dues(bucket: TokenBucket, times: list[float]) -> list[float]:
    """When the tokens asked for at these times fall due."""
    tat, found = -math.inf, []
    for now in times:
        tat, due = bucket.take(tat, now)
        found.append(due)
    return found


@given(st.integers(1, 10**9), draws)
def test_backoff_is_within_its_bounds(failures: int, draw: float) -> None:
    assert 0 <= backoff_s(failures, draw) <= CAP_S


@given(st.integers(1, 10**6), draws)
def test_backoff_never_shrinks(failures: int, draw: float) -> None:
    """One more failure, the same luck: no shorter a wait."""
    assert backoff_s(failures + 1, draw) >= backoff_s(failures, draw)


@given(st.floats(0.001, 1e6), draws)
def test_jitter_is_within_a_tenth(delay_s: float, draw: float) -> None:
    assert 0.9 * delay_s <= jittered(delay_s, draw) <= 1.1 * delay_s * (1 + 1e-12)


@given(buckets, starts, st.lists(st.floats(-5, 5), max_size=60))
def test_no_window_has_more_than_the_law_allows(bucket: TokenBucket, start: float, steps: list[float]) -> None:
    """At most rate · w + burst due times in every window, whatever the clock does, backwards included."""
    found = sorted(dues(bucket, list(accumulate(steps, initial=start))))
    for i, first in enumerate(found):
        for j in range(i, len(found)):
            # the clock's own resolution, a million seconds after its start, counts too
            assert j - i + 1 <= bucket.rate_per_s * (found[j] - first + 1e-8) + bucket.burst + 1e-6


@given(buckets, starts, st.lists(st.floats(0, 5), max_size=60))
def test_token_is_never_due_before_it_is_asked_for(bucket: TokenBucket, start: float, steps: list[float]) -> None:
    times = list(accumulate(steps, initial=start))
    assert all(due >= now for due, now in zip(dues(bucket, times), times, strict=True))


@given(buckets, starts, st.integers(1, 200))
def test_who_asks_often_gets_the_whole_rate(bucket: TokenBucket, start: float, count: int) -> None:
    """The burst at once, and each further token exactly one interval later: nothing is given away."""
    for n, due in enumerate(dues(bucket, [start] * count)):
        expected = start + max(0, n + 1 - bucket.burst) / bucket.rate_per_s
        assert math.isclose(due, expected, rel_tol=1e-9, abs_tol=1e-6)


@given(buckets, starts, st.floats(0, 1e5), st.integers(1, 100))
def test_idle_bucket_holds_its_burst_and_no_more(bucket: TokenBucket, start: float, idle_s: float, before: int) -> None:
    """However long it was idle."""
    tat = -math.inf
    for _ in range(before):
        tat, _ = bucket.take(tat, start)
    later = max(start, tat) + idle_s
    at_once = 0
    while True:
        tat, due = bucket.take(tat, later)
        if due > later + 1e-6:
            break
        at_once += 1
        assert at_once <= bucket.burst + bucket.rate_per_s * 1e-5 + 1
    assert at_once >= bucket.burst


@given(buckets, starts, st.floats(0, 1e4))
def test_time_that_runs_backwards_only_delays(bucket: TokenBucket, start: float, back_s: float) -> None:
    """The state never goes back, and no token falls due sooner for it."""
    tat, _ = bucket.take(-math.inf, start)
    forward, due = bucket.take(tat, start)
    after_jump, due_after = bucket.take(tat, start - back_s)
    assert after_jump == forward
    assert due_after <= due  # on its own clock it is no later than it was
    assert due_after >= tat + (1 - bucket.burst) / bucket.rate_per_s - 1e-6
