"""The SMTP side of a mail: the dialogue with a server. `smtp_pool` keeps a few connections for reuse.

    open: CONNECT GREETING EHLO STARTTLS AUTH -> send: MAIL RCPT DATA | body and dot | DOT -> send …
                                                             before_dot ^

Trouble of the network is data here: `open` and `send` answer with an SmtpResult that says in which phase the
dialogue ended, and how. In it `code` is 2xx (only at DOT: accepted) or 4xx/5xx; any other reply is GARBLED.

A connection is used again only after a complete reply. Whatever else ends a dialogue, cancellation included, closes it
on the spot: reused after a cancel, it would give the last recipient's 550 to the next one [measured, aiosmtplib 5.1.3].

aiosmtplib's protocol does the framing and TLS. Its client class is not used: it tells neither greeting from connect nor
the DATA reply from that to the dot, and it does not let go between them. Not here: retries, pacing, the words
of the server (kept whole; `decision` redacts), PIPELINING, SMTPUTF8, HELO for servers older than ESMTP.

Source: RFC 5321 (dialogue), RFC 3207 (STARTTLS), RFC 4954 (AUTH); aiosmtplib/protocol.py.
"""

import asyncio
import socket
import ssl
from collections.abc import Callable, Coroutine
from typing import Any, cast

from aiosmtplib.auth import auth_login_encode, auth_plain_encode
from aiosmtplib.errors import SMTPException, SMTPResponseException, SMTPServerDisconnected
from aiosmtplib.esmtp import parse_esmtp_extensions
from aiosmtplib.protocol import SMTPProtocol
from aiosmtplib.response import SMTPResponse

from contracts import semconv
from email_svc.decision import Fault, Phase, SmtpResult
from email_svc.message import Mail
from email_svc.smtp_url import SmtpEndpoint


