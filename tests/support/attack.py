"""What attacks have in common: raw bytes to a listener, and whether the system has taken harm."""

import asyncio
import contextlib
import email
import email.policy
import itertools
import re
import subprocess
from collections.abc import Iterable
from email.message import EmailMessage

import httpx

from contracts.runtime.broker import Broker
from email_svc.message import HEADERS
from tests.support.processes import Process, System, http_status
from tests.support.smtp_server import Transaction

_numbers = itertools.count()
_STATUS = re.compile(rb"HTTP/1\.1 ([0-9]{3}) ")


async def shout(port: int, *pieces: bytes, half_close: bool = False, within_s: float = 15.0) -> bytes:
    """Sends the pieces on a connection of its own and returns all that came back until the other side closed it, or
    nothing came for `within_s`."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port, limit=2**24)
    heard = bytearray()
    try:
        with contextlib.suppress(ConnectionError):  # it may be cut off in the middle; what it said still counts
            for piece in pieces:
                writer.write(piece)
                await writer.drain()
            if half_close:
                writer.write_eof()
        with contextlib.suppress(ConnectionError, TimeoutError):
            while piece := await asyncio.wait_for(reader.read(65_536), within_s):
                heard += piece
    finally:
        writer.close()
        with contextlib.suppress(ConnectionError):
            await writer.wait_closed()
    return bytes(heard)


def statuses(heard: bytes) -> list[int]:
    """Of the answers in what was heard, in order."""
    return [int(code) for code in _STATUS.findall(heard)]


def rss_bytes(process: Process) -> int:
    """Memory of a process."""
    assert process.child is not None
    shown = subprocess.run(["ps", "-o", "rss=", "-p", str(process.child.pid)], capture_output=True, check=True)
    return int(shown.stdout) * 1024


async def metric(system: System, name: str) -> float:
    """The sum over the labels of a metric of user_svc."""
    async with httpx.AsyncClient(timeout=10) as client:
        text = (await client.get(f"{system.user.admin}/metrics")).text
    return sum(float(line.rpartition(" ")[2]) for line in text.splitlines() if re.match(rf"{name}[ {{]", line))


def unharmed(system: System) -> None:
    """Both run and say that they are well, and no surprise is in their logs."""
    for service in (system.user, system.email):
        assert service.running, f"{service.name} ended"
        assert http_status(f"{service.admin}/healthz") == 200
        lines = service.text().splitlines()
        assert [line for line in lines if "Traceback" in line or '"level":"critical"' in line] == []


def text_and_html(sent: Transaction) -> tuple[str, str]:
    """The two bodies of a mail as it arrived, which has exactly the headers and the one recipient it should have."""
    head = sent.content.partition(b"\r\n\r\n")[0]
    names = [line.partition(b":")[0] for line in head.split(b"\r\n") if not line.startswith((b" ", b"\t"))]
    assert tuple(names) == HEADERS
    mail = email.message_from_bytes(sent.content, policy=email.policy.default)
    assert isinstance(mail, EmailMessage)
    assert sent.rcpts == [mail["To"]]
    assert [part.get_content_type() for part in mail.iter_parts()] == ["text/plain", "text/html"]
    text, html = mail.iter_parts()
    return text.get_content(), html.get_content()


def holding(words: Iterable[str], data: bytes | str) -> list[str]:
    """Which of the words are in it, in any case."""
    lowered = data.lower() if isinstance(data, str) else data.lower().decode("utf-8", "replace")
    return [word for word in words if word.lower() in lowered]


# --- in the streams ------------------------------------------------------------------------------------------------

GARBAGE = [
    b"",
    b"\xff\xfe",
    b"null",
    b"[]",
    b'{"kind":"user.registered.v9"}',
    b'{"kind":"audit.v1","at":"2026-01-01T00:00:00Z","service":"x","action":"y","by":"z","peer":""}',
    b'{"kind":"user.registered.v1","user_id":"\xff"}',
    b'{"kind":"user.registered.v1","x":' + b"[" * 100_000 + b"]" * 100_000 + b"}",
]


async def join(client: httpx.AsyncClient) -> tuple[str, str]:
    """A new user: address and id."""
    address = f"member{next(_numbers)}@example.com"
    answer = await client.post("/v1/users", json={"email": address, "name": "M"})
    assert answer.status_code == 201, answer.text
    return address, answer.json()["id"]


async def gone(client: httpx.AsyncClient) -> tuple[str, str]:
    """The address and id of a user who was erased: nobody's now."""
    address, user = await join(client)
    assert (await client.delete(f"/v1/users/{user}")).status_code == 204
    return address, user


async def deliveries(broker: Broker, stream: str, durable: str) -> int:
    """How many times the consumer was given something, so far."""
    info = await broker.api(f"CONSUMER.INFO.{stream}.{durable}")
    given: int = info["delivered"]["consumer_seq"]
    return given


def raw(subject: bytes, headers: bytes, data: bytes) -> bytes:
    """A message as no library would send it."""
    block = b"NATS/1.0" + headers + b"\r\n\r\n"
    return b"HPUB %s %d %d\r\n%s%s\r\n" % (subject, len(block), len(block) + len(data), block, data)


async def put(system: System, *messages: bytes) -> None:
    """Writes on a connection of its own, and waits until the broker has read it."""
    reader, writer = await asyncio.open_connection("127.0.0.1", system.nats.port)
    writer.write(b'CONNECT {"verbose":false,"pedantic":false,"headers":true}\r\n' + b"".join(messages) + b"PING\r\n")
    try:
        async with asyncio.timeout(10):
            while not (line := await reader.readline()).startswith(b"PONG"):
                assert not line.startswith(b"-ERR"), line
    finally:
        writer.close()
