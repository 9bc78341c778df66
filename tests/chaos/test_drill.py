"""`just drill`, as anybody may run it: longer, and with defects planted that it has to find."""

import json
import subprocess
from pathlib import Path
from typing import Any

import pytest

from tests.support.processes import ROOT, nats_source
from tests.support.recipes import just

pytestmark = pytest.mark.skipif("://" in nats_source(), reason="a drill kills its broker: it needs one of its own")


def drill(folder: Path, *arguments: str, within_s: float) -> tuple[subprocess.CompletedProcess[str], dict[str, Any]]:
    """Runs it; what it printed, and what it found."""
    command = just("drill", "--json", str(folder / "found.json"), *arguments)
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=within_s)
    said = done.stdout[-6000:] + done.stderr[-6000:]
    assert (folder / "found.json").exists(), said
    found: dict[str, Any] = json.loads((folder / "found.json").read_text())
    return done, found


def test_breaks_everything_and_the_books_balance(tmp_path: Path) -> None:
    """60 faults and more under 20,000 registrations and more: no law of the design is broken."""
    done, found = drill(tmp_path, "--minutes", "3.5", "--rate", "150", "--at-least", "21000", within_s=1000)
    said = done.stdout[-6000:] + done.stderr[-6000:]
    assert found["violations"] == [], said
    assert done.returncode == 0, said
    assert sum(found["faults"].values()) >= 60, said
    assert found["registrations"]["created"] >= 20_000, said
    assert found["mails"]["pending"] == 0, said


def test_notices_what_is_wrong(tmp_path: Path) -> None:
    """A lost mail, a second one and one to nobody, planted in a running system: it fails, and names each law."""
    done, found = drill(tmp_path, "--sabotage", "lose", "double", "ghost", within_s=150)
    assert done.returncode == 1, done.stdout + done.stderr
    assert {"lost", "duplicate", "ghost"} <= {violation["law"] for violation in found["violations"]}, done.stdout
    assert "history.json" in done.stdout
