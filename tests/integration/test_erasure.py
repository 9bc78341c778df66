"""Erasing: nothing of the user is left anywhere, and a saga that was broken off at any step is finished."""

import asyncio
import random
from collections.abc import AsyncIterator, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import httpx
import pytest

from contracts import messages as m
from contracts import subjects as s
from contracts import topology
from contracts.runtime.broker import Broker, Unavailable, connect
from tests.support.processes import NatsServer, Service, System, stopping
from tests.support.waiting import eventually
from user_svc.erasure import erase

DAY_S = 86_400.0


@pytest.fixture
def system(tmp_path: Path) -> Iterator[System]:
    """A broker and user_svc; no email_svc, so every mail stays pending."""
    made = System(tmp_path, "smtp://127.0.0.1:1")
    yield made
    made.stop()


@pytest.fixture
async def own(system: System) -> AsyncIterator[Broker]:
    """A connection to that broker, user_svc being up."""
    await system.start(email=False)
    broker = await connect(name="test", url=system.nats.url, on_closed=lambda reason: None)
    yield broker
    await broker.close()


async def everything(broker: Broker) -> dict[str, list[str]]:
    """All subjects on the broker, by stream."""
    names = (await broker.api("STREAM.NAMES"))["streams"]
    return {name: await broker.subjects(name, ">") for name in names}


def holding(text: str, subjects: dict[str, list[str]]) -> list[str]:
    return [subject for found in subjects.values() for subject in found if text in subject]


def files_with(folder: Path, word: str) -> list[str]:
    """Files below a folder whose bytes hold the word, in any case."""
    wanted = word.lower().encode()
    return [str(path) for path in folder.rglob("*") if path.is_file() and wanted in path.read_bytes().lower()]


async def as_sent(broker: Broker, event: str) -> None:
    """What email_svc leaves of a mail that went out."""
    at = datetime.now(UTC)
    history = m.History().add(m.Attempt(at=at, verdict="sent", phase="dot", code=250), charged=False)
    outcome = m.Outcome(event_id=event, state=m.State.SENT, at=at, history=history)
    await broker.store(s.outcome(event, "sent"), m.OUTCOME.encode(outcome))


async def as_dead(broker: Broker, event: str) -> None:
    """What it leaves of one that was given up."""
    at = datetime.now(UTC)
    outcome = m.Outcome(event_id=event, state=m.State.DEAD, at=at)
    letter = m.DeadLetter(event_id=event, user_id=s.split_event_id(event)[0], state=m.State.DEAD, reason="550", at=at)
    await broker.store(s.outcome(event, "dead"), m.OUTCOME.encode(outcome))
    await broker.store(s.dead_letter(event, "dead"), m.DEAD_LETTER.encode(letter))


async def as_retrying(broker: Broker, event: str) -> None:
    """And of one that is to be tried again."""
    row = m.Attempts(event_id=event, history=m.History(), due_at=datetime.now(UTC) + timedelta(hours=1))
    await broker.store(s.attempts(event), m.ATTEMPTS.encode(row))


async def test_no_trace_is_left(system: System, own: Broker) -> None:
    """A user with a pending mail, a retrying, a sent and a dead one: after 204 no stream, log or file knows them."""
    local, name = "zyxwv.qponm", "Xanthippe Zwetschgendorfer"
    async with httpx.AsyncClient(base_url=system.user.url, timeout=15) as client:
        neighbours = []
        for n in range(6):
            if n == 3:
                body = {"email": f"{local}@example.com", "name": name}
                user = (await client.post("/v1/users", json=body, headers={"Idempotency-Key": "once"})).json()
            answer = await client.post("/v1/users", json={"email": f"near{n}@example.com", "name": f"Near {n}"})
            neighbours.append(answer.json())
        path = f"/v1/users/{user['id']}"
        events = [user["welcome_email"]["event_id"]]
        events += [(await client.post(f"{path}/welcome-email")).json()["event_id"] for _ in range(3)]

        async def queued() -> bool:
            return len(await own.subjects(s.WELCOME_EMAILS, s.WELCOME_REQUESTED)) == 10

        await eventually(queued)
        await as_retrying(own, events[1])
        await as_sent(own, events[2])
        await as_dead(own, events[3])
        assert files_with(system.nats.store, local)
        assert files_with(system.nats.store, name)

        answer = await client.delete(path)
        assert (answer.status_code, answer.content) == (204, b"")

        left = holding(user["id"], await everything(own))
        assert sorted(left) == sorted(s.outcome(event, "erased") for event in events)
        assert files_with(system.nats.store, local) == []
        assert files_with(system.nats.store, name) == []
        assert local not in system.user.text().lower()
        assert name not in system.user.text()
        for found in (await client.get(path), await client.delete(path), await client.post(f"{path}/welcome-email")):
            assert found.status_code == 404
        assert user["id"] not in (await client.get("/v1/users")).text
        for near in neighbours:
            assert (await client.get(f"/v1/users/{near['id']}")).json() == near

        again = await client.post("/v1/users", json=body)
        assert again.status_code == 201
        assert again.json()["id"] == user["id"]
        event = again.json()["welcome_email"]["event_id"]
        assert event not in events
        await eventually(lambda: _is_there(own, s.WELCOME_EMAILS, s.welcome_requested(event)))


