"""The REST API of user_svc, a process against a real broker: what each route answers, and what it does in trouble."""

import asyncio
import re
import time
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from contracts import messages as m
from contracts import subjects as s
from contracts.runtime.broker import Broker
from tests.support.processes import NatsServer, Service, System, cluster_of_three, stopping
from tests.support.waiting import eventually

TOKEN = "sesame-opens"
NO_ONE = "a" * 26


@pytest.fixture(scope="module")
def services(nats_server: NatsServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Service, Service]]:
    """Two replicas on the module's broker, the second with ADMIN_TOKEN."""
    folder = tmp_path_factory.mktemp("user_svc")
    env = {"NATS_URL": nats_server.url, "NATS_MONITORING_URL": nats_server.monitoring_url, "QUEUE_MAX_SIZE": "5000"}
    open_one = Service("user_svc", folder, env, name="open")
    guarded = Service("user_svc", folder, env | {"ADMIN_TOKEN": TOKEN}, name="guarded")
    with stopping(open_one, guarded):
        for service in (open_one, guarded):
            service.start()
        for service in (open_one, guarded):
            asyncio.run(service.ready())
        yield open_one, guarded


@pytest.fixture
async def api(services: tuple[Service, Service]) -> AsyncIterator[httpx.AsyncClient]:
    """A client of the replica without a token. Every answer is held against what all answers have in common."""
    async with client_of(services[0]) as client:
        yield client


def client_of(service: Service, **options: Any) -> httpx.AsyncClient:
    hooks = {"response": [hold_to_the_rules]}
    limits = httpx.Limits(max_connections=100)
    return httpx.AsyncClient(base_url=service.url, event_hooks=hooks, limits=limits, timeout=15, **options)


async def hold_to_the_rules(answer: httpx.Response) -> None:
    """A length, a request id, and for every error a problem that repeats the status."""
    await answer.aread()
    assert re.fullmatch(r"[A-Za-z0-9._-]{1,64}", answer.headers["x-request-id"])
    assert "transfer-encoding" not in answer.headers
    if answer.status_code == 204:
        assert answer.content == b""
        return
    assert int(answer.headers["content-length"]) == len(answer.content)
    if answer.status_code < 400:
        assert answer.headers["content-type"] == "application/json"
        return
    assert answer.headers["content-type"] == "application/problem+json"
    problem = answer.json()
    assert problem["status"] == answer.status_code
    assert problem["type"].startswith("urn:mailflow:problem:")
    assert problem["title"]
    assert ("retry-after" in answer.headers) == (answer.status_code in (429, 503))
    if answer.status_code == 503:
        assert int(answer.headers["retry-after"]) >= 1


_count = 0


def fresh(prefix: str = "user") -> dict[str, str]:
    """A registration that nobody has made yet."""
    global _count
    _count += 1
    return {"email": f"{prefix}{_count}@example.com", "name": f"User {_count}"}


async def register(client: httpx.AsyncClient, body: dict[str, str], **headers: str) -> httpx.Response:
    return await client.post("/v1/users", json=body, headers=headers)


# --- what each route answers ---------------------------------------------------------------------------------------


async def test_registration_is_201_with_its_place(api: httpx.AsyncClient) -> None:
    """The user as it is kept, the mail queued, and where both are found."""
    answer = await register(api, {"email": "Ann.Lee@Example.COM", "name": "  Zoe\u0308 "})
    assert answer.status_code == 201
    user = answer.json()
    assert s.is_user_id(user["id"])
    assert answer.headers["location"] == f"/v1/users/{user['id']}"
    assert (user["email"], user["name"]) == ("Ann.Lee@example.com", "Zoë")
    assert user["created_at"].endswith("Z")
    mail = user["welcome_email"]
    assert (mail["status"], mail["attempts"], mail["next_attempt_at"]) == ("queued", 0, None)
    assert s.split_event_id(mail["event_id"])[0] == user["id"]
    found = await api.get(answer.headers["location"])
    assert found.status_code == 200
    assert found.json() == user


