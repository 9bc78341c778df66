"""The recipes of the justfile, as a user runs them.

Tests run them through here only, each name written out in a call of `just`: by these calls tests/unit/test_readme.py
knows which recipes are run.
"""

import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest

from tests.support.processes import ROOT

_JUST = str(Path(sys.executable).parent / "just")


def just(*arguments: str, tree: Path = ROOT) -> list[str]:
    """The command of a recipe, which answers yes to its question; its name is the first argument without a dash."""
    return [*unanswered(tree=tree), "--yes", *arguments]


def unanswered(*arguments: str, tree: Path = ROOT) -> list[str]:
    """The same where nobody answers; a recipe that asks does nothing then."""
    return [_JUST, "--justfile", str(tree / "justfile"), *arguments]


def run(command: list[str], env: Mapping[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    """Its status and all that it said. `env` is added to the environment."""
    outside = {name: value for name, value in os.environ.items() if name != "VIRTUAL_ENV"}
    return subprocess.run(
        command,
        env=outside | dict(env or {}),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=240,
    )


def said(command: list[str], env: Mapping[str, str] | None = None) -> str:
    """All that it said; it must end well."""
    done = run(command, env)
    assert done.returncode == 0, f"{command[3:]}: {done.stdout}"
    return done.stdout


def cloned(folder: Path) -> Path:
    """This tree as somebody would clone it, in a folder of its own."""
    if not (ROOT / ".git").exists():
        pytest.skip("needs a git checkout")
    subprocess.run(["git", "clone", "--quiet", "--depth", "1", f"file://{ROOT}", str(folder)], check=True)
    return folder
