"""What becomes of a mail when the mailbox, the path or the message itself is the trouble."""

import asyncio
import bisect
import os

import httpx
import pytest

from contracts import messages as m
from contracts import subjects as s
from contracts.runtime.broker import Broker
from tests.support.load import (
    address,
    broker_of,
    client_of,
    count,
    doubled,
    ended,
    pending,
    register,
    settled,
    together,
)
from tests.support.processes import System
from tests.support.smtp_server import Reply, SmtpServer
from tests.support.waiting import eventually

MIB = 1024 * 1024


async def dead_letter(broker: Broker, state: str) -> bytes:
    """The one dead letter of that state, as it is stored."""
    found = await broker.last(s.DEAD_LETTERS, s.dead_letter("*.*", state))
    assert found is not None
    assert len(await broker.subjects(s.DEAD_LETTERS, ">")) == 1
    return found.data


@pytest.mark.parametrize("first", ["user_svc", "email_svc"])
async def test_fresh_start_in_either_order(system: System, smtp: SmtpServer, first: str) -> None:
    """Each service makes what it needs of an empty broker; the queue's length is its owner's, whoever came first."""
    system.without_accounts()
    await system.start_broker()
    order = [system.user, system.email] if first == "user_svc" else [system.email, system.user]
    system.user.env["QUEUE_MAX_SIZE"] = "77"
    for service in order:
        service.start()
        await service.ready()
    async with client_of(system) as client, broker_of(system) as broker:
        user_id = await register(client, 1)
        await ended(client, user_id, "sent")
        assert (await broker.api(f"STREAM.INFO.{s.WELCOME_EMAILS}"))["config"]["max_msgs"] == 77


async def test_services_wait_for_the_broker(system: System, smtp: SmtpServer) -> None:
    """Started before the broker, both come up with it."""
    system.without_accounts()
    system.user.start()
    system.email.start()
    system.nats.start()
    await system.user.ready()
    await system.email.ready()
    async with client_of(system) as client:
        await ended(client, await register(client, 1), "sent")


async def test_unknown_mailbox_is_dead_at_once(system: System, smtp: SmtpServer) -> None:
    """550 5.1.1: one try, a dead letter without the address, an empty queue."""
    smtp.on("rcpt", Reply(550, f"5.1.1 <{address(1)}>: no such user user1."))
    await system.start()
    async with client_of(system) as client, broker_of(system) as broker:
        user_id = await register(client, 1)
        mail = await ended(client, user_id, "dead")
        assert [(a["verdict"], a["phase"], a["code"]) for a in mail["attempts"]] == [("permanent", "rcpt", 550)]
        assert mail["attempts"][0]["text"] == "5.1.1 <<recipient>>: no such user <local>."
        await settled(broker)
        assert len(smtp.mails_begun) == 1
        data = await dead_letter(broker, "dead")
        letter = m.DEAD_LETTER.decode(data)
        assert (letter.user_id, letter.code, letter.attempts) == (user_id, 550, 1)
        assert b"user1" not in data
        assert b"example.com" not in data
        assert await count(broker, "dead") == 1


async def test_greylisted_mail_is_sent_at_the_third_try(system: System, smtp: SmtpServer) -> None:
    """451 twice, then 250: the attempts are there to see, before and after."""
    smtp.on("rcpt", Reply(451, "4.7.1 greylisted, come back later"), times=2)
    system.email.env["MESSAGE_RETRY_DELAYS"] = "300ms"
    await system.start()
    async with client_of(system) as client, broker_of(system) as broker:
        user_id = await register(client, 1)
        retrying = await ended(client, user_id, "retrying")
        assert retrying["next_attempt_at"] is not None
        mail = await ended(client, user_id, "sent")
        assert [(a["verdict"], a["phase"], a["code"]) for a in mail["attempts"]] == [
            ("transient", "rcpt", 451),
            ("transient", "rcpt", 451),
            ("sent", "dot", 250),
        ]
        assert len(smtp.accepted) == 1
        await settled(broker)
        assert await broker.subjects(s.DELIVERIES, s.ATTEMPTS) == []
    gaps = [b - a for a, b in zip(smtp.mails_begun, smtp.mails_begun[1:], strict=False)]
    assert all(0.26 < gap < 2 for gap in gaps), gaps


