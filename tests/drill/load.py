"""The clients of a drill: people who register, at a rate, and do with errors what the README tells them.

of 100   88 send an Idempotency-Key and repeat until the 201 is there
          8 send none, and repeat all the same: the second answer may be a 409 for their own registration
          4 give up after a fraction of a second and never learn what became of it
and of those with a 201, some are erased (half of these register anew), some have the mail sent again, and some
addresses are registered once more, in another spelling, which is a 409.
"""

import asyncio
import random
import time
from collections.abc import Awaitable, Callable
from typing import Any, Literal

from tests.drill.client import Http
from tests.drill.history import Call

IN_FLIGHT = 200
_AGAIN_MIN_S, _AGAIN_MAX_S = 0.2, 3.0
_PATIENCE_S = 60.0


class Load:
    """Registers at `rate` a second until stopped; every call that was made is in `calls`."""

    def __init__(self, ports: list[int], *, rate: float, seed: int) -> None:
        self.rate = rate
        self.calls: list[Call] = []
        self.created = 0
        self.last_created_at = 0.0
        self._replicas = [Http(port) for port in ports]
        self._rng = random.Random(seed)
        self._tasks: set[asyncio.Task[None]] = set()
        self._begun = 0
        self._asking = 0
        self._failures: list[BaseException] = []
        """Of the drill's own code: no answer and no silence raises."""

    async def run(self, seconds: float, *, at_least: int = 0) -> None:
        """The load; what it has begun it brings to its end, and some of it takes until all is mended.

        at_least: on a slow machine it goes on until there are so many 201s, for three times as long at most.
        """
        started = time.monotonic()
        while (elapsed := time.monotonic() - started) < seconds or (self.created < at_least and elapsed < 3 * seconds):
            due = int(elapsed * self.rate) - self._begun
            for _ in range(min(due, IN_FLIGHT - self._asking)):
                self._start(self._client(self._begun))
                self._begun += 1
            await asyncio.sleep(0.01)

    async def finish(self) -> None:
        """Waits for the last client."""
        if self._tasks:
            await asyncio.wait(self._tasks)
        for failure in self._failures:
            raise failure

    def stop(self) -> None:
        """At once."""
        for task in self._tasks:
            task.cancel()
        for replica in self._replicas:
            replica.close()

    def _start(self, work: Any) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._over)

    def _over(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (failure := task.exception()) is not None:
            self._failures.append(failure)

    async def _client(self, n: int) -> None:
        rng = random.Random(self._rng.getrandbits(64))
        email, luck = f"user{n}@example.com", rng.random()
        key = None if luck < 0.08 else f'"key-{n}"'
        if luck > 0.96:
            await self._register(n, email, key, within_s=rng.uniform(0.02, 0.5))
            return
        user_id = await self._until(rng, lambda: self._register(n, email, key), lambda status: status in (201, 409))
        if user_id is None:
            return
        what = rng.random()
        if what > 0.10:
            return
        await asyncio.sleep(rng.uniform(0, 2))
        if what < 0.04:
            await self._until(rng, lambda: self._about("erase", user_id, email), lambda status: status in (204, 404))
            if rng.random() < 0.5:  # he has thought better of it
                anew = f'"anew-{n}"'
                await self._until(rng, lambda: self._register(n, email, anew), lambda status: status in (201, 409))
        elif what < 0.07:
            await self._until(
                rng, lambda: self._about("resend", user_id, email), lambda status: status in (202, 404, 429)
            )
        else:
            other = email.replace("example.com", "EXAMPLE.COM")
            await self._until(
                rng, lambda: self._register(n, email, None, spelled=other), lambda status: status in (201, 409)
            )

    async def _until(
        self,
        rng: random.Random,
        call: Callable[[], Awaitable[tuple[int | None, str | None]]],
        done: Callable[[int | None], bool],
    ) -> str | None:
        """Repeats, less and less often, until the answer is a final one; the id in it, if it has one."""
        again_s, end = _AGAIN_MIN_S, time.monotonic() + _PATIENCE_S
        while time.monotonic() < end:
            self._asking += 1
            status, user_id = await call()
            self._asking -= 1
            if done(status):
                return user_id
            if status is not None and status != 503:
                return None  # a refusal that nobody expects: the checker will say so
            await asyncio.sleep(rng.uniform(0.5, 1) * again_s)
            again_s = min(2 * again_s, _AGAIN_MAX_S)
        return None

    async def _register(
        self, n: int, email: str, key: str | None, *, spelled: str | None = None, within_s: float = 5.0
    ) -> tuple[int | None, str | None]:
        began = time.monotonic()
        status, body = await self._replica().ask(
            "POST",
            "/v1/users",
            {"email": spelled or email, "name": f"User {n}"},
            {} if key is None else {"Idempotency-Key": key},
            within_s=within_s,
        )
        user_id = body["id"] if status == 201 else None
        if status == 201:
            self.created += 1
            self.last_created_at = time.monotonic()
        self._note("register", began, status, email, user_id, key)
        return status, user_id

    async def _about(self, kind: Literal["erase", "resend"], user_id: str, email: str) -> tuple[int | None, str | None]:
        began = time.monotonic()
        if kind == "erase":
            status, body = await self._replica().ask("DELETE", f"/v1/users/{user_id}")
        else:
            status, body = await self._replica().ask("POST", f"/v1/users/{user_id}/welcome-email")
        self._note(kind, began, status, email, user_id, None, body["event_id"] if status == 202 else None)
        return status, None

    def _replica(self) -> Http:
        return self._rng.choice(self._replicas)

    def _note(
        self,
        kind: Literal["register", "erase", "resend"],
        began: float,
        status: int | None,
        email: str,
        user_id: str | None,
        key: str | None,
        event_id: str | None = None,
    ) -> None:
        self.calls.append(
            Call(
                kind=kind,
                began=began,
                ended=time.monotonic(),
                status=status,
                email=email,
                user_id=user_id,
                key=key,
                event_id=event_id,
            )
        )
