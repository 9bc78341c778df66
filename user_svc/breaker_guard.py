"""Acts on the breaker: keeps its record, hears what workers say, and makes the broker show what the record wants.

    record in CONTROL  ──guard, every 250 ms──►  pause of consumer "email-svc"
           ▲                                     open: until open_until + 5 s (the dead man's switch); else none
           │ compare-and-set
    reports, asks, results of the workers; operators; the clock

Level-triggered: nothing is remembered of what was done, each pass compares what is with what should be. Any number of
replicas do the same at once. If all of them die the pause lapses by itself, and workers go on alone and gently.
"""

import asyncio
import random
import time
from collections import deque
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import msgspec
import structlog
from nats.aio.msg import Msg
from nats.aio.subscription import Subscription

from contracts import control as c
from contracts import subjects as s
from contracts.runtime import crash
from contracts.runtime.broker import NO_CONSUMER, ApiError, Broker, Conflict, Unavailable
from contracts.runtime.clock import BrokerClock
from user_svc import breaker, metrics
from user_svc.breaker import Memory, Rules

log = structlog.get_logger()

_PERIOD_S = 0.25
_SLOW_S = 1.0
_TRIES = 4
_END_MARGIN_S = 0.25
_HISTORY = 50
_SUCCESSES_MAX = 1_000_000
"""In one report, of a second or so. Sums of absurd figures would end the counting of all the others."""

Change = Callable[[c.BreakerRecord, int], c.BreakerRecord | None]
"""A rule: the record and its revision in, the record to be written out. None: nothing to write."""


class Shown(msgspec.Struct, frozen=True, kw_only=True):
    """What the broker says of the consumer."""

    paused_until: datetime | None
    waiting: int
    pending: int
    ack_pending: int