async def test_the_mail_and_its_attempts_are_shown(api: httpx.AsyncClient, broker: Broker) -> None:
    """Queued; retrying with what was tried and when it goes on; sent with the last attempt; never an address."""
    user = (await register(api, fresh())).json()
    event = user["welcome_email"]["event_id"]
    path = f"/v1/users/{user['id']}/welcome-email"
    view = (await api.get(path)).json()
    assert (view["status"], view["event_id"], view["attempts"], view["attempts_total"]) == ("queued", event, [], 0)

    at = m.USER_REGISTERED.decode((await last(broker, s.USERS, s.user_key(user["id"]))).data).created_at
    tried = m.Attempt(at=at, verdict="transient", phase="rcpt", code=450, enhanced="4.2.0", text="later", seconds=0.5)
    history = m.History().add(tried, charged=True)
    row = m.Attempts(event_id=event, history=history, due_at=at)
    await broker.store(s.attempts(event), m.ATTEMPTS.encode(row))
    view = (await api.get(path)).json()
    assert (view["status"], view["attempts_total"], view["ended_at"]) == ("retrying", 1, None)
    assert view["next_attempt_at"] == user["created_at"]
    assert view["attempts"] == [
        {
            "at": user["created_at"],
            "verdict": "transient",
            "phase": "rcpt",
            "code": 450,
            "enhanced_code": "4.2.0",
            "text": "later",
            "seconds": 0.5,
            "trace_id": None,
            "breaker": "",
        }
    ]
    assert (await api.get(f"/v1/users/{user['id']}")).json()["welcome_email"]["status"] == "retrying"

    for state in ("sent", "dead", "expired"):
        outcome = m.Outcome(event_id=event, state=m.State(state), at=at, reason="why", history=history)
        seq = await broker.store(s.outcome(event, state), m.OUTCOME.encode(outcome))
        view = (await api.get(path)).json()
        assert (view["status"], view["reason"], view["ended_at"]) == (state, "why", user["created_at"])
        assert view["next_attempt_at"] is None
        await broker.delete(s.DELIVERIES, seq)


async def last(broker: Broker, stream: str, subject: str) -> Any:
    found = await broker.last(stream, subject)
    assert found is not None
    return found


async def test_a_taken_address_is_409(api: httpx.AsyncClient) -> None:
    """Whatever its spelling, and whatever the name."""
    body = fresh("taken")
    assert (await register(api, body)).status_code == 201
    for email in (body["email"], body["email"].upper(), body["email"].title()):
        answer = await register(api, {"email": email, "name": "Another"})
        assert answer.status_code == 409
        assert answer.json()["type"] == "urn:mailflow:problem:email-taken"


JSON = {"content-type": "application/json"}


