"""No locked dependency of the services has a known vulnerability (pip-audit, the advisories that PyPI keeps)."""

import json
import subprocess
import sys

import pytest

from tests.support.processes import ROOT

_EXPORT = ("uv", "export", "--no-dev", "--locked", "--no-hashes", "--no-emit-project", "--quiet")
_AUDIT = (sys.executable, "-m", "pip_audit", "--no-deps", "--disable-pip", "--progress-spinner=off", "--format=json")


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
    answer = subprocess.run([*_AUDIT, "-r", "/dev/stdin"], input=locked(), capture_output=True, text=True, timeout=300)
    if "ConnectionError" in answer.stderr or "ServiceError" in answer.stderr or "Timeout" in answer.stderr:
        pytest.skip("PyPI's advisories cannot be reached")
    audited = json.loads(answer.stdout)["dependencies"]
    missing = [one["name"] for one in audited if "skip_reason" in one]
    if len(missing) == len(audited):
        pytest.skip("the package index here has no advisories")
    assert missing == []
    assert [one for one in audited if one["vulns"]] == [], answer.stderr
