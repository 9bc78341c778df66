"""The reconciler and the relay under a queue that is full or has lost its entries."""

import asyncio
import re
from collections.abc import AsyncIterator, Iterator
from datetime import UTC, datetime
from pathlib import Path

import httpx
import pytest

from contracts import messages as m
from contracts import subjects as s
from contracts.runtime.broker import Broker, connect
from contracts.runtime.pull import Message, PullLoop
from tests.support.processes import System
from tests.support.waiting import eventually


@pytest.fixture
def system(tmp_path: Path) -> Iterator[System]:
    """A broker and user_svc that reconciles after a second; no email_svc."""
    made = System(tmp_path, "smtp://127.0.0.1:1", RECONCILE_AFTER="1s")
    made.without_accounts()  # it makes again what is deleted under it
    yield made
    made.stop()


@pytest.fixture
async def own(system: System) -> AsyncIterator[Broker]:
    """A connection to that broker; user_svc is not started yet."""
    system.nats.start()
    await system.nats.ready()
    broker = await connect(name="test", url=system.nats.url, on_closed=lambda reason: None)
    yield broker
    await broker.close()


async def register(system: System, count: int, prefix: str = "user") -> list[str]:
    """So many registrations, all 201; their event ids."""
    limits = httpx.Limits(max_connections=32)
    async with httpx.AsyncClient(base_url=system.user.url, timeout=30, limits=limits) as client:
        answers = await asyncio.gather(
            *(
                client.post("/v1/users", json={"email": f"{prefix}{n}@example.com", "name": f"U {n}"})
                for n in range(count)
            )
        )
    assert {a.status_code for a in answers} == {201}
    return [a.json()["welcome_email"]["event_id"] for a in answers]


async def queued(broker: Broker) -> set[str]:
    """The events in the queue."""
    subjects = await broker.subjects(s.WELCOME_EMAILS, s.WELCOME_REQUESTED)
    return {subject.removeprefix("email.welcome.requested.") for subject in subjects}


async def are_queued(broker: Broker, events: list[str], *, within_s: float = 15.0) -> None:
    async def all_of_them() -> bool:
        return await queued(broker) == set(events)

    await eventually(all_of_them, within_s=within_s)


async def metric(system: System, name: str) -> float:
    async with httpx.AsyncClient() as client:
        text = (await client.get(f"{system.user.admin}/metrics")).text
    return float(re.findall(rf"^{name} (\S+)", text, re.MULTILINE)[0])


async def test_a_purged_queue_is_refilled(system: System, own: Broker) -> None:
    """200 waiting, purged: the gap shows, all 200 are back as the same events, and then there is no gap."""
    system.user.start()
    await system.user.ready()
    events = await register(system, 200)
    await are_queued(own, events)
    before = await own.last(s.WELCOME_EMAILS, s.welcome_requested(events[0]))
    await own.api(f"STREAM.PURGE.{s.WELCOME_EMAILS}")

    async def gap_is(value: float) -> bool:
        return await metric(system, "user_service_ledger_gap") == value

    await eventually(lambda: gap_is(200), within_s=5)
    await are_queued(own, events)
    after = await own.last(s.WELCOME_EMAILS, s.welcome_requested(events[0]))
    assert before is not None
    assert after is not None
    assert after.data == before.data
    await eventually(lambda: gap_is(0), within_s=5)
    assert await metric(system, "user_service_reconciled_total") == 200


async def test_what_has_an_outcome_is_not_published_again(system: System, own: Broker) -> None:
    """Sent, dead and expired stay what they are; a resend and a registration that were lost come back.

    And so does a dead mail that has no dead letter, for its worker to write one; not if a replay took the letter.
    """
    system.user.start()
    await system.user.ready()
    events = await register(system, 8)
    await are_queued(own, events)
    unburied, replayed = await register(system, 2, "dead")
    await are_queued(own, [*events, unburied, replayed])
    async with httpx.AsyncClient(base_url=system.user.url) as client:
        answer = await client.post(f"/v1/users/{s.split_event_id(events[4])[0]}/welcome-email")
        events.append(answer.json()["event_id"])
    await are_queued(own, [*events, unburied, replayed])
    ended = [*zip(events, ("sent", "sent", "dead", "expired"), strict=False), (unburied, "dead"), (replayed, "dead")]
    for event, state in ended:
        outcome = m.Outcome(event_id=event, state=m.State(state), at=datetime.now(UTC))
        await own.store(s.outcome(event, state), m.OUTCOME.encode(outcome))
        if state != "sent" and event not in (unburied, replayed):
            await own.store(s.dead_letter(event, state), b"{}")
    user_id, revision = s.split_event_id(replayed)
    again = m.WelcomeAgain(user_id=user_id, repeats=replayed, why=m.Why.REPLAY, nonce="", asked_at=datetime.now(UTC))
    seq = await own.store(s.again_key(user_id, f"r{revision}"), m.WELCOME_AGAIN.encode(again))
    await are_queued(own, [*events, unburied, replayed, s.event_id(user_id, seq)])
    events += [unburied, s.event_id(user_id, seq)]
    await own.api(f"STREAM.PURGE.{s.WELCOME_EMAILS}")
    await are_queued(own, events[4:])
    await eventually(lambda: "reconciler.done" in system.user.text(), within_s=5)
    assert await metric(system, "user_service_reconciled_total") == 7
    assert await queued(own) == set(events[4:])


