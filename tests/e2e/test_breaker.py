"""The breaker over the whole system: a real pause on the broker, a mail server that is really sick."""

import asyncio
import contextlib
import itertools
import time
from datetime import datetime
from typing import Any

import httpx

from contracts import control as c
from contracts import subjects as s
from contracts.runtime.broker import Broker, Unavailable, connect
from tests.e2e.test_way_of_a_mail import register
from tests.support.processes import System
from tests.support.smtp_server import Reply, Reset, SmtpServer
from tests.support.waiting import eventually

SICK = Reply(421, "4.3.0 out of order")


async def breaker(client: httpx.AsyncClient, system: System) -> dict[str, Any]:
    found: dict[str, Any] = (await client.get(f"{system.user.admin}/circuit-breaker")).json()
    return found


async def until_state(client: httpx.AsyncClient, system: System, state: str, within_s: float = 15.0) -> dict[str, Any]:
    async def look() -> dict[str, Any] | None:
        found = await breaker(client, system)
        return found if found["state"] == state else None

    return await eventually(look, within_s=within_s, what=f"breaker {state}")  # type: ignore[return-value]


async def consumer(broker: Broker) -> dict[str, Any]:
    """What the broker itself says of the queue's consumer."""
    info: dict[str, Any] = await broker.api(f"CONSUMER.INFO.{s.WELCOME_EMAILS}.{s.EMAIL_SVC}")
    return info


async def connection(system: System) -> Broker:
    return await connect(name="test", url=system.nats.url, on_closed=lambda _: None)


async def attempts(client: httpx.AsyncClient, users: list[str]) -> list[dict[str, Any]]:
    """All that were made for these users, as the API shows them."""
    views = [(await client.get(f"/v1/users/{user}/welcome-email")).json() for user in users]
    return [attempt for view in views for attempt in view["attempts"]]


def monotonic(text: str) -> float:
    """A time in the API on the monotonic clock, which the SMTP server's times are on."""
    return datetime.fromisoformat(text).timestamp() - time.time() + time.monotonic()


async def test_sick_path_is_left_alone_and_healed_path_is_used(system: System, smtp: SmtpServer) -> None:
    """Two replicas of each service, 500 mails waiting, 10 rounds: open within 5 failures and those in flight, paused on
    the broker, no mail begins while open, at most 3 a half-open round, sign-up goes on; after the repair closed within
    the timeout and 2 s, every mail once, nobody dead, no budget spent."""
    open_s, rounds = 3.0, 10
    system.set_env(CIRCUIT_BREAKER_TIMEOUT=f"{open_s:.0f}s")
    user2, email2 = system.another("user_svc"), system.another("email_svc")
    smtp.on("mail", SICK)
    await system.start()
    for replica in (user2, email2):
        replica.start()
        await replica.ready()
    broker = await connection(system)
    async with httpx.AsyncClient(base_url=system.user.url, timeout=10) as client:
        assert {(await register(client, n)).status_code for n in range(500)} == {201}
        await until_state(client, system, "open")
        first_failures = len(smtp.mails_begun)
        assert first_failures <= 5 + 2 * 16

        async def paused() -> bool:
            return bool((await consumer(broker)).get("paused"))

        await eventually(paused)

        async def enough() -> bool:
            if (await breaker(client, system))["state"] == "half_open":
                await register(client, 1000 + len(smtp.mails_begun))
            return sum(t["state"] == "open" for t in (await breaker(client, system))["transitions"]) > rounds

        await eventually(enough, within_s=rounds * (open_s + 4) + 10)
        smtp.on("mail", None)
        seen = await breaker(client, system)
        await until_state(client, system, "closed", within_s=open_s + 2.5)
        sizes = (await client.get(f"{system.user.admin}/ledger")).json()
        expected = sizes["live_events"]
        await eventually(lambda: len(smtp.accepted) >= expected, within_s=120)
        assert len({t.rcpt for t in smtp.accepted}) == len(smtp.accepted) == expected

        times = list(reversed(seen["transitions"]))
        for before, after in itertools.pairwise(times):
            begun = [t for t in smtp.mails_begun if monotonic(before["at"]) < t < monotonic(after["at"])]
            if before["state"] == "open":
                assert not [t for t in begun if t > monotonic(before["at"]) + 2.0], "a mail began while open"
            if before["state"] == "half_open":
                assert len(begun) <= 3, f"{len(begun)} probes in a round"

        async def balanced() -> bool:
            books = (await client.get(f"{system.user.admin}/ledger")).json()
            return bool(books["sent"] == expected and books["gap"] == 0 and books["dead"]["total"] == 0)

        await eventually(balanced, within_s=20)
    await broker.close()


