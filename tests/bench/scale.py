"""MailFlow with a million users, a million mails in its queue and a million in its ledger: memory, and what looks cost.

Its floor is itself with a thousand. All of it is written straight into the streams, so the relay's consumer is told to
go on behind it.
"""

import asyncio
import json
import time
from datetime import UTC, datetime
from pathlib import Path

from contracts import messages as m
from contracts import subjects as s
from contracts.runtime.broker import Broker
from tests.bench.fill import fill
from tests.bench.load import load
from tests.bench.sink import Sink
from tests.bench.speed import accepted
from tests.bench.stacks import mailflow, requested, user_id
from tests.bench.usage import peak_mb
from tests.support.processes import Service

_LOOKS = 30
_PAGE = 100
_MAILS = 2000


async def scaled(folder: Path, users: int, *, load_s: float) -> dict[str, float]:
    """With so many of everything, while mails are sent and users registered: MB, and ms of one look."""

    async def prepare(url: str, broker: Broker) -> None:
        await fill(url, (_registered(n) for n in range(users)))
        await fill(url, (requested(n) for n in range(users)))
        await fill(url, (_sent(n) for n in range(users)))
        last = (await broker.api(f"STREAM.INFO.{s.USERS}"))["state"]["last_seq"]
        await broker.api(f"CONSUMER.RESET.{s.USERS}.{s.RELAY}", {"seq": last + 1})

    async with (
        Sink() as sink,
        mailflow(folder, "1s", sink.port, queue_max_size=2 * users + 100_000, prepare=prepare) as stack,
    ):
        user, email = stack.services
        assert isinstance(user, Service)
        await load(stack.http_port, 10 * users, load_s)
        await accepted(sink, min(users, _MAILS))
        email.pause()  # the looks are measured on a machine that does nothing else
        return {
            "user_svc MB": peak_mb(user),
            "email_svc MB": peak_mb(email),
            "ledger ms": await _looked(user.metrics_port, "/ledger"),
            "first page ms": await _looked(stack.http_port, f"/v1/users?limit={_PAGE}"),
            "last page ms": await _looked(stack.http_port, f"/v1/users?limit={_PAGE}&cursor={max(0, users - _PAGE)}"),
        }


async def _looked(port: int, path: str) -> float:
    """The median, in ms, of a GET on one connection."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    took = []
    for _ in range(_LOOKS):
        began = time.perf_counter()
        writer.write(f"GET {path} HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n".encode())
        head = (await reader.readuntil(b"\r\n\r\n")).decode().lower()
        body = await reader.readexactly(int(head.partition("content-length: ")[2].partition("\r")[0]))
        took.append((time.perf_counter() - began) * 1000)
        assert head.startswith("http/1.1 200"), (head, body)
        assert json.loads(body)
    writer.close()
    return sorted(took)[len(took) // 2]


def _registered(n: int) -> tuple[str, bytes]:
    record = m.UserRegistered(
        user_id=user_id(n), email=f"user{n}@example.com", name=f"User {n}", nonce="0" * 26, created_at=datetime.now(UTC)
    )
    return s.user_key(user_id(n)), m.USER_REGISTERED.encode(record)


def _sent(n: int) -> tuple[str, bytes]:
    """Of an earlier mail than the one that is queued."""
    event_id, now = s.event_id(user_id(n), 10**9 + n), datetime.now(UTC)
    attempt = m.Attempt(at=now, verdict="sent", phase="dot", code=250, text="queued", seconds=0.01)
    history = m.History().add(attempt, charged=False)
    outcome = m.Outcome(event_id=event_id, state=m.State.SENT, at=now, requested_at=now, history=history)
    return s.outcome(event_id, m.State.SENT), m.OUTCOME.encode(outcome)
