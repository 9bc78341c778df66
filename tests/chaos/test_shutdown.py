"""SIGTERM: in order, in time, and without a mail lost or doubled."""

import asyncio
import random
import re
import signal
import time

import pytest

from tests.support.load import (
    broker_of,
    client_of,
    count,
    doubled,
    ended,
    register,
    register_whatever_happens,
    settled,
    together,
)
from tests.support.processes import Process, System
from tests.support.smtp_server import Late, SmtpServer
from tests.support.waiting import eventually


async def ends_in_time(*processes: Process, within_s: float = 10.0) -> None:
    """SIGTERM to all: exit status 0 in time, and nothing but facts in the logs."""
    began = time.monotonic()
    assert await together(*(process.terminate(within_s=within_s) for process in processes)) == [0] * len(processes)
    assert time.monotonic() - began < within_s
    for process in processes:
        assert not re.search(r"Traceback|never retrieved|was destroyed", process.text()), process.text()[-3000:]


async def test_shutdown_under_load_loses_and_doubles_nothing(system: System, smtp: SmtpServer) -> None:
    """Both services are told to stop three times while registrations and mails go on: each mail once, none late."""
    rng = random.Random(7)
    smtp.on("dot", lambda _: Late(rng.uniform(0, 0.05)))
    await system.start()
    began = time.monotonic()
    async with client_of(system) as client:
        burst = asyncio.ensure_future(together(*(register_whatever_happens(client, n) for n in range(600))))
        for _ in range(3):
            at = len(smtp.accepted) + rng.randint(20, 100)
            await eventually(lambda at=at: len(smtp.accepted) >= at, within_s=30)
            await together(system.user.ready(), system.email.ready())  # while it loads, a SIGTERM just ends it
            await ends_in_time(system.user, system.email)
            system.user.start()
            system.email.start()
        await burst
    async with broker_of(system) as broker:
        await settled(broker, within_s=25)
        assert doubled(smtp, range(600)) == {}
        assert await count(broker, "sent") == 600
    # What was in hand was given back: had it been left to ack_wait, this would have taken 30 s more.
    assert time.monotonic() - began < 45


async def test_shutdown_waits_for_the_last_reply(system: System, smtp: SmtpServer) -> None:
    """The dot is out, the 250 takes 10 s: SIGTERM waits for it, and the mail is not sent again."""
    smtp.on("dot", Late(10.0))
    await system.start()
    async with client_of(system) as client, broker_of(system) as broker:
        user_id = await register(client, 1)
        await eventually(lambda: len(smtp.accepted) == 1)
        began = time.monotonic()
        await ends_in_time(system.email, within_s=20)
        assert time.monotonic() - began > 6
        system.email.start()
        await ended(client, user_id, "sent")
        await settled(broker)
    assert len(smtp.mails_begun) == 1


@pytest.mark.parametrize("how", ["stopped", "killed"])
async def test_shutdown_without_a_broker(system: System, smtp: SmtpServer, how: str) -> None:
    """A broker that is silent or gone does not keep the services from ending in time."""
    smtp.on("dot", Late(0.2))
    await system.start()
    async with client_of(system) as client:
        await together(*(register(client, n) for n in range(40)))
        await eventually(lambda: len(smtp.accepted) >= 5)
        system.nats.signal(signal.SIGSTOP if how == "stopped" else signal.SIGKILL)
        await ends_in_time(system.user, system.email)
        if how == "killed":
            system.nats.kill()


async def test_shutdown_before_the_broker_is_there(system: System) -> None:
    """Told to stop while they still wait for the broker, both end with 0."""
    system.user.start()
    system.email.start()
    for service in (system.user, system.email):
        await eventually(lambda service=service: "broker.connecting" in service.text())
    await ends_in_time(system.user, system.email)


async def test_waiting_for_a_token_is_given_back_at_once(system: System, smtp: SmtpServer) -> None:
    """What waits for its token at SIGTERM is the next worker's at once, not after ack_wait."""
    await system.start(email=False)
    async with client_of(system) as client, broker_of(system) as broker:
        await together(*(register(client, n) for n in range(20)))
        system.email.start(RATE_LIMIT_RPM="120", RATE_LIMIT_BURST="3")
        await eventually(lambda: len(smtp.accepted) >= 4)
        await ends_in_time(system.email)
        system.email.start(RATE_LIMIT_RPM="0")
        await settled(broker, within_s=10)
    assert doubled(smtp, range(20)) == {}
