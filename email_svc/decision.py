"""What an SMTP dialogue came to, and what follows from it. Pure: data in, data out.

    SmtpResult --classify--> Verdict --decide--> Decision (an outcome, or a delay until the next try)

Not attempted is not failed, and the path's fault is not the message's fault: only a verdict on the message itself
spends its budget.
Source: RFC 5321 §4.2, RFC 3463 (enhanced codes); the table is in README, "Verdicts".
"""

import enum
import re
from datetime import datetime, timedelta

import msgspec

from contracts.messages import Attempt, History, State
from email_svc.policies.backoff import backoff_s, jittered


class Phase(enum.StrEnum):
    """Where in the dialogue the answer (or its absence) came."""

    CONNECT = "connect"
    """DNS, TCP, TLS by `smtps`: no connection came about."""
    GREETING = "greeting"
    EHLO = "ehlo"
    STARTTLS = "starttls"
    AUTH = "auth"
    MAIL = "mail"
    RCPT = "rcpt"
    DATA = "data"
    """The answer to DATA itself; the final dot was not sent."""
    DOT = "dot"
    """After the final dot: from here on silence means that the outcome is unknown."""


class Fault(enum.StrEnum):
    """Why there is no reply."""

    DNS = "dns"
    REFUSED = "refused"
    TIMEOUT = "timeout"
    TLS = "tls"
    DISCONNECTED = "disconnected"
    STARTTLS_NOT_OFFERED = "starttls_not_offered"
    GARBLED = "garbled"
    """The server answered something that is no SMTP reply."""
    CANCELLED = "cancelled"
    """Our own process gave up: shutdown."""
    SIMULATED_DOWNTIME = "simulated_downtime"
    LEASE_LOST = "lease_lost"
    """The message may be another worker's by now; nothing was sent."""


class SmtpResult(msgspec.Struct, frozen=True, kw_only=True):
    """How one dialogue ended: a complete reply (`code`), or none (`fault`). Accepted means phase DOT and code 2xx."""

    phase: Phase
    code: int | None = None
    text: str = ""
    """The reply as it came, without the code, lines joined by a newline. Not redacted."""
    fault: Fault | None = None


class Verdict(enum.StrEnum):
    """What one attempt says, and about whom."""

    SENT = "sent"
    PATH = "path"
    """The way to the mailbox is broken or busy: no mail would get through."""
    CONFIGURATION = "configuration"
    """We are refused for what we are: credentials, TLS, our sender. Trying harder makes it worse."""
    TRANSIENT = "transient"
    """This mailbox, not now: greylisting, mailbox full."""
    PERMANENT = "permanent"
    """This mailbox, never."""
    POLICY = "policy"
    """Refused by a rule of theirs, which may be aimed at this mail or at all of ours."""
    UNUSABLE = "unusable"
    """No mail can be made of the event."""
    UNKNOWN = "unknown"
    """The final dot went out and no answer came back: perhaps delivered."""
    THROTTLED = "throttled"
    """Too fast for the server."""
    ROTATE = "rotate"
    """Enough mails on this connection; on a new one it goes on."""
    ABANDONED = "abandoned"
    """We stopped before the dot: no attempt at all."""


CHARGED = frozenset({Verdict.TRANSIENT, Verdict.POLICY, Verdict.UNKNOWN})
"""Verdicts that spend the message's budget."""

_PATH_FAILED = frozenset({Verdict.PATH, Verdict.CONFIGURATION, Verdict.UNKNOWN})
_PATH_WORKS = frozenset({Verdict.SENT, Verdict.TRANSIENT, Verdict.PERMANENT, Verdict.POLICY})


def path_works(verdict: Verdict, *, surge: bool) -> bool | None:
    """What an attempt says to the breaker: the path works (whatever became of the mail), it failed, or nothing (None).

    `surge`: policy refusals are aimed at all of our mails just now.
    """
    if verdict in _PATH_FAILED or (surge and verdict is Verdict.POLICY):
        return False
    return True if verdict in _PATH_WORKS else None


_ENHANCED = re.compile(r"([245])\.(\d{1,3})\.(\d{1,3})(?!\d)")
# Begins where a word does: tried from each of its letters, a word of 32 kB would take seconds.
_ADDRESS = re.compile(r"(?<![^\s<>\"'=,:;()\[\]@])[^\s<>\"'=,:;()\[\]@]+@[^\s<>\"',;()\[\]]+")
_THROTTLING = re.compile(r"throttl|rate (limit )?exceeded|sending rate|too fast|quota", re.IGNORECASE)
_ROTATION = re.compile(
    r"(too many|max(imum)?|limit)\b.{0,40}\b(message|mail|email|transaction)s?\b.{0,40}\b(session|connection)\b",
    re.IGNORECASE | re.DOTALL,
)


def enhanced_code(text: str) -> str | None:
    """The enhanced status code that a reply begins with, e.g. `4.7.1`."""
    match = _ENHANCED.match(text.lstrip())
    return match[0] if match else None


def classify(result: SmtpResult) -> Verdict:
    """The verdict on one dialogue. Phase first: the same code means different things in different places."""
    phase = result.phase
    if result.code is None:
        return _without_reply(phase, result.fault)
    code, text = result.code, result.text
    enhanced = enhanced_code(text) or ""
    if phase is Phase.DOT and 200 <= code < 300:
        return Verdict.SENT
    if code < 400 or code > 599:  # an answer to another question
        return Verdict.UNKNOWN if phase is Phase.DOT else Verdict.PATH
    if code == 421:
        mailing = phase in (Phase.MAIL, Phase.RCPT, Phase.DATA, Phase.DOT)
        return Verdict.ROTATE if mailing and _ROTATION.search(text) else Verdict.PATH
    if phase in (Phase.CONNECT, Phase.GREETING, Phase.EHLO):
        return Verdict.PATH
    if phase in (Phase.STARTTLS, Phase.AUTH):
        return Verdict.PATH if code < 500 else Verdict.CONFIGURATION
    if code == 454 and _THROTTLING.search(text):
        return Verdict.THROTTLED
    if phase is Phase.MAIL:
        if code == 452:
            return Verdict.THROTTLED
        return Verdict.PATH if code < 500 else Verdict.CONFIGURATION
    return _about_the_message(code, enhanced)