@pytest.mark.parametrize(
    ("method", "path", "options", "status"),
    [
        ("GET", "/", {}, 404),
        ("GET", "/v1", {}, 404),
        ("GET", "/v1/users/", {}, 404),
        ("GET", "/docs", {}, 404),
        ("GET", f"/v1/users/{NO_ONE}", {}, 404),
        ("GET", f"/v1/users/{NO_ONE}/welcome-email", {}, 404),
        ("POST", f"/v1/users/{NO_ONE}/welcome-email", {}, 404),
        ("DELETE", f"/v1/users/{NO_ONE}", {}, 404),
        ("GET", "/v1/users/%2e%2e", {}, 404),
        ("GET", "/v1/users/*", {}, 404),
        ("GET", f"/v1/users/{NO_ONE}.1", {}, 404),
        ("GET", f"/v1/users/{NO_ONE.upper()}", {}, 404),
        ("DELETE", "/v1/users/%3E", {}, 404),
        ("GET", f"/v1/users/{'a' * 5000}", {}, 404),
        ("PUT", "/v1/users", {"json": {}}, 405),
        ("DELETE", "/v1/users", {}, 405),
        ("PATCH", f"/v1/users/{NO_ONE}", {"json": {}}, 405),
        ("DELETE", f"/v1/users/{NO_ONE}/welcome-email", {}, 405),
        ("POST", "/v1/users", {"content": b"{}"}, 415),
        ("POST", "/v1/users", {"content": b"{}", "headers": {"content-type": "text/plain"}}, 415),
        ("POST", "/v1/users", {"data": {"email": "a@example.com"}}, 415),
        ("POST", "/v1/users", {"content": b"", "headers": JSON}, 422),
        ("POST", "/v1/users", {"content": b"{", "headers": JSON}, 422),
        ("POST", "/v1/users", {"content": b"\xff\xfe", "headers": JSON}, 422),
        ("POST", "/v1/users", {"content": b"[" * 10_000, "headers": JSON}, 422),
        ("POST", "/v1/users", {"content": b'{"email":"a@example.com","name":"\\ud800"}', "headers": JSON}, 422),
        ("POST", "/v1/users", {"json": []}, 422),
        ("POST", "/v1/users", {"json": {}}, 422),
        ("POST", "/v1/users", {"json": {"email": "a@example.com"}}, 422),
        ("POST", "/v1/users", {"json": {"email": "a@example.com", "name": None}}, 422),
        ("POST", "/v1/users", {"json": {"email": "a@example.com", "name": 7}}, 422),
        ("POST", "/v1/users", {"json": {"email": "a@example.com", "name": "A", "admin": True}}, 422),
        ("POST", "/v1/users", {"json": {"email": "not an address", "name": "A"}}, 422),
        ("POST", "/v1/users", {"json": {"email": "a@example.com", "name": "A\nB"}}, 422),
        ("POST", "/v1/users", {"content": b'{"email":"' + b"a" * 20_000 + b'"}', "headers": JSON}, 413),
        ("GET", "/v1/users?limit=0", {}, 422),
        ("GET", "/v1/users?limit=101", {}, 422),
        ("GET", "/v1/users?limit=ten", {}, 422),
        ("GET", "/v1/users?limit=", {}, 422),
        ("GET", "/v1/users?limit=-1", {}, 422),
        ("GET", "/v1/users?limit=%D9%A3", {}, 422),
        ("GET", "/v1/users?cursor=x", {}, 422),
        ("GET", "/v1/users?cursor=-1", {}, 422),
        ("GET", f"/v1/users?cursor={'9' * 19}", {}, 422),
    ],
)
async def test_what_is_wrong_is_a_problem(
    api: httpx.AsyncClient, method: str, path: str, options: dict[str, Any], status: int
) -> None:
    """Each with its own status, all in one shape."""
    answer = await api.request(method, path, **options)
    assert answer.status_code == status, answer.text
    if status == 405:
        assert answer.headers["allow"]


async def test_all_that_is_wrong_is_said_at_once(api: httpx.AsyncClient) -> None:
    """Field by field, without quoting the address."""
    answer = await register(api, {"email": "ann@@example.com", "name": "\0"})
    assert answer.status_code == 422
    assert set(answer.json()["errors"]) == {"email", "name"}
    assert "ann" not in answer.text


async def test_bodies_may_be_chunked(api: httpx.AsyncClient) -> None:
    """As a gateway sends them; the limit counts bytes, and stops reading there."""

    async def pieces(size: int) -> AsyncIterator[bytes]:
        yield b'{"email":"chunked@example.com","name":"'
        for _ in range(size):
            yield b"x" * 10
        yield b'"}'

    headers = {"content-type": "application/json; charset=utf-8"}
    assert (await api.post("/v1/users", content=pieces(3), headers=headers)).status_code == 201
    answer = await api.post("/v1/users", content=pieces(3000), headers=headers)
    assert answer.status_code == 413
    assert (await api.get(f"/v1/users/{NO_ONE}")).status_code == 404


async def test_a_body_that_does_not_come_is_408(services: tuple[Service, Service]) -> None:
    """Within HTTP_REQUEST_TIMEOUT, and the connection is closed: what comes later is not read as a request."""
    reader, writer = await asyncio.open_connection("127.0.0.1", services[0].http_port)
    head = b"POST /v1/users HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: 100\r\n\r\n"
    writer.write(head + b'{"email"')
    began = time.monotonic()
    answer = await asyncio.wait_for(reader.read(), 5)
    assert answer.startswith(b"HTTP/1.1 408 ")
    assert b"urn:mailflow:problem:request-timeout" in answer
    assert 1.9 < time.monotonic() - began < 3.5
    writer.close()
    await writer.wait_closed()


async def test_a_request_id_is_kept_if_it_is_harmless(
    api: httpx.AsyncClient, services: tuple[Service, Service]
) -> None:
    """Given back, and in the log; else one of ours."""
    answer = await api.get(f"/v1/users/{NO_ONE}", headers={"x-request-id": "req-1.A_b"})
    assert answer.headers.get_list("x-request-id") == ["req-1.A_b"]
    await eventually(lambda: '"request_id":"req-1.A_b"' in services[0].text())
    for bad in ("a b", "x" * 65, 'a"b'):
        answer = await api.get(f"/v1/users/{NO_ONE}", headers={"x-request-id": bad})
        assert re.fullmatch("[0-9a-f]{16}", answer.headers["x-request-id"])


