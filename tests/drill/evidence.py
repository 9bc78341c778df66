"""A history with its indexes: who asked for what, which mails were taken for which event, where an event was found.

What may be assumed of a call:

    2xx              it happened, between `began` and `ended`
    none, or 5xx     it may have happened, between `began` and `latest`
    any other        it did not happen
"""

from bisect import bisect_left
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Literal, TypeVar

from tests.drill.history import Call, Fault, History, Key, Row, Transaction

T = TypeVar("T")

LATE_S = 30.0
"""A request whose answer was lost may still be carried out so long after its client gave up, or after the end of what
held it up: it lies in the socket of a service that is short of time. [16 s, with ten times too much to do]"""
CLOCKS_S = 0.05
"""Between times of the broker, converted, and those of the drill."""

ENDS = ("sent", "dead", "expired")
PENDING = ("outbox", "queue", "attempts")
DEATHS = ("kill", "restart", "leader_kill")
CUTS = ("cut", "black_hole", "half_open")


@dataclass(frozen=True, kw_only=True)
class Violation:
    """A law that was broken: what is the case, of which event or user, and when."""

    law: str
    what: str
    event: str | None = None
    user: str | None = None
    at: float | None = None

    def __str__(self) -> str:
        whose = f" [{self.event or self.user}]" if self.event or self.user else ""
        return f"{self.law}: {self.what}{whose}" + ("" if self.at is None else f" at {self.at:.3f}")


def canonical(email: str) -> str:
    """What an address is known by (D1). The addresses of a drill are ASCII."""
    return email.lower()


def user_in(event_id: str) -> str:
    """Whose event it is."""
    return event_id.partition(".")[0]


def revision_in(event_id: str) -> int:
    """The sequence of the key that asked for it; 0: that is no event's id."""
    revision = event_id.partition(".")[2]
    return int(revision) if revision.isascii() and revision.isdigit() else 0


def event_in(message_id: str) -> str:
    """The event that a Message-ID names: `<event_id@domain>`."""
    return message_id.strip().removeprefix("<").partition("@")[0]


def happened(call: Call) -> bool:
    """Certainly."""
    return call.status is not None and 200 <= call.status < 300


def could_have(call: Call) -> bool:
    """It happened, or nobody knows."""
    return call.status is None or 200 <= call.status < 300 or call.status >= 500


