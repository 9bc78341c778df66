"""The laws of the rate limits hold in every window, whoever asks, whatever the clock, however the tokens are used."""

import bisect
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from email_svc.policies.limit import (
    HORIZON_S,
    MINUTE_S,
    USE_WITHIN_S,
    Algorithm,
    Policy,
    SlidingWindow,
    Token,
    per_day,
    policy,
    recovered,
    throttle,
)

START = 1_767_225_600.0
ALGORITHMS: tuple[Algorithm, ...] = ("token_bucket", "leaky_bucket", "fixed_window", "sliding_window")
BOUNDED = settings(deadline=None, max_examples=120)

steps_s = st.one_of(
    st.just(0.0),
    st.floats(0, 0.05),
    st.floats(0, 2),
    st.floats(0, 70),
    st.sampled_from([0.1, 1.0, 59.0, 60.0, 61.0]),
)
errors_s = st.one_of(st.just(0.0), st.floats(0, 0.005), st.floats(0, 1.5))
asks = st.tuples(steps_s, errors_s, st.integers(1, 64), st.sampled_from([1.0, 1.0, 0.7, 0.5, 0.05]))
"""(time passing, how much `now` is ahead of the truth for this taker, tokens wanted, throttled to)"""


def most_in_a_window(tokens: list[Token], law: Any) -> None:
    """Calls `law(window_s, uses)` with the most uses that each window can have, if each token is used at its worst.

    The worst windows begin just before a token is void and end as another becomes due.
    """
    dues = sorted(token.due for token in tokens)
    voids = sorted(token.void for token in tokens)
    for begins in voids:
        voided = bisect.bisect_left(voids, begins)
        for ends in dues:
            if (uses := bisect.bisect_right(dues, ends) - voided) > 0:
                law(max(0.0, ends - begins), uses)


def taken(algorithm: Algorithm, rpm: float, burst: int, pattern: list[tuple[float, float, int, float]]) -> list[Token]:
    """All tokens of a shared state from which takers with clocks of their own take."""
    state, truth, found = policy(algorithm, rpm, burst).unused(START), START, list[Token]()
    for step_s, error_s, n, factor in pattern:
        truth += step_s
        now = truth + error_s
        state, tokens = policy(algorithm, rpm, burst, factor).take(state, now, n)
        assert len(tokens) <= n
        assert all(now <= token.due <= now + HORIZON_S for token in tokens)
        assert all(token.due < token.void <= token.due + USE_WITHIN_S for token in tokens)
        assert tokens == sorted(tokens, key=lambda token: token.due)
        found += tokens
    return found


@BOUNDED
@given(st.sampled_from(["token_bucket", "leaky_bucket"]), st.floats(1, 6000), st.integers(1, 30), st.lists(asks))
def test_buckets_never_give_more(algorithm: Algorithm, rpm: float, burst: int, pattern: Any) -> None:
    """<= rate (w + 0.1 s) + burst in any window of length w, throttling coming and going; leaky: burst 1."""
    tokens = taken(algorithm, rpm, burst, pattern)
    allowed = burst if algorithm == "token_bucket" else 1

    def law(window_s: float, uses: int) -> None:
        assert uses <= rpm / 60 * (window_s + USE_WITHIN_S) * (1 + 1e-9) + allowed + 1e-6

    most_in_a_window(tokens, law)


