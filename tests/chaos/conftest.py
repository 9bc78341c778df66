"""One system for all attacks of a module: it has to stand them one after the other."""

from collections.abc import AsyncIterator

import httpx
import pytest
import pytest_asyncio

from contracts.runtime.broker import Broker
from tests.support.attack import unharmed
from tests.support.load import broker_of, client_of, settled
from tests.support.processes import System
from tests.support.smtp_server import SmtpServer


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def target(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[tuple[System, SmtpServer]]:
    """A running system and its mail server."""
    async with SmtpServer() as smtp:
        system = System(tmp_path_factory.mktemp("target"), f"smtp://127.0.0.1:{smtp.port}")
        try:
            await system.start()
            yield system, smtp
        finally:
            system.stop()
        assert not any('"broker.denied"' in process.text() for process in system.services)


@pytest_asyncio.fixture(loop_scope="module")
async def client(target: tuple[System, SmtpServer]) -> AsyncIterator[httpx.AsyncClient]:
    """Of its API."""
    async with client_of(target[0]) as made:
        yield made


@pytest_asyncio.fixture(loop_scope="module")
async def broker(target: tuple[System, SmtpServer]) -> AsyncIterator[Broker]:
    """A connection with all rights. Afterwards nothing waits and both services are well."""
    target[1].accepted.clear()
    async with broker_of(target[0]) as made:
        yield made
        await settled(made, within_s=20)
    unharmed(target[0])
