"""The API over the bus: every answer is REST's, asked in the same test; handlers run side by side; none gets lost."""

import asyncio
import base64
import contextlib
import json
import os
import subprocess
import sys
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import quote

import httpx
import msgspec
import nats.errors
import pytest
from jsonschema import Draft202012Validator

from contracts import subjects as s
from contracts.runtime.broker import ApiError, Broker, Unavailable, connect
from tests.support.processes import ROOT, NatsServer, Service, System, stopping
from tests.support.waiting import eventually
from user_svc import api, rpc
from user_svc.edge import Traffic
from user_svc.registrar import Registrar
from user_svc.rpc import Rpc

NO_ONE = "a" * 26
JSON = {"content-type": "application/json"}
SCHEMAS = {
    name: Draft202012Validator(json.loads((ROOT / "contracts" / "schemas" / f"{name}.json").read_text()))
    for name in ("user", "problem")
}


class Answer(NamedTuple):
    """What REST and the bus have in common."""

    status: int
    body: bytes
    retry_after: str | None
    location: str | None


@pytest.fixture(scope="module")
def services(nats_server: NatsServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Service, Service]]:
    """Two replicas on the module's broker."""
    folder = tmp_path_factory.mktemp("user_svc")
    env = {"NATS_URL": nats_server.url, "NATS_MONITORING_URL": nats_server.monitoring_url}
    replicas = Service("user_svc", folder, env, name="one"), Service("user_svc", folder, env, name="two")
    with stopping(*replicas):
        for replica in replicas:
            replica.start()
        for replica in replicas:
            asyncio.run(replica.ready())
        yield replicas


@pytest.fixture
async def rest(services: tuple[Service, Service]) -> AsyncIterator[httpx.AsyncClient]:
    """A client of the REST API."""
    async with httpx.AsyncClient(base_url=services[0].url, timeout=15) as client:
        yield client


async def over_rest(rest: httpx.AsyncClient, subject: str, body: bytes, **headers: str) -> Answer:
    """The same request as `over_bus`."""
    if subject == s.USERS_CREATE:
        answer = await rest.post("/v1/users", content=body, headers=JSON | headers)
    else:
        answer = await rest.get(f"/v1/users/{quote(json.loads(body)['id'], safe='')}", headers=headers)
    found = answer.headers
    return Answer(answer.status_code, answer.content, found.get("retry-after"), found.get("location"))


async def over_bus(broker: Broker, subject: str, body: bytes, **headers: str) -> Answer:
    """Held against what all answers have in common."""
    raw = await broker.request(subject, body, headers=headers or None, timeout_s=15)
    assert raw.headers is not None
    assert raw.headers["X-Request-ID"]
    code = raw.headers.get("Nats-Service-Error-Code")
    SCHEMAS["user" if code is None else "problem"].validate(json.loads(raw.data))
    if code is None:
        status = int(raw.headers["Status"])
        assert status < 400
        assert raw.headers["Content-Type"] == "application/json"
    else:
        problem = json.loads(raw.data)
        status = problem["status"]
        assert (code, raw.headers["Nats-Service-Error"]) == (str(status), problem["title"])
        assert raw.headers["Content-Type"] == "application/problem+json"
        assert "Status" not in raw.headers
    return Answer(status, raw.data, raw.headers.get("Retry-After"), raw.headers.get("Location"))


_count = 0


def fresh(prefix: str = "bus") -> bytes:
    """A registration that nobody has made yet."""
    global _count
    _count += 1
    return json.dumps({"email": f"{prefix}{_count}@example.com", "name": f"User {_count}"}).encode()


# --- the same answers ----------------------------------------------------------------------------------------------


