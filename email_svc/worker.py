"""The worker: takes from the queue what the path and the limit allow, and hands it to email_svc.delivery.

free        the pull loop runs; its credit starts at 1 and doubles with each success, up to what the rate gives
otherwise   the loop rests; leave first, then one message, by itself
"""

import asyncio
import random
import time
from collections.abc import Awaitable, Callable

import structlog

from contracts import subjects as s
from contracts.runtime import crash
from contracts.runtime.broker import ApiError, Broker, Unavailable
from contracts.runtime.pull import Message, PullLoop
from email_svc.delivery import Delivery
from email_svc.leave import Leave, Path

log = structlog.get_logger()

_LOOK_EVERY_S = 0.25
_IDLE_S = (1.0, 5.0)
_ALONE_LOOK_S = 1.0


class Worker:
    """Enter `loop` as an async context manager and use `run` as a task."""

    def __init__(
        self,
        broker: Broker,
        path: Path,
        delivery: Delivery,
        *,
        slots: int,
        limit: int,
        on_missing: Callable[[], Awaitable[None]],
    ) -> None:
        """`slots` mails at once; `limit` of them asked for or waiting for a token."""
        self._path = path
        self._delivery = delivery
        self._idle_s = _IDLE_S[0]
        self.loop = PullLoop(
            broker,
            stream=s.WELCOME_EMAILS,
            durable=s.EMAIL_SVC,
            handle=self.handle,
            slots=slots,
            limit=limit,
            credit=0,
            on_missing=on_missing,
        )

    async def handle(self, message: Message) -> None:
        """A message that the loop pulled."""
        crash.point("worker.taken")
        leave = self._path.leave()
        if leave is None:  # it was under way while the path was closed off
            await message.nak(random.uniform(0.05, 0.25))
            return
        if await self._delivery.handle(message, leave) and self._path.free:
            self.loop.credit *= 2

    async def run(self) -> None:
        """For ever: opens and closes the loop with the path, and probes when it may."""
        while True:
            if self._path.free:
                self.loop.credit = self.loop.credit or 1  # slow start: everybody comes back at once
                await self._path.wait(_LOOK_EVERY_S)
                continue
            self.loop.credit = 0
            try:
                leave = await self._path.ask()
                if isinstance(leave, Leave):
                    await self._one(leave)
                elif leave > 0:
                    await self._path.wait(leave)
            except (Unavailable, ApiError) as exc:
                log.warning("worker.broken_off", reason=str(exc))
                await asyncio.sleep(_LOOK_EVERY_S)
            except Exception:  # outermost loop: nothing may end it
                log.exception("worker.failed")
                await asyncio.sleep(1)

    async def _rested(self) -> bool:
        """Alone: waits between two attempts, asking meanwhile; False: no longer alone."""
        due = time.monotonic() + self._path.alone_delay_s()
        while (left_s := due - time.monotonic()) > 0:
            await self._path.wait(min(left_s, _ALONE_LOOK_S))
            await self._path.ask()
        return self._path.alone

    async def _one(self, leave: Leave) -> None:
        """One message under a permit, or alone."""
        if leave.kind == "alone" and not await self._rested():
            return
        message = await self.loop.take_one()
        if message is None:
            await self._path.unused(leave)
            await self._path.wait(self._idle_s)
            self._idle_s = min(2 * self._idle_s, _IDLE_S[1])
            return
        crash.point("worker.probing")
        self._idle_s = _IDLE_S[0]
        await self._delivery.handle(message, leave)
