"""What a drill saw, as plain data: the three independent logs that the checker compares, and the faults between them.

    clients   every call and the answer that came back, if one did                        -> Call
    SMTP      every transaction as the server saw it                                      -> Transaction
    broker    what streams and buckets hold when all has settled, and what the breaker    -> Key, Row, Change, Books
              was seen to do
    faults    what was broken, when, and until when                                       -> Fault

`at`, `began`, `ended` and the like are monotonic seconds of the host that ran the drill: one clock for all of them.
"""

from dataclasses import dataclass, field
from typing import Literal


@dataclass(frozen=True, kw_only=True)
class Call:
    """One request of a client. `status` None: no answer came. `key`: the Idempotency-Key."""

    kind: Literal["register", "erase", "resend"]
    began: float
    ended: float
    status: int | None
    email: str
    user_id: str | None = None
    """register: as answered. Else: whom it was about."""
    key: str | None = None


@dataclass(frozen=True, kw_only=True)
class Reply:
    """An answer of the SMTP server in a transaction; `code` 0: none (silence, reset, connection dropped)."""

    phase: str
    code: int
    text: str = ""


@dataclass(frozen=True, kw_only=True)
class Transaction:
    """One MAIL command and what followed. `accepted_at`: the mail was taken, whether or not the client heard of it.

    worker: the email_svc replica (by the port its connection came from); None: not known.
    told: the 250 was written in full to a connection that was still open.
    """

    worker: str | None
    began: float
    rcpt: str
    message_id: str | None = None
    accepted_at: float | None = None
    told: bool = False
    replies: tuple[Reply, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Key:
    """A live row of USERS that asks for a mail: kind `u` or `again`; the event is its user and revision."""

    event_id: str
    user_id: str
    kind: Literal["u", "again"]
    email: str
    """Of the user's record; empty if there is none (an `again` key that the relay has yet to remove)."""


@dataclass(frozen=True, kw_only=True)
class Row:
    """Where an event was found at the end.

    place: outbox (key not yet relayed), queue, attempts (pending in the ledger), sent, dead, expired, erased,
    dead_letter (state in `detail`). An event may have several rows; which pairs are allowed is the checker's law.
    """

    event_id: str
    place: str
    detail: str = ""
    """Outcome: the reason. Dead letter: its state."""
    attempts: tuple[Reply | None, ...] = ()
    """attempts and outcomes: one a recorded attempt, the newest last; its verdict is in `verdicts`."""
    verdicts: tuple[str, ...] = ()
    total: int = 0
    """How many attempts there were, those left out of the history included."""
    counted: int = 0
    """How many of them were charged to the message's budget."""
    requested_at: float = 0.0
    at: float = 0.0
    """Of the outcome."""


@dataclass(frozen=True, kw_only=True)
class Change:
    """The breaker's record as it was broadcast. `until`: end of the opening (None: not open, or until further notice);
    `issued`: permits granted in this round so far."""

    at: float
    epoch: int
    state: Literal["closed", "open", "half_open"]
    until: float | None = None
    round: int = 0
    issued: int = 0


@dataclass(frozen=True, kw_only=True)
class Fault:
    """Something that was broken. target: "broker", a replica's name ("email_svc", "email_svc-2"), "smtp", or a cut
    between two: "email_svc~broker". `ended`: when it was mended (a kill: when the process was ready again)."""

    kind: str
    target: str
    began: float
    ended: float


@dataclass(frozen=True, kw_only=True)
class Books:
    """The broker's own counters when all had settled (`GET /ledger`)."""

    live: int
    outbox: int
    queue: int
    sent: int
    dead: int
    expired: int


@dataclass(frozen=True, kw_only=True)
class Rules:
    """The settings the drill ran with, as far as laws depend on them."""

    rate_per_s: float
    """0: no limit."""
    burst: int
    retries: int
    deadline_s: float
    half_open_permits: int
    open_margin_s: float = 5.0
    ack_wait_s: float = 30.0


@dataclass(frozen=True, kw_only=True)
class History:
    """All of it."""

    rules: Rules
    calls: tuple[Call, ...] = ()
    transactions: tuple[Transaction, ...] = ()
    keys: tuple[Key, ...] = ()
    rows: tuple[Row, ...] = ()
    changes: tuple[Change, ...] = ()
    faults: tuple[Fault, ...] = ()
    books: Books = field(default_factory=lambda: Books(live=0, outbox=0, queue=0, sent=0, dead=0, expired=0))
    quarantined: int = 0
    stood_still_s: float = 0.0
    """The longest time that the drill's own process, and with it the SMTP server, did not get to look."""
