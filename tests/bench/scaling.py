"""What one broker does, what a weaker promise would give, what three do: the figures of deploy/SCALING.md.

    uv run python -m tests.bench.scaling --mails 500 --rounds 3

Everything is the real thing on this machine, the client and the SMTP server included, so the absolute figures say
little: compare the lines of one run.
"""

import argparse
import asyncio
import contextlib
import itertools
import json
import logging
import statistics
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import structlog

from contracts import subjects as s
from contracts.runtime.broker import Broker, connect
from tests.support.load import address, together
from tests.support.processes import ROOT, NatsServer, Service, cluster_of_three, login, provisioned, stopping
from tests.support.smtp_server import SmtpServer
from tests.support.waiting import eventually

AT_ONCE = 64
WAYS = {"one broker, fsync always": "always", "one broker, fsync each second": "1s", "three brokers, R3": "cluster"}


@dataclass(frozen=True)
class Figures:
    """Of one run: what was stored, registered and delivered a second."""

    stored: float
    registered: float
    delivered: float


async def measure(way: str, folder: Path, mails: int) -> Figures:
    """Publishes alone; then registrations with no email_svc; then the backlog they made, delivered."""
    async with contextlib.AsyncExitStack() as stack:
        nodes = await _brokers(stack, way, folder)
        replicas = len(nodes)
        await provisioned(nodes[0].url, replicas=replicas)
        smtp = await stack.enter_async_context(SmtpServer())
        env = {
            "NATS_URL": ",".join(node.url for node in nodes),
            "NATS_DURABILITY": "interval" if way == "1s" else "always",
            "NATS_MONITORING_URL": ",".join(node.monitoring_url for node in nodes),
            "PROVISION": "verify",
            "SMTP_URL": f"smtp://127.0.0.1:{smtp.port}",
            "RATE_LIMIT_RPM": "0",
            "LOG_LEVEL": "WARNING",
        }
        user = Service("user_svc", folder, env | login("user_svc"))
        email = Service("email_svc", folder, env | login("email_svc"))
        stack.enter_context(stopping(user, email))
        user.start()
        await user.ready(60)
        broker = await connect(name="bench", url=env["NATS_URL"], on_closed=lambda reason: None)
        stack.push_async_callback(broker.close)
        stored = await _stored(broker, mails * 4, replicas)
        began = time.perf_counter()
        numbers = iter(range(mails))
        await asyncio.gather(*(_registers(user.http_port, numbers) for _ in range(AT_ONCE)))
        registered = mails / (time.perf_counter() - began)
        email.start()
        await email.ready(60)
        await eventually(lambda: len({mail.rcpt for mail in smtp.accepted}) == mails, within_s=300)
        first, last = smtp.mails_begun[0], smtp.mails_begun[-1]
        return Figures(stored, registered, (len(smtp.mails_begun) - 1) / (last - first))


async def _brokers(stack: contextlib.AsyncExitStack, way: str, folder: Path) -> list[NatsServer]:
    if way == "cluster":
        return await stack.enter_async_context(cluster_of_three(folder))
    broker = NatsServer(folder, sync=way)
    stack.enter_context(stopping(broker))
    broker.start()
    await broker.ready()
    return [broker]


async def _registers(port: int, numbers: Iterator[int]) -> None:
    """One connection that registers one after another; by hand, for a client library costs more than the service."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    for n in numbers:
        body = f'{{"email": "{address(n)}", "name": "User {n}"}}'
        head = (
            f"POST /v1/users HTTP/1.1\r\nHost: bench\r\nContent-Type: application/json\r\nContent-Length: {len(body)}"
        )
        writer.write(f"{head}\r\n\r\n{body}".encode())
        answer = (await reader.readuntil(b"\r\n\r\n")).decode().lower()
        assert answer.startswith("http/1.1 201"), answer
        await reader.readexactly(int(answer.partition("content-length: ")[2].partition("\r")[0]))
    writer.close()


async def _stored(broker: Broker, count: int, replicas: int) -> float:
    """Publishes a second to a stream of its own, `AT_ONCE` at a time."""
    stream = {"name": "BENCH", "subjects": ["bench.>"], "storage": "file", "num_replicas": replicas}
    await broker.api("STREAM.CREATE.BENCH", stream, timeout_s=20)
    began = time.perf_counter()
    await together(*(broker.store(f"bench.{n}", b"x" * 300, timeout_s=20) for n in range(count)), at_once=AT_ONCE)
    rate = count / (time.perf_counter() - began)
    await broker.api("STREAM.DELETE.BENCH")
    return rate


async def ledger(folder: Path, events: int) -> str:
    """What that many sent mails in DELIVERIES cost the broker: memory, disk, and a restart after kill -9."""
    outcome = (ROOT / "tests" / "golden" / "v1" / "welcome_email.outcome.v1.json").read_bytes()
    server = NatsServer(folder, sync="1s")
    with stopping(server):
        server.start()
        await server.ready()
        await provisioned(server.url)
        empty = _memory_mb(server)
        broker = await connect(name="bench", url=server.url, on_closed=lambda reason: None)
        subjects = (s.outcome(s.event_id(f"{n:026d}", n + 1), "sent") for n in range(events))
        turn = asyncio.Semaphore(AT_ONCE * 4)

        async def store(subject: str) -> None:
            async with turn:
                await broker.store(subject, outcome, timeout_s=60)

        for _ in range(0, events, 10_000):
            await asyncio.gather(*(store(subject) for subject in itertools.islice(subjects, 10_000)))
        await broker.close()
        grown = _memory_mb(server) - empty
        disk = sum(file.stat().st_size for file in server.store.rglob("*") if file.is_file()) / 1e6
        server.kill()
        began = time.perf_counter()
        server.start()
        await server.ready(120)
        restarted = time.perf_counter() - began
    per_event = f"{grown * 1000 / events:.2f} KB of memory, {disk * 1000 / events:.2f} KB on disk"
    return f"{events:,} sent mails: {per_event} each; a restart after kill -9 took {restarted:.1f} s"


def _memory_mb(server: NatsServer) -> float:
    with urllib.request.urlopen(f"{server.monitoring_url}/varz", timeout=10) as answer:
        return float(json.load(answer)["mem"]) / 1e6


async def table(mails: int, rounds: int) -> str:
    """The ways in turn, round after round; the medians as Markdown, ratios against the first."""
    found: dict[str, list[Figures]] = {name: [] for name in WAYS}
    for _ in range(rounds):
        for name, way in WAYS.items():
            with tempfile.TemporaryDirectory(prefix="mailflow-bench-") as folder:
                found[name].append(await measure(way, Path(folder), mails))
    lines = ["| | publishes/s | registrations/s | mails/s |", "|---|---|---|---|"]
    base = next(iter(found.values()))
    for name, figures in found.items():
        cells = []
        for what in ("stored", "registered", "delivered"):
            median = statistics.median(getattr(one, what) for one in figures)
            ratio = median / statistics.median(getattr(one, what) for one in base)
            cells.append(f"{median:,.0f} (x{ratio:.1f})")
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--mails", type=int, default=500)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--events", type=int, default=200_000)
    chosen = parser.parse_args()
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.WARNING))
    print(asyncio.run(table(chosen.mails, chosen.rounds)))
    with tempfile.TemporaryDirectory(prefix="mailflow-bench-") as place:
        print(f"\n{asyncio.run(ledger(Path(place), chosen.events))}")
