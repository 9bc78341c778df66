"""The rate limits by example: state, time and number in; tokens out."""

import itertools
import math
from typing import Any

import pytest

from email_svc.policies.limit import (
    HORIZON_S,
    MINUTE_S,
    RECOVER_PER_S,
    THROTTLE_LEAST,
    USE_WITHIN_S,
    Algorithm,
    FixedWindow,
    Gcra,
    Policy,
    SlidingWindow,
    Slots,
    Token,
    TokenBucket,
    Window,
    per_day,
    policy,
    recovered,
    throttle,
)

NOW = 1_767_225_600.0  # 2026-01-01, the beginning of a minute, an hour and a day
ALGORITHMS: tuple[Algorithm, ...] = ("token_bucket", "leaky_bucket", "fixed_window", "sliding_window")


def dues(law: Policy[Any], state: Any, now: float, n: int) -> tuple[Any, list[float]]:
    """The new state, and when the tokens are due, in seconds from NOW."""
    state, tokens = law.take(state, now, n)
    return state, [token.due - NOW for token in tokens]


@pytest.mark.parametrize(
    ("tat_s", "n", "expected"),
    [
        (0.0, 2, [0, 0]),
        (0.0, 9, [0, 0, 0, 0.5, 1.0]),  # the burst of 3, then one each half second, a second ahead at most
        (1.5, 9, [0.5, 1.0]),  # used up
        (2.0, 9, [1.0]),
        (2.5, 9, []),
        (-50.0, 4, [0, 0, 0, 0.5]),  # idling gives the burst and no more
        (0.5, 2, [0, 0]),  # one is used
    ],
)
def test_token_bucket_table(tat_s: float, n: int, expected: list[float]) -> None:
    """Two a second, burst 3: (TAT before, asked for, due)."""
    state, found = dues(TokenBucket(2.0, 3), Gcra(NOW + tat_s), NOW, n)
    assert found == expected
    assert state == Gcra(max(NOW, NOW + tat_s) + len(expected) * 0.5 if expected else NOW + tat_s)