# --- Idempotency-Key -----------------------------------------------------------------------------------------------


async def test_the_same_key_is_the_same_registration(api: httpx.AsyncClient) -> None:
    """Quoted or bare; the same 201 as often as it is asked. Other spellings of the payload are the same payload."""
    body = fresh()
    first = await register(api, body, **{"Idempotency-Key": "key 1"})
    assert first.status_code == 201
    for key in ('"key 1"', "key 1"):
        again = await register(api, body, **{"Idempotency-Key": key})
        assert (again.status_code, again.json()) == (201, first.json())
        assert again.headers["location"] == first.headers["location"]
    spelt = {"email": body["email"].upper(), "name": f" {body['name']} "}
    assert (await register(api, spelt, **{"Idempotency-Key": "key 1"})).json() == first.json()


async def test_the_same_key_with_another_payload_is_422(api: httpx.AsyncClient) -> None:
    """Another name or another address; nothing is registered."""
    body, other = fresh(), fresh()
    assert (await register(api, body, **{"Idempotency-Key": "key 2"})).status_code == 201
    for wrong in (body | {"name": "Another"}, other):
        answer = await register(api, wrong, **{"Idempotency-Key": "key 2"})
        assert answer.status_code == 422
        assert "Idempotency-Key" in answer.json()["detail"]
    assert (await register(api, other)).status_code == 201


async def test_another_key_is_another_client(api: httpx.AsyncClient) -> None:
    """409, as without a key."""
    body = fresh()
    assert (await register(api, body, **{"Idempotency-Key": "key 3"})).status_code == 201
    assert (await register(api, body, **{"Idempotency-Key": "key 4"})).status_code == 409
    assert (await register(api, body)).status_code == 409
    assert (await register(api, body, **{"Idempotency-Key": "key 3"})).status_code == 201


@pytest.mark.parametrize("key", ["", '""', "x" * 256, "a\tb", 'a"b', b"\xe4"])
async def test_a_key_that_is_none_is_422(api: httpx.AsyncClient, key: Any) -> None:
    """And says which header."""
    answer = await api.post("/v1/users", json=fresh(), headers={"Idempotency-Key": key})
    assert answer.status_code == 422
    assert set(answer.json()["errors"]) == {"Idempotency-Key"}


async def test_twenty_at_once_with_one_key_are_one_registration(api: httpx.AsyncClient) -> None:
    """All 201, all the same user."""
    body = fresh()
    answers = await asyncio.gather(*(register(api, body, **{"Idempotency-Key": "key 5"}) for _ in range(20)))
    assert {a.status_code for a in answers} == {201}
    assert len({a.text for a in answers}) == 1


async def test_forty_spellings_at_once_are_one_user(api: httpx.AsyncClient, services: tuple[Service, Service]) -> None:
    """Over both replicas: one 201, the rest 409, one event."""
    email = fresh("Spelling.Many")["email"]
    spellings = [email.swapcase() if n % 3 == 0 else email.upper() if n % 3 == 1 else email for n in range(40)]
    async with client_of(services[1]) as other:
        answers = await asyncio.gather(
            *(register((api, other)[n % 2], {"email": e, "name": f"N{n}"}) for n, e in enumerate(spellings))
        )
    assert Counter(a.status_code for a in answers) == {201: 1, 409: 39}


# --- resends -------------------------------------------------------------------------------------------------------


