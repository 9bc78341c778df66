"""What travels and what is kept: one Struct a kind, tagged and versioned, each with its codec.

Rules of the wire (contracts/README.md): a new field has a default; no field changes its type; a breaking change is a
new kind, and both are read until the stream has drained. Times are aware UTC in RFC 3339.
"""

import enum
from datetime import datetime
from typing import Annotated, Any, Generic, TypeVar

import msgspec

T = TypeVar("T", bound=msgspec.Struct)

Time = Annotated[datetime, msgspec.Meta(tz=True)]
"""Aware; a time without a zone is refused."""


class Codec(Generic[T]):
    """One encoder and one decoder of a kind, made once.

    decode raises `msgspec.DecodeError` (its subclass `ValidationError` included) for anything that is not that kind.
    """

    def __init__(self, kind: type[T]) -> None:
        self.encode = msgspec.json.Encoder().encode
        self._decode = msgspec.json.Decoder(kind).decode

    def decode(self, data: bytes) -> T:
        """One of that kind."""
        try:
            return self._decode(data)
        except (UnicodeDecodeError, RecursionError) as exc:  # not UTF-8; nested without end
            raise msgspec.DecodeError(type(exc).__name__) from exc


class Wire(msgspec.Struct, frozen=True, kw_only=True, tag_field="kind"):
    """Base of every kind: immutable, keyword-only, tagged in the field `kind`."""


# --- bucket USERS: the registration, and what else asks for a mail -------------------------------------------------


class UserRegistered(Wire, frozen=True, kw_only=True, tag="user.registered.v1"):
    """`u.<user_id>`: the registration and the outbox row in one. Written once, never changed."""

    user_id: str
    email: str
    """Where the mail goes: ASCII, the domain in lower case."""
    name: str
    nonce: str
    """Tells our own create from another's when its outcome is unknown."""
    created_at: Time


class Why(enum.StrEnum):
    """Why a mail is asked for."""

    REGISTRATION = "registration"
    RESEND = "resend"
    REPLAY = "replay"


class WelcomeAgain(Wire, frozen=True, kw_only=True, tag="welcome_email.again.v1"):
    """`again.<user_id>.<nonce>`: a resend or a replay; the relay reads address and name from the user's record."""

    user_id: str
    repeats: str
    """The event id that is repeated."""
    why: Why
    nonce: str
    """Tells our own create from another's when its outcome is unknown."""
    asked_at: Time


class EraseUser(Wire, frozen=True, kw_only=True, tag="user.erase.v1"):
    """`erase.<user_id>`: all of this user's events whose key is older than this key are to be erased."""

    user_id: str
    asked_at: Time


# --- stream WELCOME_EMAILS -----------------------------------------------------------------------------------------


class WelcomeEmailRequested(Wire, frozen=True, kw_only=True, tag="welcome_email.requested.v1"):
    """One mail to be sent. Carries all that the mail needs: the sender reads no user store."""

    event_id: str
    user_id: str
    email: str
    name: str
    why: Why
    requested_at: Time
    """The broker's time of the key that asked."""
    expires_at: Time
    """`EMAIL_DEADLINE` after it: the mail is of no use later."""


# --- stream DELIVERIES: the ledger (ids only, no address) ----------------------------------------------------------


class Attempt(msgspec.Struct, frozen=True, kw_only=True):
    """One try to hand a mail to the SMTP server."""

    at: Time
    verdict: str
    phase: str
    code: int | None = None
    enhanced: str | None = None
    text: str = ""
    """The server's words, the recipient's address replaced, at most 200 characters."""
    seconds: float = 0.0
    trace_id: str = ""
    """Of the mail's trace, where that is sampled: 32 hex digits. Since 1.1."""
    breaker: str = ""
    """What the worker had leave by: the breaker `closed`, a permit of one that was `half_open`, or `alone` without
    user_svc. Empty: nothing was to be reached. Since 1.2."""


class History(msgspec.Struct, frozen=True, kw_only=True):
    """The attempts so far: the first 3 and the last 17, and how many there were in all."""

    total: int = 0
    charged: int = 0
    """Attempts that count against the message's own budget."""
    first: tuple[Attempt, ...] = ()
    last: tuple[Attempt, ...] = ()

    def add(self, attempt: Attempt, *, charged: bool) -> "History":
        """This history with one more attempt."""
        first, last = self.first, self.last
        if len(first) < 3:
            first = (*first, attempt)
        else:
            last = (*last, attempt)[-17:]
        return History(total=self.total + 1, charged=self.charged + charged, first=first, last=last)

    @property
    def attempts(self) -> tuple[Attempt, ...]:
        """The attempts kept, oldest first."""
        return self.first + self.last