async def test_lapses_by_itself_when_every_user_svc_is_dead(system: System, smtp: SmtpServer) -> None:
    """kill -9 of user_svc while open: the pause lapses; delivery is tried one at a time while the path is sick, and
    goes on when it is well, with nobody to ask."""
    system.set_env(CIRCUIT_BREAKER_TIMEOUT="1s")
    smtp.on("mail", SICK)
    await system.start()
    async with httpx.AsyncClient(base_url=system.user.url, timeout=10) as client:
        users = [(await register(client, n)).json()["id"] for n in range(20)]
        await until_state(client, system, "open")
        await until_state(client, system, "open")
    system.user.kill()
    alone_from = len(smtp.mails_begun)
    await eventually(lambda: "path.alone" in system.email.text(), within_s=60)
    await eventually(lambda: len(smtp.mails_begun) >= alone_from + 3, within_s=60)
    begun = smtp.mails_begun[alone_from:]
    assert min(b - a for a, b in itertools.pairwise(begun)) > 0.04, "more than one at a time"
    smtp.on("mail", None)
    await eventually(lambda: len(smtp.accepted) >= 20, within_s=120)
    assert len({t.rcpt for t in smtp.accepted}) == len(smtp.accepted) == 20
    system.user.start()
    await system.user.ready()
    await eventually(lambda: "path.no_longer_alone" in system.email.text(), within_s=20)
    async with httpx.AsyncClient(base_url=system.user.url, timeout=10) as client:
        told = {attempt["breaker"] for attempt in await attempts(client, users)}
    assert {"closed", "alone"} <= told <= {"closed", "half_open", "alone"}


async def test_restart_of_the_broker_remembers(system: System, smtp: SmtpServer) -> None:
    """kill -9 of the broker while open: still paused after its restart; then it heals as usual."""
    system.set_env(CIRCUIT_BREAKER_TIMEOUT="6s")
    smtp.on("mail", SICK)
    await system.start()
    async with httpx.AsyncClient(base_url=system.user.url, timeout=10) as client:
        users = [(await register(client, n)).json()["id"] for n in range(10)]
        opened = await until_state(client, system, "open")

        async def paused() -> bool:  # a moment after the record says so
            return (await breaker(client, system))["broker"]["paused_until"] is not None

        await eventually(paused)
        system.nats.kill()
        system.nats.start()
        await system.nats.ready()
        broker = await connection(system)
        info = await consumer(broker)
        assert info.get("paused"), info
        await broker.close()
        smtp.on("mail", None)
        await until_state(client, system, "closed", within_s=20)
        assert (await breaker(client, system))["epoch"] >= opened["epoch"] + 2
        await eventually(lambda: len(smtp.accepted) == 10, within_s=30)

        async def probes() -> int:
            told = await attempts(client, users)
            return sum((one["breaker"], one["verdict"]) == ("half_open", "sent") for one in told)

        assert 1 <= await eventually(probes) <= 3  # each shows by which leave it was made


async def test_permits_outlive_the_broker(system: System, smtp: SmtpServer) -> None:
    """kill -9 of the broker while half-open: the round's permits are still counted after its restart."""
    await system.start(email=False)
    async with httpx.AsyncClient(timeout=10) as client:
        await client.post(f"{system.user.admin}/circuit-breaker/open", json={"for": "500ms"})
        epoch = (await until_state(client, system, "half_open"))["epoch"]

        async def ask(broker: Broker, worker: str) -> str:
            question = c.ASKED.encode(c.Ask(worker=worker, nonce=1, epoch=epoch, lapse_s=60))
            return str(c.ANSWER.decode((await broker.request(s.ASK, question)).data).word)

        broker = await connection(system)
        assert [await ask(broker, f"w{n}") for n in range(4)] == ["go", "go", "go", "wait"]
        system.nats.kill()
        system.nats.start()
        await system.nats.ready()

        async def answered() -> str | None:
            with contextlib.suppress(Unavailable):
                return await ask(broker, "w5")
            return None

        assert await eventually(answered) == "wait"
        assert (await breaker(client, system))["half_open"]["permits_issued"] == 3
        await broker.close()


