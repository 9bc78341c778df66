"""The laws of the rate limit, as pure policies under one protocol. The limit is the whole fleet's: the state is a
record that all workers share, the time is the broker's.

    take(state, now, n) -> (state', tokens)

    law, over any window of length w            state
    token_bucket    <= rate (w + 0.1 s) + burst       one timestamp (GCRA)
    leaky_bucket    <= rate (w + 0.1 s) + 1           the same, with burst 1
    fixed_window    <= N in each aligned minute       the minute, and how many it had
    sliding_window  <= N in any 60 s                  60 + 1 counts of a second
    per day         <= N in any 24 h                  24 + 1 counts of an hour, beside any of these

A token is a time from which one mail may begin; it is void 100 ms later, or at the end of its slot. Only tokens due
within a second are given. What is taken and not used is forfeited: a crash never refunds.
Source: ATM Forum TM 4.0 (GCRA); the rest is counting.
"""

import math
from typing import Any, Literal, Protocol, TypeVar

import msgspec

HORIZON_S = 1.0
USE_WITHIN_S = 0.1
MINUTE_S = 60.0

Algorithm = Literal["token_bucket", "sliding_window", "fixed_window", "leaky_bucket"]


class Token(msgspec.Struct, frozen=True):
    """One mail may begin from `due` on, and before `void`; seconds since 1970 on the broker's clock."""

    due: float
    void: float


class Gcra(msgspec.Struct, frozen=True, tag="gcra"):
    """State of the buckets: the theoretical arrival time of the next mail."""

    tat: float


class Window(msgspec.Struct, frozen=True, tag="window"):
    """State of the fixed window: its number since 1970, and how many mails it has had."""

    number: int
    used: int


class Slots(msgspec.Struct, frozen=True, tag="slots"):
    """State of a sliding window: the number of the newest slot, and the counts up to it, the newest last."""

    newest: int
    counts: tuple[int, ...]


State = Gcra | Window | Slots
S = TypeVar("S", bound=State)


class Policy(Protocol[S]):
    """One law. `now` is not before the broker's true time: a wrong clock only delays."""

    def unused(self, now: float) -> S:
        """The state of a fleet that has sent nothing yet."""

    def used_up(self, now: float) -> S:
        """The state as if everything was just used: where a changed algorithm starts."""

    def take(self, state: S, now: float, n: int) -> tuple[S, list[Token]]:
        """Takes up to `n` tokens that are due within the horizon, in order."""

    def available(self, state: S, now: float) -> tuple[int, float]:
        """Tokens that are due now, and when the next one is."""


