"""Writes what others read of our contracts: contracts/asyncapi.json, and a JSON Schema a message in contracts/schemas.

    uv run python deploy/documents.py        a second run changes nothing

Made of what the code goes by: payloads are the Structs with their docstrings, addresses the names in
contracts.subjects, streams and consumers the topology. Who sends and who receives follows from the rights that the
broker enforces. It stands outside of `contracts` because a few records and the shapes of the API are a service's own.

Source: AsyncAPI 3.0, its NATS bindings 0.1; JSON Schema 2020-12.
"""

import ast
import functools
import inspect
import json
import re
import textwrap
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import msgspec

from contracts import control, messages, permissions, replica
from contracts import subjects as s
from contracts.runtime import traces
from contracts.streams import Service, Stream, topology
from email_svc import limiter
from email_svc.policies import limit
from user_svc import api

FOLDER = Path(__file__).resolve().parents[1] / "contracts"
SERVICES: tuple[Service, ...] = ("user_svc", "email_svc")

_MODULES: tuple[ModuleType, ...] = (messages, control, replica, limiter, limit, api)
"""Where the Structs are defined."""


def _structs() -> Iterator[type[msgspec.Struct]]:
    for module in _MODULES:
        for found in vars(module).values():
            if inspect.isclass(found) and issubclass(found, msgspec.Struct) and found.__module__ == module.__name__:
                yield found


STRUCTS: dict[str, type[msgspec.Struct]] = {
    **{str(each.__struct_config__.tag): each for each in _structs() if messages.Wire in each.__bases__},
    "users.create.request": api.NewUser,
    "users.get.request": api.WhichUser,
    "user": api.UserView,
    "problem": api.ProblemView,
}
"""Every message that is JSON, by its name: that of its kind, where it has one."""

_TEXT = {"type": "string"}
_FINGERPRINT = {"type": "string", "pattern": "^[a-z2-7]{26}$"}
OTHERS: dict[str, dict[str, Any]] = {
    "fingerprint": {
        "summary": "A keyed hash: of USER_ID_KEY, or of the payload that came with an Idempotency-Key.",
        "contentType": "text/plain",
        "payload": _FINGERPRINT,
    },
    "quarantined": {
        "summary": "The bytes of a message of the queue that cannot be trusted, as they were; kept for 7 days.",
        "contentType": "application/octet-stream",
        "headers": {"type": "object", "properties": {s.HEADER_REASON: _TEXT, s.HEADER_SUBJECT: _TEXT}},
    },
}
"""Messages that are no JSON."""

_TRACED = {name: {"type": "string", "description": "W3C Trace Context."} for name in traces.FIELDS}
_ASKED = {"X-Request-ID": _TEXT, **_TRACED}
HEADERS: dict[str, dict[str, Any]] = {
    **dict.fromkeys(
        ("user.registered.v1", "welcome_email.again.v1", "user.erase.v1", "welcome_email.requested.v1"), _TRACED
    ),
    "users.create.request": {"Idempotency-Key": _TEXT | {"maxLength": 255}, **_ASKED},
    "users.get.request": _ASKED,
    "user": {"Status": {"enum": ["200", "201"]}, "Location": _TEXT, "Content-Type": _TEXT, "X-Request-ID": _TEXT},
    "problem": {
        "Nats-Service-Error-Code": {"type": "string", "description": "The HTTP status."},
        "Nats-Service-Error": {"type": "string", "description": "The problem's title."},
        "Retry-After": {"type": "string", "description": "Whole seconds; only with 503."},
        "Content-Type": _TEXT,
        "X-Request-ID": _TEXT,
    },
}

PARAMETERS: dict[str, dict[str, Any]] = {
    "user_id": {"description": "26 characters of lower-case base32."},
    "revision": {"description": "The sequence of the key in bucket USERS that asked for the mail."},
    "nonce": {"description": "`<UTC date>-<1|2|3>` of a resend, `r<revision of the dead event>` of a replay."},
    "key_hash": {"description": "A keyed hash of the Idempotency-Key."},
    "sequence": {"description": "In the stream WELCOME_EMAILS."},
    "outcome": {"description": "How the mail ended.", "enum": [str(state) for state in messages.State]},
    "ended": {"description": "How the mail ended.", "enum": ["dead", "expired"]},
    "service": {"description": "Whose operator acted.", "enum": list(SERVICES)},
    "action": {"description": "What was done, e.g. `breaker-open`."},
}


