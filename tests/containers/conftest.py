"""Everything here needs a Docker engine, and is skipped where none answers."""

import subprocess

import pytest

from tests.support.containers import IMAGE, why_no_engine
from tests.support.processes import ROOT


@pytest.fixture(scope="session", autouse=True)
def engine() -> None:
    """An engine answers."""
    if reason := why_no_engine():
        pytest.skip(reason)


@pytest.fixture(scope="session")
def image(engine: None) -> str:
    """The services' image, built from this tree as compose builds it."""
    built = subprocess.run(
        ["docker", "compose", "build", "provision"], cwd=ROOT, capture_output=True, text=True, timeout=600
    )
    assert built.returncode == 0, built.stderr[-5000:]
    return IMAGE
