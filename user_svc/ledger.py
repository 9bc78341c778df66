"""The books: where every event is, by the broker's own counters. Cheap at any size.

    gap = live events - in the outbox - in the queue - sent - dead - expired

Live events are the keys that ask for a mail. The figures are read in the order in which an event moves, so one that is
handed over meanwhile counts twice and never not at all: only a positive gap that lasts means that something is missing.
While a user is being erased the gap is not judged.
"""

import asyncio
from collections import deque
from datetime import datetime
from typing import Any

import msgspec

from contracts import subjects as s
from contracts.runtime.broker import Broker

_DRAIN_OVER_S = 60.0


class Books(msgspec.Struct, frozen=True, kw_only=True):
    """How many events are where. `dead` and `expired` include those that were replayed since."""

    live: int
    erasing: int
    outbox: int
    queue: int
    sent: int
    dead: int
    expired: int
    unreadable: int = 0
    """Of those in the queue, what its consumer does not have: damaged on the broker's disk. It steps over such entries,
    and counts them for ever."""

    @property
    def gap(self) -> int:
        """Events that are nowhere; negative while some are counted twice."""
        return self.live - self.outbox - self.queue - self.sent - self.dead - self.expired

    @property
    def missing(self) -> int:
        """The gap, and what is in the queue only as a number. For a moment it may be too high."""
        return self.gap + self.unreadable

    @property
    def ended(self) -> int:
        """Events with an outcome."""
        return self.sent + self.dead + self.expired


async def count(broker: Broker, stream: str, consumer: str) -> int:
    """What a counter of contracts.topology counts."""
    info = await broker.api(f"CONSUMER.INFO.{stream}.{consumer}")
    return int(info["num_pending"])


async def books(broker: Broker) -> Books:
    """Reads the books. Raises `Unavailable` or `ApiError`."""
    live = await count(broker, s.USERS, "count-users") + await count(broker, s.USERS, "count-again")
    erasing = await count(broker, s.USERS, "count-erase")
    relay = await broker.api(f"CONSUMER.INFO.{s.USERS}.{s.RELAY}")
    queued = (await broker.api(f"STREAM.INFO.{s.WELCOME_EMAILS}"))["state"]["messages"]
    consumer = await broker.api(f"CONSUMER.INFO.{s.WELCOME_EMAILS}.{s.EMAIL_SVC}")
    return Books(
        live=live,
        erasing=erasing,
        outbox=max(0, relay["num_pending"] + relay["num_ack_pending"] - erasing),
        queue=queued,
        unreadable=max(0, queued - consumer["num_pending"] - consumer["num_ack_pending"]),
        sent=await count(broker, s.DELIVERIES, "count-sent"),
        dead=await count(broker, s.DELIVERIES, "count-dead"),
        expired=await count(broker, s.DELIVERIES, "count-expired"),
    )


async def ledger(broker: Broker) -> dict[str, Any]:
    """What `GET /ledger` shows."""
    seen = await books(broker)
    open_dead = await count(broker, s.DEAD_LETTERS, "count-dead")
    open_expired = await count(broker, s.DEAD_LETTERS, "count-expired")
    return {
        "live_events": seen.live,
        "in_outbox": seen.outbox,
        "in_queue": seen.queue,
        "unreadable_in_queue": seen.unreadable,
        "sent": seen.sent,
        "dead": {"total": seen.dead, "open": open_dead, "replayed": max(0, seen.dead - open_dead)},
        "expired": {"total": seen.expired, "open": open_expired, "replayed": max(0, seen.expired - open_expired)},
        "quarantined": await count(broker, s.DEAD_LETTERS, "count-quarantine"),
        "erasures_under_way": seen.erasing,
        "gap": seen.gap,
        "balanced": seen.gap <= 0 or seen.erasing > 0,
    }


class Drain:
    """How fast mails end: a minute of samples (time, events ended)."""

    def __init__(self) -> None:
        self._samples: deque[tuple[float, int]] = deque()

    def sample(self, seen: Books) -> None:
        """One look at the books."""
        now = asyncio.get_running_loop().time()
        self._samples.append((now, seen.ended))
        while now - self._samples[0][0] > _DRAIN_OVER_S:
            self._samples.popleft()

    @property
    def per_s(self) -> float:
        """Events ended a second, over the last minute."""
        if len(self._samples) < 2:
            return 0.0
        (first_at, first), (last_at, last) = self._samples[0], self._samples[-1]
        return max(0.0, (last - first) / (last_at - first_at)) if last_at > first_at else 0.0


async def queue(broker: Broker, drain: Drain, *, email_deadline_s: float) -> dict[str, Any]:
    """What `GET /queue` shows. The drain estimate is None while nothing drains."""
    stream = await broker.api(f"STREAM.INFO.{s.WELCOME_EMAILS}")
    consumer = await broker.api(f"CONSUMER.INFO.{s.WELCOME_EMAILS}.{s.EMAIL_SVC}")
    relay = await broker.api(f"CONSUMER.INFO.{s.USERS}.{s.RELAY}")
    size = stream["state"]["messages"]
    per_s = drain.per_s
    drained_in_s = None if size and per_s == 0 else (size / per_s if size else 0.0)
    return {
        "size": size,
        "max_size": stream["config"]["max_msgs"],
        "waiting": consumer["num_pending"],
        "processing_or_retrying": consumer["num_ack_pending"],
        "redelivered": consumer["num_redelivered"],
        "oldest_age_seconds": oldest_age_s(stream),
        "outbox_pending": relay["num_pending"] + relay["num_ack_pending"],
        "paused": bool(consumer.get("paused")),
        "drain_per_second": round(per_s, 3),
        "drain_estimate_seconds": None if drained_in_s is None else round(drained_in_s, 1),
        "beyond_deadline": drained_in_s is not None and drained_in_s > email_deadline_s,
    }


def oldest_age_s(stream: dict[str, Any]) -> float:
    """How long the oldest entry of a work queue has been in it, by the broker's clock; 0 for an empty one."""
    if not stream["state"]["messages"]:
        return 0.0
    first = msgspec.convert(stream["state"]["first_ts"], datetime)
    return max(0.0, round((msgspec.convert(stream["ts"], datetime) - first).total_seconds(), 3))


async def age_of_next_s(
    broker: Broker, stream: str, consumer: dict[str, Any], after: dict[str, Any], pending: int
) -> float:
    """The age of the first message that a consumer has beyond `after` (one of its two positions); 0 without `pending`.

    By the broker's clock. Raises `Unavailable` or `ApiError`.
    """
    found = await broker.next(stream, after["stream_seq"] + 1, ">") if pending else None
    if found is None:
        return 0.0
    return max(0.0, (msgspec.convert(consumer["ts"], datetime) - found.time).total_seconds())