def _without_reply(phase: Phase, fault: Fault | None) -> Verdict:
    if phase is Phase.DOT:
        return Verdict.UNKNOWN
    if fault in (Fault.CANCELLED, Fault.LEASE_LOST):
        return Verdict.ABANDONED
    return Verdict.CONFIGURATION if fault is Fault.STARTTLS_NOT_OFFERED else Verdict.PATH


def _about_the_message(code: int, enhanced: str) -> Verdict:
    """4xx and 5xx after RCPT, DATA or the dot."""
    if code < 500:
        return Verdict.PATH if enhanced.startswith("4.3.") else Verdict.TRANSIENT
    if code in (530, 534, 535, 538) or enhanced == "5.1.8":  # we are not authenticated; our sender is refused
        return Verdict.CONFIGURATION
    if enhanced.endswith(".2.2") or (code == 552 and not enhanced):  # mailbox full, whatever the code says
        return Verdict.TRANSIENT
    if enhanced.startswith("5.7.") or (code == 554 and not enhanced):
        return Verdict.POLICY
    return Verdict.PERMANENT


class Rules(msgspec.Struct, frozen=True, kw_only=True):
    """Budgets and delays. `retries`: charged attempts after the first; `delays_s`: before each, the last repeats."""

    retries: int = 3
    delays_s: tuple[float, ...] = (60.0, 600.0, 3600.0)

    def __post_init__(self) -> None:
        if self.retries < 0:
            raise ValueError(f"retries={self.retries}: expected 0 or more")
        if not self.delays_s or min(self.delays_s) <= 0:
            raise ValueError(f"delays_s={self.delays_s}: expected at least one delay above 0")


class Decision(msgspec.Struct, frozen=True, kw_only=True):
    """What follows from an attempt: `state` ends the mail; otherwise it is tried again after `delay_s`."""

    history: History
    """With this attempt, if it was one."""
    state: State | None = None
    reason: str = ""
    delay_s: float = 0.0


def decide(
    attempt: Attempt,
    history: History,
    *,
    expires_at: datetime,
    others_pass: bool,
    rules: Rules,
    draw: float,
    surge: bool = False,
    path_rest_s: float = 0.0,
) -> Decision:
    """What follows from one attempt.

    Args:
        attempt: its verdict is a `Verdict`; its time is now.
        history: the attempts before it.
        others_pass: this worker has sent another mail since this one's last attempt, so a path failure is the mail's.
        draw: uniform in [0, 1), the jitter.
        surge: policy refusals are the path's fault, not the mail's.
        path_rest_s: a mail that failed as a probe rests at least so long, or it would be every probe.
    """
    verdict = Verdict(attempt.verdict)
    if verdict in (Verdict.ROTATE, Verdict.ABANDONED):
        return Decision(history=history)
    if verdict is Verdict.THROTTLED:
        return _again(attempt, history, expires_at, 1.0 + draw)
    if surge and verdict is Verdict.POLICY:
        charged = False
    else:
        charged = verdict in CHARGED or (verdict in (Verdict.PATH, Verdict.CONFIGURATION) and others_pass)
    after = history.add(attempt, charged=charged)
    if verdict is Verdict.SENT:
        return Decision(history=after, state=State.SENT)
    if verdict in (Verdict.PERMANENT, Verdict.UNUSABLE):
        return Decision(history=after, state=State.DEAD, reason=str(verdict))
    if not charged:
        delay_s = path_rest_s * (1 + draw / 10) + backoff_s(after.total - after.charged, draw)
        return _again(attempt, after, expires_at, delay_s)
    if after.charged > rules.retries:
        return Decision(history=after, state=State.DEAD, reason=f"{verdict}: budget of {rules.retries} retries spent")
    scheduled_s = rules.delays_s[min(after.charged, len(rules.delays_s)) - 1]
    return _again(attempt, after, expires_at, jittered(scheduled_s, draw))


def _again(attempt: Attempt, history: History, expires_at: datetime, delay_s: float) -> Decision:
    """Never later than the deadline, which ends the mail in its own way."""
    left_s = (expires_at - attempt.at) / timedelta(seconds=1)
    return Decision(history=history, delay_s=max(0.001, min(delay_s, left_s)))


def redacted(text: str, recipient: str) -> str:
    """A server's words without the recipient's local part or any address, at most 200 characters on one line."""
    local = recipient.rpartition("@")[0]
    if text.isascii() and local.isascii() and local.lower() not in text.lower():
        return _shortened(text)  # the usual case; compiling two patterns for each mail was a third of all that it cost
    text = re.sub(re.escape(recipient), "<recipient>", text, flags=re.IGNORECASE)
    # A dot before or after it may belong to a longer address, or end a sentence.
    text = re.sub(rf"(?<!\w)(?<!\w\.){re.escape(local)}(?!\.?\w)", "<local>", text, flags=re.IGNORECASE)
    return _shortened(text)


def _shortened(text: str) -> str:
    return " ".join(_ADDRESS.sub("<address>", text).split())[:200]
