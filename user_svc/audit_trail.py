"""`GET /audit`: the newest records of what operators did at either service. Whoever looks pays for what is new."""

import asyncio

import msgspec
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from contracts import messages as m
from contracts import subjects as s
from contracts.runtime.admin import Refused, json_response
from contracts.runtime.broker import ApiError, Broker, Unavailable

_SHOWN_MAX = 100
_AT_ONCE = 20
"""Reads under way together: the first look must not be what the broker is busy with."""

Record = m.Audit | dict[str, int]
"""A record, or the sequence of one that cannot be read."""


class Trail:
    """The newest records by their sequence, kept between the looks: records do not change."""

    def __init__(self, broker: Broker) -> None:
        self._broker = broker
        self._made = ""
        """When the stream was: another one has other records under the same sequences."""
        self._last = 0
        """The newest sequence that was looked at."""
        self._known: dict[int, Record] = {}

    async def newest(self) -> list[Record]:
        """The newest 100, the newest first. Raises `Unavailable` or `ApiError`."""
        info = await self._broker.api(f"STREAM.INFO.{s.AUDIT}")
        made, last, first = info["created"], info["state"]["last_seq"], info["state"]["first_seq"]
        begins = max(1, first, last - _SHOWN_MAX + 1)  # of a stream that never held any the first is 0
        old = made == self._made and last >= self._last
        known = {seq: row for seq, row in self._known.items() if seq >= begins} if old else {}
        news = range(max(begins, self._last + 1) if old else begins, last + 1)
        for start in range(0, len(news), _AT_ONCE):
            known.update(await self._read(news[start : start + _AT_ONCE]))
        self._made, self._last, self._known = made, last, known
        return [known[seq] for seq in sorted(known, reverse=True)]

    async def _read(self, sequences: range) -> dict[int, Record]:
        rows = await asyncio.gather(*(self._broker.at(s.AUDIT, seq) for seq in sequences))
        return {row.seq: _decoded(row.seq, row.data) for row in rows if row is not None}


def _decoded(seq: int, data: bytes) -> Record:
    try:
        return m.AUDIT.decode(data)
    except msgspec.DecodeError:
        return {"unreadable": seq}


def routes(broker: Broker) -> list[Route]:
    """`GET /audit`."""
    trail = Trail(broker)

    async def audited(_: Request) -> Response:
        try:
            return json_response({"audit": await trail.newest()})
        except (Unavailable, ApiError) as exc:
            raise Refused(503, f"The broker does not answer: {exc}", {"Retry-After": "1"}) from exc

    return [Route("/audit", audited)]
