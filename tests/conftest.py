"""What tests share: a real broker of their own, a real SMTP server, the whole system as processes."""

import asyncio
import os
from collections.abc import AsyncIterator, Generator, Iterator
from pathlib import Path

import pytest

from contracts.runtime.broker import Broker, connect
from tests.support.processes import GivenNats, NatsServer, System, nats_source
from tests.support.smtp_server import SmtpServer

NOT_IN_CI = frozenset({"krakend", "grafana", "jaeger", "fuse", "advisories"})
"""What cannot be installed in CI."""


def pytest_configure(config: pytest.Config) -> None:
    """Declares the marker of a test that may be skipped even in CI."""
    allowed = ", ".join(sorted(NOT_IN_CI))
    config.addinivalue_line("markers", f"unavailable_in_ci(what): needs one of {allowed}; may be skipped in CI")


@pytest.fixture(scope="module")
def nats_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[NatsServer | GivenNats]:
    """A broker for the tests of one module."""
    if "://" in (source := nats_source()):
        given = GivenNats(source)
        asyncio.run(given.ready())
        yield given
        return
    server = NatsServer(tmp_path_factory.mktemp("nats"))
    server.start()
    asyncio.run(server.ready())
    yield server
    server.kill()


@pytest.fixture
async def broker(nats_server: NatsServer) -> AsyncIterator[Broker]:
    """A connection to the module's broker."""
    connection = await connect(name="test", url=nats_server.url, on_closed=lambda reason: None)
    yield connection
    await connection.close()


@pytest.fixture
async def smtp() -> AsyncIterator[SmtpServer]:
    """A scriptable SMTP server."""
    async with SmtpServer() as server:
        yield server


@pytest.fixture
def system(tmp_path: Path, smtp: SmtpServer) -> Iterator[System]:
    """Broker and services, not started; killed at the end, their logs shown if the test failed."""
    made = System(tmp_path, f"smtp://127.0.0.1:{smtp.port}")
    yield made
    made.stop()
    denied = [line for process in made.services for line in process.text().splitlines() if '"broker.denied"' in line]
    assert denied == [], "deploy/nats-accounts.conf gives a service too little"


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """In CI a skipped test is a failed one: what it needs was to be installed. `unavailable_in_ci` tells the few
    things that cannot be."""
    report = yield
    if report.skipped and os.environ.get("MAILFLOW_NO_SKIPS"):
        marker = item.get_closest_marker("unavailable_in_ci")
        if marker is None or marker.args[0] not in NOT_IN_CI:
            report.outcome = "failed"
            report.longrepr = f"skipped, and CI allows no skips: {report.longrepr}"
    return report
