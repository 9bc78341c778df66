"""Who has no login, or another's, can do nothing on the broker; a wrong password is said without being shown."""

import asyncio
import contextlib
from pathlib import Path

from contracts.permissions import USERS, accounts_conf
from contracts.runtime.process import BAD_START
from tests.support.processes import NatsServer, Service, stopping

_ATTEMPTS = [
    b"{}",
    b'{"user":"","pass":""}',
    b'{"auth_token":"of-operator"}',
    b'{"user":"admin","pass":"admin"}',
    b'{"jwt":"x","sig":"y"}',
    b'{"nkey":"x"}',
    b'{"user":"user_svc","pass":"of-email_svc"}',
    b'{"user":"test","pass":"test"}',
    *(b'{"user":"%s"}' % user.encode() for user in USERS),
]


async def test_without_a_login_nothing_can_be_done(tmp_path: Path) -> None:
    """No login, an empty one, another's password: cut off before a word is heard."""
    server = NatsServer(tmp_path, accounts=accounts_conf())
    with stopping(server):
        server.start()
        await server.ready()
        for login in _ATTEMPTS:
            reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
            writer.write(b"CONNECT %s\r\nSUB > 1\r\nPUB $JS.API.STREAM.NAMES _INBOX.x 0\r\n\r\nPING\r\n" % login)
            with contextlib.suppress(ConnectionError):
                async with asyncio.timeout(10):
                    heard = await reader.read(-1)
            writer.close()
            assert b"Authorization Violation" in heard, login
            assert b"PONG" not in heard
            assert b"MSG" not in heard


async def test_a_wrong_password_is_not_shown(tmp_path: Path) -> None:
    """Both services end with exit 78 and say what they tried, at DEBUG too; the password is in no line."""
    server = NatsServer(tmp_path, accounts=accounts_conf())
    by_url = {"NATS_URL": server.url.replace("//", "//email_svc:sesame-in-url@")}
    by_name = {"NATS_URL": server.url, "NATS_USER": "user_svc", "NATS_PASSWORD": "sesame-by-name"}
    services = [
        Service(name, tmp_path, {"LOG_LEVEL": "DEBUG"} | env)
        for name, env in (("user_svc", by_name), ("email_svc", by_url))
    ]
    with stopping(server, *services):
        server.start()
        await server.ready()
        for service in services:
            service.start()
        for service in services:
            assert await service.exit_status(30) == BAD_START, service.text()
            assert "the broker refuses the login" in service.text()
            assert "sesame" not in service.text()
            assert "Traceback" not in service.text()
        assert "sesame" not in server.text()
