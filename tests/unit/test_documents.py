"""The documents of the contracts: as generated, valid by the official schemas, and true of what was really sent."""

import json
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from jsonschema import Draft7Validator, Draft202012Validator

from contracts import permissions
from contracts.streams import topology
from deploy import documents
from tests.support.processes import ROOT

GOLDEN = sorted((ROOT / "tests" / "golden").glob("*/*.json"))
DOCUMENT: dict[str, Any] = json.loads((ROOT / "contracts" / "asyncapi.json").read_text())


def kind_of(path: Path) -> str:
    return path.name.removesuffix(".json")


def in_version(path: Path) -> str:
    return f"{path.parent.name}/{kind_of(path)}"


def validator(name: str) -> Draft202012Validator:
    """Of one message, by the file as it is in the repository; formats (times) are checked too."""
    schema = json.loads((ROOT / "contracts" / "schemas" / f"{name}.json").read_text())
    return Draft202012Validator(schema, format_checker=Draft202012Validator.FORMAT_CHECKER)


# --- the files -----------------------------------------------------------------------------------------------------


def test_the_files_are_what_the_generator_writes() -> None:
    """Nobody edits them, and nobody forgets to generate them: `uv run python deploy/documents.py`."""
    wanted = documents.documents()
    there = [documents.FOLDER / "asyncapi.json", *(documents.FOLDER / "schemas").iterdir()]
    assert {path.relative_to(documents.FOLDER).as_posix(): path.read_text() for path in there} == wanted


def test_a_second_run_changes_nothing_and_removes_what_is_no_more(tmp_path: Path) -> None:
    """A schema of a message that is gone would be believed."""
    documents.write(tmp_path)
    first = {path: path.read_bytes() for path in tmp_path.rglob("*.json")}
    (tmp_path / "schemas" / "gone.v0.json").write_text("{}")
    documents.write(tmp_path)
    assert {path: path.read_bytes() for path in tmp_path.rglob("*.json")} == first


# --- schemas -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", sorted(documents.STRUCTS))
def test_each_schema_is_one(name: str) -> None:
    """By the metaschema of 2020-12; with a description."""
    schema = validator(name).schema
    Draft202012Validator.check_schema(schema)
    assert schema["$defs"][schema["$ref"].rpartition("/")[2]]["description"]


def test_every_kind_has_a_schema() -> None:
    """Whatever was ever sent."""
    assert {kind_of(path) for path in GOLDEN} <= set(documents.STRUCTS)


@pytest.mark.parametrize("path", GOLDEN, ids=in_version)
def test_what_was_sent_fits_its_schema(path: Path) -> None:
    """And what is like it, but misses a field, is of another kind or has another type, does not."""
    check, sent = validator(kind_of(path)), json.loads(path.read_bytes())
    assert list(check.iter_errors(sent)) == []
    assert check.is_valid(sent | {"new_in_v1_7": 1})
    required = check.schema["$defs"][check.schema["$ref"].rpartition("/")[2]]["required"]
    for field in required:
        assert not check.is_valid({name: value for name, value in sent.items() if name != field}), field
        assert not check.is_valid(sent | {field: ["neither text nor number"]}), field
    assert not check.is_valid(sent | {"kind": sent["kind"].replace(".v1", ".v2")})
    for field, value in sent.items():
        if isinstance(value, str) and re.match(r"\d{4}-\d\d-\d\dT", value):
            assert not check.is_valid(sent | {field: "yesterday"}), field


def test_fields_are_described() -> None:
    """By the text under them in the code."""
    registered = validator("user.registered.v1").schema["$defs"]["UserRegistered"]["properties"]
    assert registered["email"]["description"] == "Where the mail goes: ASCII, the domain in lower case."


# --- AsyncAPI ------------------------------------------------------------------------------------------------------


def test_the_document_is_valid() -> None:
    """By AsyncAPI's own schema of 3.0; it would notice what is none."""
    folder = os.environ.get("ASYNCAPI_SCHEMAS")
    if not folder:
        pytest.skip("ASYNCAPI_SCHEMAS is not set: the folder `schemas` of the npm package @asyncapi/specs")
    check = Draft7Validator(json.loads((Path(folder) / "3.0.0.json").read_text()))
    assert [f"{error.json_path}: {error.message[:300]}" for error in check.iter_errors(DOCUMENT)] == []
    small = {"asyncapi": "3.0.0", "info": DOCUMENT["info"]}
    channel = {"$ref": "#/channels/erase"}
    discriminated = {"discriminator": {"propertyName": "kind"}}  # as OpenAPI has it
    for good, bad in (
        ({"operations": {"a": {"action": "send", "channel": channel}}}, {"operations": {"a": {"action": "send"}}}),
        ({"components": {"schemas": {"A": {}}}}, {"components": {"schemas": {"A": discriminated}}}),
    ):
        assert check.is_valid(small | good)
        assert not check.is_valid(small | bad)


