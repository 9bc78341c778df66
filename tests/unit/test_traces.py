"""Spans without words, contexts that may be garbage, and settings that stop the start."""

import subprocess
import sys
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest
import structlog
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanKind, get_current_span

from contracts import semconv
from contracts.runtime import logs, traces
from contracts.runtime.settings import SettingsError
from tests.support.processes import ROOT

TRACE, PARENT = "ab" * 16, "cd" * 8
SAMPLED = {"traceparent": f"00-{TRACE}-{PARENT}-01"}


@pytest.fixture
def exported(monkeypatch: pytest.MonkeyPatch) -> Iterator[InMemorySpanExporter]:
    """Spans end up here."""
    exporter = InMemorySpanExporter()
    provider = TracerProvider(shutdown_on_exit=False)
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    monkeypatch.setattr(traces, "_tracer", provider.get_tracer("test"))
    yield exporter
    provider.shutdown()


def test_an_exception_leaves_its_class_and_no_word(exported: InMemorySpanExporter) -> None:
    """Its text may quote an address: neither event nor status has it."""
    outer, inner = traces.span("outer", SpanKind.CLIENT), traces.span("inner", SpanKind.CLIENT)
    with pytest.raises(ValueError, match="ann"), outer, inner:
        raise ValueError("ann@example.com")
    assert len(exported.get_finished_spans()) == 2
    for span in exported.get_finished_spans():
        assert not span.status.is_ok
        assert dict(span.attributes or {}) == {"error.type": "ValueError"}
        assert "ann" not in span.to_json()


def test_a_mail_server_s_words_are_not_in_its_span(exported: InMemorySpanExporter) -> None:
    """Phase and code, or what came instead."""
    for code, fault in ((250, None), (550, None), (None, "timeout")):
        with semconv.smtp("send", "mx.example", 25) as span:
            semconv.replied(span, "rcpt", code, fault)
    found = [(s.attributes or {}).get("error.type") for s in exported.get_finished_spans()]
    assert found == [None, "550", "timeout"]


@pytest.mark.parametrize("recording", [True, False])
def test_context_is_read_and_handed_on(recording: bool, request: pytest.FixtureRequest) -> None:
    """Also where nothing is exported: the chain does not break here."""
    if recording:
        request.getfixturevalue("exported")
    with traces.span("one", SpanKind.SERVER, parent=SAMPLED | {"tracestate": "vendor=1"}):
        handed_on = traces.headers()
        assert traces.trace_id() == TRACE
        assert traces.exemplar() == {"trace_id": TRACE}
    assert handed_on["traceparent"].split("-")[1] == TRACE
    assert (handed_on["traceparent"] == SAMPLED["traceparent"]) is not recording
    assert handed_on["tracestate"] == "vendor=1"
    assert traces.headers() == {}


@pytest.mark.parametrize(
    "garbage",
    [
        {},
        {"traceparent": ""},
        {"traceparent": "garbage"},
        {"traceparent": f"00-{'0' * 32}-{PARENT}-01"},
        {"traceparent": f"00-{TRACE}-{'0' * 16}-01"},
        {"traceparent": f"ff-{TRACE}-{PARENT}-01"},
        {"traceparent": f"00-{TRACE.upper()}-{PARENT}-01"},
        {"traceparent": f"00-{TRACE}-{PARENT}-01-more"},
        {"traceparent": f"00-{TRACE}-{PARENT}-01" * 100},
        {"traceparent": "\x00\xff\ud800"},
        {"tracestate": "vendor=1"},
    ],
)
def test_garbage_is_no_context(exported: InMemorySpanExporter, garbage: dict[str, str]) -> None:
    """A message without context, or with anything in its place, begins a trace; a link to it is none."""
    with traces.span("outer", SpanKind.SERVER), traces.span("one", SpanKind.SERVER, parent=garbage, link=garbage):
        pass
    one, outer = exported.get_finished_spans()
    assert one.parent is None
    assert one.context.trace_id != outer.context.trace_id
    assert len(one.links) == 0