async def test_a_registration_is_the_same_201_either_way(rest: httpx.AsyncClient, broker: Broker) -> None:
    """With one Idempotency-Key, begun here and repeated there, byte for byte; then read either way, too."""
    for first, second in (("bus", "rest"), ("rest", "bus")):
        body, answers = fresh(), {}
        for way in (first, second, first):
            ask = over_bus(broker, s.USERS_CREATE, body, **{"Idempotency-Key": f'"{first} first"'})
            if way == "rest":
                ask.close()
                ask = over_rest(rest, s.USERS_CREATE, body, **{"Idempotency-Key": f"{first} first"})
            answers[way] = await ask
            assert answers[way].status == 201
        assert answers["bus"] == answers["rest"]
        user = json.loads(answers["bus"].body)
        assert answers["bus"].location == f"/v1/users/{user['id']}"
        which = json.dumps({"id": user["id"]}).encode()
        shown = await over_bus(broker, s.USERS_GET, which)
        assert shown.status == 200
        assert shown == await over_rest(rest, s.USERS_GET, which)
        assert json.loads(shown.body)["email"] == user["email"]
        assert await broker.last(s.USERS, s.user_key(user["id"])) is not None


TAKEN = b'{"email":"taken@example.com","name":"Taken"}'
OTHER = b'{"email":"taken@example.com","name":"Another"}'


@pytest.mark.parametrize(
    ("subject", "body", "headers", "status"),
    [
        (s.USERS_CREATE, TAKEN, {}, 409),
        (s.USERS_CREATE, TAKEN.replace(b"taken@", b"TAKEN@"), {}, 409),
        (s.USERS_CREATE, TAKEN, {"Idempotency-Key": "taken"}, 201),
        (s.USERS_CREATE, OTHER, {"Idempotency-Key": "taken"}, 422),
        (s.USERS_CREATE, TAKEN, {"Idempotency-Key": "x" * 256}, 422),
        (s.USERS_CREATE, b"", {}, 422),
        (s.USERS_CREATE, b"{", {}, 422),
        (s.USERS_CREATE, b"\xff\xfe\x00", {}, 422),
        (s.USERS_CREATE, b"[" * 10_000, {}, 422),
        (s.USERS_CREATE, b'{"email":"a@example.com","name":"\\ud800"}', {}, 422),
        (s.USERS_CREATE, b"[]", {}, 422),
        (s.USERS_CREATE, b"{}", {}, 422),
        (s.USERS_CREATE, b'{"email":"a@example.com","name":7}', {}, 422),
        (s.USERS_CREATE, b'{"email":"a@example.com","name":"A","admin":true}', {}, 422),
        (s.USERS_CREATE, b'{"email":"ann@@example.com","name":"\\u0000"}', {}, 422),
        (s.USERS_CREATE, b'{"email":"' + b"a" * 20_000 + b'"}', {}, 413),
        (s.USERS_GET, json.dumps({"id": NO_ONE}).encode(), {}, 404),
        (s.USERS_GET, json.dumps({"id": NO_ONE.upper()}).encode(), {}, 404),
        (s.USERS_GET, b'{"id":"*"}', {}, 404),
        (s.USERS_GET, b'{"id":">"}', {}, 404),
    ],
)
async def test_what_is_wrong_is_the_same_problem(
    rest: httpx.AsyncClient, broker: Broker, subject: str, body: bytes, headers: dict[str, str], status: int
) -> None:
    """Status, body and Retry-After."""
    await over_rest(rest, s.USERS_CREATE, TAKEN, **{"Idempotency-Key": "taken"})
    answer = await over_bus(broker, subject, body, **headers)
    assert answer.status == status, answer.body
    assert answer == await over_rest(rest, subject, body, **headers)


async def test_several_errors_are_said_at_once(broker: Broker) -> None:
    """Field by field, as over REST."""
    answer = await over_bus(broker, s.USERS_CREATE, b'{"email":"ann@@example.com","name":"\\u0000"}')
    assert set(json.loads(answer.body)["errors"]) == {"email", "name"}


@pytest.mark.parametrize("body", [b"", b"\xff", b"[]", b'"' + NO_ONE.encode() + b'"', b'{"id":7}', b'{"id":"a","b":1}'])
async def test_a_question_that_is_none_is_422(broker: Broker, services: tuple[Service, Service], body: bytes) -> None:
    """`users.get` has a body, where REST has a path."""
    assert (await over_bus(broker, s.USERS_GET, body)).status == 422


