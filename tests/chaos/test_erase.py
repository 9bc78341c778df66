"""Erased while the mail is pending, and registered again: one mail, to the new registration."""

import asyncio
import random
import re

import httpx
import pytest

from contracts import subjects as s
from tests.support.load import broker_of, client_of, queued, register, register_whatever_happens, settled, together
from tests.support.processes import System
from tests.support.smtp_server import SmtpServer
from tests.support.waiting import eventually

ROUNDS = 40


async def erase(client: httpx.AsyncClient, user_id: str) -> None:
    """Repeats until the user is gone, as a client is told to do."""

    async def once() -> bool:
        answer = await client.delete(f"/v1/users/{user_id}")
        assert answer.status_code in (204, 404, 503), answer.text
        return answer.status_code != 503

    await eventually(once, within_s=30)


@pytest.mark.parametrize("mail_path", ["refusing", "no worker"])
async def test_erased_while_pending_gets_no_mail(system: System, smtp: SmtpServer, mail_path: str) -> None:
    """Register, erase at any moment, register again, 40 times at once: one mail each, of the second registration."""
    rng = random.Random(11)
    if mail_path == "refusing":
        await smtp.refuse()
    await system.start(email=mail_path == "refusing")
    async with client_of(system) as client, broker_of(system) as broker:

        async def story(n: int) -> tuple[str, str]:
            user_id = await register(client, n)
            first = (await client.get(f"/v1/users/{user_id}")).json()["welcome_email"]["event_id"]
            await asyncio.sleep(rng.uniform(0, 0.5))  # here and below: the random moment of the next blow
            await erase(client, user_id)
            await asyncio.sleep(rng.uniform(0, 0.05))
            assert await register(client, n) == user_id
            second = (await client.get(f"/v1/users/{user_id}")).json()["welcome_email"]["event_id"]
            return first, second

        stories = await together(*(story(n) for n in range(ROUNDS)))
        if mail_path == "refusing":
            await smtp.listen()
        else:
            system.email.start()
        await settled(broker, within_s=60)
        sent = sorted(str(t.message_id) for t in smtp.accepted)
        assert sent == sorted(f"<{second}@mailflow.local>" for _, second in stories)
        for first, _ in stories:
            assert await broker.subjects(s.WELCOME_EMAILS, s.welcome_requested(first)) == []
            assert await broker.subjects(s.DELIVERIES, s.delivery_rows(first)) == [s.outcome(first, "erased")]
        assert await broker.subjects(s.USERS, s.ERASE_KEYS) == []


async def test_erased_while_it_is_sent(system: System, smtp: SmtpServer) -> None:
    """Erasing at any moment of a mail's way: at most one mail of each registration, the second one always."""
    rng = random.Random(12)
    await system.start()
    async with client_of(system) as client, broker_of(system) as broker:

        async def story(n: int) -> str:
            user_id = await register(client, n)
            await asyncio.sleep(rng.uniform(0, 0.05))
            await erase(client, user_id)
            await register(client, n)
            mail = (await client.get(f"/v1/users/{user_id}")).json()["welcome_email"]
            return str(mail["event_id"])

        second = await together(*(story(n) for n in range(ROUNDS)))
        await settled(broker)
        ids = [str(t.message_id) for t in smtp.accepted]
        assert len(set(ids)) == len(ids)
        assert {f"<{event}@mailflow.local>" for event in second} <= set(ids)


async def test_erasure_is_finished_whoever_dies(system: System, smtp: SmtpServer) -> None:
    """user_svc is killed six times while 60 users are erased: all are gone in the end, and none gets a mail."""
    rng = random.Random(13)
    await system.start(email=False)
    async with client_of(system) as client, broker_of(system) as broker:
        ids = await together(*(register_whatever_happens(client, n) for n in range(60)))
        await eventually(lambda: queued(broker, 60))

        async def gone(user_id: str) -> None:
            async def once() -> bool:
                try:
                    return (await client.delete(f"/v1/users/{user_id}")).status_code in (204, 404)
                except httpx.TransportError:
                    return False

            await eventually(once, within_s=60)

        erasing = asyncio.ensure_future(together(*(gone(user_id) for user_id in ids)))
        for _ in range(6):
            await asyncio.sleep(rng.uniform(0, 0.3))
            system.user.kill()
            system.user.start()
            await system.user.ready()
        await erasing
        system.email.start()
        await settled(broker)
        assert smtp.mails_begun == []
        assert await broker.subjects(s.USERS, s.USER_KEYS) == []
        assert await broker.subjects(s.USERS, s.ERASE_KEYS) == []
        assert await broker.subjects(s.WELCOME_EMAILS, ">") == []
    for store in system.nats.store.rglob("*.blk"):
        assert not re.search(rb"user\d+@example\.com", store.read_bytes()), store