def references(node: Any) -> Iterator[str]:
    """Every $ref in a document."""
    if isinstance(node, dict):
        if isinstance(node.get("$ref"), str):
            yield node["$ref"]
        for value in node.values():
            yield from references(value)
    elif isinstance(node, list):
        for value in node:
            yield from references(value)


def test_every_reference_leads_somewhere() -> None:
    """Inside of the document: it is complete by itself."""
    found = set(references(DOCUMENT))
    assert len(found) > 50
    for reference in found:
        assert reference.startswith("#/")
        node = DOCUMENT
        for step in reference.removeprefix("#/").split("/"):
            node = node[step]


def test_parameters_are_those_of_the_address() -> None:
    """Each is described where it is used."""
    for channel in DOCUMENT["channels"].values():
        assert set(re.findall(r"\{(\w+)\}", channel["address"] or "")) == set(channel.get("parameters", {}))


def test_every_message_and_every_subject_has_its_place() -> None:
    """No message without a channel, no subject of a stream, and none that a service may use, is left out."""
    channels = documents.CHANNELS.values()
    said = {name for channel in channels for name in (*channel.messages, *channel.answers)}
    assert said == set(documents.STRUCTS) | set(documents.OTHERS)
    assert set(DOCUMENT["x-streams"]) == {stream.name for stream in topology()}
    kept = [subject for stream in topology() for subject in stream.fixed["subjects"]]
    rights = [permissions.rights(service) for service in documents.SERVICES]
    used = [subject for right in rights for subject in (*right.publish, *right.subscribe)]
    for subject in (*kept, *used):
        if not subject.startswith(("$JS.", "$SRV.", "_INBOX")):
            assert any(documents.overlap(subject, channel.address) for channel in channels), subject


def test_every_channel_is_used() -> None:
    """Somebody receives what is sent there; sent by a service, the broker (a republished change) or a client."""
    senders = {op["channel"]["$ref"] for op in DOCUMENT["operations"].values() if op["action"] == "send"}
    receivers = {op["channel"]["$ref"] for op in DOCUMENT["operations"].values() if op["action"] == "receive"}
    every = {f"#/channels/{name}" for name in documents.CHANNELS}
    assert every - receivers == set()
    assert {name.removeprefix("#/channels/") for name in every - senders} == {
        *(f"{record}-changed" for record in ("breaker", "rate-limit", "downtime")),
        *("users-create", "users-get"),
    }


def test_who_does_what_is_what_the_broker_allows() -> None:
    """The way of a mail, as the document tells it."""
    operations = DOCUMENT["operations"]
    assert "`welcome-relay`" in operations["user_svc-receives-registration"]["description"]
    assert "`email-svc`" in operations["email_svc-receives-welcome-requested"]["description"]
    assert "outcome.erased" in operations["user_svc-sends-outcome"]["description"]
    assert "outcome.sent" not in operations["user_svc-sends-outcome"]["description"]
    for name in ("email_svc-sends-registration", "email_svc-receives-registration", "user_svc-sends-attempts"):
        assert name not in operations
    create = operations["user_svc-receives-users-create"]
    assert create["bindings"]["nats"]["queue"] == "user_svc"
    assert create["reply"]["channel"] == {"$ref": "#/channels/users-create-answer"}


@pytest.mark.parametrize(
    ("one", "other", "both"),
    [
        ("a.b", "a.b", True),
        ("a.*", "a.{x}", True),
        ("a.b", "a.{x}", True),
        ("a.>", "a.b.c", True),
        ("a.b.{x}", "a.>", True),
        ("a.b", "a", False),
        ("a.*", "a.b.c", False),
        ("a.b.*", "a.c.{x}", False),
        ("b.>", "a.b", False),
    ],
)
def test_patterns_overlap(one: str, other: str, both: bool) -> None:
    """As the broker matches them, token by token."""
    assert documents.overlap(one, other) is both
    assert documents.overlap(other, one) is both