async def test_a_big_question_is_413(broker: Broker, services: tuple[Service, Service]) -> None:
    """The limit is that of REST, whatever the broker would take."""
    assert (await over_bus(broker, s.USERS_GET, b'{"id":"' + b"a" * 20_000 + b'"}')).status == 413


async def test_headers_are_known_in_any_case(broker: Broker, services: tuple[Service, Service]) -> None:
    """NATS tells `idempotency-key` from `Idempotency-Key`; people do not."""
    body = fresh()
    first = await over_bus(broker, s.USERS_CREATE, body, **{"idempotency-key": "any case"})
    assert (await over_bus(broker, s.USERS_CREATE, body, **{"IDEMPOTENCY-KEY": "any case"})) == first
    raw = await broker.request(s.USERS_GET, b"{}", headers={"x-request-id": "req-1.A_b"})
    assert raw.headers is not None
    assert raw.headers["X-Request-ID"] == "req-1.A_b"
    await eventually(lambda: any('"request_id":"req-1.A_b"' in service.text() for service in services))
    raw = await broker.request(s.USERS_GET, b"{}", headers={"x-request-id": "a b"})
    assert raw.headers is not None
    assert raw.headers["X-Request-ID"] != "a b"


async def test_the_trace_goes_on(broker: Broker, services: tuple[Service, Service]) -> None:
    """A caller's trace context is in the user's record and in the queue entry made of it, though nobody exports."""
    trace = "0af7651916cd43dd8448eb211c80319c"
    answer = await over_bus(broker, s.USERS_CREATE, fresh(), traceparent=f"00-{trace}-b7ad6b7169203331-01")
    user = json.loads(answer.body)

    async def headers_of(stream: str, subject: str) -> str:
        try:
            found = await broker.api(f"STREAM.MSG.GET.{stream}", {"last_by_subj": subject})
        except ApiError:
            return ""  # not relayed yet
        return base64.b64decode(found["message"].get("hdrs", "")).decode()

    assert f"traceparent: 00-{trace}-" in await headers_of(s.USERS, s.user_key(user["id"]))
    queued = s.welcome_requested(user["welcome_email"]["event_id"])
    assert trace in await eventually(lambda: headers_of(s.WELCOME_EMAILS, queued))


async def test_two_hundred_at_once(broker: Broker, services: tuple[Service, Service], rest: httpx.AsyncClient) -> None:
    """150 addresses and one that is asked for 50 times: one 201 each, the rest 409; both replicas have worked."""
    same = fresh("same")
    bodies = [fresh("many") if n % 4 else same for n in range(200)]
    answers = await asyncio.gather(*(over_bus(broker, s.USERS_CREATE, body) for body in bodies))
    assert Counter(a.status for a in answers) == {201: 151, 409: 49}
    assert Counter(a.status for a, body in zip(answers, bodies, strict=True) if body == same) == {201: 1, 409: 49}
    for service in services:
        async with httpx.AsyncClient() as admin:
            text = (await admin.get(f"{service.admin}/metrics")).text
        assert 'user_service_requests_total{method="RPC",route="users.create",status="201"}' in text
        assert '"event":"request.answered"' in service.text()


async def test_the_log_knows_no_address(services: tuple[Service, Service]) -> None:
    """Of all the registrations of this module."""
    for service in services:
        assert "@" not in service.text().replace("<address>", "")
        assert "Traceback" not in service.text()


# --- what is no request --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("reply", ["", f"$JS.API.STREAM.PURGE.{s.IDEMPOTENCY}", "somewhere.else"])
async def test_what_has_no_inbox_is_not_done(broker: Broker, services: tuple[Service, Service], reply: str) -> None:
    """Nobody is registered and nothing is published there: else our rights would be the caller's."""
    await over_bus(broker, s.USERS_CREATE, fresh(), **{"Idempotency-Key": "keeps the stream from being empty"})
    heard = await broker.client.subscribe("somewhere.>")
    said = sum(service.text().count("rpc.no_inbox") for service in services)
    users = len(await broker.subjects(s.USERS, s.USER_KEYS))
    await broker.client.publish(s.USERS_CREATE, fresh(), reply=reply)
    await broker.client.publish("$SRV.PING", b"", reply=reply)
    await eventually(lambda: sum(service.text().count("rpc.no_inbox") for service in services) > said)
    await over_bus(broker, s.USERS_GET, b"{}")
    assert len(await broker.subjects(s.USERS, s.USER_KEYS)) == users
    assert (await broker.api(f"STREAM.INFO.{s.IDEMPOTENCY}"))["state"]["messages"] > 0
    assert heard.pending_msgs == 0
    await heard.unsubscribe()