async def test_three_resends_a_day(api: httpx.AsyncClient, broker: Broker) -> None:
    """202 each with an event of its own in the queue; the fourth is 429 until midnight; the newest is what is shown."""
    user = (await register(api, fresh())).json()
    path = f"/v1/users/{user['id']}/welcome-email"
    events = [user["welcome_email"]["event_id"]]
    for _ in range(3):
        answer = await api.post(path)
        assert answer.status_code == 202
        assert answer.headers["location"] == path
        assert answer.json()["status"] == "queued"
        events.append(answer.json()["event_id"])
        assert (await api.get(path)).json()["event_id"] == events[-1]
    assert len(set(events)) == 4
    answer = await api.post(path)
    assert answer.status_code == 429
    assert 0 < int(answer.headers["retry-after"]) <= 86_400

    async def queued() -> bool:
        found = await broker.subjects(s.WELCOME_EMAILS, s.welcome_requested(f"{user['id']}.*"))
        return sorted(found) == sorted(s.welcome_requested(event) for event in events)

    await eventually(queued)
    entry = await last(broker, s.WELCOME_EMAILS, s.welcome_requested(events[2]))
    event = m.WELCOME_EMAIL_REQUESTED.decode(entry.data)
    assert (event.email, event.name, event.why) == (user["email"], user["name"], m.Why.RESEND)


async def test_ten_resends_at_once_are_three(api: httpx.AsyncClient) -> None:
    """The limit holds under concurrency, and three do get through."""
    user = (await register(api, fresh())).json()
    answers = await asyncio.gather(*(api.post(f"/v1/users/{user['id']}/welcome-email") for _ in range(10)))
    assert Counter(a.status_code for a in answers) == {202: 3, 429: 7}
    assert len({a.json()["event_id"] for a in answers if a.status_code == 202}) == 3


# --- listing -------------------------------------------------------------------------------------------------------


async def pages(client: httpx.AsyncClient, limit: int) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = []
    cursor: str | None = None
    while True:
        query = {"limit": str(limit)} | ({} if cursor is None else {"cursor": cursor})
        page = (await client.get("/v1/users", params=query)).json()
        assert len(page["users"]) <= limit
        rows += page["users"]
        cursor = page["next_cursor"]
        if cursor is None:
            return rows
        assert len(page["users"]) == limit


async def test_paging_finds_every_user_exactly_once(api: httpx.AsyncClient) -> None:
    """Over holes of every size, with rows of other kinds between, for any page size; in the order of registration."""
    users = [(await register(api, fresh("list"))).json() for _ in range(60)]
    gone = {3, 7, 8, 9, *range(20, 45), 59}
    for n in sorted(gone):
        assert (await api.delete(f"/v1/users/{users[n]['id']}")).status_code == 204
    for n in (0, 1, 2, 50):
        for _ in range(3):
            assert (await api.post(f"/v1/users/{users[n]['id']}/welcome-email")).status_code == 202
    users.append((await register(api, fresh("list"))).json())
    expected = [u["id"] for n, u in enumerate(users) if n not in gone]
    shown = {key: users[-1][key] for key in ("id", "email", "name", "created_at")}
    for limit in (1, 5, 36, 100):
        rows = await pages(api, limit)
        ids = [row["id"] for row in rows]
        assert len(ids) == len(set(ids))
        assert [i for i in ids if i in {u["id"] for u in users}] == expected
        assert rows[-1] == shown


async def test_a_cursor_beyond_the_end_is_an_empty_page(api: httpx.AsyncClient) -> None:
    """The last page may be full: then the next one is empty."""
    answer = await api.get("/v1/users", params={"cursor": "9" * 18})
    assert answer.json() == {"users": [], "next_cursor": None}


# --- who may -------------------------------------------------------------------------------------------------------

ADMIN_ROUTES = [("GET", "/v1/users"), ("POST", f"/v1/users/{NO_ONE}/welcome-email"), ("DELETE", f"/v1/users/{NO_ONE}")]


@pytest.mark.parametrize(("method", "path"), ADMIN_ROUTES)
async def test_operators_routes_want_the_token(services: tuple[Service, Service], method: str, path: str) -> None:
    """Where ADMIN_TOKEN is set: 401 with the scheme without it, and whatever is wrong with it."""
    async with client_of(services[1]) as client:
        for given in (None, b"Bearer", b"Bearer wrong", b"Basic " + TOKEN.encode(), b"Bearer \xe4", TOKEN.encode()):
            headers = {} if given is None else {"Authorization": given}
            answer = await client.request(method, path, headers=headers)
            assert answer.status_code == 401
            assert answer.headers["www-authenticate"].startswith("Bearer")
        for scheme in ("Bearer", "bearer"):
            answer = await client.request(method, path, headers={"Authorization": f"{scheme} {TOKEN}"})
            assert answer.status_code == (200 if method == "GET" else 404)