class SmtpConnection:
    """One connection and the dialogue on it; used by one task at a time."""

    def __init__(self, *, timeout_s: float, after_dot_timeout_s: float, made_at: float) -> None:
        self.made_at = made_at
        self.phase = Phase.CONNECT
        """How far the dialogue came; after a cancel, how far it had come."""
        self.fresh = True
        """No mail has been sent on it, and it has not lain idle: a disconnect at MAIL is not for its age."""
        self.mails = 0
        """Mails that ended here with a complete reply, refused ones included."""
        self._timeout_s = timeout_s
        self._after_dot_timeout_s = after_dot_timeout_s
        self._wire = _Wire()
        self._server = ("", 0)
        self._busy = False
        self._closed = False
        self._needs_reset = False

    @property
    def clean(self) -> bool:
        """Connected, between two mails, and nothing was heard that was not asked for."""
        return self._wire.is_connected and not (self._closed or self._busy or self._wire.stray)

    @property
    def awaiting_dot_reply(self) -> bool:
        """The final dot is out and its reply is not in: cutting it off now leaves the outcome unknown."""
        return self._busy and self.phase is Phase.DOT and not self._closed

    async def open(
        self, endpoint: SmtpEndpoint, tls: ssl.SSLContext | None, local_hostname: str | None, connect_timeout_s: float
    ) -> SmtpResult | None:
        """Connect, greet, protect, log in. None: ready for a mail; else the connection is closed."""
        self._server = (endpoint.host, endpoint.port)
        with semconv.smtp("connect", *self._server) as span:
            failure = await self._ended(self._opening(endpoint, tls, local_hostname, connect_timeout_s))
            if failure is not None:
                semconv.replied(span, failure.phase, failure.code, failure.fault)
        if failure is not None:
            self.abort()
        return failure

    async def send(self, mail: Mail, envelope_from: str, *, before_dot: Callable[[], bool]) -> SmtpResult:
        """One mail: accepted if the result is at DOT with a 2xx.

        Args:
            before_dot: asked after the server's 354, with no await before the body and the dot are written. False: the
                connection is closed instead, nothing was sent, and the result is LEASE_LOST at DATA.
        """
        with semconv.smtp("send", *self._server) as span:
            result = await self._ended(self._transaction(mail, envelope_from, before_dot))
            assert result is not None
            semconv.replied(span, result.phase, result.code, result.fault)
        if result.code is not None:
            self.mails += 1
            self.fresh = False
        return result

    async def reset(self) -> bool:
        """Whether it is ready for the next mail. After a refused one a 250 to RSET says so, and nothing else does."""
        if self.clean and self._needs_reset:
            self._needs_reset = await self._ended(self._resetting()) is not None
        return self.clean and not self._needs_reset

    def abort(self) -> None:
        """Close at once, synchronously: a cancellation cannot come between. What is not yet written is dropped."""
        self._closed = True
        if self._wire.transport is not None:
            cast(asyncio.WriteTransport, self._wire.transport).abort()

    def leave(self) -> None:
        """Close; politely if there is nobody to be rude to. The reply to QUIT is not waited for."""
        if not self.clean:
            return self.abort()
        self._closed = True
        self._wire.write(b"QUIT\r\n")
        return cast(asyncio.WriteTransport, self._wire.transport).close()

    async def closed(self) -> None:
        """Wait until the transport is gone."""
        if self._wire.transport is not None:
            await self._wire.lost.wait()

    async def _transaction(self, mail: Mail, envelope_from: str, before_dot: Callable[[], bool]) -> SmtpResult:
        content = mail.content.replace(b"\r\n.", b"\r\n..") + b".\r\n"  # its first line is a header, never a dot
        sender, recipient = envelope_from.encode("ascii"), mail.recipient.encode("ascii")
        await self._ask(Phase.MAIL, b"MAIL", b"FROM:<%s>" % sender)
        await self._ask(Phase.RCPT, b"RCPT", b"TO:<%s>" % recipient)
        await self._ask(Phase.DATA, b"DATA", expected=3)
        self._refuse_stray()
        if not before_dot():
            self.abort()
            return SmtpResult(phase=Phase.DATA, fault=Fault.LEASE_LOST)
        # One write, not drained: a mail is some 4 KB, and a reply that came while draining would be dropped as unasked
        # for. read_response() is armed before it first suspends, so no reply can slip in between either.
        self._wire.write(content)  # raises only before it has written anything
        self.phase = Phase.DOT
        async with asyncio.timeout(self._after_dot_timeout_s):
            reply = _expected(await self._wire.read_response(), 2)
        return SmtpResult(phase=Phase.DOT, code=reply.code, text=_text(reply.message))

    async def _opening(
        self, endpoint: SmtpEndpoint, tls: ssl.SSLContext | None, local_hostname: str | None, connect_timeout_s: float
    ) -> SmtpResult | None:
        async with asyncio.timeout(connect_timeout_s):
            await asyncio.get_running_loop().create_connection(
                lambda: self._wire, endpoint.host, endpoint.port, ssl=tls if endpoint.mode == "tls" else None
            )
        await self._ask(Phase.GREETING)
        name = (local_hostname or self._address_literal()).encode("ascii")
        hello = await self._ask(Phase.EHLO, b"EHLO", name)
        if tls is not None and endpoint.mode == "starttls":
            self.phase = Phase.STARTTLS
            if "starttls" not in parse_esmtp_extensions(hello.message)[0]:
                return SmtpResult(phase=Phase.STARTTLS, fault=Fault.STARTTLS_NOT_OFFERED)
            self._refuse_stray()
            async with asyncio.timeout(self._timeout_s):
                await self._wire.start_tls(tls, server_hostname=endpoint.host)
            # What was said before TLS may be anybody's word (RFC 3207 4.2).
            hello = await self._ask(Phase.EHLO, b"EHLO", name)
        if endpoint.username and endpoint.password:
            await self._login(endpoint.username, endpoint.password, parse_esmtp_extensions(hello.message)[1])
        return None

    async def _resetting(self) -> None:
        await self._ask(Phase.MAIL, b"RSET")

    async def _login(self, username: str, password: str, methods: list[str]) -> None:
        """PLAIN, or LOGIN where only that is offered. Where neither is, the refusal of PLAIN is the reply to report."""
        if "login" in methods and "plain" not in methods:
            user, secret = auth_login_encode(username, password)
            await self._ask(Phase.AUTH, b"AUTH", b"LOGIN", expected=3)
            await self._ask(Phase.AUTH, user, expected=3)
            await self._ask(Phase.AUTH, secret)
        else:
            await self._ask(Phase.AUTH, b"AUTH", b"PLAIN", auth_plain_encode(username, password))

    async def _ask(self, phase: Phase, *command: bytes, expected: int = 2) -> SMTPResponse:
        """Send a command (none: only listen) and wait for its reply, whose first digit is to be the expected one.

        The timeout is asyncio's own and not the protocol's: that one uses wait_for, which up to Python 3.11 forgets a
        cancellation that comes together with the reply.
        """
        self.phase = phase
        async with asyncio.timeout(self._timeout_s):
            if not command:
                reply = await self._wire.read_response()
            else:
                self._refuse_stray()
                reply = await self._wire.execute_command(*command)
        return _expected(reply, expected)

    def _refuse_stray(self) -> None:
        """Once a server has said more than it was asked, no later reply can be told from the surplus."""
        if self._wire.stray:
            raise SMTPResponseException(-1, "a reply that was not asked for")

    async def _ended(self, dialogue: Coroutine[Any, Any, SmtpResult | None]) -> SmtpResult | None:
        """Run a dialogue. The one place that decides what its end means for the connection."""
        self._busy = True
        try:
            result = await dialogue
        except SMTPResponseException as exc:
            if 400 <= exc.code <= 599:
                result = SmtpResult(phase=self.phase, code=exc.code, text=_text(exc.message))
            else:
                code = "" if exc.code == -1 else f"{exc.code} "  # -1: aiosmtplib could not read one
                result = SmtpResult(phase=self.phase, fault=Fault.GARBLED, text=_text(code + exc.message))
            if result.code in (None, 421):
                self.abort()
            self._needs_reset = True
        except (OSError, SMTPException) as exc:
            fault = Fault.CANCELLED if self._closed else _fault(exc)  # already closed: by the pool, at shutdown
            self.abort()
            result = SmtpResult(phase=self.phase, fault=fault, text=_text(str(exc)))
        except BaseException:  # a cancel too: whatever broke it off, this connection is not used again
            self.abort()
            raise
        self._busy = False
        return result

    def _address_literal(self) -> str:
        """RFC 5321 4.1.3: who has no name gives the address."""
        if self._wire.transport is None:
            raise SMTPServerDisconnected("Connection lost")
        address = str(self._wire.transport.get_extra_info("sockname")[0]).partition("%")[0]
        return f"[IPv6:{address}]" if ":" in address else f"[{address}]"


