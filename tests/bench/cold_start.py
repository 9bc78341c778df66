"""From `just up` on nothing to the first 201; the floor is a broker with one stream and a bare ASGI app."""

import asyncio
import shutil
import sys
import time
from pathlib import Path

from tests.bench.stacks import bare
from tests.support.processes import ROOT, Process, free_port

_PORTS = (
    *("NATS_PORT", "NATS_MONITORING_PORT", "INBOX_SMTP_PORT", "INBOX_HTTP_PORT"),
    *("HTTP_PORT", "USER_METRICS_PORT", "EMAIL_METRICS_PORT"),
)


async def mailflow_s(folder: Path) -> float:
    """Seconds; the first 201 is durable, and its mail will be sent."""
    env = {name: str(free_port()) for name in _PORTS} | {"MAILFLOW_DATA": str(folder / "data")}
    uv = shutil.which("uv")
    command = [uv, "run", "just", "up"] if uv else [sys.executable, str(ROOT / "deploy" / "local" / "up.py")]
    process = Process("up", command, folder, env)
    began = time.monotonic()
    process.start()
    try:
        await _first_201(int(env["HTTP_PORT"]), process)
        return time.monotonic() - began
    finally:
        await process.terminate(30)


async def floor_s(folder: Path) -> float:
    """The same of the floor."""
    began = time.monotonic()
    async with bare(folder, "always", 0) as stack:
        await _first_201(stack.http_port, stack.services[0])
        return time.monotonic() - began


async def _first_201(port: int, process: Process) -> None:
    body = b'{"email": "first@example.com", "name": "First"}'
    head = b"POST /v1/users HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n"
    until = time.monotonic() + 60
    while time.monotonic() < until:
        assert process.running, process.text()[-3000:]
        try:
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.write(head % len(body) + body)
            status = (await reader.readline())[9:12]
            writer.close()
            if status == b"201":
                return
        except OSError:
            pass
        await asyncio.sleep(0.01)  # so exact is the figure
    raise AssertionError(f"no 201 within a minute: {process.text()[-3000:]}")
