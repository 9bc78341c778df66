"""deploy/compose.cluster.yaml: three brokers, two replicas of each service, and one broker is killed."""

import asyncio
import json
from pathlib import Path

import httpx

from contracts import subjects as s
from deploy import make_secrets
from tests.support.containers import Compose, docker, free_ports
from tests.support.waiting import eventually

BROKERS = ("nats-1", "nats-2", "nats-3")
EACH = 10


def leader(compose: Compose, stream: str) -> str | None:
    """The broker that leads a stream."""
    said = compose("exec", "-T", "nats-1", "wget", "-qO", "-", "http://127.0.0.1:8222/jsz?streams=true").stdout
    for account in json.loads(said)["account_details"]:
        for found in account["stream_detail"]:
            if found["name"] == stream:
                assert len(found["cluster"]["replicas"]) == 2, "three copies"
                name: str | None = found["cluster"].get("leader")
                return name
    return None


async def register(clients: list[httpx.AsyncClient], n: int) -> None:
    """User n, at the replicas in turn, until one of them says 201."""

    async def created() -> bool:
        nonlocal attempt
        attempt += 1
        answer = await clients[(n + attempt) % len(clients)].post(
            "/v1/users",
            json={"email": f"user{n}@example.com", "name": f"User {n}"},
            headers={"Idempotency-Key": f'"key-{n}"'},
        )
        assert answer.status_code in (201, 503), answer.text
        return answer.status_code == 201

    attempt = 0
    await eventually(created, within_s=60)


async def test_one_broker_is_killed_and_mails_go_on(image: str, tmp_path: Path) -> None:
    """The one that leads the queue; everybody gets one mail, and the broker finds its way back."""
    secrets = tmp_path / ".env"
    make_secrets.main(secrets)
    ports = free_ports("INBOX_HTTP_PORT")
    compose = Compose("deploy/compose.cluster.yaml", name="cluster", env_file=secrets, RATE_LIMIT_RPM="0", **ports)
    with compose.up(*BROKERS, "user-svc", "email-svc", "mailpit"):
        clients = [
            httpx.AsyncClient(base_url=compose.url("user-svc", 8080, index=index), timeout=10) for index in (1, 2)
        ]
        admin = httpx.AsyncClient(base_url=compose.url("user-svc", 9101), timeout=10)
        inbox = httpx.AsyncClient(base_url=compose.url("mailpit", 8025), timeout=10)

        async def sent(count: int) -> bool:
            book = (await admin.get("/ledger")).json()
            return book.get("sent") == count and book.get("gap") == 0

        try:
            await asyncio.gather(*(register(clients, n) for n in range(EACH)))
            await eventually(lambda: sent(EACH), within_s=60, what="mails before")
            victim = await eventually(lambda: leader(compose, s.WELCOME_EMAILS), within_s=30)
            docker("kill", "--signal", "KILL", compose.container(victim))
            await asyncio.gather(*(register(clients, n) for n in range(EACH, 2 * EACH)))
            await eventually(lambda: sent(2 * EACH), within_s=90, what="mails with two brokers")
            mails = (await inbox.get("/api/v1/messages", params={"limit": 100})).json()["messages"]
            assert sorted(mail["To"][0]["Address"] for mail in mails) == sorted(
                f"user{n}@example.com" for n in range(2 * EACH)
            )
            compose("up", "-d", "--wait", "--wait-timeout", "120", "--no-deps", victim)
        finally:
            for client in (*clients, admin, inbox):
                await client.aclose()
