"""Laws about when mails may begin: the rate limit, and the circuit breaker. A mail begins with its MAIL command."""

from bisect import bisect_left
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise

from tests.drill.evidence import CLOCKS_S, CUTS, Evidence, Violation
from tests.drill.history import Change, Transaction

SEEN_LATER_S = 0.4
"""A MAIL begins up to 0.1 s after its token, and a crowded machine lets the server see it later still."""
READING_S = 2.0
"""The greatest age of a worker's reading of the breaker's record."""
THAWED_S = 1.0
"""So long after a freeze a worker may finish the step that it was frozen in."""
ASKS_S = 4.0
"""A worker alone asks every 3 s, and waits 1 s for the answer: it may be on its own so long after somebody is back."""
OPERATED_S = 5.0
"""So long after an operator's request was given up the breaker may still follow it."""
_EPSILON = 1e-6

_OPERATED = ("breaker_open", "queue_full")
_LEGAL = {("closed", "open"), ("open", "half_open"), ("half_open", "closed"), ("half_open", "open")}


def rate(seen: Evidence) -> Iterator[Violation]:
    """In every window of w seconds at most rate * (w + 0.1 s) + burst mails begin, over all replicas (D8).

    The server sees a command later than it was sent: 0.4 s in place of the 0.1, twice what it stood still, and what the
    gates delayed. With x_n = n - rate * t_n that is x_last - x_first < rate * allowance + burst for every two mails, so
    the least x so far is enough: one pass.
    """
    per_s, burst = seen.rules.rate_per_s, seen.rules.burst
    if not per_s or not seen.transactions:
        return
    later_s = SEEN_LATER_S + seen.history.stood_still_s + seen.late_s
    allowed = per_s * later_s + burst + _EPSILON
    start = seen.transactions[0].began
    least, first, worst = 0.0, 0, (allowed, 0, 0)
    for n, mail in enumerate(seen.transactions):
        x = n - per_s * (mail.began - start)
        if x < least:
            least, first = x, n
        if x + 1 - least > worst[0]:
            worst = (x + 1 - least, first, n)
    if worst[0] > allowed:
        _, first, last = worst
        window = seen.transactions[last].began - seen.transactions[first].began
        what = f"{last - first + 1} mails begun within {window:.3f} s"
        yield Violation(law="rate", what=what, at=seen.transactions[last].began)


@dataclass(frozen=True)
class _Epoch:
    """One state of the breaker, from when until when, and each write of its record."""

    changes: tuple[Change, ...]
    began: float
    ended: float

    @property
    def state(self) -> str:
        return self.changes[0].state


def breaker(seen: Evidence) -> Iterator[Violation]:
    """The breaker does what it says (D5, breaker.md).

    Its record moves by one epoch at a time, from closed to open to half-open to closed or open again, half-open not
    before the end of the opening; an operator may open and close it from any state. While nobody listened (`deaf`)
    epochs and rounds may have been missed, and what began meanwhile is not judged by the state.
    While it is open no mail begins, from 2 s (the age of a worker's reading, and what the server saw late) after the
    opening; but for a worker thawed within a second, from a freeze begun before the reading ran out, and for workers
    alone: the pause has lapsed, 5 s after its time, and every user_svc was away. An unknown worker was not frozen.
    In an epoch of half-open no more mails begin than permits were granted in all its rounds. A permit that is given
    back was granted all the same, for its MAIL may have been refused as too fast.
    A history without a record of the breaker cannot be judged, and that is a violation.
    """
    if not seen.history.changes:
        if seen.transactions:
            yield Violation(law="breaker", what="nothing was heard of it")
        return
    epochs = _epochs(seen)
    for epoch in epochs:
        yield from _written(seen, epoch)
    for before, after in pairwise(epochs):
        yield from _moved(seen, before, after)
    begun = [mail.began for mail in seen.transactions]
    for epoch in epochs:
        if epoch.state == "closed":
            continue
        grace = READING_S if epoch.state == "open" else 0.0
        since, until = epoch.began + grace + CLOCKS_S + seen.late_s, epoch.ended - CLOCKS_S
        mails = [
            mail
            for mail in seen.transactions[bisect_left(begun, since) : bisect_left(begun, until)]
            if not _thawed(seen, epoch, mail) and not _deaf(seen, mail.began, mail.began)
        ]
        if epoch.state == "half_open":
            granted = _granted(seen, epoch)
            if len(mails) > granted:
                what = f"{len(mails)} mails begun half-open, with {granted} permits"
                yield Violation(law="breaker", what=what, at=mails[granted].began)
        else:
            for mail in mails:
                if not _alone(seen, epoch, mail):
                    what = f"a mail begun {mail.began - epoch.began:.1f} s after it had opened"
                    yield Violation(law="breaker", what=what, at=mail.began)


