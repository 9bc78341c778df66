"""The reconciler: mends a queue that lost what it had taken (purged, damaged, deleted).

A positive gap of the books that lasts (user_svc.ledger) starts it, as does the clock.
"""

import asyncio
import random
from collections.abc import Awaitable, Callable

import structlog

from contracts import messages as m
from contracts import subjects as s
from contracts.runtime import crash
from contracts.runtime.broker import ApiError, Broker, Stored, StreamFull, Unavailable
from contracts.runtime.process import BadStart
from user_svc import metrics
from user_svc.errors import Unreadable
from user_svc.ledger import Books, Drain, age_of_next_s, books, count, oldest_age_s
from user_svc.relay import Relay
from user_svc.store import asked_in, walk

log = structlog.get_logger()


async def reconcile(broker: Broker, relay: Relay) -> int:
    """Publishes again what the relay has acked and what has neither queue entry nor outcome; returns how many.

    Raises:
        Unavailable, ApiError, StreamFull: broken off; the next run begins anew.
    """
    info = await broker.api(f"CONSUMER.INFO.{s.USERS}.{s.RELAY}")
    floor = info["ack_floor"]["stream_seq"]
    mended = 0
    async for rows in walk(broker, pattern="$KV.USERS.>", after=0):
        mended += sum(await asyncio.gather(*(_mend(broker, relay, row) for row in rows if row.seq <= floor)))
        if rows[-1].seq >= floor:
            break
    return mended


async def _mend(broker: Broker, relay: Relay, key: Stored) -> bool:
    if key.subject.split(".")[2] not in ("u", "again"):
        return False
    try:
        asked = asked_in(key.subject, key.data)
    except Unreadable:
        return False  # the relay has said so; it must not keep the others from being mended
    event = s.event_id(asked.user_id, key.seq)
    # Almost every event has an outcome, so that is asked first; but only the order queue, then outcome proves a loss,
    # for a mail's outcome is there before its queue entry goes.
    outcome = await broker.last(s.DELIVERIES, s.outcome(event, "*"))
    if outcome is not None and outcome.subject.endswith((f".{m.State.SENT}", f".{m.State.ERASED}")):
        return False
    if await broker.last(s.WELCOME_EMAILS, s.welcome_requested(event)) is not None:
        return False
    outcome = await broker.last(s.DELIVERIES, s.outcome(event, "*"))
    if outcome is not None:
        if not await _unburied(broker, event, outcome):
            return False
    elif await broker.subjects(s.DELIVERIES, s.outcome(event, "*")):
        return False  # it ended; only that the record of it is damaged on the broker's disk
    crash.point("reconciler.found")
    try:
        if isinstance(asked, m.UserRegistered):
            await relay.publish(asked, key.seq, m.Why.REGISTRATION, key.time, key.headers)
        else:
            await relay.publish_again(asked, key.seq, key.time, key.headers)
    except Unreadable:
        return False  # its user
    crash.point("reconciler.republished")
    metrics.RECONCILED.inc()
    log.warning("reconciler.republished", event_id=event)
    return True


async def _unburied(broker: Broker, event: str, outcome: Stored) -> bool:
    """Whether a dead or expired mail has no dead letter, though no replay took it: its worker died before it wrote one,
    and the queue entry, by which another would have, was lost. Queued again, it is known and gets its letter."""
    state = outcome.subject.rpartition(".")[2]
    if state not in (m.State.DEAD, m.State.EXPIRED):
        return False
    if await broker.last(s.DEAD_LETTERS, s.dead_letter(event, state)) is not None:
        return False
    user_id, revision = s.split_event_id(event)
    return await broker.last(s.USERS, s.again_key(user_id, f"r{revision}")) is None


