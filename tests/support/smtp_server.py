"""An SMTP server to be broken on purpose: a real dialogue over real sockets, scripted by phase, all of it recorded.

    async with SmtpServer() as server:
        server.on("rcpt", Reply(550, "5.1.1 unknown"))                    # for every mail
        server.on("dot", lambda t: Reset() if "bob" in t.rcpt else None)  # None: as usual
        server.on("mail", Reply(421), times=1)                            # once, then as usual

A script is an action, or a function from the transaction so far to an action or None. Raw asyncio and not aiosmtpd,
which cannot answer late, half, not at all, or with a reset after the dot. It runs in the test's process, on 127.0.0.1
and a port of its own, and serves other processes as well as this one.
"""

import asyncio
import base64
import contextlib
import socket
import ssl
import struct
import subprocess
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Literal, Self

from tests.support.processes import free_port

Phase = Literal["greeting", "ehlo", "starttls", "auth", "mail", "rcpt", "data", "dot", "rset", "quit"]


@dataclass(frozen=True)
class Reply:
    """Answer so, after `delay_s`. A 421 closes the connection, as the RFC wants it."""

    code: int
    text: str = "scripted"
    delay_s: float = 0.0


@dataclass(frozen=True)
class Late:
    """At the dot: take the mail at once, say 250 only after `delay_s`. Elsewhere: as usual, but late."""

    delay_s: float


@dataclass(frozen=True)
class Silence:
    """Never answer; the connection stays open until the client closes it. `accept` takes the mail first (dot)."""

    accept: bool = False


@dataclass(frozen=True)
class Reset:
    """RST. `accept` takes the mail first (dot); `body_bytes` sends 354 and resets after so many bytes of it (data)."""

    accept: bool = False
    body_bytes: int | None = None


@dataclass(frozen=True)
class Drop:
    """FIN. `accept` takes the mail first (dot)."""

    accept: bool = False


@dataclass(frozen=True)
class Raw:
    """Send these bytes instead of a reply, as they are: garbage, half a reply, two replies at once."""

    data: bytes = b"what was that?\r\n"


Action = Reply | Late | Silence | Reset | Drop | Raw
Script = Action | Callable[["Transaction"], Action | None]


@dataclass
class Transaction:
    """One mail as the server saw it, from MAIL on."""

    connection: int
    mail_at: float
    """Monotonic seconds of the host, comparable between processes."""
    mail_at_wall: float
    """Seconds since 1970."""
    mail_from: str = ""
    rcpts: list[str] = field(default_factory=list)
    content: bytes = b""
    """Dot-unstuffed, CRLF."""
    accepted: bool = False
    accepted_at: float | None = None
    """Monotonic."""
    asked_for: str = ""
    """The last recipient that was named, whether or not it was taken."""
    replies: list[tuple[Phase, int, str]] = field(default_factory=list)
    """What it was told, phase by phase; code 0: nothing (silence, reset, dropped, garbage)."""
    told: int | None = None
    """How many bytes the connection had been sent when the 2xx to the dot was out; None: it never was."""
    ended_at: float | None = None
    """Monotonic: the reply to the dot was written, or the connection was over; None: given up before."""

    @property
    def rcpt(self) -> str:
        """The one recipient, or the last of several; empty before RCPT."""
        return self.rcpts[-1] if self.rcpts else ""

    @property
    def message_id(self) -> str | None:
        for line in self.content.partition(b"\r\n\r\n")[0].split(b"\r\n"):
            name, _, value = line.partition(b":")
            if name.lower() == b"message-id":
                return value.strip().decode("ascii", "replace")
        return None


