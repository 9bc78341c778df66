"""Does a mail get through: both services as processes, a real broker, a real SMTP dialogue."""

import httpx

from tests.support.load import together
from tests.support.processes import System
from tests.support.smtp_server import SmtpServer
from tests.support.waiting import eventually


async def register(client: httpx.AsyncClient, n: int, **headers: str) -> httpx.Response:
    return await client.post("/v1/users", json={"email": f"user{n}@example.com", "name": f"User {n}"}, headers=headers)


async def test_registration_becomes_a_mail(system: System, smtp: SmtpServer) -> None:
    """A 201, a mail at the SMTP server, and the status says so."""
    await system.start()
    async with httpx.AsyncClient(base_url=system.user.url) as client:
        answer = await register(client, 1)
        assert answer.status_code == 201, answer.text
        await eventually(lambda: len(smtp.accepted) == 1)
        user_id = answer.json()["id"]

        async def status() -> bool:
            found = (await client.get(f"/v1/users/{user_id}")).json()
            return found["welcome_email"]["status"] == "sent"

        await eventually(status)
        mail = (await client.get(f"/v1/users/{user_id}/welcome-email")).json()
        assert [(a["verdict"], a["phase"], a["code"]) for a in mail["attempts"]] == [("sent", "dot", 250)]


async def test_thousand_registrations_are_a_thousand_mails(system: System, smtp: SmtpServer) -> None:
    """1,000 registrations at 64 concurrent: 1,000 distinct mails, each once; the queue is empty then."""
    await system.start()
    limits = httpx.Limits(max_connections=64, max_keepalive_connections=64)
    async with httpx.AsyncClient(base_url=system.user.url, limits=limits, timeout=30) as client:
        answers = await together(*(register(client, n) for n in range(1000)), at_once=64)
        assert [a.status_code for a in answers] == [201] * 1000
        await eventually(lambda: len(smtp.accepted) >= 1000, within_s=60)
        assert sorted(t.rcpt for t in smtp.accepted) == sorted(f"user{n}@example.com" for n in range(1000))

        async def all_sent() -> bool:
            views = await together(*(client.get(f"/v1/users/{a.json()['id']}") for a in answers), at_once=64)
            return all(v.json()["welcome_email"]["status"] == "sent" for v in views)

        await eventually(all_sent, within_s=30)
        queue = (await client.get(f"{system.user.admin}/queue")).json()
        assert (queue["size"], queue["outbox_pending"]) == (0, 0)
    assert len({t.message_id for t in smtp.accepted}) == 1000
