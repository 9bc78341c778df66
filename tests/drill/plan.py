"""What is broken when: a pure function of a seed.

    plan(7, 20.0) == plan(7, 20.0)

Kinds are dealt like cards: each comes once before any comes twice. A step begins while the one before may still be on,
but never on something that is broken already. All are mended before the end. Which SMTP phase, how late, how many
mails: drawn from the step's own `draw`, so that a plan is all there is to repeat a drill.
"""

import random
from dataclasses import dataclass

QUIET_S = 1.5
"""At the beginning and at the end nothing is broken."""
REST_S = 1.5
"""What was broken is left alone for so long."""
SHORTEST_S = 0.3
GAP_S = 1.2
"""Between the beginnings of two steps, on average, in a short drill; up to twice that in a long one."""

USERS = ("user_svc", "user_svc-2")
EMAILS = ("email_svc", "email_svc-2")
LINKS = (
    *(f"{name}~broker" for name in (*USERS, *EMAILS)),
    *(f"{name}~smtp" for name in EMAILS),
    *(f"client~{name}" for name in USERS),
)

_ANY = (*USERS, *EMAILS, "broker")
KINDS: dict[str, tuple[str, ...]] = {
    "kill": _ANY,
    "freeze": _ANY,
    "restart": _ANY,
    "cut": LINKS,
    "delay": LINKS,
    "black_hole": LINKS,
    "half_open": LINKS,
    "smtp_421": ("smtp",),
    "smtp_45x": ("smtp",),
    "smtp_55x": ("smtp",),
    "smtp_slow": ("smtp",),
    "smtp_silent": ("smtp",),
    "smtp_reset": ("smtp",),
    "smtp_late_dot": ("smtp",),
    "smtp_lost_dot": ("smtp",),
    "queue_full": ("breaker",),
    "purge": ("queue",),
    "consumer_deleted": ("queue",),
    "downtime": ("smtp",),
    "breaker_open": ("breaker",),
    "replay": ("dead letters",),
}
"""Each kind of fault with what it can hit."""
CLUSTER_KINDS = {"leader_kill": ("broker",)}
_HEAVY = ("kill", "freeze", "restart", "cut", "black_hole")
"""Dealt twice."""
_INSTANT = ("purge", "consumer_deleted", "replay")


@dataclass(frozen=True)
class Step:
    """One fault: begun `at` seconds after the load, mended `seconds` later. `draw`: a seed for what is left open."""

    at: float
    kind: str
    target: str
    seconds: float
    draw: int
    delay_s: float = 0.0


def plan(seed: int, seconds: float, *, cluster: bool = False) -> tuple[Step, ...]:
    """The faults of a load of so many seconds, by time of beginning."""
    rng = random.Random(seed)
    kinds = KINDS | (CLUSTER_KINDS if cluster else {})
    longest = min(8.0, max(1.5, seconds / 15))
    gap = GAP_S if seconds < 60 else 2 * GAP_S
    deck: list[str] = []
    steps: list[Step] = []
    broken: dict[str, float] = {}  # until when, by target
    at, end = QUIET_S, seconds - QUIET_S
    while at + SHORTEST_S <= end:
        if not deck:
            deck = [*kinds, *_HEAVY, *(("leader_kill",) * 2 if cluster else ())]
            rng.shuffle(deck)
        kind = deck.pop()
        whole = [target for target in kinds[kind] if broken.get(target, 0.0) <= at]
        if not whole:
            deck.insert(0, kind)  # later
            at += 0.1
            continue
        target = rng.choice(whole)
        lasts = 0.0 if kind in _INSTANT else min(longest, rng.uniform(SHORTEST_S, 0.8) + rng.expovariate(1.0), end - at)
        delay_s = rng.choice((0.02, 0.1, 0.4)) if kind == "delay" else 0.0
        steps.append(Step(round(at, 3), kind, target, round(lasts, 3), rng.getrandbits(32), delay_s))
        broken[target] = at + lasts + REST_S
        at += rng.uniform(0.6, 1.4) * gap
    return tuple(steps)