def _epochs(seen: Evidence) -> list[_Epoch]:
    """In order; the first one reaches back to the beginning."""
    by_epoch: dict[int, list[Change]] = {}
    for change in sorted(seen.history.changes, key=lambda c: (c.epoch, c.round, c.at)):
        by_epoch.setdefault(change.epoch, []).append(change)
    begins = [min(change.at for change in changes) for changes in by_epoch.values()]
    ends = [*begins[1:], float("inf")]
    return [
        _Epoch(tuple(changes), began, ended)
        for changes, began, ended in zip(by_epoch.values(), begins, ends, strict=True)
    ]


def _written(seen: Evidence, epoch: _Epoch) -> Iterator[Violation]:
    """Within an epoch."""
    permits = seen.rules.half_open_permits
    for change in epoch.changes:
        if change.state != epoch.state:
            what = f"epoch {change.epoch} is {epoch.state} and {change.state}"
            yield Violation(law="breaker", what=what, at=change.at)
        if not 0 <= change.issued <= permits:
            yield Violation(law="breaker", what=f"{change.issued} permits in a round of {permits}", at=change.at)
    for before, after in pairwise(epoch.changes):
        if after.round > before.round + 1 and not _deaf(seen, before.at, after.at):
            yield Violation(law="breaker", what=f"round {after.round} after round {before.round}", at=after.at)
        if after.at < before.at - CLOCKS_S and after.round > before.round:
            yield Violation(law="breaker", what=f"round {after.round} before round {before.round}", at=after.at)


def _moved(seen: Evidence, before: _Epoch, after: _Epoch) -> Iterator[Violation]:
    """From an epoch to the next one that was heard."""
    old, new = before.changes[-1], after.changes[0]
    move = f"{old.state} {old.epoch} to {new.state} {new.epoch}"
    if after.began < before.began:
        yield Violation(law="breaker", what=f"back in time: {move}", at=after.began)
    if new.epoch != old.epoch + 1:
        if not _deaf(seen, max(change.at for change in before.changes), after.began):
            yield Violation(law="breaker", what=f"not by one epoch: {move}", at=after.began)
        return
    by_hand = new.state != "half_open" and any(
        fault.kind in _OPERATED and fault.began - CLOCKS_S <= after.began <= fault.ended + OPERATED_S
        for fault in seen.history.faults
    )
    if (old.state, new.state) not in _LEGAL and not by_hand:
        yield Violation(law="breaker", what=f"not a move: {move}", at=after.began)
    if new.state == "half_open" and (old.until is None or after.began < old.until - CLOCKS_S):
        yield Violation(law="breaker", what=f"before its time: {move}", at=after.began)


def _granted(seen: Evidence, epoch: _Epoch) -> int:
    """Permits: each write that raises `issued` gave one. For each time that nobody listened, a whole round's more."""
    permits = seen.rules.half_open_permits
    rounds: dict[int, int] = {}
    granted = issued = 0
    for change in epoch.changes:
        if change.round not in rounds:
            issued = 0
        granted += max(0, change.issued - issued)
        issued = rounds[change.round] = change.issued
    missed = max(rounds) - min(rounds) + 1 - len(rounds)
    deaf = sum(began <= epoch.ended and ended >= epoch.began for began, ended in seen.history.deaf)
    return granted + permits * (missed + deaf)


def _deaf(seen: Evidence, began: float, ended: float) -> bool:
    return any(since <= ended and until >= began for since, until in seen.history.deaf)


def _thawed(seen: Evidence, epoch: _Epoch, mail: Transaction) -> bool:
    since = mail.began - THAWED_S - seen.late_s
    frozen = seen.faults(("freeze",), mail.worker, since, mail.began)
    return any(fault.began <= epoch.began + READING_S + seen.late_s for fault in frozen)


def _alone(seen: Evidence, epoch: _Epoch, mail: Transaction) -> bool:
    until = epoch.changes[-1].until
    if until is None:
        return False
    lapsed = until + seen.rules.open_margin_s
    return mail.began >= lapsed - CLOCKS_S and all(_away(seen, owner, lapsed, mail) for owner in seen.history.owners)


def _away(seen: Evidence, owner: str, lapsed: float, mail: Transaction) -> bool:
    """Whether a user_svc was away from when the pause lapsed until a few seconds before a mail."""
    since = mail.began - ASKS_S - seen.late_s
    away = [
        *seen.faults(("kill", "restart", "freeze"), owner, since, mail.began),
        *seen.faults(CUTS, f"{owner}~broker", since, mail.began),
    ]
    return any(fault.began <= lapsed for fault in away)
