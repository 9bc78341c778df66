"""`just audit-dependencies`: no locked dependency of the services has a known vulnerability (PyPI's list)."""

import json
import subprocess

import pytest

from tests.support.processes import ROOT
from tests.support.recipes import just

_EXPORT = ("uv", "export", "--no-dev", "--locked", "--no-hashes", "--no-emit-project", "--quiet")


def locked() -> str:
    """What runs in production, as requirements."""
    return subprocess.run(_EXPORT, cwd=ROOT, capture_output=True, text=True, check=True).stdout


def test_what_is_audited_is_what_runs() -> None:
    """All that the services need, to the exact version, and nothing of the development."""
    names = {line.partition("==")[0] for line in locked().splitlines() if "==" in line}
    assert {"fastapi", "starlette", "uvicorn", "httptools", "nats-py", "jinja2", "aiosmtplib"} <= names
    assert not names & {"pytest", "pip-audit", "mypy"}


@pytest.mark.unavailable_in_ci("advisories")
def test_no_dependency_has_a_known_vulnerability() -> None:
    """Each dependency was looked up: one that was not counts as no result, never as a good one."""
    command = just("audit-dependencies", "--progress-spinner=off", "--format=json")
    answer = subprocess.run(command, capture_output=True, text=True, timeout=300)
    if "ConnectionError" in answer.stderr or "ServiceError" in answer.stderr or "Timeout" in answer.stderr:
        pytest.skip("PyPI's advisories cannot be reached")
    audited = json.loads(answer.stdout)["dependencies"]
    missing = [one["name"] for one in audited if "skip_reason" in one]
    if len(missing) == len(audited):
        pytest.skip("the package index here has no advisories")
    assert missing == []
    assert [one for one in audited if one["vulns"]] == [], answer.stderr
