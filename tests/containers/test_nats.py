"""A broker in a container: killed and started again with its volume; and the integration tests over such brokers."""

import os
import subprocess
import sys
from collections.abc import Iterator

import pytest
from docker.models.volumes import Volume
from testcontainers.core.container import DockerContainer
from testcontainers.core.docker_client import DockerClient

from contracts.runtime.broker import connect
from tests.support.processes import NATS_IMAGE, ROOT, free_port, nats_source
from tests.support.waiting import eventually


@pytest.fixture
def volume() -> Iterator[Volume]:
    """A volume that outlives the container."""
    made = DockerClient().client.volumes.create()
    yield made
    made.remove(force=True)


# Docker's proxy takes connections for a broker that is not there yet, and drops them; nats-py leaves those unclosed.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
async def test_a_killed_broker_has_what_it_acknowledged(volume: Volume) -> None:
    """kill -9, and started again with its volume: the client comes back by itself and finds its message."""
    port = free_port()
    nats = (
        DockerContainer(NATS_IMAGE)
        .with_command("-js -sd /data")
        .with_volume_mapping(volume.name, "/data", "rw")
        .with_bind_ports("4222/tcp", port)  # one of Docker's choice would be another after a restart
    )
    with nats:
        broker = await connect(
            name="test", url=f"nats://{nats.get_container_host_ip()}:{port}", on_closed=lambda reason: None
        )
        try:
            await broker.api("STREAM.CREATE.T", {"name": "T", "subjects": ["t.>"]})
            sequence = await broker.store("t.1", b"kept")
            nats.get_wrapped_container().kill("SIGKILL")
            nats.get_wrapped_container().wait()
            await eventually(lambda: not broker.client.is_connected)
            nats.get_wrapped_container().start()
            await eventually(lambda: broker.client.is_connected, within_s=30)
            found = await broker.last("T", "t.1")
            assert found is not None
            assert (found.seq, found.data) == (sequence, b"kept")
        finally:
            await broker.close()


def run_tests(source: str, *arguments: str) -> None:
    """pytest in a process of its own, with brokers from this source."""
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *arguments],
        cwd=ROOT,
        env=os.environ | {"MAILFLOW_TEST_NATS": source},
        capture_output=True,
        text=True,
        timeout=500,
    )
    assert done.returncode == 0, done.stdout[-8000:] + done.stderr[-2000:]
    assert " passed" in done.stdout


def test_integration_tests_pass_over_containers() -> None:
    """Each with a broker in a container, killed, frozen and started again: the topology and the connection."""
    run_tests("docker", "tests/integration/test_topology.py", "tests/integration/test_broker.py")


async def test_integration_tests_pass_over_a_given_broker() -> None:
    """One that runs already; whatever is on it goes."""
    with DockerContainer(NATS_IMAGE).with_command("-js -sd /tmp/data").with_exposed_ports(4222) as nats:
        url = f"nats://{nats.get_container_host_ip()}:{nats.get_exposed_port(4222)}"
        broker = await connect(name="test", url=url, on_closed=lambda reason: None)
        await broker.api("STREAM.CREATE.LEFT", {"name": "LEFT", "subjects": ["left"]})
        await broker.close()
        run_tests(url, "tests/integration/test_pull.py", "-k", "two_loops")
        broker = await connect(name="test", url=url, on_closed=lambda reason: None)
        assert not (await broker.api("STREAM.NAMES"))["streams"]
        await broker.close()


def test_an_unknown_source_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """With what is allowed."""
    monkeypatch.setenv("MAILFLOW_TEST_NATS", "podman")
    with pytest.raises(ValueError, match="'podman': expected auto, binary, docker or an address"):
        nats_source()