# --- discovery -----------------------------------------------------------------------------------------------------


async def recipe(nats_server: NatsServer, *arguments: str) -> str:
    """What the recipes' script says."""
    command = [sys.executable, "deploy/local/tasks.py", *arguments]
    env = os.environ | {"NATS_URL": nats_server.url}
    run = await asyncio.to_thread(subprocess.run, command, cwd=ROOT, env=env, capture_output=True, text=True)
    if "not installed" in run.stdout + run.stderr:
        pytest.skip("the nats CLI is not installed: go install github.com/nats-io/natscli/nats@v0.5.0")
    assert run.returncode == 0, run.stdout + run.stderr
    return run.stdout


async def cli(nats_server: NatsServer, *arguments: str) -> str:
    """What the nats CLI says."""
    return await recipe(nats_server, "nats", *arguments)


async def test_the_nats_cli_knows_the_service(
    nats_server: NatsServer, broker: Broker, services: tuple[Service, Service]
) -> None:
    """`nats service ls`, `info`, `stats`, `ping`, `request`: two replicas, their endpoints, what they have answered."""
    listed = json.loads(await cli(nats_server, "service", "ls", "--json"))
    assert [(each["name"], each["version"]) for each in listed] == [(rpc.NAME, rpc.VERSION)] * 2
    assert len({each["id"] for each in listed}) == 2
    info = json.loads(await cli(nats_server, "service", "info", rpc.NAME, "--json"))["info"]
    found = {each["subject"]: each for each in info["endpoints"]}
    assert set(found) == {s.USERS_CREATE, s.USERS_GET}
    assert found[s.USERS_CREATE]["queue_group"] == s.ONE_OF_USER_SVC
    schema = json.loads(found[s.USERS_CREATE]["metadata"]["request_schema"])
    assert set(schema["$defs"]["NewUser"]["properties"]) == {"email", "name"}
    assert rpc.NAME in await cli(nats_server, "service", "ping", rpc.NAME)
    user = json.loads(await cli(nats_server, "service", "request", "--raw", rpc.NAME, "create", fresh().decode()))
    which = json.dumps({"id": user["id"]})
    assert json.loads(await cli(nats_server, "request", "--raw", s.USERS_GET, which))["id"] == user["id"]
    assert "create" in await cli(nats_server, "service", "stats", rpc.NAME)
    name = 'Ada "{{ID}}" Lovelace'
    assert json.loads(await recipe(nats_server, "rpc-create", "ada@example.com", name))["name"] == name

    stats = [json.loads(raw.data) for raw in await everybody(broker, f"$SRV.STATS.{rpc.NAME}", 2)]
    create = [each for stat in stats for each in stat["endpoints"] if each["name"] == "create"]
    assert sum(each["num_requests"] for each in create) >= 1
    assert all(each["average_processing_time"] > 0 for each in create if each["num_requests"])


async def everybody(broker: Broker, subject: str, count: int) -> list[Any]:
    """The answers of all replicas."""
    inbox = broker.client.new_inbox()
    heard = await broker.client.subscribe(inbox)
    await broker.client.publish(subject, reply=inbox)
    answers = [await heard.next_msg(timeout=10) for _ in range(count)]
    await heard.unsubscribe()
    return answers


# --- in trouble ----------------------------------------------------------------------------------------------------


@pytest.fixture
async def alone(tmp_path: Path) -> AsyncIterator[tuple[System, Broker, httpx.AsyncClient]]:
    """A broker and a user_svc of one's own, with room for eight requests."""
    system = System(tmp_path, "smtp://127.0.0.1:1", HTTP_MAX_IN_FLIGHT="8", HTTP_REQUEST_TIMEOUT="5s")
    try:
        await system.start(email=False)
        connection = await connect(name="test", url=system.nats.url, on_closed=lambda reason: None)
        async with httpx.AsyncClient(base_url=system.user.url, timeout=15) as client:
            yield system, connection, client
        await connection.close()
    finally:
        system.stop()


