"""Simulated downtime on the broker's clock: by schedule, or on demand through bucket CONTROL. All replicas agree."""

import asyncio
import contextlib
import time
from collections.abc import Callable
from typing import Any

import msgspec
import structlog
from nats.aio.msg import Msg

from contracts import subjects as s
from contracts.control import DOWNTIME, DowntimeRecord
from contracts.runtime.broker import ApiError, Broker, Conflict, Unavailable
from contracts.runtime.clock import BrokerClock
from email_svc import metrics
from email_svc.policies.downtime import Schedule, down_until, next_down

log = structlog.get_logger()

_READ_EVERY_S = 5.0
_EDGE_EVERY_S = 0.1


def spared_until(schedule: Schedule, record: DowntimeRecord) -> float:
    """Until when the record overrules the schedule: to the end of the downtime that it ended, and no longer."""
    return max(record.spared_until, down_until(schedule, record.ended_at) or 0.0)


class Downtime:
    """Use `run` as a task."""

    def __init__(self, broker: Broker, clock: BrokerClock, schedule: Schedule) -> None:
        self._broker = broker
        self._clock = clock
        self._schedule = schedule
        self._record = DowntimeRecord()
        self._revision = 0

    @property
    def until(self) -> float | None:
        """When the downtime that is on now ends; None: it is up."""
        if not self._clock.known:
            return None
        return down_until(
            self._schedule,
            self._clock.low(),
            forced_until=self._record.forced_until,
            spared_until=spared_until(self._schedule, self._record),
        )

    async def run(self) -> None:
        """Follows the record and tells of each edge, for ever."""
        await self._broker.client.subscribe(s.changed(s.DOWNTIME_KEY), cb=self._heard)
        was_down, read_at = False, -_READ_EVERY_S
        while True:
            if time.monotonic() - read_at >= _READ_EVERY_S:
                read_at = time.monotonic()
                try:
                    await self._read()
                except (Unavailable, ApiError) as exc:
                    log.warning("downtime.unreachable", reason=str(exc))
                except Exception:  # outermost loop: a record that nobody can read must not end it
                    log.exception("downtime.failed")
            until = self.until
            metrics.DOWNTIME.set(until is not None)
            if was_down != (until is not None):
                was_down = until is not None
                if until is not None:
                    log.warning("downtime.began", for_s=round(until - self._clock.low(), 1))
                else:
                    log.warning("downtime.ended")
            await asyncio.sleep(_EDGE_EVERY_S)

    async def _heard(self, raw: Msg) -> None:
        with contextlib.suppress(msgspec.DecodeError, KeyError, ValueError):
            self._adopt(DOWNTIME.decode(raw.data), int((raw.headers or {})["Nats-Sequence"]))

    async def _read(self) -> None:
        """Adopts what the leader has, whatever was known before."""
        stored = await self._broker.last(s.CONTROL, s.DOWNTIME_KEY)
        self._record = DOWNTIME.decode(stored.data) if stored is not None and stored.data else DowntimeRecord()
        self._revision = stored.seq if stored is not None else 0

    def _adopt(self, record: DowntimeRecord, revision: int) -> None:
        if revision > self._revision:
            self._record, self._revision = record, revision

    async def start(self, for_s: float) -> None:
        """Down from now on, on all replicas. Raises `Unavailable` or `ApiError`."""
        await self._write(lambda now: DowntimeRecord(forced_until=now + for_s))

    async def end(self) -> None:
        """Up from now on; the schedule goes on after the downtime that it has on just now, if any."""
        await self._write(lambda now: DowntimeRecord(ended_at=now))

    async def _write(self, make: Callable[[float], DowntimeRecord]) -> None:
        """In the place of whatever is there, readable or not."""
        while True:
            stored = await self._broker.last(s.CONTROL, s.DOWNTIME_KEY)
            record, expected = make(self._clock.low()), 0 if stored is None else stored.seq
            try:
                revision = await self._broker.store(s.DOWNTIME_KEY, DOWNTIME.encode(record), expect_last=expected)
            except Conflict:
                continue
            self._adopt(record, revision)
            return

    def status(self) -> dict[str, Any]:
        """What `GET /downtime` shows; durations in seconds from now."""
        now, until = self._clock.low(), self.until
        begins = next_down(self._schedule, now)
        return {
            "down": until is not None,
            "ends_in_s": None if until is None else round(until - now, 1),
            "on_demand": now < self._record.forced_until,
            "schedule": {
                "enabled": self._schedule.enabled,
                "interval_s": self._schedule.interval_s,
                "duration_s": self._schedule.duration_s,
                "next_in_s": None if begins is None else round(begins - now, 1),
            },
        }
