"""Registrations by hand over keep-alive connections, in a process of its own: an HTTP library costs more than the
service. Users are numbered, `user<n>@example.com`.

    python -m tests.bench.load --port 8080 --first 0 --seconds 3 --connections 64       as fast as it goes
    python -m tests.bench.load --port 8080 --first 0 --seconds 3 --rate 100             so many a second, come what may
"""

import argparse
import asyncio
import itertools
import json
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass

import uvloop

_ANSWERED_WITHIN_S = 30


@dataclass(frozen=True)
class Answers:
    """What came of a load: each user's time of the request and of the 201, CLOCK_MONOTONIC; `other` had none."""

    sent: dict[int, float]
    answered: dict[int, float]
    other: dict[str, int]

    @property
    def per_s(self) -> float:
        return (len(self.answered) - 1) / (max(self.answered.values()) - min(self.sent.values()))

    @property
    def latencies(self) -> list[float]:
        return [at - self.sent[n] for n, at in self.answered.items()]


async def load(port: int, first: int, seconds: float, *, connections: int = 64, rate: float = 0) -> Answers:
    """Runs it. Anything but 201 fails it: every stack must do the same job."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "tests.bench.load", "--port", str(port), "--first", str(first)),
        *("--seconds", str(seconds), "--connections", str(connections), "--rate", str(rate)),
        stdout=subprocess.PIPE,
    )
    said = json.loads((await process.communicate())[0])
    numbers = ({int(n): at for n, at in said[key].items()} for key in ("sent", "answered"))
    answers = Answers(*numbers, said["other"])
    assert answers.answered, f"nobody was registered: {answers.other}"
    assert not answers.other, f"not only 201: {answers.other}"
    return answers


class _Connection(asyncio.Protocol):
    transport: asyncio.Transport

    def __init__(self) -> None:
        self._buffer = b""
        self._waiting: asyncio.Future[str] | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport  # type: ignore[assignment]

    def connection_lost(self, exc: Exception | None) -> None:
        if self._waiting is not None and not self._waiting.done():
            self._waiting.set_result("lost")

    def ask(self, n: int) -> asyncio.Future[str]:
        """The status of the answer to user n's registration."""
        body = b'{"email": "user%d@example.com", "name": "User %d"}' % (n, n)
        self._waiting = asyncio.get_running_loop().create_future()
        self.transport.write(
            b"POST /v1/users HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\n"
            b"Content-Length: %d\r\n\r\n%b" % (len(body), body)
        )
        return self._waiting

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        head, found, body = self._buffer.partition(b"\r\n\r\n")
        if not found:
            return
        length = int(head.lower().partition(b"content-length: ")[2].partition(b"\r")[0])
        if len(body) >= length and self._waiting is not None and not self._waiting.done():
            self._buffer = b""
            self._waiting.set_result(head[9:12].decode())


class _Load:
    def __init__(self, port: int) -> None:
        self._port = port
        self.sent: dict[int, float] = {}
        self.answered: dict[int, float] = {}
        self.other: dict[str, int] = {}

    async def connection(self) -> _Connection:
        return (await asyncio.get_running_loop().create_connection(_Connection, "127.0.0.1", self._port))[1]

    async def one(self, connection: _Connection, n: int) -> None:
        self.sent[n] = time.monotonic()
        async with asyncio.timeout(_ANSWERED_WITHIN_S):
            status = await connection.ask(n)
        if status == "201":
            self.answered[n] = time.monotonic()
        else:
            self.other[status] = self.other.get(status, 0) + 1

    async def one_after_another(self, numbers: Iterator[int], until: float) -> None:
        connection = await self.connection()
        while time.monotonic() < until:
            await self.one(connection, next(numbers))

    async def at_a_rate(self, numbers: Iterator[int], seconds: float, rate: float) -> None:
        idle = [await self.connection() for _ in range(8)]
        began, tasks = time.monotonic(), []

        async def on_any(n: int) -> None:
            connection = idle.pop() if idle else await self.connection()
            await self.one(connection, n)
            idle.append(connection)

        for i in range(max(1, int(seconds * rate))):
            await asyncio.sleep(began + i / rate - time.monotonic())  # the rate itself
            tasks.append(asyncio.create_task(on_any(next(numbers))))
        await asyncio.gather(*tasks)


async def _main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--first", type=int, required=True)
    parser.add_argument("--seconds", type=float, required=True)
    parser.add_argument("--connections", type=int, default=64)
    parser.add_argument("--rate", type=float, default=0)
    chosen = parser.parse_args()
    made, numbers = _Load(chosen.port), itertools.count(chosen.first)
    if chosen.rate:
        await made.at_a_rate(numbers, chosen.seconds, chosen.rate)
    else:
        until = time.monotonic() + chosen.seconds
        await asyncio.gather(*(made.one_after_another(numbers, until) for _ in range(chosen.connections)))
    print(json.dumps({"sent": made.sent, "answered": made.answered, "other": made.other}))


if __name__ == "__main__":
    uvloop.run(_main())