async def test_operator_holds_and_releases(system: System, smtp: SmtpServer) -> None:
    """Open until further notice outlives user_svc; close lets all mails go; both are in the audit."""
    await system.start()
    async with httpx.AsyncClient(base_url=system.user.url, timeout=10) as client:
        answer = await client.post(f"{system.user.admin}/circuit-breaker/open", json={"reason": "maintenance"})
        assert answer.status_code == 200
        assert answer.json()["until_further_notice"]
        await eventually(lambda: _paused(client, system))
        for n in range(5):
            assert (await register(client, n)).status_code == 201
        system.user.kill()
        broker = await connection(system)
        assert (await consumer(broker))["config"]["pause_until"].startswith("2199")
        system.user.start()
        await system.user.ready()
        assert (await until_state(client, system, "open"))["reason"] == "maintenance"
        assert smtp.accepted == []
        # A consumer that is deleted and made anew is paused at birth.
        await broker.api(f"CONSUMER.DELETE.{s.WELCOME_EMAILS}.{s.EMAIL_SVC}")

        async def remade() -> bool:
            found = await broker.api(f"CONSUMER.NAMES.{s.WELCOME_EMAILS}")
            return s.EMAIL_SVC in (found.get("consumers") or ()) and bool((await consumer(broker)).get("paused"))

        await eventually(remade)
        assert smtp.accepted == []
        await client.post(f"{system.user.admin}/circuit-breaker/close", json={})
        await eventually(lambda: len(smtp.accepted) == 5, within_s=15)
        actions = [a["action"] for a in (await client.get(f"{system.user.admin}/audit")).json()["audit"]]
        assert actions[:2] == ["breaker-close", "breaker-open"]
        await broker.close()


async def _paused(client: httpx.AsyncClient, system: System) -> bool:
    return (await breaker(client, system))["broker"]["paused_until"] is not None


async def test_configuration_fault_opens_for_five_minutes(system: System, smtp: SmtpServer) -> None:
    """Our sender is refused: one failure is enough, and nobody hammers."""
    smtp.on("mail", Reply(550, "5.1.8 sender refused"))
    await system.start()
    async with httpx.AsyncClient(base_url=system.user.url, timeout=10) as client:
        await register(client, 1)
        seen = await until_state(client, system, "open")
        assert round(monotonic(seen["next_attempt_at"]) - monotonic(seen["since"])) == 300
        assert "configuration" in seen["reason"]


async def test_policy_surge_holds_and_kills_nobody(system: System, smtp: SmtpServer) -> None:
    """5.7.1 to everybody: the breaker opens with surge, nobody is dead, all are sent once it is over."""
    system.set_env(CIRCUIT_BREAKER_TIMEOUT="1s", MESSAGE_RETRY_DELAYS="300ms")
    smtp.on("rcpt", Reply(550, "5.7.1 your network is blocked"))
    await system.start()
    async with httpx.AsyncClient(base_url=system.user.url, timeout=10) as client:
        await asyncio.gather(*(register(client, n) for n in range(40)))
        seen = await until_state(client, system, "open", within_s=20)
        assert seen["surge"]
        for _ in range(2):
            await until_state(client, system, "half_open")
            assert (await until_state(client, system, "open"))["surge"]
        smtp.on("rcpt", None)
        await until_state(client, system, "closed")
        await eventually(lambda: len(smtp.accepted) >= 40, within_s=60)
        books = (await client.get(f"{system.user.admin}/ledger")).json()
        assert books["dead"]["total"] == 0
        assert not (await breaker(client, system))["surge"]


async def test_one_poisonous_mail_does_not_pass_for_a_sick_path(system: System, smtp: SmtpServer) -> None:
    """One mail resets the connection each time while good ones keep coming: they are all sent, that one ends dead."""
    system.set_env(CIRCUIT_BREAKER_TIMEOUT="1s", MESSAGE_RETRY_DELAYS="300ms")
    smtp.on("rcpt", lambda t: Reset() if t.rcpt == "user0@example.com" else None)
    await system.start()
    async with httpx.AsyncClient(base_url=system.user.url, timeout=10) as client:
        poison = (await register(client, 0)).json()["id"]
        sent = 0

        async def dead() -> bool:
            nonlocal sent
            sent += 1
            await register(client, sent)
            return (await client.get(f"/v1/users/{poison}")).json()["welcome_email"]["status"] == "dead"

        await eventually(dead, within_s=60)
        await eventually(lambda: len(smtp.accepted) == sent, within_s=30)
        opens = [t for t in (await breaker(client, system))["transitions"] if t["state"] == "open"]
        assert len(opens) <= 2
        letters = (await client.get(f"{system.user.admin}/dead-letters")).json()["dead_letters"]
        assert [letter["user_id"] for letter in letters] == [poison]
