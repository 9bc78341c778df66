"""The life of a process: SIGTERM or SIGINT ends it in order, exit 0; a fault that a restart mends ends it with 1."""

import asyncio
import contextlib
import gc
import signal
import socket
from collections.abc import AsyncIterator, Coroutine, Iterator
from typing import Any, TypeVar

import structlog
import uvicorn

from contracts.runtime.connection import impatient

log = structlog.get_logger()

T = TypeVar("T")


class Stop:
    """Wait for `event`, then close everything. `code` is the process's exit status."""

    def __init__(self) -> None:
        self.event = asyncio.Event()
        self.code = 0
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._signalled, number)

    def _signalled(self, number: int) -> None:
        log.info("process.stopping", signal=signal.Signals(number).name)
        self.event.set()

    def fail(self, reason: str) -> None:
        """Ends the process with exit status 1: whoever supervises it starts it anew."""
        log.error("process.failed", reason=reason)
        self.code = 1
        self.event.set()

    async def unless(self, work: Coroutine[Any, Any, T]) -> T | None:
        """The result of `work`, or None if the process is told to stop before it is done (it is cancelled then)."""
        task = asyncio.ensure_future(work)
        told = asyncio.ensure_future(self.event.wait())
        await asyncio.wait({task, told}, return_when=asyncio.FIRST_COMPLETED)
        told.cancel()
        if not task.done():
            await cancelled(task)
            return None
        return await task


def settled() -> None:
    """The start is over: what it has made stays, and the garbage collector need not look at it time and again.

    It did every few hundred requests: a quarter of the processor time of a registration, in pauses of tens of ms.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(10_000, 10, 10)


class PortTaken(Exception):
    """Somebody else listens there."""


class _Server(uvicorn.Server):
    """uvicorn without its signal handlers: the process has one place for them."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


@contextlib.asynccontextmanager
async def serving(
    app: Any, *, host: str, port: int, variable: str, grace_s: float = 5.0, message_s: float = 5.0
) -> AsyncIterator[None]:
    """Serves an ASGI application while the body runs; requests under way may finish within `grace_s`.

    A client that takes longer than `message_s` to send a request, or to read some of an answer, is cut off.

    Raises:
        PortTaken: names the port and the variable that moves it.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        listener = socket.create_server((host, port), family=family, backlog=2048, reuse_port=False)
    except OSError as exc:
        raise PortTaken(f"{variable}={port}: cannot listen on {host}:{port}: {exc.strerror}") from exc
    config = uvicorn.Config(
        app,
        loop="none",
        http=impatient(message_s),
        ws="none",
        lifespan="off",
        access_log=False,
        server_header=False,
        proxy_headers=False,  # uvicorn would take X-Forwarded-For for the peer, from anybody on this machine
        log_config=None,
        timeout_graceful_shutdown=int(grace_s),
        # Longer than clients and gateways keep an idle connection: who closes first must be the one that sends.
        timeout_keep_alive=120,
    )
    server = _Server(config)
    task = asyncio.create_task(server.serve(sockets=[listener]))
    while not server.started and not task.done():  # noqa: ASYNC110 - uvicorn has no event for it
        await asyncio.sleep(0.005)
    try:
        yield
    finally:
        server.should_exit = True
        await task
        listener.close()


async def cancelled(task: asyncio.Task[Any]) -> None:
    """Cancels a task and waits for its end; again and again, for `asyncio.wait_for` of Python 3.11 may swallow one."""
    while not task.done():
        task.cancel()
        await asyncio.wait({task}, timeout=1)