async def test_in_trouble_the_answers_are_the_same_too(alone: tuple[System, Broker, httpx.AsyncClient]) -> None:
    """503 for one too many of both ways together, for a store that is full, 500 for a fault; then the broker dies."""
    system, broker, rest = alone
    assert (await over_bus(broker, s.USERS_CREATE, fresh())).status == 201

    async def same(subject: str, body: bytes) -> Answer:
        answer = await over_bus(broker, subject, body)
        assert answer == await over_rest(rest, subject, body)
        return answer

    head = b"POST /v1/users HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: 100\r\n\r\n"
    waiting = [await asyncio.open_connection("127.0.0.1", system.user.http_port) for _ in range(8)]
    for _, writer in waiting:
        writer.write(head + b"{")

    async def busy() -> bool:
        return (await over_bus(broker, s.USERS_GET, b"{}")).status == 503

    await eventually(busy)
    answer = await same(s.USERS_CREATE, fresh())
    assert json.loads(answer.body)["detail"] == "Too many requests are in flight."
    assert answer.retry_after == "1"
    for _, writer in waiting:
        writer.close()
        await writer.wait_closed()

    async def free() -> bool:
        return (await over_bus(broker, s.USERS_GET, b"{}")).status == 422

    await eventually(free)

    config = (await broker.api(f"STREAM.INFO.{s.USERS}"))["config"]
    await broker.api(f"STREAM.UPDATE.{s.USERS}", config | {"max_msgs": 2})  # the user and the key's fingerprint
    assert (await same(s.USERS_CREATE, fresh()))[::2] == (503, "5")
    await broker.api(f"STREAM.UPDATE.{s.USERS}", config)

    await broker.store(s.user_key(NO_ONE), b"no record of ours")
    answer = await same(s.USERS_GET, json.dumps({"id": NO_ONE}).encode())
    assert answer.status == 500
    assert json.loads(answer.body)["type"] == "urn:mailflow:problem:unreadable-record"
    assert b"of ours" not in answer.body

    system.nats.kill()
    system.nats.start()

    async def registered() -> bool:
        try:
            raw = await broker.request(s.USERS_CREATE, fresh(), timeout_s=1)
        except Unavailable:
            return False
        return raw.headers is not None and raw.headers.get("Status") == "201"

    await eventually(registered, within_s=20)
    assert await system.user.terminate() == 0


async def test_sigterm_loses_no_request(alone: tuple[System, Broker, httpx.AsyncClient]) -> None:
    """Under load: each is answered or told at once that nobody listens; as many 201s as there are users."""
    system, broker, _ = alone
    codes: Counter[int | str] = Counter()

    async def ask_on() -> None:
        while not codes["nobody"]:
            try:
                raw = await broker.client.request(s.USERS_CREATE, fresh("load"), timeout=30)
            except nats.errors.NoRespondersError:
                codes["nobody"] += 1
            else:
                codes[json.loads(raw.data).get("status", 201)] += 1

    asking = [asyncio.create_task(ask_on()) for _ in range(24)]
    await eventually(lambda: codes[201] > 100, within_s=30)
    assert await system.user.terminate() == 0
    await asyncio.gather(*asking)
    assert set(codes) <= {201, 503, "nobody"}
    assert len(await broker.subjects(s.USERS, s.USER_KEYS)) == codes[201]


# --- in this process, on handlers that wait ------------------------------------------------------------------------

VIEW = api.UserView(NO_ONE, "", "", datetime.now(UTC), api.WelcomeEmail("queued", f"{NO_ONE}.1", 0, datetime.now(UTC)))


