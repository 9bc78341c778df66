"""The real KrakenD in front of the real user_svc: its client sees what it would see without it, and a few answers of
the gateway's own. Needs KRAKEND_BIN, krakend on PATH, or the image; skipped otherwise.
"""

import asyncio
import gzip
import json
import sys
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from tests.gateway.backend import Backend
from tests.gateway.conftest import TOKEN
from tests.support import krakend
from tests.support.answers import Answer, Request, ask, differences
from tests.support.krakend import CONFIG, Gateway
from tests.support.processes import ROOT, NatsServer, Service, free_port
from tests.support.waiting import eventually

pytestmark = pytest.mark.unavailable_in_ci("krakend")

NO_ONE = "a" * 26
JSON = {"Content-Type": "application/json", "X-Request-ID": "req-1"}
PLAIN = {"X-Request-ID": "req-1"}
ADMIN = PLAIN | {"Authorization": f"Bearer {TOKEN}"}
WRONG = PLAIN | {"Authorization": "Bearer wrong"}
ENDPOINTS = [f"{endpoint['method']} {endpoint['endpoint']}" for endpoint in CONFIG["endpoints"]]


@pytest.fixture(scope="module", autouse=True)
def _krakend() -> None:
    """Before anything else is started."""
    if krakend.found() is None:
        pytest.skip(krakend.WHY_NOT)


@pytest.fixture(scope="module")
def gateway(_krakend: None, user_svc: Service, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gateway]:
    """In front of the real user_svc, without limits."""
    made = Gateway(tmp_path_factory.mktemp("gateway"), krakend.local(user_svc.http_port), "gateway")
    with krakend.running(made):
        asyncio.run(made.ready())
        yield made


def register(port: int, name: str) -> str:
    """The id of a new user."""
    answer = ask(port, post({"email": f"{name}@example.com", "name": name}))
    assert answer.status == 201, answer
    user_id: str = answer.json()["id"]
    return user_id


def post(body: Any, headers: dict[str, str] = JSON) -> Request:
    return Request(method="POST", path="/v1/users", headers=headers, body=json.dumps(body).encode())


@dataclass(frozen=True)
class Case:
    """One endpoint, one status. `other` is what the gateway is asked, where the same would not do twice."""

    endpoint: str
    status: int
    request: Request
    other: Request | None = None
    varying: frozenset[str] = field(default_factory=frozenset)

    def compare(self, direct_port: int, gateway_port: int) -> list[str]:
        """What is wrong: another status than meant, or another answer through the gateway."""
        direct = ask(direct_port, self.request)
        through = ask(gateway_port, self.other or self.request)
        wrong = differences(direct, through, self.varying)
        if direct.status != self.status:
            wrong.append(f"the case itself is wrong: {direct}")
        return [f"{self.endpoint} {self.status}: {what}" for what in wrong]


def at(endpoint: str, user_id: str, headers: dict[str, str] = PLAIN, query: str = "") -> Request:
    method, path = endpoint.split()
    return Request(method=method, path=path.replace("{id}", user_id) + query, headers=headers)


