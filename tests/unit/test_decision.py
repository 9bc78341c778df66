"""The tables of email_svc.decision: what a reply means, and what follows from it."""

import time
from datetime import UTC, datetime, timedelta

import pytest

from contracts.messages import Attempt, History, State
from email_svc.decision import (
    CHARGED,
    Decision,
    Fault,
    Phase,
    Rules,
    SmtpResult,
    Verdict,
    classify,
    decide,
    enhanced_code,
    path_works,
    redacted,
)

NOW = datetime(2026, 1, 1, tzinfo=UTC)
LATER = NOW + timedelta(days=1)

REPLIES = [
    # design D4 and facts/reliability.md §3
    (Phase.DOT, 250, "2.0.0 queued", Verdict.SENT),
    (Phase.DOT, 250, "", Verdict.SENT),
    (Phase.GREETING, 421, "4.3.2 shutting down", Verdict.PATH),
    (Phase.GREETING, 554, "no SMTP service here", Verdict.PATH),
    (Phase.EHLO, 451, "", Verdict.PATH),
    (Phase.EHLO, 550, "", Verdict.PATH),
    (Phase.STARTTLS, 454, "4.7.0 TLS not available", Verdict.PATH),
    (Phase.STARTTLS, 501, "", Verdict.CONFIGURATION),
    (Phase.AUTH, 454, "4.7.0 temporary authentication failure", Verdict.PATH),
    (Phase.AUTH, 535, "5.7.8 bad credentials", Verdict.CONFIGURATION),
    (Phase.AUTH, 534, "5.7.9", Verdict.CONFIGURATION),
    (Phase.AUTH, 538, "5.7.11", Verdict.CONFIGURATION),
    (Phase.MAIL, 530, "5.7.0 authentication required", Verdict.CONFIGURATION),
    (Phase.RCPT, 530, "5.7.0 authentication required", Verdict.CONFIGURATION),
    (Phase.MAIL, 451, "4.3.0 try later", Verdict.PATH),
    (Phase.MAIL, 452, "4.3.1 insufficient storage", Verdict.THROTTLED),
    (Phase.MAIL, 553, "5.1.8 sender refused", Verdict.CONFIGURATION),
    (Phase.MAIL, 550, "5.7.1 not for you", Verdict.CONFIGURATION),
    (Phase.RCPT, 550, "5.1.8 sender refused", Verdict.CONFIGURATION),
    (Phase.MAIL, 421, "Too many messages in this session", Verdict.ROTATE),
    (Phase.MAIL, 421, "4.4.5 maximum message count per session reached", Verdict.ROTATE),
    (Phase.MAIL, 421, "4.3.2 shutting down", Verdict.PATH),
    (Phase.RCPT, 421, "4.3.2 shutting down", Verdict.PATH),
    (Phase.DOT, 421, "4.3.2 shutting down", Verdict.PATH),
    (Phase.MAIL, 454, "Throttling failure: Maximum sending rate exceeded.", Verdict.THROTTLED),
    (Phase.RCPT, 454, "Throttling failure: Daily message quota exceeded.", Verdict.THROTTLED),
    (Phase.DOT, 454, "4.7.0 Throttling", Verdict.THROTTLED),
    (Phase.RCPT, 450, "4.2.1 mailbox busy", Verdict.TRANSIENT),
    (Phase.RCPT, 451, "4.7.1 greylisted", Verdict.TRANSIENT),
    (Phase.RCPT, 452, "4.2.2 mailbox full", Verdict.TRANSIENT),
    (Phase.RCPT, 451, "4.3.0 local error", Verdict.PATH),
    (Phase.RCPT, 552, "5.2.2 mailbox full", Verdict.TRANSIENT),
    (Phase.RCPT, 550, "5.2.2 over quota", Verdict.TRANSIENT),
    (Phase.RCPT, 552, "mailbox full", Verdict.TRANSIENT),
    (Phase.DATA, 552, "5.2.2 mailbox full", Verdict.TRANSIENT),
    (Phase.RCPT, 550, "5.1.1 user unknown", Verdict.PERMANENT),
    (Phase.RCPT, 550, "no such user", Verdict.PERMANENT),
    (Phase.RCPT, 551, "5.1.6 moved", Verdict.PERMANENT),
    (Phase.RCPT, 553, "5.1.3 bad address", Verdict.PERMANENT),
    (Phase.RCPT, 550, "5.1.10 null MX", Verdict.PERMANENT),
    (Phase.RCPT, 550, "5.2.1 disabled", Verdict.PERMANENT),
    (Phase.RCPT, 501, "5.1.3 syntax", Verdict.PERMANENT),
    (Phase.RCPT, 504, "", Verdict.PERMANENT),
    (Phase.DOT, 552, "5.3.4 too big", Verdict.PERMANENT),
    (Phase.DOT, 550, "5.6.7 no SMTPUTF8", Verdict.PERMANENT),
    (Phase.RCPT, 550, "5.7.1 blocked", Verdict.POLICY),
    (Phase.DATA, 554, "5.7.1 spam", Verdict.POLICY),
    (Phase.DOT, 554, "rejected", Verdict.POLICY),
    (Phase.DOT, 451, "4.7.0 try again", Verdict.TRANSIENT),
    (Phase.DOT, 451, "4.3.0 queue file write error", Verdict.PATH),
    (Phase.DOT, 354, "again?", Verdict.UNKNOWN),
    (Phase.DOT, 700, "", Verdict.UNKNOWN),
    (Phase.RCPT, 354, "", Verdict.PATH),
    # the bounds of 4xx and 5xx, in each place that tells them apart
    (Phase.RCPT, 399, "", Verdict.PATH),
    (Phase.RCPT, 400, "", Verdict.TRANSIENT),
    (Phase.RCPT, 499, "", Verdict.TRANSIENT),
    (Phase.RCPT, 500, "", Verdict.PERMANENT),
    (Phase.RCPT, 599, "", Verdict.PERMANENT),
    (Phase.RCPT, 600, "", Verdict.PATH),
    (Phase.AUTH, 499, "", Verdict.PATH),
    (Phase.AUTH, 500, "", Verdict.CONFIGURATION),
    (Phase.MAIL, 499, "", Verdict.PATH),
    (Phase.MAIL, 500, "", Verdict.CONFIGURATION),
    # not authenticated, wherever a server comes to say so
    (Phase.RCPT, 534, "", Verdict.CONFIGURATION),
    (Phase.RCPT, 535, "", Verdict.CONFIGURATION),
    (Phase.RCPT, 538, "", Verdict.CONFIGURATION),
]


