"""The audit says what came of an action: done, failed, or not known; and how a replay that was begun ended."""

import asyncio
from collections.abc import AsyncIterator, Iterator
from datetime import UTC, datetime

import httpx
import pytest
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from contracts import messages as m
from contracts import subjects as s
from contracts.audit import Auditor
from contracts.runtime.admin import admin_app, json_response
from contracts.runtime.broker import ApiError, Broker, Unavailable
from tests.support.processes import NatsServer, Service, stopping
from tests.support.waiting import eventually
from user_svc.audit_trail import Trail

TOKEN = "sesame-opens"


@pytest.fixture(scope="module")
def service(nats_server: NatsServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """user_svc with ADMIN_TOKEN."""
    env = {"NATS_URL": nats_server.url, "NATS_MONITORING_URL": nats_server.monitoring_url, "ADMIN_TOKEN": TOKEN}
    made = Service("user_svc", tmp_path_factory.mktemp("audit"), env)
    with stopping(made):
        made.start()
        asyncio.run(made.ready())
        yield made


@pytest.fixture
async def operator(service: Service) -> AsyncIterator[httpx.AsyncClient]:
    """One with the token, who knows the admin listener by its path and the API by its URL."""
    headers = {"authorization": f"Bearer {TOKEN}"}
    async with httpx.AsyncClient(base_url=service.admin, headers=headers, timeout=15, trust_env=False) as client:
        yield client


async def outcomes(operator: httpx.AsyncClient, action: str) -> list[tuple[str, str]]:
    """Target and outcome of each such action, the newest first."""
    rows = (await operator.get("/audit")).json()["audit"]
    return [(row["target"], row["outcome"]) for row in rows if row["action"] == action]


def listener(*more: Route) -> httpx.AsyncClient:
    """An admin listener in this process."""

    async def ready() -> list[str]:
        return []

    app = admin_app(ready, more)
    return httpx.AsyncClient(transport=httpx.ASGITransport(app=app), base_url="http://127.0.0.1:9101")


@pytest.mark.parametrize(
    ("error", "outcome", "says"),
    [
        (Unavailable("no answer in time", sent=True), "unknown: no answer in time", "It is not known whether"),
        (Unavailable("not connected", sent=False), "failed: not connected", "It was not done."),
        (ApiError(10077, "the stream is full"), "failed: the stream is full (10077)", "It was not done."),
    ],
)
async def test_what_may_have_been_done_is_not_called_failed(
    service: Service, broker: Broker, error: Exception, outcome: str, says: str
) -> None:
    """Nor is it to who asked for it."""
    audit = Auditor(broker, "user_svc", None)

    async def act(request: Request) -> Response:
        async def do() -> None:
            raise error

        return json_response(await audit.doing(request, "test", "t", do))

    async with listener(Route("/act", act, methods=["POST"])) as http:
        answer = await http.post("/act", json={})
    assert (answer.status_code, "retry-after" in answer.headers) == (503, True)
    assert says in answer.json()["detail"]
    kept = await broker.last(s.AUDIT, s.audited("user_svc", "test"))
    assert kept is not None
    assert m.AUDIT.decode(kept.data).outcome == outcome


async def user(service: Service, email: str) -> str:
    """A user's id."""
    async with httpx.AsyncClient(base_url=service.url, trust_env=False) as client:
        answer = await client.post("/v1/users", json={"email": email, "name": "Ann"})
        return str(answer.json()["id"])


async def test_what_the_api_does_not_do_is_written_down_too(
    service: Service, operator: httpx.AsyncClient, broker: Broker
) -> None:
    """As on the admin listener: a fourth resend, and what was asked of a broker that takes nothing just now."""
    ann = await user(service, "ann@example.com")
    codes = [(await operator.post(f"{service.url}/v1/users/{ann}/welcome-email")).status_code for _ in range(4)]
    assert codes == [202, 202, 202, 429]
    assert (await outcomes(operator, "resend"))[0] == (ann, "failed: Three resends a day are the limit")

    bob = await user(service, "bob@example.com")
    config = (await broker.api(f"STREAM.INFO.{s.USERS}"))["config"]
    count = (await broker.api(f"STREAM.INFO.{s.USERS}"))["state"]["messages"]
    await broker.api(f"STREAM.UPDATE.{s.USERS}", config | {"max_msgs": count, "discard": "new"})
    asked = {
        "resend": [
            operator.post(f"{service.url}/v1/users/{bob}/welcome-email"),
            operator.post(f"/mails/{bob}/resend", json={}),
        ],
        "erase": [
            operator.delete(f"{service.url}/v1/users/{bob}"),
            operator.post(f"/mails/{bob}/erase", json={"confirm": bob}),
        ],
    }
    try:
        for action, requests in asked.items():
            for request in requests:
                answer = await request
                assert (answer.status_code, "not known whether" in answer.json()["detail"]) == (503, True)
            targets = await outcomes(operator, action)
            assert [(target, outcome.partition(":")[0]) for target, outcome in targets[:2]] == [(bob, "unknown")] * 2
    finally:
        await broker.api(f"STREAM.UPDATE.{s.USERS}", config)
    assert (await operator.delete(f"{service.url}/v1/users/{bob}")).status_code == 204
    assert (await outcomes(operator, "erase"))[0] == (bob, "done")
    nobody = "a" * 26
    assert (await operator.delete(f"{service.url}/v1/users/{nobody}")).status_code == 404
    assert nobody not in (await operator.get("/audit")).text


async def test_the_end_of_a_replay_is_written_down(
    service: Service, operator: httpx.AsyncClient, broker: Broker
) -> None:
    """With its counts, whether it went to its end or was stopped; one that was refused meanwhile as well."""
    for n in range(1, 4):
        event = s.event_id("b" * 26, n)
        letter = m.DeadLetter(event_id=event, user_id="b" * 26, state=m.State.DEAD, reason="no", at=datetime.now(UTC))
        await broker.store(s.dead_letter(event, "dead"), m.DEAD_LETTER.encode(letter))
    slowly = {"all": True, "per_second": 0.01}
    assert (await operator.post("/dead-letters/replay", json=slowly)).status_code == 202
    assert (await operator.post("/dead-letters/replay", json=slowly)).status_code == 409

    async def one_is_gone() -> bool:
        return bool((await operator.get("/dead-letters/replay")).json()["users_gone"] == 1)

    await eventually(one_is_gone)
    assert (await operator.post("/dead-letters/replay/stop", json={})).status_code == 200
    assert (await operator.post("/dead-letters/replay", json={"all": True, "per_second": 1000})).status_code == 202

    async def over() -> bool:
        return not (await operator.get("/dead-letters/replay")).json()["running"]

    await eventually(over)
    assert [outcome for _, outcome in await outcomes(operator, "replay")] == [
        "done; 0 of 2 sent again, 2 without their user",
        "started for 2",
        "stopped; 0 of 3 sent again, 1 without their user",
        "refused: one is running",
        "started for 3",
    ]


async def test_a_stopped_replay_counts_what_it_did(
    service: Service, operator: httpx.AsyncClient, broker: Broker
) -> None:
    """Its count and what is left are all there was, wherever the stop met it; the audit says that all were meant."""
    for n in range(1, 301):
        event = s.event_id("c" * 26, n)
        letter = m.DeadLetter(event_id=event, user_id="c" * 26, state=m.State.DEAD, reason="no", at=datetime.now(UTC))
        await broker.store(s.dead_letter(event, "dead"), m.DEAD_LETTER.encode(letter))
    left = 300
    for _ in range(5):
        assert (
            await operator.post("/dead-letters/replay", json={"all": True, "per_second": 10_000})
        ).status_code == 202
        done = (await operator.post("/dead-letters/replay/stop", json={})).json()
        assert (done["running"], done["matching"], done["ended"]) == (False, left, "stopped")
        left -= done["replayed"] + done["users_gone"]
        rest = (await operator.get("/dead-letters", params={"limit": 500})).json()["dead_letters"]
        assert len(rest) == left
    assert (await outcomes(operator, "replay"))[0][0] == "all"


async def test_the_trail_reads_what_is_new(service: Service, broker: Broker) -> None:
    """The newest hundred, each once; what was purged is not shown, nor taken for the records of a stream made anew."""
    trail = Trail(broker)

    async def write(numbers: range) -> None:
        for n in numbers:
            row = m.Audit(at=datetime.now(UTC), service="t", action="a", by="token", peer="", target=str(n))
            await broker.store(s.audited("t", "a"), m.AUDIT.encode(row))

    async def look() -> tuple[list[str], int]:
        """The targets, and how much was asked of the broker."""
        before = broker._count
        rows = await trail.newest()
        return [row.target if isinstance(row, m.Audit) else "unreadable" for row in rows], broker._count - before

    await broker.purge(s.AUDIT, ">")
    assert await look() == ([], 1)
    await write(range(150))
    assert await look() == ([str(n) for n in range(149, 49, -1)], 101)
    assert (await look())[1] == 1
    await write(range(150, 152))
    await broker.store(s.audited("t", "a"), b"no record")
    assert await look() == (["unreadable", *(str(n) for n in range(151, 52, -1))], 4)
    await broker.purge(s.AUDIT, ">")
    assert await look() == ([], 1)
    config = (await broker.api(f"STREAM.INFO.{s.AUDIT}"))["config"]
    await broker.api(f"STREAM.DELETE.{s.AUDIT}")
    await broker.api(f"STREAM.CREATE.{s.AUDIT}", config)
    assert await look() == ([], 1)
    assert await Trail(broker).newest() == []
    await write(range(200))
    assert await look() == ([str(n) for n in range(199, 99, -1)], 101)
