"""Runs a few processes in the foreground as if they were one: one log, one Ctrl-C.

    wave 1 started ─► all ready ─► wave 2 started ─► all ready ─► "running" … signal ─► wave 2 stopped ─► wave 1 stopped

One coroutine a child holds its whole life:

    start ─► ready ─► dies ─► named, started again after 0.5 s, 1 s, 2 s … 10 s
      ├─► ends well, if it is to run once
      └─► dies before it was ever ready, with EXIT_SETTINGS at once or MAX_EARLY_DEATHS times in a row: everything stops

Deliberately not here: no log files, no dependencies but the waves, no time limit on becoming ready (the reason is
said instead).
"""

import asyncio
import contextlib
import ctypes
import os
import signal
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

EXIT_SETTINGS = (2, 78)
"""Exit codes for "called wrongly" (argparse, Python) and "bad settings" (EX_CONFIG): starting again cannot help."""

MAX_EARLY_DEATHS = 5
QUICK_DEATH_S = 10.0
"""Who lived longer than this starts again without a longer delay than the first."""

FIRST_DELAY_S, LONGEST_DELAY_S = 0.5, 10.0
POLL_S, POLL_LIMIT_S, REMIND_S = 0.1, 2.0, 10.0
ECHO_S = 1.0
LAST_LINES_S = 1.0
"""How long the output of a dead child is still read; its own child may hold the pipe open for ever."""

COLOURS = (36, 35, 32, 33, 34)
PR_SET_PDEATHSIG = 1


@dataclass(frozen=True, kw_only=True)
class Child:
    """One process to run.

    env: its whole environment, not an addition to ours.
    ready_url: answers 200 once the child is ready; None: ready as soon as it is started.
    once: it has something to do and ends; ready when it has ended well.
    stop_within_s: time between SIGTERM and SIGKILL.
    """

    name: str
    command: Sequence[str]
    env: Mapping[str, str] = field(default_factory=lambda: dict(os.environ))
    ready_url: str | None = None
    once: bool = False
    stop_within_s: float = 5.0


class CannotRun(Exception):
    """A child dies whenever it is started; the message says which and how."""


class Log:
    """One line at a time to stdout, each with the (coloured) name of the process it comes from."""

    def __init__(self, names: Sequence[str]) -> None:
        self.width = max(map(len, names), default=0)
        self.colours = dict(zip(names, COLOURS * len(names), strict=False))
        self.coloured = sys.stdout.isatty() and "NO_COLOR" not in os.environ

    def line(self, name: str, text: str) -> None:
        prefix = f"{name:<{self.width}} |"
        if self.coloured:
            prefix = f"\033[{self.colours.get(name, 1)}m{prefix}\033[0m"
        self.plain(f"{prefix} {text}")

    def plain(self, text: str) -> None:
        """Without a name in front, so that a command in it can be copied."""
        # A closed terminal or pipe must not end the supervision half-way: the children still need their orderly stop.
        with contextlib.suppress(OSError):
            print(text, flush=True)


async def run(
    waves: Sequence[Sequence[Child]], *, on_ready: Callable[[], str] = lambda: "", cwd: str | None = None
) -> int:
    """Run all children until a signal comes or one of them cannot run.

    The next wave starts when the one before it is ready. on_ready gives the text to print when all are.
    Returns the exit code: 0 after SIGINT, SIGTERM or SIGHUP, 1 when a child cannot run.
    """
    log = Log([child.name for wave in waves for child in wave] + ["mailflow"])
    stop, processes = asyncio.Event(), set[asyncio.subprocess.Process]()
    _on_signals(log, stop, processes)
    stopped = asyncio.create_task(stop.wait())
    started: list[list[asyncio.Task[None]]] = []
    everybody: list[asyncio.Task[None]] = []
    try:
        for wave in waves:
            gates = [asyncio.Event() for _ in wave]
            pairs = zip(wave, gates, strict=True)
            started.append([asyncio.create_task(_supervise(*pair, processes, log, cwd)) for pair in pairs])
            everybody += started[-1]
            ready = asyncio.create_task(_all_set(gates))
            await _first_of(ready, stopped, *everybody)
            if stopped.done():
                break
        else:
            log.plain(on_ready())
            await _first_of(stopped, *everybody)
        code = 0
    except CannotRun as exc:
        log.line("mailflow", f"{exc} Stopping everything.")
        code = 1
    finally:
        stopped.cancel()
        for tasks in reversed(started):
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
    log.line("mailflow", "stopped")
    return code


async def _all_set(events: Sequence[asyncio.Event]) -> None:
    for event in events:
        await event.wait()


async def _first_of(*waiting: asyncio.Future[Any]) -> None:
    """Wait for the first of them; what a supervisor raises is raised here."""
    done, _ = await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
    for future in done:
        future.result()


def _on_signals(log: Log, stop: asyncio.Event, processes: set[asyncio.subprocess.Process]) -> None:
    """First signal: orderly stop. A later one: no more patience.

    Later than ECHO_S: with `uv run just up` one Ctrl-C can come from the terminal and again from each program above us.
    """
    asked_at = 0.0

    def handle(number: int) -> None:
        nonlocal asked_at
        if stop.is_set() and time.monotonic() - asked_at < ECHO_S:
            return
        if stop.is_set():
            log.line("mailflow", "killing what is left")
            for process in processes:
                with contextlib.suppress(ProcessLookupError):
                    process.kill()
        else:
            log.line("mailflow", f"{signal.Signals(number).name}: stopping (once more to kill)")
            asked_at = time.monotonic()
            stop.set()

    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) is not signal.SIG_IGN:  # under nohup a hang-up stays ignored
            asyncio.get_running_loop().add_signal_handler(number, handle, number)


