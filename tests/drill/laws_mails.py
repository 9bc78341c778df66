"""Laws about single mails: a second copy needs an excuse, a verdict its evidence."""

import re
from collections import Counter
from collections.abc import Iterator
from itertools import pairwise

from tests.drill.evidence import CUTS, DEATHS, ENDS, Evidence, Violation, canonical, user_in
from tests.drill.history import Reply, Row, Transaction

RENEWED_S = 12.0
"""A lease is renewed every 10 s, and a renewal may take 2 s: a worker that is gone for ack_wait less this may find its
message with another."""
LOOK_AGAIN_S = 1.0
"""An outcome that is older than this when a MAIL begins was seen by who began it (D6)."""
IN_HAND_S = 10.0
"""So long before its MAIL a message may be in a worker's hand: it waits for a connection, a token and leave."""
KEPT = 20
"""Attempts in a history: the first 3 and the last 17."""

_BUDGET = frozenset({"transient", "policy", "unknown"})
_PATH = frozenset({"path", "configuration"})
_MESSAGE_PHASES = ("rcpt", "data", "dot")
_DEADLINE_S = 0.01
_SENT_LATER_S = 0.5
"""Between the server's log of an accepted mail and the time that its worker wrote down, either way."""


# --- copies ----------------------------------------------------------------------------------------------------------


def duplicate(seen: Evidence) -> Iterator[Violation]:
    """All copies of an event carry one Message-ID, and each copy but the first has an excuse (section 6; D6)."""
    for mail in seen.taken:
        if mail.message_id is None:
            yield Violation(law="duplicate", what="a mail without Message-ID", at=mail.began)
    for event, first, second, excuse in _copies(seen):
        if first.message_id != second.message_id:
            yield Violation(law="duplicate", what="two Message-IDs of one event", event=event, at=second.began)
        if excuse is None:
            what = f"a second copy without excuse, {second.began - first.began:.1f} s after the first"
            yield Violation(law="duplicate", what=what, event=event, at=second.began)


def excused(seen: Evidence) -> dict[str, int]:
    """How many second copies had which excuse."""
    return dict(Counter(excuse for *_, excuse in _copies(seen) if excuse is not None))


def _copies(seen: Evidence) -> Iterator[tuple[str, Transaction, Transaction, str | None]]:
    """Each copy but the first, with the one before it, and its excuse."""
    for event, mails in seen.mails.items():
        outcome = seen.outcome(event)
        stored = float("inf") if outcome is None else outcome.stored_at or outcome.at
        for first, second in pairwise(mails):
            yield event, first, second, excuse(seen, first, second.began, second, stored=stored)


def excuse(
    seen: Evidence, first: Transaction, began: float, second: Transaction | None = None, *, stored: float = float("inf")
) -> str | None:
    """Why a mail that was taken may have been forgotten by whoever went on with its event; None: for no reason.

    Args:
        first: the copy that was begun first.
        began: when the other one began: another copy, or an outcome that knows nothing of the first.
        second: that copy, if it is one.
        stored: when the event's outcome was written. Whoever began a second later has looked and seen it.

    untold      the first one's reply was lost, and the other began after it was taken
    killed      the first one's worker was, between its MAIL and the next copy or the outcome
    stopped     the first one's worker was told to stop while it could not reach the broker, in that time
    broker      was killed or restarted, or in a cluster stood still, in that time
    removed     the queue was purged or its consumer deleted while the first was in hand
    frozen      one of the two workers stood still or was cut off from the broker, for ack_wait less the renewal's 12 s
                before the other began

    A worker that is not known (None) was neither killed nor frozen.
    """
    taken = first.accepted_at or first.began
    if began <= stored + LOOK_AGAIN_S + seen.late_s:
        until = min(max(began, taken), stored)
        if not first.told and began >= taken:
            return "untold"
        if seen.deaths(first.worker, first.began, until):
            return "killed"
        stopping, link = seen.faults(("restart",), first.worker, first.began, until), f"{first.worker}~broker"
        if stopping and (
            seen.faults(("freeze",), "broker", first.began, until) or seen.faults(CUTS, link, first.began, until)
        ):
            return "stopped"
        ill = (*DEATHS, "freeze") if seen.history.brokers > 1 else DEATHS
        if seen.faults(ill, "broker", first.began, until):
            return "broker"
        if seen.faults(("purge", "consumer_deleted"), "queue", first.began - IN_HAND_S, until):
            return "removed"
    if _away(seen, first, began) or (second is not None and _away(seen, second, first.began)):
        return "frozen"
    return None


def _away(seen: Evidence, mail: Transaction, other_began: float) -> bool:
    """Whether the worker of a copy was away so long that the broker gave its message to another by then."""
    if mail.worker is None:
        return False
    since, until = mail.began - LOOK_AGAIN_S, mail.accepted_at or mail.began
    away = [
        *seen.faults(("freeze",), mail.worker, since, until),
        *seen.faults(("freeze",), "broker", since, until),
        *seen.faults(CUTS, f"{mail.worker}~broker", since, until),
    ]
    return any(min(f.ended, other_began) - f.began >= seen.rules.ack_wait_s - RENEWED_S for f in away)


# --- verdicts --------------------------------------------------------------------------------------------------------


