"""The spans: what each is called and what it says. The one place for these names.

    POST /v1/users                          SERVER      user_svc; child of the gateway's; or RPC users.create
     └ publish email.welcome.requested      PRODUCER    the relay; parent kept in the headers of the key that asks
        ├ process email.welcome.requested   CONSUMER    email_svc, each delivery one; parent from the queue's headers
        │  ├ smtp connect, smtp send        CLIENT
        │  ├ publish deliveries.outcome     CLIENT      or deliveries.attempts
        │  └ ack email.welcome.requested    CLIENT      or nak, or delete
        └ process email.welcome.requested   CONSUMER    the next delivery

So one mail is one trace. A resend or replay is a new one, linked to the trace of the mail that it repeats. That a
delivery is the child of who published it, and not just linked to it, is allowed where messages are handled one by one.

Nothing here may hold an address, a name of a person, a query, a body or words of a mail server.

Source: OpenTelemetry semantic conventions 1.44 (HTTP stable; messaging in development, without a word for NATS).
"""

from contextlib import AbstractContextManager
from typing import Final

from opentelemetry.trace import Span, SpanKind, get_current_span

from contracts import subjects as s
from contracts.runtime import traces
from contracts.runtime.pull import Message

QUEUE: Final = "email.welcome.requested"
LEDGER: Final = "deliveries"

HTTP_METHOD: Final = "http.request.method"
HTTP_ROUTE: Final = "http.route"
HTTP_STATUS: Final = "http.response.status_code"
RPC_SYSTEM: Final = "rpc.system.name"
RPC_METHOD: Final = "rpc.method"
RPC_STATUS: Final = "rpc.response.status_code"
SYSTEM: Final = "messaging.system"
OPERATION: Final = "messaging.operation.name"
OPERATION_TYPE: Final = "messaging.operation.type"
DESTINATION: Final = "messaging.destination.name"
CONSUMER: Final = "messaging.consumer.group.name"
MESSAGE_ID: Final = "messaging.message.id"
DELIVERY_COUNT: Final = "messaging.nats.delivery_count"
SEQUENCE: Final = "messaging.nats.stream_sequence"
SERVER_ADDRESS: Final = "server.address"
SERVER_PORT: Final = "server.port"
SMTP_PHASE: Final = "smtp.phase"
SMTP_CODE: Final = "smtp.reply_code"
WHY: Final = "mailflow.why"
VERDICT: Final = "mailflow.verdict"


def answering(headers: traces.Headers) -> AbstractContextManager[Span]:
    """A request is answered, over HTTP or the bus; `answered` says later which one it was."""
    return traces.span("request", SpanKind.SERVER, parent=headers)


def answered(method: str, route: str, status: int) -> None:
    """What the request under way came to; `route` is the template of its path, or the subject (method RPC)."""
    one = get_current_span()
    if not one.is_recording():
        return
    one.update_name(f"{method} {route}")
    if method == "RPC":
        one.set_attributes({RPC_SYSTEM: "nats", RPC_METHOD: route, RPC_STATUS: str(status)})
    else:
        one.set_attributes({HTTP_METHOD: method, HTTP_ROUTE: route, HTTP_STATUS: status})
    if status >= 500:
        traces.failed(one, str(status))


def publishing(
    event_id: str, why: str, asked_in: traces.Headers, repeated: traces.Headers | None
) -> AbstractContextManager[Span]:
    """An event is put into the queue. Headers: of the key that asks for it, and of the one whose mail it repeats."""
    attributes = _messaging("publish", "send", QUEUE) | {MESSAGE_ID: event_id, WHY: why}
    return traces.span(f"publish {QUEUE}", SpanKind.PRODUCER, attributes, parent=asked_in, link=repeated)


def processing(message: Message) -> AbstractContextManager[Span]:
    """A delivery of the queue is handled. Its id is said once it is known to be one (`known_as`)."""
    attributes = _messaging("process", "process", QUEUE) | {
        CONSUMER: s.EMAIL_SVC,
        DELIVERY_COUNT: message.delivered,
        SEQUENCE: message.sequence,
    }
    return traces.span(f"process {QUEUE}", SpanKind.CONSUMER, attributes, parent=message.headers)


def known_as(event_id: str) -> None:
    """The event of the delivery that is handled."""
    get_current_span().set_attribute(MESSAGE_ID, event_id)


def judged(verdict: str, *, sent: bool) -> None:
    """The verdict on the attempt under way."""
    one = get_current_span()
    one.set_attribute(VERDICT, verdict)
    if not sent:
        traces.failed(one, verdict)


def recording(row: str) -> AbstractContextManager[Span]:
    """A row of the ledger is written: `outcome` or `attempts`."""
    name = f"{LEDGER}.{row}"
    return traces.span(f"publish {name}", SpanKind.CLIENT, _messaging("publish", "send", name))


def settling(word: str) -> AbstractContextManager[Span]:
    """The broker is told what became of a delivery: `ack`, `nak` or `delete`."""
    return traces.span(f"{word} {QUEUE}", SpanKind.CLIENT, _messaging(word, "settle", QUEUE))


def smtp(step: str, host: str, port: int) -> AbstractContextManager[Span]:
    """A part of a dialogue with the mail server: `connect` or `send`; `replied` says how it ended."""
    return traces.span(f"smtp {step}", SpanKind.CLIENT, {SERVER_ADDRESS: host, SERVER_PORT: port})


def replied(one: Span, phase: str, code: int | None, fault: str | None) -> None:
    """How far the dialogue came, and the server's code or what came instead of one."""
    one.set_attribute(SMTP_PHASE, phase)
    if code is not None:
        one.set_attribute(SMTP_CODE, code)
    if code is None or code >= 400:
        traces.failed(one, str(code or fault))


def _messaging(operation: str, kind: str, destination: str) -> dict[str, str | int]:
    return {SYSTEM: "nats", OPERATION: operation, OPERATION_TYPE: kind, DESTINATION: destination}