class Channel(msgspec.Struct, frozen=True):
    """A subject, and what is said there."""

    address: str
    summary: str
    messages: tuple[str, ...]
    answers: tuple[str, ...] = ()
    """Of a request: what comes to its reply subject."""
    queue: str | None = None
    """The queue group of those who subscribe."""


_EVENT = "{user_id}.{revision}"
_TALK = s.ONE_OF_USER_SVC
_RECORDS = {
    "breaker": (s.BREAKER_KEY, "control.breaker.v1", "the circuit breaker"),
    "rate-limit": (s.RATE_LIMIT_KEY, "control.rate_limit.v1", "the rate limit"),
    "downtime": (s.DOWNTIME_KEY, "control.downtime.v1", "the simulated downtime"),
}
_ANSWER = ("breaker.answer.v1",)

CHANNELS: dict[str, Channel] = {
    "users-create": Channel(
        s.USERS_CREATE,
        "Register a user: the body of POST /v1/users, the same rules and problems.",
        ("users.create.request",),
        ("user", "problem"),
        _TALK,
    ),
    "users-get": Channel(
        s.USERS_GET,
        "One user and the state of the welcome mail: the same as GET /v1/users/{id}.",
        ("users.get.request",),
        ("user", "problem"),
        _TALK,
    ),
    "registration": Channel(
        s.user_key("{user_id}"), "A user, and the request for the welcome mail.", ("user.registered.v1",)
    ),
    "again": Channel(
        s.again_key("{user_id}", "{nonce}"), "Asks for another mail: a resend or a replay.", ("welcome_email.again.v1",)
    ),
    "erase": Channel(s.erase_key("{user_id}"), "Asks for an erasure; goes when it is done.", ("user.erase.v1",)),
    "user-id-key": Channel(
        s.USER_ID_KEY_FINGERPRINT, "Of the USER_ID_KEY that all ids were made with.", ("fingerprint",)
    ),
    "idempotency": Channel(
        s.idempotency_key("{key_hash}"), "Which payload an Idempotency-Key came with; for 24 h.", ("fingerprint",)
    ),
    "welcome-requested": Channel(
        s.welcome_requested(_EVENT),
        "The queue: a mail to be sent. Its own subject, so that the queue refuses a second copy.",
        ("welcome_email.requested.v1",),
    ),
    "attempts": Channel(
        s.attempts(_EVENT), "What was tried, while the mail is pending.", ("welcome_email.attempts.v1",)
    ),
    "outcome": Channel(
        s.outcome(_EVENT, "{outcome}"),
        "How a mail ended. Written once: the broker refuses a second outcome.",
        ("welcome_email.outcome.v1",),
    ),
    "dead-letter": Channel(
        s.dead_letter(_EVENT, "{ended}"), "A mail that needs a person.", ("welcome_email.dead_letter.v1",)
    ),
    "quarantine": Channel(
        s.QUARANTINE.replace("*", "{sequence}"), "What was in the queue and is no event of ours.", ("quarantined",)
    ),
    "audit": Channel(s.audited("{service}", "{action}"), "What an operator did; for 90 days.", ("audit.v1",)),
    **{name: Channel(key, f"The record of {what}.", (kind,)) for name, (key, kind, what) in _RECORDS.items()},
    **{
        f"{name}-changed": Channel(
            s.changed(key), f"Each change of the record of {what}, republished by the broker with its time.", (kind,)
        )
        for name, (key, kind, what) in _RECORDS.items()
    },
    "breaker-ask": Channel(s.ASK, "A worker asks one user_svc for leave to try.", ("breaker.ask.v1",), _ANSWER, _TALK),
    "breaker-ask-all": Channel(s.ASK_ALL, "The same of all, when one did not answer.", ("breaker.ask.v1",), _ANSWER),
    "breaker-result": Channel(
        s.RESULT, "What came of a permit, to one user_svc.", ("breaker.result.v1",), _ANSWER, _TALK
    ),
    "breaker-result-all": Channel(
        s.RESULT_ALL,
        "The same to all; without a reply subject from a worker that ends.",
        ("breaker.result.v1",),
        _ANSWER,
    ),
    "breaker-report": Channel(s.REPORT, "Outcomes of attempts that needed no leave.", ("breaker.report.v1",)),
    "replicas-ask": Channel(
        s.REPLICAS_ASK,
        "user_svc asks every process of both services how it is.",
        ("replica.ask.v1",),
        ("replica.answer.v1",),
    ),
}