class _Wire(SMTPProtocol):
    """aiosmtplib's protocol, which also remembers what it heard unasked.

    The original drops bytes that come between two commands, and keeps those that came with a reply as the start of the
    next one. Either way, from then on a reply may belong to an earlier command.
    """

    def __init__(self) -> None:
        super().__init__(asyncio.get_running_loop())
        self.lost = asyncio.Event()
        self._unasked = False

    @property
    def stray(self) -> bool:
        return self._unasked or bool(self._buffer)

    def data_received(self, data: bytes) -> None:
        if not self._response_pending or (self._response_waiter is not None and self._response_waiter.done()):
            self._unasked = True
        super().data_received(data)

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        self.lost.set()


def _fault(exc: Exception) -> Fault:
    """Why there was no reply. The order matters: all of these are OSErrors."""
    match exc:
        case socket.gaierror():
            return Fault.DNS
        case ssl.SSLError():
            return Fault.TLS
        case TimeoutError():
            return Fault.TIMEOUT
        case ConnectionResetError() | ConnectionAbortedError() | BrokenPipeError() | SMTPServerDisconnected():
            return Fault.DISCONNECTED
        case _:  # refused by the host or, as unreachable, by the net; several addresses come as a plain OSError
            return Fault.REFUSED


def _expected(reply: SMTPResponse, first_digit: int) -> SMTPResponse:
    if reply.code // 100 != first_digit:
        raise SMTPResponseException(reply.code, reply.message)
    return reply


def _text(words: str) -> str:
    """aiosmtplib marks octets that are no UTF-8 as lone surrogates, which no JSON encoder takes."""
    return words.encode("utf-8", "replace").decode("utf-8")