class SmtpServer:
    """Listens on entering; every connection is cut on leaving.

    Args:
        port: 0 takes a free one.
        tls: a context for `tls_mode`: "implicit" from the first byte, "starttls" after the command.
        credentials: offers AUTH, and takes this user and password only.
        auth_methods: what EHLO names.
        bodies: False keeps only the headers of a mail, for those that send very many.
    """

    def __init__(
        self,
        *,
        port: int = 0,
        tls: ssl.SSLContext | None = None,
        tls_mode: Literal["implicit", "starttls"] = "starttls",
        credentials: tuple[str, str] | None = None,
        auth_methods: str = "PLAIN LOGIN",
        bodies: bool = True,
    ) -> None:
        self.host = "127.0.0.1"
        self.port = port or free_port()  # none that a connection could get while it refuses
        self.tls = tls
        self.tls_mode = tls_mode
        self.credentials = credentials
        self.auth_methods = auth_methods
        self.bodies = bodies
        self.connections: list[Session] = []
        """All there ever were; the index is the number in `Transaction.connection`."""
        self.transactions: list[Transaction] = []
        """One for every MAIL that got a 250."""
        self.begun: list[Transaction] = []
        """One for every MAIL, whatever the answer."""
        self.accepted: list[Transaction] = []
        """Those taken after the dot, in the order of taking, whether or not the client came to hear of it."""
        self.mails_begun: list[float] = []
        """Monotonic time of every MAIL command, whatever the answer."""
        self._scripts: dict[Phase, tuple[Script, int | None]] = {}
        self._listener: asyncio.Server | None = None
        self._tasks: set[asyncio.Task[None]] = set()

    async def __aenter__(self) -> Self:
        await self.listen()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.refuse()

    def on(self, phase: Phase, script: Script | None, *, times: int | None = None) -> None:
        """What to do in this phase from now on, or the next `times` times; None: as usual again."""
        if script is None:
            self._scripts.pop(phase, None)
        else:
            self._scripts[phase] = (script, times)

    async def listen(self) -> None:
        """Take connections (again), on the same port as before."""
        implicit = self.tls if self.tls_mode == "implicit" else None
        self._listener = await asyncio.start_server(self._serve, self.host, self.port, ssl=implicit, backlog=1024)
        self.port = self._listener.sockets[0].getsockname()[1]

    async def refuse(self, *, cut: bool = True) -> None:
        """Stop listening, so that connects are refused; `cut` also resets the connections there are."""
        if self._listener is not None:
            self._listener.close()
            self._listener = None
        if cut:
            for session in self.connections:
                session.reset()
            for task in list(self._tasks):
                task.cancel()
            await asyncio.gather(*self._tasks, return_exceptions=True)

    def close_idle(self, for_s: float = 0.0) -> None:
        """Say 421 and close the connections that said nothing for so long."""
        for session in self.connections:
            if session.open and time.monotonic() - session.heard_at >= for_s:
                session.writer.write(b"421 4.4.2 idle too long\r\n")
                session.writer.close()

    def script(self, phase: Phase, transaction: Transaction) -> Action | None:
        """The action that is due, and one fewer left."""
        script, times = self._scripts.get(phase, (None, None))
        action = script(transaction) if callable(script) else script
        if script is not None and action is not None and times is not None:
            self.on(phase, script if times > 1 else None, times=times - 1)
        return action

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        session = Session(self, len(self.connections), reader, writer)
        self.connections.append(session)
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        try:
            await session.run()
        except (OSError, EOFError, asyncio.LimitOverrunError, asyncio.CancelledError, _Gone):
            pass  # the client went, or the test is over: nobody waits for this task
        finally:
            session.closed_at = time.monotonic()
            session.over()
            self._tasks.discard(task)
            writer.close()  # and no wait_closed(): up to Python 3.11 it never ends after a failed handshake


