"""How a process is told to stop."""

import asyncio

from contracts.runtime.lifecycle import Stop


async def test_stop_ends_work_that_swallows_a_cancellation() -> None:
    """As nats-py's connect does, whose asyncio.wait_for lost one when its connection was refused in that moment."""
    stop, swallowed = Stop(), 0

    async def stubborn() -> None:
        nonlocal swallowed
        while True:
            try:
                await asyncio.Event().wait()
            except asyncio.CancelledError:
                if swallowed == 1:
                    raise
                swallowed += 1

    waiting = asyncio.ensure_future(stop.unless(stubborn()))
    await asyncio.sleep(0)
    stop.event.set()
    async with asyncio.timeout(10):
        assert await waiting is None
    assert swallowed == 1
