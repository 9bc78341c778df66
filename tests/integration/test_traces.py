"""What a delivery leaves in its span when our own code fails, with the address in the exception's text."""

import json

import pytest
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from contracts import messages as m
from contracts import subjects as s
from contracts import topology
from contracts.runtime import traces
from contracts.runtime.broker import Broker
from contracts.runtime.pull import Message, PullLoop
from email_svc.leave import Leave
from tests.integration.test_cancelled_delivery import delivery_of, event
from tests.support.smtp_server import SmtpServer
from tests.support.waiting import eventually


class _Failing:
    """A composer with a mistake in it that shows the address."""

    def compose(self, *, email: str, **_: object) -> None:
        raise RuntimeError(f"cannot compose for <{email}>")


async def test_a_delivery_that_raises_shows_no_address(
    broker: Broker, smtp: SmtpServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is given back, in a trace of its own for its headers are garbage, and no exported span has a word of it."""
    exporter = InMemorySpanExporter()
    provider = TracerProvider(shutdown_on_exit=False)
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    monkeypatch.setattr(traces, "_tracer", provider.get_tracer("test"))
    await topology.provision(broker, service="email_svc", mode="auto", replicas=1)
    one = event(1)
    stored = m.WELCOME_EMAIL_REQUESTED.encode(one)
    await broker.store(s.welcome_requested(one.event_id), stored, headers={"traceparent": f"00-{one.email}-01"})
    async with delivery_of(broker, smtp) as (delivery, _, path):
        delivery._composer = _Failing()  # type: ignore[assignment]

        async def handle(message: Message) -> None:
            await delivery.handle(message, Leave(kind="free", epoch=path.epoch))

        async with PullLoop(broker, stream=s.WELCOME_EMAILS, durable=s.EMAIL_SVC, handle=handle, slots=1):
            await eventually(lambda: any(x.name.startswith("process") for x in exporter.get_finished_spans()))
    spans = exporter.get_finished_spans()
    assert {x.name for x in spans} == {f"nak {s.WELCOME_REQUESTED[:-4]}", f"process {s.WELCOME_REQUESTED[:-4]}"}
    written = json.dumps([json.loads(x.to_json()) for x in spans])
    assert one.event_id in written
    assert [x.status.is_ok for x in spans if x.name.startswith("process")] == [False]
    assert "@" not in written