async def test_a_deleted_queue_is_made_anew_and_refilled(system: System, own: Broker) -> None:
    """Stream and consumer gone, with 50 in them: both are back, and all 50."""
    system.user.start()
    await system.user.ready()
    events = await register(system, 50)
    await are_queued(own, events)
    await own.api(f"STREAM.DELETE.{s.WELCOME_EMAILS}")

    async def there() -> bool:
        try:
            return await queued(own) == set(events)
        except Exception:
            return False

    await eventually(there, within_s=15)
    info = await own.api(f"CONSUMER.INFO.{s.WELCOME_EMAILS}.{s.EMAIL_SVC}")
    assert info["num_pending"] == 50
    more = await register(system, 3, "more")
    await are_queued(own, events + more)


async def test_a_key_that_nobody_can_read_keeps_nobody_from_being_mended(system: System, own: Broker) -> None:
    """Rubbish in the bucket before and after those that were lost; and keys of shapes that are not ours."""
    system.user.start()
    await system.user.ready()
    for n, subject in enumerate((s.user_key("q" * 26), "$KV.USERS.x", s.again_key("q" * 26, "z"))):
        await own.store(subject, b"rubbish %d" % n)
    events = await register(system, 10)
    await own.store(s.user_key("r" * 26), b"")
    await are_queued(own, events)
    await own.api(f"STREAM.PURGE.{s.WELCOME_EMAILS}")
    await are_queued(own, events)
    assert "Traceback" not in system.user.text()


async def test_it_outlives_a_broker_that_goes_while_something_is_missing(system: System, own: Broker) -> None:
    """The stream is deleted and the broker killed at once: after its return all is made anew, and still refilled."""
    system.user.start()
    await system.user.ready()
    events = await register(system, 20)
    await are_queued(own, events)
    await own.api(f"STREAM.DELETE.{s.WELCOME_EMAILS}")
    await eventually(lambda: "reconciler.broken_off" in system.user.text(), within_s=5)
    system.nats.kill()
    await eventually(lambda: "broker.disconnected" in system.user.text())
    system.nats.start()
    await system.nats.ready()

    async def there() -> bool:
        try:
            return await queued(own) == set(events)
        except Exception:
            return False

    await eventually(there, within_s=60)  # if the kill took the relay's acks along, they come again after 30 s
    await own.api(f"STREAM.PURGE.{s.WELCOME_EMAILS}")
    await eventually(there, within_s=15)


async def test_a_full_queue_stops_nobody_from_registering(system: System, own: Broker) -> None:
    """QUEUE_MAX_SIZE=50, 300 registrations: all 201; the queue stays full at 50 and is refilled as it is drained."""
    system.user.start(QUEUE_MAX_SIZE="50")
    await system.user.ready()
    events = await register(system, 300)

    async def full() -> bool:
        return len(await queued(own)) == 50

    await eventually(full)
    assert await metric(system, "user_service_relay_queue_full_total") > 0

    # While it is full the relay looks twice a second or so, not as fast as the broker refuses.
    before = await metric(system, "user_service_relay_queue_full_total")
    await asyncio.sleep(2)
    assert await metric(system, "user_service_relay_queue_full_total") - before < 20
    assert await full()

    got: list[str] = []

    async def drain(message: Message) -> None:
        event = m.WELCOME_EMAIL_REQUESTED.decode(message.data).event_id
        outcome = m.OUTCOME.encode(m.Outcome(event_id=event, state=m.State.SENT, at=datetime.now(UTC)))
        await own.store(s.outcome(event, "sent"), outcome, expect_last=0)
        await message.ack()
        got.append(event)

    async with PullLoop(own, stream=s.WELCOME_EMAILS, durable=s.EMAIL_SVC, handle=drain, slots=16):
        await eventually(lambda: len(got) >= 300, within_s=20)
    assert sorted(got) == sorted(events)
    first, rest = got[:50], got[50:]
    # First come, first served, but for what was in hand at the moment it became full.
    by_age = sorted(events, key=lambda event: s.split_event_id(event)[1])
    assert set(first) <= set(by_age[:310])
    assert sum(by_age.index(event) for event in rest[:100]) < sum(by_age.index(event) for event in rest[-100:])

    async def empty() -> bool:
        return await queued(own) == set()

    await eventually(empty)  # an ack is said, not asked for
