"""The whole system at one look, for the console: a snapshot, the samples of its charts, and both as they come.

    nobody listens   a snapshot each 5 s, for the samples
    somebody does    one each second, made and encoded once for all who listen

It shows what the routes of user_svc.admin show, and what the replicas say of themselves; it decides nothing.
"""

import asyncio
import contextlib
import time
from collections import Counter
from collections.abc import AsyncGenerator, AsyncIterator
from typing import Any

import msgspec
import structlog
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse
from starlette.routing import Route

from contracts import subjects as s
from contracts.runtime.admin import Refused, json_response
from contracts.runtime.broker import ApiError, Broker, Unavailable
from user_svc.admin import breaker_view
from user_svc.breaker_guard import Guard
from user_svc.dead_letters import DeadLetters
from user_svc.ledger import Drain, count, ledger, queue
from user_svc.replicas import Heard, Replicas, view
from user_svc.samples import EVERY_S, Pace, Samples, VerdictPace, row_of
from user_svc.settings import Settings

log = structlog.get_logger()

_LISTENERS_MAX = 500
"""Each costs user_svc about 0.1 ms a second."""
_OF_ONE_PEER_MAX = 100
"""So that one peer leaves some for the others. Behind a proxy all are one."""
_FRESH_S = 0.5
"""Whoever asks within so long gets the same snapshot."""
_encode = msgspec.json.Encoder().encode

_UNKNOWN = dict.fromkeys(
    ("accepted", "outbox", "queue", "breaker", "limiter", "downtime", "sent", "ledger", "replay", "problem")
)


