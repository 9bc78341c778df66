"""A mail's trace, exported over OTLP to a small collector: every hop under one id, and no word of whom it is for."""

import json
import time
from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from contracts import subjects as s
from tests.support.collector import Collector, Span
from tests.support.load import broker_of, client_of, ended, queued
from tests.support.processes import System, free_port
from tests.support.smtp_server import Reply, SmtpServer, Transaction
from tests.support.waiting import eventually

GATEWAY = "cd" * 8
PLANTED = "planted"
"""In the address, the name, the query, the tracestate and the words of the mail server; never in a span."""
QUEUE = "email.welcome.requested"
OPENMETRICS = {"Accept": "application/openmetrics-text; version=1.0.0"}


@pytest.fixture
def collector() -> Iterator[Collector]:
    with Collector() as made:
        yield made


def gateway(n: int) -> str:
    """The traceparent of a gateway's span, sampled."""
    return f"00-{n:032x}-{GATEWAY}-01"


async def register(client: httpx.AsyncClient, n: int, traceparent: str) -> str:
    person = {"email": f"{PLANTED}{n}@example.com", "name": PLANTED.title()}
    headers = {"traceparent": traceparent, "tracestate": f"x={PLANTED}@example.com", "baggage": f"who={PLANTED}"}
    answer = await client.post(f"/v1/users?q={PLANTED}", json=person, headers=headers)
    assert answer.status_code == 201, answer.text
    return str(answer.json()["id"])


def refusal(code: int, text: str) -> Any:
    """Quotes the recipient, as servers do."""

    def script(transaction: Transaction) -> Reply:
        return Reply(code, f"{text} <{transaction.rcpt}>")

    return script


async def whole(collector: Collector, trace_id: str) -> list[Span]:
    """The spans of a mail's trace, once its ack is there, and of each span the parent: each service sends its own."""

    def look() -> list[Span] | None:
        spans = [one for one in collector.spans if one.trace_id == trace_id]
        known = {one.span_id for one in spans} | {"", GATEWAY}
        acked = any(one.name == f"ack {QUEUE}" for one in spans)
        return spans if acked and all(one.parent in known for one in spans) else None

    return await eventually(look, within_s=20, what=f"all of trace {trace_id}")


def tree(spans: list[Span], *, without: str = "smtp connect") -> list[tuple[str, str]]:
    """Names of spans and of their parents, sorted. A connection may be made, or be there already."""
    names = {one.span_id: one.name for one in spans}
    return sorted((one.name, names.get(one.parent, one.parent)) for one in spans if one.name != without)


def lines(text: str, event: str) -> list[dict[str, Any]]:
    return [line for line in map(json.loads, text.splitlines()) if line.get("event") == event]


WAY = [
    (f"ack {QUEUE}", f"process {QUEUE}"),
    (f"process {QUEUE}", f"publish {QUEUE}"),
    ("publish deliveries.outcome", f"process {QUEUE}"),
    (f"publish {QUEUE}", "POST /v1/users"),
    ("smtp send", f"process {QUEUE}"),
]


