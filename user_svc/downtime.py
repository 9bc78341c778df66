"""Simulated downtime asked for at this service: one record in bucket CONTROL, which email_svc's replicas act on.

The schedule is theirs and is not known here: the record says when a downtime was ended, and each replica takes it for
the one that its schedule had on just then.
"""

from datetime import UTC, datetime, timedelta

import msgspec
from starlette.routing import Route

from contracts import subjects as s
from contracts.audit import Auditor
from contracts.control import DOWNTIME, DowntimeRecord
from contracts.downtime import downtime_route
from contracts.runtime.broker import Broker, Conflict, Unavailable

_TRIES = 5
"""Each of them loses to somebody else's write; so many operators at once there are not."""


class Asked(msgspec.Struct, frozen=True, kw_only=True):
    """What was written, on the broker's clock."""

    at: datetime
    down_until: datetime | None
    """None: ended."""


async def ask_downtime(broker: Broker, for_s: float | None) -> Asked:
    """Down for so long from now on, on all replicas of email_svc; None: up from now on.

    Raises:
        Unavailable, ApiError: not known to have been written.
    """
    for _ in range(_TRIES):
        kept = await broker.last(s.CONTROL, s.DOWNTIME_KEY)
        now = msgspec.convert((await broker.api(f"STREAM.INFO.{s.CONTROL}"))["ts"], datetime)
        at = now.timestamp()
        record = DowntimeRecord(ended_at=at) if for_s is None else DowntimeRecord(forced_until=at + for_s)
        try:
            await broker.store(s.DOWNTIME_KEY, DOWNTIME.encode(record), expect_last=0 if kept is None else kept.seq)
        except Conflict:
            continue
        return Asked(at=now.astimezone(UTC), down_until=None if for_s is None else now + timedelta(seconds=for_s))
    raise Unavailable("the downtime's record is being written by others", sent=False)


def routes(broker: Broker, audit: Auditor, token: str | None) -> list[Route]:
    """`POST /downtime`."""
    return [downtime_route(audit, token, lambda for_s: ask_downtime(broker, for_s))]