class TokenBucket(msgspec.Struct, frozen=True):
    """`rate_per_s` mails a second on average, `burst` at once after idling; throttled to `factor` of the rate.

    The factor lengthens the interval alone. Were the tolerance to grow with it, a bucket that is used up would have
    tokens again by being throttled; so a throttled one has a smaller burst.
    """

    rate_per_s: float
    burst: int
    factor: float = 1.0

    def __post_init__(self) -> None:
        if not 0 < self.rate_per_s < math.inf:
            raise ValueError(f"rate_per_s={self.rate_per_s}: expected above 0")
        if self.burst < 1:
            raise ValueError(f"burst={self.burst}: expected 1 or more")
        if not 0 < self.factor <= 1:
            raise ValueError(f"factor={self.factor}: expected above 0, and 1 at most")

    @property
    def interval_s(self) -> float:
        return _exact(1 / self.rate_per_s / self.factor)

    @property
    def tolerance_s(self) -> float:
        """How far the theoretical arrival time may be ahead."""
        return (self.burst - 1) * _exact(1 / self.rate_per_s)

    def unused(self, now: float) -> Gcra:
        return Gcra(now)

    def used_up(self, now: float) -> Gcra:
        return Gcra(now + self.tolerance_s + self.interval_s)

    def take(self, state: Gcra, now: float, n: int) -> tuple[Gcra, list[Token]]:
        tokens: list[Token] = []
        tat = max(now, state.tat)
        while len(tokens) < n:
            due = max(now, tat - self.tolerance_s)
            if due > now + HORIZON_S:
                break
            tat += self.interval_s
            tokens.append(Token(due, due + USE_WITHIN_S))
        return (Gcra(tat) if tokens else state), tokens

    def available(self, state: Gcra, now: float) -> tuple[int, float]:
        ahead_s = max(now, state.tat) - self.tolerance_s - now
        if ahead_s > 0:
            return 0, now + ahead_s
        return int(-ahead_s // self.interval_s) + 1, now


def _exact(seconds: float) -> float:
    """Not less, in steps of 2^-20 s, about a microsecond: a time of today takes it up exactly, so nothing adds up."""
    return math.ceil(seconds * 2**20) / 2**20


class FixedWindow(msgspec.Struct, frozen=True):
    """`limit` mails in each minute of the clock."""

    limit: int

    def __post_init__(self) -> None:
        if self.limit < 1:
            raise ValueError(f"limit={self.limit}: expected 1 or more a minute")

    def unused(self, now: float) -> Window:
        return Window(int(now // MINUTE_S), 0)

    def used_up(self, now: float) -> Window:
        return Window(int(now // MINUTE_S), self.limit)

    def take(self, state: Window, now: float, n: int) -> tuple[Window, list[Token]]:
        tokens: list[Token] = []
        number, used = self._at(state, now)
        while len(tokens) < n:
            if used >= self.limit:
                number, used = number + 1, 0
            due = max(now, number * MINUTE_S)
            if due > now + HORIZON_S:
                break
            used += 1
            tokens.append(Token(due, min(due + USE_WITHIN_S, (number + 1) * MINUTE_S)))
            state = Window(number, used)
        return state, tokens

    def available(self, state: Window, now: float) -> tuple[int, float]:
        number, used = self._at(state, now)
        if number * MINUTE_S > now:  # the next minute's have been taken from
            return 0, (number + (used >= self.limit)) * MINUTE_S
        return max(0, self.limit - used), now if used < self.limit else (number + 1) * MINUTE_S

    def _at(self, state: Window, now: float) -> tuple[int, int]:
        number = int(now // MINUTE_S)
        return (number, 0) if number > state.number else (state.number, state.used)


class SlidingWindow(msgspec.Struct, frozen=True):
    """`limit` mails in any `slots` slots of `slot_s` seconds: one more slot is counted than the window has."""

    limit: int
    slot_s: float = 1.0
    slots: int = 60

    def __post_init__(self) -> None:
        if self.limit < 1:
            raise ValueError(f"limit={self.limit}: expected 1 or more")

    def unused(self, now: float) -> Slots:
        return Slots(int(now // self.slot_s), (0,))

    def used_up(self, now: float) -> Slots:
        return Slots(int(now // self.slot_s), (self.limit,))

    def take(self, state: Slots, now: float, n: int) -> tuple[Slots, list[Token]]:
        tokens: list[Token] = []
        newest, counts = self._at(state, now)
        while len(tokens) < n:
            while sum(counts) >= self.limit:
                if (newest + 1) * self.slot_s > now + HORIZON_S:
                    return state, tokens
                newest, counts = newest + 1, [*counts, 0][-self.slots - 1 :]
            due = max(now, newest * self.slot_s)
            if due > now + HORIZON_S:
                break
            counts[-1] += 1
            tokens.append(Token(due, min(due + USE_WITHIN_S, (newest + 1) * self.slot_s)))
            state = Slots(newest, tuple(counts))
        return state, tokens

    def available(self, state: Slots, now: float) -> tuple[int, float]:
        newest, counts = self._at(state, now)
        spare = max(0, self.limit - sum(counts))
        if spare and newest * self.slot_s <= now:
            return spare, now
        while sum(counts) >= self.limit:
            newest, counts = newest + 1, [*counts, 0][-self.slots - 1 :]
        return 0, newest * self.slot_s

    def _at(self, state: Slots, now: float) -> tuple[int, list[int]]:
        """The counts up to the slot of `now`, or up to the newest one if that is ahead."""
        number = int(now // self.slot_s)
        ahead = max(0, min(number - state.newest, self.slots + 1))
        counts = ([*state.counts] + [0] * ahead)[-self.slots - 1 :]
        return max(number, state.newest), counts


def policy(algorithm: Algorithm, rpm: float, burst: int, factor: float = 1.0) -> Policy[Any]:
    """The law of a setting: `rpm` mails a minute times `factor` (throttling).

    Raises:
        ValueError: names value and bound.
    """
    least = 1 if algorithm in ("fixed_window", "sliding_window") else 0
    if not least <= rpm < math.inf or rpm == 0:
        raise ValueError(f"rpm={rpm}: expected {'1 or more' if least else 'above 0'} with {algorithm}")
    match algorithm:
        case "token_bucket":
            return TokenBucket(rpm / 60, burst, factor)
        case "leaky_bucket":
            return TokenBucket(rpm / 60, 1, factor)
        case "fixed_window":
            return FixedWindow(max(1, int(rpm * factor)))
        case "sliding_window":
            return SlidingWindow(max(1, int(rpm * factor)))


def per_day(limit: int) -> SlidingWindow:
    """The second law: `limit` mails in any 24 hours."""
    return SlidingWindow(limit, 3600.0, 24)


# --- throttling ----------------------------------------------------------------------------------------------------

THROTTLE_BY = 0.7
THROTTLE_LEAST = 0.05
RECOVER_PER_S = 0.005
"""Additive: from 0.7 back to 1 in a minute."""


def throttle(factor: float) -> float:
    """The factor on the rate after the server has said that we are too fast."""
    return max(THROTTLE_LEAST, factor * THROTTLE_BY)


def recovered(factor: float, since_s: float) -> float:
    """The factor `since_s` seconds after it was set."""
    return min(1.0, factor + RECOVER_PER_S * max(0.0, since_s))