async def test_full_mailbox_is_dead_after_four_tries(system: System, smtp: SmtpServer) -> None:
    """QUEUE_MAX_RETRIES=3: one try and three more, no fewer and no more."""
    smtp.on("rcpt", Reply(552, "5.2.2 mailbox full"))
    system.email.env["MESSAGE_RETRY_DELAYS"] = "100ms"
    await system.start()
    async with client_of(system) as client, broker_of(system) as broker:
        mail = await ended(client, await register(client, 1), "dead")
        assert mail["attempts_total"] == 4
        await settled(broker)
        assert len(smtp.mails_begun) == 4
        assert m.DEAD_LETTER.decode(await dead_letter(broker, "dead")).attempts == 4
        assert await broker.subjects(s.DELIVERIES, s.ATTEMPTS) == []


async def test_smtp_that_is_down_spends_no_budget(system: System, smtp: SmtpServer) -> None:
    """No retries allowed at all; the mail goes through all the same once the server is up."""
    await smtp.refuse()
    await system.start(email=False)
    system.email.start(QUEUE_MAX_RETRIES="0")
    async with client_of(system) as client:
        user_id = await register(client, 1)

        async def tried() -> bool:
            mail = (await client.get(f"/v1/users/{user_id}/welcome-email")).json()
            return mail["attempts_total"] >= 4 and mail["status"] == "retrying"

        await eventually(tried, within_s=20)
        await smtp.listen()
        mail = await ended(client, user_id, "sent", within_s=40)
        assert {a["verdict"] for a in mail["attempts"][:-1]} == {"path"}


async def test_deadline_ends_a_mail_that_cannot_be_sent(system: System, smtp: SmtpServer) -> None:
    """EMAIL_DEADLINE=1s with the SMTP server away: expired, with a dead letter; never sent later."""
    await smtp.refuse()
    system.user.env["EMAIL_DEADLINE"] = system.email.env["EMAIL_DEADLINE"] = "1s"
    await system.start()
    async with client_of(system) as client, broker_of(system) as broker:
        user_id = await register(client, 1)
        mail = await ended(client, user_id, "expired")
        assert mail["reason"] == "the deadline passed"
        await smtp.listen()
        await settled(broker)
        assert m.DEAD_LETTER.decode(await dead_letter(broker, "expired")).user_id == user_id
        assert await broker.subjects(s.DELIVERIES, s.ATTEMPTS) == []
    assert smtp.mails_begun == []


