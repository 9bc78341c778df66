"""Garbage and forgeries in queue, ledger, dead letters and control, by somebody who may write there: each is reported
or set aside, once, and nobody else waits for it.

Deliveries are counted: what comes again for ever would be a jam that nobody sees.
"""

import contextlib
import itertools
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from typing import Any

import httpx
import msgspec
import pytest

from contracts import control as c
from contracts import messages as m
from contracts import subjects as s
from contracts.runtime.broker import Broker
from tests.support.attack import GARBAGE, deliveries, join, put, raw
from tests.support.load import ended, pending, settled
from tests.support.processes import System
from tests.support.smtp_server import Reply, SmtpServer
from tests.support.waiting import eventually

pytestmark = pytest.mark.asyncio(loop_scope="module")

Target = tuple[System, SmtpServer]
NOW = datetime.now(UTC)
FAR = datetime(9999, 12, 31, 23, 59, 59, tzinfo=UTC)
_numbers = itertools.count()


async def test_forged_rows_do_not_hold_up_an_erasure(target: Target, client: httpx.AsyncClient, broker: Broker) -> None:
    """Rows under the user's id that are no event's go with the rest."""
    _, user = await join(client)
    await settled(broker)
    event = (await client.get(f"/v1/users/{user}")).json()["welcome_email"]["event_id"]
    for what in (f"{user}.x", f"{user}.007", f"{user}.-1", f"{user}.{'9' * 40}"):
        await broker.store(s.attempts(what), b"forged")
        await broker.store(s.outcome(what, "sent"), b"forged")
        await broker.store(s.dead_letter(what, "dead"), b"forged")
    await broker.store(s.outcome(event, "sent"), b"garbage")
    assert (await client.get(f"/v1/users/{user}")).json()["welcome_email"]["status"] == "sent"
    assert (await client.delete(f"/v1/users/{user}")).status_code == 204
    left = await broker.subjects(s.DELIVERIES, f"deliveries.{user}.>")
    assert all(subject.endswith(".erased") for subject in left)
    assert await broker.subjects(s.DEAD_LETTERS, f"dead_letters.*.{user}.*") == []


@contextlib.asynccontextmanager
async def held(system: System) -> AsyncIterator[None]:
    """The breaker is open: what is registered meanwhile stays in the queue."""
    async with httpx.AsyncClient(timeout=10) as admin:
        assert (await admin.post(f"{system.user.admin}/circuit-breaker/open", json={})).status_code == 200
        yield
        assert (await admin.post(f"{system.user.admin}/circuit-breaker/close", json={})).status_code == 200


async def test_unreadable_rows_of_the_ledger_end_in_what_their_subject_says(
    target: Target, client: httpx.AsyncClient, broker: Broker
) -> None:
    """An outcome is one whatever it holds; of attempts nothing is known, and the mail goes out. Nothing comes again."""
    system, smtp = target
    users: list[tuple[str, str, str]] = []

    def attempts(event: str, **changes: Any) -> bytes:
        return m.ATTEMPTS.encode(m.Attempts(**{"event_id": event, "history": m.History(), "due_at": NOW} | changes))

    def outcome(event: str, state: str) -> bytes:
        return m.OUTCOME.encode(m.Outcome(event_id=event, state=m.State(state), at=NOW))

    other = "b" * 26 + ".1"
    async with held(system):
        for kind, forged, ends in (
            ("outcome.sent", lambda e: b"garbage", "sent"),
            ("outcome.sent", lambda e: b"\xff", "sent"),
            ("outcome.sent", lambda e: outcome(e, "erased"), "sent"),
            ("outcome.sent", attempts, "sent"),
            ("outcome.dead", lambda e: b"[" * 100_000, "dead"),
            ("outcome.expired", lambda e: outcome(other, "expired"), "expired"),
            ("outcome.bogus", lambda e: b"{}", "dead"),
            ("attempts", lambda e: b"garbage", "mail"),
            ("attempts", lambda e: b'{"kind":"welcome_email.attempts.v1","event_id":"\xff"}', "mail"),
            ("attempts", lambda e: outcome(e, "sent"), "mail"),
            ("attempts", lambda e: attempts(other), "mail"),
            ("attempts", lambda e: attempts(e, history=m.History(total=-(10**30), charged=-(10**30))), "mail"),
        ):
            address, user = await join(client)
            event = (await client.get(f"/v1/users/{user}")).json()["welcome_email"]["event_id"]
            await broker.store(f"deliveries.{event}.{kind}", forged(event))
            assert (await client.get(f"/v1/users/{user}/welcome-email")).status_code == 200
            users.append((address, user, ends))

        async def all_queued() -> bool:
            return await pending(broker) == (0, len(users))

        await eventually(all_queued)
        before = await deliveries(broker, s.WELCOME_EMAILS, s.EMAIL_SVC)
    await settled(broker, within_s=20)
    assert await deliveries(broker, s.WELCOME_EMAILS, s.EMAIL_SVC) - before <= len(users) + 3
    assert {sent.rcpt for sent in smtp.accepted} == {address for address, _, ends in users if ends == "mail"}
    for _, user, ends in users:
        state = "sent" if ends == "mail" else ends
        assert (await client.get(f"/v1/users/{user}")).json()["welcome_email"]["status"] == state, ends
        assert (await client.delete(f"/v1/users/{user}")).status_code == 204
    assert '"ledger.unreadable_row"' in system.email.text()
    assert '"email.failed"' not in system.email.text()


