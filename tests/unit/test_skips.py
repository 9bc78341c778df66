"""A skipped test is a failed one in CI, but for what cannot be had there."""

import os
import subprocess
import sys
from pathlib import Path

from tests.support.processes import ROOT

TESTS = """
import pytest

def test_plain():
    pytest.skip("not installed")

@pytest.mark.unavailable_in_ci("krakend")
def test_allowed():
    pytest.skip("no krakend")

@pytest.mark.unavailable_in_ci("postgres")
def test_not_on_the_list():
    pytest.skip("no postgres")
"""


def test_ci_allows_only_the_skips_on_the_list(tmp_path: Path) -> None:
    """One of three skips passes: the marked one whose reason is on the list."""
    (tmp_path / "test_skipped.py").write_text(TESTS)
    run = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-rfs", "--rootdir", tmp_path, "-p", "tests.conftest", tmp_path],
        cwd=ROOT,
        env=os.environ | {"MAILFLOW_NO_SKIPS": "1"},
        capture_output=True,
        text=True,
    )
    assert "2 failed, 1 skipped" in run.stdout, run.stdout + run.stderr
    assert "no krakend" in run.stdout
