"""Laws about what clients were told: nothing is lost, nobody is told wrong, no ghosts, and erased is erased."""

from collections.abc import Iterator
from itertools import pairwise

from tests.drill.evidence import (
    CLOCKS_S,
    ENDS,
    PENDING,
    Evidence,
    Violation,
    canonical,
    event_in,
    happened,
    user_in,
)
from tests.drill.history import Call, Transaction

_RESENDS_A_DAY = 3
_ANSWERS = {
    "register": (201, 409),
    "erase": (204, 404),
    "resend": (202, 404, 429),
}
_NOT_NOW = (None, 408, 503)
"""No answer, and what a client may be told to any call while something is broken."""
_MAY_STILL_BEGIN_S = 1.0


def lost(seen: Evidence) -> Iterator[Violation]:
    """Every 2xx has a mail or a visible end, unless it was erased since (section 6; D1, D2).

    A 201 has its user's key, a 202 its own. Every key's event is somewhere: pending, sent with a mail that the SMTP
    server took, or dead or expired with its dead letter, which may be gone only when a replay asked for it again.
    An erasure that nobody heard the end of may have come about, so it excuses; but not one that was over before.
    """
    for email, calls in seen.calls.items():
        user_id = seen.ids.get(email)
        keys = seen.keys_of.get(user_id, []) if user_id is not None else []
        promised = [call for call in calls if happened(call) and not seen.maybe_erased_after(email, call.began)]
        for call in promised:
            if call.kind == "register" and not any(key.kind == "u" for key in keys):
                yield Violation(law="lost", what="a 201 without its key", user=user_id, at=call.ended)
            if call.kind == "resend" and call.event_id is not None and call.event_id not in seen.keys:
                yield Violation(law="lost", what="a 202 without its key", event=call.event_id, at=call.ended)
        unnamed = [call for call in promised if call.kind == "resend" and call.event_id is None]
        resends = sum(key.kind == "again" and not key.replays for key in keys)
        if len(unnamed) > resends:
            what = f"{len(unnamed)} times 202, {resends} resends kept"
            yield Violation(law="lost", what=what, user=user_id, at=unnamed[-1].ended)
    replayed = {key.replays for key in seen.keys.values()}
    for event in seen.keys:
        places = seen.places(event)
        if not places & {*ENDS, *PENDING, "erased"}:
            yield Violation(law="lost", what="nowhere: neither pending nor ended", event=event)
        if "sent" in places and event not in seen.mails:
            yield Violation(law="lost", what="sent, but the SMTP server never took it", event=event)
        for state in places & {"dead", "expired"}:
            letters = [row.detail for row in seen.rows[event] if row.place == "dead_letter"]
            if state not in letters and event not in replayed:
                yield Violation(law="lost", what=f"{state} without its dead letter", event=event)


def ghost(seen: Evidence) -> Iterator[Violation]:
    """Whoever gets a mail has asked for it; who was refused for good gets none (section 6; D2, D6).

    An accepted mail names, by its Message-ID, an event that the broker knows (or knows to be erased), of the recipient
    himself. A call that could have succeeded began before it. A user has no more different mails than such calls
    (replays are the operator's, and come on top). A key needs a call of its own kind in the same way.
    """
    replays = min((f.began for f in seen.history.faults if f.kind == "replay"), default=float("inf"))
    of: dict[str, set[str]] = {}
    for mail in seen.taken:
        email, event = canonical(mail.rcpt), event_in(mail.message_id or "")
        asked = [call for call in seen.possible(email, "register", "resend") if call.began < mail.began]
        if not asked:
            yield Violation(law="ghost", what="a mail that nobody asked for", event=event, at=mail.began)
            continue
        if mail.message_id is None:
            continue  # that is another law's
        if not seen.known(event):
            yield Violation(law="ghost", what="a mail of an event that the broker does not know", event=event)
        if user_in(event) != seen.ids.get(email):
            yield Violation(law="ghost", what="a mail of somebody else's event", event=event, at=mail.began)
        if not (seen.keys[event].replays if event in seen.keys else mail.began >= replays):
            events = of.setdefault(email, set())
            events.add(event)
            if len(events) > len(asked):
                yield Violation(law="ghost", what="more mails than were asked for", event=event, at=mail.began)
    for key in seen.history.keys:
        email = seen.emails.get(key.user_id, "")
        kind = "register" if key.kind == "u" else "resend"
        if not key.replays and not seen.possible(email, kind):  # type: ignore[arg-type]
            yield Violation(law="ghost", what="a key that nobody asked for", event=key.event_id)


