"""What email_svc counts. The names are a promise (README). A request is one attempt to send a mail."""

from importlib import metadata

from prometheus_client import Counter, Gauge, Histogram, Info

from contracts.messages import State
from email_svc.decision import Verdict

BUILD = Info("email_service_build", "The version that runs.")
BUILD.info({"version": metadata.version("mailflow")})
BROKER_CONNECTED = Gauge("email_service_broker_connected", "1 while connected to the broker.")

REQUESTS = Counter("email_service_requests", "Attempts, by what came of them.", ["verdict"])
ERRORS = Counter("email_service_errors", "Attempts that failed, by verdict.", ["verdict"])
ATTEMPTED = {verdict: REQUESTS.labels(verdict) for verdict in Verdict}
FAILED = {verdict: ERRORS.labels(verdict) for verdict in Verdict if verdict is not Verdict.SENT}
SECONDS = Histogram(
    "email_service_request_duration_seconds",
    "One attempt, from MAIL to the last reply.",
    buckets=(0.002, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300, 600),
)
ANSWERS = Counter(
    "email_service_smtp_answers", "How attempts ended: in which phase, with which code or fault.", ["phase", "answer"]
)
TIME_TO_SEND = Histogram(
    "email_service_time_to_send_seconds",
    "From the request for a mail (the registration) to its being sent.",
    buckets=(0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300, 900, 3600, 14_400, 86_400),
)
CONNECTIONS = Gauge("email_service_smtp_connections", "SMTP connections there are.", ["state"])
OUTCOMES = Counter("email_service_outcomes", "Mails that ended, by state.", ["state"])
UNKNOWN = Counter("email_service_unknown_outcomes", "Attempts whose final dot was never answered.")
DEDUPED = Counter("email_service_deduplicated", "Deliveries of the queue that the ledger knew as done.", ["state"])
QUARANTINED = Counter("email_service_quarantined", "Messages without a trustworthy id.")
LEDGER_UNREADABLE = Counter("email_service_ledger_unreadable", "Looks at a row of the ledger that cannot be read.")
LEASE_LOST = Counter("email_service_lease_lost", "Attempts given up before the dot, for the message may be another's.")
IN_HAND = Gauge("email_service_messages_in_hand", "Messages that are being handled.")
TOKEN_WAIT = Histogram(
    "email_service_token_wait_seconds",
    "Time that a message in hand waited for its token.",
    buckets=(0.001, 0.01, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60),
)
TOKENS = Counter("email_service_tokens", "Tokens of the rate limit that this worker took.")
TOKENS_VOID = Counter("email_service_tokens_void", "Tokens that came too late to be used.")
RATE_TOKENS = Gauge("email_service_rate_limit_tokens", "Mails that the fleet may send at once just now.")
RATE_PER_S = Gauge(
    "email_service_rate_limit_per_second", "Mails a second that the fleet may send, throttling included."
)
RATE_FACTOR = Gauge("email_service_rate_limit_factor", "1, or less while the mail server's complaints slow us down.")
RATE_WAITING = Gauge("email_service_rate_limit_waiting", "Mails of this worker that wait for a token.")
THROTTLED = Counter("email_service_throttled", "Times this worker slowed the fleet down because the server asked.")
ALONE = Counter("email_service_alone", "Times this worker went on alone because no user_svc answered.")
DOWNTIME = Gauge("email_service_downtime", "1 while the simulated downtime is on.")

# A counter that begins with its first event hides that event from rate() and increase(): they begin at 0 instead.
for _state in State:
    OUTCOMES.labels(_state)
    DEDUPED.labels(_state)