class Evidence:
    """Built once a history; the laws only read it."""

    def __init__(self, history: History) -> None:
        self.history = history
        self.rules = history.rules
        self.calls: dict[str, list[Call]] = _grouped((canonical(call.email), call) for call in history.calls)
        """By address, in the order of beginning."""
        self.keys: dict[str, Key] = {key.event_id: key for key in history.keys}
        self.keys_of: dict[str, list[Key]] = _grouped((key.user_id, key) for key in history.keys)
        self.rows: dict[str, list[Row]] = _grouped((row.event_id, row) for row in _rows(history))
        self.ids: dict[str, str] = {}
        """The user's id by address."""
        self.emails: dict[str, str] = {}
        """And back."""
        for email, user_id in (*_told(history), *_kept(history)):
            self.ids.setdefault(email, user_id)
            self.emails.setdefault(user_id, email)
        for calls in self.calls.values():
            calls.sort(key=lambda call: call.began)
        self.transactions = sorted(history.transactions, key=lambda t: t.began)
        self.to: dict[str, list[Transaction]] = _grouped((canonical(t.rcpt), t) for t in self.transactions)
        """By recipient."""
        self.taken: list[Transaction] = [t for t in self.transactions if t.accepted_at is not None]
        self.mails: dict[str, list[Transaction]] = _grouped(
            (event_in(t.message_id), t) for t in self.taken if t.message_id is not None
        )
        """Taken, by event, in the order of their MAIL."""
        delays = (f.delay_s for f in history.faults if f.kind == "delay" and f.target.endswith("~smtp"))
        self.late_s = history.stood_still_s + max(delays, default=0.0)
        """So much later than the worker said it may the server have seen a command."""
        self._taken_at = sorted((t.ended or t.accepted_at or 0.0, event_in(t.message_id or "")) for t in self.taken)
        self._asked = sorted((revision_in(key.event_id), key.at) for key in history.keys if key.at > 0)
        self._slow = [f for f in history.faults if f.target.partition("-")[0].partition("~")[0] in _ON_THE_WAY]

    # --- calls -----------------------------------------------------------------------------------------------------

    def latest(self, call: Call) -> float:
        """The last moment at which it can have happened."""
        if call.status is not None and call.status < 500:
            return call.ended
        until = call.ended + LATE_S
        held_up = (f.ended + LATE_S for f in self._slow if f.began <= until and f.ended >= call.began)
        return max([until, *held_up])

    def possible(self, email: str, *kinds: Literal["register", "erase", "resend"]) -> list[Call]:
        """Calls about an address that happened, or may have."""
        return [call for call in self.calls.get(email, ()) if call.kind in kinds and could_have(call)]

    def maybe_erased_after(self, email: str, moment: float) -> bool:
        """Whether an erasure of that address can have come about after a moment."""
        return any(self.latest(erase) > moment for erase in self.possible(email, "erase"))

    def asked_by(self, event_id: str) -> float:
        """The event was asked for no later than then: revisions rise with time, and others' times are known."""
        place = bisect_left(self._asked, (revision_in(event_id), 0.0))
        return self._asked[place][1] if place < len(self._asked) else float("inf")

    def others_taken(self, event_id: str, since: float, until: float) -> bool:
        """Whether a mail of another event was taken between two moments."""
        place = bisect_left(self._taken_at, (since, ""))
        while place < len(self._taken_at) and self._taken_at[place][0] <= until:
            if self._taken_at[place][1] != event_id:
                return True
            place += 1
        return False

    def known(self, event_id: str) -> bool:
        """Whether the broker has any trace of it: a key, a row, the marker of its erasure."""
        return event_id in self.keys or event_id in self.rows

    # --- rows ------------------------------------------------------------------------------------------------------

    def places(self, event_id: str) -> set[str]:
        """Where it was found."""
        return {row.place for row in self.rows.get(event_id, ())}

    def outcome(self, event_id: str) -> Row | None:
        """How it ended: sent, dead or expired."""
        return next((row for row in self.rows.get(event_id, ()) if row.place in ENDS), None)

    # --- faults ----------------------------------------------------------------------------------------------------

    def faults(self, kinds: tuple[str, ...], target: str | None, began: float, ended: float) -> list[Fault]:
        """Those that were on at some time from `began` to `ended`, both included. target None (unknown): none."""
        return [
            fault
            for fault in self.history.faults
            if fault.kind in kinds and fault.target == target and fault.began <= ended and fault.ended >= began
        ]

    def deaths(self, target: str | None, began: float, ended: float) -> list[Fault]:
        """Processes killed then: what counts is the moment of the blow, not when they were there again."""
        blows = [
            replace(fault, ended=fault.began + CLOCKS_S + self.history.stood_still_s)
            for fault in self.history.faults
            if fault.kind == "kill" and fault.target == target
        ]
        return [blow for blow in blows if blow.began <= ended and blow.ended >= began]


_ON_THE_WAY = ("client", "user_svc", "broker")


def _rows(history: History) -> list[Row]:
    """All but attempts that came back from the dead.

    nats-server keeps no record of a message that a newer one on its subject has replaced: when that newer one is
    deleted and the broker then killed, the older one is there again after its start (tried with 2.15). Attempts are
    the only rows that are both replaced and deleted. Nobody is misled, for the outcome is the newer row of the event.
    """
    outcomes = {row.event_id: row for row in history.rows if row.place in (*ENDS, "erased")}
    killed = max((f.began for f in history.faults if f.kind in DEATHS and f.target == "broker"), default=0.0)

    def returned(row: Row) -> bool:
        end = outcomes.get(row.event_id)
        if row.place != "attempts" or end is None or not 0 < row.stored_at < end.stored_at < killed:
            return False
        older = row.attempted_at == end.attempted_at[: len(row.attempted_at)] and row.total < end.total - 1
        return older or end.place == "erased"

    return [row for row in history.rows if not returned(row)]


def _told(history: History) -> list[tuple[str, str]]:
    return [(canonical(c.email), c.user_id) for c in history.calls if c.kind == "register" and c.user_id]


def _kept(history: History) -> list[tuple[str, str]]:
    return [(canonical(key.email), key.user_id) for key in history.keys if key.email]


def _grouped(pairs: Iterable[tuple[str, T]]) -> dict[str, list[T]]:
    found: dict[str, list[T]] = defaultdict(list)
    for key, value in pairs:
        found[key].append(value)
    return dict(found)