# --- who sends, who receives ---------------------------------------------------------------------------------------


def overlap(one: str, other: str) -> bool:
    """Whether a subject can match both patterns; a parameter of an address is a token of any kind."""
    left, right = (re.sub(r"\{\w+\}", "*", pattern).split(".") for pattern in (one, other))
    for a, b in zip(left, right, strict=False):
        if ">" in (a, b):
            return True
        if a != b and "*" not in (a, b):
            return False
    return len(left) == len(right)


def stream_of(address: str) -> Stream | None:
    """The stream that keeps what is sent there; None: core NATS, kept by none."""
    found = [each for each in topology() if any(overlap(address, subject) for subject in each.fixed["subjects"])]
    assert len(found) <= 1, address
    return found[0] if found else None


def sends(service: Service, address: str) -> list[str]:
    """The subjects there that a service may publish on."""
    return [subject for subject in permissions.rights(service).publish if overlap(address, subject)]


def receives(service: Service, address: str) -> list[str]:
    """The ways in which a service gets what is sent there."""
    rights = permissions.rights(service)
    ways = ["subscribes" for subject in rights.subscribe if overlap(address, subject)][:1]
    if (stream := stream_of(address)) is not None:
        for consumer in stream.consumers:
            filters = consumer.config.get("filter_subjects", [consumer.config.get("filter_subject", ">")])
            pulled = f"$JS.API.CONSUMER.MSG.NEXT.{stream.name}.{consumer.name}" in rights.publish
            if pulled and any(overlap(address, each) for each in filters):
                ways.append(f"pulls by the durable consumer `{consumer.name}` of {stream.name}")
        if f"$JS.API.STREAM.MSG.GET.{stream.name}" in rights.publish:
            ways.append(f"reads from {stream.name} (STREAM.MSG.GET, which the stream's leader answers)")
    return ways


# --- schemas -------------------------------------------------------------------------------------------------------


def _documented(schemas: dict[str, Any]) -> dict[str, Any]:
    """Schemas by class name, with the docstrings of fields, which msgspec does not see."""
    for struct in _structs():
        properties = schemas.get(struct.__name__, {}).get("properties", {})
        for field, text in _field_docs(struct).items():
            if field in properties:
                properties[field]["description"] = text
    plain: dict[str, Any] = _plain(schemas)
    return plain


def _plain(schema: Any) -> Any:
    """Without `discriminator`, which is OpenAPI's: AsyncAPI has another of that name, and the tag tells as much."""
    if isinstance(schema, dict):
        return {key: _plain(value) for key, value in schema.items() if key != "discriminator"}
    return [_plain(each) for each in schema] if isinstance(schema, list) else schema


@functools.cache
def _field_docs(struct: type[msgspec.Struct]) -> dict[str, str]:
    """The texts that stand under the fields of a class."""
    body = ast.parse(textwrap.dedent(inspect.getsource(struct))).body[0]
    assert isinstance(body, ast.ClassDef)
    found = {}
    for field, below in zip(body.body, body.body[1:], strict=False):
        match field, below:
            case ast.AnnAssign(ast.Name(name)), ast.Expr(ast.Constant(str(text))):
                found[name] = " ".join(text.split())
    return found


def schema(name: str) -> dict[str, Any]:
    """The JSON Schema of one message."""
    made = msgspec.json.schema(STRUCTS[name])
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "$id": f"urn:mailflow:schema:{name}",
        "$ref": made["$ref"],
        "$defs": _documented(made["$defs"]),
    }


# --- AsyncAPI ------------------------------------------------------------------------------------------------------