async def test_registering_and_reading_one_are_public(services: tuple[Service, Service]) -> None:
    """Without a token even where one is set."""
    async with client_of(services[1]) as client:
        answer = await register(client, fresh())
        assert answer.status_code == 201
        assert (await client.get(answer.headers["location"])).status_code == 200
        assert (await client.get(answer.headers["location"] + "/welcome-email")).status_code == 200


# --- beside the API ------------------------------------------------------------------------------------------------


async def test_two_replicas_share_the_outbox(
    api: httpx.AsyncClient, services: tuple[Service, Service], broker: Broker
) -> None:
    """Registrations at one are relayed by both, each once."""

    async def relayed() -> list[int]:
        async with httpx.AsyncClient() as client:
            texts = [(await client.get(f"{service.admin}/metrics")).text for service in services]
        return [int(float(re.findall(r"^user_service_queue_total (\S+)", text, re.MULTILINE)[0])) for text in texts]

    before = await relayed()
    answers = await asyncio.gather(*(register(api, fresh("share")) for _ in range(150)))
    assert {a.status_code for a in answers} == {201}

    async def all_relayed() -> bool:
        return sum(await relayed()) - sum(before) == 150

    await eventually(all_relayed, within_s=15)
    one, two = (now - then for now, then in zip(await relayed(), before, strict=True))
    assert min(one, two) > 10, (one, two)
    for answer in answers[:10]:
        event = answer.json()["welcome_email"]["event_id"]
        assert await broker.last(s.WELCOME_EMAILS, s.welcome_requested(event)) is not None


async def test_the_log_knows_no_address(services: tuple[Service, Service]) -> None:
    """Of all the registrations of this module; but each request has its line."""
    for service in services:
        text = service.text()
        assert "@" not in text.replace("<address>", "")
        assert '"event":"request.answered"' in text
        assert "Traceback" not in text


async def test_metrics_are_the_promised_ones(services: tuple[Service, Service], api: httpx.AsyncClient) -> None:
    """By route, not by path: an id must not become a label."""
    await api.get(f"/v1/users/{NO_ONE}")
    await api.request("PROPFIND", "/v1/users")
    async with httpx.AsyncClient() as client:
        text = (await client.get(f"{services[0].admin}/metrics")).text
    assert 'user_service_requests_total{method="GET",route="/v1/users/{user_id}",status="404"}' in text
    assert 'user_service_request_duration_seconds_bucket{le="0.1",method="POST",route="/v1/users"}' in text
    assert 'method="other"' in text
    assert NO_ONE not in text
    for name in ("queue_size", "outbox_pending", "ledger_gap"):
        assert f"\nuser_service_{name} " in text


# --- in trouble ----------------------------------------------------------------------------------------------------


@pytest.fixture
def alone(tmp_path: Path) -> Iterator[System]:
    """A broker and a user_svc of one's own, not started."""
    system = System(tmp_path, "smtp://127.0.0.1:1")
    yield system
    if system.nats.child is not None:
        system.nats.resume()
    system.stop()


async def test_killed_broker(alone: System) -> None:
    """503 within HTTP_REQUEST_TIMEOUT on every route; all is well again soon after the broker is back."""
    await alone.start(email=False)
    async with client_of(alone.user) as client:
        user = (await register(client, fresh())).json()
        alone.nats.kill()
        await eventually(lambda: "broker.disconnected" in alone.user.text())
        for method, path in (
            ("GET", f"/v1/users/{user['id']}"),
            ("GET", f"/v1/users/{user['id']}/welcome-email"),
            ("POST", f"/v1/users/{user['id']}/welcome-email"),
            ("GET", "/v1/users"),
            ("DELETE", f"/v1/users/{user['id']}"),
        ):
            began = time.monotonic()
            assert (await client.request(method, path)).status_code == 503
            assert time.monotonic() - began < 1
        assert (await register(client, fresh())).status_code == 503
        async with httpx.AsyncClient() as admin:
            assert (await admin.get(f"{alone.user.admin}/healthz")).status_code == 200

            async def not_ready() -> bool:
                ready = await admin.get(f"{alone.user.admin}/readyz")
                return (ready.status_code, ready.json().get("missing")) == (503, ["broker"])

            await eventually(not_ready, within_s=2)
        alone.nats.start()

        async def registered() -> bool:
            return (await register(client, fresh())).status_code == 201

        await eventually(registered, within_s=5)
        await alone.user.ready(5)
        assert (await client.get(f"/v1/users/{user['id']}")).status_code == 200


