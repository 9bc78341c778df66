"""The broker's clock, as far as it can be known here: the one clock that all processes share.

Each sample says that the broker's clock showed `ts` at some moment between two readings of our monotonic clock:

    ts - mono_received  <=  offset  <=  ts - mono_sent        now_low = mono + low,  now_high = mono + high

Samples narrow the bracket (± 0.25 ms within 10 s on one host) and age widens it, for clocks drift; a sample that
contradicts it, as after a change of leader, starts it anew. A wrong host clock has no part in it, and a wide bracket
only delays.
Source: F. Cristian, Probabilistic clock synchronization (1989).
"""

import math
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_DRIFT = 0.0005
"""Seconds a second: what NTP may slew a clock by."""
_ROUNDING_S = 2e-6
"""A datetime has whole microseconds, and a float of today's seconds a quarter of one."""


class BrokerClock:
    """Unknown until a sample with both ends; then `low()` is not after the truth, and `high()` not before it."""

    def __init__(self, monotonic: Callable[[], float] = time.monotonic) -> None:
        self._monotonic = monotonic
        self._low, self._low_at = -math.inf, 0.0
        self._high, self._high_at = math.inf, 0.0

    @property
    def known(self) -> bool:
        """Whether both ends are known."""
        return math.isfinite(self._low) and math.isfinite(self._high)

    def sample(self, ts: datetime, *, sent: float | None, received: float) -> None:
        """The broker showed `ts` after `sent` (None: not known) and before `received`, monotonic seconds."""
        at = (ts - _EPOCH).total_seconds()
        low = at - received - _ROUNDING_S
        # `sent` may be the moment that was shown: then the upper end has aged since.
        high = math.inf if sent is None else at - sent + _ROUNDING_S + _DRIFT * (received - sent)
        known_low, known_high = self._bracket(received)
        if low > known_high or high < known_low:
            self._low, self._high = low, high
            self._low_at = self._high_at = received
            return
        if low >= known_low:
            self._low, self._low_at = low, received
        if high <= known_high:
            self._high, self._high_at = high, received

    def low(self) -> float:
        """Seconds since 1970 on the broker's clock: at least so many."""
        now = self._monotonic()
        return now + self._bracket(now)[0]

    def high(self) -> float:
        """Seconds since 1970 on the broker's clock: at most so many."""
        now = self._monotonic()
        return now + self._bracket(now)[1]

    def now(self) -> datetime:
        """The lower end as a time: who waits for a time by it never begins before."""
        return _EPOCH + timedelta(seconds=self.low())

    def _bracket(self, now: float) -> tuple[float, float]:
        return self._low - _DRIFT * (now - self._low_at), self._high + _DRIFT * (now - self._high_at)