async def _is_there(broker: Broker, stream: str, subject: str) -> bool:
    return await broker.last(stream, subject) is not None


async def test_markers_go_by_themselves(system: System, own: Broker) -> None:
    """EMAIL_DEADLINE and a day later: until then a late worker finds them."""
    async with httpx.AsyncClient(base_url=system.user.url, timeout=15) as client:
        user = (await client.post("/v1/users", json={"email": "ttl@example.com", "name": "T"})).json()
        assert (await client.delete(f"/v1/users/{user['id']}")).status_code == 204
    subject = s.outcome(user["welcome_email"]["event_id"], "erased")
    answer = await own.request(f"$JS.API.DIRECT.GET.{s.DELIVERIES}", b'{"last_by_subj":"%s"}' % subject.encode())
    assert (answer.headers or {})["Nats-TTL"] == f"{2 * int(DAY_S)}s"


async def test_a_late_outcome_is_refused(system: System, own: Broker) -> None:
    """A worker that had the mail in hand cannot write `sent` any more."""
    from contracts.runtime.broker import Conflict

    async with httpx.AsyncClient(base_url=system.user.url, timeout=15) as client:
        user = (await client.post("/v1/users", json={"email": "late@example.com", "name": "L"})).json()
        assert (await client.delete(f"/v1/users/{user['id']}")).status_code == 204
    event = user["welcome_email"]["event_id"]
    with pytest.raises(Conflict):
        await own.store(s.outcome(event, "sent"), b"{}", expect_last=0, expect_on=s.outcome(event, "*"))


async def test_deletes_at_once_are_all_right(system: System, own: Broker) -> None:
    """Eight at once: 204 or, for those that come after the end, 404; and no trace."""
    async with httpx.AsyncClient(base_url=system.user.url, timeout=15) as client:
        for n in range(5):
            user = (await client.post("/v1/users", json={"email": f"many{n}@example.com", "name": "M"})).json()
            answers = await asyncio.gather(*(client.delete(f"/v1/users/{user['id']}") for _ in range(8)))
            codes = [a.status_code for a in answers]
            assert set(codes) <= {204, 404}, codes
            assert 204 in codes
            left = holding(user["id"], await everything(own))
            assert left == [s.outcome(user["welcome_email"]["event_id"], "erased")]


async def test_deletes_right_after_registering_leave_nothing(system: System, own: Broker) -> None:
    """The relay has the registration in hand at that moment; in the end there is no queue entry and no key."""
    async with httpx.AsyncClient(base_url=system.user.url, timeout=15) as client:

        async def come_and_go(n: int) -> str:
            user = (await client.post("/v1/users", json={"email": f"brief{n}@example.com", "name": "B"})).json()

            async def erased() -> bool:
                answer = await client.delete(f"/v1/users/{user['id']}")
                assert answer.status_code in (204, 404, 503), answer.text  # 503: in hand, to be asked again; 404: done
                return answer.status_code != 503

            await eventually(erased, within_s=30)
            return str(user["id"])

        await asyncio.gather(*(come_and_go(n) for n in range(60)))

        async def nothing() -> bool:
            found = await everything(own)
            return found[s.WELCOME_EMAILS] == [] and found[s.USERS] == [s.USER_ID_KEY_FINGERPRINT]

        await eventually(nothing, within_s=15)