async def show(broker: Broker, seen: Books) -> None:
    """Sets the metrics of the books, the queue and the outbox. Raises `Unavailable` or `ApiError`."""
    metrics.LEDGER_GAP.set(seen.missing)
    metrics.OUTBOX_PENDING.set(seen.outbox)
    metrics.QUEUE_SIZE.set(seen.queue)
    for place in ("live", "outbox", "queue", "sent", "dead", "expired"):
        metrics.LEDGER_EVENTS.labels(place).set(getattr(seen, place))
    for state in ("dead", "expired", "quarantine"):
        metrics.DEAD_LETTERS.labels(state).set(await count(broker, s.DEAD_LETTERS, f"count-{state}"))
    metrics.QUEUE_OLDEST.set(oldest_age_s(await broker.api(f"STREAM.INFO.{s.WELCOME_EMAILS}")))
    consumer = await broker.api(f"CONSUMER.INFO.{s.WELCOME_EMAILS}.{s.EMAIL_SVC}")
    metrics.QUEUE_PROCESSING.set(consumer["num_ack_pending"])
    metrics.QUEUE_REDELIVERED.set(consumer["num_redelivered"])
    metrics.QUEUE_WAITING_AGE.set(
        await age_of_next_s(broker, s.WELCOME_EMAILS, consumer, consumer["delivered"], consumer["num_pending"])
    )
    relay = await broker.api(f"CONSUMER.INFO.{s.USERS}.{s.RELAY}")
    pending = relay["num_pending"] + relay["num_ack_pending"]
    metrics.OUTBOX_AGE.set(await age_of_next_s(broker, s.USERS, relay, relay["ack_floor"], pending))
    metrics.BOOKS_READ.set_to_current_time()


async def keep_reconciled(
    broker: Broker,
    relay: Relay,
    drain: Drain,
    *,
    after_s: float,
    interval_s: float,
    on_missing: Callable[[], Awaitable[None]],
) -> None:
    """Runs for ever: looks at the books, reconciles when a positive gap lasts `after_s`, and each `interval_s`.

    `on_missing` is called when a stream or consumer is gone; it raises `BadStart` while it may not make it.
    """
    loop = asyncio.get_running_loop()
    look_every_s = min(5.0, max(0.2, after_s / 4))
    next_at = loop.time() + interval_s
    gap_since: float | None = None
    lost_since, lost_told = loop.time(), 0
    hopeless, patience_s = 0, after_s
    missing = False
    while True:
        await asyncio.sleep(look_every_s * random.uniform(0.8, 1.2))  # replicas look at different moments
        try:
            if missing:
                await on_missing()
                missing = False
            now = loop.time()
            seen = await books(broker)
            drain.sample(seen)
            await show(broker, seen)
            if seen.missing <= 0 or seen.erasing:
                gap_since = None
            elif gap_since is None:
                gap_since = now
                log.warning("ledger.gap", gap=seen.missing)
            lost = 0 if seen.erasing else seen.ended - seen.live
            if lost <= 0:
                lost_since, lost_told = now, 0
            elif now - lost_since >= after_s and lost != lost_told:
                lost_told = lost  # nothing here can mend it; GET says 404, and the address is free again
                log.error("ledger.users_lost", at_least=lost)
            if seen.missing != hopeless:
                patience_s = after_s
            if now >= next_at or (gap_since is not None and now - gap_since >= patience_s):
                mended = await reconcile(broker, relay)
                log.info("reconciler.done", gap=seen.missing, republished=mended)
                # The same gap again, of an unreadable record say, is not worth a walk over all users each time.
                hopeless, patience_s = (0, after_s) if mended else (seen.missing, min(2 * patience_s, interval_s))
                next_at, gap_since = loop.time() + interval_s, None
        except StreamFull:
            log.info("reconciler.queue_full")
        except (Unavailable, ApiError) as exc:
            log.warning("reconciler.broken_off", reason=str(exc))
            missing = isinstance(exc, ApiError)
        except BadStart as exc:  # not ours to make (PROVISION=verify); it says who can
            log.error("reconciler.broken_off", reason=str(exc))
        except Exception:  # outermost loop: nothing may end it
            log.exception("reconciler.failed")
