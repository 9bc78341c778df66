"""A Docker engine for tests: whether there is one, and a compose project of one's own on it."""

import contextlib
import functools
import json
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tests.support.processes import ROOT, free_port

IMAGE = "mailflow:local"


@functools.cache
def why_no_engine() -> str | None:
    """None if a Docker engine answers and the compose plugin is there, else what is missing."""
    if shutil.which("docker") is None:
        return "needs Docker, and there is no docker command"
    for command in (["docker", "compose", "version"], ["docker", "version"]):
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode != 0:
            return f"needs Docker: {' '.join(command)} says: {(done.stderr or done.stdout).strip()[-200:]}"
    return None


class Compose:
    """A project of one compose file, apart from every other one on the machine: its own name, its own ports."""

    def __init__(self, file: str, *, name: str, env_file: Path | None = None, **env: str) -> None:
        self.env = os.environ | {"COMPOSE_PROJECT_NAME": f"mailflow-test-{name}-{os.getpid()}"} | env
        self.command = ["docker", "compose", "-f", str(ROOT / file)]
        if env_file is not None:
            self.command += ["--env-file", str(env_file)]

    def __call__(self, *args: str, check: bool = True, within_s: float = 240) -> subprocess.CompletedProcess[str]:
        """`docker compose ARGS`; fails with what it said."""
        done = subprocess.run(
            [*self.command, *args], cwd=ROOT, env=self.env, capture_output=True, text=True, timeout=within_s
        )
        if check:
            assert done.returncode == 0, f"docker compose {' '.join(args)}:\n{done.stdout}\n{done.stderr}"
        return done

    @contextlib.contextmanager
    def up(self, *services: str) -> Iterator[None]:
        """These services, healthy, or an error with their logs; on leaving all is removed."""
        with self.removed():
            started = self("up", "-d", "--wait", "--wait-timeout", "120", *services, check=False)
            assert started.returncode == 0, f"{started.stderr}\n{self('logs', '--tail', '100', check=False).stdout}"
            yield

    @contextlib.contextmanager
    def removed(self) -> Iterator[None]:
        """On leaving everything is removed, volumes too."""
        try:
            yield
        finally:
            self("--profile", "*", "down", "--volumes", "--remove-orphans", "--timeout", "5")

    def url(self, service: str, port: int, *, index: int = 1) -> str:
        """Where a port of a replica is published."""
        return f"http://{self('port', '--index', str(index), service, str(port)).stdout.strip()}"

    def containers(self) -> dict[str, dict[str, Any]]:
        """What `docker compose ps -a` knows, by container name."""
        lines = self("ps", "-a", "--format", "json").stdout.splitlines()
        return {found["Name"]: found for found in map(json.loads, lines)}

    def container(self, service: str) -> str:
        """The name of its only container."""
        (name,) = [name for name, found in self.containers().items() if found["Service"] == service]
        return name


def free_ports(*variables: str) -> dict[str, str]:
    """A free port for each variable."""
    return {variable: str(free_port()) for variable in variables}


def docker(*args: str, check: bool = True) -> subprocess.CompletedProcess[str]:
    """`docker ARGS`."""
    done = subprocess.run(["docker", *args], capture_output=True, text=True, timeout=120)
    if check:
        assert done.returncode == 0, f"docker {' '.join(args)}:\n{done.stdout}\n{done.stderr}"
    return done