async def test_messages_that_are_no_events_are_quarantined(system: System, smtp: SmtpServer) -> None:
    """Whatever is put into the queue ends as a dead letter with a reason, once; the mails around it go on."""
    await system.start(email=False)
    user = "a" * 26
    valid = m.WelcomeEmailRequested(
        event_id=f"{user}.1",
        user_id=user,
        email="eve@example.com",
        name="Eve",
        why=m.Why.REGISTRATION,
        requested_at="2026-01-01T00:00:00Z",  # type: ignore[arg-type]
        expires_at="2036-01-01T00:00:00Z",  # type: ignore[arg-type]
    )
    forged = m.WELCOME_EMAIL_REQUESTED.encode(valid)
    bad = [
        b"",
        b"\xff\xfe",
        b"null",
        b'{"kind":"welcome_email.requested.v9"}',
        b'{"kind":"a\\r\\nNats-TTL: 1s\\r\\n\\r\\nboo"}',  # quoted in the reason, which is a header
        b'{"kind":"welcome_email.requested.v1","x":' + b"[" * 200_000 + b"]" * 200_000 + b"}",
        forged,  # under another event's subject
        forged.replace(user.encode(), b"../etc"),
        forged.replace(b"2036-01-01T00:00:00Z", b"2036-01-01T00:00:00"),  # no zone
        os.urandom(MIB - 100),  # as large as the broker takes; with headers it would be larger
    ]
    async with client_of(system) as client, broker_of(system) as broker:
        for n, data in enumerate(bad):
            await register(client, n)
            await broker.store(s.welcome_requested(f"forged.{n + 1}"), data)
        system.email.start()
        await settled(broker)
        assert doubled(smtp, range(len(bad))) == {}
        letters = await broker.subjects(s.DEAD_LETTERS, ">")
        assert len(letters) == len(bad)
        assert all(letter.startswith("dead_letters.quarantine.") for letter in letters)
        for letter in letters:
            stored = await broker.api(f"STREAM.MSG.GET.{s.DEAD_LETTERS}", {"last_by_subj": letter})
            assert stored["message"]["hdrs"]
        kept = [await broker.last(s.DEAD_LETTERS, letter) for letter in letters]
        assert {k.data for k in kept if k is not None} >= {data for data in bad if len(data) < MIB // 2}
        assert await count(broker, "sent") == len(bad)
        assert await count(broker, "dead") == 0
    assert system.email.text().count("email.quarantined") == len(bad)
    assert "broker.disconnected" not in system.email.text()


async def test_event_that_no_mail_can_be_made_of_is_dead(system: System, smtp: SmtpServer) -> None:
    """A well-formed event whose address would break the dialogue: a dead letter, and no MAIL command."""
    await system.start(email=False)
    user = "b" * 26
    async with broker_of(system) as broker:
        event = (
            b'{"kind":"welcome_email.requested.v1","event_id":"%s.7","user_id":"%s","email":"x@y>\\r\\nRCPT TO:<z@y",'
            b'"name":"Z","why":"registration","requested_at":"2026-01-01T00:00:00Z","expires_at":"2036-01-01T00:00:00Z"}'
        ) % (user.encode(), user.encode())
        await broker.store(s.welcome_requested(f"{user}.7"), event)
        system.email.start()
        await settled(broker)
        letter = m.DEAD_LETTER.decode(await dead_letter(broker, "dead"))
        assert (letter.reason, letter.attempts) == ("unusable", 1)
    assert smtp.mails_begun == []


async def test_resend_sends_a_second_mail(system: System, smtp: SmtpServer) -> None:
    """Asked for again, it is another mail with another Message-ID; three a day."""
    await system.start()
    async with client_of(system) as client, broker_of(system) as broker:
        user_id = await register(client, 1)
        await ended(client, user_id, "sent")
        for _ in range(3):
            assert (await client.post(f"/v1/users/{user_id}/welcome-email")).status_code == 202
        assert (await client.post(f"/v1/users/{user_id}/welcome-email")).status_code == 429
        await settled(broker)
    assert [t.rcpt for t in smtp.accepted] == [address(1)] * 4
    assert len({t.message_id for t in smtp.accepted}) == 4


async def test_rate_limit_holds_in_every_window_and_is_used(system: System, smtp: SmtpServer) -> None:
    """10 a second, burst 5, by the server's own clock: never more in any window, and nearly that much over all.

    Connections that the server cuts at MAIL, or sends away there, cost a token each time.
    """
    rate, burst, mails = 10.0, 5, 60
    cuts = iter(range(10**6))
    smtp.on("mail", lambda _: Reply(421, "4.7.0 too many messages in this session") if next(cuts) % 6 == 3 else None)
    await system.start(email=False)
    system.email.env |= {"RATE_LIMIT_RPM": "600", "RATE_LIMIT_BURST": str(burst), "MESSAGE_RETRY_DELAYS": "300ms"}
    async with client_of(system) as client, broker_of(system) as broker:
        await together(*(register(client, n) for n in range(mails)))
        system.email.start()
        await settled(broker)
    assert doubled(smtp, range(mails)) == {}
    times = sorted(smtp.mails_begun)
    for i, begin in enumerate(times):
        for j in range(i, len(times)):
            allowed = rate * (times[j] - begin + 0.1) + burst
            assert j - i + 1 <= allowed + 1e-6, f"{j - i + 1} MAILs in {times[j] - begin:.3f} s"
    assert bisect.bisect(times, times[0] + 0.3) >= burst, "the burst is there at the start"
    assert (len(times) - burst) / (times[-1] - times[0]) > 0.85 * rate


async def test_rate_limit_holds_after_a_freeze(system: System, smtp: SmtpServer) -> None:
    """Tokens that fell due while the process was stopped are void: they do not go out at once when it goes on."""
    rate, burst, mails = 10.0, 2, 50
    await system.start(email=False)
    system.email.env |= {"RATE_LIMIT_RPM": "600", "RATE_LIMIT_BURST": str(burst), "MESSAGE_RETRY_DELAYS": "300ms"}
    async with client_of(system) as client, broker_of(system) as broker:
        await together(*(register(client, n) for n in range(mails)))
        system.email.start()
        for at in (8, 25):
            await eventually(lambda at=at: len(smtp.accepted) >= at, within_s=20)
            system.email.pause()
            await asyncio.sleep(1.5)  # how long it is frozen: the fault, not a wait
            system.email.resume()
        await settled(broker)
    times = sorted(smtp.mails_begun)
    for i, begin in enumerate(times):
        for j in range(i, len(times)):
            assert j - i + 1 <= rate * (times[j] - begin + 0.1) + burst + 1e-6, times


async def test_nothing_is_pulled_that_may_not_be_sent(system: System, smtp: SmtpServer) -> None:
    """One mail a minute: all but the burst and the next one wait in the queue, where everybody can see them."""
    await system.start(email=False)
    system.email.env |= {"RATE_LIMIT_RPM": "1", "RATE_LIMIT_BURST": "3"}
    async with client_of(system) as client, broker_of(system) as broker:
        await together(*(register(client, n) for n in range(20)))
        system.email.start()
        await eventually(lambda: len(smtp.accepted) == 3)

        async def waiting() -> bool:
            info = await broker.api(f"CONSUMER.INFO.{s.WELCOME_EMAILS}.{s.EMAIL_SVC}")
            return bool(info["num_ack_pending"] == 1 and info["num_pending"] == 16)

        await eventually(waiting)
        assert (await pending(broker))[1] == 17


async def test_connection_that_died_while_waiting_for_its_token_is_replaced(system: System, smtp: SmtpServer) -> None:
    """A server that cuts idle connections after a second, and a mail every 1.5 s: no attempt fails for it."""
    await system.start(email=False)
    system.email.env |= {"RATE_LIMIT_RPM": "40", "RATE_LIMIT_BURST": "1"}

    async def cut_idle() -> None:
        while True:
            await asyncio.sleep(0.1)  # how often the server looks
            smtp.close_idle(1.0)

    async with client_of(system) as client, asyncio.TaskGroup() as group:
        cutting = group.create_task(cut_idle())
        ids = await together(*(register(client, n) for n in range(4)))
        system.email.start()
        for user_id in ids:
            mail = await ended(client, user_id, "sent", within_s=20)
            assert [a["verdict"] for a in mail["attempts"]] == ["sent"]
        cutting.cancel()


@pytest.mark.parametrize("name", ["RATE_LIMIT_RPM", "MESSAGE_RETRY_DELAYS", "SMTP_URL"])
async def test_nonsense_settings_stop_the_start(system: System, name: str) -> None:
    """Exit status 78, and the variable's name."""
    nonsense = {"RATE_LIMIT_RPM": "inf", "MESSAGE_RETRY_DELAYS": "0s", "SMTP_URL": "http://x"}
    system.email.start(**{name: nonsense[name]})
    assert await system.email.exit_status() == 78
    assert name.lower().split("_")[0] in system.email.text().lower()
    assert "Traceback" not in system.email.text()


async def test_ready_says_what_is_missing(system: System) -> None:
    """/readyz of email_svc is 503 without a broker."""
    system.email.start()

    async def status() -> int:
        try:
            async with httpx.AsyncClient() as client:
                return (await client.get(f"{system.email.admin}/readyz")).status_code
        except httpx.TransportError:
            return 0

    assert await eventually(status) == 503
