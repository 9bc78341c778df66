"""The laws that the state machines judge by catch what they are for, each by its name."""

from datetime import UTC, datetime, timedelta
from typing import Any

import msgspec
import pytest

from contracts import messages as m
from contracts.control import BREAKER, Breaker, BreakerRecord, Permit
from tests.support.breaker_laws import OPERATOR, Heard, Watch
from tests.support.delivery_laws import Danger, Mail, broken_laws
from tests.support.smtp_server import Transaction

T0 = datetime(2026, 1, 1, tzinfo=UTC)
SECOND = timedelta(seconds=1)
USER = m.UserRegistered(user_id="a" * 26, email="ann@example.com", name="Ann", nonce="n", created_at=T0)


def copy(at: datetime, *, worker: str = "w1", message_id: str = "1") -> Transaction:
    content = f"Message-ID: <{message_id}>\r\n\r\nhello".encode()
    return Transaction(0, 0.0, at.timestamp(), mail_from=worker, rcpts=[USER.email], content=content)


def attempt(verdict: str, at: datetime, code: int | None = None) -> m.Attempt:
    return m.Attempt(at=at, verdict=verdict, phase="rcpt" if code else "connect", code=code)


def history(*attempts: m.Attempt, charged: int) -> m.History:
    return m.History(total=len(attempts), charged=charged, first=attempts)


def broken(state: m.State, copies: list[Transaction], *dangers: Danger, **changes: Any) -> str:
    mail = Mail(USER, 1, T0, T0 + 3600 * SECOND)
    mail.said["rcpt", 450] += 9
    mail.erased_at = changes.pop("erased_at", None)
    outcome = m.Outcome(event_id=mail.event_id, state=state, at=T0 + SECOND, **changes)
    return " ".join(broken_laws(mail, outcome, copies, list(dangers), retries=2))


TWO = [copy(T0), copy(T0, worker="w2")]
BUDGET_SPENT = history(*(attempt("transient", T0, 450) for _ in range(3)), charged=3)


@pytest.mark.parametrize(
    ("found", "law"),
    [
        (broken(m.State.SENT, [copy(T0)]), ""),
        (broken(m.State.SENT, []), "sent: the server has it"),
        (broken(m.State.SENT, TWO), "at most 1 copies"),
        (broken(m.State.SENT, TWO, Danger(T0, T0, worker="w1")), ""),
        (broken(m.State.SENT, TWO, Danger(T0, T0, worker="w3")), "at most 1 copies"),
        (broken(m.State.SENT, TWO, Danger(T0 - 9 * SECOND, T0 - 8 * SECOND)), "at most 1 copies"),
        (broken(m.State.SENT, TWO, Danger(T0 + 2 * SECOND, T0 + 2 * SECOND)), "at most 1 copies"),
        (broken(m.State.SENT, [copy(T0), copy(T0, message_id="2")], Danger(T0, T0)), "one Message-ID"),
        (broken(m.State.DEAD, [], history=BUDGET_SPENT), ""),
        (broken(m.State.DEAD, [copy(T0)], history=BUDGET_SPENT), "taken by the server"),
        (broken(m.State.DEAD, []), "dead: refused for good"),
        (broken(m.State.DEAD, [], reason="permanent"), "dead: refused for good"),
        (broken(m.State.EXPIRED, []), "expired after its deadline"),
        (broken(m.State.ERASED, []), "erased means erased"),
        (broken(m.State.SENT, [copy(T0)], erased_at=T0), "erased means erased"),
        (broken(m.State.ERASED, [copy(T0)], erased_at=T0), ""),
        (broken(m.State.ERASED, [copy(T0 + 9 * SECOND)], erased_at=T0), "nothing goes out"),
        (broken(m.State.SENT, [copy(T0)], history=history(attempt("path", T0), charged=1)), "charged 0 to 0"),
        (broken(m.State.SENT, [copy(T0)], history=history(attempt("transient", T0, 450), charged=0)), "charged 1"),
        (broken(m.State.SENT, [copy(T0)], history=history(attempt("policy", T0, 554), charged=1)), "heard what"),
    ],
)
def test_a_mail_that_ended_wrongly_is_caught(found: str, law: str) -> None:
    """By the law that it breaks; `law` empty: it ended well."""
    assert law in found if law else not found


CLOSED = BreakerRecord(state=Breaker.CLOSED, epoch=1, since=T0)
OPEN = BreakerRecord(state=Breaker.OPEN, epoch=2, since=T0, open_until=T0 + SECOND, surge=True)
HALF = BreakerRecord(state=Breaker.HALF_OPEN, epoch=3, since=T0, round=1, surge=True)


def out(nonce: int) -> Permit:
    return Permit(nonce=nonce, round=1, given_at=T0, lapses_at=T0)


@pytest.mark.parametrize(
    ("writes", "law"),
    [
        ([CLOSED, OPEN, HALF], ""),
        ([OPEN, msgspec.structs.replace(HALF, epoch=4)], "rises by one"),
        ([CLOSED, msgspec.structs.replace(OPEN, epoch=1)], "changes with the epoch"),
        ([msgspec.structs.replace(OPEN, open_until=T0 + 9 * SECOND), HALF], "until its time is over"),
        ([msgspec.structs.replace(OPEN, open_until=None), HALF], "until its time is over"),
        ([OPEN, msgspec.structs.replace(HALF, surge=False)], "surge"),
        ([OPEN, msgspec.structs.replace(CLOSED, epoch=3)], "legal change"),
        ([OPEN, msgspec.structs.replace(CLOSED, epoch=3, reason=OPERATOR)], ""),
        ([HALF, msgspec.structs.replace(CLOSED, epoch=4)], "enough successes"),
        ([OPEN, HALF, msgspec.structs.replace(HALF, issued=2, permits={"a": out(1), "b": out(1)})], ""),
        ([OPEN, HALF, msgspec.structs.replace(HALF, issued=1, permits={"a": out(1), "b": out(1)})], "was granted"),
        ([OPEN, HALF, msgspec.structs.replace(HALF, issued=3)], "at most P"),
    ],
)
def test_a_wrong_write_of_the_record_is_caught(writes: list[BreakerRecord], law: str) -> None:
    """By the law that it breaks; `law` empty: all is well."""
    watch = Watch(permits=2, successes=2)
    for sequence, record in enumerate(writes):
        watch.heard(sequence, T0 + 2 * SECOND, BREAKER.encode(record))
    assert law in " ".join(watch.broken) if law else not watch.broken


def test_what_was_heard_is_counted() -> None:
    """One event is blamed once; a refusal by policy is a success of the path."""
    heard = Heard()
    for verdict, event in [("path", "a"), ("path", "a"), ("path", "b")]:
        heard.hear(verdict, event)
    assert (heard.run, heard.failed) == (2, 2)
    heard.hear("policy", "c")
    assert (heard.run, heard.ok, heard.surge) == (0, 1, False)
