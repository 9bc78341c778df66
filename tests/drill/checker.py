"""The verdict on a drill: a pure function of what clients were told, the SMTP server took, and the broker holds.

    check(history)      every law that was broken; empty: nothing was lost, nothing invented, nobody was told wrong
    excused(history)    second copies of a mail that section 6 of the design allows

Each law is a function of its own, which says it and where it comes from; none knows the code under test. What a history
leaves out is never an excuse. Not judged: order between users, and how long anything takes.
"""

from collections.abc import Callable, Iterator

from tests.drill import laws_mails
from tests.drill.evidence import Evidence, Violation
from tests.drill.history import History
from tests.drill.laws_books import ledger, quarantine, settled
from tests.drill.laws_mails import duplicate, verdict
from tests.drill.laws_pace import breaker, rate
from tests.drill.laws_users import answer, erasure, ghost, lost, truth

__all__ = ["LAWS", "Violation", "check", "excused"]

LAWS: tuple[Callable[[Evidence], Iterator[Violation]], ...] = (
    lost,
    settled,
    ghost,
    truth,
    answer,
    erasure,
    duplicate,
    verdict,
    ledger,
    rate,
    breaker,
    quarantine,
)
"""Each named as it is in its violations."""


def check(history: History) -> list[Violation]:
    """All violations of all laws."""
    seen = Evidence(history)
    return [violation for law in LAWS for violation in law(seen)]


def excused(history: History) -> dict[str, int]:
    """How many second copies were taken with which excuse (tests.drill.laws_mails.excuse)."""
    return laws_mails.excused(Evidence(history))
