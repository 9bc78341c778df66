"""A table for the backoff."""

import pytest

from email_svc.policies.backoff import BASE_S, CAP_S, backoff_s, jittered


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