def healthy(ann: str, bob: str, cyd: str) -> list[Case]:
    """Every status of every endpoint that does not need a sick broker. The order is that of the requests."""
    new, listing, user, erase, mail, again = (
        "POST /v1/users",
        "GET /v1/users",
        "GET /v1/users/{id}",
        "DELETE /v1/users/{id}",
        "GET /v1/users/{id}/welcome-email",
        "POST /v1/users/{id}/welcome-email",
    )
    dee = {"email": "dee@example.com", "name": "Dée <&> \u2603"}
    long = {"email": "e@example.com", "name": "e" * 60_000}
    pieces = (b'{"email": "pieces@exam', b'ple.com", "name": "E"}')
    return [
        # Twice the same key is twice the same registration, if the gateway passes the key on.
        Case(new, 201, post(dee, JSON | {"Idempotency-Key": "k-dee"})),
        Case(
            new,
            201,
            Request(method="POST", path="/v1/users", headers=JSON | {"Idempotency-Key": "k-pieces"}, body=pieces),
        ),
        Case(new, 409, post(dee)),
        Case(new, 413, post(long)),
        Case(new, 415, post(dee, PLAIN | {"Content-Type": "text/plain"})),
        Case(new, 415, post(dee, PLAIN)),
        Case(new, 422, post({"email": "no address", "name": "\0"})),
        Case(new, 422, post({})),
        Case(new, 422, Request(method="POST", path="/v1/users", headers=JSON, body=b"")),
        Case(new, 422, post(dee | {"name": "other"}, JSON | {"Idempotency-Key": "k-dee"})),
        Case(listing, 200, at(listing, "", ADMIN)),
        Case(listing, 200, at(listing, "", ADMIN, "?limit=2")),
        Case(listing, 200, at(listing, "", ADMIN, "?cursor=1&limit=1")),
        Case(listing, 200, at(listing, "", ADMIN, "?unknown=1")),
        Case(listing, 401, at(listing, "")),
        Case(listing, 401, at(listing, "", WRONG)),
        Case(listing, 422, at(listing, "", ADMIN, "?limit=ten")),
        Case(user, 200, at(user, ann)),
        Case(user, 404, at(user, NO_ONE)),
        Case(user, 404, at(user, "..")),
        Case(user, 404, at(user, "%2e%2e")),
        Case(user, 404, at(user, "h%C3%A9")),
        Case(mail, 200, at(mail, ann)),
        Case(mail, 404, at(mail, NO_ONE)),
        Case(again, 202, at(again, ann, ADMIN), varying=frozenset({"event_id", "content-length"})),
        Case(again, 202, at(again, bob, ADMIN), at(again, bob, ADMIN), frozenset({"event_id", "content-length"})),
        Case(again, 401, at(again, ann)),
        Case(again, 404, at(again, NO_ONE, ADMIN)),
        Case(erase, 401, at(erase, ann)),
        Case(erase, 404, at(erase, NO_ONE, ADMIN)),
        Case(erase, 204, at(erase, bob, ADMIN), at(erase, cyd, ADMIN)),
    ]


def spent(ann: str) -> list[Case]:
    """After a third resend."""
    again = "POST /v1/users/{id}/welcome-email"
    return [Case(again, 429, at(again, ann, ADMIN), varying=frozenset({"retry-after"}))]


def sick(ann: str) -> list[Case]:
    """503 on every endpoint while the broker is silent."""
    [new, *others] = ENDPOINTS
    body = {"email": "sick@example.com", "name": "S"}
    return [Case(new, 503, post(body)), *(Case(endpoint, 503, at(endpoint, ann, ADMIN)) for endpoint in others)]


async def test_every_answer_is_the_same_as_without_the_gateway(
    user_svc: Service, gateway: Gateway, nats_server: NatsServer
) -> None:
    """Every endpoint, every status that OpenAPI gives it: status, body, headers. Only a 500 cannot be had."""
    direct, through = user_svc.http_port, gateway.port
    ann, bob, cyd = (register(direct, name) for name in ("ann", "bob", "cyd"))
    first, then, last = healthy(ann, bob, cyd), spent(ann), sick(ann)
    wrong = [line for case in first for line in case.compare(direct, through)]
    assert ask(through, at("POST /v1/users/{id}/welcome-email", ann, ADMIN)).status == 202
    wrong += [line for case in then for line in case.compare(direct, through)]
    nats_server.pause()
    try:
        found = await asyncio.gather(*(asyncio.to_thread(case.compare, direct, through) for case in last))
    finally:
        nats_server.resume()
    wrong += [line for lines in found for line in lines]
    assert not wrong, "\n".join(wrong)

    tried = {(case.endpoint, case.status) for case in (*first, *then, *last)}
    document = ask(direct, Request(method="GET", path="/openapi.json")).json()
    documented = {
        (f"{method.upper()} {path.replace('{user_id}', '{id}')}", int(status))
        for path, item in document["paths"].items()
        for method, operation in item.items()
        for status in operation["responses"]
    }
    assert documented - tried == {(name, 500) for name in ENDPOINTS} | {("POST /v1/users", 408)}
    assert tried <= documented


