"""Leave to attempt: the worker's side of the circuit breaker.

    free        closed, nothing to doubt, the record read within 2 s       pulls with all its slots
    otherwise   asks user_svc first, then pulls one message:  go | wait
    alone       10 s of asking in vain, and the record allows it           one attempt at a time, backing off

A worker never trusts a cache for leave: it reads the record each second, and just before MAIL the leave is looked at
again. Doubt begins with a path failure of its own and ends only with an answer. When every user_svc is dead (or hangs)
the workers go on alone, gently; what they report may open the breaker and never close it.

The rules were simulated before they were written. One is simpler here: a worker has one slot that asks, not one for
each attempt, so it probes one at a time.
"""

import asyncio
import contextlib
import random
import secrets
import time
from datetime import datetime
from typing import Literal

import msgspec
import structlog
from nats.aio.msg import Msg

from contracts import control as c
from contracts import subjects as s
from contracts.runtime import crash
from contracts.runtime.broker import ApiError, Broker, Unavailable
from contracts.runtime.clock import BrokerClock
from email_svc import metrics
from email_svc.policies.backoff import backoff_s

log = structlog.get_logger()

FRESH_S = 2.0
_READ_EVERY_S = 1.0
_ASK_TIMEOUT_S = 1.0
_ASK_TRIES = 3
_SILENCE_S = 10.0
_ALONE_ASK_EVERY_S = 3.0
_PERMIT_FRESH_S = 2.0
_LAPSE_MARGIN_S = 5.0


class Leave(msgspec.Struct, frozen=True, kw_only=True):
    """Leave for one attempt, as it was given: to be looked at again just before MAIL."""

    kind: Literal["free", "permit", "alone"]
    epoch: int
    nonce: int = 0
    given_at: float = 0.0
    """Monotonic."""

    @property
    def breaker(self) -> str:
        """The breaker's state by which it was given; `alone`: nobody could be asked."""
        return {"free": c.Breaker.CLOSED.value, "permit": c.Breaker.HALF_OPEN.value, "alone": "alone"}[self.kind]


