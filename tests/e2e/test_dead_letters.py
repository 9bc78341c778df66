"""Dead letters: seen, counted, replayed, each once, through a kill in the middle."""

import asyncio
from typing import Any

import httpx

from tests.e2e.test_way_of_a_mail import register
from tests.support.processes import System
from tests.support.smtp_server import Reply, SmtpServer
from tests.support.waiting import eventually


async def test_bulk_replay_survives_a_kill_and_sends_each_once(system: System, smtp: SmtpServer) -> None:
    """1,000 dead letters replayed at 100/s with a kill -9 in the middle; issued again: each is sent exactly once."""
    count = 1000
    smtp.on("rcpt", Reply(550, "5.1.1 no such user"))
    await system.start()
    admin = system.user.admin
    async with httpx.AsyncClient(base_url=system.user.url, timeout=30) as client:
        for batch in range(0, count, 50):
            await asyncio.gather(*(register(client, n) for n in range(batch, batch + 50)))

        async def books() -> dict[str, Any]:
            found: dict[str, Any] = (await client.get(f"{admin}/ledger")).json()
            return found

        async def all_dead() -> bool:
            return bool((await books())["dead"]["open"] == count)

        await eventually(all_dead, within_s=120)
        smtp.on("rcpt", None)
        page = (await client.get(f"{admin}/dead-letters?limit=100&code=550")).json()
        assert len(page["dead_letters"]) == 100
        assert "@" not in str(page["dead_letters"])
        more = (await client.get(f"{admin}/dead-letters?limit=500&cursor={page['next_cursor']}")).json()
        assert len(more["dead_letters"]) == 500

        everything = {"all": True, "per_second": 100}
        dry = (await client.post(f"{admin}/dead-letters/replay", json=everything | {"dry_run": True})).json()
        assert dry == {"dry_run": True, "matching": count}
        assert (await client.post(f"{admin}/dead-letters/replay", json={})).status_code == 422
        assert (await client.post(f"{admin}/dead-letters/replay", json=everything)).status_code == 202
        await eventually(lambda: len(smtp.accepted) > 50)
        system.user.kill()
        system.user.start()
        await system.user.ready()
        left = (await client.post(f"{admin}/dead-letters/replay", json=everything | {"dry_run": True})).json()
        assert 0 < left["matching"] < count
        assert (await client.post(f"{admin}/dead-letters/replay", json=everything)).status_code == 202
        await eventually(lambda: len(smtp.accepted) >= count, within_s=120)

        async def settled() -> bool:
            seen = await books()
            done = (await client.get(f"{admin}/dead-letters/replay")).json()
            return bool(seen["sent"] == count and seen["gap"] == 0 and not done["running"])

        await eventually(settled, within_s=20)
        assert sorted(t.rcpt for t in smtp.accepted) == sorted(f"user{n}@example.com" for n in range(count))
        seen = await books()
        assert seen["dead"] == {"total": count, "open": 0, "replayed": count}


async def test_a_replay_does_not_replay_what_dies_meanwhile(system: System, smtp: SmtpServer) -> None:
    """The server still refuses: 30 letters are replayed and dead again, each once, and the replay is done."""
    smtp.on("rcpt", Reply(550, "5.1.1 no such user"))
    await system.start()
    admin = system.user.admin
    async with httpx.AsyncClient(base_url=system.user.url, timeout=30) as client:
        await asyncio.gather(*(register(client, n) for n in range(30)))

        async def dead() -> int:
            return int((await client.get(f"{admin}/ledger")).json()["dead"]["total"])

        async def first_dead() -> bool:
            return await dead() == 30

        await eventually(first_dead, within_s=30)
        started = await client.post(f"{admin}/dead-letters/replay", json={"all": True, "per_second": 10})
        assert started.json()["matching"] == 30

        async def ended() -> dict[str, Any] | None:
            progress: dict[str, Any] = (await client.get(f"{admin}/dead-letters/replay")).json()
            return None if progress["running"] else progress

        done = await eventually(ended, within_s=30)
        assert (done["replayed"], done["ended"]) == (30, "done")

        async def again_dead() -> bool:
            return await dead() == 60

        await eventually(again_dead, within_s=30)


