"""Who may import what: the table of the style guide, held against the files as they are."""

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = ("contracts", "user_svc", "email_svc")
WIRE = {"msgspec", "contracts.messages", "contracts.subjects", "contracts.control"}
PLUMBING = {"structlog", "opentelemetry", "prometheus_client", "nats", "nkeys", "starlette", "uvicorn", "uvloop"}
PURE = {"msgspec", "contracts.messages", "contracts.control"}

# Path (or folder) and all that it may import besides the standard library. The first line that fits holds.
ALLOWED: list[tuple[str, set[str]]] = [
    ("contracts/messages.py", WIRE),
    ("contracts/subjects.py", WIRE),
    ("contracts/control.py", WIRE),
    ("contracts/runtime/", {"msgspec", "contracts.runtime"} | PLUMBING),  # no word of mail: not even the wire
    ("contracts/replica.py", WIRE),
    ("contracts/presence.py", WIRE | PLUMBING | {"contracts.runtime", "contracts.replica"}),
    ("contracts/audit.py", WIRE | PLUMBING | {"contracts.runtime", "starlette"}),
    ("contracts/downtime.py", WIRE | PLUMBING | {"contracts.runtime", "contracts.audit", "starlette"}),
    ("contracts/semconv.py", WIRE | PLUMBING | {"contracts.runtime"}),
    ("contracts/streams.py", WIRE | {"contracts.runtime"}),
    ("contracts/topology.py", WIRE | PLUMBING | {"contracts.runtime", "contracts.streams"}),
    ("contracts/permissions.py", WIRE | {"contracts.streams"}),
    ("user_svc/breaker.py", PURE | {"user_svc.errors"}),
    ("user_svc/users.py", PURE | {"user_svc.errors", "email_validator"}),
    ("email_svc/policies/", PURE | {"email_svc.errors", "email_svc.policies"}),
    ("email_svc/decision.py", PURE | {"email_svc.errors", "email_svc.policies"}),
]
FILES = sorted(path for package in PACKAGES for path in (ROOT / package).rglob("*.py"))


def imports(path: Path) -> Iterator[str]:
    """Full names of what a file imports, inside of functions too; `from a import b` is `a.b`."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def foreign(path: Path, allowed: set[str]) -> list[str]:
    """What a file imports and may not."""
    return [
        name
        for name in imports(path)
        if name.partition(".")[0] not in sys.stdlib_module_names
        and not any(name == a or name.startswith(a + ".") for a in allowed)
    ]


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(ROOT)))
def test_each_file_keeps_to_its_layer(path: Path) -> None:
    """The table above, and: contracts knows neither service, a service knows not the other."""
    name = path.relative_to(ROOT).as_posix()
    for prefix, allowed in ALLOWED:
        if name.startswith(prefix):
            assert foreign(path, allowed) == []
            break
    strangers = set(PACKAGES) - {"contracts", path.relative_to(ROOT).parts[0]}
    assert [i for i in imports(path) if i.partition(".")[0] in strangers] == []


@pytest.mark.parametrize("place", [place for place, _ in ALLOWED])
def test_the_table_speaks_of_files_that_exist(place: str) -> None:
    """A file that was moved must not lose its guard."""
    assert (ROOT / place).exists()


def test_the_guard_sees_a_stranger(tmp_path: Path) -> None:
    """Also where it hides in a function or under another name."""
    path = tmp_path / "m.py"
    path.write_text("import os\nimport msgspec\ndef f():\n    import nats.aio as x\n    from user_svc import store\n")
    assert foreign(path, {"msgspec"}) == ["nats.aio", "user_svc.store"]
