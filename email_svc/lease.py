"""The lease on a message in hand: kept alive every 10 s, and never trusted beyond what the broker has confirmed.

    valid until  (when the last confirmed renewal, or the pull itself, was SENT) + ack_wait - 5 s     monotonic clock
          or the connection to the broker is lost: one that was killed may have forgotten whose the message is

Before the final dot of a mail the worker looks at it. Once over it is over for good: the message may be another
worker's by then (contracts.runtime.pull: `Message.ours`).
"""

import asyncio
from types import TracebackType

from contracts.runtime.broker import Unavailable
from contracts.runtime.pull import Message

RENEW_EVERY_S = 10.0


class Lease:
    """Async context manager around the handling of one message."""

    def __init__(self, message: Message) -> None:
        self._message = message

    @property
    def valid(self) -> bool:
        """Whether the message is certainly still ours."""
        return self._message.ours

    async def __aenter__(self) -> "Lease":
        self._keeper = asyncio.create_task(self._keep())
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._keeper.cancel()

    async def _keep(self) -> None:
        while True:
            await asyncio.sleep(RENEW_EVERY_S)
            if self._message.lapsed:
                return
            # On another connection too: while the reply to a dot is awaited, nobody else should have the message.
            try:
                await self._message.keep(timeout_s=2.0)
            except Unavailable:
                continue  # not confirmed: it runs out unless the next one is
