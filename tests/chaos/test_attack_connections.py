"""Malformed, huge, slow and ambiguous requests over raw sockets: refused or cut off, and nobody else notices.

Sources: RFC 9112 (ambiguous framing is refused), slowloris and slow read.
"""

import asyncio
import contextlib
import gzip
import itertools
import json
import socket
import struct
import time
from collections.abc import AsyncIterator, Iterator

import pytest
import pytest_asyncio

from tests.support.attack import metric, rss_bytes, shout, statuses, unharmed
from tests.support.load import client_of
from tests.support.processes import Service, System
from tests.support.smtp_server import SmtpServer
from tests.support.waiting import eventually

pytestmark = pytest.mark.asyncio(loop_scope="module")

Target = tuple[System, SmtpServer]
MIB = 1024 * 1024
_numbers = itertools.count()


def body(email: str) -> bytes:
    return json.dumps({"email": email, "name": "N"}).encode()


def post(
    email: str, *headers: str, content: bytes | None = None, version: str = "1.1", path: str = "/v1/users"
) -> bytes:
    """A registration, its framing left to the headers given."""
    lines = [f"POST {path} HTTP/{version}", "Host: x", "Content-Type: application/json", *headers]
    return ("\r\n".join(lines) + "\r\n\r\n").encode("latin-1") + (body(email) if content is None else content)


def framed(email: str, *headers: str, **options: str) -> bytes:
    """One that is right."""
    return post(email, f"Content-Length: {len(body(email))}", *headers, **options)  # type: ignore[arg-type]


def chunk(data: bytes) -> bytes:
    return b"%x\r\n%s\r\n" % (len(data), data)


@pytest_asyncio.fixture(loop_scope="module")
async def port(target: Target) -> AsyncIterator[int]:
    """Of the API, whose process takes no harm from the test that uses it, and answers no 5xx."""
    system, _ = target
    yield system.user.http_port
    unharmed(system)
    assert await metric(system, "user_service_errors_total") == 0


async def registered(target: Target) -> set[str]:
    """All addresses there are."""
    found: set[str] = set()
    async with client_of(target[0]) as client:
        cursor: str | None = "0"
        while cursor is not None:
            page = (await client.get(f"/v1/users?limit=100&cursor={cursor}")).json()
            found |= {user["email"] for user in page["users"]}
            cursor = page["next_cursor"]
    return found


SMUGGLED = framed("smuggled@example.com", "X: y")
_BOTH = chunk(body("outer@example.com")) + b"0\r\n\r\n"

AMBIGUOUS = {
    "length and chunked": post("", "Content-Length: 4", "Transfer-Encoding: chunked", content=b"0\r\n\r\n" + SMUGGLED),
    "chunked and length": post(
        "", "Transfer-Encoding: chunked", f"Content-Length: {len(_BOTH)}", content=_BOTH + SMUGGLED
    ),
    "two lengths": post("outer@example.com", "Content-Length: 0", "Content-Length: 44"),
    "a list of lengths": post("outer@example.com", "Content-Length: 44, 44"),
    "negative": post("outer@example.com", "Content-Length: -1"),
    "signed": post("outer@example.com", "Content-Length: +44"),
    "hexadecimal": post("outer@example.com", "Content-Length: 0x2c"),
    "beyond 64 bits": post("outer@example.com", "Content-Length: 99999999999999999999999"),
    "a space inside": post("outer@example.com", "Content-Length: 4 4"),
    "space before the colon": post("outer@example.com", "Content-Length : 44"),
    "unknown coding": post("", "Transfer-Encoding: xchunked", content=_BOTH + SMUGGLED),
    "chunked not last": post("", "Transfer-Encoding: chunked, identity", content=_BOTH + SMUGGLED),
    "folded coding": post("", "Transfer-Encoding:\r\n chunked", "Content-Length: 4", content=b"0\r\n\r\n" + SMUGGLED),
    "NUL in a name": post("outer@example.com", "X\0Y: 1", "Content-Length: 44"),
    "CR in a value": post("outer@example.com", "X: a\rContent-Length: 44"),
    "chunk of a size beyond 64 bits": post("", "Transfer-Encoding: chunked", content=b"F" * 20 + b"\r\n" + SMUGGLED),
    "chunk of a negative size": post("", "Transfer-Encoding: chunked", content=b"-5\r\n" + SMUGGLED),
    "chunk that is longer than it says": post("", "Transfer-Encoding: chunked", content=b"2\r\n{}{}{}\r\n0\r\n\r\n"),
}

NO_REQUEST = {
    "HTTP/2": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    "TLS": b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + b"\0" * 64,
    "SMTP": b"EHLO x\r\nMAIL FROM:<a@example.com>\r\n",
    "NUL": b"\0" * 512,
    "version 9": b"GET / HTTP/9.9\r\n\r\n",
    "CONNECT": b"CONNECT example.com:443 HTTP/1.1\r\nHost: x\r\n\r\n",
    "bytes in the path": b"GET /\xff\xfe HTTP/1.1\r\nHost: x\r\n\r\n",
}