async def test_absurd_times_make_no_circle(target: Target, client: httpx.AsyncClient, broker: Broker) -> None:
    """A retry that is due in the year 9999 is not taken for one that is due now."""
    system, smtp = target
    async with held(system):
        _, user = await join(client)
        event = (await client.get(f"/v1/users/{user}")).json()["welcome_email"]["event_id"]
        row = m.Attempts(event_id=event, history=m.History(), due_at=FAR)
        await broker.store(s.attempts(event), m.ATTEMPTS.encode(row))
        never = f"{'c' * 26}.99"  # neither does it expire: it would come at once if the broker did not know the figure
        await broker.store(s.attempts(never), m.ATTEMPTS.encode(msgspec.structs.replace(row, event_id=never)))
        for n, (asked, expires) in enumerate(((NOW, FAR), (FAR, FAR))):
            forged = m.WelcomeEmailRequested(
                event_id=f"{'c' * 26}.{n + 1}",
                user_id="c" * 26,
                email=f"absurd{n}@example.com",
                name="A",
                why=m.Why.REGISTRATION,
                requested_at=asked,
                expires_at=expires,
            )
            data = m.WELCOME_EMAIL_REQUESTED.encode(forged)
            await broker.store(s.welcome_requested(forged.event_id), data)
            early = data.replace(b"9999-12-31T23:59:59Z", b"0001-01-01T00:00:00+14:00")
            early = early.replace(forged.event_id.encode(), f"{'c' * 26}.{n + 11}".encode())
            await broker.store(s.welcome_requested(f"{'c' * 26}.{n + 11}"), early)
        forged = msgspec.structs.replace(forged, event_id=never)
        await broker.store(s.welcome_requested(never), m.WELCOME_EMAIL_REQUESTED.encode(forged))
        before = await deliveries(broker, s.WELCOME_EMAILS, s.EMAIL_SVC)

    async def two_left() -> bool:
        return (await pending(broker))[1] == 2

    await eventually(two_left, within_s=20)
    _, last = await join(client)
    await ended(client, last, "sent")
    assert await deliveries(broker, s.WELCOME_EMAILS, s.EMAIL_SVC) - before <= 12
    assert (await client.delete(f"/v1/users/{user}")).status_code == 204
    entry = await broker.last(s.WELCOME_EMAILS, s.welcome_requested(never))
    assert entry is not None
    await broker.delete(s.WELCOME_EMAILS, entry.seq)
    assert {"absurd0@example.com", "absurd1@example.com"} <= {sent.rcpt for sent in smtp.accepted}
    assert '"email.failed"' not in system.email.text()


async def test_forged_events_are_set_aside_once(target: Target, client: httpx.AsyncClient, broker: Broker) -> None:
    """Subjects and headers that no library can read, numbers beyond 64 bits, another's id: each given out once."""
    system, _ = target
    await settled(broker)
    quarantined = await count_letters(broker)
    before = await deliveries(broker, s.WELCOME_EMAILS, s.EMAIL_SVC)
    prefix = b"email.welcome.requested."
    messages = [
        raw(prefix + b"forged.1", b"\r\n\xff\xff: \xfe", b"{}"),
        raw(prefix + b"forged.2", b"garbage", b"{}"),
        raw(prefix + b"\xff\xfe.1", b"\r\nA: b", b"{}"),
        raw(prefix + b"\xff\xfe.2", b"\xff\xff\xff\xff", b"{}"),
        raw(prefix + b"a" * 26 + b"." + b"9" * 30, b"\r\nA: b", b"{}"),
        raw(prefix + b"*.*", b"\r\nA: b", b"{}"),
        b"PUB %s\xc3\xa4.3 0\r\n\r\n" % prefix,
    ]
    await put(target[0], *messages)
    event = m.WelcomeEmailRequested(
        event_id=f"{'d' * 26}.{'9' * 30}",
        user_id="d" * 26,
        email="victim@example.net",
        name="V",
        why=m.Why.REGISTRATION,
        requested_at=NOW,
        expires_at=NOW + timedelta(days=1),
    )
    await broker.store(s.welcome_requested(event.event_id), m.WELCOME_EMAIL_REQUESTED.encode(event))
    # Quoted in the reason, where addresses are looked for: that once took an hour, and nothing else was done.
    await broker.store(s.welcome_requested("forged.3"), b'{"kind":"' + b"a" * 900_000 + b' @"}')
    _, user = await join(client)
    await ended(client, user, "sent")
    await settled(broker, within_s=20)
    assert await count_letters(broker) - quarantined == len(messages) + 2
    assert (
        await deliveries(broker, s.WELCOME_EMAILS, s.EMAIL_SVC) - before <= len(messages) + 3 + 5
    )  # an ack may be late
    assert "broker.disconnected" not in system.email.text()


