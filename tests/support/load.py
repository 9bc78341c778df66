"""Registrations under fire, and the books that are compared at the end."""

import asyncio
import contextlib
from collections import Counter
from collections.abc import AsyncIterator, Coroutine, Iterable
from typing import Any, TypeVar

import httpx

from contracts import subjects as s
from contracts.runtime.broker import Broker, Unavailable, connect
from tests.support.processes import System
from tests.support.smtp_server import SmtpServer
from tests.support.waiting import eventually

T = TypeVar("T")


def address(n: int) -> str:
    return f"user{n}@example.com"


def client_of(system: System, *, connections: int = 32) -> httpx.AsyncClient:
    """A client of the API; use it as an async context manager."""
    limits = httpx.Limits(max_connections=connections, max_keepalive_connections=connections)
    return httpx.AsyncClient(base_url=system.user.url, limits=limits, timeout=30)


@contextlib.asynccontextmanager
async def broker_of(system: System) -> AsyncIterator[Broker]:
    """A connection to the system's broker."""
    broker = await connect(name="test", url=system.nats.url, on_closed=lambda reason: None)
    try:
        yield broker
    finally:
        await broker.close()


async def register(client: httpx.AsyncClient, n: int) -> str:
    """Registers user n and returns its id; anything but a 201 fails."""
    answer = await client.post("/v1/users", json={"email": address(n), "name": f"User {n}"})
    assert answer.status_code == 201, answer.text
    return str(answer.json()["id"])


async def register_whatever_happens(client: httpx.AsyncClient, n: int) -> str:
    """Repeats, with one Idempotency-Key, until the 201 is there, as a client is told to do; no other refusal counts."""

    async def once() -> str | None:
        try:
            answer = await client.post(
                "/v1/users", json={"email": address(n), "name": f"User {n}"}, headers={"Idempotency-Key": f"key-{n}"}
            )
        except httpx.TransportError:
            await asyncio.sleep(0.2)  # refused connects take the core that the service needs to start
            return None
        assert answer.status_code in (201, 503), answer.text
        return str(answer.json()["id"]) if answer.status_code == 201 else None

    return await eventually(once, within_s=60, what=f"201 for user {n}")


async def welcome(client: httpx.AsyncClient, user_id: str) -> dict[str, Any]:
    """The user's newest mail with its attempts."""
    answer = await client.get(f"/v1/users/{user_id}/welcome-email")
    assert answer.status_code == 200, answer.text
    found: dict[str, Any] = answer.json()
    return found


async def ended(client: httpx.AsyncClient, user_id: str, status: str, *, within_s: float = 15.0) -> dict[str, Any]:
    """Waits until the mail has that status."""

    async def look() -> dict[str, Any] | None:
        mail = await welcome(client, user_id)
        return mail if mail["status"] == status else None

    return await eventually(look, within_s=within_s, what=f"mail of {user_id} {status}")


async def pending(broker: Broker) -> tuple[int, int]:
    """What is still in the outbox and in the queue."""
    relay = await broker.api(f"CONSUMER.INFO.{s.USERS}.{s.RELAY}")
    queue = await broker.api(f"STREAM.INFO.{s.WELCOME_EMAILS}")
    return relay["num_pending"] + relay["num_ack_pending"], queue["state"]["messages"]


async def queued(broker: Broker, n: int) -> bool:
    """Whether the outbox is empty and the queue holds n."""
    return await pending(broker) == (0, n)


async def settled(broker: Broker, *, within_s: float = 60.0) -> None:
    """Waits until outbox and queue are empty: whatever is to be sent has been sent."""

    async def look() -> bool:
        with contextlib.suppress(Unavailable):  # it may have been killed just now
            seen.append(await pending(broker))
        return seen[-1:] == [(0, 0)]

    seen: list[tuple[int, int]] = []
    try:
        await eventually(look, within_s=within_s)
    except AssertionError as exc:
        raise AssertionError(f"outbox and queue not empty within {within_s} s: {seen[-1:]}") from exc


async def count(broker: Broker, state: str) -> int:
    """How many mails ended so, by the broker's counter."""
    info = await broker.api(f"CONSUMER.INFO.{s.DELIVERIES}.count-{state}")
    pending: int = info["num_pending"]
    return pending


def doubled(smtp: SmtpServer, numbers: Iterable[int]) -> dict[str, int]:
    """Each of these users got a mail, and nobody else one; every user's copies bear one Message-ID. Who got several."""
    got = Counter(t.rcpt for t in smtp.accepted)
    wanted = {address(n) for n in numbers}
    assert not wanted - got.keys(), f"no mail: {sorted(wanted - got.keys())[:10]} ({len(wanted - got.keys())} in all)"
    assert not got.keys() - wanted, f"not registered: {sorted(got.keys() - wanted)[:10]}"
    ids = {(t.rcpt, t.message_id) for t in smtp.accepted}
    assert len(ids) == len(got), "copies of one mail with different Message-IDs"
    return {rcpt: times for rcpt, times in got.items() if times > 1}


async def together(*work: Coroutine[Any, Any, T], at_once: int = 32) -> list[T]:
    """Their results, in order; no more than `at_once` at a time, for a client's pool is slow with many that wait.

    Unlike asyncio.gather it leaves nothing running when one fails.
    """
    turn = asyncio.Semaphore(at_once)

    async def one(coroutine: Coroutine[Any, Any, T]) -> T:
        async with turn:
            return await coroutine

    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(one(coroutine)) for coroutine in work]
    return [task.result() for task in tasks]
