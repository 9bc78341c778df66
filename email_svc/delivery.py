"""The way of one mail, from the queue to its end. This is the file to read first.

    decode -> known already? -> due? expired? -> connection -> token -> leave -> send -> decide -> record -> settle

    record   the outcome once, or the attempts so far     before the queue entry goes: a crash repeats, never loses
    settle   ack | nak(delay) | erase the entry | say nothing       (email_svc.settlement)

What is left: a worker that dies between the final dot and the durable outcome. That mail may be sent twice, with the
same Message-ID.
"""

import asyncio
import random
import time
from datetime import UTC, datetime, timedelta

import msgspec
import structlog

from contracts import messages as m
from contracts import semconv
from contracts import subjects as s
from contracts.runtime import crash, traces
from contracts.runtime.broker import ApiError, Conflict, Unavailable
from contracts.runtime.clock import BrokerClock
from contracts.runtime.pull import Message
from email_svc import metrics
from email_svc.decision import (
    Fault,
    Phase,
    Rules,
    SmtpResult,
    Verdict,
    classify,
    decide,
    enhanced_code,
    path_works,
    redacted,
)
from email_svc.downtime import Downtime
from email_svc.errors import NotAnEvent
from email_svc.lease import Lease
from email_svc.leave import Leave, Path
from email_svc.ledger import Ledger, Row
from email_svc.limiter import Limiter
from email_svc.message import Composer, Mail, UnusableMail
from email_svc.policies.limit import Token
from email_svc.settlement import Done, Erase, Later, Settlement, settle
from email_svc.smtp import SmtpConnection
from email_svc.smtp_pool import SmtpPool

log = structlog.get_logger()

_LOOK_AGAIN_S = 1.0
_GIVEN_BACK_MAX_S = 30.0
_RENEW_LEAVE_S = 5.0
_REFUSED_S = (0.05, 0.5)


class Trial:
    """One message in hand, under which leave, and what its attempt came to."""

    def __init__(self, message: Message, lease: Lease, leave: Leave) -> None:
        self.message = message
        self.lease = lease
        self.leave = leave
        self.began = 0.0
        """When the attempt began, monotonic seconds."""
        self.verdict = ""
        """Of the attempt; empty: there was none."""
        self.works: bool | None = None
        """What the attempt found of the path; None: nothing."""


