"""The limiter: when the next mail of this process may begin."""

import asyncio
import math

from email_svc.policies.token_bucket import TokenBucket


class LocalLimiter:
    """A token bucket on the process's monotonic clock; first come, first served."""

    def __init__(self, bucket: TokenBucket | None) -> None:
        """None: no limit."""
        self._bucket = bucket
        self._tat = -math.inf

    async def take(self) -> None:
        """Waits until one mail may begin. A token that is not used (cancelled wait) is forfeited."""
        if self._bucket is None:
            return
        loop = asyncio.get_running_loop()
        self._tat, due = self._bucket.take(self._tat, loop.time())
        if due > loop.time():
            await asyncio.sleep(due - loop.time())