async def test_frozen_broker_never_makes_a_false_409(alone: System) -> None:
    """Creates whose answers did not come: 503 in time; repeated with their keys after SIGCONT, each is a 201."""
    await alone.start(email=False)
    async with client_of(alone.user) as client:
        await register(client, fresh())
        bodies = [fresh() for _ in range(20)]
        for round_s in (0.0, 2.5):
            alone.nats.pause()
            began = time.monotonic()
            asking = [
                asyncio.create_task(register(client, body, **{"Idempotency-Key": f"{body['email']}-{round_s}"}))
                for body in bodies
            ]
            if round_s:
                answers = await asyncio.gather(*asking)
                assert {a.status_code for a in answers} == {503}
                assert time.monotonic() - began < 3
            alone.nats.resume()
            answers = await asyncio.gather(*asking)
            assert {a.status_code for a in answers} <= {201, 503}

            async def again() -> bool:
                answers = await asyncio.gather(
                    *(register(client, b, **{"Idempotency-Key": f"{b['email']}-{round_s}"}) for b in bodies)  # noqa: B023
                )
                codes = {a.status_code for a in answers}
                assert codes <= {201, 503}, codes
                return codes == {201}

            await eventually(again, within_s=8)
            bodies = [fresh() for _ in range(20)]


async def test_killed_broker_under_load_never_makes_a_false_409(alone: System) -> None:
    """kill -9 in the middle of registrations; each is repeated with its key until it is a 201, and is one user."""
    await alone.start(email=False)
    codes: Counter[int] = Counter()
    async with client_of(alone.user) as client:

        async def persist(n: int) -> str:
            body = fresh("load")
            while True:
                answer = await register(client, body, **{"Idempotency-Key": f"load-{n}"})
                codes[answer.status_code] += 1
                if answer.status_code == 201:
                    return str(answer.json()["id"])
                assert answer.status_code == 503, answer.text
                await asyncio.sleep(0.05)

        async def many(worker: int) -> list[str]:
            return [await persist(worker * 100 + n) for n in range(25)]

        workers = [asyncio.create_task(many(worker)) for worker in range(16)]
        await eventually(lambda: codes[201] > 100, within_s=30)
        alone.nats.kill()
        alone.nats.start()
        ids = [i for found in await asyncio.gather(*workers) for i in found]
        assert len(set(ids)) == 400
        assert codes[201] == 400
        assert sorted(u["id"] for u in await pages(client, 100)) == sorted(ids)


async def test_too_many_in_flight_are_refused_at_once(alone: System) -> None:
    """HTTP_MAX_IN_FLIGHT=4 and a broker that is silent: the fifth gets its 503 without waiting."""
    alone.user.env["HTTP_MAX_IN_FLIGHT"] = "4"
    await alone.start(email=False)
    async with client_of(alone.user) as client:
        alone.nats.pause()
        waiting = [asyncio.create_task(register(client, fresh())) for _ in range(4)]

        async def full() -> bool:
            async with httpx.AsyncClient() as admin:
                return "user_service_requests_in_flight 4.0" in (await admin.get(f"{alone.user.admin}/metrics")).text

        await eventually(full, within_s=1.5)
        began = time.monotonic()
        answer = await register(client, fresh())
        assert answer.status_code == 503
        assert time.monotonic() - began < 0.5
        alone.nats.resume()
        await asyncio.gather(*waiting)
        assert (await register(client, fresh())).status_code == 201


@pytest.mark.parametrize("how", ["idle", "busy", "killed", "frozen", "never there"])
async def test_sigterm_ends_it_in_order(alone: System, how: str) -> None:
    """Exit 0 within seconds, whatever the broker does; requests under way get their answers."""
    if how == "never there":
        alone.user.start()
        await eventually(lambda: "broker.connecting" in alone.user.text())
        assert await alone.user.terminate(within_s=4) == 0
        return
    await alone.start(email=False)
    async with client_of(alone.user) as client:
        asking = []
        if how == "busy":
            asking = [asyncio.create_task(register(client, fresh())) for _ in range(50)]
            await asyncio.wait(asking, return_when=asyncio.FIRST_COMPLETED)
        elif how == "killed":
            alone.nats.kill()
            await eventually(lambda: "broker.disconnected" in alone.user.text())
        elif how == "frozen":
            alone.nats.pause()
        code = await alone.user.terminate(within_s=6)
        assert code == 0, alone.user.text()[-2000:]
        assert "Traceback" not in alone.user.text()
        answers = await asyncio.gather(*asking, return_exceptions=True)
        codes = [a.status_code for a in answers if isinstance(a, httpx.Response)]
        assert set(codes) <= {201}
        assert all(isinstance(a, httpx.Response | httpx.TransportError) for a in answers)


