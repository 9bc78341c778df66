"""The ledger: what is known of each event, kept by the broker in stream DELIVERIES.

    deliveries.<event_id>.attempts          while the mail is pending; only after an attempt that left it so
    deliveries.<event_id>.outcome.<state>   once; the broker refuses a second outcome of any state

It is what makes a mail idempotent: whoever has a message in hand looks here first. Reads ask the stream's leader.
"""

import asyncio

import msgspec
import structlog

from contracts import messages as m
from contracts import semconv
from contracts import subjects as s
from contracts.runtime import crash
from contracts.runtime.broker import Broker, Conflict, Stored
from contracts.runtime.logs import without_addresses
from email_svc import metrics

log = structlog.get_logger()

_AGAIN_S = 0.1
_LAST_WORD_S = 3.0
_QUARANTINE_S = 7 * 86_400.0
_HEADERS_BYTES = 8_192
"""Room for the headers and the subject: the broker's limit is for a message with them."""


class Row(msgspec.Struct, frozen=True):
    """The newest row of an event, and its sequence."""

    value: m.Attempts | m.Outcome
    seq: int


class Ledger:
    """Every method but `insist` raises `Unavailable` or `ApiError` when the broker does not do it."""

    def __init__(self, broker: Broker) -> None:
        self._broker = broker

    async def look_up(self, event_id: str) -> Row | None:
        """The outcome, else the attempts so far; None: nothing was tried yet."""
        stored = await self._broker.last(s.DELIVERIES, s.delivery_rows(event_id))
        return None if stored is None else Row(_read(stored), stored.seq)

    async def end(self, outcome: m.Outcome, row: Row | None) -> m.Outcome:
        """Writes the outcome of an event and returns the one that holds: another worker's, if that came first.

        `row` is what `look_up` found: attempts that the outcome makes superfluous, for it carries the history.
        """
        try:
            with semconv.recording("outcome"):
                await self._broker.store(
                    s.outcome(outcome.event_id, outcome.state),
                    m.OUTCOME.encode(outcome),
                    expect_last=0,
                    expect_on=s.outcome(outcome.event_id, "*"),
                )
        except Conflict:
            kept = await self._broker.last(s.DELIVERIES, s.outcome(outcome.event_id, "*"))
            if kept is None:  # in flight (clusters), or an erased marker that went just now
                raise
            holds = _read(kept)
            if isinstance(holds, m.Outcome) and holds != outcome:
                return holds
        crash.point("ledger.outcome_written")
        if row is not None:
            await self.forget_attempts(outcome.event_id)
        return outcome

    async def insist(self, outcome: m.Outcome, row: Row | None) -> m.Outcome | None:
        """Writes `sent` however often it takes: the mail is out, and a retry would be a second one.

        None: the process had to end with the broker away; nothing may be said of the message then.
        """

        async def until_written() -> m.Outcome:
            told = False
            while True:
                try:
                    holds = await self.end(outcome, row)
                    if told:  # meanwhile another worker may have had the message, and tried it
                        await self.forget_attempts(outcome.event_id)
                    return holds
                except Exception as exc:  # noqa: BLE001 - whatever it is, giving up would send the mail again
                    if not told:
                        log.warning("email.outcome_not_written", event_id=outcome.event_id, reason=repr(exc))
                    told = True
                    await asyncio.sleep(_AGAIN_S)

        writing = asyncio.ensure_future(until_written())
        try:
            return await asyncio.shield(writing)
        except asyncio.CancelledError:
            await asyncio.wait({writing}, timeout=_LAST_WORD_S)
            if writing.done():
                return writing.result()
            writing.cancel()
            metrics.UNKNOWN.inc()
            log.error("email.outcome_lost", event_id=outcome.event_id)
            return None

    async def forget_attempts(self, event_id: str) -> None:
        """Removes the row of attempts: the outcome carries them."""
        await self._broker.purge(s.DELIVERIES, s.attempts(event_id))
        crash.point("ledger.attempts_removed")

    async def pend(self, attempts: m.Attempts, row: Row | None) -> None:
        """Writes the attempts so far, against the row that `look_up` found.

        Raises:
            Conflict: somebody else has written meanwhile; theirs holds.
        """
        with semconv.recording("attempts"):
            await self._broker.store(
                s.attempts(attempts.event_id),
                m.ATTEMPTS.encode(attempts),
                expect_last=0 if row is None else row.seq,
                expect_on=s.delivery_rows(attempts.event_id),
            )
        crash.point("ledger.attempts_written")

    async def bury(self, outcome: m.Outcome) -> bool:
        """Writes the dead letter of an outcome; again is the same. False: its user was erased, and it is gone again."""
        history = outcome.history
        letter = m.DeadLetter(
            event_id=outcome.event_id,
            user_id=s.split_event_id(outcome.event_id)[0],
            state=outcome.state,
            reason=outcome.reason,
            at=outcome.at,
            code=history.attempts[-1].code if history.attempts else None,
            attempts=history.total,
            requested_at=outcome.requested_at,
        )
        seq = await self._broker.store(s.dead_letter(outcome.event_id, outcome.state), m.DEAD_LETTER.encode(letter))
        crash.point("ledger.letter_written")
        holds = await self._broker.last(s.DELIVERIES, s.outcome(outcome.event_id, "*"))
        if holds is not None and holds.subject == s.outcome(outcome.event_id, m.State.ERASED):
            await self._broker.delete(s.DEAD_LETTERS, seq)
            return False
        return True

    async def quarantine(self, sequence: int, subject: str, data: bytes, reason: str) -> None:
        """Keeps a message without a trustworthy id for 7 days, bytes and all, named by its sequence in the queue.

        Nothing in it can be trusted: its words must not end a header, nor its size make the broker hang up.
        """
        printable = "".join(char if char.isprintable() else " " for char in without_addresses(reason))[:200]
        await self._broker.store(
            s.quarantined(sequence),
            data[: self._broker.client.max_payload - _HEADERS_BYTES],
            ttl_s=_QUARANTINE_S,
            headers={s.HEADER_REASON: printable, s.HEADER_SUBJECT: subject},
        )
        crash.point("ledger.quarantined")

    async def erase_entry(self, sequence: int) -> None:
        """Takes the queue entry of an erased user out so that its bytes go too."""
        await self._broker.delete(s.WELCOME_EMAILS, sequence)
        crash.point("ledger.entry_erased")


def _read(stored: Stored) -> m.Attempts | m.Outcome:
    """A row; where it cannot be read, what its subject says, so that the mail ends all the same."""
    row, readable = m.ledger_row(stored.subject, stored.data, stored.time)
    if not readable:
        log.error("ledger.unreadable_row", sequence=stored.seq, event_id=row.event_id)
        metrics.LEDGER_UNREADABLE.inc()
    return row
