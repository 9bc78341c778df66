"""A good history, small enough to be read, to be spoiled by the checker's tests.

ada   sent                                      bob   503, then 201; refused for good: dead
cyd   another's 409; greylisted, then sent      dan   sent; erased, and 404 afterwards
eve   never reached: expired                    fay   sent; asked for again: sent again
gus   the reply to its dot was lost: two mails  hal   four times refused for now: dead; replayed: sent
ivy   sent; erased, registered anew: sent       jan, kim   the probes of the half-open breaker
"""

from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from typing import Any, TypeVar

from tests.drill.evidence import event_in, user_in
from tests.drill.history import Books, Call, Change, Fault, History, Key, Reply, Row, Rules, Transaction

T = TypeVar("T")

RULES = Rules(rate_per_s=10.0, burst=5, retries=3, deadline_s=100.0, half_open_permits=3)
OK = {
    "mail": Reply(phase="mail", code=250),
    "rcpt": Reply(phase="rcpt", code=250),
    "data": Reply(phase="data", code=354),
}
GREYLISTED = Reply(phase="rcpt", code=450, text="4.2.0 later")
NOBODY = Reply(phase="rcpt", code=550, text="5.1.1 nobody here")
TAKEN = Reply(phase="dot", code=250, text="2.0.0 queued")
SILENCE = Reply(phase="dot", code=0)


def address(user: str) -> str:
    return f"{user}@example.com"


class Draft:
    """A history in the making. `history()` keeps the books by what is in it, unless `books` is set."""

    def __init__(self) -> None:
        self.calls: list[Call] = []
        self.transactions: list[Transaction] = []
        self.keys: list[Key] = []
        self.rows: list[Row] = []
        self.changes: list[Change] = []
        self.faults: list[Fault] = []
        self.rules = RULES
        self.books: Books | None = None
        self.more: dict[str, Any] = {}

    def history(self) -> History:
        found = Counter(row.place for row in self.rows)
        places = {place: found[place] for place in ("outbox", "queue", "sent", "dead", "expired")}
        return History(
            rules=self.rules,
            calls=tuple(self.calls),
            transactions=tuple(self.transactions),
            keys=tuple(self.keys),
            rows=tuple(self.rows),
            changes=tuple(self.changes),
            faults=tuple(self.faults),
            books=self.books or Books(live=len(self.keys), **places),
            **self.more,
        )

    # --- clients ---------------------------------------------------------------------------------------------------

    def call(self, kind: Any, user: str, at: float, status: int | None, **more: Any) -> None:
        """Answered after 0.25 s."""
        about = user if kind != "register" or status == 201 else None
        fields = {"email": address(user), "user_id": about, "ended": at + 0.25} | more
        self.calls.append(Call(kind=kind, began=at, status=status, **fields))

    def key(self, event: str, at: float, kind: Any = "u", **more: Any) -> None:
        user = user_in(event)
        self.keys.append(Key(event_id=event, user_id=user, kind=kind, email=address(user), at=at, **more))

    def registered(self, event: str, at: float) -> None:
        """A 201, and its key."""
        user = user_in(event)
        self.call("register", user, at, 201, key=f"key-{user}")
        self.key(event, at + 0.125)

    def erased(self, event: str, at: float) -> None:
        """A 204, and what it leaves."""
        self.call("erase", user_in(event), at, 204)
        drop(self.keys, of(event))
        drop(self.rows, of(event))
        self.rows.append(Row(event_id=event, place="erased", at=at + 0.125, stored_at=at + 0.125))

    # --- mails -----------------------------------------------------------------------------------------------------

    def refused(self, event: str, at: float, answer: Reply) -> None:
        """A dialogue that was refused at RCPT."""
        rcpt = address(user_in(event))
        self.transactions.append(
            Transaction(worker="email_svc", began=at, rcpt=rcpt, replies=(OK["mail"], answer), ended=at + 0.125)
        )

    def taken(self, event: str, at: float, *, told: bool = True, worker: str | None = "email_svc") -> None:
        """A mail that the server took after 1/16 s; its reply was out at 1/8 s."""
        self.transactions.append(
            Transaction(
                worker=worker,
                began=at,
                rcpt=address(user_in(event)),
                message_id=f"<{event}@mailflow.local>",
                accepted_at=at + 0.0625,
                told=told,
                replies=(*OK.values(), TAKEN if told else SILENCE),
                ended=at + 0.125,
            )
        )

    def row(
        self, event: str, place: str, *tries: tuple[str, Reply | None, float], counted: int = 0, **more: Any
    ) -> None:
        """`tries`: verdict, answer and time of each attempt; the outcome comes with the last."""
        asked_at = next((key.at for key in self.keys if key.event_id == event), 0.0)
        at = more.get("at", tries[-1][2] if tries else 0.0)
        fields = {"requested_at": asked_at, "at": at, "stored_at": at + 0.0625} | more
        verdicts, attempts, times = zip(*tries, strict=True) if tries else ((), (), ())
        self.rows.append(
            Row(
                event_id=event,
                place=place,
                attempts=attempts,
                verdicts=verdicts,
                attempted_at=times,
                total=len(tries),
                counted=counted,
                **fields,
            )
        )

    def sent(self, event: str, at: float) -> None:
        """Taken at the first try."""
        self.taken(event, at)
        self.row(event, "sent", ("sent", TAKEN, at + 0.125))

    def letter(self, event: str, state: str) -> None:
        self.rows.append(Row(event_id=event, place="dead_letter", detail=state))


