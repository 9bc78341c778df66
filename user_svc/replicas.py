"""Who is there: asks all replicas of both services at once, and hears what they say of themselves."""

import asyncio
import secrets
import time
from datetime import UTC, datetime
from typing import Any

import msgspec
import nats.errors
import structlog
from nats.aio.msg import Msg

from contracts import replica
from contracts import subjects as s
from contracts.replica import ReplicaAnswer
from contracts.runtime.broker import Broker

log = structlog.get_logger()

_WAIT_S = 0.25
"""An answer takes some ms, of a busy process some tens; and a snapshot has a second for everything."""
_GONE_AFTER_S = 3.0
"""One that is busy may miss a question; the figures of one that died are shown for so long."""
_REPLICAS_MAX = 100
"""More than a fleet has. Whoever answers under new names again and again must fill neither memory nor the page."""


class Heard(msgspec.Struct, frozen=True):
    """An answer, and when it came: by the host's clock to show, monotonic seconds to reckon with."""

    answer: ReplicaAnswer
    said_at: datetime
    at: float


class Replicas:
    """Call `start` once."""

    def __init__(self, broker: Broker) -> None:
        self._broker = broker
        self._inbox = s.replica_answers(secrets.token_hex(11))
        self._heard: dict[tuple[str, str], Heard] = {}

    async def start(self) -> None:
        """Begins to hear."""
        await self._broker.client.subscribe(self._inbox, cb=self._answered)

    async def _answered(self, raw: Msg) -> None:
        if len(raw.data) > replica.ANSWER_MAX_BYTES:
            log.warning("replicas.too_large", size_bytes=len(raw.data))
            return
        try:
            answer = replica.ANSWER.decode(raw.data)
        except msgspec.DecodeError as exc:
            log.warning("replicas.undecodable", reason=str(exc))
            return
        key = answer.service, answer.replica
        if key in self._heard or len(self._heard) < _REPLICAS_MAX:
            self._heard[key] = Heard(answer, datetime.now(UTC), time.monotonic())

    async def ask(self) -> list[Heard]:
        """All that answer within 250 ms, and those that did a moment ago; in a steady order. Nobody if disconnected."""
        if self._broker.client.is_connected:
            try:
                await self._broker.client.publish(s.REPLICAS_ASK, replica.ASK.encode(replica.ReplicaAsk()), self._inbox)
                await asyncio.sleep(_WAIT_S)
            except (nats.errors.Error, OSError) as exc:
                log.warning("replicas.not_asked", reason=repr(exc))
        now = time.monotonic()
        self._heard = {key: heard for key, heard in self._heard.items() if now - heard.at < _GONE_AFTER_S}
        return [self._heard[key] for key in sorted(self._heard)]


def view(heard: Heard) -> dict[str, Any]:
    """One replica in `GET /overview`."""
    answer = heard.answer
    return {
        "service": answer.service,
        "replica": answer.replica,
        "started_at": answer.started_at,
        "version": answer.version,
        "ready": answer.ready,
        "in_hand": answer.in_hand,
        "said_at": heard.said_at,
    }
