"""Tables for the policies: the token bucket and the backoff."""

import math

import pytest

from email_svc.policies.backoff import BASE_S, CAP_S, backoff_s, jittered
from email_svc.policies.token_bucket import TokenBucket

# (now, due) for a bucket of 2 tokens a second, burst 3
TAKES = [
    (10.0, 10.0),  # the burst
    (10.0, 10.0),
    (10.0, 10.0),
    (10.0, 10.5),  # then one each half second
    (10.0, 11.0),
    (10.9, 11.5),
    (12.0, 12.0),  # asked when it is due: no wait
    (9.0, 12.5),  # time runs backwards: only later
    (100.0, 100.0),  # idle: a full burst again, no more
    (100.0, 100.0),
    (100.0, 100.0),
    (100.0, 100.5),
]


def test_bucket_table() -> None:
    """Tokens are computed when asked; nothing ticks."""
    bucket, tat = TokenBucket(2.0, 3), -math.inf
    for row, (now, expected) in enumerate(TAKES):
        tat, due = bucket.take(tat, now)
        assert due == pytest.approx(expected), row


@pytest.mark.parametrize(
    ("rate", "burst", "words"),
    [
        (0.0, 1, "rate_per_s=0.0.*above 0"),
        (-1.0, 1, "rate_per_s=-1.0"),
        (math.nan, 1, "rate_per_s=nan"),
        (math.inf, 1, "rate_per_s=inf"),
        (1.0, 0, "burst=0.*1 or more"),
        (1.0, -5, "burst=-5"),
    ],
)
def test_nonsense_bucket_is_refused(rate: float, burst: int, words: str) -> None:
    """By a ValueError with the value and the bound."""
    with pytest.raises(ValueError, match=words):
        TokenBucket(rate, burst)


@pytest.mark.parametrize(
    ("failures", "most"), [(1, 0.1), (2, 0.2), (3, 0.4), (9, 25.6), (10, 30.0), (1000, 30.0), (10**9, 30.0)]
)
def test_backoff_doubles_up_to_its_cap(failures: int, most: float) -> None:
    """Full jitter: anything from 0 to the bound."""
    assert backoff_s(failures, 1.0) == pytest.approx(most)
    assert backoff_s(failures, 0.5) == pytest.approx(most / 2)
    assert backoff_s(failures, 0.0) == 0.0


def test_backoff_says_what_the_readme_says() -> None:
    assert (BASE_S, CAP_S) == (0.1, 30.0)


@pytest.mark.parametrize(("draw", "factor"), [(0.0, 0.9), (0.5, 1.0), (1.0, 1.1)])
def test_jitter_is_a_tenth(draw: float, factor: float) -> None:
    assert jittered(60.0, draw) == pytest.approx(60.0 * factor)
