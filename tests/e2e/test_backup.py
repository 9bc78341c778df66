"""A backup made while everything runs, brought back elsewhere: nobody is forgotten, nobody gets a second mail."""

import asyncio
import contextlib
import json
import shutil
import sys
from collections import Counter
from collections.abc import AsyncIterator
from datetime import datetime
from pathlib import Path
from typing import Any

import httpx

from tests.support.processes import ROOT, NatsServer, Process, Service, System, cluster_of_three, login, stopping
from tests.support.smtp_server import Reply, SmtpServer, Transaction
from tests.support.waiting import eventually

QUICK = {"RECONCILE_AFTER": "2s", "CIRCUIT_BREAKER_TIMEOUT": "1s", "LOG_LEVEL": "INFO"}
UNKNOWN = "nobody@example.com"


async def backup(url: str, *arguments: str, replicas: int = 1, status: int = 0) -> str:
    """Runs deploy/local/backup.py, checks its exit status and returns what it says."""
    child = await asyncio.create_subprocess_exec(
        sys.executable,
        "deploy/local/backup.py",
        *arguments,
        cwd=ROOT,
        env={"NATS_URL": url, "STREAM_REPLICAS": str(replicas), "PATH": ""} | login("operator"),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    said, _ = await asyncio.wait_for(child.communicate(), 120)
    assert child.returncode == status, said.decode()
    return said.decode()


async def register(client: httpx.AsyncClient, email: str) -> str | None:
    """The user's id, or None when it was not answered with 201."""
    try:
        answer = await client.post("/v1/users", json={"email": email, "name": "Somebody"})
    except httpx.TransportError:
        return None
    return answer.json()["id"] if answer.status_code == 201 else None


async def register_all(client: httpx.AsyncClient, prefix: str, count: int) -> dict[str, str]:
    """Ids by address."""
    found = {}
    for n in range(0, count, 20):
        emails = [f"{prefix}{i}@example.com" for i in range(n, min(n + 20, count))]
        for email, user_id in zip(emails, await asyncio.gather(*(register(client, e) for e in emails)), strict=True):
            assert user_id is not None
            found[email] = user_id
    return found


@contextlib.asynccontextmanager
async def registering(client: httpx.AsyncClient, prefix: str) -> AsyncIterator[dict[str, str]]:
    """Registers one after another until the end; ids by address."""
    found: dict[str, str] = {}

    async def go_on() -> None:
        n = 0
        while True:
            email = f"{prefix}{n}@example.com"
            if (user_id := await register(client, email)) is not None:
                found[email] = user_id
            n += 1

    task = asyncio.create_task(go_on())
    try:
        yield found
    finally:
        task.cancel()
        await asyncio.wait({task})


async def admin(service: Service, path: str) -> dict[str, Any]:
    async with httpx.AsyncClient(base_url=service.admin, timeout=10) as client:
        found: dict[str, Any] = (await client.get(path)).json()
        return found


async def settled(user: Service) -> dict[str, Any]:
    """The ledger once nothing is under way any more."""

    async def look() -> dict[str, Any] | None:
        seen = await admin(user, "/ledger")
        quiet = "gap" in seen and not (
            seen["in_outbox"] or seen["in_queue"] or seen["gap"] or seen["erasures_under_way"]
        )
        return seen if quiet else None

    seen = await eventually(look, within_s=60, what="everything ended, and no gap")
    assert seen is not None
    return seen


def refuse_unknown(transaction: Transaction) -> Reply | None:
    return Reply(550, "5.1.1 no such user") if UNKNOWN in transaction.rcpts else None


def services(folder: Path, brokers: list[NatsServer], smtp: SmtpServer, **env: str) -> tuple[Service, Service]:
    """Both, not started."""
    shared = {
        "NATS_URL": ",".join(node.url for node in brokers),
        "NATS_MONITORING_URL": brokers[0].monitoring_url,
        "SMTP_URL": f"smtp://127.0.0.1:{smtp.port}",
        "RATE_LIMIT_RPM": "0",
        "PROVISION": "verify",
    }
    shared |= QUICK | env
    return (
        Service("user_svc", folder, shared | login("user_svc")),
        Service("email_svc", folder, shared | login("email_svc")),
    )


async def started(*processes: Process) -> None:
    for process in processes:
        process.start()
    for process in processes:
        if isinstance(process, Service):
            await process.ready(60)


async def test_restored_into_one_broker_and_into_a_cluster(system: System, smtp: SmtpServer, tmp_path: Path) -> None:
    """Sent, dead, queued and just registering: after the restore every one has exactly one mail in all."""
    system.set_env(**QUICK)
    smtp.on("rcpt", refuse_unknown)
    await system.start()
    async with httpx.AsyncClient(base_url=system.user.url, timeout=20) as client:
        known = await register_all(client, "sent", 120)
        known |= {UNKNOWN: str(await register(client, UNKNOWN))}

        async def noted() -> bool:  # not only accepted: a reply that the cut below takes away means a second copy
            return bool((await client.get(f"{system.user.admin}/ledger")).json()["sent"] == 120)

        await eventually(noted, within_s=30)
        await smtp.refuse()
        known |= await register_all(client, "queued", 120)
        async with registering(client, "during") as during:
            said = await backup(system.nats.url, "save", str(tmp_path / "saved"))
        assert "KV_USERS" in said
        said = await backup(system.nats.url, "restore", str(tmp_path / "saved"), status=78)
        assert "holds" in said, "it must not touch what is there"
        said = await backup(system.nats.url, "restore", str(tmp_path / "saved"), "replace", status=78)
        assert "Stop both services first" in said
    system.stop()
    assert len(during) > 5
    before = Counter(t.rcpt for t in smtp.accepted)

    async def check(brokers: list[NatsServer], replicas: int) -> None:
        folder = tmp_path / f"to{replicas}"
        folder.mkdir()
        url = ",".join(node.url for node in brokers)
        async with SmtpServer() as inbox:
            inbox.on("rcpt", refuse_unknown)
            said = await backup(url, "restore", str(tmp_path / "saved"), replicas=replicas)
            assert "gap" in said
            user, email = services(folder, brokers, inbox, STREAM_REPLICAS=str(replicas))
            with stopping(user, email):
                await started(user, email)
                ledger = await settled(user)
                async with httpx.AsyncClient(base_url=user.url, timeout=20) as client:
                    there = {
                        email: (await client.get(f"/v1/users/{user_id}")).status_code
                        for email, user_id in (known | during).items()
                    }
                    assert {there[email] for email in known} == {200}
                    saved = {email for email, status in there.items() if status == 200}
                    mails = before + Counter(t.rcpt for t in inbox.accepted)
                    assert mails == Counter(dict.fromkeys(saved - {UNKNOWN}, 1))
                    assert ledger["live_events"] == len(saved)
                    assert (ledger["sent"], ledger["dead"]["open"]) == (len(saved) - 1, 1)
                    assert await register(client, "afterwards@example.com") is not None
                    assert await register(client, "sent1@example.com") is None, "uniqueness holds"
                await eventually(lambda: "afterwards@example.com" in {t.rcpt for t in inbox.accepted}, within_s=20)

    alone = NatsServer(tmp_path / "alone")
    with stopping(alone):
        await started(alone)
        await alone.ready()
        await check([alone], 1)
    async with cluster_of_three(tmp_path / "cluster") as nodes:
        await check(nodes, 3)


async def test_mail_goes_on_during_the_backup(system: System, smtp: SmtpServer, tmp_path: Path) -> None:
    """What was sent before the ledger was saved is not sent again; what was sent after has the same Message-ID."""
    system.set_env(**QUICK)
    await system.start()
    async with httpx.AsyncClient(base_url=system.user.url, timeout=20) as client:
        known = await register_all(client, "sent", 40)
        async with registering(client, "a") as a, registering(client, "b") as b, registering(client, "c") as c:
            await eventually(lambda: len(smtp.accepted) > 60, within_s=20)
            known |= a | b | c
            await backup(system.nats.url, "save", str(tmp_path / "saved"))
    # In order: a worker that is killed with a dot on its way is another test's business.
    assert await system.email.terminate() == 0
    assert await system.user.terminate() == 0
    system.stop()
    manifest = json.loads((tmp_path / "saved" / "mailflow.json").read_text())
    began = {one["name"]: datetime.fromisoformat(one["began_at"]).timestamp() for one in manifest["streams"]}
    first = {t.rcpt: t for t in smtp.accepted}
    fresh = NatsServer(tmp_path / "fresh")
    user, email = services(tmp_path / "fresh", [fresh], smtp)
    with stopping(fresh, user, email):
        await started(fresh)
        await fresh.ready()
        await backup(fresh.url, "restore", str(tmp_path / "saved"))
        await started(user, email)
        ledger = await settled(user)
        async with httpx.AsyncClient(base_url=user.url, timeout=20) as client:
            ids = list((known | a | b | c).values())
            found = await asyncio.gather(*(client.get(f"/v1/users/{user_id}") for user_id in ids))
        assert {answer.status_code for answer in found[: len(known)]} == {200}
        there = [answer.json()["email"] for answer in found if answer.status_code == 200]
        assert ledger["live_events"] == ledger["sent"] == len(there)
    for rcpt, mails in Counter(t.rcpt for t in smtp.accepted).items():
        assert mails <= 2
        if mails == 2:
            assert first[rcpt].mail_at_wall > began["DELIVERIES"] - 1.0, "its outcome was not saved"
            assert len({t.message_id for t in smtp.accepted if t.rcpt == rcpt}) == 1
    assert {t.rcpt for t in smtp.accepted} >= set(there)


async def test_seams_are_mended(system: System, smtp: SmtpServer, tmp_path: Path) -> None:
    """A ledger saved much later than the rest: its unknown rows go, its dead letter and its erasure come about."""
    system.set_env(**QUICK)
    smtp.on("rcpt", refuse_unknown)
    await system.start()
    early, late = tmp_path / "early", tmp_path / "late"
    async with httpx.AsyncClient(base_url=system.user.url, timeout=20) as client:
        known = await register_all(client, "sent", 10)
        await eventually(lambda: len(smtp.accepted) == 10, within_s=20)
        await settled(system.user)
        await smtp.refuse()
        known |= {UNKNOWN: str(await register(client, UNKNOWN))}

        async def queued() -> bool:
            return bool((await admin(system.user, "/ledger"))["in_queue"] == 1)

        await eventually(queued)
        await backup(system.nats.url, "save", str(early))
        await smtp.listen()

        async def dead() -> bool:
            return bool((await admin(system.user, "/ledger"))["dead"]["open"] == 1)

        await eventually(dead, within_s=20)
        assert (await client.delete(f"/v1/users/{known['sent3@example.com']}")).status_code == 204
        lost = await register_all(client, "lost", 5)
        await eventually(lambda: len(smtp.accepted) == 15, within_s=20)
        await settled(system.user)
        await backup(system.nats.url, "save", str(late))
    system.stop()
    shutil.rmtree(early / "DELIVERIES")
    shutil.copytree(late / "DELIVERIES", early / "DELIVERIES")
    mixed, later = (json.loads((folder / "mailflow.json").read_text()) for folder in (early, late))
    for i, stream in enumerate(later["streams"]):
        if stream["name"] == "DELIVERIES":
            mixed["streams"][i] = stream
    (early / "mailflow.json").write_text(json.dumps(mixed))
    fresh = NatsServer(tmp_path / "fresh")
    user, email = services(tmp_path / "fresh", [fresh], smtp)
    with stopping(fresh, user, email):
        await started(fresh)
        await fresh.ready()
        said = await backup(fresh.url, "restore", str(early))
        assert "removed  5 rows" in said
        assert "1 dead letters" in said
        assert "1 erasures" in said
        await started(user, email)
        ledger = await settled(user)
        assert (ledger["live_events"], ledger["sent"]) == (10, 9)
        assert ledger["dead"] == {"total": 1, "open": 1, "replayed": 0}
        async with httpx.AsyncClient(base_url=user.url, timeout=20) as client:
            gone = {known["sent3@example.com"], *lost.values()}
            for user_id in (known | lost).values():
                assert (await client.get(f"/v1/users/{user_id}")).status_code == (404 if user_id in gone else 200)
    assert len(smtp.accepted) == 15
