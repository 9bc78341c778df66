"""user_svc as it stands behind the gateway: with ADMIN_TOKEN, on the module's broker."""

import asyncio
from collections.abc import Iterator

import pytest

from tests.support.processes import NatsServer, Service, stopping

TOKEN = "sesame-opens"


@pytest.fixture(scope="module")
def user_svc(nats_server: NatsServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """Running and ready."""
    env = {"NATS_URL": nats_server.url, "NATS_MONITORING_URL": nats_server.monitoring_url, "ADMIN_TOKEN": TOKEN}
    made = Service("user_svc", tmp_path_factory.mktemp("user_svc"), env)
    with stopping(made):
        made.start()
        asyncio.run(made.ready())
        yield made