@BOUNDED
@given(st.floats(1, 200), st.lists(asks))
def test_fixed_window_never_gives_more(rpm: float, pattern: Any) -> None:
    """<= N in each aligned minute, however late each token is used."""
    tokens = taken("fixed_window", rpm, 1, pattern)
    counts: dict[int, int] = {}
    for token in tokens:
        minute = int(token.due // MINUTE_S)
        assert token.void <= (minute + 1) * MINUTE_S
        counts[minute] = counts.get(minute, 0) + 1
    assert max(counts.values(), default=0) <= int(rpm)


def in_any(window_s: float, tokens: list[Token]) -> int:
    """The most uses in any window of that length."""
    dues = sorted(token.due for token in tokens)
    voids = sorted(token.void for token in tokens)
    return max(
        (bisect.bisect_left(dues, void + window_s) - bisect.bisect_left(voids, void) for void in voids), default=0
    )


@BOUNDED
@given(st.floats(1, 200), st.lists(asks))
def test_sliding_window_never_gives_more(rpm: float, pattern: Any) -> None:
    """<= N in any 60 s."""
    assert in_any(60.0, taken("sliding_window", rpm, 1, pattern)) <= int(rpm)


@BOUNDED
@given(
    st.integers(1, 100),
    st.lists(st.tuples(st.floats(0, 20_000) | st.sampled_from([0.0, 1.0, 3600.0, 86_400.0]), st.integers(1, 64))),
)
def test_per_day_never_gives_more(limit: int, pattern: list[tuple[float, int]]) -> None:
    """<= N in any 24 h."""
    law, now, tokens = per_day(limit), START, list[Token]()
    state = law.unused(now)
    for step_s, n in pattern:
        now += step_s
        state, more = law.take(state, now, n)
        tokens += more
    assert in_any(86_400.0, tokens) <= limit


@BOUNDED
@given(st.sampled_from(ALGORITHMS), st.floats(1, 600), st.integers(1, 20), st.lists(asks, min_size=1), errors_s)
def test_available_agrees_with_take(algorithm: Algorithm, rpm: float, burst: int, pattern: Any, error_s: float) -> None:
    """As many tokens are due now as it says, and the next one is due when it says."""
    state, now = policy(algorithm, rpm, burst).unused(START), START
    for step_s, error_before_s, n, factor in pattern:
        now += step_s
        state, _ = policy(algorithm, rpm, burst, factor).take(state, now + error_before_s, n)
    law, now = policy(algorithm, rpm, burst, pattern[-1][3]), now + error_s
    left, next_due = law.available(state, now)
    _, tokens = law.take(state, now, 700)
    assert [token.due for token in tokens].count(now) == left
    if next_due <= now + HORIZON_S:
        assert tokens[0].due == next_due
        assert (left > 0) == (next_due == now)
    else:
        assert tokens == []
        # And then it is there.
        assert law.take(state, next_due, 1)[1][0].due == next_due


@BOUNDED
@given(st.sampled_from(ALGORITHMS), st.floats(1, 600), st.integers(1, 20), st.lists(asks, min_size=1))
def test_time_running_backwards_never_gives_more(algorithm: Algorithm, rpm: float, burst: int, pattern: Any) -> None:
    """Whoever asks with an earlier time gets at most what the latest would have got, and never two for one."""
    law = policy(algorithm, rpm, burst)
    state, now = law.unused(START), START
    for step_s, _, n, _ in pattern:
        now += step_s
        state, _ = law.take(state, now, n)
    latest = len(law.take(state, now, 700)[1])
    for back_s in (0.001, 0.5, 30.0, 7200.0):
        assert len(law.take(state, now - back_s, 700)[1]) <= latest


def asked_often(law: Policy[Any], seconds: float, every_s: float, n: int = 64) -> int:
    """Tokens usable within so many seconds after idling, by three takers in turn, up to 10 ms ahead of the truth."""
    state, count, asked = law.unused(START), 0, 0
    while (truth := START + asked * every_s) < START + seconds:
        state, tokens = law.take(state, truth + (0.0, 0.004, 0.01)[asked % 3], n)
        count += sum(token.due < START + seconds for token in tokens)
        asked += 1
    return count


@pytest.mark.parametrize("rpm", [1, 7, 60, 600, 90_000])
@pytest.mark.parametrize("algorithm", ["token_bucket", "leaky_bucket"])
def test_a_bucket_gives_nearly_the_full_rate(algorithm: Algorithm, rpm: float) -> None:
    """>= 95 % of it when asked often, from a mail a minute to 1,500 a second."""
    seconds = max(20.0, 1800 / rpm * 60 if rpm < 60 else 20.0)
    got = asked_often(policy(algorithm, rpm, 10), seconds, 0.02 if rpm > 1000 else 0.25)
    assert got >= 0.95 * rpm / 60 * seconds


@pytest.mark.parametrize(("algorithm", "minutes"), [("fixed_window", 5), ("sliding_window", 20)])
@pytest.mark.parametrize("rpm", [1, 60, 600])
def test_windows_give_nearly_the_full_limit(algorithm: Algorithm, minutes: int, rpm: int) -> None:
    """Fixed: all of it each minute. Sliding: all of it each 61 s."""
    got = asked_often(policy(algorithm, rpm, 1), minutes * 60.0, 0.25)
    assert got >= 0.95 * rpm * minutes


def test_per_day_gives_nearly_the_full_limit() -> None:
    """All of it each 25 hours."""
    law: SlidingWindow = per_day(1000)
    assert asked_often(law, 10 * 86_400.0, 60.0) >= 0.95 * 10_000


@BOUNDED
@given(st.floats(1, 6000), st.integers(1, 50))
def test_an_idle_bucket_holds_exactly_its_burst(rpm: float, burst: int) -> None:
    """No more, however long it idled."""
    law = policy("token_bucket", rpm, burst)
    state, _ = law.take(law.unused(START), START, 64)
    for later in (START + 1e5, START + 1e7):
        assert law.available(state, later) == (burst, later)


@BOUNDED
@given(st.lists(st.booleans() | st.floats(-10, 1e6)))
def test_the_factor_stays_within_its_bounds(pattern: list[Any]) -> None:
    """Any mixture of throttling and time."""
    factor = 1.0
    for what in pattern:
        before = factor
        factor = throttle(factor) if isinstance(what, bool) else recovered(factor, what)
        assert 0.05 <= factor <= 1.0
        assert factor <= before if isinstance(what, bool) else factor >= before