def edit(items: list[T], where: Callable[[T], bool], **changes: Any) -> None:
    """Changes fields of those that match; there is at least one."""
    assert any(map(where, items))
    items[:] = [replace(item, **changes) if where(item) else item for item in items]  # type: ignore[type-var]


def drop(items: list[T], where: Callable[[T], bool]) -> None:
    """Takes out those that match; there is at least one."""
    assert any(map(where, items))
    items[:] = [item for item in items if not where(item)]


def of(event: str, place: str | None = None) -> Callable[[Any], bool]:
    """Keys and rows of an event."""
    return lambda item: item.event_id == event and place in (None, getattr(item, "place", None))


def mail(event: str) -> Callable[[Transaction], bool]:
    """Mails of an event."""
    return lambda transaction: event_in(transaction.message_id or "") == event


def calls(user: str, kind: str, status: int | None = 201) -> Callable[[Call], bool]:
    """Calls of that kind and answer."""
    return lambda call: (call.email, call.kind, call.status) == (address(user), kind, status)


def vanish(d: Draft, event: str) -> None:
    """Key, rows and mails of an event: as if it had never been."""
    drop(d.keys, of(event))
    drop(d.rows, of(event))
    drop(d.transactions, mail(event))


def fault(d: Draft, kind: str, target: str, began: float, ended: float | None = None, **more: float) -> None:
    """A moment, or as long as told."""
    d.faults.append(Fault(kind=kind, target=target, began=began, ended=began if ended is None else ended, **more))


def change(d: Draft, n: int, **changes: Any) -> None:
    """The n-th change of the breaker is another one."""
    d.changes[n] = replace(d.changes[n], **changes)


def begin(d: Draft, *times: float) -> None:
    """Dialogues that came to nothing."""
    for at in times:
        d.refused("ada.1", at, GREYLISTED)


def good() -> Draft:
    """The history of the table above."""
    d = Draft()
    d.changes.append(Change(at=0.0, epoch=1, state="closed"))
    d.registered("ada.1", 1.0)
    d.sent("ada.1", 2.0)

    d.call("register", "bob", 3.0, 503, key="key-bob")
    d.registered("bob.2", 4.0)
    d.refused("bob.2", 5.0, NOBODY)
    d.row("bob.2", "dead", ("permanent", NOBODY, 5.125))
    d.letter("bob.2", "dead")

    d.registered("cyd.3", 6.0)
    d.call("register", "cyd", 7.0, 409)
    d.refused("cyd.3", 7.0, GREYLISTED)
    d.taken("cyd.3", 8.0)
    d.row("cyd.3", "sent", ("transient", GREYLISTED, 7.125), ("sent", TAKEN, 8.125), counted=1)

    d.registered("dan.4", 9.0)
    d.sent("dan.4", 10.0)
    d.erased("dan.4", 11.0)
    d.call("erase", "dan", 12.0, 404)

    d.registered("eve.5", 13.0)
    d.row("eve.5", "expired", ("path", None, 14.0), at=113.125)
    d.letter("eve.5", "expired")

    d.registered("fay.6", 15.0)
    d.sent("fay.6", 16.0)
    d.call("resend", "fay", 17.0, 202, event_id="fay.7")
    d.key("fay.7", 17.125, "again")
    d.sent("fay.7", 18.0)

    d.registered("gus.8", 19.0)
    d.taken("gus.8", 20.0, told=False)
    d.taken("gus.8", 22.0, worker="email_svc-2")
    d.row("gus.8", "sent", ("unknown", None, 20.125), ("sent", TAKEN, 22.125), counted=1)

    d.registered("hal.9", 23.0)
    tries = [("transient", GREYLISTED, at + 0.125) for at in (24.0, 25.0, 26.0, 27.0)]
    for at in (24.0, 25.0, 26.0, 27.0):
        d.refused("hal.9", at, GREYLISTED)
    d.row("hal.9", "dead", *tries, counted=4)
    d.faults.append(Fault(kind="replay", target="dead letters", began=28.0, ended=28.25))
    d.key("hal.10", 28.125, "again", replays="hal.9")
    d.sent("hal.10", 29.0)

    d.registered("ivy.11", 30.0)
    d.sent("ivy.11", 31.0)
    d.erased("ivy.11", 32.0)
    d.registered("ivy.12", 33.0)
    d.sent("ivy.12", 34.0)

    d.changes += [
        Change(at=35.0, epoch=2, state="open", until=45.0),
        Change(at=45.25, epoch=3, state="half_open", round=1),
        Change(at=45.5, epoch=3, state="half_open", round=1, issued=1),
        Change(at=45.75, epoch=3, state="half_open", round=1, issued=2),
        Change(at=48.0, epoch=4, state="closed"),
    ]
    d.registered("jan.13", 40.0)
    d.sent("jan.13", 46.0)
    d.registered("kim.14", 41.0)
    d.sent("kim.14", 47.0)
    return d
