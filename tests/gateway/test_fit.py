"""user_svc by itself, asked in the shape that the gateway gives a request: bodies chunked, names of headers in its
spelling, paths as the client wrote them, many requests on one connection.
"""

import http.client
import json
import re
from collections.abc import Iterator

import pytest

from tests.gateway.conftest import TOKEN
from tests.support.answers import Answer, Request, ask, exchange
from tests.support.processes import Service

NO_ONE = "a" * 26
JSON = {"Content-Type": "application/json"}
GATEWAY = {
    "Host": "user-svc:8080",
    "User-Agent": "KrakenD Version 2.13.8",
    "Accept-Encoding": "gzip",
    "X-Forwarded-For": "192.0.2.7",
    "X-Forwarded-Host": "127.0.0.1:8000",
    "Traceparent": "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
}
"""What it adds to each request."""


@pytest.fixture
def connection(user_svc: Service) -> Iterator[http.client.HTTPConnection]:
    """One that is kept alive, as the gateway keeps its own."""
    made = http.client.HTTPConnection("127.0.0.1", user_svc.http_port, timeout=20)
    yield made
    made.close()


def sound(answer: Answer) -> Answer:
    """What every answer must be for the gateway: of a stated length, not compressed, no redirect."""
    assert not answer.chunked
    assert answer.header("content-encoding") is None
    assert not 300 <= answer.status < 400
    assert answer.status == 204 or answer.header("content-length") == str(len(answer.body))
    if answer.status >= 400:
        assert answer.header("content-type") == "application/problem+json"
    return answer


def test_a_registration_arrives_in_pieces(connection: http.client.HTTPConnection) -> None:
    """Chunked, without a length, header names in Go's spelling: a 201; repeated with its key, the same one."""
    body = json.dumps({"email": "pieces@example.com", "name": "Ann"}).encode()
    headers = GATEWAY | {
        "Content-Type": "application/json; charset=utf-8",
        "Idempotency-Key": "k-pieces",
        "X-Request-Id": "req-1",
    }
    request = Request(method="POST", path="/v1/users", headers=headers, body=(body[:7], body[7:]))
    first, again = sound(exchange(connection, request)), sound(exchange(connection, request))
    assert (first.status, first.header("x-request-id")) == (201, "req-1")
    assert (again.status, again.body) == (201, first.body)
    listing = Request(method="GET", path="/v1/users?limit=1", headers=GATEWAY | {"Authorization": f"Bearer {TOKEN}"})
    assert sound(exchange(connection, listing)).status == 200


@pytest.mark.parametrize(
    ("headers", "size", "status"),
    [
        (JSON, 1_000_000, 413),
        ({"Content-Type": "text/plain"}, 1_000_000, 415),
        ({}, 1_000_000, 415),
        (JSON, 0, 422),
    ],
)
def test_a_refused_body_leaves_the_connection_usable(
    connection: http.client.HTTPConnection, headers: dict[str, str], size: int, status: int
) -> None:
    """By counted bytes, for there is no length. What was not read is dropped, not read as the next request."""
    pieces = tuple(b"x" * 10_000 for _ in range(size // 10_000))
    refused = Request(method="POST", path="/v1/users", headers=GATEWAY | headers, body=pieces)
    assert sound(exchange(connection, refused)).status == status
    socket = connection.sock
    reading = Request(method="GET", path=f"/v1/users/{NO_ONE}", headers=GATEWAY)
    assert sound(exchange(connection, reading)).status == 404
    assert connection.sock is socket, "it was closed"


@pytest.mark.parametrize(
    "user_id",
    ["..", ".", "%2e%2e", "a%20b", "h%C3%A9", "a;b", "a+b", "%7C", "%2e%2e/welcome-email", "../welcome-email"],
)
@pytest.mark.parametrize("method", ["GET", "POST", "DELETE"])
def test_what_is_no_id_is_not_found(user_svc: Service, method: str, user_id: str) -> None:
    """The gateway passes it on as the client wrote it."""
    headers = GATEWAY | {"Authorization": f"Bearer {TOKEN}"}
    answer = sound(ask(user_svc.http_port, Request(method=method, path=f"/v1/users/{user_id}", headers=headers)))
    assert answer.status in (404, 405)
    assert answer.status == 404 or answer.header("allow")


@pytest.mark.parametrize("path", ["/v1/users/", "//v1/users", "/V1/users", f"/v1/users/{NO_ONE}/", "/v1", "/"])
def test_there_are_no_redirects(user_svc: Service, path: str) -> None:
    """The gateway would follow them itself, Authorization included."""
    for method in ("GET", "POST"):
        assert sound(ask(user_svc.http_port, Request(method=method, path=path, headers=GATEWAY))).status == 404


@pytest.mark.parametrize("method", ["HEAD", "OPTIONS", "PUT", "TRACE"])
def test_other_methods_are_405(user_svc: Service, method: str) -> None:
    """As the gateway says by itself, with what is allowed."""
    answer = ask(user_svc.http_port, Request(method=method, path="/v1/users", headers=GATEWAY))
    assert answer.status == 405
    assert not answer.chunked
    assert re.fullmatch(r"(GET|POST)(, (GET|POST))?", answer.header("allow") or "")


def test_the_public_listener_has_nothing_of_the_other(user_svc: Service) -> None:
    """The admin listener's paths are not there, whatever Host is sent."""
    for path in ("/metrics", "/healthz", "/readyz", "/ledger", "/circuit-breaker", "/dead-letters", "/audit"):
        assert sound(ask(user_svc.http_port, Request(method="GET", path=path, headers=GATEWAY))).status == 404