def truth(seen: Evidence) -> Iterator[Violation]:
    """An answer is true: one address is one user with one id, 409 means taken, 404 means not there (D1, D11).

    Two 201s without an erasure between them are one registration, so they bear one Idempotency-Key. A 409 needs another
    registration that may have been there by then, under another key. Each 201 of an address has the same id, no two
    addresses have the same, and the broker's keys agree. 404 is wrong for who was certainly there, and so is 429 for
    who cannot have had three resends.
    """
    owners: dict[str, str] = {}
    for email, calls in seen.calls.items():
        ids = {call.user_id for call in calls if call.kind == "register" and happened(call)}
        if len(ids) > 1 or None in ids:
            yield Violation(law="truth", what="one address, several ids", user=seen.ids.get(email))
        for user_id in ids - {None}:
            if owners.setdefault(str(user_id), email) != email:
                yield Violation(law="truth", what="one id, several addresses", user=user_id)
        yield from _registered_twice(seen, email, calls)
        for call in calls:
            if call.status == 409 and call.kind == "register" and not _taken(seen, email, call):
                yield Violation(law="truth", what="409, but nobody can have the address", at=call.ended)
            if call.status == 404 and _there(seen, email, call):
                yield Violation(law="truth", what="404, but the user is there", user=call.user_id, at=call.ended)
            before = [each for each in seen.possible(email, "resend") if each.began < call.ended]
            if call.status == 429 and call.kind == "resend" and len(before) < _RESENDS_A_DAY:
                what = f"429, but at most {len(before)} resends"
                yield Violation(law="truth", what=what, user=call.user_id, at=call.ended)
    for key in seen.history.keys:
        if key.email and seen.ids[canonical(key.email)] != key.user_id:
            yield Violation(law="truth", what="a record under another id than was told", event=key.event_id)


def answer(seen: Evidence) -> Iterator[Violation]:
    """A drill's requests are all valid: none is refused but for a reason of `truth`, or for now; and a 500 is a bug."""
    for call in seen.history.calls:
        if call.status not in (*_ANSWERS[call.kind], *_NOT_NOW):
            yield Violation(law="answer", what=f"{call.kind} answered {call.status}", at=call.ended)


def _registered_twice(seen: Evidence, email: str, calls: list[Call]) -> Iterator[Violation]:
    made = [call for call in calls if call.kind == "register" and happened(call)]
    erasures = sorted(seen.possible(email, "erase"), key=seen.latest)
    for first, second in pairwise(made):
        if first.key is not None and first.key == second.key:
            continue
        # Each erasure makes room for one more registration only.
        between = [e for e in erasures if e.began < second.ended and seen.latest(e) > first.began]
        if not between:
            what = "two registrations of one address, and no erasure between them"
            yield Violation(law="truth", what=what, user=second.user_id, at=second.ended)
        else:
            erasures.remove(between[0])


def _taken(seen: Evidence, email: str, refused: Call) -> bool:
    """Whether another's registration may have had the address at some time of a call that was refused with 409."""
    for other in seen.possible(email, "register"):
        mine = refused.key is not None and other.key == refused.key
        if mine or other.began >= refused.ended:
            continue
        gone = [e for e in _gone(seen, email) if e.began > seen.latest(other) and e.ended < refused.began]
        if not gone:
            return True
    return False


