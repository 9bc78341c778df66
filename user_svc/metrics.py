"""What user_svc counts. The names are a promise (README)."""

from importlib import metadata

from prometheus_client import Counter, Gauge, Histogram, Info

from contracts.control import Breaker

BUILD = Info("user_service_build", "The version that runs.")
BUILD.info({"version": metadata.version("mailflow")})
BROKER_CONNECTED = Gauge("user_service_broker_connected", "1 while connected to the broker.")

REQUESTS = Counter("user_service_requests", "Requests answered.", ["method", "route", "status"])
ERRORS = Counter("user_service_errors", "Requests answered with a 5xx.", ["method", "route"])
SECONDS = Histogram(
    "user_service_request_duration_seconds",
    "From the first byte of a request to the last of its answer.",
    ["method", "route"],
    buckets=(0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5),
)
IN_FLIGHT = Gauge("user_service_requests_in_flight", "Requests under way.")
REFUSED = Counter("user_service_requests_refused", "Requests refused because too many were in flight.")

QUEUE_TOTAL = Counter("user_service_queue", "Events relayed into the queue (sum over the replicas).")
QUEUE_SIZE = Gauge("user_service_queue_size", "Events in the queue, waiting, retrying or being sent.")
QUEUE_PROCESSING = Gauge("user_service_queue_processing", "Events handed out: being sent, or waiting for a retry.")
QUEUE_OLDEST = Gauge("user_service_queue_oldest_age_seconds", "Age of the oldest event in the queue.")
QUEUE_WAITING_AGE = Gauge(
    "user_service_queue_waiting_age_seconds",
    "Age of the oldest event that no worker was given yet; 0 if there is none.",
)
QUEUE_REDELIVERED = Gauge("user_service_queue_redelivered", "Events in the queue that were handed out before.")
REPLAYED = Counter("user_service_replayed", "Dead letters that were asked for again.")
OUTBOX_PENDING = Gauge("user_service_outbox_pending", "Registrations and resends that are not in the queue yet.")
OUTBOX_AGE = Gauge(
    "user_service_outbox_oldest_age_seconds",
    "Age of the oldest of them: how far the relay is behind; 0 if there is none.",
)
DEDUPED_QUEUE = Counter("user_service_queue_deduplicated", "Copies of a queued event that the queue refused.")
RELAY_FULL = Counter("user_service_relay_queue_full", "Times the relay found the queue full.")
RELAY_GIVEN_BACK = Counter("user_service_relay_given_back", "Outbox entries given back after all tries.")
RELAY_UNDECODABLE = Counter("user_service_relay_undecodable", "Outbox entries that no version of ours has written.")
LEDGER_GAP = Gauge("user_service_ledger_gap", "Events that are nowhere; only a positive value that lasts matters.")
LEDGER_EVENTS = Gauge(
    "user_service_ledger_events", "Where the events are, by the broker's counters; `live` is their sum.", ["place"]
)
BOOKS_READ = Gauge(
    "user_service_books_read_timestamp_seconds", "When queue, outbox, ledger and dead letters were last read whole."
)
RECONCILED = Counter("user_service_reconciled", "Lost events that the reconciler published again.")

BREAKER_STATE = Gauge("user_service_circuit_breaker_state", "0 closed, 1 half-open, 2 open.")
BREAKER_FAILURES = Counter("user_service_circuit_breaker_failures", "Path failures heard.")
BREAKER_SUCCESSES = Counter("user_service_circuit_breaker_successes", "Attempts heard that found the path working.")
BREAKER_PROBES = Gauge("user_service_circuit_breaker_half_open_requests", "Permits granted in this half-open round.")
BREAKER_TRANSITIONS = Counter(
    "user_service_circuit_breaker_transitions", "Changes of state that this replica saw, by the new state.", ["state"]
)
BREAKER_SURGE = Gauge("user_service_circuit_breaker_surge", "1 while policy refusals count as path failures.")
DEAD_LETTERS = Gauge("user_service_dead_letters", "Open dead letters, by state.", ["state"])

# A counter that begins with its first event hides that event from rate() and increase(): they begin at 0 instead
# (ERRORS too, in user_svc.app, where the routes are known).
for _state in Breaker:
    BREAKER_TRANSITIONS.labels(_state)
