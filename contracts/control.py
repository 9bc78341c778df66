"""What the services tell each other about the path: the records of the breaker and of the simulated downtime in bucket
CONTROL, and the talk about the breaker.

Kinds and codecs follow the rules of contracts.messages; the names are in contracts.subjects.
"""

import enum
from datetime import UTC, datetime, timedelta
from typing import Any, Final, Literal

import msgspec

from contracts.messages import Codec, Time, Wire


class Breaker(enum.StrEnum):
    """The states of the circuit breaker."""

    CLOSED = "closed"
    OPEN = "open"
    HALF_OPEN = "half_open"


class Permit(msgspec.Struct, frozen=True, kw_only=True):
    """Leave for one probe. Of each worker only the one with its highest nonce is kept."""

    nonce: int
    round: int
    given_at: Time
    lapses_at: Time
    state: Literal["out", "ok", "back"] = "out"


class BreakerRecord(Wire, frozen=True, kw_only=True, tag="control.breaker.v1"):
    """The circuit breaker of the whole fleet; written by user_svc alone."""

    state: Breaker
    epoch: int
    """+1 at each change of state and only then."""
    since: Time
    open_until: Time | None = None
    """None while open: held open by an operator until further notice."""
    open_s: float = 30.0
    """How long it opens for, as configured: workers wait by it."""
    round: int = 0
    issued: int = 0
    """Permits granted in this round."""
    ok: int = 0
    """Probes that succeeded in this epoch, over all rounds."""
    reason: str = ""
    surge: bool = False
    """Policy refusals count as path failures until it closes."""
    permits: dict[str, Permit] = {}  # noqa: RUF012 - a Struct's default is copied


MARGIN_S: Final = 5.0
"""The pause on the broker lasts so much longer than `open_until`: the dead man's switch. user_svc ends it earlier, so
it matters only when every user_svc is dead."""
FAR: Final = datetime(2199, 1, 1, tzinfo=UTC)
"""The pause of an operator's open until further notice: the same for all who write it, and it outlives them."""


def paused_until(record: BreakerRecord) -> datetime | None:
    """Until when the consumer of the queue is to be paused; None: not at all."""
    if record.state is not Breaker.OPEN:
        return None
    return FAR if record.open_until is None else min(FAR, record.open_until) + timedelta(seconds=MARGIN_S)


class Ask(Wire, frozen=True, kw_only=True, tag="breaker.ask.v1"):
    """A worker asks for leave. The same nonce is the same permit."""

    worker: str
    nonce: int
    epoch: int
    lapse_s: float
    """How long its attempt may take."""


class Answer(Wire, frozen=True, kw_only=True, tag="breaker.answer.v1"):
    """go: attempt; wait: ask again after `wait_s`; again: adopt the record and ask at once; old: use the next nonce."""

    word: Literal["go", "wait", "again", "old"]
    record: BreakerRecord
    revision: int
    wait_s: float = 0.0


class Result(Wire, frozen=True, kw_only=True, tag="breaker.result.v1"):
    """What came of a permit; a request, acknowledged after the record is written."""

    worker: str
    nonce: int
    epoch: int
    how: Literal["ok", "failed", "unused"]
    verdict: str = ""


class Blame(msgspec.Struct, frozen=True, kw_only=True):
    """A verdict that counts, and the event that met it: one event counts once."""

    event_id: str
    verdict: str


class Report(Wire, frozen=True, kw_only=True, tag="breaker.report.v1"):
    """Outcomes of attempts begun while closed: so many successes, then perhaps one that is to be blamed."""

    epoch: int
    successes: int = 0
    blame: Blame | None = None


class DowntimeRecord(Wire, frozen=True, kw_only=True, tag="control.downtime.v1"):
    """What operators asked for, at either service; seconds since 1970 on the broker's clock."""

    forced_until: float = 0.0
    spared_until: float = 0.0
    """The schedule is overruled until then. Not written since 1.2."""
    ended_at: float = 0.0
    """The downtime that the schedule had on just then is over: who wrote it need not know the schedule. Since 1.2."""


BREAKER = Codec(BreakerRecord)
ASKED = Codec(Ask)
ANSWER = Codec(Answer)
RESULTED = Codec(Result)
REPORTED = Codec(Report)
DOWNTIME = Codec(DowntimeRecord)

KINDS: dict[str, Codec[Any]] = {
    "control.breaker.v1": BREAKER,
    "breaker.ask.v1": ASKED,
    "breaker.answer.v1": ANSWER,
    "breaker.result.v1": RESULTED,
    "breaker.report.v1": REPORTED,
    "control.downtime.v1": DOWNTIME,
}
"""Like contracts.messages.KINDS."""
