"""The circuit breaker: its rules, pure. Record, event and the broker's time in; the record to be written out.

                 F path failures in a row, >= 50 % of >= 10 in 30 s,
                 configuration fault (5 min), policy surge, operator
      closed ────────────────────────────────────────────────────────► open
        ▲                                                             │   ▲
        │ S probes succeeded                            T is over (a) │   │ a probe of this round failed
        └──────────────────────────── half_open ◄─────────────────────┘   │
                                          └────────────────────────────────┘

One record for the whole fleet, changed by compare-and-set; every change of state is a new epoch, and what comes from
another epoch is ignored. Half-open attempts need a permit, P a round. A permit that never reports lapses, and once all
of a round are settled or lapsed a new round begins: it cannot jam. The rules were simulated before they were written.

Not here: the pause on the broker (user_svc.breaker_guard) and the worker's side (email_svc.leave).
Source: M. Nygard, Release It!; the generation number of sony/gobreaker.
"""

from collections import deque
from datetime import datetime, timedelta

import msgspec

from contracts.control import Answer, Ask, Breaker, BreakerRecord, Permit, Report, Result

WINDOW_S = 30.0
WINDOW_MIN = 10
WINDOW_SHARE = 0.5
CONFIGURATION_OPEN_S = 300.0
SURGE_OF = 50
SURGE_MORE_THAN = 20
_RENEW_AFTER_S = 1.0
_WAIT_S = 1.0
_LAPSE_MAX_S = 3600.0
"""Whatever a worker asks for: a permit that never lapses would hold the round for ever."""

CONFIGURATION, POLICY = "configuration", "policy"  # verdicts of email_svc, as they are reported


class Rules(msgspec.Struct, frozen=True, kw_only=True):
    """F, S, T and P: `CIRCUIT_BREAKER_*`."""

    failure_threshold: int = 5
    success_threshold: int = 2
    open_s: float = 30.0
    half_open_permits: int = 3

    def __post_init__(self) -> None:
        for name in ("failure_threshold", "success_threshold", "half_open_permits"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)}: expected 1 or more")
        if not self.open_s > 0:
            raise ValueError(f"open_s={self.open_s}: expected above 0")


class Opening(msgspec.Struct, frozen=True, kw_only=True):
    """Why to open, and for how long."""

    reason: str
    for_s: float
    surge: bool = False


class Memory:
    """What one replica has heard in this epoch; volatile. Any replica that reaches a threshold may open."""

    def __init__(self) -> None:
        self._begin(0)

    def _begin(self, epoch: int) -> None:
        self._epoch = epoch
        self.run = 0
        """Path failures in a row."""
        self._window: deque[tuple[datetime, int, int]] = deque()
        self._ok = self._failed = 0
        """In the window."""
        self._blamed: dict[str, datetime] = {}
        self._verdicts: deque[str] = deque(maxlen=SURGE_OF)

    def counts(self, now: datetime) -> tuple[int, int]:
        """(successes, failures) of the last 30 s."""
        self._forget(now)
        return self._ok, self._failed

    def hear(self, record: BreakerRecord, report: Report, now: datetime, rules: Rules) -> Opening | None:
        """Counts a report; the reason to open, if there is one now. Reports of another epoch or state are ignored."""
        if record.epoch != self._epoch:
            self._begin(record.epoch)
        if record.state is not Breaker.CLOSED or report.epoch != record.epoch:
            return None
        self._forget(now)
        blame = report.blame
        refused = blame is not None and blame.verdict == POLICY
        # The path answered: a refusal of the message is a success of the path.
        successes = report.successes + refused
        if successes:
            self.run = 0
            self._count(now, successes, 0)
        self._verdicts.extend([""] * min(report.successes, SURGE_OF))
        if blame is None:
            return None
        if refused:
            if blame.event_id not in self._verdicts:
                self._verdicts.append(blame.event_id)
            refusals = sum(1 for event in self._verdicts if event)
            if refusals > SURGE_MORE_THAN:
                reason = f"surge: {refusals} of the last {len(self._verdicts)} mails were refused by policy"
                return Opening(reason=reason, for_s=rules.open_s, surge=True)
            return None
        if blame.verdict == CONFIGURATION:
            return Opening(reason="configuration: we are refused for what we are", for_s=CONFIGURATION_OPEN_S)
        if blame.event_id in self._blamed:
            return None  # one mail must not pass for a sick path
        self._blamed[blame.event_id] = now
        self._count(now, 0, 1)
        self.run += 1
        ok, failed = self.counts(now)
        if self.run >= rules.failure_threshold:
            return Opening(reason=f"path failures of {self.run} mails in a row", for_s=rules.open_s)
        if ok + failed >= WINDOW_MIN and failed >= WINDOW_SHARE * (ok + failed):
            reason = f"{failed} path failures of {ok + failed} within {WINDOW_S:.0f} s"
            return Opening(reason=reason, for_s=rules.open_s)
        return None

    def _count(self, now: datetime, ok: int, failed: int) -> None:
        self._window.append((now, ok, failed))
        self._ok += ok
        self._failed += failed

    def _forget(self, now: datetime) -> None:
        oldest = now - timedelta(seconds=WINDOW_S)
        while self._window and self._window[0][0] < oldest:
            _, ok, failed = self._window.popleft()
            self._ok -= ok
            self._failed -= failed
        while self._blamed and next(iter(self._blamed.values())) < oldest:  # in the order of time
            del self._blamed[next(iter(self._blamed))]