class Overview:
    """Use `run` as a task, after `start`; `close` ends all streams."""

    def __init__(self, broker: Broker, guard: Guard, letters: DeadLetters, drain: Drain, settings: Settings) -> None:
        self._broker = broker
        self._guard = guard
        self._letters = letters
        self._drain = drain
        self._settings = settings
        self._replicas = Replicas(broker)
        self._accepted, self._sent, self._verdicts = Pace(), Pace(), VerdictPace()
        self._looking = asyncio.Lock()
        self._last: dict[str, Any] = {"at": guard.now(), **_UNKNOWN, "replicas": []}
        self._heard: list[Heard] = []
        self._encoded, self._looked_at = _encode(self._last), -_FRESH_S
        self._waiting: set[asyncio.Future[bytes]] = set()
        self._closed = False
        self.listeners: Counter[str] = Counter()
        """By the peer's address."""
        self.samples = Samples()

    async def start(self) -> None:
        """Begins to hear the replicas."""
        await self._replicas.start()

    def close(self) -> None:
        """Ends all streams, for the listener's end waits for them."""
        self._closed = True
        self._send(b"")

    # --- the snapshot ----------------------------------------------------------------------------------------------

    async def encoded(self) -> bytes:
        """The snapshot of now, or of half a second ago, as JSON."""
        async with self._looking:  # who waited finds it made
            if time.monotonic() - self._looked_at >= _FRESH_S:
                self._last = await self._snapshot()
                self._encoded, self._looked_at = _encode(self._last), time.monotonic()
        return self._encoded

    async def _snapshot(self) -> dict[str, Any]:
        """All figures; without the broker the last ones, and the problem in words."""
        asking = asyncio.create_task(self._replicas.ask())
        try:
            found = await self._books()
        except (Unavailable, ApiError, Refused) as exc:
            found = {"problem": f"The broker does not answer: {exc}"}  # `at` stays: the figures are of then
        self._heard = await asking
        workers = [heard.answer for heard in self._heard if heard.answer.service == "email_svc"]
        if found.get("queue") is not None:
            in_flight = sum(worker.in_hand for worker in workers) if workers else None  # None: nobody tells
            retrying = None if in_flight is None else max(0, found["queue"]["processing_or_retrying"] - in_flight)
            found["queue"] |= {"in_flight": in_flight, "retrying": retrying}
        found["limiter"] = next((worker.limiter for worker in workers if worker.limiter is not None), None)
        found["downtime"] = next((worker.downtime for worker in workers if worker.downtime is not None), None)
        return {**self._last, **found, "replicas": [view(heard) for heard in self._heard]}

    async def _books(self) -> dict[str, Any]:
        broker = self._broker
        users = await count(broker, s.USERS, "count-users")
        waiting = await queue(broker, self._drain, email_deadline_s=self._settings.email_deadline_s)
        books = await ledger(broker)
        now = time.monotonic()
        return {
            "at": self._guard.now(),
            "accepted": {"total": users, "per_second": self._accepted.per_s(now, users)},
            "outbox": {"pending": books["in_outbox"]},
            "queue": waiting,
            "breaker": breaker_view(self._guard, self._settings),
            "sent": {"total": books["sent"], "per_second": self._sent.per_s(now, books["sent"])},
            "ledger": books,
            "replay": self._letters.progress,
            "problem": None,
        }

    # --- events ----------------------------------------------------------------------------------------------------

    async def run(self) -> None:
        """For ever: a snapshot each second while somebody listens, and a sample each 5 s."""
        sampled = int(time.time()) // EVERY_S
        while True:
            try:
                slot = int(time.time()) // EVERY_S
                if self.listeners.total() or slot != sampled:
                    frame = _event("overview", await self.encoded())
                    if slot != sampled:
                        sampled = slot
                        frame += _event("sample", _encode(self._sample(slot * EVERY_S)))
                    self._send(frame)
            except Exception:  # outermost loop: nothing may end it
                log.exception("overview.failed")
            await asyncio.sleep(1.005 - time.time() % 1.0)  # each fifth of the clock's seconds has a sample

    def _sample(self, at: int) -> dict[str, Any]:
        verdicts = self._verdicts.per_s(time.monotonic(), [heard.answer for heard in self._heard])
        row = row_of(at, self._last if self._last["problem"] is None else None, verdicts)
        self.samples.add(row)
        return row

    def _send(self, frame: bytes) -> None:
        """To all who wait for one. Who is still writing the last one does not, and misses this."""
        for each in self._waiting:
            if not each.done():
                each.set_result(frame)
        self._waiting.clear()

    async def stream(self, peer: str) -> AsyncGenerator[bytes, None]:
        """The events of one listener."""
        self.listeners[peer] += 1
        try:
            yield b"retry: 1000\n\n" + _event("overview", await self.encoded())
            loop = asyncio.get_running_loop()
            while not self._closed:
                frame: asyncio.Future[bytes] = loop.create_future()
                self._waiting.add(frame)
                try:
                    yield await frame
                finally:
                    self._waiting.discard(frame)
        finally:
            self.listeners[peer] -= 1
            self.listeners += Counter()  # leaves out who has none


def _event(name: str, data: bytes) -> bytes:
    return b"event: %s\ndata: %s\n\n" % (name.encode(), data)


def routes(overview: Overview) -> list[Route]:
    """`GET /overview`, its samples and its events."""
    headers = {"Cache-Control": "no-store"}

    async def show(_: Request) -> Response:
        return Response(await overview.encoded(), headers=headers, media_type="application/json")

    async def samples(_: Request) -> Response:
        return json_response(overview.samples.columns(), headers=headers)

    async def events(request: Request) -> Response:
        peer = request.client.host if request.client else ""
        if overview.listeners.total() >= _LISTENERS_MAX or overview.listeners[peer] >= _OF_ONE_PEER_MAX:
            raise Refused(503, "So many pages are open already.", {"Retry-After": "10"})
        stream = overview.stream(peer)
        first = await anext(stream)  # from here on it is counted

        async def frames() -> AsyncIterator[bytes]:
            async with contextlib.aclosing(stream):
                yield first
                async for frame in stream:
                    yield frame

        return StreamingResponse(frames(), headers=headers, media_type="text/event-stream")

    return [
        Route("/overview", show),
        Route("/overview/samples", samples),
        Route("/overview/events", events),
    ]