def test_a_body_that_does_not_come_is_408(user_svc: Service, gateway: Gateway) -> None:
    """user_svc says so, not the gateway; its answer is passed on when the gateway stops reading, at the latest."""
    request = Request(method="POST", path="/v1/users", headers=JSON, body=b'{"email"', promised=100)
    began = time.monotonic()
    answer = ask(gateway.port, request)
    assert answer.status == 408
    assert answer.json()["type"] == "urn:mailflow:problem:request-timeout"
    assert time.monotonic() - began < 9


@pytest.mark.parametrize("chunked", [False, True], ids=["with its length", "chunked"])
def test_a_big_body_is_413(gateway: Gateway, user_svc: Service, chunked: bool) -> None:
    """5 MB, refused at 16 KB; the gateway has no limit of its own."""
    piece = b"x" * 65_536
    body = (piece,) * 80 if chunked else piece * 80
    assert ask(gateway.port, Request(method="POST", path="/v1/users", headers=JSON, body=body)).status == 413
    register(gateway.port, f"after-{chunked}")


# --- its own answers -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "path",
    [
        "/",
        "/v1",
        "/v1/users/",
        "//v1/users",
        "/V1/users",
        "/openapi.json",
        "/metrics",
        "/healthz",
        "/readyz",
        "/ledger",
        "/circuit-breaker",
        "/dead-letters",
        "/rate-limit",
        "/__debug/x",
        "/__echo/x",
        "/__stats",
    ],
)
def test_what_it_does_not_know_is_a_404(gateway: Gateway, path: str) -> None:
    """The admin listeners' paths too. In user_svc's words, no redirect."""
    answer = ask(gateway.port, Request(method="GET", path=path))
    assert answer.status == 404
    assert answer.json() == CONFIG["extra_config"]["router"]["error_body"]["404"]


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("PUT", "/v1/users"),
        ("HEAD", "/v1/users"),
        ("OPTIONS", "/v1/users"),
        ("DELETE", "/v1/users"),
        ("HEAD", "/__health"),
    ],
)
def test_other_methods_are_405(gateway: Gateway, method: str, path: str) -> None:
    """With what is allowed."""
    answer = ask(gateway.port, Request(method=method, path=path))
    assert answer.status == 405
    assert answer.header("allow")


@pytest.mark.parametrize("user_id", ["%2F", "%3F", "%23", "%25", "a%2F..%2Fmetrics"])
def test_an_id_with_an_escaped_separator_is_refused(gateway: Gateway, user_id: str) -> None:
    """By the gateway, before it reaches anybody."""
    assert ask(gateway.port, Request(method="GET", path=f"/v1/users/{user_id}")).status in (400, 404)


def test_a_header_that_is_too_large_is_431(gateway: Gateway) -> None:
    """More than 16 KB."""
    request = Request(method="GET", path=f"/v1/users/{NO_ONE}", headers={"Authorization": "x" * 25_000})
    assert ask(gateway.port, request).status == 431


def test_every_answer_has_the_security_headers(gateway: Gateway) -> None:
    """user_svc's and the gateway's own."""
    for path in (f"/v1/users/{NO_ONE}", "/nothing"):
        answer = ask(gateway.port, Request(method="GET", path=path))
        assert answer.header("x-content-type-options") == "nosniff"
        assert answer.header("x-frame-options") == "DENY"
        assert answer.header("referrer-policy") == "no-referrer"
        assert answer.header("content-security-policy") == "default-src 'none'; frame-ancestors 'none'"
        assert "2." not in (answer.header("x-krakend") or "")


def preflight(port: int, origin: str, **more: str) -> Answer:
    headers = {
        "Origin": origin,
        "Access-Control-Request-Method": "POST",
        "Access-Control-Request-Headers": "content-type,idempotency-key",
    }
    return ask(port, Request(method="OPTIONS", path="/v1/users", headers=headers | more))