@pytest.mark.parametrize(("phase", "code", "text", "verdict"), REPLIES)
def test_reply_means(phase: Phase, code: int, text: str, verdict: Verdict) -> None:
    """Phase first: the same code means different things in different places."""
    assert classify(SmtpResult(phase=phase, code=code, text=text)) is verdict


@pytest.mark.parametrize(
    ("text", "throttled"),
    [
        ("4.7.0 Throttled", True),
        ("rate exceeded", True),
        ("Rate limit exceeded", True),
        ("above your sending rate", True),
        ("you are too fast", True),
        ("daily quota reached", True),
        ("4.7.0 temporarily rejected", False),
    ],
)
def test_454_is_throttling_where_it_says_so(text: str, throttled: bool) -> None:
    """In any of the words that servers have for it; else it is what any 4xx in that place is."""
    found = [classify(SmtpResult(phase=phase, code=454, text=text)) for phase in (Phase.MAIL, Phase.RCPT, Phase.DOT)]
    assert found == ([Verdict.THROTTLED] * 3 if throttled else [Verdict.PATH, Verdict.TRANSIENT, Verdict.TRANSIENT])


@pytest.mark.parametrize(
    ("text", "rotates"),
    [
        ("Too many messages in this session", True),
        ("Too many mails on this connection", True),
        ("max of 100 emails per session", True),
        ("Maximum number of transactions per connection reached", True),
        ("limit of 100 messages\nper session reached", True),
        ("Too many connections", False),
        ("Too many messages", False),
        ("your session has had mail enough", False),
        ("unlimited messages are no session", False),
    ],
)
def test_421_asks_for_a_new_connection_where_it_says_so(text: str, rotates: bool) -> None:
    """While mailing; else the server goes away."""
    for phase in Phase:
        mailing = phase in (Phase.MAIL, Phase.RCPT, Phase.DATA, Phase.DOT)
        verdict = classify(SmtpResult(phase=phase, code=421, text=text))
        assert verdict is (Verdict.ROTATE if mailing and rotates else Verdict.PATH)