def test_a_tracestate_with_an_address_goes_no_further(exported: InMemorySpanExporter) -> None:
    """And garbage in it costs only itself."""
    for state in (
        "x=ann@example.com",
        "ann@example.com=1",
        "ann@example.com",
        "x=1=a@b.example",
        "garbage",
        "\x00",
        "x=ann%40example.com",
        f"x={'y' * 513}",
    ):
        with traces.span("one", SpanKind.SERVER, parent=SAMPLED | {"tracestate": state}):
            assert list(traces.headers()) == ["traceparent"]
            assert traces.trace_id() == TRACE


@pytest.mark.parametrize(
    ("state", "handed_on"),
    [
        ("tenant@vendor=1", "tenant@vendor=1"),
        ("a=1, x=ann@example.com ,tenant@vendor=2", "a=1,tenant@vendor=2"),
        ("tenant@vendor=ann@example.com,a=1", "a=1"),
    ],
)
def test_only_what_holds_an_address_is_taken_out_of_a_tracestate(state: str, handed_on: str) -> None:
    """A key of several tenants has an @ by W3C's rules."""
    with traces.span("one", SpanKind.SERVER, parent=SAMPLED | {"tracestate": state}):
        assert traces.headers()["tracestate"] == handed_on


def test_what_is_not_sampled_is_pointed_at_by_nothing() -> None:
    """Neither exemplars nor attempts name a trace that nobody has; log lines do, to be found together."""
    with traces.span("one", SpanKind.SERVER, parent={"traceparent": f"00-{TRACE}-{PARENT}-00"}):
        assert (traces.trace_id(), traces.exemplar()) == ("", None)
        assert logs._with_trace(None, "info", {}) == {"trace_id": TRACE, "span_id": PARENT}
    assert logs._with_trace(None, "info", {}) == {}


def test_every_log_line_can_be_found_by_its_trace(capsys: pytest.CaptureFixture[str]) -> None:
    """The standard library's lines too."""
    command = (
        "import logging, structlog; from opentelemetry.trace import SpanKind;"
        "from contracts.runtime import logs, traces; logs.configure(service='s', level='INFO', form='json')\n"
        f"with traces.span('x', SpanKind.SERVER, parent={SAMPLED}): structlog.get_logger().info('a');"
        "logging.getLogger('l').warning('b')"
    )
    ran = subprocess.run([sys.executable, "-c", command], cwd=ROOT, capture_output=True, text=True, check=True)
    assert [TRACE in line for line in ran.stderr.splitlines()] == [True, True]


def test_a_delivery_says_which_one_it_is(exported: InMemorySpanExporter) -> None:
    """Count and sequence at once; the id only when it is known to be one."""
    message: Any = SimpleNamespace(headers=SAMPLED, delivered=3, sequence=7, subject="email.welcome.requested.ann@x.y")
    with semconv.processing(message):
        semconv.known_as("u.1")
        semconv.judged("path", sent=False)
    (span,) = exported.get_finished_spans()
    assert "ann" not in span.to_json()
    assert span.attributes == {
        "messaging.system": "nats",
        "messaging.operation.name": "process",
        "messaging.operation.type": "process",
        "messaging.destination.name": "email.welcome.requested",
        "messaging.consumer.group.name": "email-svc",
        "messaging.message.id": "u.1",
        "messaging.nats.delivery_count": 3,
        "messaging.nats.stream_sequence": 7,
        "mailflow.verdict": "path",
        "error.type": "path",
    }


# --- settings ------------------------------------------------------------------------------------------------------

