"""The breaker over the whole system: real pause on the broker, real SMTP refusals."""

import asyncio
import time
from typing import Any

import httpx

from tests.e2e.test_way_of_a_mail import register
from tests.support.processes import System
from tests.support.smtp_server import SmtpServer
from tests.support.waiting import eventually


async def state(client: httpx.AsyncClient, system: System) -> dict[str, Any]:
    found: dict[str, Any] = (await client.get(f"{system.user.admin}/circuit-breaker")).json()
    return found


async def test_refusals_open_and_repair_closes(system: System, smtp: SmtpServer) -> None:
    """SMTP refuses: open, paused on the broker, 201s go on; after repair closed and every mail once."""
    system.env |= {"CIRCUIT_BREAKER_TIMEOUT": "1s"}
    system.user.env |= system.env
    await system.start()
    await smtp.refuse()
    async with httpx.AsyncClient(base_url=system.user.url, timeout=10) as client:
        answers = [await register(client, n) for n in range(40)]
        assert {a.status_code for a in answers} == {201}

        async def is_open() -> bool:
            seen = await state(client, system)
            return seen["state"] == "open" and seen["broker"]["paused_until"] is not None

        await eventually(is_open)
        for _ in range(3):
            before = (await state(client, system))["epoch"]

            async def reopened(before: int = before) -> bool:
                return (await state(client, system))["epoch"] >= before + 2

            await eventually(reopened, within_s=10)
        await smtp.listen()
        repaired = time.monotonic()

        async def is_closed() -> bool:
            return (await state(client, system))["state"] == "closed"

        await eventually(is_closed, within_s=10)
        assert time.monotonic() - repaired < 3.5
        await eventually(lambda: len(smtp.accepted) >= 40, within_s=30)
        await asyncio.sleep(0)
        assert len(smtp.accepted) == 40
        assert len({t.rcpt for t in smtp.accepted}) == 40
        ledger = (await client.get(f"{system.user.admin}/ledger")).json()
        assert ledger["dead"]["total"] == 0