@pytest.mark.parametrize("phase", Phase)
@pytest.mark.parametrize("fault", Fault)
def test_silence_means(phase: Phase, fault: Fault) -> None:
    """After the dot the outcome is unknown, whatever broke; before it, it is the path, our settings, or nobody."""
    verdict = classify(SmtpResult(phase=phase, fault=fault))
    if phase is Phase.DOT:
        assert verdict is Verdict.UNKNOWN
    elif fault in (Fault.CANCELLED, Fault.LEASE_LOST):
        assert verdict is Verdict.ABANDONED
    elif fault is Fault.STARTTLS_NOT_OFFERED:
        assert verdict is Verdict.CONFIGURATION
    else:
        assert verdict is Verdict.PATH


def test_every_phase_and_code_has_one_verdict() -> None:
    """Sent only by a 2xx to the dot; a mail ends only by a 5xx about itself; unknown only after the dot."""
    texts = ["", "4.7.1 x", "5.1.1 x", "4.3.0 x", "too many messages in this session", "throttling"]
    for phase in Phase:
        for code in range(200, 600):
            for text in texts:
                verdict = classify(SmtpResult(phase=phase, code=code, text=text))
                assert isinstance(verdict, Verdict)
                assert (verdict is Verdict.SENT) == (phase is Phase.DOT and code < 300)
                if verdict is Verdict.PERMANENT:
                    assert code >= 500
                    assert phase in (Phase.RCPT, Phase.DATA, Phase.DOT)
                if verdict is Verdict.UNKNOWN:
                    assert phase is Phase.DOT
                    assert 300 <= code < 400
                if verdict in CHARGED:
                    assert phase in (Phase.RCPT, Phase.DATA, Phase.DOT)
                assert verdict not in (Verdict.UNUSABLE, Verdict.ABANDONED)


def test_enhanced_code_is_what_the_reply_begins_with() -> None:
    """Elsewhere in the words it is somebody's prose."""
    assert enhanced_code("5.1.1 unknown") == "5.1.1"
    assert enhanced_code(" 5.1.10 null MX") == "5.1.10"
    assert enhanced_code("see 5.1.1") is None
    assert enhanced_code("5.1.1234 x") is None
    assert enhanced_code("") is None


@pytest.mark.parametrize(
    ("verdict", "works", "in_a_surge"),
    [
        (Verdict.SENT, True, True),
        (Verdict.TRANSIENT, True, True),
        (Verdict.PERMANENT, True, True),
        (Verdict.POLICY, True, False),
        (Verdict.PATH, False, False),
        (Verdict.CONFIGURATION, False, False),
        (Verdict.UNKNOWN, False, False),
        (Verdict.UNUSABLE, None, None),
        (Verdict.THROTTLED, None, None),
        (Verdict.ROTATE, None, None),
        (Verdict.ABANDONED, None, None),
    ],
)
def test_what_the_breaker_hears(verdict: Verdict, works: bool | None, in_a_surge: bool | None) -> None:
    """The column of README, "Verdicts"."""
    assert path_works(verdict, surge=False) is works
    assert path_works(verdict, surge=True) is in_a_surge


