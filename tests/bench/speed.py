"""What is measured of a stack, and how: one round of it, from registrations to the last mail.

load      64 clients as fast as it goes, while everything runs     -> registrations/s, latency, both done/s
latency   100 a second                                             -> POST -> accepted, queue -> ack
backlog   mails in the queue, then the worker starts               -> mails/s
outage    100 a second while the SMTP server is down               -> time until the backlog is out
"""

import contextlib
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass

import nats

from tests.bench.load import load
from tests.bench.sink import Sink
from tests.bench.stacks import Stack
from tests.bench.usage import cpu_ms
from tests.support.waiting import eventually

_SENT_WITHIN_S = 300


@dataclass(frozen=True)
class Size:
    """How much of each."""

    load_s: float
    rate: float
    rate_s: float
    backlog: int
    outage_s: float
    connections: int = 64


SERVICES = ("API", "worker")

FULL = Size(load_s=3, rate=100, rate_s=4, backlog=2000, outage_s=4)
TINY = Size(load_s=0.3, rate=50, rate_s=0.5, backlog=60, outage_s=0.4, connections=8)


def at(share: float, values: list[float]) -> float:
    """A quantile: 0.5 is the median, 0.99 the one that 1 % are above."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))]


async def measured(stack: Stack, sink: Sink, size: Size, *, outage: bool) -> dict[str, float]:
    """One round; figures by name. Times in ms, but for the outage's in s."""
    found: dict[str, float] = {}
    first = 0

    async def registered(seconds: float, rate: float = 0) -> tuple[dict[int, float], dict[int, float], list[float]]:
        nonlocal first
        answers = await load(stack.http_port, first, seconds, connections=size.connections, rate=rate)
        first += len(answers.sent)
        per_s.append(answers.per_s)
        return answers.sent, await accepted(sink, len(answers.sent)), answers.latencies

    per_s: list[float] = []
    await registered(size.load_s / 6)  # warm: connections, caches, the loops' credit
    used = [cpu_ms(service) for service in stack.services]
    sent, taken, latencies = await registered(size.load_s)
    for service, before, name in zip(stack.services, used, SERVICES, strict=True):
        found[f"CPU of the {name} a user ms"] = (cpu_ms(service) - before) / len(sent)
    found["registrations/s"] = per_s[-1]
    found["registration p50 ms"] = at(0.5, latencies) * 1000
    found["registration p99 ms"] = at(0.99, latencies) * 1000
    found["registered and mailed/s"] = len(sent) / (max(taken.values()) - min(sent.values()))

    async with _acks(stack) as waits:
        sent, taken, _ = await registered(size.rate_s, size.rate)
    ways = [(taken[n] - began) * 1000 for n, began in sent.items()]
    found["POST to accepted p50 ms"], found["POST to accepted p99 ms"] = at(0.5, ways), at(0.99, ways)
    if waits:
        found["queue to ack p50 ms"], found["queue to ack p99 ms"] = at(0.5, waits), at(0.99, waits)

    if outage:
        await sink.down()
        answers = await load(stack.http_port, first, size.outage_s, rate=size.rate)
        first += len(answers.sent)
        began = time.monotonic()
        await sink.up()
        found["drain after an outage s"] = max((await accepted(sink, len(answers.sent))).values()) - began

    await stack.worker.terminate(30)
    await stack.queue(first, size.backlog)
    stack.worker.start()
    times = sorted((await accepted(sink, size.backlog)).values())[size.backlog // 10 :]  # the first are the start's
    found["mails/s"] = (len(times) - 1) / (times[-1] - times[0])
    return found


async def accepted(sink: Sink, count: int) -> dict[int, float]:
    """When each of so many mails was accepted, once all were."""

    async def look() -> bool:
        return await sink.count() >= count

    await eventually(look, within_s=_SENT_WITHIN_S, what=f"{count} mails")
    return await sink.take()


@contextlib.asynccontextmanager
async def _acks(stack: Stack) -> AsyncIterator[list[float]]:
    """Collects the ms from the write of a queue entry, by the broker's clock, which is this machine's, to its ack."""
    waits: list[float] = []
    if stack.nats_url is None or stack.acks is None:
        yield waits
        return

    async def heard(ack: nats.aio.msg.Msg) -> None:
        parts = ack.subject.split(".")
        stored_ns = int(parts[-2] if len(parts) == 9 else parts[-3])
        if ack.data in (b"", b"+ACK"):  # nats-py says it without a word
            waits.append((time.time_ns() - stored_ns) / 1e6)

    client = await nats.connect(stack.nats_url)
    try:
        await client.subscribe(stack.acks, cb=heard)
        await client.flush()
        yield waits
        await client.flush()
    finally:
        await client.close()
