"""What was sent once is read for ever: golden/v1 holds bytes as version 1 sent them, one file a kind; golden/v1.1 and
v1.2 those of what is new or has more in it since.

A field that is renamed, retyped or added without a default fails here. These files are never regenerated; a new kind
gets a new file.
"""

from pathlib import Path
from typing import Any

import msgspec
import pytest

from contracts import control, messages, replica
from contracts.messages import LEDGER_ROW, Attempts, Codec, Outcome, Wire
from email_svc.limiter import RATE

# The last is email_svc's own, but it outlives its processes all the same.
KINDS = messages.KINDS | control.KINDS | replica.KINDS | {"control.rate_limit.v1": RATE}

GOLDEN = Path(__file__).resolve().parents[1] / "golden" / "v1"
FILES = sorted(GOLDEN.parent.glob("*/*.json"))


def _kind(path: Path) -> str:
    return path.name.removesuffix(".json")


def _id(path: Path) -> str:
    return f"{path.parent.name}/{_kind(path)}"


def _within(old: Any, new: Any) -> bool:
    """Whether all that is in `old` is in `new`, which may have fields of its own besides."""
    match old, new:
        case dict(), dict():
            return all(key in new and _within(value, new[key]) for key, value in old.items())
        case list(), list():
            return len(old) == len(new) and all(map(_within, old, new))
    return bool(old == new)


@pytest.mark.parametrize("path", FILES, ids=_id)
def test_old_bytes_are_read_and_written_alike(path: Path) -> None:
    """Decoded with today's codec; encoded again and decoded, it is equal; no field of then is lost."""
    data = path.read_bytes()
    codec = KINDS[_kind(path)]
    found = codec.decode(data)
    assert found.__struct_config__.tag == _kind(path)
    again = codec.encode(found)
    assert codec.decode(again) == found
    assert _within(msgspec.json.decode(data), msgspec.json.decode(again))


def test_a_field_that_is_lost_would_be_found() -> None:
    """At any depth."""
    assert _within({"a": [{"b": 1}]}, {"a": [{"b": 1, "new": 2}], "new": 3})
    assert not _within({"a": [{"b": 1}]}, {"a": [{"new": 2}]})
    assert not _within({"a": [1, 2]}, {"a": [1]})


def test_every_kind_has_a_golden_file() -> None:
    """And every file a kind: none is dropped while a stream may still hold it."""
    assert {_kind(path) for path in FILES} == set(KINDS)


def test_every_kind_is_listed_under_its_tag() -> None:
    """All wire Structs are in KINDS, and each codec decodes the kind it is listed for."""
    ours = ("contracts.", "email_svc.", "user_svc.")
    tags = {kind.__struct_config__.tag for kind in Wire.__subclasses__() if kind.__module__.startswith(ours)}
    assert tags == set(KINDS)


@pytest.mark.parametrize("path", FILES, ids=_id)
def test_another_kind_is_refused(path: Path) -> None:
    """A message is never taken for another kind that has the same fields."""
    body = msgspec.json.decode(path.read_bytes())
    body["kind"] = body["kind"].replace(".v1", ".v2")
    with pytest.raises(msgspec.ValidationError, match="kind"):
        KINDS[_kind(path)].decode(msgspec.json.encode(body))


@pytest.mark.parametrize("path", FILES, ids=_id)
def test_fields_of_the_future_are_ignored(path: Path) -> None:
    """An older reader meets a newer writer during an update."""
    body = msgspec.json.decode(path.read_bytes())
    codec = KINDS[_kind(path)]
    assert codec.decode(msgspec.json.encode(body | {"new_in_v1_7": {"a": [1]}})) == codec.decode(path.read_bytes())


def test_a_new_field_without_a_default_would_be_found() -> None:
    """What these tests are for."""

    class Outcome7(Outcome, frozen=True, kw_only=True, tag="welcome_email.outcome.v1"):
        new: int

    with pytest.raises(msgspec.ValidationError, match="new"):
        Codec(Outcome7).decode((GOLDEN / "welcome_email.outcome.v1.json").read_bytes())


def test_times_without_a_zone_are_refused() -> None:
    """Nobody may guess in which zone it was meant."""
    body = msgspec.json.decode((GOLDEN / "user.erase.v1.json").read_bytes())
    body["asked_at"] = body["asked_at"].removesuffix("Z")
    with pytest.raises(msgspec.ValidationError, match="timezone"):
        KINDS["user.erase.v1"].decode(msgspec.json.encode(body))


def test_a_ledger_row_is_told_by_its_kind() -> None:
    """Attempts or outcome, whatever is the newest."""
    assert isinstance(LEDGER_ROW.decode((GOLDEN / "welcome_email.attempts.v1.json").read_bytes()), Attempts)
    assert isinstance(LEDGER_ROW.decode((GOLDEN / "welcome_email.outcome.v1.json").read_bytes()), Outcome)