# --- what follows --------------------------------------------------------------------------------------------------

RULES = Rules(retries=3, delays_s=(60.0, 600.0, 3600.0))


def attempted(verdict: Verdict) -> Attempt:
    return Attempt(at=NOW, verdict=verdict, phase="rcpt")


def follows(
    verdict: Verdict,
    history: History | None = None,
    *,
    others_pass: bool = False,
    rules: Rules = RULES,
    draw: float = 0.5,
    expires_at: datetime = LATER,
    surge: bool = False,
    path_rest_s: float = 0.0,
) -> Decision:
    return decide(
        attempted(verdict),
        history or History(),
        expires_at=expires_at,
        others_pass=others_pass,
        rules=rules,
        draw=draw,
        surge=surge,
        path_rest_s=path_rest_s,
    )


@pytest.mark.parametrize("verdict", [Verdict.TRANSIENT, Verdict.POLICY, Verdict.UNKNOWN])
def test_budget_is_one_try_and_so_many_retries(verdict: Verdict) -> None:
    """Three retries: after the first four charged attempts it is dead; the delays are the scheduled ones, in order."""
    history, delays = History(), []
    while (decision := follows(verdict, history)).state is None:
        history = decision.history
        delays.append(decision.delay_s)
    assert delays == pytest.approx([60.0, 600.0, 3600.0])
    assert decision.state is State.DEAD
    assert decision.history.total == decision.history.charged == 4
    assert decision.reason == f"{verdict}: budget of 3 retries spent"


def test_no_retries_is_one_try() -> None:
    assert follows(Verdict.TRANSIENT, rules=Rules(retries=0)).state is State.DEAD


def test_last_delay_repeats() -> None:
    """More retries than delays."""
    rules, history, delays = Rules(retries=5, delays_s=(1.0, 2.0)), History(), []
    while (decision := follows(Verdict.TRANSIENT, history, rules=rules)).state is None:
        history = decision.history
        delays.append(decision.delay_s)
    assert delays == pytest.approx([1.0, 2.0, 2.0, 2.0, 2.0])


@pytest.mark.parametrize("verdict", [Verdict.PATH, Verdict.CONFIGURATION])
def test_path_failures_are_not_charged(verdict: Verdict) -> None:
    """A thousand of them spend nothing; the delay stays within 30 s."""
    history = History()
    for _ in range(1000):
        decision = follows(verdict, history, draw=0.999)
        assert decision.state is None
        assert 0 < decision.delay_s <= 30
        history = decision.history
    assert (history.total, history.charged) == (1000, 0)


@pytest.mark.parametrize("verdict", [Verdict.PATH, Verdict.CONFIGURATION])
def test_path_failures_are_charged_while_the_others_pass(verdict: Verdict) -> None:
    """Others get through: then it is this mail, and it must not pass for a sick path for ever."""
    history = History()
    for _ in range(3):
        decision = follows(verdict, history, others_pass=True)
        assert decision.state is None
        history = decision.history
    assert follows(verdict, history, others_pass=True).state is State.DEAD
    assert follows(verdict, history, others_pass=False).state is None


@pytest.mark.parametrize("verdict", [Verdict.PATH, Verdict.CONFIGURATION])
@pytest.mark.parametrize(("failures", "most_s"), [(1, 0.1), (2, 0.2), (5, 1.6), (9, 25.6), (10, 30.0)])
def test_path_failures_back_off(verdict: Verdict, failures: int, most_s: float) -> None:
    """Doubled each time, counted without the charged attempts; after a probe the rest comes first, a tenth longer."""
    history = History(total=failures + 1, charged=2)
    assert follows(verdict, history, draw=0.5).delay_s == pytest.approx(0.5 * most_s)
    rested = follows(verdict, history, draw=0.5, path_rest_s=60.0)
    assert rested.delay_s == pytest.approx(63.0 + 0.5 * most_s)
    assert rested.state is None