async def test_another_key_refuses_to_start(alone: System) -> None:
    """USER_ID_KEY is not the one of this broker's users: exit 78 with what to do, and the first goes on."""
    await alone.start(email=False)
    other = alone.another("user_svc")
    other.start(USER_ID_KEY="another-key-altogether")
    assert await other.exit_status() == 78
    assert "USER_ID_KEY is not the key" in other.text()
    assert "another-key-altogether" not in other.text()
    await alone.user.ready()


@pytest.mark.parametrize(
    ("env", "said"),
    [
        ({"ENVIRONMENT": "production"}, "USER_ID_KEY: required when ENVIRONMENT=production"),
        ({"ENVIRONMENT": "production", "USER_ID_KEY": "k" * 32}, "ADMIN_TOKEN: required when ENVIRONMENT=production"),
        ({"ENVIRONMENT": "Production"}, "expected one of development, production"),
        ({"HTTP_PORT": "0"}, "HTTP_PORT='0': expected a port from 1 to 65535"),
    ],
)
async def test_a_bad_environment_refuses_to_start(alone: System, env: dict[str, str], said: str) -> None:
    """Exit 78 before anything is touched, with the reason and no traceback."""
    alone.user.start(**env)
    assert await alone.user.exit_status() == 78
    assert said in alone.user.text()
    assert "Traceback" not in alone.user.text()


async def test_a_taken_port_refuses_to_start(alone: System) -> None:
    """Exit 78; it names port and variable."""
    await alone.start(email=False)
    other = alone.another("user_svc")
    other.start(HTTP_PORT=str(alone.user.http_port))
    assert await other.exit_status() == 78
    assert f"HTTP_PORT={alone.user.http_port}: cannot listen on 127.0.0.1:{alone.user.http_port}" in other.text()


# --- three brokers -------------------------------------------------------------------------------------------------


async def test_three_brokers_and_64_at_once(tmp_path: Path) -> None:
    """64 addresses: 201 each. 64 times one address: one 201, 63 times 409. No 5xx; a listing has all of them."""
    async with cluster_of_three(tmp_path) as nodes:
        env = {"NATS_URL": ",".join(node.url for node in nodes), "STREAM_REPLICAS": "3"}
        service = Service("user_svc", tmp_path, env)
        with stopping(service):
            service.start()
            await service.ready(30)
            async with client_of(service) as client:
                for _ in range(5):
                    answers = await asyncio.gather(*(register(client, fresh("three")) for _ in range(64)))
                    assert Counter(a.status_code for a in answers) == {201: 64}
                    body = fresh("three")
                    answers = await asyncio.gather(*(register(client, body) for _ in range(64)))
                    assert Counter(a.status_code for a in answers) == {201: 1, 409: 63}
                assert len(await pages(client, 50)) == 5 * 65

                # Read while others register: a page never passes over one that is stored meanwhile.
                created: list[str] = []

                async def more() -> None:
                    for _ in range(40):
                        answer = await register(client, fresh("three"))
                        assert answer.status_code == 201
                        created.append(answer.json()["id"])

                makers = [asyncio.create_task(more()) for _ in range(8)]
                seen: list[str] = []
                cursor, last_look = "0", False
                while not last_look:
                    last_look = all(maker.done() for maker in makers)
                    page = (await client.get("/v1/users", params={"limit": "100", "cursor": cursor})).json()
                    seen += [user["id"] for user in page["users"]]
                    if page["users"]:
                        newest = await client.get(f"/v1/users/{seen[-1]}")
                        cursor = newest.json()["welcome_email"]["event_id"].split(".")[1]
                        last_look = False
                await asyncio.gather(*makers)
                assert len(seen) == len(set(seen))
                assert set(created) <= set(seen)