async def test_one_mail_is_one_trace(system: System, smtp: SmtpServer, collector: Collector) -> None:
    """Gateway, API, relay, queue, attempt, SMTP, ledger, ack; over a redelivery, a replay, a resend, a lost queue."""
    system.set_env(
        OTEL_EXPORTER_OTLP_ENDPOINT=collector.url,
        OTEL_EXPORTER_OTLP_HEADERS="x-tenant=ours",
        OTEL_RESOURCE_ATTRIBUTES="deployment.environment.name=test",
        OTEL_BSP_SCHEDULE_DELAY="100",
        MESSAGE_RETRY_DELAYS="100ms",
        RECONCILE_AFTER="1s",
    )
    await system.start()
    async with client_of(system) as client, broker_of(system) as broker:
        # A mail that is greylisted once.
        smtp.on("rcpt", refusal(451, "4.7.1 later"), times=1)
        first = await register(client, 1, gateway(1))
        mail = await ended(client, first, "sent")
        spans = await whole(collector, f"{1:032x}")
        retried = [
            (f"nak {QUEUE}", f"process {QUEUE}"),
            (f"process {QUEUE}", f"publish {QUEUE}"),
            ("publish deliveries.attempts", f"process {QUEUE}"),
            ("smtp send", f"process {QUEUE}"),
        ]
        assert tree(spans) == sorted([("POST /v1/users", GATEWAY), *WAY, *retried])
        by_name = {one.name: one for one in spans}
        deliveries = sorted((one for one in spans if one.name == f"process {QUEUE}"), key=lambda p: p.attributes[COUNT])
        assert [(p.attributes[COUNT], p.attributes["mailflow.verdict"]) for p in deliveries] == [
            (1, "transient"),
            (2, "sent"),
        ]
        assert [p.failed for p in deliveries] == [True, False]
        sends = [one.attributes for one in spans if one.name == "smtp send"]
        assert sorted(a["smtp.reply_code"] for a in sends) == [250, 451]
        assert {(a["server.address"], a["server.port"]) for a in sends} == {("127.0.0.1", smtp.port)}
        assert {one.service for one in spans} == {"user_svc", "email_svc"}
        assert {(by_name[n].kind, n) for n in ("POST /v1/users", f"publish {QUEUE}", f"process {QUEUE}")} == {
            ("SERVER", "POST /v1/users"),
            ("PRODUCER", f"publish {QUEUE}"),
            ("CONSUMER", f"process {QUEUE}"),
        }
        assert by_name["POST /v1/users"].attributes == {
            "http.request.method": "POST",
            "http.route": "/v1/users",
            "http.response.status_code": 201,
        }
        assert {p.attributes["messaging.message.id"] for p in deliveries} == {mail["event_id"]}
        assert collector.headers[0]["path"] == "/v1/traces"
        assert collector.headers[0]["x-tenant"] == "ours"

        # It can be found from everywhere: attempts, log lines, histograms.
        assert [a["trace_id"] for a in mail["attempts"]] == [f"{1:032x}"] * 2
        for service, event in ((system.user, "request.answered"), (system.email, "email.sent")):
            spoken_in = {
                line["span_id"] for line in lines(service.text(), event) if line.get("trace_id") == f"{1:032x}"
            }
            assert spoken_in, event
            assert spoken_in <= {one.span_id for one in spans}
            metrics = await client.get(f"{service.admin}/metrics", headers=OPENMETRICS)
            assert metrics.headers["content-type"].startswith("application/openmetrics-text")
            assert f'# {{trace_id="{1:032x}"}}' in metrics.text
            assert "trace_id" not in (await client.get(f"{service.admin}/metrics")).text

        # Dead, then replayed: a new trace, linked to the one of the registration.
        smtp.on("rcpt", refusal(550, "5.1.1 unknown"))
        second = await register(client, 2, gateway(2))
        assert (await ended(client, second, "dead"))["attempts"][0]["trace_id"] == f"{2:032x}"
        dead = await whole(collector, f"{2:032x}")
        smtp.on("rcpt", None)
        assert (await client.post(f"{system.user.admin}/dead-letters/replay", json={"all": True})).status_code == 202
        replayed = await whole(collector, (await ended(client, second, "sent"))["attempts"][0]["trace_id"])
        assert tree(replayed) == sorted([*WAY[:3], (f"publish {QUEUE}", ""), WAY[4]])
        asked = next(one for one in dead if one.name == "POST /v1/users")
        assert published(replayed).links == ((asked.trace_id, asked.span_id),)
        assert published(replayed).attributes["mailflow.why"] == "replay"

        # A resend is its own request's trace, linked the same way.
        again = await client.post(f"/v1/users/{first}/welcome-email", headers={"traceparent": gateway(3)})
        assert again.status_code == 202
        resent = await whole(collector, f"{3:032x}")
        assert ("POST /v1/users/{user_id}/welcome-email", GATEWAY) in tree(resent)
        assert published(resent).links == ((f"{1:032x}", by_name["POST /v1/users"].span_id),)

        # Over the bus it is the same.
        person = json.dumps({"email": f"{PLANTED}6@example.com", "name": PLANTED}).encode()
        created = await broker.request(s.USERS_CREATE, person, headers={"traceparent": gateway(6)})
        await ended(client, json.loads(created.data)["id"], "sent")
        spans = await whole(collector, f"{6:032x}")
        assert tree(spans) == sorted(
            [*WAY[:3], (f"publish {QUEUE}", "RPC users.create"), ("RPC users.create", GATEWAY), WAY[4]]
        )

        # Garbage begins a trace of its own.
        garbage = await ended(client, await register(client, 4, f"00-{'0' * 32}-xyz"), "sent")
        spans = await whole(collector, garbage["attempts"][0]["trace_id"])
        assert tree(spans) == sorted([*WAY, ("POST /v1/users", "")])

        # The queue loses an event; the reconciler asks again, in the same trace.
        assert (await client.post(f"{system.user.admin}/circuit-breaker/open", json={})).status_code == 200
        lost = await register(client, 5, gateway(5))
        await eventually(lambda: queued(broker, 1))
        await broker.purge(s.WELCOME_EMAILS, s.WELCOME_REQUESTED)
        await eventually(lambda: queued(broker, 1), within_s=30, what="republished")
        assert (await client.post(f"{system.user.admin}/circuit-breaker/close", json={})).status_code == 200
        await ended(client, lost, "sent", within_s=30)
        spans = await whole(collector, f"{5:032x}")
        assert [one for one in tree(spans) if one[0] == f"publish {QUEUE}"] == [WAY[3]] * 2

        assert await system.user.terminate() == 0
        assert await system.email.terminate() == 0
    assert all(b"service.name" in body for body in collector.requests)
    assert [body for body in collector.requests if PLANTED.encode() in body.lower()] == []


