"""What open pages of the console cost: registrations and user_svc's processor time with 50 of them, and with none.

    python -m tests.bench.open_pages        five rounds, some two minutes; exit 1 beyond 10 %
    … --pages 50 --rounds 5 --seconds 8

One system, fsync each second (with fsync on each write the disk would hide the cost). Each round is none, pages, none,
and compares the pages with the mean of the two around them. What a page's browser costs is not in it.
"""

import argparse
import asyncio
import contextlib
import logging
import statistics
import sys
import tempfile
from collections.abc import AsyncIterator
from pathlib import Path

import structlog

from tests.bench.load import load
from tests.bench.sink import Sink
from tests.bench.speed import accepted
from tests.bench.stacks import Stack, mailflow
from tests.bench.usage import cpu_ms
from tests.support.processes import Service

WITHIN = 0.1
_RATE = 100.0
Figures = dict[str, float]


@contextlib.asynccontextmanager
async def pages(count: int, port: int) -> AsyncIterator[None]:
    """So many open overviews: each has its figures once, and hears of all that comes."""
    heard = [asyncio.Event() for _ in range(count)]

    async def page(first: asyncio.Event) -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        try:
            writer.write(b"GET /overview/events HTTP/1.1\r\nHost: 127.0.0.1\r\nAccept: text/event-stream\r\n\r\n")
            while data := await reader.read(65_536):
                if b"event: overview" in data:
                    first.set()
            raise AssertionError("a page's stream ended")
        finally:
            writer.close()

    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(page(first)) for first in heard]
        async with asyncio.timeout(30):
            for first in heard:
                await first.wait()
        yield
        for task in tasks:
            task.cancel()


async def measured(stack: Stack, sink: Sink, first: int, seconds: float) -> tuple[Figures, int]:
    """Registrations as fast as it goes, then at a steady rate; and the next user's number."""
    fast = await load(stack.http_port, first, seconds)
    first += len(fast.sent)
    await accepted(sink, len(fast.sent))
    before = cpu_ms(stack.services[0])
    steady = await load(stack.http_port, first, seconds, rate=_RATE)
    used_ms = cpu_ms(stack.services[0]) - before
    await accepted(sink, len(steady.sent))
    return {"registrations/s": fast.per_s, "CPU of user_svc at 100/s, %": used_ms / seconds / 10}, first + len(
        steady.sent
    )


async def compared(count: int, rounds: int, seconds: float) -> tuple[dict[str, list[float]], dict[str, list[float]]]:
    """By figure: with none, and the ratios of with pages to with none."""
    none: dict[str, list[float]] = {}
    ratios: dict[str, list[float]] = {}
    with tempfile.TemporaryDirectory(prefix="mailflow-bench-") as folder:
        async with Sink() as sink, mailflow(Path(folder), "1s", sink.port) as stack:
            user = stack.services[0]
            assert isinstance(user, Service)
            _, first = await measured(stack, sink, 0, seconds / 2)  # warm
            before, first = await measured(stack, sink, first, seconds)
            for _ in range(rounds):
                async with pages(count, user.metrics_port):
                    with_pages, first = await measured(stack, sink, first, seconds)
                after, first = await measured(stack, sink, first, seconds)
                for figure, value in with_pages.items():
                    around = (before[figure] + after[figure]) / 2
                    none.setdefault(figure, []).append(around)
                    ratios.setdefault(figure, []).append(value / around)
                before = after
    return none, ratios


def main() -> None:
    """As the command line says."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pages", type=int, default=50)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=8.0)
    chosen = parser.parse_args()
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.WARNING))
    none, ratios = asyncio.run(compared(chosen.pages, chosen.rounds, chosen.seconds))
    print(f"{'':<30} {'none':>8}  {chosen.pages} pages ÷ none: median, smallest, largest")
    for figure, values in ratios.items():
        shown = f"{statistics.median(values):.3f}  {min(values):.3f}  {max(values):.3f}"
        print(f"{figure:<30} {statistics.median(none[figure]):>8.1f}  {shown}")
    rate, used = (statistics.median(values) for values in ratios.values())
    sys.exit(int(rate < 1 - WITHIN or used > 1 + WITHIN))


if __name__ == "__main__":
    main()