ON = {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://collector:4318"}


@pytest.mark.parametrize(
    ("environ", "wanted"),
    [
        ({}, False),
        ({"OTEL_TRACES_SAMPLER": "whatever", "OTEL_EXPORTER_OTLP_ENDPOINT": ""}, False),
        (ON, True),
        ({"OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": "https://c.example/v1/traces"}, True),
        (ON | {"OTEL_SDK_DISABLED": "True"}, False),
        (ON | {"OTEL_SDK_DISABLED": "false"}, True),
        (ON | {"OTEL_TRACES_EXPORTER": "none"}, False),
        (ON | {"OTEL_EXPORTER_OTLP_PROTOCOL": "grpc", "OTEL_EXPORTER_OTLP_TRACES_PROTOCOL": "http/protobuf"}, True),
        (ON | {"OTEL_EXPORTER_OTLP_HEADERS": "authorization=Basic abc=, x-tenant=1"}, True),
        (ON | {"OTEL_TRACES_SAMPLER": "parentbased_traceidratio", "OTEL_TRACES_SAMPLER_ARG": "0.1"}, True),
        (ON | {"OTEL_RESOURCE_ATTRIBUTES": "a=1,b=two words", "OTEL_SERVICE_NAME": "mine"}, True),
    ],
)
def test_spans_are_exported_if_an_endpoint_says_where_to(environ: dict[str, str], wanted: bool) -> None:
    """Without one nothing is looked at: the variables may be meant for others."""
    assert traces.wanted(environ) is wanted


@pytest.mark.parametrize(
    ("variable", "value", "shown"),
    [
        ("OTEL_SDK_DISABLED", "yes", "'yes'"),
        ("OTEL_TRACES_EXPORTER", "console", "'console'"),
        ("OTEL_EXPORTER_OTLP_ENDPOINT", "collector:4317", "(hidden)"),
        ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "http://", "(hidden)"),
        ("OTEL_EXPORTER_OTLP_PROTOCOL", "grpc", "'grpc'"),
        ("OTEL_EXPORTER_OTLP_HEADERS", "secret", "(hidden)"),
        ("OTEL_EXPORTER_OTLP_TIMEOUT", "10s", "'10s'"),
        ("OTEL_EXPORTER_OTLP_TRACES_COMPRESSION", "zip", "'zip'"),
        ("OTEL_TRACES_SAMPLER", "sometimes", "'sometimes'"),
        ("OTEL_TRACES_SAMPLER_ARG", "1.5", "'1.5'"),
        ("OTEL_RESOURCE_ATTRIBUTES", "a", "'a'"),
        ("OTEL_BSP_SCHEDULE_DELAY", "5s", "'5s'"),
        ("OTEL_BSP_MAX_QUEUE_SIZE", "0", "'0'"),
    ],
)
def test_a_bad_variable_is_named_with_what_is_allowed(variable: str, value: str, shown: str) -> None:
    """The SDK would warn and go on with something else. What may hold a secret is not shown."""
    with pytest.raises(SettingsError) as caught:
        traces.wanted(ON | {variable: value})
    assert str(caught.value).startswith(f"{variable}={shown}: expected ")


@pytest.mark.parametrize(
    "environ",
    [
        {"OTEL_EXPORTER_OTLP_PROTOCOL": "grpc"},
        {"OTEL_SPAN_ATTRIBUTE_COUNT_LIMIT": "many"},  # the SDK raises while it is imported
        {"OTEL_BSP_MAX_EXPORT_BATCH_SIZE": "5000"},
    ],
)
def test_a_service_with_bad_variables_does_not_start(environ: dict[str, str]) -> None:
    """Exit 78, which no restart mends, and one line that says why."""
    ran = subprocess.run(
        [sys.executable, "-m", "email_svc"], cwd=ROOT, env=ON | environ, capture_output=True, text=True, timeout=60
    )
    assert ran.returncode == 78
    assert ran.stderr.startswith("email_svc cannot start:\n")
    assert "Traceback" not in ran.stderr


def test_the_sdk_is_not_loaded_for_nothing() -> None:
    """A service that exports nothing does not pay for it."""
    command = (
        "import sys, user_svc.app, email_svc.main; from contracts.runtime import traces\n"
        "with traces.exporting('x'): assert not [m for m in sys.modules if m.startswith('opentelemetry.sdk')]"
    )
    subprocess.run([sys.executable, "-c", command], cwd=ROOT, env={}, check=True)


def test_a_span_that_nobody_wants_leaves_nothing_behind() -> None:
    """No current span outside of one."""
    with traces.span("one", SpanKind.CLIENT):
        assert not get_current_span().is_recording()
    assert structlog.contextvars.get_contextvars() == {}
    assert not get_current_span().get_span_context().is_valid