def first(now: datetime, rules: Rules) -> BreakerRecord:
    """The record where there is none yet."""
    return BreakerRecord(state=Breaker.CLOSED, epoch=1, since=now, open_s=rules.open_s, reason="first start")


def opened(
    record: BreakerRecord, now: datetime, rules: Rules, *, reason: str, for_s: float | None, surge: bool = False
) -> BreakerRecord:
    """Open, from any state. `for_s` None: until further notice. A surge goes on until the breaker closes."""
    return BreakerRecord(
        state=Breaker.OPEN,
        epoch=record.epoch + 1,
        since=now,
        open_until=None if for_s is None else now + timedelta(seconds=for_s),
        open_s=rules.open_s,
        reason=reason,
        surge=surge or record.surge,
    )


def closed(record: BreakerRecord, now: datetime, rules: Rules, *, reason: str) -> BreakerRecord:
    """Closed, from any state."""
    return BreakerRecord(state=Breaker.CLOSED, epoch=record.epoch + 1, since=now, open_s=rules.open_s, reason=reason)


def ticked(record: BreakerRecord, now: datetime, rules: Rules) -> BreakerRecord | None:
    """Half-open, once the time is over (a). None: nothing changes."""
    if record.state is not Breaker.OPEN or record.open_until is None or now < record.open_until:
        return None
    return BreakerRecord(
        state=Breaker.HALF_OPEN,
        epoch=record.epoch + 1,
        since=now,
        open_s=rules.open_s,
        round=1,
        reason="the open time is over",
        surge=record.surge,
    )


def asked(
    record: BreakerRecord, revision: int, ask: Ask, now: datetime, rules: Rules
) -> tuple[BreakerRecord | None, Answer]:
    """The record to be written first (None: nothing), and the answer. `revision` is the one that the record has."""

    def answer(word: str, wait_s: float = 0.0) -> Answer:
        return Answer(word=word, record=record, revision=revision, wait_s=wait_s)  # type: ignore[arg-type]

    if record.state is Breaker.CLOSED:
        return None, answer("go")
    if record.state is Breaker.OPEN:
        return None, answer("wait", _WAIT_S)
    if ask.epoch != record.epoch:
        return None, answer("again")
    known = record.permits.get(ask.worker)
    if known is not None and ask.nonce <= known.nonce:
        if ask.nonce == known.nonce and known.state == "out" and known.round == record.round:
            if (now - known.given_at).total_seconds() <= _RENEW_AFTER_S:
                return None, answer("go")
            return _permitted(record, ask, now, round_=record.round, issued=record.issued), answer("go")
        return None, answer("old")
    if record.issued < rules.half_open_permits:
        return _permitted(record, ask, now, round_=record.round, issued=record.issued + 1), answer("go")
    out = [p for p in record.permits.values() if p.round == record.round and p.state == "out" and p.lapses_at > now]
    if not out:
        return _permitted(record, ask, now, round_=record.round + 1, issued=1), answer("go")
    next_lapse_s = (min(p.lapses_at for p in out) - now).total_seconds()
    return None, answer("wait", min(_WAIT_S, next_lapse_s))


def _permitted(record: BreakerRecord, ask: Ask, now: datetime, *, round_: int, issued: int) -> BreakerRecord:
    kept = {worker: permit for worker, permit in record.permits.items() if permit.round >= round_ - 1}
    kept[ask.worker] = Permit(
        nonce=ask.nonce, round=round_, given_at=now, lapses_at=now + timedelta(seconds=min(ask.lapse_s, _LAPSE_MAX_S))
    )
    return msgspec.structs.replace(record, round=round_, issued=issued, permits=kept)


def resulted(record: BreakerRecord, result: Result, now: datetime, rules: Rules) -> BreakerRecord | None:
    """The record after a probe. None: nothing changes; the result is acknowledged all the same."""
    if record.state is not Breaker.HALF_OPEN or result.epoch != record.epoch:
        return None
    permit = record.permits.get(result.worker)
    if permit is None or permit.nonce != result.nonce or permit.state == "ok":
        return None
    match result.how:
        case "ok":
            if record.ok + 1 >= rules.success_threshold:
                return closed(record, now, rules, reason=f"{record.ok + 1} probes succeeded")
            return _settled(record, result.worker, permit, "ok", ok=record.ok + 1)
        case "failed":
            if permit.round != record.round:
                return None
            for_s = CONFIGURATION_OPEN_S if result.verdict == CONFIGURATION else rules.open_s
            return opened(record, now, rules, reason="a probe failed", for_s=for_s)
        case "unused":
            if permit.state == "back":
                return None
            issued = record.issued - (permit.round == record.round)
            return _settled(record, result.worker, permit, "back", issued=issued)


def _settled(record: BreakerRecord, worker: str, permit: Permit, state: str, **changes: int) -> BreakerRecord:
    permits = {**record.permits, worker: msgspec.structs.replace(permit, state=state)}
    return msgspec.structs.replace(record, permits=permits, **changes)
