"""The limiter: a law of email_svc.policies.limit on the fleet's record in bucket CONTROL.

    waiters ──► one taker a process ──compare-and-set──► record ──► tokens, handed out in order

The state is changed before a token is handed out, so a crash forfeits and never refunds. Who cannot reach the record
sends nothing. The broker's clock decides (contracts.runtime.clock): every change is republished with its time.
"""

import asyncio
import contextlib
import math
import time
from collections import deque
from datetime import datetime

import msgspec
import structlog
from nats.aio.msg import Msg

from contracts import subjects as s
from contracts.messages import Codec, Wire
from contracts.runtime import crash
from contracts.runtime.broker import ApiError, Broker, Conflict, Unavailable
from contracts.runtime.clock import BrokerClock
from email_svc import metrics
from email_svc.policies import limit

log = structlog.get_logger()

_BATCH = 64
_AGAIN_S = 0.05
_THROTTLE_EVERY_S = 1.0


class RateRecord(Wire, frozen=True, kw_only=True, tag="control.rate_limit.v1"):
    """What the fleet has used. `factor` multiplies the rate since `factor_at` (throttling)."""

    algorithm: limit.Algorithm
    state: limit.State
    day: limit.Slots | None = None
    factor: float = 1.0
    factor_at: float = 0.0


RATE = Codec(RateRecord)


class Limit(msgspec.Struct, frozen=True, kw_only=True):
    """The settings. `rpm` 0: no limit."""

    algorithm: limit.Algorithm = "token_bucket"
    rpm: float = 60.0
    burst: int = 10
    per_day: int | None = None

    def __post_init__(self) -> None:
        if self.rpm > 0:
            limit.policy(self.algorithm, self.rpm, self.burst)
        if self.per_day is not None:
            limit.per_day(self.per_day)


_NO_LIMIT = limit.Token(0.0, math.inf)
_STATES: dict[limit.Algorithm, type[limit.State]] = {
    "token_bucket": limit.Gcra,
    "leaky_bucket": limit.Gcra,
    "fixed_window": limit.Window,
    "sliding_window": limit.Slots,
}


