"""The services' image alone: what is in it, how it runs, how it ends."""

import time
from collections.abc import Iterator

import httpx
import pytest
from testcontainers.core.container import DockerContainer
from testcontainers.core.network import Network

from tests.support.containers import docker
from tests.support.processes import NATS_IMAGE
from tests.support.waiting import eventually

CONFINED = {
    "read_only": True,
    "cap_drop": ["ALL"],
    "security_opt": ["no-new-privileges:true"],
}


@pytest.fixture(scope="module")
def user_svc(image: str) -> Iterator[DockerContainer]:
    """The image as it is, confined, beside a broker."""
    with Network() as network:
        nats = DockerContainer(NATS_IMAGE).with_command("-js -sd /tmp/data").with_network(network)
        service = DockerContainer(image).with_network(network).with_exposed_ports(8080, 9101).with_tmpfs_mount("/tmp")
        service.with_kwargs(**CONFINED).with_env("NATS_URL", "nats://nats:4222")
        with nats.with_network_aliases("nats"), service:
            yield service


async def test_it_runs_confined(user_svc: DockerContainer) -> None:
    """Read-only, without capabilities, as a user that is not root, it takes registrations; SIGTERM ends it with 0."""
    container = user_svc.get_wrapped_container()
    host = user_svc.get_container_host_ip()
    async with httpx.AsyncClient(timeout=5) as client:

        async def status(port: int, path: str) -> int:
            try:
                return (await client.get(f"http://{host}:{user_svc.get_exposed_port(port)}{path}")).status_code
            except httpx.TransportError:
                return 0

        async def ready() -> bool:
            return await status(9101, "/readyz") == 200

        await eventually(ready, within_s=60, what="ready")
        assert await status(8080, "/openapi.json") == 200
    assert container.exec_run(["id", "-u"]).output.strip() == b"10001"
    assert container.exec_run(["touch", "/app/x"]).exit_code != 0
    container.kill("SIGTERM")
    began = time.monotonic()
    assert container.wait(timeout=30)["StatusCode"] == 0, user_svc.get_logs()
    assert time.monotonic() - began < 15


def test_nothing_in_it_builds_or_installs(image: str) -> None:
    """No compiler, no package manager of Python's; our code is there, compiled, and nobody may change it."""
    script = """
import glob, importlib.util, os, shutil, sys
tools = [t for t in ("uv", "uvx", "pip", "pip3", "gcc", "cc", "make", "git", "hatchling") if shutil.which(t)]
modules = [m for m in ("pip", "ensurepip", "hatchling", "pytest", "nats_server") if importlib.util.find_spec(m)]
ours = importlib.util.find_spec("user_svc").submodule_search_locations[0]
compiled = glob.glob(ours + "/__pycache__/app.*.pyc")
print(os.getuid(), tools, modules, len(compiled), os.access(ours, os.W_OK), os.path.exists("/app/.venv/bin/python"))
"""
    said = docker("run", "--rm", image, "python", "-c", script).stdout.strip()
    # Debian's own python3 brings an ensurepip without anything to install.
    assert said.replace("'ensurepip'", "") == "10001 [] [] 1 False True"


@pytest.mark.parametrize("module", ["user_svc", "email_svc", "contracts.topology"])
def test_a_bad_setting_is_named(image: str, module: str) -> None:
    """Exit status 78, which no restart mends."""
    refused = docker("run", "--rm", "-e", "STREAM_REPLICAS=many", image, "python", "-m", module, check=False)
    assert refused.returncode == 78
    assert "STREAM_REPLICAS='many'" in refused.stderr
