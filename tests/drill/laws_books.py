"""Laws about what the broker holds when all has settled."""

from collections import Counter
from collections.abc import Iterator

from tests.drill.evidence import ENDS, Evidence, Violation, user_in

_COUNTED = ("outbox", "queue", *ENDS)


def settled(seen: Evidence) -> Iterator[Violation]:
    """At rest nothing is on its way: outbox and queue are empty, no attempt is pending, no erasure goes on (D12)."""
    for event, rows in seen.rows.items():
        places = {row.place for row in rows}
        if waits := places & {"outbox", "queue"}:
            yield Violation(law="settled", what=f"still in {', '.join(sorted(waits))}", event=event)
        elif "attempts" in places and not places & {*ENDS, "erased"}:
            yield Violation(law="settled", what="still to be tried again", event=event)
    if seen.history.books.erasing:
        what = f"{seen.history.books.erasing} erasures still under way"
        yield Violation(law="settled", what=what)


def ledger(seen: Evidence) -> Iterator[Violation]:
    """The broker's counters are what is found, and every live event is somewhere, once (D12).

    live = outbox + queue + sent + dead + expired. A row belongs to a key (or to an erased user: another law's), an
    event has it once, attempts go with the outcome, a dead letter has the outcome that it tells of.
    """
    books = seen.history.books
    found = Counter(row.place for row in seen.history.rows)
    for place in _COUNTED:
        if getattr(books, place) != found[place]:
            yield Violation(law="ledger", what=f"{place}: counted {getattr(books, place)}, found {found[place]}")
    if books.live != len(seen.history.keys):
        yield Violation(law="ledger", what=f"live: counted {books.live}, found {len(seen.history.keys)}")
    if gap := books.live - sum(getattr(books, place) for place in _COUNTED):
        yield Violation(law="ledger", what=f"a gap of {gap}")
    for event, times in Counter(key.event_id for key in seen.history.keys).items():
        if times > 1:
            yield Violation(law="ledger", what=f"{times} keys of one event", event=event)
    for event, rows in seen.rows.items():
        places = Counter(row.place for row in rows)
        for place, times in places.items():
            if times > 1 and place != "dead_letter":
                yield Violation(law="ledger", what=f"{times} times in {place}", event=event)
        if "attempts" in places and places.keys() & {*ENDS}:
            yield Violation(law="ledger", what="attempts beside the outcome", event=event)
        letters = Counter(row.detail for row in rows if row.place == "dead_letter")
        if any(
            times > 1 or state not in places or state not in ("dead", "expired") for state, times in letters.items()
        ):
            yield Violation(law="ledger", what="a dead letter without its outcome", event=event)
        email = seen.emails.get(user_in(event), "")
        if event not in seen.keys and not seen.possible(email, "erase") and "erased" not in places:
            yield Violation(law="ledger", what="a row of an event without a key", event=event)


def quarantine(seen: Evidence) -> Iterator[Violation]:
    """No message is quarantined but those that the drill planted (D4)."""
    extra = seen.history.quarantined - seen.history.planted
    if extra > 0:
        yield Violation(law="quarantine", what=f"{extra} quarantined that were not planted")