class Limiter:
    """Use `run` as a task."""

    def __init__(self, broker: Broker, clock: BrokerClock, settings: Limit) -> None:
        self._broker = broker
        self._clock = clock
        self._settings = settings
        self._waiting: deque[asyncio.Future[limit.Token]] = deque()
        self._wanted = asyncio.Event()
        self._seen: RateRecord | None = None
        """The record as last seen."""
        self._sent: tuple[int, float] | None = None
        """Revision of our last write and when it was sent: its republished time is a sample with both ends."""

    @property
    def unlimited(self) -> limit.Token | None:
        """A token for any mail, if there is no limit."""
        return _NO_LIMIT if self._settings.rpm == 0 and self._settings.per_day is None else None

    async def take(self) -> limit.Token:
        """Waits until one mail may begin, now. Whoever does anything else first looks at `good` before it begins."""
        if self.unlimited is not None:
            return self.unlimited
        while True:
            future: asyncio.Future[limit.Token] = asyncio.get_running_loop().create_future()
            self._waiting.append(future)
            self._wanted.set()
            token = await future
            while (wait_s := token.due - self._clock.low()) > 0:  # noqa: ASYNC110 - the bracket moves meanwhile
                await asyncio.sleep(wait_s)
            if self.good(token):
                return token

    def good(self, token: limit.Token) -> bool:
        """Whether a mail may still begin under it: late tokens are void, or those that ran up would go out at once."""
        if self._clock.high() < token.void:
            return True
        metrics.TOKENS_VOID.inc()
        return False

    async def run(self) -> None:
        """Takes tokens for whoever waits, for ever."""
        await self._broker.client.subscribe(s.changed(s.RATE_LIMIT_KEY), cb=self._changed)
        self._measure()
        while True:
            await self._wanted.wait()
            self._waiting = deque(future for future in self._waiting if not future.done())
            if not self._waiting:
                self._wanted.clear()
                continue
            try:
                tokens, wait_s = await self._grant(min(len(self._waiting), _BATCH))
            except (Unavailable, ApiError) as exc:
                log.warning("limiter.unreachable", reason=str(exc))
                await asyncio.sleep(_AGAIN_S * 10)
                continue
            except Exception:  # outermost loop: a record that nobody can read must not end it
                log.exception("limiter.failed")
                await asyncio.sleep(1)
                continue
            metrics.TOKENS.inc(len(tokens))
            for token in tokens:
                while self._waiting:
                    future = self._waiting.popleft()
                    if not future.done():
                        future.set_result(token)
                        break
            if not tokens:
                await asyncio.sleep(wait_s)

    async def _grant(self, n: int) -> tuple[list[limit.Token], float]:
        """Tokens for `n` mails or fewer, already written down; if there are none, how long to wait before asking."""
        record, revision = await self._read()
        while True:
            now = self._clock.high()
            changed, tokens, next_due = self._take(record, now, n)
            if changed != record:
                crash.point("limiter.before_write")
                try:
                    await self._write(changed, revision)
                except Conflict:
                    record, revision = await self._read()
                    continue
                crash.point("limiter.written")
            return tokens, min(1.0, max(_AGAIN_S, next_due - now - limit.HORIZON_S))

    def _take(self, record: RateRecord, now: float, n: int) -> tuple[RateRecord, list[limit.Token], float]:
        """The record to be written, the tokens it stands for, and when the next one is due if there are none."""
        state, day, tokens = record.state, record.day, [limit.Token(now, math.inf)] * n
        policy = self._policy(record, now)
        if policy is not None:
            if not self._is_ours(record):
                # Written down though it gives no token: else it would start as used up for ever.
                state = policy.used_up(now)
                record = msgspec.structs.replace(record, algorithm=self._settings.algorithm, state=state)
            state, tokens = policy.take(state, now, n)
            if not tokens:
                return record, [], policy.available(state, now)[1]
        if self._settings.per_day is not None:
            law = limit.per_day(self._settings.per_day)
            day = day or law.unused(now)
            day, daily = law.take(day, now, len(tokens))
            if not daily:
                return record, [], law.available(day, now)[1]
            tokens = [limit.Token(max(a.due, b.due), min(a.void, b.void)) for a, b in zip(tokens, daily, strict=False)]
        changed = msgspec.structs.replace(record, state=state, day=day)
        return changed, tokens, now

    def _is_ours(self, record: RateRecord) -> bool:
        """Whether its state is one of the algorithm that is set."""
        return record.algorithm == self._settings.algorithm and isinstance(record.state, _STATES[record.algorithm])

    def _policy(self, record: RateRecord, now: float) -> limit.Policy[limit.State] | None:
        """The law at the rate of the moment."""
        if self._settings.rpm == 0:
            return None
        factor = limit.recovered(record.factor, now - record.factor_at)
        return limit.policy(self._settings.algorithm, self._settings.rpm, self._settings.burst, factor)

    async def _read(self) -> tuple[RateRecord, int]:
        if not self._clock.known:
            raise Unavailable("the broker's time is not known yet", sent=False)
        stored = await self._broker.last(s.CONTROL, s.RATE_LIMIT_KEY)
        if stored is not None and stored.data:
            self._seen = RATE.decode(stored.data)
            return self._seen, stored.seq
        return self._fresh(), stored.seq if stored is not None else 0

    def _fresh(self) -> RateRecord:
        """Nothing was ever used, or an operator deleted the key: the bucket is full."""
        settings = self._settings
        law = limit.policy(settings.algorithm, settings.rpm or 1.0, settings.burst)
        return RateRecord(algorithm=settings.algorithm, state=law.unused(self._clock.high()))

    async def _write(self, record: RateRecord, revision: int) -> int:
        sent = time.monotonic()
        written = await self._broker.store(s.RATE_LIMIT_KEY, RATE.encode(record), expect_last=revision)
        self._sent = (written, sent)
        return written

    async def _changed(self, raw: Msg) -> None:
        """A change of the record, ours or another's, with the broker's time of it."""
        received, headers = time.monotonic(), raw.headers or {}
        with contextlib.suppress(KeyError, ValueError, msgspec.DecodeError):
            revision = int(headers["Nats-Sequence"])
            sent = self._sent[1] if self._sent is not None and self._sent[0] == revision else None
            ts = msgspec.convert(headers["Nats-Time-Stamp"], datetime)
            self._clock.sample(ts, sent=sent, received=received)
            self._seen = RATE.decode(raw.data)

    async def throttled(self) -> None:
        """The server says that we are too fast: the fleet slows down, at most once a second, and recovers by itself."""
        try:
            record, revision = await self._read()
            now = self._clock.high()
            if now - record.factor_at < _THROTTLE_EVERY_S:
                return
            factor = limit.throttle(limit.recovered(record.factor, now - record.factor_at))
            await self._write(msgspec.structs.replace(record, factor=factor, factor_at=now), revision)
            crash.point("limiter.throttled")
            log.warning("limiter.throttled", factor=round(factor, 3))
            metrics.THROTTLED.inc()
        except Conflict:
            return  # another worker has just written: the next reply will tell again
        except (Unavailable, ApiError) as exc:
            log.warning("limiter.unreachable", reason=str(exc))

    async def status(self) -> dict[str, object]:
        """What `GET /rate-limit` shows. Raises `Unavailable` or `ApiError`."""
        return self._shown((await self._read())[0])

    def known(self) -> dict[str, object] | None:
        """The same of the record as last seen, which costs nothing; None: the broker's time is not known yet."""
        return self._shown(self._seen or self._fresh()) if self._clock.known else None

    def _shown(self, record: RateRecord) -> dict[str, object]:
        now = self._clock.high()
        settings = self._settings
        shown: dict[str, object] = {
            "algorithm": settings.algorithm,
            "limit_per_minute": settings.rpm,
            "burst": settings.burst,
            "limit_per_day": settings.per_day,
            "throttled_to": round(limit.recovered(record.factor, now - record.factor_at), 3),
            "waiting": len(self._waiting),
        }
        tokens, next_due = self._available(record, now)
        if settings.per_day is not None:
            law = limit.per_day(settings.per_day)
            shown["left_today"] = law.available(record.day or law.unused(now), now)[0]
        shown["tokens"] = None if tokens == math.inf else tokens
        return shown | {"next_token_in_s": round(max(0.0, next_due - now), 3)}

    def _available(self, record: RateRecord, now: float) -> tuple[float, float]:
        """Mails that may begin now (infinity: there is no limit), and when the next one may."""
        tokens, next_due = math.inf, now
        policy = self._policy(record, now)
        if policy is not None:
            state = record.state if self._is_ours(record) else policy.used_up(now)
            tokens, next_due = policy.available(state, now)
        if self._settings.per_day is not None:
            law = limit.per_day(self._settings.per_day)
            left, day_due = law.available(record.day or law.unused(now), now)
            tokens, next_due = min(tokens, left), max(next_due, day_due)
        return tokens, next_due

    def _measure(self) -> None:
        """Lets the metrics tell of now whenever they are looked at: nothing is written while the fleet idles."""

        def factor() -> float:
            seen = self._seen
            return 1.0 if seen is None else limit.recovered(seen.factor, self._clock.high() - seen.factor_at)

        def tokens() -> float:
            if not self._clock.known:
                return math.nan
            return self._available(self._seen or self._fresh(), self._clock.high())[0]

        metrics.RATE_TOKENS.set_function(tokens)
        metrics.RATE_FACTOR.set_function(factor)
        metrics.RATE_PER_S.set_function(lambda: (self._settings.rpm or math.inf) / 60 * factor())
        metrics.RATE_WAITING.set_function(lambda: len(self._waiting))
