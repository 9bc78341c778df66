"""The token bucket, as one timestamp (GCRA): nothing ticks, tokens are computed when asked.

    T = 1 / rate;  TAT' = max(now, TAT) + T;  a mail may leave at TAT' - burst · T, or now if that is past

An idle bucket holds `burst` tokens. In any window of length w at most rate · w + burst tokens fall due.
Source: ATM Forum, Traffic Management 4.0, Generic Cell Rate Algorithm.
"""

import msgspec


class TokenBucket(msgspec.Struct, frozen=True):
    """The law: `rate_per_s` above 0, `burst` at least 1."""

    rate_per_s: float
    burst: int

    def __post_init__(self) -> None:
        if not self.rate_per_s > 0:
            raise ValueError(f"rate_per_s={self.rate_per_s}: expected above 0")
        if self.burst < 1:
            raise ValueError(f"burst={self.burst}: expected 1 or more")

    def take(self, tat: float, now: float) -> tuple[float, float]:
        """Takes one token: the new TAT, and the time at which it is due (`now` or later).

        Args:
            tat: the state, a time on the clock of `now`; `-inf` for a full bucket.
            now: seconds on any clock that does not jump. Running backwards only delays.
        """
        interval_s = 1.0 / self.rate_per_s
        tat = max(now, tat) + interval_s
        return tat, max(now, tat - self.burst * interval_s)