class Session:
    """One connection."""

    def __init__(
        self, server: SmtpServer, number: int, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        self.server = server
        self.number = number
        self.reader = reader
        self.writer = writer
        self._socket: socket.socket = writer.get_extra_info("socket")
        self.opened_at = time.monotonic()
        self.closed_at: float | None = None
        self.heard_at = self.opened_at
        """When the client's last command was answered."""
        self.peer_port: int = writer.get_extra_info("peername")[1]
        self.sent_bytes = 0
        """Given to the transport, before any TLS."""
        self.commands: list[str] = []
        """Every command line as it came."""
        self.secure = server.tls is not None and server.tls_mode == "implicit"
        self.authenticated = False
        self._now = self._nothing()
        self._commands: dict[str, Callable[[str], Awaitable[None]]] = {
            "EHLO": self._ehlo,
            "HELO": self._ehlo,
            "STARTTLS": self._starttls,
            "AUTH": self._auth,
            "MAIL": self._mail,
            "RCPT": self._rcpt,
            "DATA": self._data,
            "RSET": self._rset,
            "NOOP": self._noop,
            "QUIT": self._quit,
        }

    @property
    def open(self) -> bool:
        return self.closed_at is None

    def over(self) -> None:
        """The transaction, if there is one, has ended."""
        self._now.ended_at = time.monotonic()

    @property
    def verbs(self) -> list[str]:
        """The commands without their arguments."""
        return [command.partition(" ")[0].upper() for command in self.commands]

    def reset(self) -> None:
        """RST: what is not yet sent is dropped, and so is what was not yet read."""
        with contextlib.suppress(OSError, ValueError):  # closed already, as asyncio and as uvloop say it
            self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.writer.transport.abort()

    async def run(self) -> None:
        await self._answer("greeting", 220, "test ESMTP")
        while True:
            line = await self._line()
            self.commands.append(line)
            verb, _, argument = line.partition(" ")
            handler = self._commands.get(verb.upper())
            if handler is None:
                await self._say(500, "5.5.2 unknown command")
            else:
                await handler(argument)
            self.heard_at = time.monotonic()

    async def _ehlo(self, argument: str) -> None:
        lines = ["test"]
        if self.server.tls is not None and not self.secure:
            lines.append("STARTTLS")
        if self.server.credentials is not None:
            lines.append(f"AUTH {self.server.auth_methods}")
        await self._answer("ehlo", 250, "\n".join([*lines, "8BITMIME"]))

    async def _starttls(self, argument: str) -> None:
        if self.server.tls is None or self.secure:
            return await self._say(502, "5.5.1 not offered")
        if await self._answer("starttls", 220, "go"):
            await self.writer.start_tls(self.server.tls)
            self.secure = True
        return None

    async def _auth(self, argument: str) -> None:
        if self.server.credentials is None:
            return await self._say(502, "5.5.1 not offered")
        method, _, initial = argument.partition(" ")
        if method.upper() == "PLAIN":
            given = base64.b64decode(initial or await self._challenge("")).decode().split("\0")[1:]
        else:
            user = initial or await self._challenge("Username:")
            given = [base64.b64decode(x).decode() for x in (user, await self._challenge("Password:"))]
        self.authenticated = tuple(given) == self.server.credentials
        if self.authenticated:
            await self._answer("auth", 235, "2.7.0 welcome")
        else:
            await self._answer("auth", 535, "5.7.8 bad credentials")
        return None

    async def _mail(self, argument: str) -> None:
        self._now = self._nothing()
        self._now.mail_from = _between_angles(argument)
        self.server.mails_begun.append(self._now.mail_at)
        self.server.begun.append(self._now)
        if self.server.credentials is not None and not self.authenticated:
            return await self._say(530, "5.7.0 authentication required")
        if await self._answer("mail", 250, "2.1.0 ok"):
            self.server.transactions.append(self._now)
        else:
            self._now = self._nothing()
        return None

    async def _rcpt(self, argument: str) -> None:
        if not self._now.mail_from:
            return await self._say(503, "5.5.1 MAIL first")
        self._now.rcpts.append(_between_angles(argument))
        self._now.asked_for = self._now.rcpt
        if not await self._answer("rcpt", 250, "2.1.5 ok"):
            self._now.rcpts.pop()
        return None

    async def _data(self, argument: str) -> None:
        if not self._now.rcpts:
            return await self._say(503, "5.5.1 RCPT first")
        if not await self._answer("data", 354, "go on"):
            return None
        lines = []
        while (line := await self.reader.readuntil(b"\r\n")) != b".\r\n":
            lines.append(line[1:] if line.startswith(b".") else line)
        content = b"".join(lines)
        self._now.content = content if self.server.bodies else content.partition(b"\r\n\r\n")[0]
        await self._answer("dot", 250, "2.0.0 queued")
        self.over()
        self._now = self._nothing()
        return None

    async def _rset(self, argument: str) -> None:
        if await self._answer("rset", 250, "2.0.0 ok"):
            self._now = self._nothing()

    async def _noop(self, argument: str) -> None:
        await self._say(250, "2.0.0 ok")

    async def _quit(self, argument: str) -> None:
        await self._answer("quit", 221, "2.0.0 bye")
        raise _Gone

    async def _answer(self, phase: Phase, code: int, text: str) -> bool:
        """Do what the script says, or answer as usual. Whether the client may go on to the next phase."""
        usual, now = code, self._now
        action = self.server.script(phase, now)
        now.replies.append((phase, code, text) if isinstance(action, Late | None) else (phase, 0, ""))
        match action:
            case Reply(code=code, text=text, delay_s=delay_s):
                now.replies[-1] = (phase, code, text)
                await asyncio.sleep(delay_s)
            case Late(delay_s=delay_s):
                self._take(phase, code)
                await self._say(code, text, after_s=delay_s)
                self._tell(phase, now)
                return True
            case Silence(accept=accept):
                self._take(phase, code if accept else 0)
                while await self.reader.read(4096):
                    pass
                raise _Gone
            case Reset(accept=accept, body_bytes=body_bytes):
                self._take(phase, code if accept else 0)
                if body_bytes is not None:
                    now.replies[-1] = (phase, code, text)
                    await self._say(code, text)
                    await self.reader.readexactly(body_bytes)
                self.reset()
                raise _Gone
            case Drop(accept=accept):
                self._take(phase, code if accept else 0)
                raise _Gone
            case Raw(data=data):
                self._write(data)
                await self.writer.drain()
                return False
            case None:
                pass
        self._take(phase, code)
        await self._say(code, text)
        self._tell(phase, now)
        if code == 421:
            raise _Gone
        return code // 100 == usual // 100

    def _take(self, phase: Phase, code: int) -> None:
        if phase == "dot" and code // 100 == 2:
            self._now.accepted, self._now.accepted_at = True, time.monotonic()
            self.server.accepted.append(self._now)

    def _tell(self, phase: Phase, now: Transaction) -> None:
        if phase == "dot" and now.accepted and not self.writer.transport.is_closing():
            now.told = self.sent_bytes

    def _write(self, data: bytes) -> None:
        self.writer.write(data)
        self.sent_bytes += len(data)

    async def _say(self, code: int, text: str, *, after_s: float = 0.0) -> None:
        await asyncio.sleep(after_s)
        *first, last = text.split("\n")
        lines = [*(f"{code}-{line}\r\n" for line in first), f"{code} {last}\r\n"]
        self._write("".join(lines).encode("utf-8", "surrogateescape"))
        await self.writer.drain()

    async def _challenge(self, text: str) -> str:
        await self._say(334, base64.b64encode(text.encode()).decode())
        return await self._line()

    async def _line(self) -> str:
        return (await self.reader.readuntil(b"\n")).decode("latin-1").rstrip("\r\n")

    def _nothing(self) -> Transaction:
        return Transaction(connection=self.number, mail_at=time.monotonic(), mail_at_wall=time.time())


class _Gone(Exception):
    """The connection is over, and that was the plan."""


def make_certificate(directory: Path) -> tuple[Path, ssl.SSLContext] | None:
    """A self-signed certificate for localhost and 127.0.0.1: the file to trust, and a server's context with it.

    None without an `openssl` command.
    """
    cert, key = directory / "cert.pem", directory / "key.pem"
    command = (
        "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 2 -subj /CN=localhost "
        f"-addext subjectAltName=DNS:localhost,IP:127.0.0.1 -keyout {key} -out {cert}"
    )
    try:
        subprocess.run(command.split(), check=True, capture_output=True)
    except FileNotFoundError:
        return None
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(cert, key)
    return cert, context


def _between_angles(argument: str) -> str:
    return argument.partition("<")[2].partition(">")[0]
