"""Addresses and names are planted wherever somebody can write them, and searched for wherever they must not be.

They may be in two places (design D14): the user's record, and the queue entry made of it; and for seven days in the
bytes of a message that was set aside because nobody can tell what it is.
"""

import asyncio
import base64
import contextlib
import json
import re
from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest
import pytest_asyncio

from contracts import messages as m
from contracts import subjects as s
from contracts.runtime.broker import Broker
from tests.support.attack import holding, unharmed
from tests.support.collector import Collector
from tests.support.load import broker_of, client_of, ended
from tests.support.processes import System
from tests.support.smtp_server import Reply, SmtpServer, Transaction
from tests.support.waiting import eventually

pytestmark = pytest.mark.asyncio(loop_scope="module")

MAIL = ("Sentinel.Sent", "sentinel-dead", "sentinel-grey", "sentinel-bus", "sentinel+tag", "sentinel-again")
NAMES = ("Xanthippe", "Zwetschgendorfer")
WORDS = ("sentinel", *NAMES)
"""Whatever is planted holds one of them."""


def address(local: str) -> str:
    return f"{local}@example.com"


def quoting(sent: Transaction) -> Reply | None:
    """A mail server that repeats the address in every way it can think of."""
    local = sent.rcpt.partition("@")[0]
    words = f"<{sent.rcpt}>: {sent.rcpt.upper()} user={local} {local}%40example.com mailto:{sent.rcpt}, '{sent.rcpt}'."
    if "dead" in local:
        return Reply(550, f"5.1.1 {words}\n5.1.1 {local} unknown; see https://example.com/?to={sent.rcpt}")
    if "grey" in local:
        return Reply(450, f"4.2.0 {words} Forwarded to sentinel-other@example.net.")
    return None


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def planted(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[tuple[System, Broker, bytes, list[str]]]:
    """A system in which all of it was planted; the spans that it exported; the answers that were refusals."""
    with Collector() as collector:
        async with SmtpServer() as smtp:
            smtp.on("rcpt", quoting)
            system = System(
                tmp_path_factory.mktemp("leaks"),
                f"smtp://127.0.0.1:{smtp.port}",
                LOG_LEVEL="DEBUG",
                EMAIL_DEADLINE="12s",
                OTEL_EXPORTER_OTLP_ENDPOINT=collector.url,
                OTEL_BSP_SCHEDULE_DELAY="100",
            )
            try:
                await system.start()
                async with client_of(system) as client, broker_of(system) as broker:
                    refusals = await plant(system, client, broker)
                    await eventually(lambda: any(span.name.startswith("ack") for span in collector.spans))
                    yield system, broker, b"".join(collector.requests), refusals
            finally:
                system.stop()


async def plant(system: System, client: httpx.AsyncClient, broker: Broker) -> list[str]:
    """Everything that can be written by a client, an operator, a mail server or a stranger in the stream."""
    refusals: list[str] = []
    name = " ".join(NAMES)
    users: dict[str, str] = {}

    async def refused(answer: httpx.Response) -> None:
        assert answer.status_code >= 400, answer.text
        refusals.append(answer.text + str(answer.headers))

    headers = {
        "Idempotency-Key": address("sentinel-key"),
        "X-Request-ID": address("sentinel-request"),
        "User-Agent": address("sentinel-agent"),
        "From": address("sentinel-from"),
        "traceparent": "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
        "tracestate": f"a={address('sentinel-state')},b=sentinel%40example.com",
        "baggage": f"user={address('sentinel-baggage')}",
    }
    for local in MAIL:
        body = {"email": address(local), "name": name}
        if local == "sentinel-bus":
            given = await broker.client.request(s.USERS_CREATE, json.dumps(body).encode(), headers=headers)
            users[local] = json.loads(given.data)["id"]
            continue
        answer = await client.post(
            "/v1/users", json=body, headers=headers | {"Idempotency-Key": address(f"key-{local}")}
        )
        assert answer.status_code == 201, answer.text
        users[local] = answer.json()["id"]

    for content in (
        b'{"sentinel@example.com":"Xanthippe"}',
        b'{"email":"sentinel@example.com","name":"Xanthippe","sentinel@example.com":1}',
        b'{"email":"sentinel@example.com","name":7}',
        b'{"email":"sentinel@example.com","name":"\\ud800"}',
        b'{"email":"sentinel@example..com","name":"\\u202e"}',
        b'{"email":"sentinel@b@example.com","name":"Xanthippe\\n"}',
        b'{"email":"\\"sentinel b\\"@example.com","name":"X"}',
        b'{"email":"sentinel@localhost","name":"X"}',
        b'sentinel@example.com',
    ):  # fmt: skip
        await refused(
            await client.post("/v1/users", content=content, headers=headers | {"Content-Type": "application/json"})
        )
        wrong = await broker.client.request(s.USERS_CREATE, content, headers=headers)
        refusals.append(wrong.data.decode() + str(wrong.headers))
    await refused(await client.post("/v1/users", json={"email": address("Sentinel.SENT"), "name": name}))  # taken
    await refused(await client.get(f"/v1/users/{address('sentinel')}?email={address('sentinel')}"))
    await refused(await client.get(f"/v1/users?cursor={address('sentinel')}"))
    await refused(await client.get(f"/{address('sentinel')}", headers=headers))
    await refused(await client.request("PATCH", f"/v1/users/{address('sentinel')}"))

    await ended(client, users["sentinel-dead"], "dead")
    await ended(client, users["sentinel-grey"], "retrying")
    await ended(client, users["sentinel-bus"], "sent")
    assert (await client.post(f"/v1/users/{users['sentinel-again']}/welcome-email")).status_code == 202
    async with httpx.AsyncClient(timeout=10) as admin:
        for body in (
            {"event_id": address("sentinel")},
            {"filter": {"reason": address("sentinel")}},
            {"filter": {"reason": address("sentinel")}, "dry_run": True},
        ):
            await admin.post(f"{system.user.admin}/dead-letters/replay", json=body)
        for action in ("open", "close"):
            reason = {"reason": f"because of {address('sentinel')}"}
            done = await admin.post(f"{system.user.admin}/circuit-breaker/{action}", json=reason)
            assert done.status_code == 200, done.text
        replay = {"filter": {"code": 550}}
        assert (await admin.post(f"{system.user.admin}/dead-letters/replay", json=replay)).status_code == 202
    forged = (
        b'{"kind":"welcome_email.requested.v1","event_id":"x","user_id":"x","email":"sentinel@example.com",'
        b'"name":"Xanthippe","why":"sentinel@example.com","requested_at":"2026-01-01T00:00:00Z"}'
    )
    await broker.store(s.welcome_requested("forged.1"), forged)
    await broker.store(s.welcome_requested("forged.2"), b'{"kind":"sentinel@example.com"}')
    await broker.store(s.user_key("nobody"), b'{"kind":"sentinel@example.com"}')
    await broker.client.publish(s.REPORT, b'{"kind":"sentinel@example.com"}')
    unreadable = users["sentinel+tag"]
    await broker.delete(
        s.USERS, (await stored(broker, s.USERS, s.user_key(unreadable))).seq
    )  # a rewrite leaves its bytes
    await broker.store(s.user_key(unreadable), b'{"kind":"sentinel@example.com"}')
    await refused(await client.get(f"/v1/users/{unreadable}"))
    await ended(client, users["sentinel-grey"], "expired", within_s=40)
    await ended(client, users["sentinel-dead"], "dead")
    return refusals


async def all_messages(broker: Broker) -> list[tuple[str, str, bytes, bytes]]:
    """Stream, subject, headers and payload of everything that the broker holds."""
    found = []
    for stream in (await broker.api("STREAM.NAMES"))["streams"]:
        state = (await broker.api(f"STREAM.INFO.{stream}"))["state"]
        rows = [await broker.at(stream, seq) for seq in range(state["first_seq"], state["last_seq"] + 1)]
        found += [(stream, row.subject, row.hdrs, row.data) for row in rows if row is not None]
    return found


def may_hold(stream: str, subject: str) -> bool:
    """The places that the design allows."""
    return (
        (stream == s.USERS and subject.startswith("$KV.USERS.u."))
        or stream == s.WELCOME_EMAILS
        or (stream == s.DEAD_LETTERS and subject.startswith("dead_letters.quarantine."))
    )


async def test_streams_hold_them_in_two_places_only(planted: tuple[System, Broker, bytes, list[str]]) -> None:
    """No subject, no header; no payload but the user's record, the queue's entry and what was set aside."""
    _, broker, _, _ = planted
    messages = await all_messages(broker)
    streams = {stream for stream, _, _, data in messages if data}
    assert {s.USERS, s.DELIVERIES, s.DEAD_LETTERS, s.AUDIT, s.CONTROL, s.IDEMPOTENCY} <= streams
    for stream, subject, headers, data in messages:
        assert holding(WORDS, subject) == []
        assert holding(WORDS, headers) == [], subject
        assert may_hold(stream, subject) or holding(WORDS, data) == [], (subject, data)
    assert [subject for stream, subject, _, _ in messages if "quarantine" in subject]
    kept = [m.OUTCOME.decode(data) for stream, subject, _, data in messages if ".outcome." in subject]
    texts = [attempt.text for outcome in kept for attempt in outcome.history.attempts]
    assert any("<recipient>" in text for text in texts)  # it was there to be found


async def test_logs_metrics_and_spans_hold_none(planted: tuple[System, Broker, bytes, list[str]]) -> None:
    """At DEBUG, of both services and the broker; nor does what both listeners show."""
    system, _, spans, refusals = planted
    for process in (*system.services, system.nats):
        text = process.text()
        assert len(text) > 200
        found = [line for line in text.splitlines() if holding(WORDS, line)]
        assert found == []
    assert len(spans) > 1000
    assert holding(WORDS, spans) == []
    # Of what was refused the caller sees again at most his own field's name, without the address.
    found = [text for text in refusals if re.search("sentinel[^ ]*@", text, re.IGNORECASE)]
    assert found == []
    shown = {}
    async with httpx.AsyncClient(timeout=10) as client:
        for path in (
            "metrics",
            "queue",
            "ledger",
            "dead-letters?limit=500",
            "dead-letters/replay",
            "audit",
            "circuit-breaker",
        ):
            shown[path] = (await client.get(f"{system.user.admin}/{path}")).text
        for path in ("metrics", "rate-limit", "downtime"):
            shown[f"email {path}"] = (await client.get(f"{system.email.admin}/{path}")).text
        openmetrics = {"Accept": "application/openmetrics-text; version=1.0.0"}
        shown["exemplars"] = (await client.get(f"{system.user.admin}/metrics", headers=openmetrics)).text
        for path in (
            "varz",
            "connz?subs=detail&auth=true",
            "subsz?subs=1",
            "jsz?accounts=1&streams=1&consumers=1&config=1",
        ):
            shown[path] = (await client.get(f"{system.nats.monitoring_url}/{path}")).text
    assert {path: holding(WORDS, text) for path, text in shown.items() if holding(WORDS, text)} == {}
    unharmed(system)


def files_with(system: System, word: str) -> list[str]:
    """The broker's files that hold a word in any case, as it is or in base64 at any offset."""
    wanted = [word.lower().encode()]
    for shift in range(3):
        encoded = base64.b64encode(b"\0" * shift + word.encode())
        wanted.append(encoded[4 if shift else 0 : len(encoded) // 4 * 4 - 4].lower())
    found = []
    for path in system.nats.store.rglob("*"):
        with contextlib.suppress(FileNotFoundError, IsADirectoryError):  # it writes by a file that it renames
            held = path.read_bytes().lower()
            if any(one in held for one in wanted):
                found.append(str(path))
    return found


async def test_after_erasing_the_bytes_are_gone(planted: tuple[System, Broker, bytes, list[str]]) -> None:
    """Of all of them, whatever became of their mails, but for blocks of the queue that were acknowledged before."""
    system, broker, _, _ = planted
    async with client_of(system) as client:
        ids = [subject.rpartition(".")[2] for subject in await broker.subjects(s.USERS, s.USER_KEYS)]
        users = [user for user in ids if s.is_user_id(user)]
        assert len(users) == len(MAIL)
        answers = await asyncio.gather(*(client.delete(f"/v1/users/{user}") for user in users))
        assert {answer.status_code for answer in answers} == {204}
    await broker.delete(s.USERS, (await stored(broker, s.USERS, s.user_key("nobody"))).seq)
    for subject in await broker.subjects(s.DEAD_LETTERS, s.QUARANTINE):
        await broker.delete(s.DEAD_LETTERS, (await stored(broker, s.DEAD_LETTERS, subject)).seq)
    assert [x for x in await all_messages(broker) if holding(WORDS, b" ".join((x[1].encode(), x[2], x[3])))] == []
    for word in WORDS:
        left = [path for path in files_with(system, word) if f"/{s.WELCOME_EMAILS}/" not in path]
        assert left == []


async def stored(broker: Broker, stream: str, subject: str) -> Any:
    found = await broker.last(stream, subject)
    assert found is not None
    return found