class Path:
    """What this worker knows of the path, and its talk with user_svc about it."""

    def __init__(self, broker: Broker, clock: BrokerClock, *, attempt_s: float) -> None:
        """`attempt_s`: the longest an attempt takes, but for the wait after the dot (SMTP_TIMEOUT)."""
        self._broker = broker
        self._clock = clock
        self._lapse_s = attempt_s + _LAPSE_MARGIN_S
        self._worker = secrets.token_hex(6)
        self._nonce = 1
        self._record: c.BreakerRecord | None = None
        self._revision = 0
        self._read_at = -1e9
        self._doubt = False
        self._silent_s = 0.0
        self._alone = False
        self._alone_failures = 0
        self._successes = 0
        self._asking = asyncio.Lock()
        self._asked_at = -1e9
        self._sent_at = -1e9
        """When the last try of an ask was sent."""
        self.changed = asyncio.Event()
        """Set at a new epoch, and when leave is lost or found; whoever waits clears it."""

    # --- what is known ---------------------------------------------------------------------------------------------

    @property
    def epoch(self) -> int:
        return 0 if self._record is None else self._record.epoch

    @property
    def open_s(self) -> float:
        return 30.0 if self._record is None else self._record.open_s

    @property
    def surge(self) -> bool:
        """Policy refusals are path failures now."""
        return self._record is not None and self._record.surge

    @property
    def alone(self) -> bool:
        return self._alone

    @property
    def _fresh(self) -> bool:
        return time.monotonic() - self._read_at <= FRESH_S

    @property
    def free(self) -> bool:
        """Whether attempts need no permit."""
        closed = self._record is not None and self._record.state is c.Breaker.CLOSED
        return closed and not self._doubt and not self._alone and self._fresh and self._clock.known

    def _adopt(self, record: c.BreakerRecord, revision: int) -> None:
        if revision <= self._revision and (self._record is None or record.since <= self._record.since):
            return  # old news; a lower revision that is younger is a record that was made anew
        self._revision, before, self._record = revision, self._record, record
        self._end_alone()
        if before is None or before.epoch != record.epoch:
            self._successes = 0  # of another epoch: not for this one
            log.info("path.state", state=record.state, epoch=record.epoch, reason=record.reason)
            self.changed.set()  # not for each permit of another: all who wait would ask at each write

    def _end_alone(self) -> None:
        self._silent_s = 0.0
        if self._alone:
            self._alone = False
            log.info("path.no_longer_alone")
            self.changed.set()

    async def run(self) -> None:
        """Keeps the reading fresh and flushes reports, for ever."""
        await self._broker.client.subscribe(s.changed(s.BREAKER_KEY), cb=self._heard)
        while True:
            began = time.monotonic()
            try:
                await self._sample_clock()
                await self._read()
                await self._flush()
            except Exception:  # outermost loop: a record that nobody can read must not end it
                log.exception("path.failed")
            # What the calls took is part of the second: with a slow broker the reading would be stale half of the time.
            await asyncio.sleep(max(0.05, _READ_EVERY_S * random.uniform(0.8, 1.0) - (time.monotonic() - began)))

    async def _sample_clock(self) -> None:
        sent = time.monotonic()
        with contextlib.suppress(Unavailable, ApiError):
            info = await self._broker.api(f"STREAM.INFO.{s.CONTROL}", timeout_s=1.0)
            self._clock.sample(msgspec.convert(info["ts"], datetime), sent=sent, received=time.monotonic())

    async def _heard(self, raw: Msg) -> None:
        headers = raw.headers or {}
        with contextlib.suppress(msgspec.DecodeError, KeyError, ValueError):
            self._adopt(c.BREAKER.decode(raw.data), int(headers["Nats-Sequence"]))

    async def _read(self) -> None:
        sent_at = time.monotonic()
        try:
            stored = await self._broker.last(s.CONTROL, s.BREAKER_KEY, timeout_s=1.0)
        except (Unavailable, ApiError):
            return
        if stored is not None and stored.data:  # empty: deleted by hand; user_svc makes it anew
            self._read_at = sent_at  # a broadcast does not refresh it: only what was asked for proves the way
            self._adopt(c.BREAKER.decode(stored.data), stored.seq)

    # --- asking ----------------------------------------------------------------------------------------------------

    def leave(self) -> Leave | None:
        """Leave for an attempt that needs no permit; None: it needs one."""
        return Leave(kind="free", epoch=self.epoch) if self.free else None

    async def ask(self) -> Leave | float:
        """Leave for one attempt, or the seconds to wait before asking again."""
        if not self._clock.known:
            return 0.1  # without the broker's time nothing is due and nothing expires
        if self._alone and time.monotonic() - self._asked_at < _ALONE_ASK_EVERY_S:
            return self._when_silent()
        async with self._asking:
            self._asked_at, nonce = time.monotonic(), self._nonce
            answer = await self._ask(nonce)
        if answer is None:
            return self._when_silent()
        self._doubt = False
        self._end_alone()
        known = self._revision
        self._adopt(answer.record, answer.revision)
        match answer.word:
            case "go" if answer.record.state is c.Breaker.CLOSED:
                await self._read()
                return 0.0 if self._fresh else 0.1  # free from here on, or once the record can be read
            case "go":
                crash.point("leave.granted")
                # As old as its ask: an answer may have waited for a process that was frozen.
                return Leave(kind="permit", epoch=answer.record.epoch, nonce=nonce, given_at=self._sent_at)
            case "again":
                return 0.0 if self._revision != known else 0.5  # nothing new to ask with: no circle
            case "old":
                self._nonce = max(self._nonce, nonce + 1)
                return 0.05
            case "wait":
                return answer.wait_s

    async def _ask(self, nonce: int) -> c.Answer | None:
        ask = c.ASKED.encode(c.Ask(worker=self._worker, nonce=nonce, epoch=self.epoch, lapse_s=self._lapse_s))
        for attempt in range(1 if self._alone else _ASK_TRIES):
            began = self._sent_at = time.monotonic()
            try:
                subject = s.ASK if attempt == 0 and not self._alone else s.ASK_ALL
                raw = await self._broker.request(subject, ask, timeout_s=_ASK_TIMEOUT_S)
                return c.ANSWER.decode(raw.data)
            except (Unavailable, msgspec.DecodeError):
                # "Nobody there" comes at once and counts as a whole second, like an answer that does not come.
                if (rest_s := _ASK_TIMEOUT_S - (time.monotonic() - began)) > 0:
                    await asyncio.sleep(rest_s)
                if self._fresh:  # else it is the broker that is silent, which says nothing of user_svc
                    self._silent_s += time.monotonic() - began
        return None

    def _when_silent(self) -> Leave | float:
        if not self._allowed_alone():
            return _READ_EVERY_S
        if not self._alone:
            if self._silent_s < _SILENCE_S:
                return 0.0
            self._alone, self._alone_failures = True, 0
            log.warning("path.alone", silent_s=round(self._silent_s, 1))
            metrics.ALONE.inc()
        return Leave(kind="alone", epoch=self.epoch, given_at=time.monotonic())

    def _allowed_alone(self) -> bool:
        """The record is known, read lately, and it is past the end of its pause: an operator's open holds here too."""
        if self._record is None or not self._fresh or not self._clock.known:
            return False
        until = c.paused_until(self._record)
        return until is None or self._clock.now() >= until

    async def still(self, leave: Leave) -> bool:
        """Just before MAIL: does the leave still hold? Asks again if need be."""
        if leave.kind == "free":
            if self.free and self.epoch == leave.epoch:
                return True
            await self._read()
            if self._doubt and self._record is not None and self._record.state is c.Breaker.CLOSED:
                await self.ask()
            return self.free and self.epoch == leave.epoch
        if leave.kind == "alone":
            return self._alone and self.epoch == leave.epoch and self._fresh and self._allowed_alone()
        if self.epoch != leave.epoch:
            return False  # to ask would take a permit of the new epoch, and nobody would use it
        if _young(leave):
            return True
        again = await self.ask()
        if not isinstance(again, Leave) or (again.kind, again.nonce) != (leave.kind, leave.nonce):
            return False
        return _young(again) and again.epoch == leave.epoch == self.epoch

    # --- telling ---------------------------------------------------------------------------------------------------

    def begun(self, leave: Leave) -> None:
        """An attempt begins under this leave: the next ask is for another one."""
        if leave.kind == "permit":
            self._nonce = max(self._nonce, leave.nonce + 1)

    async def attempted(self, leave: Leave, *, works: bool, event_id: str, verdict: str) -> None:
        """What an attempt without a permit found. `works`: the path does, whatever became of the mail."""
        of_now = leave.epoch == self.epoch
        if works:
            self._alone_failures = 0
            if verdict != "policy":
                self._successes += of_now
                return
        else:
            self._doubt = True
            self._alone_failures += 1
            self.changed.set()
        # Successes first: a failure never overtakes those before it. But they do not leave with one of another epoch.
        blame = c.Blame(event_id=event_id, verdict=verdict)
        successes = self._take_successes() if of_now else 0
        await self._report(c.Report(epoch=leave.epoch, successes=successes, blame=blame))
        crash.point("leave.blamed")

    async def probed(self, leave: Leave, *, works: bool | None, verdict: str) -> None:
        """What came of a permit; None: no attempt was made, or it says nothing, and the permit goes back."""
        if works is None:
            await self.unused(leave)
        else:
            await self._tell(leave, "ok" if works else "failed", verdict)

    async def unused(self, leave: Leave) -> None:
        """No attempt was made: the permit goes back."""
        if leave.kind == "permit":
            self._nonce = max(self._nonce, leave.nonce + 1)
            await self._tell(leave, "unused", "")

    async def give_back(self, leave: Leave, *, works: bool | None) -> None:
        """What came of a permit, in passing, as the process ends: said once, not waited for."""
        if leave.kind == "permit":
            how: Literal["ok", "failed", "unused"] = "unused" if works is None else "ok" if works else "failed"
            result = c.Result(worker=self._worker, nonce=leave.nonce, epoch=leave.epoch, how=how)
            with contextlib.suppress(Exception):
                await self._broker.client.publish(s.RESULT_ALL, c.RESULTED.encode(result))

    async def _tell(self, leave: Leave, how: Literal["ok", "failed", "unused"], verdict: str) -> None:
        """Until it is acknowledged, superseded by another epoch, or lapsed."""
        result = c.RESULTED.encode(
            c.Result(worker=self._worker, nonce=leave.nonce, epoch=leave.epoch, how=how, verdict=verdict)
        )
        subject, until = s.RESULT, time.monotonic() + self._lapse_s
        while self.epoch == leave.epoch and time.monotonic() < until:
            began = time.monotonic()
            try:
                raw = await self._broker.request(subject, result, timeout_s=_ASK_TIMEOUT_S)
                answer = c.ANSWER.decode(raw.data)
                crash.point("leave.told")
                self._adopt(answer.record, answer.revision)
                return
            except (Unavailable, msgspec.DecodeError):
                subject = s.RESULT_ALL
                await asyncio.sleep(max(0.0, 0.25 - (time.monotonic() - began)))

    def _take_successes(self) -> int:
        taken, self._successes = self._successes, 0
        return taken

    async def _flush(self) -> None:
        if self._successes:
            await self._report(c.Report(epoch=self.epoch, successes=self._take_successes()))

    async def _report(self, report: c.Report) -> None:
        with contextlib.suppress(Exception):  # fire and forget: user_svc counts what it hears
            await self._broker.client.publish(s.REPORT, c.REPORTED.encode(report))

    async def wait(self, seconds: float) -> None:
        """Waits, or less if there is news."""
        self.changed.clear()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self.changed.wait()

    def alone_delay_s(self) -> float:
        """Between two attempts alone: 100 ms to 30 s, reset by a success."""
        return backoff_s(self._alone_failures, 0.5 + random.random() / 2) if self._alone_failures else 0.0


def _young(leave: Leave) -> bool:
    return time.monotonic() - leave.given_at <= _PERMIT_FRESH_S
