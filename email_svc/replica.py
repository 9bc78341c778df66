"""What this worker says of itself beside what every process does (contracts.replica)."""

from collections import Counter
from typing import Any

import msgspec

from contracts import replica
from email_svc import metrics
from email_svc.decision import Verdict
from email_svc.downtime import Downtime
from email_svc.limiter import Limiter

_ABOUT = {
    Verdict.SENT: "sent",
    **dict.fromkeys((Verdict.PATH, Verdict.CONFIGURATION), "path"),
    **dict.fromkeys((Verdict.TRANSIENT, Verdict.PERMANENT, Verdict.POLICY, Verdict.UNUSABLE), "message"),
}
"""Fields of `Verdicts`; all others are `other`."""


def said(limiter: Limiter, downtime: Downtime) -> dict[str, Any]:
    """Those fields of `ReplicaAnswer`. Asks nobody: a console asks every worker each second."""
    limit = limiter.known()
    return {
        "in_hand": int(_values(metrics.IN_HAND)[""]),
        "verdicts": _verdicts(),
        "limiter": None if limit is None else msgspec.convert(limit, replica.RateLimit),
        "downtime": None if limit is None else msgspec.convert(downtime.status(), replica.SimulatedDowntime),
    }


def _verdicts() -> replica.Verdicts:
    found: Counter[str] = Counter()
    for verdict, number in _values(metrics.REQUESTS).items():
        found[_ABOUT.get(Verdict(verdict), "other")] += int(number)
    return replica.Verdicts(**found)


def _values(metric: Any) -> dict[str, float]:
    """The metric's values by its one label; without one, by an empty text."""
    return {
        next(iter(sample.labels.values()), ""): sample.value
        for each in metric.collect()
        for sample in each.samples
        if not sample.name.endswith("_created")
    }