def test_only_the_listed_origins_may_call_from_a_browser(gateway: Gateway) -> None:
    """A preflight of another gets no leave; and what is answered may be read, Location included."""
    cors = CONFIG["extra_config"]["security/cors"]
    [origin, *_] = cors["allow_origins"]
    good = preflight(gateway.port, origin)
    assert good.header("access-control-allow-origin") == origin
    assert "POST" in (good.header("access-control-allow-methods") or "")
    assert "idempotency-key" in (good.header("access-control-allow-headers") or "").lower()
    assert preflight(gateway.port, "https://evil.example").header("access-control-allow-origin") is None
    asked = {"Access-Control-Request-Headers": "x-other"}
    assert preflight(gateway.port, origin, **asked).header("access-control-allow-origin") is None
    answer = ask(gateway.port, Request(method="GET", path=f"/v1/users/{NO_ONE}", headers={"Origin": origin}))
    exposed = (answer.header("access-control-expose-headers") or "").lower().split(", ")
    assert sorted(exposed) == sorted(name.lower() for name in cors["expose_headers"])
    other = Request(method="GET", path=f"/v1/users/{NO_ONE}", headers={"Origin": "https://evil.example"})
    assert ask(gateway.port, other).header("access-control-allow-origin") is None


# --- limits --------------------------------------------------------------------------------------------------------


def shipped(path: str, method: str) -> dict[str, Any]:
    """The limit of an endpoint."""
    [found] = [e for e in CONFIG["endpoints"] if (e["endpoint"], e["method"]) == (path, method)]
    limit: dict[str, Any] = found["extra_config"]["qos/ratelimit/router"]
    return limit


def own_refusal(answer: Answer) -> bool:
    """As the gateway refuses: without a body and without Retry-After, which user_svc never does."""
    return (answer.header("content-length"), answer.body, answer.header("retry-after")) == ("0", b"", None)


async def test_a_client_is_limited_whatever_address_it_claims(user_svc: Service, tmp_path: Path) -> None:
    """Registering: the burst goes through, then 429; forged headers do not help, and another client is not touched."""
    limit = shipped("/v1/users", "POST")
    gateway = Gateway(tmp_path, krakend.local(user_svc.http_port, limits=True), "limited")
    with krakend.running(gateway):
        await gateway.ready()
        began = time.monotonic()
        burst = [ask(gateway.port, post({})) for _ in range(3 * limit["client_capacity"])]
        seen = Counter(answer.status for answer in burst)
        assert set(seen) == {422, 429}
        # A bucket that is refilled only when it is empty lets nearly twice its capacity through.
        most = 2 * limit["client_capacity"] + 1 + limit["client_max_rate"] / 60 * (time.monotonic() - began)
        assert limit["client_capacity"] <= seen[422] <= most
        assert all(own_refusal(answer) for answer in burst if answer.status == 429)

        addresses = [f"198.51.100.{i}" for i in range(30)]
        claims = [{"X-Forwarded-For": a, "X-Real-IP": a, "Forwarded": f"for={a}"} for a in addresses]
        forged = Counter(ask(gateway.port, post({}, JSON | claim)).status for claim in claims)
        assert forged[429] > 15, forged
        if sys.platform == "linux":  # where all of 127.0.0.0/8 is this machine
            assert ask(gateway.port, post({}), source="127.0.0.2").status == 422


async def test_all_clients_together_are_limited(user_svc: Service, tmp_path: Path) -> None:
    """503, without a body and without Retry-After."""
    config = krakend.local(user_svc.http_port, limits=True)
    [endpoint] = [e for e in config["endpoints"] if (e["endpoint"], e["method"]) == ("/v1/users/{id}", "GET")]
    limit = endpoint["extra_config"]["qos/ratelimit/router"]
    limit |= {"every": "1m", "max_rate": 60, "capacity": 5, "client_max_rate": 6000, "client_capacity": 100}
    gateway = Gateway(tmp_path, config, "limited")
    with krakend.running(gateway):
        await gateway.ready()
        answers = [ask(gateway.port, at("GET /v1/users/{id}", NO_ONE)) for _ in range(40)]
        seen = Counter(answer.status for answer in answers)
        assert set(seen) == {404, 503}
        assert seen[404] >= 5
        assert all(own_refusal(answer) for answer in answers if answer.status == 503)


