"""The ways to do the job that are compared, as processes: MailFlow and its floor. Its peers are in tests.bench.peers.

The job: POST /v1/users, answered 201 once it is durable; one address, one user; then a mail, sent once, and noted.
"""

import asyncio
import contextlib
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

from contracts import messages as m
from contracts import subjects as s
from contracts.runtime.broker import Broker, connect
from tests.bench import floor
from tests.bench.fill import fill
from tests.bench.raw_loop import AT_ONCE, CONSUMERS
from tests.support.processes import NatsServer, Process, Service, free_port, login, provisioned, stopping
from tests.support.waiting import eventually

START_WITHIN_S = 60


@dataclass(frozen=True)
class Stack:
    """One of them, running."""

    http_port: int
    worker: Process
    """What sends the mails; may be stopped and started."""
    queue: Callable[[int, int], Awaitable[None]]
    """Puts the mails of `count` users from the `first` one on into the queue, past the API."""
    services: tuple[Process, ...]
    nats_url: str | None = None
    acks: str | None = None
    """Where the acks of the queue are heard; they name the time at which the message was stored."""


Start = Callable[[Path, str, int], contextlib.AbstractAsyncContextManager[Stack]]
"""(folder, sync, SMTP port) -> running."""


def python(module: str, folder: Path, env: dict[str, str]) -> Process:
    """A process of ours."""
    return Process(module.rpartition(".")[2], [sys.executable, "-m", module], folder, env)


async def listening(port: int) -> None:
    """Waits until somebody does."""

    async def look() -> bool:
        try:
            _, writer = await asyncio.open_connection("127.0.0.1", port)
        except OSError:
            return False
        writer.close()
        return True

    await eventually(look, within_s=START_WITHIN_S, what=f"port {port}")


@contextlib.asynccontextmanager
async def nats_server(folder: Path, sync: str) -> AsyncIterator[tuple[NatsServer, Broker]]:
    server = NatsServer(folder, sync=sync)
    with stopping(server):
        server.start()
        await server.ready(START_WITHIN_S)
        broker = await connect(name="bench", url=server.url, on_closed=lambda reason: None)
        try:
            yield server, broker
        finally:
            await broker.close()


def user_id(n: int) -> str:
    """An id like those of MailFlow, for what is put past the API."""
    digits = []
    for _ in range(26):
        n, digit = divmod(n, 32)
        digits.append("abcdefghijklmnopqrstuvwxyz234567"[digit])
    return "".join(digits)


def requested(n: int) -> tuple[str, bytes]:
    """A queue entry of MailFlow."""
    now, event_id = datetime.now(UTC), s.event_id(user_id(n), n + 1)
    event = m.WelcomeEmailRequested(
        event_id=event_id,
        user_id=user_id(n),
        email=f"user{n}@example.com",
        name=f"User {n}",
        why=m.Why.REGISTRATION,
        requested_at=now,
        expires_at=now + timedelta(days=1),
    )
    return s.welcome_requested(event_id), m.WELCOME_EMAIL_REQUESTED.encode(event)


@contextlib.asynccontextmanager
async def mailflow(
    folder: Path,
    sync: str,
    smtp_port: int,
    *,
    queue_max_size: int = 100_000,
    prepare: Callable[[str, Broker], Awaitable[None]] | None = None,
) -> AsyncIterator[Stack]:
    """Both services, as `just up` runs them: provisioned, logged in, logging in JSON. Without a limit.

    `prepare` gets the broker's address and a connection, before the services are started.
    """
    async with nats_server(folder, sync) as (server, broker):
        await provisioned(server.url, queue_max_size)
        if prepare is not None:
            await prepare(server.url, broker)
        env = {
            "NATS_URL": server.url,
            "NATS_DURABILITY": "always" if sync == "always" else "interval",
            "NATS_MONITORING_URL": server.monitoring_url,
            "PROVISION": "verify",
            "SMTP_URL": f"smtp://127.0.0.1:{smtp_port}",
            "RATE_LIMIT_RPM": "0",
            "WORKER_CONCURRENCY": str(AT_ONCE),
            "CIRCUIT_BREAKER_TIMEOUT": "1s",
            "HTTP_REQUEST_TIMEOUT": "10s",  # as the others: who gives up sooner would have the better latency
            "QUEUE_MAX_SIZE": str(queue_max_size),
        }
        user = Service("user_svc", folder, env | login("user_svc"))
        email = Service("email_svc", folder, env | login("email_svc"))

        async def queue(first: int, count: int) -> None:
            await fill(server.url, (requested(n) for n in range(first, first + count)))

        with stopping(user, email):
            user.start()
            email.start()
            await user.ready(START_WITHIN_S)
            await email.ready(START_WITHIN_S)
            yield Stack(
                http_port=user.http_port,
                worker=email,
                queue=queue,
                services=(user, email),
                nats_url=server.url,
                acks=f"$JS.ACK.{s.WELCOME_EMAILS}.{s.EMAIL_SVC}.>",
            )


@contextlib.asynccontextmanager
async def bare(folder: Path, sync: str, smtp_port: int) -> AsyncIterator[Stack]:
    """The floor: a bare ASGI app, and a raw loop beside it that makes the same durable writes."""
    async with nats_server(folder, sync) as (server, broker):
        for name, config in floor.STREAMS.items():
            await broker.api(f"STREAM.CREATE.{name}", {"name": name, "storage": "file", **config})
        for stream, name in CONSUMERS.items():
            config = {"durable_name": name, "ack_policy": "explicit", "ack_wait": 30 * 10**9, "max_ack_pending": 20_000}
            call = f"CONSUMER.CREATE.{stream}.{name}"
            await broker.api(call, {"stream_name": stream, "action": "create", "config": config})
        port = free_port()
        env = {"NATS_URL": server.url, "HTTP_PORT": str(port), "SMTP_PORT": str(smtp_port)}
        front = python("tests.bench.floor", folder, env)
        worker = python("tests.bench.raw_loop", folder, env)
        async with users_as_json(server.url, front, worker, port, "floor.mail", "FLOOR_QUEUE.deliver") as stack:
            yield stack


@contextlib.asynccontextmanager
async def users_as_json(
    nats_url: str, front: Process, worker: Process, port: int, subject: str, consumer: str
) -> AsyncIterator[Stack]:
    """A front and a worker whose queue holds a user's address and name on `subject`, for `consumer` (STREAM.NAME)."""

    async def queue(first: int, count: int) -> None:
        entry = b'{"email": "user%d@example.com", "name": "User %d"}'  # as the raw loop reads it
        await fill(nats_url, ((f"{subject}.x{n}", entry % (n, n)) for n in range(first, first + count)))

    with stopping(front, worker):
        front.start()
        worker.start()
        await listening(port)
        yield Stack(
            http_port=port,
            worker=worker,
            queue=queue,
            services=(front, worker),
            nats_url=nats_url,
            acks=f"$JS.ACK.{consumer}.>",
        )