async def test_ambiguous_framing_is_refused(target: Target, port: int) -> None:
    """400 and the end of the connection; what was hidden behind it is not done."""
    for name, payload in AMBIGUOUS.items():
        heard = await shout(port, payload, within_s=5)
        assert statuses(heard) == [400], (name, heard[:300])
        assert b"application/problem+json" in heard, name
    assert await registered(target) == set()


async def test_what_is_no_request_is_refused(port: int) -> None:
    """Other protocols, other versions, noise."""
    for name, payload in NO_REQUEST.items():
        heard = await shout(port, payload, within_s=5)
        assert statuses(heard) == [400], (name, heard[:300])


async def test_odd_requests_get_their_answer(target: Target, port: int) -> None:
    """What is legal though rare is served; what is unwanted has its status; a false length is a time-out."""
    packed = gzip.compress(body("packed@example.com"))
    long = body("odd@example.com") + b" " * 20_000
    odd: list[tuple[str, bytes, list[int]]] = [
        ("HTTP/1.0", framed("old@example.com", version="1.0"), [201]),
        ("no Host", framed("nohost@example.com").replace(b"Host: x\r\n", b""), [201]),
        ("absolute URI", framed("absolute@example.com", path="http://evil.example/v1/users"), [201]),
        ("expectation", framed("expecting@example.com", "Expect: 100-continue"), [100, 201]),
        ("HTTP/0.9", b"GET /v1/users\r\n", []),
        # httptools drops the body of who wants another protocol.
        ("upgrade", framed("upgrade@example.com", "Connection: Upgrade", "Upgrade: websocket"), [422]),
        ("h2c", framed("h2c@example.com", "Connection: Upgrade, HTTP2-Settings", "Upgrade: h2c"), [422]),
        ("OPTIONS *", b"OPTIONS * HTTP/1.1\r\nHost: x\r\n\r\n", [404]),
        ("TRACE", b"TRACE /v1/users HTTP/1.1\r\nHost: x\r\nCookie: secret\r\n\r\n", [405]),
        ("gzip", post("", f"Content-Length: {len(packed)}", "Content-Encoding: gzip", content=packed), [422]),
        ("form", framed("form@example.com").replace(b"application/json", b"application/x-www-form-urlencoded"), [415]),
        ("xml", framed("xml@example.com").replace(b"application/json", b"text/xml; a=application/json"), [415]),
        ("two types", framed("two@example.com", "Content-Type: text/plain"), [201]),
        ("too long", post("", f"Content-Length: {len(long)}", content=long), [413]),
        ("too long in chunks", post("", "Transfer-Encoding: chunked", content=chunk(long) + b"0\r\n\r\n"), [413]),
        ("length too large", post("large@example.com", "Content-Length: 400"), [408]),
        ("length too small", post("small@example.com", "Content-Length: 10"), [400]),
    ]

    async def answered(name: str, payload: bytes, expected: list[int]) -> None:
        ends = b"Connection:" in payload or expected == [400]
        closing = payload if ends else payload.replace(b"Host: x\r\n", b"Host: x\r\nConnection: close\r\n", 1)
        heard = await shout(port, closing, within_s=5)
        assert statuses(heard) == expected, (name, heard[:300])
        assert b"evil.example" not in heard, name
        assert b"secret" not in heard, name

    await asyncio.gather(*(answered(*one) for one in odd))
    served = ("old", "nohost", "absolute", "expecting", "two")
    found = await registered(target)
    assert found == {f"{name}@example.com" for name in served}


async def test_pipelined_requests_are_answered_in_order(port: int) -> None:
    """Thirty at once on one connection."""
    requests = b"".join(
        b"GET /v1/users/%d HTTP/1.1\r\nHost: x\r\nX-Request-ID: n%d\r\n\r\n" % (n, n) for n in range(29)
    )
    heard = await shout(
        port, requests + b"GET /v1 HTTP/1.1\r\nHost: x\r\nConnection: close\r\nX-Request-ID: n29\r\n\r\n"
    )
    assert statuses(heard) == [404] * 30
    ids = [line.split(b": ")[1] for line in heard.split(b"\r\n") if line.startswith(b"x-request-id: ")]
    assert ids == [b"n%d" % n for n in range(30)]


HEAD = b"POST /v1/users HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
CHUNKED = HEAD + b"Transfer-Encoding: chunked\r\n\r\n"


@pytest.mark.parametrize(
    ("begin", "more"),
    [
        (HEAD + b"X: ", b"y" * 65_536),
        (HEAD, b"X: y\r\n" * 10_000),
        (HEAD + b"Cookie: ", b"a=b; " * 13_000),
        (b"GET /", b"a" * 65_536),
        (b"", b"\r\n" * 32_768),
        (CHUNKED + b"1;", b"e" * 65_536),
        (CHUNKED, b"1;eeeeeeeeeeeeeeee\r\n \r\n" * 3000),
        (CHUNKED + b"0\r\n", b"Trailer: y\r\n" * 6000),
        (CHUNKED + b"0\r\nTrailer: ", b"y" * 65_536),
    ],
    ids=["a line", "lines", "a cookie", "a path", "line ends", "an extension", "extensions", "trailers", "a trailer"],
)
async def test_heads_without_end_cost_no_memory(target: Target, port: int, begin: bytes, more: bytes) -> None:
    """A hundred MiB of anything that is no body, on ten connections at once: cut off after the first of them."""
    before = rss_bytes(target[0].user)
    heard = await asyncio.gather(*(shout(port, begin, *[more] * 160, within_s=5) for _ in range(10)))
    assert all(set(statuses(one)) <= {400, 413} for one in heard)
    assert rss_bytes(target[0].user) - before < 40 * MIB