class Delivery:
    """Handles messages of the queue, many at once."""

    def __init__(
        self,
        *,
        ledger: Ledger,
        composer: Composer,
        pool: SmtpPool,
        limiter: Limiter,
        path: Path,
        downtime: Downtime,
        clock: BrokerClock,
        rules: Rules,
    ) -> None:
        self._ledger = ledger
        self._composer = composer
        self._pool = pool
        self._limiter = limiter
        self._path = path
        self._downtime = downtime
        self._clock = clock
        self._rules = rules
        self._sent_at = datetime.min.replace(tzinfo=UTC)
        self._in_hand: set[str] = set()

    async def handle(self, message: Message, leave: Leave) -> bool:
        """One message of the queue: delivered, or whatever becomes of it. True: an attempt found the path working."""
        with metrics.IN_HAND.track_inprogress(), semconv.processing(message) as span:
            async with Lease(message) as lease:
                trial = Trial(message, lease, leave)
                try:
                    settlement = await self._deliver(trial)
                    crash.point("delivery.recorded")
                    await settle(message, settlement, self._ledger)
                    crash.point("delivery.settled")
                except asyncio.CancelledError:
                    await settle(message, Later(0.0), self._ledger)  # shutting down is no attempt
                    await self._path.give_back(leave, works=trial.works)
                    raise
                except (Unavailable, ApiError) as exc:
                    traces.failed(span, type(exc).__name__)
                    log.warning("email.given_back", sequence=message.sequence, reason=str(exc))
                    await settle(message, Later(1.0 + random.random()), self._ledger)
                except Exception as exc:  # a mistake of ours: seldom again, until the deadline ends it
                    traces.failed(span, type(exc).__name__)
                    log.exception("email.failed", sequence=message.sequence)
                    again_s = min(_GIVEN_BACK_MAX_S, 2.0 ** min(message.delivered, 10))
                    await settle(message, Later(again_s), self._ledger)
        if leave.kind == "permit":  # last, for the answer may be long in coming, and the mail does not wait for it
            await self._path.probed(leave, works=trial.works, verdict=trial.verdict)
        return trial.works is True

    async def _deliver(self, trial: Trial) -> Settlement:
        message = trial.message
        try:
            event = decode(message)
        except NotAnEvent as exc:
            await self._ledger.quarantine(message.sequence, message.subject, message.data, str(exc))
            metrics.QUARANTINED.inc()
            log.error("email.quarantined", sequence=message.sequence, reason=str(exc))
            return Done()
        semconv.known_as(event.event_id)
        if event.event_id in self._in_hand:
            return None  # the broker forgot that it is; who has it keeps it alive, and will ack it
        self._in_hand.add(event.event_id)
        try:
            return await self._deliver_event(trial, event)
        finally:
            self._in_hand.remove(event.event_id)

    async def _deliver_event(self, trial: Trial, event: m.WelcomeEmailRequested) -> Settlement:
        looked_at = time.monotonic()  # before: the answer may lie in the socket for as long as we are stopped
        row = await self._ledger.look_up(event.event_id)
        crash.point("delivery.looked_up")
        if row is not None and isinstance(row.value, m.Outcome):
            metrics.DEDUPED.labels(row.value.state).inc()
            return await self._known(row.value)
        now = self._clock.now()
        if now >= event.expires_at:
            return await self._end(event, row, m.State.EXPIRED, _history(row), "the deadline passed")
        if row is not None and isinstance(row.value, m.Attempts) and row.value.due_at > now:
            return Later((min(row.value.due_at, event.expires_at) - now).total_seconds())
        try:
            mail = self._composer.compose(
                event_id=event.event_id,
                email=event.email,
                name=event.name,
                requested_at=event.requested_at,
                now=now,
            )
        except UnusableMail as exc:
            attempt = m.Attempt(
                at=now,
                verdict=Verdict.UNUSABLE,
                phase="compose",
                text=redacted(str(exc), event.email),
                trace_id=traces.trace_id(),
            )
            return await self._record(event, row, attempt)

        result = await self._attempt(trial, event, mail, row, looked_at)
        return result if isinstance(result, Later) else await self._judge(trial, event, row, result)

    async def _attempt(
        self, trial: Trial, event: m.WelcomeEmailRequested, mail: Mail, row: Row | None, looked_at: float
    ) -> SmtpResult | Later:
        """Connection, token, leave, and one dialogue; `Later` if it did not come to an attempt."""
        if self._downtime.until is not None:  # nothing is reached, so nothing is used up
            if not await self._path.still(trial.leave):
                return Later(random.uniform(*_REFUSED_S))
            self._path.begun(trial.leave)
            trial.message.admit()
            trial.began = time.monotonic()
            return SmtpResult(phase=Phase.CONNECT, fault=Fault.SIMULATED_DOWNTIME)
        connection, token = await self._pool.acquire(), None
        crash.point("delivery.connected")
        try:
            if isinstance(connection, SmtpConnection):
                token = await self._token(trial, event)
                if token is None:
                    return Later(random.uniform(*_REFUSED_S))
                crash.point("delivery.token_taken")
                if not self._pool.serves(connection):  # it died of age while it waited
                    self._pool.release(connection)
                    connection = await self._pool.acquire()
            trial.message.admit()
            trial.began = time.monotonic()
            if not isinstance(connection, SmtpConnection):
                self._path.begun(trial.leave)
                return connection
            if trial.began - looked_at > _LOOK_AGAIN_S and await self._ledger.look_up(event.event_id) != row:
                return Later(0.0)  # somebody else has dealt with it meanwhile
            if not await self._path.still(trial.leave):
                return Later(random.uniform(*_REFUSED_S))  # not attempted is not failed
            if token is None or not self._limiter.good(token):  # it took too long
                return Later(0.0)
            self._path.begun(trial.leave)
            aged = not connection.fresh
            crash.point("delivery.cleared")
            result = await self._send_on(connection, mail, trial.lease)
            crash.point("delivery.answered")
        finally:
            if isinstance(connection, SmtpConnection):
                self._pool.release(connection)
        stale = result.phase is Phase.MAIL and result.fault is Fault.DISCONNECTED
        if aged and (stale or classify(result) is Verdict.ROTATE):
            self._pool.refresh()  # what ended this one has mostly ended its neighbours
            return Later(0.0)  # it comes again, on a new connection, with a token and a leave of its own
        return result

    async def _token(self, trial: Trial, event: m.WelcomeEmailRequested) -> Token | None:
        """Waits for a token, renewing the leave; None: that was lost meanwhile, or the deadline passed."""
        if (token := self._limiter.unlimited) is not None:
            return token if self._clock.now() < event.expires_at else None
        began = time.monotonic()
        taking = asyncio.ensure_future(self._limiter.take())
        try:
            while not (await asyncio.wait({taking}, timeout=_RENEW_LEAVE_S))[0]:
                if self._clock.now() >= event.expires_at or not await self._path.still(trial.leave):
                    return None
        finally:
            taking.cancel()
        metrics.TOKEN_WAIT.observe(time.monotonic() - began)
        return taking.result() if self._clock.now() < event.expires_at else None

    async def _send_on(self, connection: SmtpConnection, mail: Mail, lease: Lease) -> SmtpResult:
        """Once the dot is out, only its reply tells what happened: not even a shutdown cuts that wait short."""

        def before_dot() -> bool:
            crash.point("delivery.before_dot")
            return lease.valid

        sending = asyncio.ensure_future(connection.send(mail, self._composer.envelope_from, before_dot=before_dot))
        try:
            return await asyncio.shield(sending)
        except asyncio.CancelledError:
            if connection.awaiting_dot_reply:
                log.info("email.awaiting_last_reply")
            else:
                sending.cancel()
            await asyncio.wait({sending})
            if sending.cancelled():
                raise
            return sending.result()  # perhaps it came in the same moment as the cancellation

    async def _judge(
        self, trial: Trial, event: m.WelcomeEmailRequested, row: Row | None, result: SmtpResult
    ) -> Settlement:
        verdict, seconds = classify(result), time.monotonic() - trial.began
        if verdict is Verdict.ROTATE:
            verdict = Verdict.PATH  # sent away on a new connection too
        if verdict is Verdict.ABANDONED:
            metrics.LEASE_LOST.inc()
            log.warning("email.lease_lost", event_id=event.event_id)
            return None
        attempt = m.Attempt(
            at=self._clock.now(),
            verdict=verdict,
            phase=result.phase,
            code=result.code,
            enhanced=enhanced_code(result.text),
            text=redacted(result.text, event.email) if result.code is not None else str(result.fault),
            seconds=round(seconds, 3),
            trace_id=traces.trace_id(),
            breaker=trial.leave.breaker,
        )
        metrics.ATTEMPTED[verdict].inc()
        metrics.SECONDS.observe(seconds, traces.exemplar())
        metrics.ANSWERS.labels(result.phase, result.fault or result.code).inc()
        if verdict is not Verdict.SENT:
            metrics.FAILED[verdict].inc()
        if verdict is Verdict.UNKNOWN:
            metrics.UNKNOWN.inc()
        if verdict is Verdict.THROTTLED:
            await self._limiter.throttled()
        trial.verdict = verdict
        trial.works = path_works(verdict, surge=self._path.surge)
        probe_failed = trial.leave.kind == "permit" and trial.works is False
        if trial.leave.kind != "permit" and trial.works is not None:
            # First, for the other attempts of this worker are to hear of a failure before they begin.
            await self._path.attempted(trial.leave, works=trial.works, event_id=event.event_id, verdict=verdict)
        return await self._record(event, row, attempt, path_rest_s=2 * self._path.open_s if probe_failed else 0.0)

    async def _record(
        self, event: m.WelcomeEmailRequested, row: Row | None, attempt: m.Attempt, *, path_rest_s: float = 0.0
    ) -> Settlement:
        """Decides what follows from an attempt and writes it down."""
        semconv.judged(attempt.verdict, sent=attempt.verdict == Verdict.SENT)
        history = _history(row)
        tried_before = history.attempts[-1].at if history.attempts else attempt.at
        decision = decide(
            attempt,
            history,
            expires_at=event.expires_at,
            others_pass=tried_before < self._sent_at,
            rules=self._rules,
            draw=random.random(),
            surge=self._path.surge,
            path_rest_s=path_rest_s,
        )
        if attempt.verdict == Verdict.SENT:
            self._sent_at = attempt.at
        if decision.state is not None:
            return await self._end(event, row, decision.state, decision.history, decision.reason)
        log.info(
            "email.will_be_retried",
            event_id=event.event_id,
            verdict=attempt.verdict,
            phase=attempt.phase,
            code=attempt.code,
            text=attempt.text,
            delay_s=round(decision.delay_s, 3),
        )
        if decision.history is not history:
            due_at = attempt.at + timedelta(seconds=decision.delay_s)
            attempts = m.Attempts(event_id=event.event_id, history=decision.history, due_at=due_at)
            try:
                await self._ledger.pend(attempts, row)
            except Conflict:
                return Later(0.0)  # somebody else has dealt with it meanwhile: look again
            except (Unavailable, ApiError) as exc:
                log.warning("email.attempt_not_written", event_id=event.event_id, reason=str(exc))
        return Later(decision.delay_s)

    async def _end(
        self, event: m.WelcomeEmailRequested, row: Row | None, state: m.State, history: m.History, reason: str = ""
    ) -> Settlement:
        """Outcome, then dead letter; then the queue entry may go."""
        outcome = m.Outcome(
            event_id=event.event_id,
            state=state,
            at=self._clock.now(),
            requested_at=event.requested_at,
            reason=reason,
            history=history,
        )
        if state is m.State.SENT:
            kept = await self._ledger.insist(outcome, row)
            if kept is None:
                return None
        else:
            kept = await self._ledger.end(outcome, row)
        if kept != outcome:
            return await self._known(kept)
        if state is not m.State.SENT and not await self._ledger.bury(outcome):
            return Erase()
        metrics.OUTCOMES.labels(state).inc()
        if state is m.State.SENT:
            metrics.TIME_TO_SEND.observe(max(0.0, (outcome.at - event.requested_at).total_seconds()), traces.exemplar())
            log.info("email.sent", event_id=event.event_id, attempts=history.total)
        else:
            text = history.attempts[-1].text if history.attempts else ""
            log.warning(f"email.{state}", event_id=event.event_id, attempts=history.total, reason=reason, text=text)
        return Done()

    async def _known(self, outcome: m.Outcome) -> Settlement:
        """Settles what has ended already: what should have followed the outcome may not have come about."""
        if outcome.state is m.State.ERASED:
            return Erase()
        if outcome.history.total > 1 or outcome.state is m.State.EXPIRED:
            await self._ledger.forget_attempts(outcome.event_id)
        if outcome.state is not m.State.SENT and not await self._ledger.bury(outcome):
            return Erase()
        return Done()


def _history(row: Row | None) -> m.History:
    return row.value.history if row is not None else m.History()


def decode(message: Message) -> m.WelcomeEmailRequested:
    """The event in a message.

    Raises:
        NotAnEvent: undecodable, or its id is not the one that its subject names: nothing in it can be trusted.
    """
    try:
        event = m.WELCOME_EMAIL_REQUESTED.decode(message.data)
        user_id, _ = s.split_event_id(event.event_id)
    except (msgspec.DecodeError, UnicodeDecodeError, ValueError, RecursionError) as exc:
        raise NotAnEvent(f"not a known event: {exc}") from exc
    if message.subject != s.welcome_requested(event.event_id) or user_id != event.user_id:
        raise NotAnEvent("its subject names another event")
    return event
