"""KrakenD in front of something, with krakend.json's routes and addresses of the test's own."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.support.processes import ROOT, Process, free_port, http_status
from tests.support.waiting import eventually

if (LOCAL := str(ROOT / "deploy" / "local")) not in sys.path:
    sys.path.append(LOCAL)

import gateway

CONFIG: dict[str, Any] = json.loads((ROOT / "krakend.json").read_text())
WHY_NOT = f"no KrakenD: set KRAKEND_BIN, put krakend on PATH, or `docker pull {gateway.IMAGE}`"


def found() -> str | None:
    """The binary, or `docker` where its image is there already."""
    if (program := gateway.binary(os.environ)) is not None:
        return program
    if shutil.which("docker") is None or sys.platform != "linux":
        return None
    image = subprocess.run(["docker", "image", "inspect", gateway.IMAGE], capture_output=True, timeout=20)
    return "docker" if image.returncode == 0 else None


class Gateway(Process):
    """A running KrakenD."""

    def __init__(self, folder: Path, config: dict[str, Any], name: str) -> None:
        program = found()
        if program is None:
            pytest.skip(WHY_NOT)
        self.port: int = config["port"]
        self.container = f"mailflow-test-{self.port}" if program == "docker" else None
        path = folder / f"{name}.json"
        path.write_text(json.dumps(config, indent=2))
        command = [program, "run", "-c", str(path)]
        if self.container is not None:
            command = gateway.container(path, name=self.container)
        super().__init__(name, command, folder)

    async def ready(self, within_s: float = 30.0) -> None:
        """Waits until /__health says 200."""

        def look() -> bool:
            assert self.running, f"{self.name} ended:\n{self.text()[-3000:]}"
            return http_status(f"http://127.0.0.1:{self.port}/__health") == 200

        await eventually(look, within_s=within_s, what=f"{self.name} ready")

    def kill(self) -> None:
        """Killing the client of Docker would leave the container."""
        if self.container is not None:
            subprocess.run(["docker", "rm", "--force", self.container], capture_output=True, timeout=30)
        super().kill()


def local(user_svc_port: int, *, limits: bool = False, traces: str = "") -> dict[str, Any]:
    """The configuration as `just gateway` makes it; without limits unless asked for."""
    made = gateway.local_copy(CONFIG, port=free_port(), user_svc=f"http://127.0.0.1:{user_svc_port}", traces=traces)
    if not limits:
        for endpoint in made["endpoints"]:
            del endpoint["extra_config"]["qos/ratelimit/router"]
    return made


def check(path: Path) -> subprocess.CompletedProcess[str]:
    """`krakend check`: its own schema, and the routes tried in the router."""
    program = found()
    if program is None:
        pytest.skip(WHY_NOT)
    arguments = ["check", "-t", "-n", "-c"]
    command = [program, *arguments, str(path)]
    if program == "docker":
        volume = f"{path}:/krakend.json:ro"
        command = ["docker", "run", "--rm", "--entrypoint", "krakend", "--volume", volume, gateway.IMAGE]
        command += [*arguments, "/krakend.json"]
    return subprocess.run(command, capture_output=True, text=True, timeout=60)


@contextmanager
def running(*gateways: Gateway) -> Iterator[None]:
    """Starts them; kills them at the end."""
    try:
        for made in gateways:
            made.start()
        yield
    finally:
        for made in gateways:
            made.kill()
