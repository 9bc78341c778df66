"""What a run found: figures by stack and measure, one a round; their medians, spreads and ratios."""

import statistics
from dataclasses import dataclass, field

SELF = "MailFlow"
FLOOR = "floor"
PEERS = ("FastStream", "Celery")
STACKS = (SELF, FLOOR, *PEERS)
SYNCS = {"always": "fsync always", "1s": "fsync each second"}

RATES = ("registrations/s", "registered and mailed/s", "mails/s")
"""Of these more is better; of all others less."""

Figures = dict[str, list[float]]
"""By measure."""


@dataclass
class Results:
    """All of one run."""

    speed: dict[str, dict[str, Figures]] = field(default_factory=dict)
    """By sync and stack."""
    cold: dict[str, list[float]] = field(default_factory=dict)
    """Seconds by stack."""
    scale: dict[int, dict[str, float]] = field(default_factory=dict)
    """By the number of users."""
    skipped: dict[str, str] = field(default_factory=dict)
    """Stacks that were not measured, and what to install for them."""
    about: dict[str, str] = field(default_factory=dict)
    """Machine, versions, date."""

    def add(self, sync: str, stack: str, found: dict[str, float]) -> None:
        """The figures of one round."""
        figures = self.speed.setdefault(sync, {}).setdefault(stack, {})
        for measure, value in found.items():
            figures.setdefault(measure, []).append(value)

    def median(self, sync: str, stack: str, measure: str) -> float | None:
        """None: not measured."""
        values = self.speed.get(sync, {}).get(stack, {}).get(measure)
        return statistics.median(values) if values else None

    def ratio(self, sync: str, measure: str, other: str) -> float | None:
        """MailFlow's to another's: the median of the rounds' ratios, for a round's two were measured side by side."""
        mine = self.speed.get(sync, {}).get(SELF, {}).get(measure)
        theirs = self.speed.get(sync, {}).get(other, {}).get(measure)
        if not mine or not theirs:
            return None
        return statistics.median(a / b for a, b in zip(mine, theirs, strict=False))


def spread(values: list[float]) -> float:
    """(largest - smallest) / median."""
    return (max(values) - min(values)) / statistics.median(values)
