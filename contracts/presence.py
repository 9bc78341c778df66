"""Answers for this process when user_svc asks who is there (contracts.replica)."""

import asyncio
import importlib.metadata
import os
import socket
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from typing import Any

import nats.errors
import structlog
from nats.aio.msg import Msg

from contracts import replica
from contracts import subjects as s
from contracts.runtime.broker import Broker
from contracts.runtime.inbox import has_inbox

log = structlog.get_logger()

_READY_FOR_S = 5.0
"""A look at the topology costs a dozen calls."""


async def answering(
    broker: Broker,
    service: str,
    ready: Callable[[], Awaitable[list[str]]],
    more: Callable[[], dict[str, Any]] = dict,
) -> None:
    """Answers from now on. `more` are the fields of `ReplicaAnswer` that only this service knows, as they are then."""
    loop = asyncio.get_running_loop()
    began, name = datetime.now(UTC), f"{socket.gethostname()}:{os.getpid()}"
    version = importlib.metadata.version("mailflow")
    is_ready, looked_at = False, -_READY_FOR_S

    async def asked(raw: Msg) -> None:
        nonlocal is_ready, looked_at
        if not has_inbox(raw):
            log.warning("replica.no_inbox")
            return
        try:
            if loop.time() - looked_at >= _READY_FOR_S:
                is_ready, looked_at = not await ready(), loop.time()
            answer = replica.ReplicaAnswer(
                service=service, replica=name, started_at=began, version=version, ready=is_ready, **more()
            )
            await broker.client.publish(raw.reply, replica.ANSWER.encode(answer))
        except (nats.errors.Error, OSError) as exc:
            log.warning("replica.not_answered", reason=repr(exc))  # not connected just now
        except Exception:  # outermost: it answers the next time
            log.exception("replica.failed")

    await broker.client.subscribe(s.REPLICAS_ASK, cb=asked)
