"""kill -9 of anything at any moment: every 201 gets its mail, and no fault doubles one that has no right to."""

import asyncio
import random

from tests.support.load import (
    broker_of,
    client_of,
    count,
    doubled,
    register,
    register_whatever_happens,
    settled,
    together,
)
from tests.support.processes import System
from tests.support.smtp_server import Late, SmtpServer
from tests.support.waiting import eventually

SLOTS = 16  # WORKER_CONCURRENCY


async def test_killed_user_svc_loses_no_registration(system: System, smtp: SmtpServer) -> None:
    """user_svc dies four times in a burst of registrations; every 201 gets exactly one mail."""
    rng = random.Random(1)
    await system.start()
    async with client_of(system) as client:
        burst = asyncio.ensure_future(together(*(register_whatever_happens(client, n) for n in range(600))))
        for _ in range(4):
            at = len(smtp.accepted) + rng.randint(5, 60)
            await eventually(lambda at=at: len(smtp.accepted) >= at, within_s=30)
            system.user.kill()
            system.user.start()
        await burst
    async with broker_of(system) as broker:
        await settled(broker)
        assert doubled(smtp, range(600)) == {}
        assert await count(broker, "sent") == 600


async def test_killed_email_svc_loses_no_mail(system: System, smtp: SmtpServer) -> None:
    """email_svc dies eight times in the middle of dialogues; a copy only of mails that were in its hands then."""
    rng = random.Random(2)
    await system.start(email=False)
    async with client_of(system) as client:
        await together(*(register(client, n) for n in range(500)))
    deaths, phases = 0, ["mail", "rcpt", "data", "dot"] * 2
    rng.shuffle(phases)
    for phase in phases:
        left = rng.randint(1, 30)

        def kill(_: object) -> None:
            nonlocal left, deaths
            left -= 1
            if left == 0:
                system.email.kill()
                deaths += 1

        smtp.on(phase, kill)  # type: ignore[arg-type]
        system.email.start()
        await eventually(lambda: not system.email.running, within_s=45, what=f"death at {phase}")
        smtp.on(phase, None)  # type: ignore[arg-type]
    system.email.start()
    async with broker_of(system) as broker:
        await settled(broker, within_s=60)
        copies = doubled(smtp, range(500))
        assert deaths == 8
        assert sum(copies.values()) - len(copies) <= SLOTS * deaths
        assert await count(broker, "sent") == 500


async def test_killed_broker_doubles_nothing(system: System, smtp: SmtpServer) -> None:
    """The broker dies five times while two workers have up to 128 mails in hand: each mail comes, and none twice.

    Killed, it forgets whom it gave its last messages, and hands them out again at once; the SMTP server takes up to
    1.2 s to answer a dot, so that many are between dot and outcome then.
    """
    rng, total = random.Random(5), 800
    smtp.on("rcpt", lambda _: Late(rng.uniform(0, 0.05)))
    smtp.on("dot", lambda _: Late(rng.uniform(0, 1.2)))
    system.env["WORKER_CONCURRENCY"] = system.email.env["WORKER_CONCURRENCY"] = "64"
    await system.start()
    other = system.another("email_svc")
    other.start()
    await other.ready()
    async with client_of(system) as client:
        burst = asyncio.ensure_future(together(*(register_whatever_happens(client, n) for n in range(total))))
        for _ in range(5):
            at = len(smtp.accepted) + rng.randint(5, 60)
            await eventually(lambda at=at: len(smtp.accepted) >= at, within_s=45)
            await asyncio.sleep(rng.uniform(0, 0.02))  # the random moment of the blow
            system.nats.kill()
            system.nats.start()
            await system.nats.ready()
        await burst
    async with broker_of(system) as broker:
        await settled(broker, within_s=60)
        assert doubled(smtp, range(total)) == {}
        assert await count(broker, "sent") == total


async def test_lost_acks_are_absorbed(system: System, smtp: SmtpServer) -> None:
    """The broker dies right after the last of 300 mails: acks that went down with it cost a look-up, not a mail."""
    await system.start(email=False)
    async with client_of(system) as client:
        await together(*(register(client, n) for n in range(300)))
    system.email.start()
    await eventually(lambda: len(smtp.accepted) >= 295, within_s=30)
    system.nats.kill()
    system.nats.start()
    await system.nats.ready()
    async with broker_of(system) as broker:
        await settled(broker, within_s=60)
        assert doubled(smtp, range(300)) == {}
