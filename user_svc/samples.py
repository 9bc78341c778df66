"""The figures of the last 15 minutes for the console's charts, in memory: a row each 5 s, the oldest falls out."""

from collections import deque
from collections.abc import Iterable
from typing import Any

from contracts.control import Breaker
from contracts.replica import ReplicaAnswer, Verdicts

EVERY_S = 5
ROWS = 180
_WORKERS_MAX = 1000

_NUMBER = {Breaker.CLOSED: 0, Breaker.HALF_OPEN: 1, Breaker.OPEN: 2}
_FIGURES = ("accepted_per_second", "sent_per_second", "queue_size", "oldest_age_seconds", "breaker")
_VERDICTS = Verdicts.__struct_fields__

Row = dict[str, Any]
"""`at` and the figures; None: not known."""


class Pace:
    """How fast a number grows: its growth over the last 5 s, or as long as it was not looked at."""

    def __init__(self) -> None:
        self._seen: deque[tuple[float, int]] = deque()

    def per_s(self, now: float, total: int) -> float:
        """With one look more, at `now` (monotonic seconds). 0 at the first, and while it shrinks (an erasure)."""
        self._seen.append((now, total))
        while len(self._seen) > 2 and now - self._seen[1][0] >= EVERY_S:
            self._seen.popleft()
        first_at, first = self._seen[0]
        return round(max(0, total - first) / (now - first_at), 3) if now > first_at else 0.0


class VerdictPace:
    """Verdicts a second over all workers, from what each counts since its start."""

    def __init__(self) -> None:
        self._seen: dict[tuple[str, Any], Verdicts] = {}
        self._at: float | None = None

    def per_s(self, now: float, answers: Iterable[ReplicaAnswer]) -> dict[str, float | None]:
        """Since the last call; None at the first, and where nobody answers. What a worker counted before it was first
        heard is not of this moment, so it is left out."""
        found = {(each.replica, each.started_at): each.verdicts for each in answers if each.verdicts is not None}
        if not found:
            return dict.fromkeys(_VERDICTS)
        seconds = None if self._at is None else now - self._at
        grown = dict.fromkeys(_VERDICTS, 0)
        for key, verdicts in found.items():
            before = self._seen.get(key, verdicts)
            for name in _VERDICTS:
                grown[name] += max(0, getattr(verdicts, name) - getattr(before, name))
        # The others are kept a while: one that only missed a question goes on from where it was.
        self._seen = dict(list((self._seen | found).items())[-_WORKERS_MAX:])
        self._at = now
        return {name: round(n / seconds, 3) if seconds else None for name, n in grown.items()}


class Samples:
    """The rows."""

    def __init__(self) -> None:
        self._rows: deque[Row] = deque(maxlen=ROWS)

    def add(self, row: Row) -> None:
        """The newest; `at` is a multiple of 5 s. Rows that were missed become gaps."""
        if self._rows:
            missed = (row["at"] - self._rows[-1]["at"]) // EVERY_S - 1
            if missed < 0:  # the host's clock was set back
                self._rows.clear()
            for n in range(min(missed, ROWS), 0, -1):
                self._rows.append(row_of(row["at"] - n * EVERY_S))
        self._rows.append(row)

    def columns(self) -> dict[str, Any]:
        """What `GET /overview/samples` shows, the oldest first."""
        rows = list(self._rows)
        return {
            "every_s": EVERY_S,
            "at": [row["at"] for row in rows],
            **{name: [row[name] for row in rows] for name in _FIGURES},
            "verdicts_per_second": {name: [row["verdicts_per_second"][name] for row in rows] for name in _VERDICTS},
        }


def row_of(at: int, snapshot: dict[str, Any] | None = None, verdicts: dict[str, float | None] | None = None) -> Row:
    """One row, at `at` seconds since 1970; without a snapshot a gap."""
    found: dict[str, Any] = dict.fromkeys(_FIGURES)
    if snapshot is not None:
        found = {
            "accepted_per_second": snapshot["accepted"]["per_second"],
            "sent_per_second": snapshot["sent"]["per_second"],
            "queue_size": snapshot["queue"]["size"],
            "oldest_age_seconds": snapshot["queue"]["oldest_age_seconds"],
            "breaker": _NUMBER[snapshot["breaker"]["state"]],
        }
    return {"at": at, **found, "verdicts_per_second": verdicts or dict.fromkeys(_VERDICTS)}
