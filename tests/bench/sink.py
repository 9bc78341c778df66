"""An SMTP server that only notes when it accepted whose mail: fast, in a process of its own, driven over its stdin.

    count   how many mails since the last `take`
    take    {number of the user: time it was accepted}, and forgets them; of a mail that came twice, the first time
    down    closes its port and every connection
    up      listens again

Times are CLOCK_MONOTONIC's, which all processes of a machine share.
"""

import asyncio
import json
import subprocess
import sys
import time
from types import TracebackType
from typing import Any, Self

import uvloop

_REPLIES = {b"DATA": b"354 go on\r\n", b"QUIT": b"221 bye\r\n"}


class Sink:
    """The process, as an async context manager; `port` is known once it is entered."""

    async def __aenter__(self) -> Self:
        self._process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "tests.bench.sink"),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            limit=2**26,
        )
        self.port = int(await self._ask("up"))
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()  # the end of its input is the end of it
        await self._process.wait()

    async def count(self) -> int:
        return int(await self._ask("count"))

    async def take(self) -> dict[int, float]:
        return {int(n): at for n, at in (await self._ask("take")).items()}

    async def down(self) -> None:
        await self._ask("down")

    async def up(self) -> None:
        await self._ask("up")

    async def _ask(self, word: str) -> Any:
        process = self._process
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write(f"{word}\n".encode())
        return json.loads(await process.stdout.readline())


_open: set[asyncio.Transport] = set()
_accepted: dict[int, float] = {}


class _Session(asyncio.Protocol):
    transport: asyncio.Transport

    def __init__(self) -> None:
        self._buffer = b""
        self._in_data = False
        self._recipient = -1

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport  # type: ignore[assignment]
        _open.add(self.transport)
        self.transport.write(b"220 sink\r\n")

    def connection_lost(self, exc: Exception | None) -> None:
        _open.discard(self.transport)

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        while True:
            end = b"\r\n.\r\n" if self._in_data else b"\r\n"
            unit, found, rest = self._buffer.partition(end)
            if not found:
                return
            self._buffer = rest
            if self._in_data:
                _accepted.setdefault(self._recipient, time.monotonic())
                self._in_data = False
                self.transport.write(b"250 queued\r\n")
            else:
                self._command(unit)

    def _command(self, line: bytes) -> None:
        verb = line[:4].upper()
        if verb == b"RCPT":
            self._recipient = int(line.partition(b"<user")[2].partition(b"@")[0])
        self._in_data = verb == b"DATA"
        self.transport.write(_REPLIES.get(verb, b"250 ok\r\n"))
        if verb == b"QUIT":
            self.transport.close()


async def _serve() -> None:
    loop, port, server = asyncio.get_running_loop(), 0, None
    reader = asyncio.StreamReader()
    await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
    while word := (await reader.readline()).strip():
        answer: Any = 0
        match word:
            case b"count":
                answer = len(_accepted)
            case b"take":
                answer = dict(_accepted)
                _accepted.clear()
            case b"up":
                server = await loop.create_server(_Session, "127.0.0.1", port, backlog=256)
                answer = port = server.sockets[0].getsockname()[1]
            case b"down" if server is not None:
                server.close()
                for transport in list(_open):
                    transport.abort()
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    uvloop.run(_serve())