def verdict(seen: Evidence) -> Iterator[Violation]:
    """A mail ends once, and only for what really happened to it (D4).

    One outcome an event. dead: refused for good in a dialogue of its own, or more charged attempts than retries.
    expired: not before its deadline. Nothing but transient and policy refusals and unknown outcomes is charged, and a
    path failure only if another mail went through since this one's last attempt (whose worker the ledger does not
    tell, so any worker's mail counts; without times none does). What a row says the server answered, it has answered,
    as often. A mail that was taken ends otherwise only with the excuse that a second copy of it would need. The mails
    of a drill are all usable: a dead letter for an unusable one is wrong.
    """
    answers: dict[str, Counter[tuple[str, int]]] = {}
    for event, rows in seen.rows.items():
        ends = [row for row in rows if row.place in ENDS]
        if len(ends) > 1:
            places = ", ".join(sorted(row.place for row in ends))
            yield Violation(law="verdict", what=f"several outcomes: {places}", event=event)
        for row in rows:
            if row.place in ENDS or row.place == "attempts":
                wrong = [*_budget(seen, event, row), *_end(seen, event, row), *_answered(seen, answers, row)]
                yield from (Violation(law="verdict", what=what, event=event, at=row.at or None) for what in wrong)


def _budget(seen: Evidence, event: str, row: Row) -> Iterator[str]:
    kept, retries = len(row.attempts), seen.rules.retries
    if not kept == len(row.verdicts) == min(row.total, KEPT) or (row.attempted_at and len(row.attempted_at) != kept):
        yield f"{row.total} attempts, {kept} of them kept with {len(row.verdicts)} verdicts"
        return
    sure = sum(each in ("transient", "unknown") for each in row.verdicts)
    may_be = sum(each in _BUDGET for each in row.verdicts) + row.total - kept
    may_be += sum(_others_passed(seen, event, row, n) for n, each in enumerate(row.verdicts) if each in _PATH)
    if not sure <= row.counted <= may_be:
        yield f"{row.counted} attempts charged, where {sure} to {may_be} may be"
    most = retries + 1 if row.place == "dead" and row.verdicts and row.verdicts[-1] in _BUDGET | _PATH else retries
    if row.counted > most:
        yield f"{row.counted} attempts charged, with a budget of {retries} retries"


def _others_passed(seen: Evidence, event: str, row: Row, n: int) -> bool:
    """Whether another mail was taken between an attempt and the one before it."""
    if n == 0 or not row.attempted_at:
        return False
    since, until = row.attempted_at[n - 1] - _SENT_LATER_S - seen.late_s, row.attempted_at[n] + _SENT_LATER_S
    return seen.others_taken(event, since, until)


def _end(seen: Evidence, event: str, row: Row) -> Iterator[str]:
    last = row.verdicts[-1] if row.verdicts else ""
    match row.place:
        case "sent":
            if last != "sent":
                yield f"sent, after an attempt that was {last or 'none'}"
        case "expired":
            if not row.requested_at or row.at < row.requested_at + seen.rules.deadline_s - _DEADLINE_S:
                yield "expired before its deadline"
        case "dead" if last == "permanent":
            if not _refused_for_good(seen, row):
                yield "dead, but the SMTP server has not refused it for good"
        case "dead":
            if row.counted <= seen.rules.retries or last not in _BUDGET | _PATH:
                yield f"dead after {row.counted} charged attempts, the last one {last or 'none'}"
    if row.place in ("dead", "expired"):
        for mail in seen.mails.get(event, ()):
            if excuse(seen, mail, max(row.at, mail.began), stored=row.stored_at or row.at) is None:
                yield f"{row.place}, though the SMTP server took it"


def _refused_for_good(seen: Evidence, row: Row) -> bool:
    last = row.attempts[-1] if row.attempts else None
    return last is not None and any(
        (reply.phase, reply.code) == (last.phase, last.code) and permanent(reply)
        for mail in _dialogues(seen, row)
        if mail.began <= max(row.at, row.stored_at)  # the worker's clock is behind, never ahead
        for reply in mail.replies
    )


def permanent(reply: Reply) -> bool:
    """Whether a reply refuses this mailbox for ever, by the table of D4."""
    found = re.match(r"\s*([245]\.\d+\.\d+)", reply.text)
    enhanced = found[1] if found else ""
    if reply.phase not in _MESSAGE_PHASES or not 500 <= reply.code <= 599:
        return False
    ours = reply.code in (530, 534, 535, 538) or enhanced == "5.1.8"
    full = enhanced.endswith(".2.2") or (reply.code == 552 and not enhanced)
    policy = enhanced.startswith("5.7.") or (reply.code == 554 and not enhanced)
    return not (ours or full or policy)


def _answered(seen: Evidence, answers: dict[str, Counter[tuple[str, int]]], row: Row) -> Iterator[str]:
    """`answers`: what is left of the server's replies to each user's dialogues, as the rows use them up."""
    user_id = user_in(row.event_id)
    if user_id not in answers:
        answers[user_id] = Counter()
        for mail in _dialogues(seen, row):
            answers[user_id].update((reply.phase, reply.code) for reply in mail.replies)
            answers[user_id]["unheard", 0] += _unheard(mail)
    left = answers[user_id]
    for attempt, said in zip(row.attempts, row.verdicts, strict=False):
        if attempt is None:
            what = ("unheard", 0) if said == "unknown" else None
        else:
            what = (attempt.phase, attempt.code) if attempt.phase in _MESSAGE_PHASES else None
        if what is None:
            continue
        left[what] -= 1
        if left[what] < 0:
            yield f"attempt with answer {what[0]} {what[1]}, which the SMTP server has not given"


def _unheard(mail: Transaction) -> bool:
    """Its dot may have been sent, and the reply to it lost."""
    return not mail.told and (
        mail.accepted_at is not None or any((reply.phase, reply.code) == ("data", 354) for reply in mail.replies)
    )


def _dialogues(seen: Evidence, row: Row) -> list[Transaction]:
    return seen.to.get(canonical(seen.emails.get(user_in(row.event_id), "")), [])
