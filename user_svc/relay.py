"""The relay: does what the outbox (bucket USERS) asks for. Every replica of user_svc runs one; they share the work.

    u.<user_id>               publish WelcomeEmailRequested            then ack
    again.<user_id>.<nonce>   the same, with the user's record         then ack   (user gone: the key goes)
    erase.<user_id>           finish the erasure (user_svc.erasure)    then ack

An entry of the outbox is acked only when what it asks for is done. Everything may happen twice: the queue refuses a
second copy of an event while one is queued, and the ledger absorbs a copy of one that is done. Plain acks: a lost one
costs a repeat. Sign-up never waits for any of this.
"""

import asyncio
import random
from collections.abc import Awaitable, Callable
from datetime import datetime, timedelta

import structlog

from contracts import messages as m
from contracts import semconv
from contracts import subjects as s
from contracts.runtime import crash, traces
from contracts.runtime.broker import ApiError, Broker, Conflict, StreamFull, Unavailable
from contracts.runtime.pull import Message, PullLoop
from user_svc import metrics
from user_svc.erasure import erase
from user_svc.errors import Unreadable
from user_svc.settings import Settings
from user_svc.store import asked_in, living, user_in

log = structlog.get_logger()

SLOTS = 256
_RETRY_DELAY_MAX_S = 30.0
_FULL_AGAIN_S = 0.25
_GIVEN_BACK_S = 1.0


class Relay:
    """Use `loop` as an async context manager to run it."""

    def __init__(self, broker: Broker, settings: Settings, on_missing: Callable[[], Awaitable[None]]) -> None:
        self._broker = broker
        self._settings = settings
        self.loop = PullLoop(
            broker, stream=s.USERS, durable=s.RELAY, handle=self.handle, slots=SLOTS, on_missing=on_missing
        )

    async def handle(self, message: Message) -> None:
        """One entry of the outbox: done and acked, or given back."""
        crash.point("relay.taken")
        try:
            await self._do(message)
            crash.point("relay.done")
            await message.ack()
            crash.point("relay.acked")
            self.loop.credit *= 2
        except StreamFull:
            # One at a time until there is room; what waits is in the outbox, and sign-up goes on.
            self.loop.credit = 1
            metrics.RELAY_FULL.inc()
            try:
                # Waits with its place taken: else the next one would be tried at once, and found full, in a circle.
                await asyncio.sleep(_FULL_AGAIN_S * random.uniform(1, 2))
            finally:
                await message.nak()
        except (Unavailable, ApiError) as exc:
            log.warning("relay.given_back", sequence=message.sequence, reason=str(exc))
            metrics.RELAY_GIVEN_BACK.inc()
            await message.nak(retry_delay_s(message.delivered, _GIVEN_BACK_S))
        except asyncio.CancelledError:
            await message.nak()
            raise

    async def _do(self, message: Message) -> None:
        _, _, kind, user_id, *_ = message.subject.split(".")
        if kind == "erase":
            # The key is the order, whatever it holds: from its writing on the API takes the user for erased.
            if s.is_user_id(user_id):
                await erase(self._broker, user_id, email_deadline_s=self._settings.email_deadline_s)
            else:
                log.error("relay.erases_nobody", sequence=message.sequence)
                metrics.RELAY_UNDECODABLE.inc()
                # It could never be carried out, and while an erasure is under way the books are not judged.
                await self._broker.delete(s.USERS, message.sequence)
            return
        try:
            asked = asked_in(message.subject, message.data)
            if isinstance(asked, m.UserRegistered):
                await self.publish(asked, message.sequence, m.Why.REGISTRATION, message.stored_at, message.headers)
            else:
                await self.publish_again(asked, message.sequence, message.stored_at, message.headers)
        except Unreadable as exc:
            # Written by no version of ours. Nothing is deleted: it stays in the bucket for a person to look at.
            log.error("relay.undecodable", sequence=message.sequence, reason=exc.detail)
            metrics.RELAY_UNDECODABLE.inc()

    async def publish(
        self,
        user: m.UserRegistered,
        revision: int,
        why: m.Why,
        requested_at: datetime,
        headers: traces.Headers,
        repeated: traces.Headers | None = None,
    ) -> None:
        """Puts the event that a key asks for into the queue, once.

        `revision` and `requested_at` are the key's sequence and the broker's time of its write, so a repeat, whoever
        makes it, is the same event. `headers` are the key's, and its trace goes on; `repeated` are those of the key
        whose mail this one repeats.

        Raises:
            StreamFull: the queue has no room. Unavailable, ApiError: not accepted after all tries.
        """
        event_id = s.event_id(user.user_id, revision)
        event = m.WelcomeEmailRequested(
            event_id=event_id,
            user_id=user.user_id,
            email=user.email,
            name=user.name,
            why=why,
            requested_at=requested_at,
            expires_at=requested_at + timedelta(seconds=self._settings.email_deadline_s),
        )
        with semconv.publishing(event_id, why, headers, repeated):
            await self._enqueue(event_id, m.WELCOME_EMAIL_REQUESTED.encode(event))

    async def _enqueue(self, event_id: str, data: bytes) -> None:
        tries = self._settings.client_email_service_retry_attempts
        for attempt in range(1, tries + 1):
            try:
                await self._broker.store(
                    s.welcome_requested(event_id),
                    data,
                    expect_last=0,
                    headers=traces.headers(),
                    timeout_s=self._settings.client_email_service_timeout_s,
                )
                metrics.QUEUE_TOTAL.inc()
                return
            except StreamFull:
                raise
            except (Unavailable, ApiError) as exc:
                if isinstance(exc, Conflict) and not exc.in_flight:
                    metrics.DEDUPED_QUEUE.inc()
                    return  # queued already
                if attempt == tries:
                    raise
            await asyncio.sleep(retry_delay_s(attempt, self._settings.client_email_service_retry_delay_s))

    async def publish_again(
        self, again: m.WelcomeAgain, revision: int, asked_at: datetime, headers: traces.Headers
    ) -> None:
        """The same for a resend or replay: the event carries the user's record as it is. User gone: the key goes."""
        kept = await living(self._broker, again.user_id, before=revision)
        if kept is None:
            await self._broker.delete(s.USERS, revision)
            crash.point("relay.key_removed")
            log.info("relay.user_gone", user_id=again.user_id)
            return
        user, repeated = user_in(kept), await self._headers_of_key(again.repeats)
        crash.point("relay.user_read")
        await self.publish(user, revision, again.why, asked_at, headers, repeated)

    async def _headers_of_key(self, event_id: str) -> traces.Headers | None:
        """Of the key that asked for an event. None: it is gone, or that is no event's id."""
        try:
            key = await self._broker.at(s.USERS, s.split_event_id(event_id)[1])
        except ValueError:
            return None
        return None if key is None else key.headers


def retry_delay_s(attempt: int, base_s: float) -> float:
    """Full jitter: uniform in [0, min(30 s, base · 2^(attempt - 1))]; attempts count from 1.

    Source: M. Brooker, Exponential Backoff And Jitter (AWS Architecture Blog, 2015).
    """
    return random.uniform(0, min(_RETRY_DELAY_MAX_S, base_s * 2 ** min(attempt - 1, 30)))
