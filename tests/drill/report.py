"""What a drill says: live, and at the end."""

import sys
import time
from bisect import bisect_left
from collections import Counter
from collections.abc import Iterable
from typing import Any

from tests.drill.history import Fault, History

_EVERY_S = 5.0


class Progress:
    """One line that is written over on a terminal; elsewhere a plain line every few seconds."""

    def __init__(self) -> None:
        self._tty = sys.stdout.isatty()
        self._last = 0.0

    def show(self, text: str) -> None:
        """What is now."""
        if self._tty:
            print(f"\r\033[K{text[:150]}", end="", flush=True)
        elif time.monotonic() - self._last >= _EVERY_S:
            self._last = time.monotonic()
            print(text, flush=True)

    def done(self) -> None:
        """The line stays no longer."""
        if self._tty:
            print("\r\033[K", end="", flush=True)


def recoveries(history: History) -> list[tuple[float, str]]:
    """Of each time that something was broken: how long from its end until a mail was accepted again and a registration
    was answered with a 201 again, whichever took longer, and what had been mended last.

    Faults that overlap are one time, from the first's beginning to the last's end. What did not happen any more, for
    all clients had theirs or all mails were out, is not waited for.
    """
    mails = sorted(t.accepted_at for t in history.transactions if t.accepted_at is not None)
    created = sorted(call.ended for call in history.calls if call.kind == "register" and call.status == 201)
    found = []
    for fault in _last_of_each_time(history.faults):
        after = [times[place] for times in (mails, created) if (place := bisect_left(times, fault.ended)) < len(times)]
        found.append((max(after, default=fault.ended) - fault.ended, f"{fault.kind} {fault.target}"))
    return found


def _last_of_each_time(faults: Iterable[Fault]) -> list[Fault]:
    """Of each unbroken time in which something was broken the fault that ended last."""
    last: list[Fault] = []
    for fault in sorted(faults, key=lambda fault: fault.began):
        if last and fault.began <= last[-1].ended:
            last[-1] = max(last[-1], fault, key=lambda fault: fault.ended)
        else:
            last.append(fault)
    return last


def nothing_shown(history: History, *, sabotaged: bool = False) -> list[str]:
    """Why a drill without violations would prove nothing: nobody was told 201, no mail was taken, nothing was broken.

    sabotaged: its defects stand for the faults.
    """
    seen = {
        "nobody was told 201": any(call.kind == "register" and call.status == 201 for call in history.calls),
        "the SMTP server took no mail": any(mail.accepted_at is not None for mail in history.transactions),
        "nothing was broken": sabotaged or bool(history.faults),
    }
    return [what for what, shown in seen.items() if not shown]


def summary(
    history: History, violations: list[tuple[str, str]], excused: dict[str, int], *, seconds: float
) -> dict[str, Any]:
    """The figures of a drill. `violations`: law and text; `excused`: the allowed copies of mails, by excuse."""
    registered = [call for call in history.calls if call.kind == "register"]
    created = {call.email for call in registered if call.status == 201}
    answered = {call.email for call in registered if call.status not in (None, 503)}
    accepted = [t for t in history.transactions if t.accepted_at is not None]
    places = Counter(row.place for row in history.rows)
    laws = Counter(law for law, _ in violations)
    longest, after = max(recoveries(history), default=(0.0, "-"))
    return {
        "registrations": {
            "created": len(created),
            "unknown": len({call.email for call in registered} - answered),
            "refused": sum(call.status == 409 for call in registered),
            "calls": len(history.calls),
            "erased": len({call.email for call in history.calls if call.kind == "erase" and call.status == 204}),
        },
        "mails": {
            "accepted": len(accepted),
            "copies": len(accepted) - len({t.message_id for t in accepted}),
            "excused": excused,
            "sent": places["sent"],
            "dead": places["dead"],
            "expired": places["expired"],
            "pending": places["outbox"] + places["queue"],
        },
        "faults": dict(sorted(Counter(fault.kind for fault in history.faults).items())),
        "breaker_opened": len({change.epoch for change in history.changes if change.state == "open"}),
        "lost": laws["lost"],
        "violations": [{"law": law, "text": text} for law, text in violations],
        "longest_recovery_s": round(longest, 1),
        "longest_recovery_after": after,
        "stood_still_s": round(history.stood_still_s, 2),
        "seconds": round(seconds, 1),
    }


def table(found: dict[str, Any]) -> str:
    """The summary for people."""
    people, mails = found["registrations"], found["mails"]
    faults = ", ".join(f"{kind} {n}" for kind, n in found["faults"].items()) or "none"
    laws = Counter(violation["law"] for violation in found["violations"])
    excused = ", ".join(f"{excuse} {n}" for excuse, n in mails["excused"].items())
    lines = {
        "registrations": f"{people['created']} told 201, {people['unknown']} never told, {people['refused']} told 409; "
        f"{people['erased']} erased",
        "mails": f"{mails['accepted']} accepted by the SMTP server, {mails['dead']} dead letters, "
        f"{mails['expired']} expired",
        "faults": f"{sum(found['faults'].values())}: {faults}",
        "breaker": f"opened {found['breaker_opened']} times",
        "lost": str(found["lost"]),
        "duplicates": f"{mails['copies']}, each with one Message-ID: {excused}" if mails["copies"] else "0",
        "pending": str(mails["pending"]),
        "recovery": f"{found['longest_recovery_s']} s at most, after {found['longest_recovery_after']}",
        "time": f"{found['seconds']} s; the drill itself stood still for {found['stood_still_s']} s at most",
        "violations": ", ".join(f"{law} {n}" for law, n in laws.items()) or "none",
    }
    return "\n".join(f"{name:>14}  {text}" for name, text in lines.items())
