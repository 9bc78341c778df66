"""How long the state machines against a real broker run. Their steps take real time, so a run is not the same twice.

    HYPOTHESIS_PROFILE=long uv run pytest tests/integration/test_guard_machine.py       hundreds of examples
    MACHINE_EXAMPLES=30                                                                 or so many

Not derandomized: other schedules are tried each time. A failure says the steps that led to it, and prints a blob.
It is not shrunk: each try would take seconds, and a schedule that fails may pass the next time.
"""

import asyncio
import os
from collections.abc import Coroutine
from typing import Any, TypeVar

from hypothesis import HealthCheck, Phase, settings

T = TypeVar("T")

LONG = os.environ.get("HYPOTHESIS_PROFILE") == "long"
_LONG = 25
"""So many times the examples of a short run."""


class Steps:
    """The event loop of one example. It turns only within a step: what runs in this process runs on meanwhile."""

    def __init__(self) -> None:
        self._runner = asyncio.Runner()
        self.failed = False
        """A step did: the example's end need not be looked at."""

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        try:
            return self._runner.run(work)
        except BaseException:
            self.failed = True
            raise

    def close(self) -> None:
        self._runner.close()


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
