"""The logs of a drill, read when all has settled: the SMTP server's, the broker's streams, the breaker's broadcasts.

The streams are read as they are, through a consumer of the drill's own up to a recorded last sequence, and not through
the services' API: what the services say about themselves is in `Books`, to be compared.
"""

import asyncio
import contextlib
import time
from datetime import datetime
from typing import Any

import msgspec
import nats.errors
from nats.aio.msg import Msg
from nats.js.api import AckPolicy, ConsumerConfig, DeliverPolicy

from contracts import control as c
from contracts import messages as m
from contracts import subjects as s
from contracts.runtime.broker import ApiError, Broker, Stored, Unavailable
from tests.drill.history import Books, Change, Key, Reply, Row, Transaction
from tests.drill.plan import EMAILS
from tests.drill.proxy import Link
from tests.drill.stack import Stack
from user_svc.ledger import books
from user_svc.store import walk

_LOST_AFTER_S = 0.5
"""Bytes handed to a socket that is reset so soon after may never have been read."""
_BATCH = 500


_TO_MONOTONIC = time.monotonic() - time.time()


def monotonic(at: datetime | None) -> float:
    """A wall-clock time as monotonic seconds of this host; 0 for none."""
    return 0.0 if at is None else at.timestamp() + _TO_MONOTONIC


class BreakerLog:
    """Hears every change of the breaker's record, on a connection past the gates; reads it again after a reconnect.

    `deaf`: from when until when it may have missed some.
    """

    def __init__(self, broker: Broker) -> None:
        self._broker = broker
        self._by_sequence: dict[int, Change] = {}
        self.deaf: list[tuple[float, float]] = []
        self.state = ""
        self._reconnected = False

    @property
    def changes(self) -> list[Change]:
        """In the order of writing."""
        return [change for _, change in sorted(self._by_sequence.items())]

    async def listen(self) -> None:
        """From now on; and what it is now."""
        await self._broker.client.subscribe(s.changed(s.BREAKER_KEY), cb=self._heard)
        self._broker.reconnected.append(self._on_reconnect)
        await self.read()

    async def watch(self) -> None:
        """For ever: notes when the connection was lost, and mends what was missed."""
        heard_until = time.monotonic()
        while True:
            await asyncio.sleep(0.02)
            if self._reconnected:
                self._reconnected = False
                await self.read()
                self.deaf.append((heard_until, time.monotonic()))
            if self._broker.client.is_connected:
                heard_until = time.monotonic()

    def _on_reconnect(self) -> None:
        self._reconnected = True

    async def read(self) -> None:
        """Notes what the record is now; at the end of a drill too, or who was deaf all along saw nothing wrong."""
        while True:
            try:
                kept = await self._broker.last(s.CONTROL, s.BREAKER_KEY, timeout_s=1)
            except (Unavailable, ApiError):
                await asyncio.sleep(0.1)
                continue
            if kept is not None:
                self._note(kept.seq, kept.time, kept.data)
            return

    async def _heard(self, message: Msg) -> None:
        headers = message.headers or {}
        at = msgspec.convert(headers["Nats-Time-Stamp"], datetime)
        self._note(int(headers["Nats-Sequence"]), at, message.data)

    def _note(self, sequence: int, at: datetime, data: bytes) -> None:
        record = c.BREAKER.decode(data)
        self.state = str(record.state)
        self._by_sequence[sequence] = Change(
            at=monotonic(at),
            epoch=record.epoch,
            state=record.state.value,
            until=None if record.open_until is None else monotonic(record.open_until),
            round=record.round,
            issued=record.issued,
        )


async def stream(broker: Broker, name: str) -> list[Stored]:
    """All that a stream holds, in order, up to the last sequence it had when this began."""
    last_seq = (await broker.api(f"STREAM.INFO.{name}"))["state"]["last_seq"]
    js = broker.client.jetstream(timeout=10)
    config = ConsumerConfig(ack_policy=AckPolicy.NONE, deliver_policy=DeliverPolicy.ALL, mem_storage=True)
    reader = await js.pull_subscribe(">", stream=name, config=config)
    found: list[Stored] = []
    left = (await reader.consumer_info()).num_pending or 0
    while left:
        try:
            batch = await reader.fetch(min(left, _BATCH), timeout=10)
        except nats.errors.TimeoutError:
            break  # its rest was deleted meanwhile
        for message in batch:
            meta = message.metadata
            found.append(Stored(message.subject, meta.sequence.stream, meta.timestamp, message.data, _headers(message)))
        left = batch[-1].metadata.num_pending
    await reader.unsubscribe()
    return [stored for stored in found if stored.seq <= last_seq]


def _headers(message: Msg) -> bytes:
    return "".join(f"\r\n{name}: {value}" for name, value in (message.headers or {}).items()).encode()


