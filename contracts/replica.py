"""What each process says of itself when user_svc asks all of them at once.

    user_svc   replicas.ask   ──►   every replica of both services   ──►   an inbox of its own kind at user_svc

Whoever does not answer is not there, or not able to. Nothing of it is kept. How it is answered: contracts.presence.
"""

from typing import Annotated, Any, Final

import msgspec

from contracts.messages import Codec, Time, Wire

ANSWER_MAX_BYTES: Final = 4096
"""Ours have some 600; what is longer is nobody's."""
_EXACT: Final = 2**53
"""The largest that every reader of JSON has exactly: sums and charts are made of what all say."""

Count = Annotated[int, msgspec.Meta(ge=0, le=_EXACT)]
Figure = Annotated[float, msgspec.Meta(ge=0, le=_EXACT)]
Name = Annotated[str, msgspec.Meta(max_length=300)]
"""A host's has at most 253 characters, beside the process id."""


class Verdicts(msgspec.Struct, frozen=True, kw_only=True):
    """Attempts since the process began, by whom the verdict is about."""

    sent: Count = 0
    path: Count = 0
    """The way, or what we are: no mail would have got through."""
    message: Count = 0
    """This mail alone."""
    other: Count = 0
    """Neither, or not known: throttled, no answer to the final dot."""


class RateLimit(msgspec.Struct, frozen=True, kw_only=True):
    """The fleet's rate limit as one worker knows it."""

    algorithm: Name
    limit_per_minute: Figure
    """0: no limit."""
    burst: Count
    tokens: Figure | None = None
    """Mails that may begin now; None: any number."""
    throttled_to: Figure = 1.0
    """What the rate is multiplied by while the mail server complains."""
    next_token_in_s: Figure = 0.0


class Schedule(msgspec.Struct, frozen=True, kw_only=True):
    """Of simulated downtimes."""

    enabled: bool
    interval_s: Figure
    duration_s: Figure
    next_in_s: Figure | None = None


class SimulatedDowntime(msgspec.Struct, frozen=True, kw_only=True):
    """Whether one is on; durations in seconds from now."""

    down: bool
    ends_in_s: Figure | None = None
    on_demand: bool = False
    schedule: Schedule | None = None


class ReplicaAsk(Wire, frozen=True, kw_only=True, tag="replica.ask.v1"):
    """To all: who is there, and how is it?"""


class ReplicaAnswer(Wire, frozen=True, kw_only=True, tag="replica.answer.v1"):
    """One process, as it is now."""

    service: Name
    replica: Name
    """Host and process id."""
    started_at: Time
    version: Name
    ready: bool
    """As /readyz says, at most 5 s ago."""
    in_hand: Count = 0
    """Mails that it handles (email_svc)."""
    verdicts: Verdicts | None = None
    limiter: RateLimit | None = None
    downtime: SimulatedDowntime | None = None


ASK = Codec(ReplicaAsk)
ANSWER = Codec(ReplicaAnswer)

KINDS: dict[str, Codec[Any]] = {"replica.ask.v1": ASK, "replica.answer.v1": ANSWER}
"""Like contracts.messages.KINDS."""
