"""Tables of planted histories: what spoils the good one, and what the checker is to say of it.

@cases.breaks("lost: a 201 without its key [ada] at 1.250")     each violation, in any order
@cases.allows                                                   none
@cases.edge("erasure", last=12.25, first=12.251)                a limit: none at the last value, that law at the first
"""

from collections.abc import Callable
from dataclasses import dataclass

from tests.drill.checker import check
from tests.drill.sample import Draft, good

Spoil = Callable[[Draft], None]


@dataclass(frozen=True)
class Case:
    """A planted history. `laws` instead of the words: at a limit only which law is broken matters."""

    name: str
    spoil: Spoil
    says: tuple[str, ...] = ()
    law: str = ""

    def __str__(self) -> str:
        return self.name

    def said(self) -> tuple[list[str], list[str]]:
        """What the checker says, and what it is to say."""
        draft = good()
        self.spoil(draft)
        found = check(draft.history())
        if self.law:
            return sorted({violation.law for violation in found}), [self.law]
        return sorted(map(str, found)), sorted(self.says)


class Cases:
    """A table in the making."""

    def __init__(self) -> None:
        self.all: list[Case] = []

    def breaks(self, *says: str) -> Callable[[Spoil], Spoil]:
        def note(spoil: Spoil) -> Spoil:
            self.all.append(Case(spoil.__name__, spoil, says))
            return spoil

        return note

    def allows(self, spoil: Spoil) -> Spoil:
        self.all.append(Case(spoil.__name__, spoil))
        return spoil

    def edge(self, law: str, *, last: float, first: float) -> Callable[[Callable[[Draft, float], None]], None]:
        def note(spoil: Callable[[Draft, float], None]) -> None:
            name = spoil.__name__
            self.all.append(Case(f"{name}[{last:g}]", lambda d: spoil(d, last)))
            self.all.append(Case(f"{name}[{first:g}]", lambda d: spoil(d, first), law=law))

        return note