async def keys(broker: Broker) -> tuple[list[Key], list[Row]]:
    """What asks for a mail, and what of it the relay has yet to do."""
    relay = await broker.api(f"CONSUMER.INFO.{s.USERS}.{s.RELAY}")
    idle = relay["num_pending"] + relay["num_ack_pending"] == 0
    found = [stored for stored in await stream(broker, s.USERS) if stored.data]
    emails = {
        stored.subject.split(".")[3]: m.USER_REGISTERED.decode(stored.data).email
        for stored in found
        if stored.subject.startswith("$KV.USERS.u.")
    }
    asked, rows = [], []
    for stored in found:
        kind, user_id = stored.subject.split(".")[2:4]
        if kind not in ("u", "again"):
            continue
        event, replays = s.event_id(user_id, stored.seq), ""
        if kind == "again":
            again = m.WELCOME_AGAIN.decode(stored.data)
            replays = again.repeats if again.why is m.Why.REPLAY else ""
        asked.append(
            Key(
                event_id=event,
                user_id=user_id,
                kind="u" if kind == "u" else "again",
                email=emails.get(user_id, ""),
                at=monotonic(stored.time),
                replays=replays,
            )
        )
        if not idle and stored.seq > relay["ack_floor"]["stream_seq"]:
            rows.append(Row(event_id=event, place="outbox"))
    return asked, rows


async def rows(broker: Broker) -> tuple[list[Row], int]:
    """Where the events are: the queue, the ledger, the dead letters; and how many messages are quarantined."""
    found, quarantined = [], 0
    async for stored_rows in walk(broker, stream=s.WELCOME_EMAILS, pattern=">", after=0):
        found += [Row(event_id=".".join(stored.subject.split(".")[-2:]), place="queue") for stored in stored_rows]
    for stored in await stream(broker, s.DELIVERIES):
        value = m.LEDGER_ROW.decode(stored.data)
        attempts = value.history.attempts
        common: dict[str, Any] = {
            "event_id": value.event_id,
            "attempts": tuple(_reply(attempt) for attempt in attempts),
            "verdicts": tuple(attempt.verdict for attempt in attempts),
            "total": value.history.total,
            "counted": value.history.charged,
            "attempted_at": tuple(monotonic(attempt.at) for attempt in attempts),
            "stored_at": monotonic(stored.time),
        }
        if isinstance(value, m.Outcome):
            found.append(
                Row(
                    place=str(value.state),
                    detail=value.reason,
                    at=monotonic(value.at),
                    requested_at=monotonic(value.requested_at),
                    **common,
                )
            )
        else:
            found.append(Row(place="attempts", **common))
    for stored in await stream(broker, s.DEAD_LETTERS):
        state = stored.subject.split(".")[1]
        if state == "quarantine":
            quarantined += 1
        else:
            event = ".".join(stored.subject.split(".")[2:4])
            found.append(Row(event_id=event, place="dead_letter", detail=state))
    return found, quarantined


def _reply(attempt: m.Attempt) -> Reply | None:
    return None if attempt.code is None else Reply(phase=attempt.phase, code=attempt.code, text=attempt.text)


def transactions(stack: Stack) -> list[Transaction]:
    """The SMTP server's log, with the worker that each came from and whether it can have heard of its 250."""
    by_port: dict[int, list[tuple[str, Link]]] = {}
    for name in EMAILS:
        for gate in stack.gates[f"{name}~smtp"]:
            for link in gate.log:
                if link.port is not None:
                    by_port.setdefault(link.port, []).append((name, link))
    found = []
    for seen in stack.smtp.begun:
        port = stack.smtp.connections[seen.connection].peer_port
        through = [each for each in by_port.get(port, []) if each[1].opened_at <= seen.mail_at]
        worker, link = max(through, key=lambda each: each[1].opened_at, default=(None, None))
        told = (
            seen.told is not None
            and link is not None
            and link.handed_back >= seen.told
            and (link.reset_at is None or link.reset_at > (seen.accepted_at or 0.0) + _LOST_AFTER_S)
        )
        found.append(
            Transaction(
                worker=worker,
                began=seen.mail_at,
                rcpt=seen.asked_for,
                message_id=seen.message_id,
                accepted_at=seen.accepted_at,
                told=told,
                ended=seen.ended_at or 0.0,
                replies=tuple(Reply(phase=phase, code=code, text=text) for phase, code, text in seen.replies),
            )
        )
    return found


async def settled(broker: Broker) -> bool:
    """Whether nothing is on its way any more, and nothing is missing that the reconciler will yet find."""
    with contextlib.suppress(Unavailable, ApiError):
        seen = await books(broker)
        return seen.outbox == seen.queue == seen.erasing == 0 and seen.gap <= 0
    return False


async def counters(stack: Stack) -> Books:
    """What the services say: `GET /ledger`."""
    status, said = await stack.operators["user_svc"].ask("GET", "/ledger")
    assert status == 200, f"GET /ledger: {status}"
    return Books(
        live=said["live_events"],
        outbox=said["in_outbox"],
        queue=said["in_queue"],
        sent=said["sent"],
        dead=said["dead"]["total"],
        expired=said["expired"]["total"],
        erasing=said["erasures_under_way"],
    )