class Guard:
    """Use `run` as a task, after `start`."""

    def __init__(self, broker: Broker, rules: Rules, on_missing: Callable[[], Awaitable[None]]) -> None:
        self._broker = broker
        self._rules = rules
        self._on_missing = on_missing
        self._clock = BrokerClock()
        self._wake = asyncio.Event()
        self._hearing = asyncio.Lock()
        self._subscriptions: list[Subscription] = []
        self._tasks: set[asyncio.Task[None]] = set()
        self.memory = Memory()
        self.record: c.BreakerRecord | None = None
        """As last seen."""
        self.shown: Shown | None = None
        self.transitions: deque[c.BreakerRecord] = deque(maxlen=_HISTORY)
        """The last changes of state that this replica has seen, the newest last."""

    # --- the record ------------------------------------------------------------------------------------------------

    async def _read(self) -> tuple[c.BreakerRecord, int]:
        """The record and its revision, from the leader. Made if there is none."""
        while True:
            stored = await self._broker.last(s.CONTROL, s.BREAKER_KEY)
            if stored is not None and stored.data:
                try:
                    record = c.BREAKER.decode(stored.data)
                except msgspec.DecodeError:
                    log.exception("breaker.unreadable_record", revision=stored.seq)
                else:
                    self._saw(record)
                    return record, stored.seq
            # None yet, or an operator deleted the key, or what is there is no record: it begins anew, closed.
            first = breaker.first(await self._now(), self._rules)
            revision = stored.seq if stored is not None else 0
            try:
                await self._broker.store(s.BREAKER_KEY, c.BREAKER.encode(first), expect_last=revision)
            except Conflict:
                continue
            crash.point("breaker.record_made")

    async def change(self, rule: Change, *, in_any_epoch: bool = False) -> tuple[c.BreakerRecord, int]:
        """Applies a rule by compare-and-set, again on conflict; the record then and its revision.

        A change of epoch meanwhile ends it, for the event belonged to another time, unless `in_any_epoch`.

        Raises:
            Unavailable, ApiError: not known to have been written.
        """
        record, revision = await self._read()
        epoch = record.epoch
        for _ in range(_TRIES):
            new = rule(record, revision)
            if new is None:
                return record, revision
            try:
                revision = await self._broker.store(s.BREAKER_KEY, c.BREAKER.encode(new), expect_last=revision)
            except Conflict:
                record, revision = await self._read()
                if record.epoch != epoch and not in_any_epoch:
                    return record, revision
            else:
                crash.point("breaker.record_written")
                self._saw(new)
                return new, revision
        raise Unavailable("the breaker's record is being written by others", sent=False)

    def _saw(self, record: c.BreakerRecord) -> None:
        before = self.record
        if before is not None and before.epoch > record.epoch and record.since <= before.since:
            return  # old news; a lower epoch that is younger is a record that was made anew
        self.record = record
        metrics.BREAKER_PROBES.set(record.issued)
        metrics.BREAKER_SURGE.set(record.surge)
        if before is None or before.epoch != record.epoch:
            self.transitions.append(record)
            metrics.BREAKER_STATE.set(_NUMBER[record.state])
            if before is not None:
                metrics.BREAKER_TRANSITIONS.labels(record.state).inc()
            level = log.warning if record.state is c.Breaker.OPEN else log.info
            level(
                f"breaker.{record.state}",
                epoch=record.epoch,
                reason=record.reason,
                until=record.open_until and record.open_until.isoformat(),
            )
            self._wake.set()

    def now(self) -> datetime:
        """The broker's time as far as it is known, not after the truth; the host's before that."""
        return self._clock.now() if self._clock.known else datetime.now(UTC)

    async def _now(self) -> datetime:
        """The broker's time, not after the truth."""
        if not self._clock.known:
            await self._show()
        return self._clock.now()

    # --- what workers say ------------------------------------------------------------------------------------------

    async def start(self) -> None:
        """Begins to hear reports, asks and results, and changes by other replicas."""

        async def subscribe(subject: str, handle: Callable[[Msg], Awaitable[None]], queue: str = "") -> None:
            async def spawn(raw: Msg) -> None:
                task = asyncio.create_task(self._guarded(handle, raw))
                self._tasks.add(task)
                task.add_done_callback(self._tasks.discard)

            self._subscriptions.append(await self._broker.client.subscribe(subject, queue=queue, cb=spawn))

        await subscribe(s.ASK, self._asked, s.ONE_OF_USER_SVC)
        await subscribe(s.ASK_ALL, self._asked)
        await subscribe(s.RESULT, self._resulted, s.ONE_OF_USER_SVC)
        await subscribe(s.RESULT_ALL, self._resulted)
        await subscribe(s.REPORT, self._reported)
        await subscribe(s.changed(s.BREAKER_KEY), self._changed)
        self._broker.reconnected.append(self._wake.set)

    async def _guarded(self, handle: Callable[[Msg], Awaitable[None]], raw: Msg) -> None:
        try:
            await handle(raw)
        except (Unavailable, ApiError, msgspec.DecodeError) as exc:
            log.warning("breaker.unheard", subject=raw.subject, reason=str(exc))  # the worker asks again
        except Exception:  # outermost: one message must not end the guard
            log.exception("breaker.failed", subject=raw.subject)

    async def _changed(self, raw: Msg) -> None:
        if raw.data:
            self._saw(c.BREAKER.decode(raw.data))

    async def _asked(self, raw: Msg) -> None:
        ask, now = c.ASKED.decode(raw.data), await self._now()
        answer: c.Answer | None = None

        def rule(record: c.BreakerRecord, revision: int) -> c.BreakerRecord | None:
            nonlocal answer
            new, answer = breaker.asked(record, revision, ask, now, self._rules)
            return new

        record, revision = await self.change(rule)
        assert answer is not None
        if answer.record.epoch != record.epoch and answer.word == "go":
            answer = msgspec.structs.replace(answer, word="again")  # the write lost against a change of state
        await raw.respond(c.ANSWER.encode(msgspec.structs.replace(answer, record=record, revision=revision)))

    async def _resulted(self, raw: Msg) -> None:
        result, now = c.RESULTED.decode(raw.data), await self._now()
        record, revision = await self.change(lambda record, _: breaker.resulted(record, result, now, self._rules))
        _count(result.how == "ok", result.how == "failed")
        if raw.reply:  # a worker that is ending does not wait for it
            await raw.respond(c.ANSWER.encode(c.Answer(word="wait", record=record, revision=revision)))

    async def _reported(self, raw: Msg) -> None:
        report = c.REPORTED.decode(raw.data)
        if not 0 <= report.successes <= _SUCCESSES_MAX:
            raise msgspec.ValidationError("no worker has so many successes")
        async with self._hearing:  # in the order in which they came
            record = self.record or (await self._read())[0]
            if report.epoch > record.epoch:
                record, _ = await self._read()
            now = await self._now()
            opening = self.memory.hear(record, report, now, self._rules)
            if record.epoch == report.epoch:
                _count(report.successes, report.blame is not None and report.blame.verdict != breaker.POLICY)
            if opening is None:
                return

            def rule(current: c.BreakerRecord, _: int) -> c.BreakerRecord | None:
                if current.epoch != report.epoch:
                    return None
                return breaker.opened(
                    current, now, self._rules, reason=opening.reason, for_s=opening.for_s, surge=opening.surge
                )

            crash.point("breaker.opening")
            await self.change(rule)

    # --- operators -------------------------------------------------------------------------------------------------

    async def open(self, for_s: float | None, reason: str) -> c.BreakerRecord:
        """Opens, from any state; None: until further notice."""
        now = await self._now()

        def rule(record: c.BreakerRecord, _: int) -> c.BreakerRecord:
            return breaker.opened(record, now, self._rules, reason=reason, for_s=for_s)

        return (await self.change(rule, in_any_epoch=True))[0]

    async def close(self, reason: str) -> c.BreakerRecord:
        """Closes, from any state."""
        now = await self._now()

        def rule(record: c.BreakerRecord, _: int) -> c.BreakerRecord:
            return breaker.closed(record, now, self._rules, reason=reason)

        return (await self.change(rule, in_any_epoch=True))[0]

    # --- the pause on the broker -----------------------------------------------------------------------------------

    async def run(self) -> None:
        """Compares and mends, for ever."""
        while True:
            self._wake.clear()
            try:
                await self.look()
            except (Unavailable, ApiError) as exc:
                log.warning("breaker.cannot_look", reason=str(exc))
                if isinstance(exc, ApiError) and exc.err_code == NO_CONSUMER:
                    await self._remake()
            except Exception:  # outermost loop: nothing may end it
                log.exception("breaker.failed")
            try:
                async with asyncio.timeout(_PERIOD_S * random.uniform(0.8, 1.2)):
                    await self._wake.wait()
            except TimeoutError:
                pass

    async def look(self) -> None:
        """One pass: ticks the clock, then mends the pause."""
        began = time.monotonic()
        record, _ = await self._read()
        shown = await self._show()
        if time.monotonic() - began > _SLOW_S:
            return  # what was read may be old: the next pass starts over
        now = self._clock.now()
        if breaker.ticked(record, now, self._rules) is not None:
            record, _ = await self.change(lambda r, _: breaker.ticked(r, now, self._rules))
        await self._mend(record, shown)

    async def _show(self) -> Shown:
        sent = time.monotonic()
        info = await self._broker.api(f"CONSUMER.INFO.{s.WELCOME_EMAILS}.{s.EMAIL_SVC}")
        ts = msgspec.convert(info["ts"], datetime)
        self._clock.sample(ts, sent=sent, received=time.monotonic())
        until = info["config"].get("pause_until") if info.get("paused") else None
        self.shown = Shown(
            paused_until=None if until is None else msgspec.convert(until, datetime),
            waiting=info["num_waiting"],
            pending=info["num_pending"],
            ack_pending=info["num_ack_pending"],
        )
        return self.shown

    async def _mend(self, record: c.BreakerRecord, shown: Shown) -> None:
        now = self._clock.now()
        if record.state is c.Breaker.OPEN:
            until = c.paused_until(record)
            assert until is not None
            off_s = None if shown.paused_until is None else (shown.paused_until - until).total_seconds()
            if until > now and (off_s is None or off_s < -0.001 or off_s > 0.5):
                crash.point("breaker.before_pause")
                await self._pause(until)
                crash.point("breaker.paused")
                await self._show()
        elif shown.paused_until is not None and (shown.paused_until - now).total_seconds() > 1.0:
            crash.point("breaker.before_end")
            await self._end_pause(record.epoch)
            crash.point("breaker.end_set")
            await self._show()

    async def _pause(self, until: datetime) -> dict[str, Any]:
        """Pauses until an absolute time: all replicas write the same."""
        answer: dict[str, Any] = await self._broker.api(
            f"CONSUMER.PAUSE.{s.WELCOME_EMAILS}.{s.EMAIL_SVC}", {"pause_until": until.isoformat()}
        )
        return answer

    async def _end_pause(self, epoch: int) -> None:
        """Lets the pause end in a moment: an early resume would not wake the pulls that wait.

        If the moment passes while the broker still writes it, nobody is woken either; the reply tells, and it is done
        again with twice the margin, unless the record has changed.
        """
        margin_s = _END_MARGIN_S
        while True:
            answer = await self._pause(self._clock.now() + timedelta(seconds=margin_s))
            if answer.get("paused"):
                return
            margin_s *= 2
            record, _ = await self._read()
            if record.epoch != epoch or margin_s > 4:
                return

    async def _remake(self) -> None:
        """The consumer is gone: made anew, paused at birth if the breaker is open."""
        try:
            await self._on_missing()
        except Exception as exc:  # noqa: BLE001 - tried again in the next pass
            log.warning("breaker.cannot_remake", reason=repr(exc))


_NUMBER = {c.Breaker.CLOSED: 0, c.Breaker.HALF_OPEN: 1, c.Breaker.OPEN: 2}


def _count(successes: int, failures: int) -> None:
    metrics.BREAKER_SUCCESSES.inc(successes)
    metrics.BREAKER_FAILURES.inc(failures)
