"""Names on the broker: streams, subjects, buckets, durables, headers. One place, so that a name cannot drift.

An event id is `<user_id>.<revision>`: two subject tokens, both legal in a subject and in a key.
No subject or key holds an address or a name of a person.
"""

from typing import Final

# Streams. A bucket named B is the stream KV_B with subjects $KV.B.>.
USERS: Final = "KV_USERS"
IDEMPOTENCY: Final = "KV_IDEMPOTENCY"
WELCOME_EMAILS: Final = "WELCOME_EMAILS"
DELIVERIES: Final = "DELIVERIES"
DEAD_LETTERS: Final = "DEAD_LETTERS"
CONTROL: Final = "KV_CONTROL"
AUDIT: Final = "AUDIT"

# Durable consumers that are pulled.
RELAY: Final = "welcome-relay"
EMAIL_SVC: Final = "email-svc"

# Subject patterns.
USER_KEYS: Final = "$KV.USERS.u.*"
AGAIN_KEYS: Final = "$KV.USERS.again.*.*"
ERASE_KEYS: Final = "$KV.USERS.erase.*"
USER_ID_KEY_FINGERPRINT: Final = "$KV.USERS.meta.user_id_key"
WELCOME_REQUESTED: Final = "email.welcome.requested.*.*"
ATTEMPTS: Final = "deliveries.*.*.attempts"
OUTCOMES: Final = "deliveries.*.*.outcome.*"
DEAD_LETTERS_OF_EVENTS: Final = "dead_letters.*.*.*"
QUARANTINE: Final = "dead_letters.quarantine.*"
AUDITED: Final = "audit.*.*"

# Bucket CONTROL: small records, each change republished with the broker's time on `control.changed.<key>`.
BREAKER_KEY: Final = "$KV.CONTROL.breaker"
RATE_LIMIT_KEY: Final = "$KV.CONTROL.rate_limit"
DOWNTIME_KEY: Final = "$KV.CONTROL.downtime"

# Requests to user_svc about the breaker. The first try goes to one replica, repeats go to all.
ASK: Final = "breaker.ask"
ASK_ALL: Final = "breaker.ask_all"
RESULT: Final = "breaker.result"
RESULT_ALL: Final = "breaker.result_all"
REPORT: Final = "breaker.report"
ONE_OF_USER_SVC: Final = "user_svc"
"""The queue group of user_svc's replicas."""

# user_svc asks all replicas of both services at once; the answers have inboxes of their own, so that no right to answer
# is one to forge what JetStream says.
REPLICAS_ASK: Final = "replicas.ask"
REPLICA_ANSWERS: Final = "_INBOX_user_svc.replicas.*"

# Requests of clients to user_svc: what REST offers, over the bus.
USERS_CREATE: Final = "users.create"
USERS_GET: Final = "users.get"

# Headers of ours. Those of the broker are in contracts.runtime.broker.
HEADER_REASON: Final = "MailFlow-Reason"
HEADER_SUBJECT: Final = "MailFlow-Subject"


def event_id(user_id: str, revision: int) -> str:
    """`<user_id>.<revision>`; the revision is the sequence of the key that asks for the mail."""
    return f"{user_id}.{revision}"


def split_event_id(event: str) -> tuple[str, int]:
    """The user id and revision of an event id.

    Raises:
        ValueError: not of the form `<user_id>.<revision>`.
    """
    user_id, dot, revision = event.partition(".")
    number = revision.isascii() and revision.isdigit() and revision[0] != "0" and len(revision) < 20  # 64 bits
    if not (dot and is_user_id(user_id) and number):
        raise ValueError(f"{event!r:.80} is not an event id <user_id>.<revision>")
    return user_id, int(revision)


def is_user_id(text: str) -> bool:
    """26 characters of lower-case base32."""
    return len(text) == 26 and all(c in "abcdefghijklmnopqrstuvwxyz234567" for c in text)


def user_key(user_id: str) -> str:
    """The registration: written once, never changed."""
    return f"$KV.USERS.u.{user_id}"


def again_key(user_id: str, nonce: str) -> str:
    """A resend (`<UTC date>-<1|2|3>`) or a replay (`r<revision of the dead event>`)."""
    return f"$KV.USERS.again.{user_id}.{nonce}"


def erase_key(user_id: str) -> str:
    """An erasure under way; it covers the user's keys written before it."""
    return f"$KV.USERS.erase.{user_id}"


def idempotency_key(key_hash: str) -> str:
    """The row of one Idempotency-Key, 24 h."""
    return f"$KV.IDEMPOTENCY.{key_hash}"


def welcome_requested(event: str) -> str:
    """The queue entry of one event: its own subject, so that the queue refuses a second copy."""
    return f"email.welcome.requested.{event}"


def attempts(event: str) -> str:
    """The history of a mail that is still pending."""
    return f"deliveries.{event}.attempts"


def outcome(event: str, state: str) -> str:
    """The one outcome of an event; `state` is sent, dead, expired or erased ("*" for any)."""
    return f"deliveries.{event}.outcome.{state}"


def changed(key: str) -> str:
    """Where changes of a record in CONTROL are heard, e.g. of `BREAKER_KEY`."""
    return f"control.changed.{key.rpartition('.')[2]}"


def audited(service: str, action: str) -> str:
    """An operator's action, e.g. `breaker-open`."""
    return f"audit.{service}.{action}"


def replica_answers(asker: str) -> str:
    """Where one replica of user_svc hears the answers to `REPLICAS_ASK`; a token of its own."""
    return REPLICA_ANSWERS.replace("*", asker)


def delivery_rows(event: str) -> str:
    """All rows of one event in the ledger."""
    return f"deliveries.{event}.>"


def dead_letter(event: str, state: str) -> str:
    """The open dead letter of one event; `state` is dead or expired."""
    return f"dead_letters.{state}.{event}"


def quarantined(sequence: int) -> str:
    """A message without a trustworthy id, named by its sequence in the queue."""
    return f"dead_letters.quarantine.{sequence}"


def event_in(subject: str, user_id: str) -> str:
    """The event id in a subject that holds one of this user's, e.g. `deliveries.<user_id>.<revision>.attempts`.

    Raises:
        ValueError: it holds none.
    """
    revision = subject.partition(f".{user_id}.")[2].partition(".")[0]
    return event_id(*split_event_id(f"{user_id}.{revision}"))
