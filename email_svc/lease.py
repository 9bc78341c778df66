"""The lease on a message in hand: kept alive every 10 s, and never trusted beyond what the broker has confirmed.

    valid until  (when the last confirmed renewal, or the pull itself, was SENT) + ack_wait - 5 s     monotonic clock
          or the connection to the broker is lost: one that was killed may have forgotten whose the message is

Before the final dot of a mail the worker looks at it. Once over it is over for good: the message may be another
worker's by then (contracts.runtime.pull: `Message.ours`).
"""

import asyncio
import contextlib
from types import TracebackType

from contracts.runtime.broker import Unavailable
from contracts.runtime.pull import Message

RENEW_EVERY_S = 10.0


class Lease:
    """Async context manager around the handling of one message."""

    def __init__(self, message: Message) -> None:
        self._message = message
        self._keeper: asyncio.Task[None] | None = None

    @property
    def valid(self) -> bool:
        """Whether the message is certainly still ours."""
        return self._message.ours

    async def __aenter__(self) -> "Lease":
        # Most messages are gone before: a timer costs less than a task.
        self._timer = asyncio.get_running_loop().call_later(RENEW_EVERY_S, self._begin)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._timer.cancel()
        if self._keeper is not None:
            self._keeper.cancel()

    def _begin(self) -> None:
        self._keeper = asyncio.create_task(self._keep())

    async def _keep(self) -> None:
        while not self._message.lapsed:
            # On another connection too: while the reply to a dot is awaited, nobody else should have the message.
            with contextlib.suppress(Unavailable):  # not confirmed: it runs out unless the next one is
                await self._message.keep(timeout_s=2.0)
            await asyncio.sleep(RENEW_EVERY_S)
