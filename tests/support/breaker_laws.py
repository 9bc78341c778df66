"""What the breaker's record may become, write by write, and what replicas must have counted. Independent of user_svc.

A `Watch` hears every write (the bucket republishes it with sequence and time) and keeps the laws that were broken.
"""

from datetime import datetime, timedelta

import msgspec

from contracts.control import BREAKER, Breaker, BreakerRecord

OPERATOR = "operator"
"""The reason of whatever an operator did begins so."""


class Watch:
    """Feed it each change of the record in turn; `broken` is to stay empty."""

    def __init__(self, permits: int, successes: int) -> None:
        self._permits = permits
        self._successes = successes
        self._last: BreakerRecord | None = None
        self._sequence = 0
        self._granted: dict[tuple[int, int], int] | None = None
        """(epoch, round) -> permits that are out or used. None: not known since when."""
        self.may_begin_anew = False
        """Somebody has spoilt it by hand."""
        self.broken: list[str] = []
        self.writes = 0

    def heard(self, sequence: int, at: datetime, data: bytes) -> None:
        """A write of the key."""
        old, missed = self._last, sequence != self._sequence + 1
        self._sequence = sequence
        try:
            new = BREAKER.decode(data)
        except msgspec.DecodeError:
            self._last = self._granted = None  # deleted or spoilt by hand
            return
        self._last = new
        self.writes += 1
        if missed or (self.may_begin_anew and new.epoch == 1):
            old = self._granted = None
        if new.state is not Breaker.HALF_OPEN or (old is not None and new.epoch != old.epoch):
            self._granted = {}
        if old is not None:
            for law, kept in self._laws(old, new, at).items():
                if not kept:
                    self.broken.append(f"{law}: {old} -> {new} at {at}")

    def _laws(self, old: BreakerRecord, new: BreakerRecord, at: datetime) -> dict[str, bool]:
        by_operator = new.reason.startswith(OPERATOR)
        if new.epoch != old.epoch:
            return {
                "the epoch rises by one": new.epoch == old.epoch + 1,
                "no permits in a new epoch": (new.issued, new.ok, new.permits) == (0, 0, {}),
                "a legal change of state": by_operator or (old.state, new.state) in _EDGES,
                "open until its time is over": not (old.state is Breaker.OPEN and new.state is Breaker.HALF_OPEN)
                or (old.open_until is not None and at >= old.open_until),
                "closed by enough successes": by_operator
                or new.state is not Breaker.CLOSED
                or old.ok + 1 >= self._successes,
                "a surge goes on until it is closed": new.state is Breaker.CLOSED or new.surge >= old.surge,
            }
        laws = {
            "the state changes with the epoch": new.state is old.state,
            "only half-open counts": new.state is Breaker.HALF_OPEN,
            "rounds follow each other": new.round - old.round in (0, 1),
            "at most P permits a round": 0 <= new.issued <= self._permits,
        }
        if self._granted is None:
            return laws
        current = (new.epoch, new.round)
        for name, permit in new.permits.items():
            before = old.permits.get(name)
            if before is None or before.nonce != permit.nonce:
                self._granted[current] = self._granted.get(current, 0) + 1
                laws["nonces rise"] = before is None or permit.nonce > before.nonce
            elif permit.state == "back" != before.state and permit.round == new.round:
                self._granted[current] -= 1
        laws["issued is what was granted"] = self._granted.get(current, 0) == new.issued
        return laws


_EDGES = {
    (Breaker.CLOSED, Breaker.OPEN),
    (Breaker.OPEN, Breaker.HALF_OPEN),
    (Breaker.HALF_OPEN, Breaker.CLOSED),
    (Breaker.HALF_OPEN, Breaker.OPEN),
}


class Heard:
    """What one replica was told in one epoch, counted by hand."""

    def __init__(self) -> None:
        self.run = 0
        self.ok = 0
        self.failed = 0
        self._blamed: set[str] = set()
        self._last: list[str] = []
        """Of each verdict the event, if it was refused by policy, else nothing."""

    def hear(self, verdict: str, event: str) -> None:
        """One report. A refusal by policy shows that the path works; a path failure of an event counts once."""
        match verdict:
            case "path" if event not in self._blamed:
                self._blamed.add(event)
                self.run, self.failed = self.run + 1, self.failed + 1
            case "sent" | "policy":
                self.run, self.ok = 0, self.ok + 1
                if verdict == "sent":
                    self._last.append("")
                elif event not in self._last[-50:]:
                    self._last.append(event)

    @property
    def half_failed(self) -> bool:
        return self.ok + self.failed >= 10 and 2 * self.failed >= self.ok + self.failed

    @property
    def surge(self) -> bool:
        return sum(1 for event in self._last[-50:] if event) > 20


MARGIN = timedelta(seconds=5)


def wanted_pause(record: BreakerRecord) -> datetime | None:
    """What the broker must show for a record: paused until then, or not at all."""
    if record.state is not Breaker.OPEN:
        return None
    if record.open_until is None:
        return datetime.fromisoformat("2199-01-01T00:00:00+00:00")
    return record.open_until + MARGIN
