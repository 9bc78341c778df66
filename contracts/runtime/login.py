"""How a process proves to the broker who it is, and whom it trusts to be the broker.

    nothing | user and password | credentials file (a JWT and the seed of its key)      TLS with one's own CA

A refusal of either that lasts is told apart from a broker that is not there yet: waiting does not mend it.
"""

import asyncio
import base64
import re
import ssl
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nats.errors
import nkeys
import structlog
from nats.aio.client import Client

log = structlog.get_logger()

_PART = r"-+BEGIN {}-+\s+(\S+)\s+-+END {}-+"
_JWT = re.compile(_PART.format("NATS USER JWT", "NATS USER JWT"))
_SEED = re.compile(_PART.format("USER NKEY SEED", "USER NKEY SEED"))


class Refused(Exception):
    """The broker does not take this login, or is not trusted."""


class BadCredentials(OSError):
    """The file is no credentials file. An OSError, so that a client that reconnects tries again."""


class NoTls(nats.errors.Error):
    """The default text says it."""

    def __str__(self) -> str:
        return "the broker offers no TLS"


class CarefulClient(Client):
    """nats-py's client, but for five things that it does.

    It would send the password in the clear to a broker that does not ask for TLS, though we have a CA for it. After a
    handshake that failed it would wait for the end of that connection, which (up to Python 3.11) never comes. And the
    answer to a `flush` that was given up would end its reading: deaf, until its own pings told it so. So would one
    message with headers or a reply subject that it cannot read, which anybody may send who may send at all. And it
    looks at each character of a header's name: 6 % of the processor time of a registration.
    """

    @staticmethod
    def _parse_header_lines(raw: bytes) -> dict[str, str]:
        found: dict[str, str] = {}
        for line in raw.split(b"\r\n"):
            name, colon, value = line.partition(b":")
            if colon and name.isascii():
                key = name.strip().decode()
                if not key or key.split() == [key]:
                    found[key] = value.strip().decode("utf-8", "replace")
        return found

    async def _process_info(self, info: dict[str, Any], initial_connection: bool = False) -> None:
        if initial_connection and "tls" in self.options and not info.get("tls_required"):
            raise NoTls
        await super()._process_info(info, initial_connection)

    async def _process_connect_init(self) -> None:
        try:
            await super()._process_connect_init()
        except OSError:
            transport, self._transport = self._transport, None  # the next try makes another
            if transport is not None:
                transport.close()  # type: ignore[no-untyped-call]
            raise

    async def _process_msg(self, sid: int, subject: bytes, reply: bytes, data: bytes, headers: bytes) -> None:
        try:
            await super()._process_msg(sid, subject, reply, data, headers)
        except (ValueError, LookupError) as exc:  # not its text, which quotes the message
            log.error("broker.unreadable_message", reason=type(exc).__name__)
            if reply.startswith(b"$JS.ACK."):
                # Of a stream: dropped, it would come again and again. Who gets what can be read of it decides.
                readable = subject.decode("utf-8", "replace").encode()
                await super()._process_msg(sid, readable, reply, data, b"")

    async def _process_pong(self) -> None:
        if self._pongs and self._pongs[0].cancelled():
            self._pongs[0] = asyncio.Future()
        await super()._process_pong()


def credentials_of(path: str) -> tuple[str, str]:
    """The JWT and the seed in a credentials file.

    Raises:
        OSError: it cannot be read, or (`BadCredentials`) is no such file.
    """
    try:
        text = Path(path).read_text()
        jwt, seed = _JWT.search(text), _SEED.search(text)
        if jwt is None or seed is None:
            raise BadCredentials("no NATS user JWT and seed in it")
        nkeys.from_seed(bytearray(seed[1].encode()))
    except (UnicodeDecodeError, nkeys.NkeysError, ValueError) as exc:
        raise BadCredentials(f"no NATS user JWT and seed in it ({type(exc).__name__})") from exc
    return jwt[1], seed[1]


def login_options(
    *, user: str | None, password: str | None, credentials: str | None, tls_ca: str | None
) -> dict[str, Any]:
    """nats-py's options.

    Raises:
        Refused: a file cannot be used.
    """
    options: dict[str, Any] = {}
    if user is not None:
        options |= {"user": user, "password": password or ""}
    if credentials is not None:
        try:
            credentials_of(credentials)
        except OSError as exc:
            raise Refused(f"the credentials file {credentials} cannot be used: {exc.strerror or exc}") from exc
        options |= _callbacks(credentials)
    if tls_ca is not None:
        try:
            options["tls"] = ssl.create_default_context(cafile=tls_ca)
        except OSError as exc:
            raise Refused(f"the CA file {tls_ca} cannot be used: {exc.strerror or exc}") from exc
    return options


def _callbacks(path: str) -> dict[str, Callable[..., bytes]]:
    """Reads the file at each connect, for it may be renewed; nats-py's own reader never ends on one that is cut off."""

    def jwt() -> bytes:
        return credentials_of(path)[0].encode()

    def sign(nonce: str) -> bytes:
        seed = credentials_of(path)[1].encode()
        return base64.b64encode(nkeys.from_seed(bytearray(seed)).sign(nonce.encode()))

    return {"user_jwt_cb": jwt, "signature_cb": sign}


def refusal(exc: Exception) -> str | None:
    """What an error of a connect says that waiting does not mend; None: it may pass."""
    text = str(exc)
    if "authorization violation" in text.lower():
        return "the broker refuses the login"
    if isinstance(exc, NoTls):
        return "the broker offers no TLS, and a CA for it is set"
    if isinstance(exc, ssl.SSLError):
        return f"TLS with the broker fails: {getattr(exc, 'verify_message', '') or exc.reason or text}"
    return None
