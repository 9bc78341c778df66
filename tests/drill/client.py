"""A light HTTP/1.1 client: keep-alive, Content-Length, JSON, nothing else; httpx would not keep up with a drill."""

import asyncio
import json
import time
from typing import Any

_IDLE_S = 2.0
"""A server may close what idles for 5 s at the moment it is used again."""


class Http:
    """To one port of 127.0.0.1; as many connections as are needed at once."""

    def __init__(self, port: int) -> None:
        self.port = port
        self._idle: list[tuple[float, asyncio.StreamReader, asyncio.StreamWriter]] = []

    async def ask(
        self,
        method: str,
        path: str,
        body: Any = None,
        headers: dict[str, str] | None = None,
        *,
        within_s: float = 5.0,
    ) -> tuple[int | None, Any]:
        """Status and decoded body; (None, None) if no whole answer came."""
        lines = [f"{method} {path} HTTP/1.1", f"Host: 127.0.0.1:{self.port}"]
        lines += [f"{name}: {value}" for name, value in (headers or {}).items()]
        data = b"" if body is None else json.dumps(body).encode()
        if body is not None:
            lines += ["Content-Type: application/json", f"Content-Length: {len(data)}"]
        writer: asyncio.StreamWriter | None = None
        try:
            async with asyncio.timeout(within_s):
                reader, writer = await self._connection()
                writer.write("\r\n".join([*lines, "", ""]).encode() + data)
                head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
                fields = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in head[1:])}
                answer = await reader.readexactly(int(fields.get("content-length", 0)))
        except (OSError, EOFError, TimeoutError, asyncio.LimitOverrunError):
            if writer is not None:
                writer.transport.abort()
            return None, None
        except BaseException:
            if writer is not None:
                writer.transport.abort()
            raise
        if fields.get("connection", "").lower() == "close":
            writer.close()
        else:
            self._idle.append((time.monotonic(), reader, writer))
        return int(head[0].split(" ")[1]), json.loads(answer) if answer[:1] in (b"{", b"[") else None

    async def _connection(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        now = time.monotonic()
        while self._idle:
            since, reader, writer = self._idle.pop()
            if now - since < _IDLE_S and not writer.is_closing() and not reader.at_eof():
                return reader, writer
            writer.transport.abort()
        return await asyncio.open_connection("127.0.0.1", self.port)

    def close(self) -> None:
        """All connections that are kept."""
        for _, _, writer in self._idle:
            writer.transport.abort()
        self._idle.clear()