async def test_registering_and_erasing_one_address_at_once(system: System, own: Broker) -> None:
    """Never a 5xx other than 503, and afterwards the address can be registered or is."""
    body = {"email": "tug@example.com", "name": "Tug"}
    async with httpx.AsyncClient(base_url=system.user.url, timeout=15) as client:
        path = f"/v1/users/{(await client.post('/v1/users', json=body)).json()['id']}"

        async def tug(n: int) -> int:
            answer = await (client.post("/v1/users", json=body) if n % 2 else client.delete(path))
            return answer.status_code

        codes = await asyncio.gather(*(tug(n) for n in range(60)))
        assert set(codes) <= {201, 204, 404, 409, 503}, codes
        assert (await client.delete(path)).status_code in (204, 404)
        again = await client.post("/v1/users", json=body)
        assert again.status_code == 201
        event = again.json()["welcome_email"]["event_id"]
        await eventually(lambda: _is_there(own, s.WELCOME_EMAILS, s.welcome_requested(event)))
        assert (await client.get(path)).json()["welcome_email"]["status"] == "queued"


# --- broken off ----------------------------------------------------------------------------------------------------


class Cut(Broker):
    """A broker that is lost after so many calls."""

    def __init__(self, broker: Broker, calls: int) -> None:
        super().__init__(broker.client)
        self.whole = broker
        self.left = calls

    async def request(self, *args: Any, **options: Any) -> Any:
        if self.left == 0:
            raise Unavailable("cut", sent=False)
        self.left -= 1
        return await self.whole.request(*args, **options)


async def put_user(broker: Broker, user_id: str) -> list[str]:
    """A user with four mails: queued, retrying, sent, dead; and the key that asks for the erasure."""
    record = m.UserRegistered(
        user_id=user_id, email="cut.off@example.com", name="Cut Off", nonce="n", created_at=datetime.now(UTC)
    )
    events = [s.event_id(user_id, await broker.store(s.user_key(user_id), m.USER_REGISTERED.encode(record)))]
    for n in range(3):
        again = m.WelcomeAgain(
            user_id=user_id, repeats=events[0], why=m.Why.RESEND, nonce="n", asked_at=datetime.now(UTC)
        )
        seq = await broker.store(s.again_key(user_id, f"2026-01-01-{n + 1}"), m.WELCOME_AGAIN.encode(again))
        events.append(s.event_id(user_id, seq))
    for event in events:
        await broker.store(s.welcome_requested(event), b"cut.off@example.com")
    await as_retrying(broker, events[1])
    await as_sent(broker, events[2])
    await as_dead(broker, events[3])
    await broker.store(
        s.erase_key(user_id), m.ERASE_USER.encode(m.EraseUser(user_id=user_id, asked_at=datetime.now(UTC)))
    )
    return events


async def test_broken_off_after_any_call_the_relay_finishes_it(
    nats_server: NatsServer, broker: Broker, tmp_path: Path
) -> None:
    """For every k the saga is cut after k calls. Then user_svc starts, and all of them are finished, with no trace."""
    await topology.provision(broker, service=None, mode="auto", replicas=1)
    events: dict[str, list[str]] = {}
    for k in range(200):
        user_id = "b" * 24 + "".join("abcdefghijklmnopqrstuvwxyz234567"[i] for i in divmod(k, 32))
        events[user_id] = await put_user(broker, user_id)
        try:
            await erase(Cut(broker, k), user_id, email_deadline_s=DAY_S)
        except Unavailable:
            continue
        break
    assert 30 < len(events) < 200, "the sweep ended where the saga did not need another call"
    assert len(await broker.subjects(s.USERS, s.ERASE_KEYS)) == len(events) - 1
    service = Service("user_svc", tmp_path, {"NATS_URL": nats_server.url})
    with stopping(service):
        service.start()
        await service.ready()

        async def finished() -> bool:
            return (await everything(broker))[s.USERS] == [s.USER_ID_KEY_FINGERPRINT]

        await eventually(finished, within_s=20)
        assert "Traceback" not in service.text()
    found = await everything(broker)
    assert found[s.WELCOME_EMAILS] == []
    assert found[s.DEAD_LETTERS] == []
    assert sorted(found[s.DELIVERIES]) == sorted(s.outcome(e, "erased") for of in events.values() for e in of)
    assert files_with(nats_server.store, "cut.off") == []


