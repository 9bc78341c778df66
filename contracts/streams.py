"""The streams, buckets and durables on the broker, as data, each with its owner. contracts.topology makes them so."""

from typing import Any, Literal

import msgspec

from contracts import subjects as s
from contracts.runtime.pull import ACK_WAIT_S

Service = Literal["user_svc", "email_svc"]

_NS = 1_000_000_000
_FAR = "2200-01-01T00:00:00Z"


class Consumer(msgspec.Struct, frozen=True, kw_only=True):
    """A durable consumer. `config` is the broker's own; of it, `changes` may be changed by the owner later."""

    name: str
    config: dict[str, Any]
    changes: tuple[str, ...] = ()


class Stream(msgspec.Struct, frozen=True, kw_only=True):
    """A stream (or a bucket, which is one). `fixed` must hold for ever; `config` may be changed by the owner."""

    name: str
    owner: Service
    used_by: tuple[Service, ...]
    fixed: dict[str, Any]
    config: dict[str, Any]
    consumers: tuple[Consumer, ...] = ()


def _counter(name: str, subject: str) -> Consumer:
    """An exact count of the messages on a subject pattern: a durable that nobody pulls, its `num_pending`.

    Paused until far away, for one stray pull would falsify it for good.
    """
    return Consumer(
        name=name,
        config={
            "filter_subject": subject,
            "ack_policy": "none",
            "deliver_policy": "all",
            "pause_until": _FAR,
        },
    )


def topology(queue_max_size: int = 100_000) -> tuple[Stream, ...]:
    """All of it. `queue_max_size` is user_svc's setting; whoever does not own the queue leaves the default."""
    bucket = {"retention": "limits", "storage": "file", "max_msgs_per_subject": 1, "discard": "new"}
    pulled = {
        "ack_policy": "explicit",
        "deliver_policy": "all",
        "ack_wait": ACK_WAIT_S * _NS,
        "max_deliver": -1,  # never a budget: an exhausted message would stay, invisible to every counter
        "max_waiting": 8192,  # cannot be changed later; slots of all replicas together
    }
    return (
        Stream(
            name=s.USERS,
            owner="user_svc",
            used_by=("user_svc",),
            # The helper for buckets would set deny_delete, which cannot be undone and would forbid erasing.
            fixed=bucket | {"subjects": ["$KV.USERS.>"], "deny_delete": False, "deny_purge": False},
            config={"allow_direct": True, "allow_rollup_hdrs": True},
            consumers=(
                Consumer(
                    name=s.RELAY,
                    config=pulled
                    | {"filter_subjects": [s.USER_KEYS, s.AGAIN_KEYS, s.ERASE_KEYS], "max_ack_pending": 20_000},
                    changes=("max_ack_pending",),
                ),
                _counter("count-users", s.USER_KEYS),
                _counter("count-again", s.AGAIN_KEYS),
                _counter("count-erase", s.ERASE_KEYS),
            ),
        ),
        Stream(
            name=s.IDEMPOTENCY,
            owner="user_svc",
            used_by=("user_svc",),
            fixed=bucket | {"subjects": ["$KV.IDEMPOTENCY.>"]},
            config={"allow_direct": True, "allow_rollup_hdrs": True, "max_age": 24 * 3600 * _NS},
        ),
        Stream(
            name=s.CONTROL,
            owner="user_svc",
            used_by=("user_svc", "email_svc"),
            fixed=bucket | {"subjects": ["$KV.CONTROL.>"]},
            config={
                "allow_direct": True,
                "allow_rollup_hdrs": True,
                # Every change reaches all replicas at once, with the broker's time of it: no consumer is needed.
                "republish": {"src": "$KV.CONTROL.>", "dest": "control.changed.>"},
            },
        ),
        Stream(
            name=s.WELCOME_EMAILS,
            owner="user_svc",
            used_by=("user_svc", "email_svc"),
            fixed={
                "subjects": [s.WELCOME_REQUESTED],
                "retention": "workqueue",
                "storage": "file",
                "discard": "new",
                "deny_delete": False,
                "max_age": 0,  # would drop work silently; the event's own deadline ends it with an outcome
            },
            config={"max_msgs": queue_max_size, "allow_direct": False},
            consumers=(
                Consumer(
                    name=s.EMAIL_SVC,
                    # A message that waits for its retry holds its slot: room for all of them, and for fresh mail.
                    config=pulled | {"max_ack_pending": 2 * queue_max_size},
                    changes=("max_ack_pending",),
                ),
            ),
        ),
        Stream(
            name=s.DELIVERIES,
            owner="email_svc",
            used_by=("user_svc", "email_svc"),
            fixed={
                "subjects": [s.ATTEMPTS, s.OUTCOMES],
                "retention": "limits",
                "storage": "file",
                "discard": "old",
                "max_msgs_per_subject": 1,
                "deny_delete": False,
                "deny_purge": False,
                "max_age": 0,
            },
            config={"allow_direct": True, "allow_msg_ttl": True},
            consumers=tuple(
                _counter(f"count-{state}", f"deliveries.*.*.outcome.{state}")
                for state in ("sent", "dead", "expired", "erased")
            ),
        ),
        Stream(
            name=s.AUDIT,
            owner="user_svc",
            used_by=("user_svc", "email_svc"),
            fixed={"subjects": [s.AUDITED], "retention": "limits", "storage": "file", "discard": "old"},
            config={"max_age": 90 * 86_400 * _NS, "allow_direct": True},
        ),
        Stream(
            name=s.DEAD_LETTERS,
            owner="email_svc",
            used_by=("user_svc", "email_svc"),
            fixed={
                "subjects": [s.DEAD_LETTERS_OF_EVENTS, s.QUARANTINE],
                "retention": "limits",
                "storage": "file",
                "discard": "old",
                "max_msgs_per_subject": 1,
                "deny_delete": False,
                "deny_purge": False,
                "max_age": 0,
            },
            config={"allow_direct": True, "allow_msg_ttl": True},
            consumers=(
                _counter("count-dead", "dead_letters.dead.*.*"),
                _counter("count-expired", "dead_letters.expired.*.*"),
                _counter("count-quarantine", s.QUARANTINE),
            ),
        ),
    )