def test_unless_told_there_is_no_surge_and_no_rest() -> None:
    """The defaults."""
    for verdict, delay_s in ((Verdict.POLICY, 60.0), (Verdict.PATH, 0.05)):
        decision = decide(attempted(verdict), History(), expires_at=LATER, others_pass=False, rules=RULES, draw=0.5)
        assert decision.delay_s == pytest.approx(delay_s)


def test_a_surge_of_refusals_is_the_paths_fault() -> None:
    """Refused by policy like all the others: nothing is charged, and the delay is the path's. Other verdicts count."""
    decision = follows(Verdict.POLICY, surge=True, others_pass=True)
    assert (decision.state, decision.history.total, decision.history.charged) == (None, 1, 0)
    assert decision.delay_s == pytest.approx(0.05)
    assert follows(Verdict.POLICY, History(total=3, charged=3), surge=True).state is None
    for verdict in (Verdict.TRANSIENT, Verdict.UNKNOWN):
        assert follows(verdict, surge=True).history.charged == 1
    assert follows(Verdict.PATH, surge=True, others_pass=True).history.charged == 1


@pytest.mark.parametrize(
    ("verdict", "state", "reason"),
    [
        (Verdict.SENT, State.SENT, ""),
        (Verdict.PERMANENT, State.DEAD, "permanent"),
        (Verdict.UNUSABLE, State.DEAD, "unusable"),
    ],
)
def test_verdict_that_ends_the_mail(verdict: Verdict, state: State, reason: str) -> None:
    """At the first try as at any later one, and uncharged; the history has the attempt."""
    history = History(total=1, charged=0, first=(attempted(verdict),))
    assert follows(verdict) == Decision(history=history, state=state, reason=reason)


@pytest.mark.parametrize("verdict", [Verdict.ABANDONED, Verdict.ROTATE, Verdict.THROTTLED])
def test_what_was_no_attempt_is_not_recorded(verdict: Verdict) -> None:
    """The history stays the one it was."""
    history = History().add(Attempt(at=NOW, verdict="path", phase="mail"), charged=False)
    decision = follows(verdict, history, others_pass=True)
    assert decision.state is None
    assert decision.history is history
    assert decision.delay_s == (1.5 if verdict is Verdict.THROTTLED else 0.0)


@pytest.mark.parametrize("verdict", [v for v in Verdict if v not in (Verdict.ABANDONED, Verdict.ROTATE)])
@pytest.mark.parametrize("left_s", [-10.0, 0.0, 0.0001, 0.5, 30.0])
def test_deadline_clips_every_delay(verdict: Verdict, left_s: float) -> None:
    """It comes back at the deadline at the latest, to be ended there, and is never given back without any delay."""
    decision = follows(verdict, draw=0.99, expires_at=NOW + timedelta(seconds=left_s))
    if decision.state is None:
        assert 0.001 <= decision.delay_s <= max(0.001, left_s)


def test_a_retry_that_would_be_late_comes_at_the_deadline() -> None:
    """Not earlier either."""
    assert follows(Verdict.TRANSIENT, expires_at=NOW + timedelta(seconds=30)).delay_s == 30.0
    assert follows(Verdict.THROTTLED, expires_at=NOW + timedelta(seconds=1)).delay_s == 1.0


@pytest.mark.parametrize("draw", [0.0, 0.5, 0.999999])
def test_scheduled_delay_is_spread_by_a_tenth(draw: float) -> None:
    assert 54.0 <= follows(Verdict.TRANSIENT, draw=draw).delay_s <= 66.0


def test_history_keeps_the_ends() -> None:
    """The first 3 and the last 17 attempts, and exact totals."""
    history = History()
    for n in range(100):
        history = history.add(Attempt(at=NOW, verdict="path", phase="mail", code=n), charged=n % 2 == 0)
    assert [a.code for a in history.attempts] == [0, 1, 2, *range(83, 100)]
    assert (history.total, history.charged) == (100, 50)