async def _supervise(
    child: Child, ready: asyncio.Event, processes: set[asyncio.subprocess.Process], log: Log, cwd: str | None
) -> None:
    """Keep one child running until cancelled, then stop it.

    Raises:
        CannotRun: it dies whenever it is started.
    """
    deaths = 0
    while True:
        begun = time.monotonic()
        try:
            process = await _start(child, cwd)
        except OSError as exc:
            raise CannotRun(f"{child.name} cannot be started: {exc}.") from exc
        processes.add(process)
        copying = asyncio.create_task(_copy_lines(child.name, process, log))
        watching = asyncio.create_task(asyncio.sleep(0) if child.once else _announce_ready(child, ready, log))
        try:
            status = await process.wait()
        finally:
            watching.cancel()
            if process.returncode is None:
                await _stop(child, process, log)
            processes.discard(process)
            await asyncio.wait([copying], timeout=LAST_LINES_S)
            copying.cancel()

        lived_s = time.monotonic() - begun
        if child.once and status == 0:
            log.line("mailflow", f"{child.name} is done ({lived_s:.1f} s)")
            ready.set()
            await asyncio.Event().wait()  # until it is cancelled, like those that run
        deaths = deaths + 1 if lived_s < QUICK_DEATH_S else 1
        how = _exit_text(status)
        if not ready.is_set() and status in EXIT_SETTINGS:
            raise CannotRun(f"{child.name} refused to start ({how}); its last lines above say why.")
        if not ready.is_set() and deaths >= MAX_EARLY_DEATHS:
            raise CannotRun(f"{child.name} died {deaths} times in a row before it was ready (last: {how}).")
        delay_s = min(FIRST_DELAY_S * 2 ** min(deaths - 1, 10), LONGEST_DELAY_S)
        log.line("mailflow", f"{child.name} died after {lived_s:.1f} s ({how}); starting it again in {delay_s:g} s")
        await asyncio.sleep(delay_s)


async def _start(child: Child, cwd: str | None) -> asyncio.subprocess.Process:
    return await asyncio.create_subprocess_exec(
        *child.command,
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
        env={**child.env, "PYTHONUNBUFFERED": "1"},
        cwd=cwd,
        start_new_session=True,  # a terminal sends Ctrl-C to the whole group: the broker would go before its clients
        preexec_fn=_die_with_parent(),
    )


def _die_with_parent() -> Callable[[], None] | None:
    """What a child does before exec, so that a kill -9 of this process leaves no orphan. Linux only; None elsewhere.

    SIGKILL, because a child that does not react to SIGTERM would stay. Surviving it is what MailFlow is for.
    """
    if sys.platform != "linux":
        return None
    prctl = ctypes.CDLL(None).prctl
    parent = os.getpid()

    def ask_kernel() -> None:
        prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != parent:  # it died in between, so the kernel will never tell us
            os._exit(1)

    return ask_kernel


async def _copy_lines(name: str, process: asyncio.subprocess.Process, log: Log) -> None:
    assert process.stdout is not None
    rest = b""
    while chunk := await process.stdout.read(65536):
        *lines, rest = (rest + chunk).split(b"\n")
        if len(rest) > 65536:  # a line without end must not grow here for ever
            lines, rest = [*lines, rest], b""
        for line in lines:
            log.line(name, line.decode(errors="replace").rstrip("\r"))
    if rest:
        log.line(name, rest.decode(errors="replace"))


async def _stop(child: Child, process: asyncio.subprocess.Process, log: Log) -> None:
    """SIGTERM, then SIGKILL after the child's limit."""
    with contextlib.suppress(ProcessLookupError):
        process.terminate()
    try:
        await asyncio.wait_for(process.wait(), child.stop_within_s)
    except TimeoutError:
        log.line("mailflow", f"{child.name} did not stop within {child.stop_within_s:g} s: killing it")
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        await process.wait()


async def _announce_ready(child: Child, ready: asyncio.Event, log: Log) -> None:
    """Poll until the child is ready; whoever keeps others waiting says why every REMIND_S seconds."""
    begun = remind_at = time.monotonic()
    while child.ready_url and (reason := await not_ready(child.ready_url)):
        if time.monotonic() - remind_at > REMIND_S:
            remind_at = time.monotonic()
            log.line("mailflow", f"{child.name} is not ready yet: {reason}")
        await asyncio.sleep(POLL_S)
    log.line("mailflow", f"{child.name} is ready ({time.monotonic() - begun:.1f} s)")
    ready.set()


async def not_ready(url: str) -> str | None:
    """None when a GET on the http URL answers 200, else the reason. Plain sockets: no thread, no client to import."""
    authority, _, path = url.removeprefix("http://").partition("/")
    host, _, port = authority.rpartition(":")
    request = f"GET /{path} HTTP/1.0\r\nHost: {authority}\r\nConnection: close\r\n\r\n".encode()
    try:
        async with asyncio.timeout(POLL_LIMIT_S):
            reader, writer = await asyncio.open_connection(host, int(port))
            try:
                writer.write(request)
                answer = await reader.read(-1)
            finally:
                writer.close()
    except (OSError, TimeoutError) as exc:
        return f"{url}: {exc or type(exc).__name__}"
    head, _, body = answer.decode(errors="replace").partition("\r\n\r\n")
    status = head.split(" ", 2)[1] if " " in head else "nothing"
    return None if status == "200" else f"{url} answers {status} {body.strip()[:200]}".rstrip()


def _exit_text(status: int) -> str:
    if status >= 0:
        return f"exit status {status}"
    try:
        return f"killed by {signal.Signals(-status).name}"
    except ValueError:
        return f"killed by signal {-status}"
