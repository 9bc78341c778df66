"""The admin API's routes about one user's mails: found, shown, sent again, erased, each action written down."""

import asyncio
from collections.abc import AsyncIterator, Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import httpx
import pytest

from contracts import messages as m
from contracts import subjects as s
from contracts.runtime.broker import Broker
from tests.support.processes import NatsServer, Service, stopping
from tests.support.waiting import eventually

TOKEN = "sesame-opens"
NO_ONE = "a" * 26


@pytest.fixture(scope="module")
def service(nats_server: NatsServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """user_svc with ADMIN_TOKEN."""
    env = {"NATS_URL": nats_server.url, "NATS_MONITORING_URL": nats_server.monitoring_url, "ADMIN_TOKEN": TOKEN}
    made = Service("user_svc", tmp_path_factory.mktemp("mails"), env)
    with stopping(made):
        made.start()
        asyncio.run(made.ready())
        yield made


@pytest.fixture
async def admin(service: Service) -> AsyncIterator[httpx.AsyncClient]:
    """An operator with the token."""
    headers = {"authorization": f"Bearer {TOKEN}"}
    async with httpx.AsyncClient(base_url=service.admin, headers=headers, timeout=15, trust_env=False) as client:
        yield client


async def registered(service: Service, email: str, name: str = "Ann") -> dict[str, Any]:
    async with httpx.AsyncClient(base_url=service.url, trust_env=False) as client:
        answer = await client.post("/v1/users", json={"email": email, "name": name})
        assert answer.status_code == 201, answer.text
        user: dict[str, Any] = answer.json()
        return user


async def newest(admin: httpx.AsyncClient) -> tuple[str, str, str, str]:
    """Action, by, target and outcome of the newest record."""
    row = (await admin.get("/audit")).json()["audit"][0]
    return row["action"], row["by"], row["target"], row["outcome"]


async def test_a_user_is_found_by_address_or_id(service: Service, admin: httpx.AsyncClient) -> None:
    """In any spelling that is the same address; nobody, and what is no address, is told apart."""
    user = (await registered(service, "Find.Me@Example.com"))["id"]
    for body in ({"user_id": user}, {"email": "find.me@example.com"}, {"email": " FIND.ME@EXAMPLE.COM "}):
        answer = await admin.post("/mails/find", json=body)
        assert (answer.status_code, answer.json()) == (200, {"user_id": user})
    for nobody in ({"user_id": NO_ONE}, {"user_id": "../x"}, {"user_id": ""}, {"email": "no.one@example.com"}):
        assert (await admin.post("/mails/find", json=nobody)).status_code == 404
    for wrong in ({}, {"email": "a@b.example", "user_id": user}, {"email": 1}, {"email": "no address"}, {"x": 1}):
        refused = await admin.post("/mails/find", json=wrong)
        assert refused.status_code == 422
        assert "no address" not in refused.text


async def test_all_mails_of_a_user_are_shown_with_their_attempts(
    service: Service, admin: httpx.AsyncClient, broker: Broker
) -> None:
    """The newest first, and why each was asked for."""
    user = await registered(service, "history@example.com", "<img src=x onerror=alert(1)>")
    user_id, first = user["id"], user["welcome_email"]["event_id"]
    seen = (await admin.get(f"/mails/{user_id}")).json()
    assert seen["user"] == {key: user[key] for key in ("id", "email", "name", "created_at")}
    assert [(mail["event_id"], mail["why"], mail["status"]) for mail in seen["mails"]] == [
        (first, "registration", "queued")
    ]
    tried = m.Attempt(
        at=m.USER_REGISTERED.decode((await broker.last(s.USERS, s.user_key(user_id))).data).created_at,  # type: ignore[union-attr]
        verdict="permanent",
        phase="rcpt",
        code=550,
        enhanced="5.1.1",
        text="no such user",
        seconds=0.2,
        trace_id="ab" * 16,
        breaker="half_open",
    )
    history = m.History().add(tried, charged=True)
    outcome = m.Outcome(event_id=first, state=m.State.DEAD, at=tried.at, reason="refused", history=history)
    await broker.store(s.outcome(first, "dead"), m.OUTCOME.encode(outcome))
    letter = m.DeadLetter(
        event_id=first, user_id=user_id, state=m.State.DEAD, reason="refused", at=tried.at, code=550, attempts=1
    )
    await broker.store(s.dead_letter(first, "dead"), m.DEAD_LETTER.encode(letter))
    again = (await admin.post(f"/mails/{user_id}/resend", json={})).json()
    replayed = await admin.post("/dead-letters/replay", json={"event_id": first})
    assert replayed.status_code == 202

    async def over() -> bool:
        return not (await admin.get("/dead-letters/replay")).json()["running"]

    await eventually(over)
    answer = await admin.get(f"/mails/{user_id}")
    assert answer.headers["cache-control"] == "no-store"
    mails = answer.json()["mails"]
    assert [(mail["why"], mail["status"]) for mail in mails] == [
        ("replay", "queued"),
        ("resend", "queued"),
        ("registration", "dead"),
    ]
    assert [mail["event_id"] for mail in mails[1:]] == [again["event_id"], first]
    assert (mails[2]["reason"], mails[2]["attempts_total"], mails[2]["ended_at"]) == ("refused", 1, user["created_at"])
    (attempt,) = mails[2]["attempts"]
    assert (attempt["verdict"], attempt["code"], attempt["enhanced_code"]) == ("permanent", 550, "5.1.1")
    assert (attempt["trace_id"], attempt["breaker"]) == ("ab" * 16, "half_open")


async def test_a_resend_is_the_public_one(service: Service, admin: httpx.AsyncClient) -> None:
    """Three a day, whichever way they are asked for; what was refused is written down too."""
    user_id = (await registered(service, "again@example.com"))["id"]
    answers = [await admin.post(f"/mails/{user_id}/resend", json={}) for _ in range(2)]
    assert [answer.status_code for answer in answers] == [202, 202]
    event = answers[1].json()["event_id"]
    assert answers[1].json() == {"event_id": event, "status": "queued"}
    assert await newest(admin) == ("resend", "token", event, "done")
    async with httpx.AsyncClient(base_url=service.url, trust_env=False, headers=admin.headers) as public:
        assert (await public.post(f"/v1/users/{user_id}/welcome-email")).status_code == 202
    refused = await admin.post(f"/mails/{user_id}/resend", json={})
    assert (refused.status_code, int(refused.headers["retry-after"]) >= 1) == (429, True)
    action, by, target, outcome = await newest(admin)
    assert (action, by, target, outcome.partition(":")[0]) == ("resend", "token", user_id, "failed")
    assert (await admin.post(f"/mails/{NO_ONE}/resend", json={})).status_code == 404
    assert (await admin.post("/mails/*/resend", json={})).status_code == 404


async def test_an_erasure_wants_the_id_twice(service: Service, admin: httpx.AsyncClient, broker: Broker) -> None:
    """Then nothing of the user is left, and it is written down by the id."""
    user_id = (await registered(service, "erase.me@example.com"))["id"]
    for body in ({}, {"confirm": ""}, {"confirm": NO_ONE}, {"confirm": "erase.me@example.com"}, {"confirm": True}):
        assert (await admin.post(f"/mails/{user_id}/erase", json=body)).status_code == 422
    assert (await admin.get(f"/mails/{user_id}")).status_code == 200
    answer = await admin.post(f"/mails/{user_id}/erase", json={"confirm": user_id})
    assert (answer.status_code, answer.content) == (204, b"")
    assert await newest(admin) == ("erase", "token", user_id, "done")
    assert await broker.last(s.USERS, s.user_key(user_id)) is None
    assert (await admin.get(f"/mails/{user_id}")).status_code == 404
    assert (await admin.post("/mails/find", json={"email": "erase.me@example.com"})).status_code == 404
    assert (await admin.post(f"/mails/{user_id}/erase", json={"confirm": user_id})).status_code == 404


async def test_nothing_about_persons_without_a_login(service: Service) -> None:
    """Neither found nor shown nor acted on; with the cookie of a login all of it, from a page of its own."""
    user_id = (await registered(service, "secret@example.com"))["id"]
    async with httpx.AsyncClient(base_url=service.admin, trust_env=False) as nobody:
        calls = (
            ("/mails/find", {"email": "secret@example.com"}),
            (f"/mails/{user_id}/resend", {}),
            (f"/mails/{user_id}/erase", {"confirm": user_id}),
        )
        for path, body in calls:
            assert (await nobody.post(path, json=body)).status_code == 401
        assert (await nobody.get(f"/mails/{user_id}")).status_code == 401
        assert (await nobody.post("/login", json={"token": TOKEN})).status_code == 204
        assert (await nobody.get(f"/mails/{user_id}")).json()["user"]["email"] == "secret@example.com"
        assert (await nobody.get(f"/mails/{user_id}", headers={"host": "evil.example"})).status_code in (401, 403)
        for path, body in calls:
            assert (await nobody.post(path, json=body)).status_code == 401, "a cookie without an Origin"
        own = {"origin": service.admin}
        assert [(await nobody.post(path, json=body, headers=own)).status_code for path, body in calls] == [
            200,
            202,
            204,
        ]
        assert [row["by"] for row in (await nobody.get("/audit")).json()["audit"][:2]] == ["login", "login"]
    assert "secret@example.com" not in service.text()


@pytest.mark.parametrize(
    "data", [b"", b"{}", b"\xff\x00", b'{"kind":"user.registered.v1"', b"null", b"[" * 5000, b" " * 20_000]
)
async def test_an_unreadable_user_can_be_erased(admin: httpx.AsyncClient, broker: Broker, data: bytes) -> None:
    """What no version of ours wrote is said, not shown; he is found by his id, cannot be written to, and goes."""
    user_id = "z" * 26
    await broker.store(s.user_key(user_id), data)
    shown = await admin.get(f"/mails/{user_id}")
    assert (shown.status_code, shown.headers["content-type"]) == (500, "application/json")
    assert "cannot be read" in shown.json()["detail"]
    assert shown.json()["detail"].endswith("It can be erased.")
    found = await admin.post("/mails/find", json={"user_id": user_id})
    assert (found.status_code, found.json()) == (200, {"user_id": user_id})
    assert (await admin.post(f"/mails/{user_id}/resend", json={})).status_code == 500
    assert (await newest(admin))[3].startswith("failed: ")
    assert (await admin.post(f"/mails/{user_id}/erase", json={"confirm": user_id})).status_code == 204
    assert await broker.last(s.USERS, s.user_key(user_id)) is None
    assert (await admin.get(f"/mails/{user_id}")).status_code == 404


async def test_dead_letters_are_chosen_by_age_and_one_by_one(admin: httpx.AsyncClient, broker: Broker) -> None:
    """Counted as replayed: a thousand may be selected, and what was not is left."""
    now = datetime.now(UTC)
    events = [s.event_id("y" * 26, n) for n in range(1, 5)]
    for hours, event in enumerate(events):
        at = now - timedelta(hours=hours, minutes=1)
        row = m.DeadLetter(event_id=event, user_id="y" * 26, state=m.State.DEAD, reason="no", at=at, code=599)
        await broker.store(s.dead_letter(event, "dead"), m.DEAD_LETTER.encode(row))

    async def shown(query: str) -> list[str]:
        page = (await admin.get(f"/dead-letters?code=599&{query}")).json()
        return [row["event_id"] for row in page["dead_letters"]]

    assert await shown("older_than=1h") == events[1:]
    assert await shown("younger_than=1h") == events[:1]
    assert await shown("older_than=1h&younger_than=3h") == events[1:3]
    assert (await admin.get("/dead-letters?older_than=yesterday")).status_code == 422
    ages = {"filter": {"code": 599, "older_than": "2h"}, "dry_run": True}
    assert (await admin.post("/dead-letters/replay", json=ages)).json() == {"dry_run": True, "matching": 2}

    selected = [*events[1:3], *(s.event_id("x" * 26, n) for n in range(10**9, 10**9 + 998))]
    assert (await admin.post("/dead-letters/replay", json={"event_ids": [*selected, events[0]]})).status_code == 422
    assert (await admin.post("/circuit-breaker/close", json={"reason": selected})).status_code == 413
    dry = await admin.post("/dead-letters/replay", json={"event_ids": selected, "dry_run": True})
    assert dry.json() == {"dry_run": True, "matching": 2}
    started = await admin.post("/dead-letters/replay", json={"event_ids": selected})
    assert (started.status_code, started.json()["matching"]) == (202, 2)

    async def over() -> dict[str, Any]:
        progress: dict[str, Any] = (await admin.get("/dead-letters/replay")).json()
        return {} if progress["running"] else progress

    done = await eventually(over)
    assert (done["users_gone"], done["ended"]) == (2, "done")
    assert await shown("") == [events[0], events[3]]
    action, _, target, outcome = await newest(admin)
    assert (action, target.partition(":")[0]) == ("replay", "1000 selected")
    assert outcome == "done; 0 of 2 sent again, 2 without their user"