async def test_broken_off_after_any_call_the_next_request_finishes_it(broker: Broker) -> None:
    """Repeating the saga until it is through, one call more each time, ends where one run does."""
    await topology.provision(broker, service=None, mode="auto", replicas=1)
    user_id = "c" * 26
    events = await put_user(broker, user_id)
    for k in range(200):
        try:
            await erase(Cut(broker, k), user_id, email_deadline_s=DAY_S)
        except Unavailable:
            continue
        break
    assert await broker.last(s.USERS, s.erase_key(user_id)) is None
    assert sorted(holding(user_id, await everything(broker))) == sorted(s.outcome(e, "erased") for e in events)


async def test_what_is_newer_than_the_erase_stays(broker: Broker) -> None:
    """The saga covers keys and events older than its key, and no other."""
    await topology.provision(broker, service=None, mode="auto", replicas=1)
    user_id = "d" * 26
    await put_user(broker, user_id)
    old = await broker.last(s.USERS, s.user_key(user_id))
    assert old is not None
    await broker.delete(s.USERS, old.seq)
    record = m.USER_REGISTERED.decode(old.data)
    event = s.event_id(user_id, await broker.store(s.user_key(user_id), m.USER_REGISTERED.encode(record)))
    await broker.store(s.welcome_requested(event), b"")
    await as_sent(broker, event)
    await erase(broker, user_id, email_deadline_s=DAY_S)
    left = [x for x in holding(user_id, await everything(broker)) if not x.endswith(".erased")]
    assert sorted(left) == sorted([s.user_key(user_id), s.welcome_requested(event), s.outcome(event, "sent")])


async def test_nothing_to_erase_is_nothing_done(broker: Broker) -> None:
    """No erase key: no call but the look."""
    await topology.provision(broker, service=None, mode="auto", replicas=1)
    await erase(Cut(broker, 1), "e" * 26, email_deadline_s=DAY_S)


async def test_killed_in_the_middle(system: System, own: Broker) -> None:
    """kill -9 of user_svc at random moments of a DELETE: after its restart the user is there or gone, and a second
    DELETE finishes what was begun. (Without one the relay does, when the ack_wait of the killed one is over.)
    """
    draw = random.Random(7)
    async with httpx.AsyncClient(base_url=system.user.url, timeout=15) as client:
        for n in range(5):
            user = (await client.post("/v1/users", json={"email": f"axe{n}.m@example.com", "name": "Axe"})).json()
            path = f"/v1/users/{user['id']}"
            for _ in range(3):
                assert (await client.post(f"{path}/welcome-email")).status_code == 202
            deleting = asyncio.create_task(client.delete(path))
            await asyncio.sleep(draw.uniform(0.002, 0.12))  # the random moment of the kill
            system.user.kill()
            (answer,) = await asyncio.gather(deleting, return_exceptions=True)
            system.user.start()
            await system.user.ready()

            found, again = await client.get(path), await client.delete(path)
            if isinstance(answer, httpx.Response) and answer.status_code == 204:
                assert found.status_code == 404
            assert found.status_code in (200, 404)
            assert again.status_code == (204 if found.status_code == 200 else 404)
            left = holding(user["id"], await everything(own))
            assert [x for x in left if not x.endswith(".erased")] == []
            assert files_with(system.nats.store, f"axe{n}.m") == []


async def test_an_erasure_that_was_not_asked_for_is_not_promised(system: System) -> None:
    """With the broker away nobody can know that it will be finished, so nobody says so."""
    await system.start(email=False)
    async with httpx.AsyncClient(base_url=system.user.url, timeout=15) as client:
        user = (await client.post("/v1/users", json={"email": "axe@example.com", "name": "Axe"})).json()
        system.nats.kill()
        answer = await client.delete(f"/v1/users/{user['id']}")
    assert answer.status_code == 503
    assert "will be finished" not in answer.text
    assert "not known" in answer.json()["detail"]
