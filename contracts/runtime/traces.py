"""Traces: spans of what is done here, the W3C context that joins them over processes, and their export by OTLP/HTTP.

Off unless an endpoint is set: nothing of the SDK is loaded then, and a span is no more than the context that came in,
which is handed on all the same. Whoever is next may export.

- A span holds no words: of an exception its class only, for its text may quote an address.
- The exporter has a thread of its own. A collector that is dead or slow costs spans, never a mail, and at most
  `_FLUSH_S` at the exit.
- Only `traceparent` and `tracestate` travel. Not `baggage`, which holds whatever a client likes.

The OTEL_* variables mean what the SDK says; those that it would pass over with a warning stop the start.
"""

import contextlib
import os
import re
import threading
from collections.abc import Iterator, Mapping
from typing import Final

from opentelemetry import trace
from opentelemetry.context import Context
from opentelemetry.trace import INVALID_SPAN, Link, NoOpTracer, Span, SpanKind, StatusCode, Tracer, format_trace_id
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from contracts.runtime.settings import SettingsError

_FLUSH_S = 1.0
"""What is not exported within it is lost: the exit does not wait for a collector."""
FIELDS: Final = ("traceparent", "tracestate")
"""The headers that are read and written."""
_STATE_CHARS = 512
"""What W3C wants to be handed on at least."""
_ADDRESS = re.compile("@|%40")
_W3C = TraceContextTextMapPropagator()
_tracer: Tracer = NoOpTracer()
_NOTHING = contextlib.nullcontext(INVALID_SPAN)

Headers = Mapping[str, str]
"""Of a message or a request, by lower-case names; what of them is no trace context is not looked at."""

ERROR_TYPE: Final = "error.type"


def span(
    name: str,
    kind: SpanKind,
    attributes: Mapping[str, str | int] | None = None,
    *,
    parent: Headers | None = None,
    link: Headers | None = None,
) -> contextlib.AbstractContextManager[Span]:
    """A span around the body, which makes it the current one.

    Args:
        parent: of whose context it is a child; a new trace begins where they have none, or garbage. None: of the
            current span.
        link: another context that it refers to.
    """
    if isinstance(_tracer, NoOpTracer) and not (parent and parent.get("traceparent")):
        return _NOTHING  # what is current stays so, and there is nothing to hand on: 0.2 us instead of 10
    return _span(name, kind, attributes, parent, link)


@contextlib.contextmanager
def _span(
    name: str,
    kind: SpanKind,
    attributes: Mapping[str, str | int] | None,
    parent: Headers | None,
    link: Headers | None,
) -> Iterator[Span]:
    linked = [] if link is None else [Link(trace.get_current_span(_context(link)).get_span_context())]
    started = _tracer.start_span(
        name,
        context=None if parent is None else _context(parent),
        kind=kind,
        attributes=attributes,
        links=[one for one in linked if one.context.is_valid],
    )
    with trace.use_span(started, end_on_exit=True, record_exception=False, set_status_on_exception=False):
        try:
            yield started
        except Exception as exc:
            failed(started, type(exc).__qualname__)
            raise


def failed(one: Span, error_type: str) -> None:
    """Marks a span as failed, by the name of a class or kind of error: never by words."""
    one.set_attribute(ERROR_TYPE, error_type)
    one.set_status(StatusCode.ERROR)


def headers() -> dict[str, str]:
    """The current span's context as headers for what it sends; empty where there is none."""
    carrier: dict[str, str] = {}
    if trace.get_current_span() is not INVALID_SPAN:
        _W3C.inject(carrier)
    return carrier


def trace_id() -> str:
    """The current trace's id in hex if it is sampled, so that somebody has it; else empty."""
    context = trace.get_current_span().get_span_context()
    return format_trace_id(context.trace_id) if context.is_valid and context.trace_flags.sampled else ""


def exemplar() -> dict[str, str] | None:
    """What a histogram keeps beside an observation, so that one can look at the trace behind it."""
    found = trace_id()
    return {"trace_id": found} if found else None


def _context(found: Headers) -> Context:
    carrier = {name: found[name] for name in FIELDS if name in found}
    if "tracestate" in carrier:
        # A client's to fill, with an address if it likes. In a key (tenant@vendor) it is none: no dot may be there.
        members = carrier["tracestate"].split(",")
        kept = ",".join(one for one in members if not _ADDRESS.search(one.partition("=")[2]))
        carrier["tracestate"] = kept if len(kept) <= _STATE_CHARS else ""  # it is stored with every record
    return _W3C.extract(carrier, Context())


# --- export --------------------------------------------------------------------------------------------------------