def asyncapi() -> dict[str, Any]:
    """The document."""
    refs, schemas = msgspec.json.schema_components(STRUCTS.values(), ref_template="#/components/schemas/{name}")
    payloads = dict(zip(STRUCTS, refs, strict=True))
    return {
        "asyncapi": "3.0.0",
        "info": {
            "title": "MailFlow",
            "version": "1",
            "description": "What user_svc and email_svc say to each other over NATS, what they keep in its streams, "
            "and what clients may ask of user_svc. An operation's tag says whose it is.",
            "license": {"name": "MIT"},
        },
        "defaultContentType": "application/json",
        "servers": {"local": {"host": "127.0.0.1:4222", "protocol": "nats", "description": "The broker of `just up`."}},
        "channels": {name: made for key, channel in CHANNELS.items() for name, made in _channels(key, channel)},
        "operations": {name: made for key, channel in CHANNELS.items() for name, made in _operations(key, channel)},
        "components": {
            "messages": {name: _message(name, payload) for name, payload in payloads.items()} | OTHERS,
            "schemas": _documented(schemas),
        },
        "x-streams": {each.name: _stream(each) for each in topology()},
    }


def _channels(key: str, channel: Channel) -> Iterator[tuple[str, dict[str, Any]]]:
    made: dict[str, Any] = {
        "address": channel.address,
        "summary": channel.summary,
        "messages": _named(channel.messages),
    }
    if names := re.findall(r"\{(\w+)\}", channel.address):
        made["parameters"] = {name: PARAMETERS[name] for name in names}
    if (stream := stream_of(channel.address)) is not None:
        made["x-stream"] = stream.name
    yield key, made
    if channel.answers:
        about = f"The inbox that a request on `{channel.address}` names as its reply subject."
        yield f"{key}-answer", {"address": None, "summary": about, "messages": _named(channel.answers)}


def _named(names: tuple[str, ...]) -> dict[str, Any]:
    return {name: {"$ref": f"#/components/messages/{name}"} for name in names}


def _operations(key: str, channel: Channel) -> Iterator[tuple[str, dict[str, Any]]]:
    for service in SERVICES:
        if subjects := sends(service, channel.address):
            text = f"It publishes on {', '.join(f'`{subject}`' for subject in subjects)}."
            yield f"{service}-sends-{key}", _operation("send", service, key, channel, text)
        if ways := receives(service, channel.address):
            made = _operation("receive", service, key, channel, f"It {'; '.join(ways)}.")
            if channel.queue is not None:
                made["bindings"] = {"nats": {"queue": channel.queue, "bindingVersion": "0.1.0"}}
            yield f"{service}-receives-{key}", made


def _operation(action: str, service: Service, key: str, channel: Channel, description: str) -> dict[str, Any]:
    made: dict[str, Any] = {
        "action": action,
        "channel": {"$ref": f"#/channels/{key}"},
        "messages": [{"$ref": f"#/channels/{key}/messages/{name}"} for name in channel.messages],
        "tags": [{"name": service}],
        "description": description,
    }
    if channel.answers:
        answer = f"#/channels/{key}-answer"
        made["reply"] = {
            "channel": {"$ref": answer},
            "messages": [{"$ref": f"{answer}/messages/{name}"} for name in channel.answers],
        }
    return made


def _message(name: str, payload: dict[str, Any]) -> dict[str, Any]:
    made: dict[str, Any] = {"name": name, "payload": payload}
    if name == "problem":
        made["contentType"] = "application/problem+json"
    if name in HEADERS:
        made["headers"] = {"type": "object", "properties": HEADERS[name]}
    return made


def _stream(stream: Stream) -> dict[str, Any]:
    return {
        "owner": stream.owner,
        "used_by": list(stream.used_by),
        "config": stream.fixed | stream.config,
        "consumers": {consumer.name: consumer.config for consumer in stream.consumers},
    }


# --- files ---------------------------------------------------------------------------------------------------------


def documents() -> dict[str, str]:
    """Path under `contracts` and text of each file."""
    made = {"asyncapi.json": asyncapi(), **{f"schemas/{name}.json": schema(name) for name in STRUCTS}}
    return {path: json.dumps(document, indent=2, ensure_ascii=False) + "\n" for path, document in made.items()}


def write(folder: Path) -> None:
    """Writes all of them, and removes schemas of messages that are no more."""
    wanted = documents()
    (folder / "schemas").mkdir(parents=True, exist_ok=True)
    for path in (folder / "schemas").glob("*.json"):
        if f"schemas/{path.name}" not in wanted:
            path.unlink()
    for name, text in wanted.items():
        (folder / name).write_text(text, encoding="utf-8")


if __name__ == "__main__":
    write(FOLDER)