async def count_letters(broker: Broker) -> int:
    info = await broker.api(f"CONSUMER.INFO.{s.DEAD_LETTERS}.count-quarantine")
    found: int = info["num_pending"]
    return found


async def test_forged_letters_do_not_stop_a_replay(target: Target, client: httpx.AsyncClient, broker: Broker) -> None:
    """A bulk replay passes over what is no letter, and reaches the one behind it."""
    system, smtp = target
    at = datetime.now(UTC)
    letter = m.DeadLetter(event_id="nobody", user_id="x", state=m.State.DEAD, reason="r", at=at)
    await broker.store(s.dead_letter(f"{'e' * 26}.1", "dead"), m.DEAD_LETTER.encode(letter))
    await broker.store(s.dead_letter(f"{'e' * 26}.2", "dead"), b"\xff")
    await broker.store(s.dead_letter(f"{'e' * 26}.{'9' * 30}", "dead"), b"[" * 100_000)
    smtp.on("rcpt", Reply(550, "5.1.1 unknown"), times=1)
    address, user = await join(client)
    await ended(client, user, "dead")
    async with httpx.AsyncClient(base_url=system.user.admin, timeout=10) as admin:
        shown = (await admin.get("/dead-letters?limit=500")).json()["dead_letters"]
        assert user in [one["user_id"] for one in shown]
        assert (await admin.post("/dead-letters/replay", json={"all": True})).status_code == 202

        async def done() -> bool:
            return bool((await admin.get("/dead-letters/replay")).json()["ended"] == "done")

        await eventually(done)
    await eventually(lambda: [sent for sent in smtp.accepted if sent.rcpt == address])
    for subject in await broker.subjects(s.DEAD_LETTERS, f"dead_letters.dead.{'e' * 26}.*"):
        await broker.purge(s.DEAD_LETTERS, subject)


async def test_absurd_records_of_control_do_not_stun_the_breaker(
    target: Target, client: httpx.AsyncClient, broker: Broker
) -> None:
    """Open until the end of time is open until an operator closes it; absurd reports are not counted."""
    system, _ = target
    absurd = b'{"kind":"breaker.report.v1","epoch":%d,"successes":%s}'
    async with httpx.AsyncClient(base_url=system.user.admin, timeout=10) as admin:
        epoch = (await admin.get("/circuit-breaker")).json()["epoch"]
        for figure in (b"9" * 400, b"-1", b"1" + b"0" * 30):
            await broker.client.publish(s.REPORT, absurd % (epoch, figure))
        for subject in (s.ASK, s.ASK_ALL, s.RESULT, s.RESULT_ALL, s.REPORT):
            for data in GARBAGE:
                await broker.client.publish(subject, data, reply="_INBOX_test.x")
        record = c.BreakerRecord(state=c.Breaker.OPEN, epoch=epoch + 1, since=NOW, open_until=FAR, reason="forged")
        await broker.store(s.BREAKER_KEY, c.BREAKER.encode(record))

        async def seen(state: str) -> bool:
            shown = (await admin.get("/circuit-breaker")).json()
            return bool(shown["state"] == state and (shown["broker"]["paused_until"] is not None) == (state == "open"))

        await eventually(lambda: seen("open"))
        assert 0 <= (await admin.get("/circuit-breaker")).json()["counts"]["ok_30s"] < 1000
        assert (await admin.post("/circuit-breaker/close", json={})).status_code == 200
        await eventually(lambda: seen("closed"))
        for data in GARBAGE:
            await broker.store(s.audited("user_svc", "forged"), data)
        assert (await admin.get("/audit")).status_code == 200
    _, user = await join(client)
    await ended(client, user, "sent")
    assert '"breaker.failed"' not in system.user.text()
