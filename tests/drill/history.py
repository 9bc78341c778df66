"""What a drill saw, as plain data: the three independent logs that the checker compares, and the faults between them.

    clients   every call and the answer that came back, if one did                        -> Call
    SMTP      every transaction as the server saw it                                      -> Transaction
    broker    what streams and buckets hold when all has settled, and what the breaker    -> Key, Row, Change, Books
              was seen to do
    faults    what was broken, when, and until when                                       -> Fault

`at`, `began`, `ended` and the like are monotonic seconds of the host that ran the drill: one clock for all of them.
What the broker or a service wrote down in wall-clock time is converted, all of it with one and the same offset.

The judges are in tests.drill.checker:

    check(history)    -> list[Violation]     every law that was broken, where; empty: a good drill
    excused(history)  -> dict[str, int]      second copies that section 6 of the design allows, by excuse

A fact that is left out (a worker None, a time 0) is never an excuse: the checker then takes the strict side.
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
    event_id: str | None = None
    """resend: as answered."""


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
    rcpt: as it was named, whether or not it was taken; empty: it did not come to that.
    told: the 250 was written in full to a connection that was still open, and went through the gate.
    """

    worker: str | None
    began: float
    rcpt: str
    message_id: str | None = None
    accepted_at: float | None = None
    told: bool = False
    replies: tuple[Reply, ...] = ()
    """One a phase, MAIL's included; the phases are mail, rcpt, data, dot."""
    ended: float = 0.0
    """When the reply to the dot was written, or the connection lost; 0: not known, then `accepted_at` stands for it."""


@dataclass(frozen=True, kw_only=True)
class Key:
    """A live row of USERS that asks for a mail: kind `u` or `again`; the event is its user and revision."""

    event_id: str
    user_id: str
    kind: Literal["u", "again"]
    email: str
    """Of the user's record; empty if there is none (an `again` key that the relay has yet to remove)."""
    at: float = 0.0
    """The broker's time of its write."""
    replays: str = ""
    """`again` of a replay: the event that it repeats."""


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
    attempted_at: tuple[float, ...] = ()
    """When, as the worker wrote it down; beside `attempts`."""
    requested_at: float = 0.0
    """Outcome: as it says itself."""
    at: float = 0.0
    """Of the outcome, as it says itself: when it was decided."""
    stored_at: float = 0.0
    """The broker's time of this row. Without it an outcome's write has no end, and excuses nothing later than `at`."""


@dataclass(frozen=True, kw_only=True)
class Change:
    """The breaker's record as it was broadcast, each write of it. `until`: end of the opening (None: not open, or until
    further notice); `issued`: permits granted in this round so far. The first one is what was there at the start."""

    at: float
    """The broker's time of the write (the broadcast carries it), not when it was heard."""
    epoch: int
    state: Literal["closed", "open", "half_open"]
    until: float | None = None
    round: int = 0
    issued: int = 0


@dataclass(frozen=True, kw_only=True)
class Fault:
    """Something that was broken. `ended`: when it was mended (a kill: when the process was ready again).

    kind, as far as laws ask for it:
        kill, restart, leader_kill, freeze       of the process `target`: "broker", or a replica ("email_svc-2")
        cut, black_hole, half_open, delay        of the link `target`: "email_svc-2~broker", "email_svc~smtp"
        purge, consumer_deleted                  of the queue; the moment of it
        breaker_open, queue_full                 an operator opens the breaker, and closes it
        replay                                   an operator has dead letters sent again
    What a cut link had swallowed must never come out later; a delayed one hands on everything, `delay_s` late.
    """

    kind: str
    target: str
    began: float
    ended: float
    delay_s: float = 0.0


@dataclass(frozen=True, kw_only=True)
class Books:
    """The broker's own counters when all had settled (`GET /ledger`)."""

    live: int
    outbox: int
    queue: int
    sent: int
    dead: int
    expired: int
    erasing: int = 0


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
    planted: int = 0
    """Messages that the drill itself put into the queue and that are no events."""
    owners: tuple[str, ...] = ("user_svc", "user_svc-2")
    """The replicas of user_svc."""
    brokers: int = 1
    """3: a cluster."""
    deaf: tuple[tuple[float, float], ...] = ()
    """From when until when broadcasts of the breaker may have been missed: from the loss of the connection until the
    record was read again (that reading is a Change too, at the broker's time of the record, or when it was read)."""
    stood_still_s: float = 0.0
    """The longest time that the drill's own process, and with it the SMTP server, did not get to look."""