def _there(seen: Evidence, email: str, call: Call) -> bool:
    """Whether a user was certainly registered all the time of a call."""
    before = [c for c in seen.calls[email] if c.kind == "register" and happened(c) and c.ended < call.began]
    return any(
        not any(e.began < call.ended and seen.latest(e) > c.began for e in seen.possible(email, "erase"))
        for c in before
    )


def _gone(seen: Evidence, email: str) -> list[Call]:
    """Erasures after which nobody has the address."""
    return [call for call in seen.calls.get(email, ()) if call.kind == "erase" and call.status in (204, 404)]


def erasure(seen: Evidence) -> Iterator[Violation]:
    """Erased means gone from every stream, and no mail more (section 6; D14).

    At rest an erasure is whole or did not happen, whatever its caller was told: an event with the marker `erased` has
    neither key nor any other row, one without a key has no row but the marker. After a 204 no key of before is left.
    A mail of before begins at most 1 s after it (and what the server stood still), or after the 404 that answers when
    the reply to an erasure was lost. A marker needs an erasure.
    An event is of before when its key is known to be, when its mail was begun before, or when nobody can have asked for
    it later; a dialogue that did not come to its Message-ID is judged by the last of these alone.
    """
    for event, rows in seen.rows.items():
        email = seen.emails.get(user_in(event), "")
        asked_for = bool(seen.possible(email, "erase"))
        places = {row.place for row in rows}
        if "erased" in places:
            if not asked_for:
                yield Violation(law="erasure", what="erased, and nobody asked for it", event=event)
            if places != {"erased"}:
                what = f"erased, and still in {', '.join(sorted(places - {'erased'}))}"
                yield Violation(law="erasure", what=what, event=event)
            if event in seen.keys:
                yield Violation(law="erasure", what="erased, and its key is still there", event=event)
        elif event not in seen.keys and asked_for:
            what = f"its key is erased, and it is still in {', '.join(sorted(places))}"
            yield Violation(law="erasure", what=what, event=event)
    for email in seen.calls:
        for erase in seen.possible(email, "erase"):
            if erase.status == 204:
                yield from _left(seen, email, erase)
        yield from _mailed(seen, email)


def _left(seen: Evidence, email: str, erase: Call) -> Iterator[Violation]:
    later = _asked_after(seen, email, erase)
    for key in seen.keys_of.get(seen.ids.get(email, erase.user_id or ""), ()):
        if not later or 0 < key.at < erase.began - CLOCKS_S:
            yield Violation(law="erasure", what="a key of before the 204", event=key.event_id, at=erase.ended)


def _mailed(seen: Evidence, email: str) -> Iterator[Violation]:
    allowed_s = _MAY_STILL_BEGIN_S + seen.late_s
    for mail in seen.to.get(email, ()):
        over = (e for e in _gone(seen, email) if mail.began > e.ended + allowed_s and _of_before(seen, email, e, mail))
        erase = next(over, None)
        if erase is not None:
            event = event_in(mail.message_id) if mail.message_id else None
            what = f"a mail begun {mail.began - erase.ended:.1f} s after the {erase.status}"
            yield Violation(law="erasure", what=what, event=event, user=seen.ids.get(email), at=mail.began)


def _of_before(seen: Evidence, email: str, erase: Call, mail: Transaction) -> bool:
    if not any(call.began < mail.began for call in _asked_after(seen, email, erase)):
        return True
    if mail.message_id is None:
        return False
    event = event_in(mail.message_id)
    return seen.asked_by(event) < erase.began - CLOCKS_S or any(
        other.began < erase.began for other in seen.mails.get(event, ())
    )


def _asked_after(seen: Evidence, email: str, erase: Call) -> list[Call]:
    return [call for call in seen.possible(email, "register", "resend") if seen.latest(call) > erase.began]
