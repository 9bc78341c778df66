"""Erasing a user: a saga that may be broken off after any step and is finished by the relay.

It covers the user's events whose key is older than the erase key. Every step can be repeated:

    1  outcome `erased` for every such event, pending or done, against the outcome that is there
    2  queue entries and dead letters
    3  the other rows of the ledger (the markers of step 1 go by themselves, EMAIL_DEADLINE and a day later)
    4  the user's keys
    5  the erase key, last

Step 1 comes first: a worker or relay that has an event in hand just now will find the marker, whatever it does next;
a later `sent` is refused. Things are deleted by sequence, which overwrites their bytes; purging leaves them on disk.
"""

from datetime import UTC, datetime

import structlog

from contracts import messages as m
from contracts import subjects as s
from contracts.runtime import crash
from contracts.runtime.broker import Broker, Conflict

log = structlog.get_logger()

_DAY_S = 86_400.0


async def erase(broker: Broker, user_id: str, *, email_deadline_s: float) -> None:
    """Erases what the user's erase key covers; nothing to do if there is none.

    Raises:
        Unavailable, ApiError: broken off; the relay, or the next call, goes on.
    """
    asked = await broker.last(s.USERS, s.erase_key(user_id))
    if asked is None:
        return
    covered = asked.seq
    keys = [
        stored
        for subject in [s.user_key(user_id), *await broker.subjects(s.USERS, s.again_key(user_id, "*"))]
        if (stored := await broker.last(s.USERS, subject)) is not None and stored.seq < covered
    ]
    queued = await broker.subjects(s.WELCOME_EMAILS, s.welcome_requested(f"{user_id}.*"))
    letters = await broker.subjects(s.DEAD_LETTERS, s.dead_letter(f"{user_id}.*", "*"))
    rows = await broker.subjects(s.DELIVERIES, s.delivery_rows(f"{user_id}.*"))

    events = {s.event_id(user_id, stored.seq) for stored in keys}
    for subject in (*queued, *letters, *rows):
        event = _event_in(subject, user_id)
        if event is not None and s.split_event_id(event)[1] < covered:
            events.add(event)
    crash.point("erasure.listed")
    for event in events:
        await _mark(broker, event, ttl_s=email_deadline_s + _DAY_S)
    crash.point("erasure.marked")
    # Listed again: what a worker wrote before its event was marked is there by now, and after it nothing can be.
    rows = await broker.subjects(s.DELIVERIES, s.delivery_rows(f"{user_id}.*"))
    letters = await broker.subjects(s.DEAD_LETTERS, s.dead_letter(f"{user_id}.*", "*"))
    for stream, subjects in ((s.WELCOME_EMAILS, queued), (s.DEAD_LETTERS, letters), (s.DELIVERIES, rows)):
        for subject in subjects:
            # None: no event, and of no version of ours; nobody will ever look for it.
            if _event_in(subject, user_id) in (None, *events) and not subject.endswith(f".{m.State.ERASED}"):
                await _delete_last(broker, stream, subject)
                crash.point("erasure.row_removed")
    for stored in keys:
        await broker.delete(s.USERS, stored.seq)
        crash.point("erasure.key_removed")
    await broker.delete(s.USERS, covered)
    crash.point("erasure.done")
    log.info("user.erased", user_id=user_id, events=len(events))


async def _mark(broker: Broker, event: str, *, ttl_s: float) -> None:
    """Makes `erased` the outcome of an event, whatever it was."""
    outcome = m.OUTCOME.encode(m.Outcome(event_id=event, state=m.State.ERASED, at=datetime.now(UTC)))
    any_state = s.outcome(event, "*")
    while True:
        found = await broker.last(s.DELIVERIES, any_state)
        if found is not None and found.subject == s.outcome(event, m.State.ERASED):
            return
        try:
            await broker.store(
                s.outcome(event, m.State.ERASED),
                outcome,
                expect_last=found.seq if found is not None else 0,
                expect_on=any_state,
                ttl_s=ttl_s,
            )
        except Conflict:
            continue  # a worker wrote one in between
        if found is not None:
            crash.point("erasure.marker_written")
            await broker.delete(s.DELIVERIES, found.seq)
        return


def _event_in(subject: str, user_id: str) -> str | None:
    try:
        return s.event_in(subject, user_id)
    except ValueError:
        return None


async def _delete_last(broker: Broker, stream: str, subject: str) -> None:
    found = await broker.last(stream, subject)
    if found is not None:
        await broker.delete(stream, found.seq)