_PAIRS = r"\s*[^=,\s]+\s*=[^,]*(,\s*[^=,\s]+\s*=[^,]*)*,?\s*"
_URL = r"https?://[^\s/?#@]+(/\S*)?"
_POSITIVE = r"0*[1-9][0-9]{0,8}"
_ALLOWED: tuple[tuple[str, str, str], ...] = (
    ("OTEL_SDK_DISABLED", r"(?i:true|false)", "true or false"),
    ("OTEL_TRACES_EXPORTER", r"otlp|none", "otlp or none"),
    ("OTEL_EXPORTER_OTLP_*ENDPOINT", _URL, "a URL like http://collector:4318"),
    ("OTEL_EXPORTER_OTLP_*PROTOCOL", r"http/protobuf", "http/protobuf (OTLP over HTTP, mostly port 4318)"),
    ("OTEL_EXPORTER_OTLP_*HEADERS", _PAIRS, "name=value,name=value"),
    ("OTEL_EXPORTER_OTLP_*TIMEOUT", r"[0-9]{1,4}(\.[0-9]+)?", "seconds"),
    ("OTEL_EXPORTER_OTLP_*COMPRESSION", r"none|gzip|deflate", "none, gzip or deflate"),
    (
        "OTEL_TRACES_SAMPLER",
        r"(parentbased_)?(always_on|always_off|traceidratio)",
        "always_on, always_off or traceidratio, each also with parentbased_ before it",
    ),
    ("OTEL_TRACES_SAMPLER_ARG", r"0?\.[0-9]+|[01](\.0*)?", "a number from 0 to 1"),
    ("OTEL_RESOURCE_ATTRIBUTES", _PAIRS, "name=value,name=value"),
    ("OTEL_BSP_SCHEDULE_DELAY", _POSITIVE, "milliseconds"),
    ("OTEL_BSP_MAX_QUEUE_SIZE", _POSITIVE, "a number of spans"),
    ("OTEL_BSP_MAX_EXPORT_BATCH_SIZE", _POSITIVE, "a number of spans, at most OTEL_BSP_MAX_QUEUE_SIZE"),
)
"""A variable, what it may be, and that in words. `*`: the variable with TRACES_ there goes before the one without."""


def wanted(environ: Mapping[str, str]) -> bool:
    """Whether spans are to be exported.

    Raises:
        SettingsError: names each bad variable, its value (unless it may be a secret) and what is allowed.
    """
    if not _set(environ, "OTEL_EXPORTER_OTLP_*ENDPOINT")[1]:
        return False
    problems = []
    for name, pattern, allowed in _ALLOWED:
        variable, value = _set(environ, name)
        if value and re.fullmatch(pattern, value) is None:
            shown = "(hidden)" if re.search("HEADERS|ENDPOINT", variable) else repr(value)
            problems.append(f"{variable}={shown}: expected {allowed}")
    if problems:
        raise SettingsError("\n".join(problems))
    disabled = environ.get("OTEL_SDK_DISABLED", "").lower() == "true"
    return not disabled and environ.get("OTEL_TRACES_EXPORTER") != "none"


def _set(environ: Mapping[str, str], name: str) -> tuple[str, str]:
    variables = [name.replace("*", "TRACES_"), name.replace("*", "")]
    return next(((v, environ[v]) for v in variables if environ.get(v)), (variables[-1], ""))


@contextlib.contextmanager
def exporting(service: str) -> Iterator[None]:
    """Exports the spans that are made in the body, if the environment says where to.

    Raises:
        SettingsError: an OTEL_* variable makes no sense.
    """
    global _tracer
    if not wanted(os.environ):
        yield
        return
    try:
        # Here, for it costs 0.2 s that most starts can do without; and it reads some variables while it is imported.
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
        from opentelemetry.sdk.resources import SERVICE_NAME, Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor

        resource = Resource.create()
        if str(resource.attributes[SERVICE_NAME]).startswith("unknown_service"):
            resource = resource.merge(Resource({SERVICE_NAME: service}))
        provider = TracerProvider(resource=resource, shutdown_on_exit=False)
        provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
    except (ValueError, OSError) as exc:
        raise SettingsError(f"OTEL_*: {exc}") from exc
    _tracer = provider.get_tracer("mailflow")
    try:
        yield
    finally:
        _tracer = NoOpTracer()
        # The SDK's own limit is 30 s, and not for us to change. Its threads are daemons, as is this one.
        flushing = threading.Thread(target=provider.shutdown, name="traces-flush", daemon=True)
        flushing.start()
        flushing.join(_FLUSH_S)
