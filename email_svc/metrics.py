"""What email_svc counts. The names are a promise (README). A request is one attempt to send a mail."""

from prometheus_client import Counter, Gauge, Histogram

from email_svc.decision import Verdict

REQUESTS = Counter("email_service_requests", "Attempts, by what came of them.", ["verdict"])
ERRORS = Counter("email_service_errors", "Attempts that failed, by verdict.", ["verdict"])
ATTEMPTED = {verdict: REQUESTS.labels(verdict) for verdict in Verdict}
FAILED = {verdict: ERRORS.labels(verdict) for verdict in Verdict if verdict is not Verdict.SENT}
SECONDS = Histogram(
    "email_service_request_duration_seconds",
    "One attempt, from MAIL to the last reply.",
    buckets=(0.002, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300, 600),
)
OUTCOMES = Counter("email_service_outcomes", "Mails that ended, by state.", ["state"])
UNKNOWN = Counter("email_service_unknown_outcomes", "Attempts whose final dot was never answered.")
DEDUPED = Counter("email_service_deduplicated", "Deliveries of the queue that the ledger knew as done.", ["state"])
QUARANTINED = Counter("email_service_quarantined", "Messages without a trustworthy id.")
LEASE_LOST = Counter("email_service_lease_lost", "Attempts given up before the dot, for the message may be another's.")
IN_HAND = Gauge("email_service_messages_in_hand", "Messages that are being handled.")
TOKEN_WAIT = Histogram(
    "email_service_token_wait_seconds",
    "Time that a message in hand waited for its token.",
    buckets=(0.001, 0.01, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60),
)
TOKENS = Counter("email_service_tokens", "Tokens of the rate limit that this worker took.")
TOKENS_VOID = Counter("email_service_tokens_void", "Tokens that came too late to be used.")
THROTTLED = Counter("email_service_throttled", "Times this worker slowed the fleet down because the server asked.")
ALONE = Counter("email_service_alone", "Times this worker went on alone because no user_svc answered.")
DOWNTIME = Gauge("email_service_downtime", "1 while the simulated downtime is on.")