# --- the backend ---------------------------------------------------------------------------------------------------


async def test_a_dead_backend_is_a_500_that_says_nothing(tmp_path: Path) -> None:
    """No host, port or reason, on any endpoint."""
    config = krakend.local(free_port())
    gateway = Gateway(tmp_path, config, "dead")
    with krakend.running(gateway):
        await gateway.ready()
        for endpoint in ENDPOINTS:
            answer = ask(gateway.port, at(endpoint, NO_ONE))
            assert answer.status == 500
            assert own_refusal(answer)


async def test_the_breaker_opens_and_closes_again(tmp_path: Path) -> None:
    """After enough failures in a row it answers by itself; soon after the backend is back, so is the route."""
    backend = Backend()
    gateway = Gateway(tmp_path, krakend.local(backend.port), "breaker")
    [breaker] = [b["extra_config"]["qos/circuit-breaker"] for b in CONFIG["endpoints"][2]["backend"]]
    request = at("GET /v1/users/{id}", NO_ONE)
    with krakend.running(gateway):
        await gateway.ready()
        for _ in range(breaker["max_errors"] + 2):
            assert ask(gateway.port, request).status == 500
        with backend.listening():
            open_still = ask(gateway.port, request)
            assert (open_still.status, backend.requests) == (500, [])
            await eventually(lambda: ask(gateway.port, request).status == 200, within_s=breaker["timeout"] + 10)
            backend.status = 503  # an answer, even this one, is no failure of the transport
            assert {ask(gateway.port, request).status for _ in range(breaker["max_errors"] + 5)} == {503}


async def test_what_reaches_the_backend(tmp_path: Path) -> None:
    """The listed headers and parameters, the client's true address, nothing else; a POST once, even if it is lost."""
    backend = Backend()
    gateway = Gateway(tmp_path, krakend.local(backend.port), "headers")
    trace = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
    dropped = {
        "Cookie": "a=b",
        "X-Custom": "x",
        "X-Forwarded-Proto": "https",
        "X-Real-IP": "198.51.100.9",
        "Forwarded": "for=198.51.100.9",
    }
    passed = {
        "Content-Type": "application/json; charset=utf-8",
        "Idempotency-Key": "k-1",
        "X-Request-ID": "req-1",
        "traceparent": trace,
        "tracestate": "a=1",
    }
    forged = {"X-Forwarded-For": "198.51.100.9"}
    with backend.listening(), krakend.running(gateway):
        await gateway.ready()
        body = b'{"a": 1.0, "a": 1e2}'
        request = Request(method="POST", path="/v1/users?q=1", headers=passed | dropped | forged, body=body)
        assert ask(gateway.port, request).status == 200
        [got] = backend.requests
        assert (got.method, got.path, got.body) == ("POST", "/v1/users", body)
        for name, value in passed.items():
            assert got.headers[name.lower()] == value
        assert not {name.lower() for name in dropped} & set(got.headers)
        assert got.headers["x-forwarded-for"] == "127.0.0.1"

        query = "?limit=1&cursor=2&q=3&Limit=4"
        assert ask(gateway.port, at("GET /v1/users", "", ADMIN, query)).status == 200
        path, _, arrived = backend.requests[-1].path.partition("?")
        assert (path, sorted(arrived.split("&"))) == ("/v1/users", ["cursor=2", "limit=1"])
        assert backend.requests[-1].headers["authorization"] == ADMIN["Authorization"]

        backend.status, before = None, len(backend.requests)
        assert ask(gateway.port, post({}, JSON | {"Idempotency-Key": "k-2"})).status == 500
        assert len(backend.requests) == before + 1


