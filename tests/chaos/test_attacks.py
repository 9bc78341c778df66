"""What an attacker found once: each of these lost its grip on a promise before it was mended."""

import asyncio

import httpx
import pytest

from contracts import subjects as s
from tests.support.load import broker_of, client_of, doubled, register, settled
from tests.support.processes import System
from tests.support.smtp_server import Late, Reply, SmtpServer
from tests.support.waiting import eventually


async def test_thawed_worker_gives_nothing_back_that_is_anothers(system: System, smtp: SmtpServer) -> None:
    """Frozen with a message in its socket until another worker has it under way; thawed, it says nothing: one mail."""
    await system.start()
    other = system.another("email_svc")
    other.env["WORKER_CONCURRENCY"] = "1"  # so that it has no pull out that could take what is given back
    async with client_of(system) as client, broker_of(system) as broker:

        async def waits() -> bool:
            info = await broker.api(f"CONSUMER.INFO.{s.WELCOME_EMAILS}.{s.EMAIL_SVC}")
            return bool(info["num_waiting"])

        await eventually(waits)
        system.email.pause()
        await register(client, 0)
        other.start()
        await other.ready()
        smtp.on("data", Late(6.0))
        await eventually(lambda: smtp.transactions, within_s=60)
        system.email.resume()
        await settled(broker)
    assert doubled(smtp, range(1)) == {}


async def test_tokens_do_not_pile_up_behind_a_slow_greeting(system: System, smtp: SmtpServer) -> None:
    """The SMTP server restarts and is slow to greet: the mails that waited for it do not all go at once."""
    rate, burst = 10.0, 1
    system.set_env(RATE_LIMIT_RPM="600", RATE_LIMIT_BURST=str(burst))
    await system.start()
    async with client_of(system) as client, broker_of(system) as broker:
        for n in range(60):
            await register(client, n)
        await eventually(lambda: len(smtp.accepted) > 5)
        smtp.on("greeting", Late(2.0), times=10)
        smtp.close_idle()
        await settled(broker)
    times = sorted(smtp.mails_begun)
    for i, begin in enumerate(times):
        for j in range(i, len(times)):
            # 0.1 s by the law, the rest for a machine that lets this process wait
            assert j - i + 1 <= rate * (times[j] - begin + 0.6) + burst + 1e-6


@pytest.mark.parametrize("key", [s.RATE_LIMIT_KEY, s.BREAKER_KEY, s.DOWNTIME_KEY])
@pytest.mark.parametrize("value", [b"", b"garbage"])
async def test_unreadable_record_stops_nothing_for_good(
    system: System, smtp: SmtpServer, key: str, value: bytes
) -> None:
    """A record that somebody deleted or spoilt by hand: mail goes on once it is readable again, without a restart."""
    system.set_env(RATE_LIMIT_RPM="60000", RATE_LIMIT_BURST="100")
    await system.start()
    async with client_of(system) as client, broker_of(system) as broker:
        await register(client, 0)
        await eventually(lambda: len(smtp.accepted) == 1)
        await broker.store(key, value)
        await register(client, 1)
        if value:
            await broker.purge(s.CONTROL, key)
        await eventually(lambda: len(smtp.accepted) == 2, within_s=20)
        async with httpx.AsyncClient() as admin:
            for action in ({"for": "9" * 400 + "d"}, {"for": "5000000d"}):
                assert (await admin.post(f"{system.email.admin}/downtime", json=action)).status_code == 422
                refused = await admin.post(f"{system.user.admin}/circuit-breaker/open", json=action)
                assert refused.status_code == 422
            assert (await admin.post(f"{system.email.admin}/downtime", json={"for": "1s"})).status_code == 200
            assert (await admin.post(f"{system.email.admin}/downtime", json={"end": True})).status_code == 200
            assert (await admin.get(f"{system.user.admin}/dead-letters?limit=0")).status_code == 200


async def test_closing_connection_is_a_path_failure(system: System, smtp: SmtpServer) -> None:
    """421 with common words, to everybody: the breaker opens; nobody is tried in a circle."""
    smtp.on("mail", Reply(421, "4.3.2 mail.example.com Service shutting down, closing connection"))
    await system.start()
    async with client_of(system) as client, httpx.AsyncClient() as admin:
        for n in range(8):
            await register(client, n)

        async def is_open() -> bool:
            return bool((await admin.get(f"{system.user.admin}/circuit-breaker")).json()["state"] == "open")

        await eventually(is_open)
        assert len(smtp.mails_begun) < 40


async def test_nothing_is_sent_after_its_deadline(system: System, smtp: SmtpServer) -> None:
    """A mail that waits for its token beyond the deadline expires."""
    system.set_env(RATE_LIMIT_RPM="12", RATE_LIMIT_BURST="1", EMAIL_DEADLINE="3s")
    await system.start()
    async with client_of(system) as client, broker_of(system) as broker:
        users = await asyncio.gather(*(register(client, n) for n in range(3)))
        await settled(broker)
        states = [(await client.get(f"/v1/users/{user}")).json()["welcome_email"]["status"] for user in users]
        assert sorted(states) == ["expired", "expired", "sent"]
    assert len(smtp.accepted) == 1


async def test_spoilt_breaker_record_is_made_anew(system: System, smtp: SmtpServer) -> None:
    """What is no record any more is replaced: the breaker works, and so does the mail, with nobody's help."""
    await system.start()
    async with client_of(system) as client, broker_of(system) as broker, httpx.AsyncClient() as admin:
        await broker.store(s.BREAKER_KEY, b'{"type": "io.nats.jetstream.api.v1.stream_info_response"}')
        for action in ("open", "close"):
            answer = await admin.post(f"{system.user.admin}/circuit-breaker/{action}", json={})
            assert answer.status_code == 200, answer.text
        await register(client, 0)
        await eventually(lambda: len(smtp.accepted) == 1, within_s=20)
    assert "breaker.unreadable_record" in system.user.text()


@pytest.mark.parametrize(
    "message",
    [
        b"HPUB %s 2 2\r\n\r\n\r\n",
        b"HPUB %s 17 17\r\nNATS/1.0 \xff\xff\xff\xff\r\n\r\n\r\n",
        b"PUB %s \xff\xfe 0\r\n\r\n",
    ],
    ids=["no header line", "garbage in it", "reply that is no text"],
)
async def test_unreadable_message_cuts_nobody_off(system: System, message: bytes) -> None:
    """Headers or a reply subject that the client's library cannot read: dropped; the connection stays."""
    await system.start(email=False)
    reader, writer = await asyncio.open_connection("127.0.0.1", system.nats.port)
    writer.write(b'CONNECT {"verbose":false,"headers":true}\r\n')
    for subject in (s.USERS_GET, s.REPORT):
        writer.write(message % subject.encode())
    writer.write(b"PING\r\n")
    async with asyncio.timeout(10):
        while not (await reader.readline()).startswith(b"PONG"):
            pass
    writer.close()
    await eventually(lambda: "broker.unreadable_message" in system.user.text())
    async with client_of(system) as client:
        await register(client, 0)
    assert "broker.disconnected" not in system.user.text()