@pytest.mark.parametrize(
    ("value", "words"),
    [
        ({"retries": -1}, "retries=-1"),
        ({"delays_s": ()}, "delays_s"),
        ({"delays_s": (1.0, 0.0)}, "delays_s"),
        ({"delays_s": (-1.0,)}, "delays_s"),
    ],
)
def test_nonsense_rules_are_refused(value: dict[str, object], words: str) -> None:
    """By a ValueError with the value and the bound."""
    with pytest.raises(ValueError, match=words):
        Rules(**value)  # type: ignore[arg-type]


def test_the_defaults_are_those_of_the_readme() -> None:
    """`QUEUE_MAX_RETRIES`, `MESSAGE_RETRY_DELAYS`."""
    assert Rules() == Rules(retries=3, delays_s=(60.0, 600.0, 3600.0))


# --- the server's words --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "kept"),
    [
        ("5.1.1 <ann.lee@example.com>: unknown", "5.1.1 <<recipient>>: unknown"),
        ("5.1.1 <ANN.Lee@EXAMPLE.com>: unknown", "5.1.1 <<recipient>>: unknown"),
        ("no mailbox ann.lee here", "no mailbox <local> here"),
        ("no mailbox ANN.Lee here", "no mailbox <local> here"),
        ("no mailbox named ann.lee.", "no mailbox named <local>."),
        ("no mailbox (ann.lee), sorry", "no mailbox (<local>), sorry"),
        ("ann.lee", "<local>"),
        (
            "joann.lee and ann.lee.smith and x.ann.lee are others",
            "joann.lee and ann.lee.smith and x.ann.lee are others",
        ),
        ("two\nlines\r\n\tand  more", "two lines and more"),
    ],
)
def test_words_are_kept_without_the_recipient(text: str, kept: str) -> None:
    assert redacted(text, "ann.lee@example.com") == kept


def test_words_are_cut_after_the_recipient_is_gone() -> None:
    """200 characters; an address across the cut is replaced, not halved."""
    kept = redacted("x" * 195 + " ann@example.com said no", "ann@example.com")
    assert len(kept) == 200
    assert "ann" not in kept


@pytest.mark.parametrize("recipient", ["a+b(c@example.com", "[x]*@example.com", "\\d@example.com"])
def test_recipient_is_no_pattern(recipient: str) -> None:
    """Characters that mean something to a regular expression."""
    assert recipient not in redacted(f"<{recipient}> refused", recipient)


def test_twenty_path_failures_spend_no_budget() -> None:
    """However often the path fails: nothing is charged, the mail stays."""
    history = History()
    for _ in range(20):
        decision = follows(Verdict.PATH, history)
        assert decision.state is None
        history = decision.history
    assert (history.total, history.charged) == (20, 0)
    assert follows(Verdict.SENT, history).state is State.SENT


def test_redacting_takes_no_longer_than_reading() -> None:
    """A mail server may say 32 kB of one word, and nobody else's mail waits for that."""
    began = time.perf_counter()
    for word in ("a" * 32_000, "a.b" * 11_000, "a@" * 16_000, "@" * 32_000, "=a" * 16_000):
        assert len(redacted(f"5.1.1 {word} @", "ann@example.com")) == 200 or "@" in word
    assert time.perf_counter() - began < 1.0  # it took 5 s for the first of them alone


def test_other_addresses_are_redacted_too() -> None:
    """A forward or the tagless form of the recipient: no address of anybody is kept."""
    text = redacted("5.2.2 ann@gmail.com is over quota, forwarded to <bob@other.example>", "ann+news@gmail.com")
    assert text == "5.2.2 <address> is over quota, forwarded to <<address>>"


def test_the_local_part_ends_at_the_last_at_sign() -> None:
    """A quoted one may have another."""
    assert redacted('no mailbox "a@b"', '"a@b"@example.com') == "no mailbox <local>"
