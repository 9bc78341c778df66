"""How long to wait before the next try: the schedule, with the random draw as an argument.

    path failures:     draw · min(30 s, 100 ms · 2^(n - 1))      full jitter
    message failures:  the scheduled delay ± 10 %

Source: M. Brooker, Exponential Backoff And Jitter (AWS Architecture Blog, 2015).
"""

BASE_S = 0.1
CAP_S = 30.0


def backoff_s(failures: int, draw: float) -> float:
    """Seconds until the next try after `failures` (1 or more) path failures; `draw` in [0, 1). Within [0, 30]."""
    # The exponent is clamped: 2 ** 10**9 is not a number anyone waits for.
    return draw * min(CAP_S, BASE_S * 2.0 ** min(failures - 1, 30))


def jittered(delay_s: float, draw: float) -> float:
    """A scheduled delay spread by ± 10 %; `draw` in [0, 1)."""
    return delay_s * (0.9 + 0.2 * draw)
