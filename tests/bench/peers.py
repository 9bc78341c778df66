"""The peers, as processes: FastStream on NATS, Celery on Redis. `missing` says what they need."""

import contextlib
import importlib.util
import shutil
import sys
from collections.abc import AsyncIterator
from pathlib import Path

from tests.bench.raw_loop import AT_ONCE
from tests.bench.stacks import START_WITHIN_S, Stack, listening, nats_server, users_as_json
from tests.support.processes import Process, free_port, stopping
from tests.support.waiting import eventually


def missing(name: str) -> str:
    """What to install for that stack; empty: nothing."""
    absent = [
        how
        for stack, there, how in (
            ("FastStream", importlib.util.find_spec("faststream"), "`uv sync --group bench`"),
            ("Celery", importlib.util.find_spec("celery"), "`uv sync --group bench`"),
            ("Celery", shutil.which("redis-server"), "redis-server (apt install redis-server)"),
        )
        if stack == name and not there
    ]
    return " and ".join(absent)


def _front_and_worker(
    folder: Path, name: str, front: list[str], worker: list[str], env: dict[str, str]
) -> list[Process]:
    commands = {f"{name}-front": front, f"{name}-worker": worker}
    return [Process(each, [sys.executable, "-m", *command], folder, env) for each, command in commands.items()]


@contextlib.asynccontextmanager
async def faststream(folder: Path, sync: str, smtp_port: int) -> AsyncIterator[Stack]:
    """FastAPI and FastStream, each with a process, on a broker with the same fsync."""
    from tests.bench.faststream_app import DURABLE, STREAMS

    async with nats_server(folder, sync) as (server, broker):
        for name, config in STREAMS.items():
            await broker.api(f"STREAM.CREATE.{name}", {"name": name, "storage": "file", **config})
        port = free_port()
        env = {"NATS_URL": server.url, "HTTP_PORT": str(port), "SMTP_PORT": str(smtp_port)}
        module = "tests.bench.faststream_app"
        front, worker = _front_and_worker(folder, "faststream", [module, "front"], [module, "worker"], env)
        async with users_as_json(server.url, front, worker, port, "peer.user", f"PEER_USERS.{DURABLE}") as stack:
            yield stack


@contextlib.asynccontextmanager
async def celery(folder: Path, sync: str, smtp_port: int) -> AsyncIterator[Stack]:
    """FastAPI and a Celery worker on a Redis that writes its log with the same fsync."""
    redis_port, port = free_port(), free_port()
    fsync = "always" if sync == "always" else "everysec"
    command = ["redis-server", "--bind", "127.0.0.1", "--port", str(redis_port), "--save", "", "--dir", str(folder)]
    redis_server = Process("redis", [*command, "--appendonly", "yes", "--appendfsync", fsync], folder)
    url = f"redis://127.0.0.1:{redis_port}/0"
    env = {"REDIS_URL": url, "HTTP_PORT": str(port), "SMTP_PORT": str(smtp_port)}
    module = "tests.bench.celery_app"
    worker_command = ["celery", "-A", module, "worker", "--pool=threads", f"--concurrency={AT_ONCE}"]
    quiet = ["--loglevel=WARNING", "--without-gossip", "--without-mingle", "--without-heartbeat"]
    front, worker = _front_and_worker(folder, "celery", [module], [*worker_command, *quiet], env)

    async def queue(first: int, count: int) -> None:
        from celery import Celery

        app = Celery("celery_app", broker=url)
        with app.producer_pool.acquire() as producer:
            for n in range(first, first + count):
                arguments = (f"x{n}", f"user{n}@example.com", f"User {n}")
                app.send_task("deliver", arguments, producer=producer)

    with stopping(redis_server, front, worker):
        redis_server.start()
        await listening(redis_port)
        front.start()
        worker.start()
        await listening(port)
        await eventually(lambda: worker.running, within_s=START_WITHIN_S)
        yield Stack(http_port=port, worker=worker, queue=queue, services=(front, worker))
