"""How long the state machines against a real broker run. Their steps take real time, so a run is not the same twice.

    HYPOTHESIS_PROFILE=long uv run pytest tests/integration/test_guard_machine.py       hundreds of examples
    MACHINE_EXAMPLES=30                                                                 or so many

Not derandomized: other schedules are tried each time. A failure says the steps that led to it, and prints a blob.
It is not shrunk: each try would take seconds, and a schedule that fails may pass the next time.
"""

import asyncio
import contextlib
import os
import sys
import traceback
from collections.abc import Coroutine
from datetime import datetime
from typing import Any, TypeVar

import msgspec
from hypothesis import HealthCheck, Phase, settings

from contracts.runtime.broker import ApiError, Broker
from tests.support.processes import NatsServer
from tests.support.waiting import eventually

T = TypeVar("T")

LONG = os.environ.get("HYPOTHESIS_PROFILE") == "long"
_LONG = 25
"""So many times the examples of a short run."""


class Steps:
    """The event loop of one example. It turns only within a step: what runs in this process runs on meanwhile."""

    def __init__(self) -> None:
        self._runner = asyncio.Runner()
        self._done: list[str] = []
        self.failed = False
        """A step did: the example's end need not be looked at."""

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        self._done.append(work.__qualname__)
        try:
            return self._runner.run(work)
        except BaseException:
            # Hypothesis tries it again and, if it passes then, tells of that alone.
            sys.stderr.write("\n".join(["failed after", *self._done, traceback.format_exc()]))
            self.failed = True
            raise

    def close(self) -> None:
        self._runner.close()


async def consumer_deleted(broker: Broker, consumer: str) -> None:
    """`<stream>.<durable>` is deleted. Not twice within a second, for whoever has seen it missing makes it anew in a
    moment, and the broker would delete the files of both."""
    try:
        info = await broker.api(f"CONSUMER.INFO.{consumer}")
    except ApiError:
        return
    made, now = (msgspec.convert(info[name], datetime) for name in ("created", "ts"))
    await asyncio.sleep(max(0.0, 1.0 - (now - made).total_seconds()))
    with contextlib.suppress(ApiError):
        await broker.api(f"CONSUMER.DELETE.{consumer}")


async def restarted(server: NatsServer, brokers: list[Broker], *, down_s: float = 0.0) -> None:
    """kill -9, and a start with what it had stored; all of these connections are up again."""
    before = [broker.client.stats["reconnects"] for broker in brokers]
    server.kill()
    await asyncio.sleep(down_s)
    server.start()
    await server.ready()

    def look() -> bool:  # who has not noticed yet is still connected, to the one that was killed
        counts = [broker.client.stats["reconnects"] for broker in brokers]
        again = all(now > then for now, then in zip(counts, before, strict=True))
        return again and all(broker.client.is_connected for broker in brokers)

    await eventually(look, within_s=30, what="everybody is connected again")


def machine_settings(*, examples: int, steps: int) -> settings:
    """`examples` in a short run, as CI has it."""
    if LONG:
        examples *= _LONG
    return settings(
        max_examples=int(os.environ.get("MACHINE_EXAMPLES", examples)),
        stateful_step_count=steps,
        deadline=None,  # a step waits for processes
        print_blob=True,
        report_multiple_bugs=False,
        phases=(Phase.explicit, Phase.reuse, Phase.generate),
        # A broker is slow to start, and preconditions leave few rules while it has nothing to do.
        suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much, HealthCheck.data_too_large],
    )