class Attempts(Wire, frozen=True, kw_only=True, tag="welcome_email.attempts.v1"):
    """`deliveries.<event_id>.attempts`: what was tried and when the next try is due. Only while the mail is pending."""

    event_id: str
    history: History
    due_at: Time


class State(enum.StrEnum):
    """How a mail ends, once and for all."""

    SENT = "sent"
    DEAD = "dead"
    EXPIRED = "expired"
    ERASED = "erased"


class Outcome(Wire, frozen=True, kw_only=True, tag="welcome_email.outcome.v1"):
    """`deliveries.<event_id>.outcome.<state>`: written once; the broker refuses a second one of any state."""

    event_id: str
    state: State
    at: Time
    requested_at: Time | None = None
    reason: str = ""
    history: History = History()


# --- stream DEAD_LETTERS -------------------------------------------------------------------------------------------


class DeadLetter(Wire, frozen=True, kw_only=True, tag="welcome_email.dead_letter.v1"):
    """`dead_letters.<state>.<event_id>`: an open dead letter. No address: a replay reads the user's record."""

    event_id: str
    user_id: str
    state: State
    reason: str
    at: Time
    code: int | None = None
    attempts: int = 0
    requested_at: Time | None = None


# --- stream AUDIT --------------------------------------------------------------------------------------------------


class Audit(Wire, frozen=True, kw_only=True, tag="audit.v1"):
    """`audit.<service>.<action>`: what an operator did. Ids only."""

    at: Time
    service: str
    action: str
    by: str
    """`token`, `login` (the cookie of one), or `anyone`: no ADMIN_TOKEN is set, or a login was refused."""
    peer: str
    """The address that the request came from."""
    target: str = ""
    """What it was done to: an id, a filter, a time."""
    outcome: str = "done"


USER_REGISTERED = Codec(UserRegistered)
WELCOME_AGAIN = Codec(WelcomeAgain)
ERASE_USER = Codec(EraseUser)
WELCOME_EMAIL_REQUESTED = Codec(WelcomeEmailRequested)
ATTEMPTS = Codec(Attempts)
OUTCOME = Codec(Outcome)
DEAD_LETTER = Codec(DeadLetter)
AUDIT = Codec(Audit)

LEDGER_ROW: msgspec.json.Decoder[Attempts | Outcome] = msgspec.json.Decoder(Attempts | Outcome)
"""Decodes a row of either kind."""


def ledger_row(subject: str, data: bytes, at: datetime) -> tuple[Attempts | Outcome, bool]:
    """Whatever row of an event is the newest, and whether it can be read.

    One that cannot, or that tells of another event or state than its subject, is what the subject says, for the broker
    keeps the books by it: attempts of which nothing is known and the next is due, or an outcome without a history.
    `at` is the broker's time of its write. An outcome of no known state has ended the mail all the same: dead.
    """
    _, user_id, revision, *kind = subject.split(".")
    event_id = f"{user_id}.{revision}"
    try:
        row = LEDGER_ROW.decode(data)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        pass
    else:
        if row.event_id == event_id and kind == (["outcome", row.state] if isinstance(row, Outcome) else ["attempts"]):
            return row, True
    if kind == ["attempts"]:
        return Attempts(event_id=event_id, history=History(), due_at=at), False
    state = next((state for state in State if state == kind[-1]), State.DEAD)
    return Outcome(event_id=event_id, state=state, at=at, reason="the ledger's row cannot be read"), False


KINDS: dict[str, Codec[Any]] = {
    "user.registered.v1": USER_REGISTERED,
    "welcome_email.again.v1": WELCOME_AGAIN,
    "user.erase.v1": ERASE_USER,
    "welcome_email.requested.v1": WELCOME_EMAIL_REQUESTED,
    "welcome_email.attempts.v1": ATTEMPTS,
    "welcome_email.outcome.v1": OUTCOME,
    "welcome_email.dead_letter.v1": DEAD_LETTER,
    "audit.v1": AUDIT,
}
"""Every kind that was ever sent, by its tag: the golden files are decoded with it."""