async def test_huge_bodies_are_413_and_cost_no_memory(target: Target, port: int) -> None:
    """Ten MiB on each of ten connections, with a length and in chunks; the answer arrives all the same."""
    before = rss_bytes(target[0].user)
    piece = b"x" * 65_536
    with_length = [HEAD + b"Connection: close\r\nContent-Length: 10485760\r\n\r\n", *[piece] * 160]
    in_chunks = [HEAD + b"Connection: close\r\nTransfer-Encoding: chunked\r\n\r\n", *[chunk(piece)] * 160, b"0\r\n\r\n"]
    heard = await asyncio.gather(
        *(shout(port, *pieces, within_s=5) for pieces in (with_length, in_chunks) for _ in range(5))
    )
    assert {code for one in heard for code in statuses(one)} <= {413}
    assert rss_bytes(target[0].user) - before < 40 * MIB


async def trickle(port: int, begin: bytes, byte: bytes) -> float:
    """Sends a byte now and then until it is cut off; for how long that went."""
    began = time.monotonic()
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    with contextlib.suppress(ConnectionError):
        writer.write(begin)
        while not reader.at_eof():
            writer.write(byte)
            await writer.drain()
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(reader.read(4096), 0.25)
    writer.close()
    return time.monotonic() - began


def both(system: System) -> tuple[Service, Service]:
    return system.user, system.email


async def test_slow_clients_are_cut_off_and_harm_nobody(target: Target, port: int) -> None:
    """200 connections of slow heads, bodies, chunks and line ends: gone within seconds; meanwhile others register.

    So are those on the admin listeners.
    """
    with_length = HEAD.replace(b"Host: x", b"Host: localhost") + b"Content-Length: 10000\r\n\r\n"
    kinds = [
        (b"", b"\r\n"),
        (HEAD, b"X: y\r\n"),
        (HEAD, b"X"),
        (with_length, b" "),
        (CHUNKED, b"1\r\n \r\n"),
        (b"G", b""),
    ]
    slow = [asyncio.create_task(trickle(port, *kinds[n % len(kinds)])) for n in range(200)]
    slow += [asyncio.create_task(trickle(service.metrics_port, with_length, b" ")) for service in both(target[0])]
    taken = []
    async with asyncio.timeout(60), client_of(target[0]) as client:
        while not all(task.done() for task in slow):
            began = time.monotonic()
            answer = await client.post("/v1/users", json={"email": f"u{next(_numbers)}@example.com", "name": "N"})
            taken.append(time.monotonic() - began)
            assert answer.status_code == 201
            await asyncio.wait(slow, timeout=0.2)
    lasted = [task.result() for task in slow]
    assert max(lasted) < 15.0  # HTTP_REQUEST_TIMEOUT of 2 s, a second more, and a busy machine
    assert sorted(taken)[int(0.9 * len(taken))] < 2.0


@contextlib.contextmanager
def asking_and_not_reading(port: int, connections: int) -> Iterator[list[socket.socket]]:
    """Connections that ask for some 40 MB each and read none of them."""
    with contextlib.ExitStack() as stack:
        held = []
        for _ in range(connections):
            one = stack.enter_context(socket.socket())
            one.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            one.connect(("127.0.0.1", port))
            one.sendall(b"GET /openapi.json HTTP/1.1\r\nHost: x\r\n\r\n" * 1000)
            held.append(one)
        yield held


async def test_pipelining_clients_may_go_away(target: Target, port: int) -> None:
    """In the middle of their answers: that is no error of ours."""
    with asking_and_not_reading(port, 1) as held:
        answered: list[float] = []

        async def stuck() -> bool:
            answered.append(await metric(target[0], "user_service_requests_total"))
            in_flight = await metric(target[0], "user_service_requests_in_flight")
            return in_flight == len(held) and answered[-2:] == [answered[-1]] * 2

        await eventually(stuck)
        for one in held:
            one.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))

    async def free() -> bool:
        return await metric(target[0], "user_service_requests_in_flight") == 0

    await eventually(free)


async def test_who_does_not_read_is_cut_off(target: Target, port: int) -> None:
    """Its places in flight are given back."""
    with asking_and_not_reading(port, 3):

        async def begun() -> bool:
            return await metric(target[0], "user_service_requests_in_flight") >= 1

        async def free() -> bool:
            return await metric(target[0], "user_service_requests_in_flight") == 0  # of 3000 that were asked for

        await eventually(begun)
        await eventually(free, within_s=20)
