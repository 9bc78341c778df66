"""Log lines: structlog, console on a terminal, else one JSON object a line. No address of a person ever gets in."""

import logging
import re
import sys
from typing import Any, Literal

import msgspec
import structlog
from opentelemetry import trace
from structlog.typing import EventDict, Processor, WrappedLogger

Format = Literal["console", "json"]

# Begins where a word does: tried from each of its letters, a word of a megabyte would take an hour.
_ADDRESS = re.compile(r"(?<![^\s<>\"'`=,:;()\[\]@])[^\s<>\"'`=,:;()\[\]@]+@[^\s<>\"'`,;()\[\]]+")
_VALUE_MAX_CHARS = 10_000


def without_addresses(text: str) -> str:
    """The text with `<address>` for each address in it: words that came from outside may hold some."""
    return _ADDRESS.sub("<address>", text) if "@" in text else text


def _without_addresses(_logger: WrappedLogger, _method: str, event: EventDict) -> EventDict:
    """Last line of defence: a library's message or a traceback may quote what it was given."""
    for key, value in event.items():
        if isinstance(value, str):
            event[key] = without_addresses(value)[:_VALUE_MAX_CHARS]
    return event


def _with_trace(_logger: WrappedLogger, _method: str, event: EventDict) -> EventDict:
    """Where the line was written; also when the trace is another's, and nothing is exported here."""
    context = trace.get_current_span().get_span_context()
    if context.is_valid:
        event["trace_id"] = trace.format_trace_id(context.trace_id)
        event["span_id"] = trace.format_span_id(context.span_id)
    return event


def _json(value: Any, **_: Any) -> str:
    return msgspec.json.encode(value, enc_hook=repr).decode()


def configure(*, service: str, level: str, form: Format | None) -> None:
    """Sets up structlog, and the standard library's logging so that libraries' lines look like ours.

    Args:
        service: goes into every line.
        level: a name of the standard library's levels.
        form: None means console on a terminal, else json.
    """
    if form is None:
        form = "console" if sys.stderr.isatty() else "json"
    shared: list[Processor] = [
        structlog.contextvars.merge_contextvars,
        _with_trace,
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
    ]
    console = form == "console"
    last: list[Processor] = [
        structlog.processors.format_exc_info,
        _without_addresses,
        structlog.dev.ConsoleRenderer() if console else structlog.processors.JSONRenderer(serializer=_json),
    ]
    number = logging.getLevelNamesMapping()[level]
    structlog.configure(
        # Straight to the stream: the way through the standard library's logging costs twice as much as the line.
        processors=[*shared, *last],
        logger_factory=structlog.WriteLoggerFactory(sys.stderr),
        wrapper_class=structlog.make_filtering_bound_logger(number),
        cache_logger_on_first_use=True,
    )
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=shared,
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, *last],
        )
    )
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(number)
    # One line a request is ours to write, with the request's id; uvicorn's repeats it.
    logging.getLogger("uvicorn.access").disabled = True
    logging.getLogger("uvicorn.error").setLevel(max(number, logging.WARNING))
    logging.getLogger("nats").setLevel(max(number, logging.ERROR))
    # Its warnings quote what a client sent; and a dead collector is worth one line a batch, not one a try.
    logging.getLogger("opentelemetry").setLevel(max(number, logging.ERROR))
    structlog.contextvars.bind_contextvars(service=service)