class Waiting(Registrar):
    """Registers when it is told to; cannot read."""

    def __init__(self) -> None:
        self.go = asyncio.Event()
        self.running = 0

    def deadline(self) -> float:
        return 0.0

    async def register(self, body: bytes | bytearray, key: str | None, until: float) -> api.UserView:
        self.running += 1
        await self.go.wait()
        return VIEW

    async def view(self, user_id: str, until: float) -> api.UserView:
        raise RuntimeError("a secret")


@contextlib.asynccontextmanager
async def slow_line(port: int) -> AsyncIterator[str]:
    """A line to the broker on which whatever follows a PING takes 200 ms longer."""

    async def forward(source: asyncio.StreamReader, target: asyncio.StreamWriter) -> None:
        while data := await source.read(65536):
            head, ping, rest = data.partition(b"PING\r\n")
            target.write(head + ping)
            if ping:
                await asyncio.sleep(0.2)
                target.write(rest)

    async def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        broker_reader, broker_writer = await asyncio.open_connection("127.0.0.1", port)
        back = asyncio.create_task(forward(broker_reader, writer))
        await forward(reader, broker_writer)
        back.cancel()
        for each in (broker_writer, writer):
            each.close()
            await each.wait_closed()
        closed.set()

    closed = asyncio.Event()
    server = await asyncio.start_server(accept, "127.0.0.1", 0)
    yield f"nats://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    await closed.wait()
    server.close()


@pytest.fixture
async def pair(tmp_path: Path) -> AsyncIterator[tuple[Broker, Broker]]:
    """Two connections to a broker without any service, the first over the slow line."""
    server = NatsServer(tmp_path)
    with stopping(server):
        server.start()
        await server.ready()
        async with slow_line(server.port) as url:
            one, two = [await connect(name="test", url=u, on_closed=lambda reason: None) for u in (url, server.url)]
            yield one, two
            await one.close()
            await two.close()


async def listening(broker: Broker) -> None:
    """Waits until somebody answers."""

    async def answered() -> bool:
        try:
            await broker.client.request(f"$SRV.PING.{rpc.NAME}", timeout=5)
        except nats.errors.NoRespondersError:
            return False
        return True

    await eventually(answered)


async def test_handlers_run_side_by_side_and_are_waited_for(pair: tuple[Broker, Broker]) -> None:
    """A hundred at once and no more; a fault tells the caller nothing; what is begun at the end is answered."""
    one, two = pair
    registrar = Waiting()
    service = Rpc(one, registrar, Traffic(100))
    await service.start()
    await listening(two)
    fault = await over_bus(two, s.USERS_GET, b'{"id":"a"}')
    assert fault.status == 500
    assert b"secret" not in fault.body
    asking = [asyncio.create_task(over_bus(two, s.USERS_CREATE, b"")) for _ in range(100)]
    await eventually(lambda: registrar.running == 100)
    assert (await over_bus(two, s.USERS_CREATE, b"")).status == 503
    stopped = asyncio.create_task(service.stop(grace_s=30))

    async def nobody() -> bool:
        try:
            await two.client.request(s.USERS_CREATE, b"", timeout=30)  # silence would be a time-out
        except nats.errors.NoRespondersError:
            return True
        return False

    await eventually(nobody)
    assert not stopped.done()
    assert not any(task.done() for task in asking)
    registrar.go.set()
    await stopped
    answers = await asyncio.gather(*asking)
    assert {answer[:2] for answer in answers} == {(201, msgspec.json.encode(VIEW))}


async def test_a_stop_drops_no_request(pair: tuple[Broker, Broker]) -> None:
    """Forty ask without pause, and each gets its answers until nobody listens.

    nats-py's own drain lets its PING overtake the UNSUB; what arrives between the two would be dropped.
    """
    one, two = pair
    registrar = Waiting()
    registrar.go.set()
    service = Rpc(one, registrar, Traffic(1000))
    await service.start()
    await listening(two)

    async def ask_on() -> None:
        with contextlib.suppress(nats.errors.NoRespondersError):
            while True:
                await two.client.request(s.USERS_CREATE, b"", timeout=10)

    asking = [asyncio.create_task(ask_on()) for _ in range(40)]
    await eventually(lambda: registrar.running > 40)
    await service.stop(grace_s=30)
    await asyncio.gather(*asking)
