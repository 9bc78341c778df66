"""A TCP proxy between two parts of the system, to break the network between them.

    Gate("email_svc~smtp", port)     await gate.listen()     gate.url_port

    gate.cut()            RST to both ends of every connection, and to who comes
    gate.black_hole()     what is sent is swallowed; who comes is accepted and hears nothing
    gate.half_open()      the server's end is reset, the client's hears nothing; who comes as in a black hole
    gate.delay_s = 0.2    each chunk is so late, in order, both ways
    gate.mend()           as usual again; what lost bytes meanwhile is reset

In-process asyncio, both directions; it remembers every connection by the port that the server sees, and how many bytes
it has handed back, so that a server's log can say who was told what.
"""

import asyncio
import contextlib
import socket
import struct
import time
from collections import deque
from typing import Literal, cast


class Link:
    """One connection through a gate."""

    def __init__(self, gate: "Gate") -> None:
        self.gate = gate
        self.opened_at = time.monotonic()
        self.port: int | None = None
        """Our end towards the server: what the server sees."""
        self.handed_back = 0
        """Bytes from the server that were given to the client's socket."""
        self.reset_at: float | None = None
        self.swallowing = False
        self.client = _End(self)
        self.server = _End(self)
        self.client.other, self.server.other = self.server, self.client

    def reset(self) -> None:
        """RST to both ends."""
        if self.reset_at is None:
            self.reset_at = time.monotonic()
        self.client.reset()
        self.server.reset()

    async def connect(self) -> None:
        """Towards the server; what the client says meanwhile waits."""
        try:
            await asyncio.get_running_loop().create_connection(lambda: self.server, "127.0.0.1", self.gate.to_port)
        except OSError:
            self.reset()
            self.gate.links.discard(self)


class _End(asyncio.Protocol):
    """One end of a link. `late` holds what is to be written here: bytes, or None for the end."""

    other: "_End"

    def __init__(self, link: Link) -> None:
        self.link = link
        self.transport: asyncio.Transport | None = None
        self.late: deque[bytes | None] = deque()
        self.due = 0.0
        self.ended = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)
        link = self.link
        if self is link.server:
            link.port = transport.get_extra_info("sockname")[1]
            if link.client.ended:
                self.reset()
            while self.late and not self.ended:
                self._write(self.late.popleft())
        else:
            link.gate.accepted(link)

    def data_received(self, data: bytes) -> None:
        self.other.give(data)

    def eof_received(self) -> bool:
        self.other.give(None)
        return True

    def connection_lost(self, exc: Exception | None) -> None:
        self.ended = True
        if self.link.swallowing:
            return  # the other end does not hear of it
        if exc is not None:
            self.other.reset()
        else:
            self.other.give(None)
        if self.other.ended:
            self.link.gate.links.discard(self.link)

    def pause_writing(self) -> None:
        if self.other.transport is not None:
            self.other.transport.pause_reading()

    def resume_writing(self) -> None:
        if self.other.transport is not None and not self.other.transport.is_closing():
            self.other.transport.resume_reading()

    def give(self, data: bytes | None) -> None:
        """Bytes for this end, or the end: now, or as late as the gate says."""
        if self.link.swallowing or self.ended:
            return
        loop = asyncio.get_running_loop()
        self.due = max(self.due, loop.time() + self.link.gate.delay_s)
        if self.transport is None:
            self.late.append(data)
        elif self.late or self.due > loop.time():
            self.late.append(data)
            loop.call_at(self.due, self._write_next)
        else:
            self._write(data)

    def _write_next(self) -> None:
        if self.late:
            self._write(self.late.popleft())

    def _write(self, data: bytes | None) -> None:
        if self.transport is None or self.ended or self.link.swallowing:
            return
        if data is None:
            self.transport.close()
            return
        self.transport.write(data)
        if self is self.link.client:
            self.link.handed_back += len(data)

    def reset(self) -> None:
        """RST; also where nothing is connected yet."""
        self.ended = True
        if self.transport is not None:
            sock = self.transport.get_extra_info("socket")
            if sock is not None:  # else it is closed already; so it is where this fails
                with contextlib.suppress(OSError, ValueError):
                    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            self.transport.abort()


class Gate:
    """One listener in front of one server's port."""

    def __init__(self, name: str, to_port: int) -> None:
        self.name = name
        self.to_port = to_port
        self.port = 0
        self.delay_s = 0.0
        self.links: set[Link] = set()
        self.log: list[Link] = []
        """All there ever were."""
        self._mode: Literal["open", "cut", "swallow"] = "open"
        self._connecting: set[asyncio.Task[None]] = set()
        self._listener: asyncio.Server | None = None

    async def listen(self) -> None:
        """On a free port of 127.0.0.1."""
        loop = asyncio.get_running_loop()
        self._listener = await loop.create_server(lambda: Link(self).client, "127.0.0.1", self.port, backlog=1024)
        self.port = self._listener.sockets[0].getsockname()[1]

    def close(self) -> None:
        """Everything."""
        if self._listener is not None:
            self._listener.close()
        self.reset_all()

    def accepted(self, link: Link) -> None:
        """A client is there."""
        self.links.add(link)
        self.log.append(link)
        match self._mode:
            case "cut":
                link.reset()
            case "swallow":
                link.swallowing = True
            case "open":
                task = asyncio.get_running_loop().create_task(link.connect())
                self._connecting.add(task)
                task.add_done_callback(self._connecting.discard)

    def reset_all(self) -> None:
        """RST to every connection there is; new ones are as usual."""
        for link in list(self.links):
            link.swallowing = False
            link.reset()
        self.links.clear()

    def cut(self) -> None:
        """No way through, and everybody hears so."""
        self._mode = "cut"
        self.reset_all()

    def black_hole(self) -> None:
        """No way through, and nobody hears so."""
        self._mode = "swallow"
        for link in self.links:
            link.swallowing = True

    def half_open(self) -> None:
        """A black hole for the client; the server hears that it is gone."""
        self.black_hole()
        for link in self.links:
            link.server.reset()

    def mend(self) -> None:
        """As usual. A connection that lost bytes is reset, as a real one would end that was cut for long."""
        self._mode, self.delay_s = "open", 0.0
        for link in [link for link in self.links if link.swallowing]:
            link.swallowing = False
            link.reset()
            self.links.discard(link)
