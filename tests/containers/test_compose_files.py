"""The compose files are valid, whatever profile is chosen; in production no secret has a default."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from deploy import make_secrets
from tests.support.containers import Compose
from tests.support.processes import ROOT

CORE = ("nats", "user-svc", "email-svc", "mailpit")


@pytest.mark.parametrize("profile", ["", "monitoring", "*"])
def test_the_compose_file_is_valid(profile: str) -> None:
    """Also with Prometheus, Grafana and Jaeger; these come with their profile only, and so does the traces' target."""
    compose = Compose("compose.yaml", name="config", COMPOSE_PROFILES=profile)
    assert compose("config", "--quiet").stderr == ""
    services = set(compose("config", "--services").stdout.split())
    assert {*CORE, "krakend", "provision"} <= services
    assert ({"prometheus", "grafana", "jaeger", "nats-exporter"} <= services) == (profile != "")
    assert ("http://jaeger:4318" in compose("config").stdout) == (profile != "")


def test_the_clusters_file_is_valid_with_secrets_only(tmp_path: Path) -> None:
    """What `just secrets` writes is all that it needs; without one of them nothing starts."""
    secrets = tmp_path / ".env"
    assert make_secrets.main(secrets) == 0
    assert secrets.stat().st_mode & 0o077 == 0
    compose = Compose("deploy/compose.cluster.yaml", name="config", env_file=secrets)
    assert compose("config", "--quiet").stderr == ""
    written = secrets.read_text()
    assert make_secrets.main(secrets) == 0
    assert secrets.read_text() == written, "secrets that are there are never replaced"
    for line in (line for line in written.splitlines() if not line.startswith("#")):
        secrets.write_text(written.replace(line + "\n", ""))
        refused = compose("config", "--quiet", check=False)
        assert refused.returncode != 0
        assert f"{line.partition('=')[0]}" in refused.stderr


def test_an_engine_that_does_not_answer_is_named() -> None:
    """Docker's own words, and what would help."""
    command = [sys.executable, "deploy/local/containers.py", "compose", "ps"]
    env = os.environ | {"DOCKER_HOST": "unix:///nowhere/docker.sock"}
    done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True)
    assert done.returncode == 1
    assert "/nowhere/docker.sock" in done.stderr
    assert "Docker Engine 25 or newer" in done.stderr