COUNT = "messaging.nats.delivery_count"


def published(spans: list[Span]) -> Span:
    return next(one for one in spans if one.name == f"publish {QUEUE}")


async def test_a_sick_collector_harms_nothing(system: System, smtp: SmtpServer) -> None:
    """One collector takes spans and never answers, another is not there: mails go out, and the exit waits for none."""
    with Collector(hang=True) as hanging:
        system.set_env(OTEL_BSP_SCHEDULE_DELAY="100", OTEL_EXPORTER_OTLP_TIMEOUT="60")
        system.user.env["OTEL_EXPORTER_OTLP_ENDPOINT"] = hanging.url
        system.email.env["OTEL_EXPORTER_OTLP_ENDPOINT"] = f"http://127.0.0.1:{free_port()}"
        await system.start()
        async with client_of(system) as client:
            for n in range(3):
                await ended(client, await register(client, n, gateway(n + 1)), "sent")
            await eventually(hanging.begun.is_set)
            await ended(client, await register(client, 3, gateway(4)), "sent")
        for service in (system.user, system.email):
            began = time.monotonic()
            assert await service.terminate(25) == 0
            # The flush has 1 s; the SDK's own limit would be 30 s.
            assert time.monotonic() - began < 10, service.name
    assert len(smtp.accepted) == 4


async def test_without_an_endpoint_the_context_is_handed_on(system: System, smtp: SmtpServer) -> None:
    """Nothing is exported, but a gateway's trace is in the queue, in the log lines of both services and the history."""
    await system.start()
    async with client_of(system) as client, broker_of(system) as broker:
        found = await ended(client, await register(client, 1, gateway(1)), "sent")
        assert found["attempts"][0]["trace_id"] == f"{1:032x}"
        key = await broker.last(s.USERS, s.USER_KEYS)
        assert key is not None
        assert key.headers["traceparent"] == gateway(1)
        assert not {"tracestate", "baggage"} & set(key.headers)
        none = await client.post("/v1/users", json={"email": "b@example.com", "name": "B"})
        assert (await ended(client, none.json()["id"], "sent"))["attempts"][0]["trace_id"] is None
    for service, event in ((system.user, "request.answered"), (system.email, "email.sent")):
        assert f"{1:032x}" in [line.get("trace_id") for line in lines(service.text(), event)]
