"""What may have become of a mail, by three logs: what was done to it, what the SMTP server took, what the books say."""

from collections import Counter
from datetime import datetime, timedelta
from itertools import pairwise

from contracts import messages as m
from contracts.messages import Attempt, Outcome, State
from email_svc.decision import CHARGED, Verdict
from tests.support.smtp_server import Reply, Transaction

PERMANENT = Reply(550, "5.1.1 unknown")
_OF_ONE_MAIL = ("rcpt", "data", "dot")
GRACE = timedelta(seconds=0.2)
"""What lies so close together may have happened in either order."""
_DIALOGUE = timedelta(seconds=5)
"""No dialogue takes longer."""
ERASED_GRACE_S = 3.0
"""A mail may still go out whose transaction begins a second after its erasure; and the machine may stall."""


class Mail:
    """One event, and what was done to it."""

    def __init__(self, user: m.UserRegistered, revision: int, requested_at: datetime, expires_at: datetime) -> None:
        self.user = user
        self.revision = revision
        self.event_id = f"{user.user_id}.{revision}"
        self.requested_at = requested_at
        self.expires_at = expires_at
        self.said: Counter[tuple[str, int]] = Counter()
        """(phase, code) of the server's scripted replies to it."""
        self.replies_lost = 0
        """The server took it, and did not say so."""
        self.erased_at: datetime | None = None


class Danger:
    """Something after which a mail may be sent again that had gone out, but had no outcome yet.

    `worker`: who died then, named by the sender of its mails; None: it came over all of them. `to_many`: it makes a
    second copy only where several workers are.
    """

    def __init__(self, began: datetime, ended: datetime, *, worker: str | None = None, to_many: bool = False) -> None:
        self.began = began
        self.ended = ended
        self.worker = worker
        self.to_many = to_many

    def excuses(self, mail: Mail, copies: list[Transaction], outcome: Outcome) -> bool:
        """Whether one more copy may be for this."""
        if outcome.at < self.began - GRACE or self.ended < mail.requested_at:
            return False
        return any(self.worker is None or copy.mail_from == self.worker for copy in copies)


def broken_laws(
    mail: Mail, outcome: Outcome, accepted: list[Transaction], dangers: list[Danger], *, retries: int
) -> list[str]:
    """The laws that this mail's end breaks. `accepted`: all that the server took, of whomever."""
    copies = [transaction for transaction in accepted if transaction.rcpt == mail.user.email]
    history = outcome.history
    unknown = sum(attempt.verdict == Verdict.UNKNOWN and attempt.code is None for attempt in history.attempts)
    lost = max(mail.replies_lost, unknown)  # unscripted ones: to a server that stalled for longer than it is waited for
    excuses = lost + sum(danger.excuses(mail, copies, outcome) for danger in dangers)
    refused = any(code == PERMANENT.code for _, code in mail.said)
    laws = {
        f"at most {1 + excuses} copies": len(copies) <= 1 + excuses,
        "one Message-ID": len({copy.message_id for copy in copies}) <= 1,
        "sent: the server has it": outcome.state is not State.SENT or len(copies) >= 1,
        "taken by the server: sent, unless excused": outcome.state in (State.SENT, State.ERASED)
        or len(copies) <= excuses,
        "expired after its deadline": outcome.state is not State.EXPIRED or outcome.at >= mail.expires_at,
        "erased means erased": (outcome.state is State.ERASED) is (mail.erased_at is not None),
        "nothing goes out after the erasure": mail.erased_at is None
        or all(copy.mail_at_wall <= mail.erased_at.timestamp() + ERASED_GRACE_S for copy in copies),
        "dead: refused for good, or its budget is spent": outcome.state is not State.DEAD
        or (refused and outcome.reason == Verdict.PERMANENT)
        or history.charged == retries + 1,
        "within its budget": history.charged <= retries + 1,
    }
    if history.total <= len(history.attempts):  # all of them are kept
        heard = Counter((a.phase, a.code) for a in history.attempts if a.code and a.phase in _OF_ONE_MAIL)
        laws["heard what was said"] = all(
            count <= mail.said[phase, code] for (phase, code), count in heard.items() if code != 250
        )
        laws |= _budget_laws(mail, history.charged, history.attempts, accepted)
    return [f"{law}: {mail.event_id}: {outcome}; copies: {len(copies)}" for law, kept in laws.items() if not kept]


def _budget_laws(
    mail: Mail, charged: int, attempts: tuple[Attempt, ...], accepted: list[Transaction]
) -> dict[str, bool]:
    """A path failure spends no budget, unless another mail went out since the last attempt."""
    own = sum(attempt.verdict in CHARGED for attempt in attempts)
    others = [copy.mail_at_wall for copy in accepted if copy.rcpt != mail.user.email]
    may = 0
    for before, attempt in pairwise(attempts):
        if attempt.verdict == Verdict.PATH:
            since, until = (before.at - _DIALOGUE).timestamp(), (attempt.at + GRACE).timestamp()
            may += any(since <= at <= until for at in others)
    return {f"charged {own} to {own + may}": own <= charged <= own + may}