# --- telemetry -----------------------------------------------------------------------------------------------------


async def test_the_callers_trace_goes_on_and_carries_no_query(tmp_path: Path) -> None:
    """One trace id from the caller to the backend; the gateway's spans know the route, not what was in the URL."""
    backend, collector = Backend(), Backend()
    traces = f"http://127.0.0.1:{collector.port}"
    gateway = Gateway(tmp_path, krakend.local(backend.port, traces=traces), "traced")
    trace_id, span_id = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
    headers = ADMIN | {"traceparent": f"00-{trace_id}-{span_id}-01"}
    with backend.listening(), collector.listening(), krakend.running(gateway):
        await gateway.ready()
        assert ask(gateway.port, at("GET /v1/users", "", headers, "?limit=1&q=ann.secret")).status == 200
        _, trace, parent, _ = backend.requests[-1].headers["traceparent"].split("-")
        assert trace == trace_id
        assert parent != span_id

        def exported() -> bytes:
            sent = [request for request in collector.requests if request.path == "/v1/traces"]
            packed = [request.headers.get("content-encoding") == "gzip" for request in sent]
            return b"".join(gzip.decompress(r.body) if p else r.body for r, p in zip(sent, packed, strict=True))

        await eventually(lambda: bytes.fromhex(trace_id) in exported(), within_s=30, what="spans")
        await eventually(lambda: bytes.fromhex(parent) in exported(), within_s=30, what="the span of the call")
        assert b"/v1/users" in exported()
        assert b"secret" not in exported()
        assert TOKEN.encode() not in exported()


async def test_a_dead_collector_harms_nothing(tmp_path: Path) -> None:
    """Requests pass; the trace goes on."""
    backend = Backend()
    traces = f"http://127.0.0.1:{free_port()}"
    gateway = Gateway(tmp_path, krakend.local(backend.port, traces=traces), "untraced")
    with backend.listening(), krakend.running(gateway):
        await gateway.ready()
        began = time.monotonic()
        for _ in range(20):
            assert ask(gateway.port, at("GET /v1/users/{id}", NO_ONE)).status == 200
        assert time.monotonic() - began < 5


async def test_its_metrics_can_be_scraped(tmp_path: Path) -> None:
    """On the port of their own, never on the API's."""
    backend, port = Backend(), free_port()
    config = krakend.local(backend.port)
    telemetry = json.loads(json.dumps(CONFIG["extra_config"]["telemetry/opentelemetry"]))
    [exporter] = telemetry["exporters"]["prometheus"]
    telemetry["exporters"] = {"prometheus": [exporter | {"port": port}]}
    config["extra_config"]["telemetry/opentelemetry"] = telemetry
    gateway = Gateway(tmp_path, config, "metrics")
    with backend.listening(), krakend.running(gateway):
        await gateway.ready()
        assert ask(gateway.port, at("GET /v1/users/{id}", NO_ONE)).status == 200

        def scraped() -> bool:
            text = ask(port, Request(method="GET", path="/metrics")).body
            return b"http_server_request_duration_seconds_count" in text and b"http_client_request_duration" in text

        await eventually(scraped, within_s=20)
        assert ask(gateway.port, Request(method="GET", path="/metrics")).status == 404


# --- the program itself --------------------------------------------------------------------------------------------


def test_krakend_accepts_the_configuration(tmp_path: Path) -> None:
    """Its own schema and its router; a misspelt key is refused."""
    done = krakend.check(ROOT / "krakend.json")
    assert done.returncode == 0, done.stdout + done.stderr
    bad = tmp_path / "bad.json"
    bad.write_text((ROOT / "krakend.json").read_text().replace('"input_headers"', '"imput_headers"', 1))
    assert krakend.check(bad).returncode != 0


async def test_sigterm_ends_it_in_order(tmp_path: Path) -> None:
    """Exit 0, within the time that a container has."""
    gateway = Gateway(tmp_path, krakend.local(free_port()), "stopped")
    with krakend.running(gateway):
        await gateway.ready()
        assert await gateway.terminate() == 0
