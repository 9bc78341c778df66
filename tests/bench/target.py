"""The targets, as a table, and how far a run is from each."""

import statistics
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from tests.bench.results import FLOOR, PEERS, RATES, SELF, SYNCS, Results


@dataclass(frozen=True)
class Target:
    """`found` takes the run and gives the figure; None: it was not measured."""

    what: str
    bound: float
    at_least: bool
    unit: str
    found: Callable[[Results], float | None]

    def met(self, value: float) -> bool:
        return value >= self.bound if self.at_least else value <= self.bound


def targets() -> Iterator[Target]:
    """All of them, in the order in which they are shown."""
    for sync, bound in (("always", 0.85), ("1s", 0.7)):
        yield _ratio(sync, "registrations/s", FLOOR, bound)
    for sync in SYNCS:
        yield _ratio(sync, "mails/s", FLOOR, 0.7)
    for sync, bound in (("always", 1.0), ("1s", 2.0)):
        for peer in PEERS:
            for rate in RATES:
                yield _ratio(sync, rate, peer, bound)
    for measure, bound in (("POST to accepted p50 ms", 10), ("POST to accepted p99 ms", 50)):
        for sync in SYNCS:
            yield _median(sync, measure, bound)
    for service in ("user_svc MB", "email_svc MB"):
        yield Target(f"peak memory of {service[:-3]} with the largest queue", 120, False, "MB", _largest(service))
    yield Target("first 201 after `just up`", 3, False, "s", _cold)


def _ratio(sync: str, measure: str, other: str, bound: float) -> Target:
    what = f"{measure} ÷ {other}, {SYNCS[sync]}"
    return Target(what, bound, True, "", lambda run: run.ratio(sync, measure, other))


def _median(sync: str, measure: str, bound: float) -> Target:
    what, _, unit = measure.rpartition(" ")
    return Target(f"{what} at 100/s, {SYNCS[sync]}", bound, False, unit, lambda run: run.median(sync, SELF, measure))


def _largest(service: str) -> Callable[[Results], float | None]:
    return lambda run: run.scale[max(run.scale)][service] if run.scale else None


def _cold(run: Results) -> float | None:
    return statistics.median(run.cold[SELF]) if SELF in run.cold else None
