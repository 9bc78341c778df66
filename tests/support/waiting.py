"""The one way to wait in tests: look until it is true, or say what was seen last."""

import asyncio
import inspect
import time
from collections.abc import Awaitable, Callable
from typing import TypeVar

T = TypeVar("T")


async def eventually(look: Callable[[], T | Awaitable[T]], *, within_s: float = 10.0, what: str = "") -> T:
    """The first true value that `look` gives; AssertionError with the last value after `within_s`."""
    end = time.monotonic() + within_s
    while True:
        found = look()
        if inspect.isawaitable(found):
            found = await found
        if found:
            return found
        if time.monotonic() > end:
            raise AssertionError(f"not within {within_s} s: {what or look}; last seen: {found!r}")
        await asyncio.sleep(0.02)
