"""Laws of the backoff, for everything."""

from hypothesis import given
from hypothesis import strategies as st

from email_svc.policies.backoff import CAP_S, backoff_s, jittered

draws = st.floats(0, 1, exclude_max=True)


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
