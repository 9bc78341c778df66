"""What each process says of itself when user_svc asks all of them at once.

    user_svc   replicas.ask   ──►   every replica of both services   ──►   an inbox of its own kind at user_svc

Whoever does not answer is not there, or not able to. Nothing of it is kept.
"""

import asyncio
import importlib.metadata
import os
import socket
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from typing import Any

import msgspec
import nats.errors
import structlog
from nats.aio.msg import Msg

from contracts import subjects as s
from contracts.messages import Codec, Time, Wire
from contracts.runtime.broker import Broker
from contracts.runtime.inbox import has_inbox

log = structlog.get_logger()

_READY_FOR_S = 5.0
"""A look at the topology costs a dozen calls."""


class Verdicts(msgspec.Struct, frozen=True, kw_only=True):
    """Attempts since the process began, by whom the verdict is about."""

    sent: int = 0
    path: int = 0
    """The way, or what we are: no mail would have got through."""
    message: int = 0
    """This mail alone."""
    other: int = 0
    """Neither, or not known: throttled, no answer to the final dot."""


class RateLimit(msgspec.Struct, frozen=True, kw_only=True):
    """The fleet's rate limit as one worker knows it."""

    algorithm: str
    limit_per_minute: float
    """0: no limit."""
    burst: int
    tokens: float | None = None
    """Mails that may begin now; None: any number."""
    throttled_to: float = 1.0
    """What the rate is multiplied by while the mail server complains."""
    next_token_in_s: float = 0.0


class Schedule(msgspec.Struct, frozen=True, kw_only=True):
    """Of simulated downtimes."""

    enabled: bool
    interval_s: float
    duration_s: float
    next_in_s: float | None = None


class SimulatedDowntime(msgspec.Struct, frozen=True, kw_only=True):
    """Whether one is on; durations in seconds from now."""

    down: bool
    ends_in_s: float | None = None
    on_demand: bool = False
    schedule: Schedule | None = None


class ReplicaAsk(Wire, frozen=True, kw_only=True, tag="replica.ask.v1"):
    """To all: who is there, and how is it?"""


class ReplicaAnswer(Wire, frozen=True, kw_only=True, tag="replica.answer.v1"):
    """One process, as it is now."""

    service: str
    replica: str
    """Host and process id."""
    started_at: Time
    version: str
    ready: bool
    """As /readyz says, at most 5 s ago."""
    in_hand: int = 0
    """Mails that it handles (email_svc)."""
    verdicts: Verdicts | None = None
    limiter: RateLimit | None = None
    downtime: SimulatedDowntime | None = None


ASK = Codec(ReplicaAsk)
ANSWER = Codec(ReplicaAnswer)

KINDS: dict[str, Codec[Any]] = {"replica.ask.v1": ASK, "replica.answer.v1": ANSWER}
"""Like contracts.messages.KINDS."""


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
            answer = ReplicaAnswer(
                service=service, replica=name, started_at=began, version=version, ready=is_ready, **more()
            )
            await broker.client.publish(raw.reply, ANSWER.encode(answer))
        except (nats.errors.Error, OSError) as exc:
            log.warning("replica.not_answered", reason=repr(exc))  # not connected just now
        except Exception:  # outermost: it answers the next time
            log.exception("replica.failed")

    await broker.client.subscribe(s.REPLICAS_ASK, cb=asked)
