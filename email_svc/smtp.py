"""The SMTP side of a mail: where the server is, a dialogue with it, and a few connections kept for reuse.

    acquire -> [CONNECT GREETING EHLO STARTTLS AUTH] -> send: MAIL RCPT DATA | body and dot | DOT -> release
                 only on a new connection                       before_dot ^

Trouble of the network is data here: `acquire` and `send` answer with an SmtpResult that says in which phase the
dialogue ended, and how. In it `code` is 2xx (only at DOT: accepted) or 4xx/5xx; any other reply is GARBLED.

A connection is used again only after a complete reply. Whatever else ends a dialogue, cancellation included, closes it
on the spot: reused after a cancel, it would give the last recipient's 550 to the next one [measured, aiosmtplib 5.1.3].

aiosmtplib's protocol does the framing and TLS. Its client class is not used: it tells neither greeting from connect nor
the DATA reply from that to the dot, and it does not let go between them. Not here: retries, pacing, the words
of the server (kept whole; `decision` redacts), PIPELINING, SMTPUTF8, HELO for servers older than ESMTP.

Source: RFC 5321 (dialogue), RFC 3207 (STARTTLS), RFC 4954 (AUTH); aiosmtplib/protocol.py.
"""

import asyncio
import contextlib
import socket
import ssl
import time
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
from email_svc.smtp_url import HOST, SmtpEndpoint


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
        except BaseException:
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


class SmtpPool:
    """At most `size` connections at a time, kept for reuse.

    A connection serves `max_mails` mails or `max_age_s` seconds at most, for relays count and time them out themselves
    (SES: some 350 mails); counting first spares a 421. Both are looked at when it is taken and when it is given back.

    Args:
        timeout_s: for each reply. RFC 5321 would have 5 minutes; a path that slow counts as broken here.
        after_dot_timeout_s: for the reply to the final dot. RFC 5321 4.5.3.2.6 says 10 minutes: giving up sooner makes
            duplicates, since the server has the mail by then.
        connect_timeout_s: for DNS, TCP and, with smtps, TLS together.
        local_hostname: said in EHLO. None: this host's name if it has a domain, else the address of our end.
        clock: monotonic seconds.

    Raises:
        ValueError: local_hostname is no host name, or the endpoint's CA file cannot be read.
    """

    def __init__(
        self,
        endpoint: SmtpEndpoint,
        *,
        size: int,
        timeout_s: float = 30,
        after_dot_timeout_s: float = 600,
        connect_timeout_s: float = 10,
        max_mails: int = 100,
        max_age_s: float = 60,
        local_hostname: str | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        name = local_hostname or socket.gethostname()
        usable = HOST.fullmatch(name) is not None
        if local_hostname and not usable:
            raise ValueError(f"local_hostname={local_hostname!r}: allowed is a host name")
        self._local_hostname = name if usable and (local_hostname or "." in name) else None
        self._endpoint = endpoint
        self._tls = endpoint.tls_context()
        self._timeout_s = timeout_s
        self._after_dot_timeout_s = after_dot_timeout_s
        self._connect_timeout_s = connect_timeout_s
        self._max_mails = max_mails
        self._max_age_s = max_age_s
        self._clock = clock
        self._slots = asyncio.Semaphore(size)
        self._idle: list[SmtpConnection] = []
        self._taken: set[SmtpConnection] = set()
        self._closing = False

    @property
    def idle(self) -> int:
        """Connections that are kept for reuse."""
        return len(self._idle)

    @property
    def in_use(self) -> int:
        """Connections that are taken, those being opened included."""
        return len(self._taken)

    async def acquire(self, *, fresh: bool = False) -> SmtpConnection | SmtpResult:
        """A connection ready for MAIL, or why there is none. Waits while `size` are taken. Give it back by `release`.

        Args:
            fresh: make a new one and close those that lie idle: asked for when one of them turned out to be dead, for
                what killed it (a restart, a forgetful firewall) has mostly killed its neighbours.
        """
        await self._slots.acquire()
        conn: SmtpConnection | None = None
        try:
            while self._idle:
                conn = self._idle.pop()  # the newest: the others may grow old and be closed
                self._taken.add(conn)
                if not fresh and self.serves(conn) and await conn.reset():
                    return conn
                self._drop(conn)
            conn = SmtpConnection(
                timeout_s=self._timeout_s, after_dot_timeout_s=self._after_dot_timeout_s, made_at=self._clock()
            )
            self._taken.add(conn)
            failure = await conn.open(self._endpoint, self._tls, self._local_hostname, self._connect_timeout_s)
        except BaseException:
            if conn is not None:
                self._drop(conn)
            self._slots.release()
            raise
        if failure is None and self._closing:
            failure = SmtpResult(phase=Phase.CONNECT, fault=Fault.CANCELLED)
        if failure is None:
            return conn
        self._drop(conn)
        self._slots.release()
        return failure

    def release(self, conn: SmtpConnection) -> None:
        """Give it back; it is kept only if it is clean. A second time does nothing."""
        if conn not in self._taken:
            return
        if self.serves(conn) and not self._closing:
            self._taken.remove(conn)
            conn.fresh = False
            self._idle.append(conn)
        else:
            self._drop(conn)
        self._slots.release()

    def refresh(self) -> None:
        """Close what lies idle: what ended one of them (a restart, a firewall) has mostly ended all."""
        while self._idle:
            self._drop(self._idle.pop())

    def serves(self, conn: SmtpConnection) -> bool:
        """Whether it is clean and neither too old nor used up."""
        return conn.clean and conn.mails < self._max_mails and self._clock() - conn.made_at < self._max_age_s

    async def close(self) -> None:
        """Close all, those in use as well: who awaits the reply to a dot is to be waited for before."""
        self._closing = True
        conns = [*self._idle, *self._taken]
        for conn in self._idle:
            conn.leave()
        for conn in self._taken:
            conn.abort()
        self._idle.clear()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(1):  # TLS wants to say goodbye too, and a dead peer never answers
                for conn in conns:
                    await conn.closed()
        for conn in conns:
            conn.abort()

    def _drop(self, conn: SmtpConnection) -> None:
        self._taken.discard(conn)
        conn.leave()


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