async def test_waiting_retries_do_not_hold_up_fresh_mail(system: System, smtp: SmtpServer) -> None:
    """2,000 greylisted mails wait for a retry that is not due: a fresh one goes out at once."""
    waiting = 2000
    system.set_env(MESSAGE_RETRY_DELAYS="10m")
    smtp.on("rcpt", lambda t: None if t.rcpt.startswith("user9999@") else Reply(451, "4.7.1 greylisted"))
    await system.start()
    async with httpx.AsyncClient(base_url=system.user.url, timeout=30) as client:
        for batch in range(0, waiting, 50):
            await asyncio.gather(*(register(client, n) for n in range(batch, batch + 50)))

        async def all_waiting() -> bool:
            queue = (await client.get(f"{system.user.admin}/queue")).json()
            return bool(queue["waiting"] == 0 and queue["processing_or_retrying"] == waiting)

        await eventually(all_waiting, within_s=180)
        assert (await client.get(f"{system.user.admin}/circuit-breaker")).json()["state"] == "closed"
        await register(client, 9999)
        await eventually(lambda: [t.rcpt for t in smtp.accepted] == ["user9999@example.com"], within_s=3)


async def test_path_failures_spend_no_budget(system: System, smtp: SmtpServer) -> None:
    """A path that fails many times: the mail is sent in the end, none of its retries spent."""
    system.set_env(CIRCUIT_BREAKER_TIMEOUT="200ms", QUEUE_MAX_RETRIES="0")
    await smtp.refuse()
    await system.start()
    async with httpx.AsyncClient(base_url=system.user.url, timeout=30) as client:
        users = [(await register(client, n)).json()["id"] for n in range(3)]

        async def attempts() -> int:
            mails = [(await client.get(f"/v1/users/{user}/welcome-email")).json() for user in users]
            return int(max(mail["attempts_total"] for mail in mails))

        async def many() -> bool:
            return await attempts() >= 8

        await eventually(many, within_s=60)
        await smtp.listen()
        await eventually(lambda: len(smtp.accepted) == 3, within_s=40)


async def test_outage_leaves_the_books_balanced(system: System, smtp: SmtpServer) -> None:
    """Registrations go on through an outage: no positive gap that lasts, and all mails in the end, each once."""
    system.set_env(CIRCUIT_BREAKER_TIMEOUT="1s", RECONCILE_AFTER="2s")
    await system.start()
    gaps: list[int] = []
    async with httpx.AsyncClient(base_url=system.user.url, timeout=30) as client:
        for n in range(160):
            if n == 40:
                await smtp.refuse()
            if n == 120:
                await smtp.listen()
            assert (await register(client, n)).status_code == 201
            gaps.append((await client.get(f"{system.user.admin}/ledger")).json()["gap"])
        await eventually(lambda: len(smtp.accepted) >= 160, within_s=60)
        assert max(gaps) <= 0
        assert len({t.rcpt for t in smtp.accepted}) == len(smtp.accepted) == 160

        async def quiet() -> bool:
            books = (await client.get(f"{system.user.admin}/ledger")).json()
            return bool(books["gap"] == 0 and books["sent"] == 160 and books["in_queue"] == 0)

        await eventually(quiet)
    assert "reconciler.republished" not in system.user.text()


async def test_simulated_downtime_is_the_fleets(system: System, smtp: SmtpServer) -> None:
    """On demand: deliveries fail as a path failure on both replicas, no mail begins, and it ends when told."""
    system.set_env(CIRCUIT_BREAKER_TIMEOUT="500ms")
    await system.start()
    second = system.another("email_svc")
    second.start()
    await second.ready()
    async with httpx.AsyncClient(base_url=system.user.url, timeout=30) as client:
        answer = await client.post(f"{system.email.admin}/downtime", json={"for": "1h"})
        assert answer.json()["down"]

        async def both_down() -> bool:
            return all([(await client.get(f"{e.admin}/downtime")).json()["down"] for e in (system.email, second)])

        await eventually(both_down)
        users = [(await register(client, n)).json()["id"] for n in range(10)]

        async def opened() -> bool:
            return bool((await client.get(f"{system.user.admin}/circuit-breaker")).json()["state"] == "open")

        await eventually(opened, within_s=20)
        assert smtp.mails_begun == []
        assert (await client.post(f"{second.admin}/downtime", json={"end": True})).json()["down"] is False
        await eventually(lambda: len(smtp.accepted) == 10, within_s=30)
        mails = [(await client.get(f"/v1/users/{user}/welcome-email")).json() for user in users]
        assert "simulated_downtime" in str(mails)
        assert (await client.post(f"{system.email.admin}/downtime", json={"for": "soon"})).status_code == 422
