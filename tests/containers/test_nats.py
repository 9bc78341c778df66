"""A broker in a container: killed and started again with its volume; and the integration tests over such brokers."""

from collections.abc import Iterator

import pytest
from docker.models.volumes import Volume
from testcontainers.core.container import DockerContainer
from testcontainers.core.docker_client import DockerClient

from contracts.runtime.broker import connect
from tests.support.containers import NATS_IMAGE
from tests.support.processes import free_port
from tests.support.waiting import eventually

SUITE = ("test_topology.py", "test_broker.py", "test_reconciler.py")


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