@pytest.mark.parametrize(
    ("before", "at_s", "n", "expected"),
    [
        (Window(int(NOW // 60), 0), 10.0, 9, [10, 10, 10]),
        (Window(int(NOW // 60), 2), 10.0, 9, [10]),
        (Window(int(NOW // 60), 3), 10.0, 9, []),
        (Window(int(NOW // 60), 3), 59.5, 9, [60, 60, 60]),  # the next minute is less than a second ahead
        (Window(int(NOW // 60), 3), 60.0, 2, [60, 60]),
        (Window(int(NOW // 60) - 7, 3), 0.0, 9, [0, 0, 0]),
        (Window(int(NOW // 60) + 1, 1), 59.5, 9, [60, 60]),  # somebody has taken from it already
        (Window(int(NOW // 60) + 1, 1), 30.0, 9, []),  # our clock runs behind theirs
    ],
)
def test_fixed_window_table(before: Window, at_s: float, n: int, expected: list[float]) -> None:
    """Three a minute."""
    assert dues(FixedWindow(3), before, NOW + at_s, n)[1] == expected


@pytest.mark.parametrize(
    ("counts", "at_s", "n", "expected"),
    [
        ((0,), 0.25, 9, [0.25, 0.25, 0.25]),
        ((2,), 0.25, 9, [0.25]),
        ((3,), 0.25, 9, []),
        ((3,), 60.0, 9, [61, 61, 61]),  # one more slot is counted than the window has
        ((3,), 59.5, 9, []),
        ((3,), 61.0, 9, [61, 61, 61]),
        ((1, 2), 60.5, 9, [61]),  # the one of slot 0 leaves the counts with slot 61
        ((3,), 1e6, 2, [1e6, 1e6]),
        ((3,), -5.0, 2, []),  # our clock runs behind
    ],
)
def test_sliding_window_table(counts: tuple[int, ...], at_s: float, n: int, expected: list[float]) -> None:
    """Three in any 60 s; `counts` end with the slot of NOW (or the one after it)."""
    before = Slots(int(NOW) + len(counts) - 1, counts)
    assert dues(SlidingWindow(3), before, NOW + at_s, n)[1] == expected


def test_tokens_of_windows_are_void_at_the_end_of_their_slot() -> None:
    """So a late use cannot fall into the next one."""
    _, (fixed,) = FixedWindow(3).take(Window(0, 0), NOW + 59.95, 1)
    _, (sliding,) = SlidingWindow(3).take(Slots(0, (0,)), NOW + 0.95, 1)
    _, (bucket,) = TokenBucket(1.0, 1).take(Gcra(0.0), NOW + 0.95, 1)
    assert fixed.void == NOW + 60
    assert sliding.void == NOW + 1
    assert bucket.void == NOW + 0.95 + USE_WITHIN_S


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_an_idle_limit_gives_exactly_its_burst(algorithm: Algorithm) -> None:
    """Unused, or idle for two days: the same, and not one more."""
    law = policy(algorithm, 60, 10)
    burst = {"token_bucket": 10, "leaky_bucket": 1}.get(algorithm, 60)
    state, _ = law.take(law.unused(NOW), NOW, 500)
    for now, before in ((NOW, law.unused(NOW)), (NOW + 172_800, state)):
        assert law.available(before, now) == (burst, now)
        assert [t.due for t in law.take(before, now, 500)[1]].count(now) == burst


@pytest.mark.parametrize(
    ("algorithm", "rpm", "first_s"),
    [
        ("token_bucket", 60, 1.0),
        ("token_bucket", 6, 10.0),
        ("leaky_bucket", 6, 10.0),
        ("fixed_window", 60, 60.0),
        ("sliding_window", 60, 61.0),
    ],
)
def test_a_changed_algorithm_starts_as_if_used_up(algorithm: Algorithm, rpm: float, first_s: float) -> None:
    """Nothing for as long as a full limit takes to come back; then it does come."""
    law = policy(algorithm, rpm, 10)
    state = law.used_up(NOW)
    assert law.available(state, NOW) == (0, NOW + first_s)
    before = NOW + first_s - HORIZON_S
    assert [t.due for t in law.take(state, before, 1)[1]] == [NOW + first_s]
    assert law.take(state, math.nextafter(before, 0) - 0.001, 1)[1] == []


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_time_running_backwards_gives_nothing_more(algorithm: Algorithm) -> None:
    """Everything is taken at NOW; an earlier time finds nothing."""
    law = policy(algorithm, 60, 10)
    state, taken = law.take(law.unused(NOW), NOW, 500)
    for back_s in (0.0, 0.5, 5.0, 3600.0):
        state, again = law.take(state, NOW - back_s, 500)
        assert again == []
    assert len(taken) <= 71


@pytest.mark.parametrize(
    ("state", "at_s", "left", "next_s"),
    [
        (Slots(int(NOW), (0,)), 0.5, 3, 0.5),
        (Slots(int(NOW), (2,)), 0.5, 1, 0.5),
        (Slots(int(NOW), (3,)), 0.5, 0, 61.0),
        (Slots(int(NOW) + 1, (2,)), 0.5, 0, 1.0),  # the next slot has been taken from
        (Slots(int(NOW) + 1, (3,)), 0.5, 0, 62.0),  # and there is nothing left in it
        (Slots(int(NOW), (9,)), 0.5, 0, 61.0),  # throttled since
    ],
)
def test_sliding_window_tells_what_is_available(state: Slots, at_s: float, left: int, next_s: float) -> None:
    """Tokens due now, and when the next one is."""
    assert SlidingWindow(3).available(state, NOW + at_s) == (left, NOW + next_s)


@pytest.mark.parametrize(
    ("state", "at_s", "left", "next_s"),
    [
        (Window(int(NOW // 60), 0), 10.0, 3, 10.0),
        (Window(int(NOW // 60), 2), 10.0, 1, 10.0),
        (Window(int(NOW // 60), 3), 10.0, 0, 60.0),
        (Window(int(NOW // 60), 9), 10.0, 0, 60.0),  # throttled since
        (Window(int(NOW // 60) - 1, 3), 10.0, 3, 10.0),
        (Window(int(NOW // 60) + 1, 2), 59.5, 0, 60.0),  # the next minute has been taken from
        (Window(int(NOW // 60) + 1, 3), 59.5, 0, 120.0),  # and there is nothing left in it
        (Window(int(NOW // 60) + 1, 2), 60.0, 1, 60.0),
    ],
)
def test_fixed_window_tells_what_is_available(state: Window, at_s: float, left: int, next_s: float) -> None:
    """Tokens due now, and when the next one is."""
    assert FixedWindow(3).available(state, NOW + at_s) == (left, NOW + next_s)


def test_per_day_tells_what_is_available() -> None:
    """In slots of an hour."""
    law, hour = per_day(3), int(NOW // 3600)
    assert law == SlidingWindow(3, 3600.0, 24)
    assert law.available(Slots(hour, (2,)), NOW + 10) == (1, NOW + 10)
    assert law.available(Slots(hour, (3,)), NOW + 10) == (0, NOW + 25 * 3600)
    assert law.available(Slots(hour + 1, (2,)), NOW + 10) == (0, NOW + 3600)


def test_per_day_gives_from_the_next_hour_where_that_has_begun() -> None:
    """A token of it is due with it, and one of this hour is void at its end."""
    law, hour = per_day(3), int(NOW // 3600)
    assert law.take(Slots(hour + 1, (2,)), NOW + 3599.5, 9)[1] == [Token(NOW + 3600, NOW + 3600 + USE_WITHIN_S)]
    assert law.take(Slots(hour + 1, (2,)), NOW + 10, 9)[1] == []
    assert law.take(Slots(hour, (2,)), NOW + 3599.95, 9)[1] == [Token(NOW + 3599.95, NOW + 3600)]


def test_per_day_is_a_rolling_day() -> None:
    """10 at 00:00; the hour that ends the 25th counts again gives 10, none before."""
    law = per_day(10)
    state, tokens = law.take(law.unused(NOW), NOW, 99)
    assert len(tokens) == 10
    for hour in range(1, 25):
        state, tokens = law.take(state, NOW + 3600 * hour, 99)
        assert tokens == []
    assert len(law.take(state, NOW + 3600 * 25, 99)[1]) == 10


def test_throttling_a_used_up_bucket_gives_nothing() -> None:
    """10 of 10 are used; at 0.7 of the rate there is still nothing at once, and the next comes no earlier."""
    full, slow = policy("token_bucket", 60, 10), policy("token_bucket", 60, 10, 0.7)
    state, tokens = full.take(full.unused(NOW), NOW, 10)
    assert [t.due for t in tokens] == [NOW] * 10
    assert slow.available(state, NOW) == (0, NOW + 1.0)


def test_the_laws_constants_are_those_of_the_docstring() -> None:
    """A token is void after 100 ms, given a second ahead; the least factor is a twentieth."""
    assert (HORIZON_S, USE_WITHIN_S, MINUTE_S, THROTTLE_LEAST, RECOVER_PER_S) == (1.0, 0.1, 60.0, 0.05, 0.005)


def test_throttle_and_recovery_are_bounded() -> None:
    """Never below 0.05, never above 1; a minute from 0.7 back to 1."""
    factors = list(itertools.accumulate(range(100), lambda factor, _: throttle(factor), initial=1.0))
    assert factors[1] == 0.7
    assert min(factors) == factors[-1] == THROTTLE_LEAST
    assert recovered(0.7, 60.0) == pytest.approx(1.0)
    assert recovered(0.7, 1e12) == 1.0
    assert recovered(0.7, -5.0) == 0.7
    assert recovered(0.7, 10.0) == pytest.approx(0.7 + 10 * RECOVER_PER_S)


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: TokenBucket(0.0, 1), r"rate_per_s=0\.0: expected above 0"),
        (lambda: TokenBucket(-1.0, 1), r"rate_per_s=-1\.0: expected above 0"),
        (lambda: TokenBucket(math.nan, 1), "rate_per_s=nan: expected above 0"),
        (lambda: TokenBucket(math.inf, 1), "rate_per_s=inf: expected above 0"),
        (lambda: TokenBucket(1.0, 0), "burst=0: expected 1 or more"),
        (lambda: TokenBucket(1.0, 1, 0.0), r"factor=0\.0: expected above 0"),
        (lambda: TokenBucket(1.0, 1, 1.5), r"factor=1\.5: expected above 0, and 1 at most"),
        (lambda: FixedWindow(0), "limit=0: expected 1 or more"),
        (lambda: SlidingWindow(0), "limit=0: expected 1 or more"),
        (lambda: per_day(-3), "limit=-3: expected 1 or more"),
        (lambda: policy("fixed_window", 0.5, 1), r"rpm=0\.5: expected 1 or more with fixed_window"),
        (lambda: policy("sliding_window", 0.5, 1), r"rpm=0\.5: expected 1 or more with sliding_window"),
        (lambda: policy("token_bucket", 0, 1), "rpm=0: expected above 0 with token_bucket"),
        (lambda: policy("fixed_window", math.inf, 1), "rpm=inf: expected 1 or more with fixed_window"),
        (lambda: policy("leaky_bucket", math.nan, 1), "rpm=nan: expected above 0 with leaky_bucket"),
    ],
)
def test_nonsense_is_refused(make: Any, said: str) -> None:
    """With value and bound."""
    with pytest.raises(ValueError, match=said):
        make()
