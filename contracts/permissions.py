"""Who may do what on the broker: the rights of its four users, by subject. What is not named here is denied.

    python -m contracts.permissions > deploy/nats-accounts.conf

The lists follow from the topology and the names of subjects, so that they move with them. The broker tells streams and
consumers apart by subject, but not what is asked of them: who may read a stream may read all of it, who may delete a
message of it any, who may make a consumer of that name may give it any settings.
"""

import sys
from collections.abc import Iterable
from typing import Final, Literal

import msgspec

from contracts import subjects as s
from contracts.streams import Service, Stream, topology

User = Literal["user_svc", "email_svc", "provisioner", "operator"]

USERS: Final[tuple[User, ...]] = ("user_svc", "email_svc", "provisioner", "operator")

_DISCOVERY: Final = "$SRV.>"
_OTHERS_INBOXES: Final = "_INBOX.>"
"""Where a client of the service hears its answers if it chooses no prefix of its own: nobody of ours."""


class Rights(msgspec.Struct, frozen=True, kw_only=True):
    """Of one user. `denied` takes back what `publish` gives too widely."""

    publish: tuple[str, ...]
    subscribe: tuple[str, ...]
    denied: tuple[str, ...] = ()


def inbox(user: str) -> str:
    """Where the answers for a user arrive. Nobody else may listen there."""
    return f"_INBOX_{user}.>"


def password_variable(user: User) -> str:
    """The environment variable of the broker that holds a user's password."""
    return f"NATS_{user.upper()}_PASSWORD"


def rights(user: User) -> Rights:
    """All that a user may do."""
    return {"user_svc": _user_svc, "email_svc": _email_svc, "provisioner": _provisioner, "operator": _operator}[user]()


def _user_svc() -> Rights:
    return Rights(
        publish=(
            *_checks("user_svc"),
            *_reads(s.USERS, s.IDEMPOTENCY, s.CONTROL, s.WELCOME_EMAILS, s.DELIVERIES, s.DEAD_LETTERS, s.AUDIT),
            s.USER_KEYS,
            s.AGAIN_KEYS,
            s.ERASE_KEYS,
            s.USER_ID_KEY_FINGERPRINT,
            s.idempotency_key("*"),
            *(s.BREAKER_KEY, s.DOWNTIME_KEY),
            s.WELCOME_REQUESTED,
            s.outcome("*.*", "erased"),
            s.audited("user_svc", "*"),
            *_deletes(s.USERS, s.WELCOME_EMAILS, s.DELIVERIES, s.DEAD_LETTERS),  # an erasure
            *_pulls(s.USERS, s.RELAY),
            f"$JS.API.CONSUMER.PAUSE.{s.WELCOME_EMAILS}.{s.EMAIL_SVC}",
            f"$JS.API.CONSUMER.CREATE.{s.WELCOME_EMAILS}.{s.EMAIL_SVC}",  # made anew if it is gone: else no mail moves
            # Whom it answers. Not the broker's `allow_responses`: a question may come with any reply subject, and the
            # answer to one that names $JS.API.STREAM.PURGE.… would purge.
            *(inbox(user) for user in ("email_svc", "operator")),
            _OTHERS_INBOXES,
            *(s.REPLICAS_ASK, s.REPLICA_ANSWERS),
        ),
        subscribe=(
            inbox("user_svc"),
            *(s.ASK, s.ASK_ALL, s.RESULT, s.RESULT_ALL, s.REPORT),
            s.changed(s.BREAKER_KEY),
            s.REPLICAS_ASK,
            *(s.USERS_CREATE, s.USERS_GET),
            _DISCOVERY,
        ),
    )


def _email_svc() -> Rights:
    return Rights(
        publish=(
            *_checks("email_svc"),
            # The queue and the letters because `delete` looks whether a message is gone already.
            *_reads(s.CONTROL, s.DELIVERIES, s.WELCOME_EMAILS, s.DEAD_LETTERS),
            *_pulls(s.WELCOME_EMAILS, s.EMAIL_SVC),
            s.ATTEMPTS,
            *(s.outcome("*.*", state) for state in ("sent", "dead", "expired")),
            *(s.dead_letter("*.*", state) for state in ("dead", "expired")),
            s.QUARANTINE,
            s.RATE_LIMIT_KEY,
            s.DOWNTIME_KEY,
            s.audited("email_svc", "*"),
            *_deletes(s.WELCOME_EMAILS, s.DEAD_LETTERS),  # of an erased user
            f"$JS.API.STREAM.PURGE.{s.DELIVERIES}",  # a row of attempts, once the outcome is there
            *(s.ASK, s.ASK_ALL, s.RESULT, s.RESULT_ALL, s.REPORT),
            s.REPLICA_ANSWERS,
        ),
        subscribe=(
            inbox("email_svc"),
            s.REPLICAS_ASK,
            *(s.changed(key) for key in (s.BREAKER_KEY, s.RATE_LIMIT_KEY, s.DOWNTIME_KEY)),
        ),
    )


def _provisioner() -> Rights:
    return Rights(
        publish=(
            *_checks(None),
            *(f"$JS.API.STREAM.{verb}.{stream.name}" for stream in topology() for verb in ("CREATE", "UPDATE")),
            *_makes_consumers(),
            *_reads(s.CONTROL),  # the queue's consumer is paused at birth while the breaker is open
        ),
        subscribe=(inbox("provisioner"),),
    )


def _operator() -> Rights:
    names = [stream.name for stream in topology()]
    durables = [consumer.name for stream in topology() for consumer in stream.consumers]
    calls = (
        *("STREAM.INFO", "STREAM.MSG.GET", "DIRECT.GET", "CONSUMER.NAMES", "CONSUMER.LIST"),
        *("STREAM.SNAPSHOT", "STREAM.RESTORE", "STREAM.CREATE", "STREAM.UPDATE", "STREAM.DELETE"),
        "CONSUMER.CREATE",
    )
    below = ("DIRECT.GET.{}.>", "CONSUMER.INFO.{}.*", "CONSUMER.CREATE.{}.>")
    # Those of a look at a stream's messages; a durable of ours is taken back below.
    passing = ("CONSUMER.DELETE.{}.*", "CONSUMER.MSG.NEXT.{}.*")
    return Rights(
        publish=(
            *(f"$JS.API.{call}" for call in ("INFO", "STREAM.NAMES", "STREAM.LIST")),
            *(f"$JS.API.{call}.{name}" for name in names for call in calls),
            *(f"$JS.API.{call.format(name)}" for name in names for call in (*below, *passing)),
            *(f"$JS.SNAPSHOT.{what}.{name}.>" for name in names for what in ("ACK", "RESTORE")),
            *(f"$JS.FC.{name}.>" for name in names),
            f"$JS.API.CONSUMER.PAUSE.{s.USERS}.{s.RELAY}",
            f"$JS.API.CONSUMER.PAUSE.{s.WELCOME_EMAILS}.{s.EMAIL_SVC}",
            # What `just restore` mends: the relay's place, rows of the ledger, dead letters, erasures.
            f"$JS.API.CONSUMER.RESET.{s.USERS}.{s.RELAY}",
            *_deletes(s.DELIVERIES, s.DEAD_LETTERS),
            *(s.dead_letter("*.*", state) for state in ("dead", "expired")),
            s.ERASE_KEYS,
            *(s.USERS_CREATE, s.USERS_GET),
            _DISCOVERY,
            "$SYS.REQ.USER.INFO",  # who am I
        ),
        denied=tuple(
            f"$JS.API.CONSUMER.{verb}.*.{durable}"
            for verb in ("DELETE", "MSG.NEXT")
            for durable in dict.fromkeys(durables)
        ),
        subscribe=(inbox("operator"), "$JS.EVENT.>", s.changed("*")),
    )


def _used(service: Service | None) -> Iterable[Stream]:
    return [stream for stream in topology() if service is None or service in stream.used_by]


def _checks(service: Service | None) -> list[str]:
    """Looks whether what it uses is there; None: all of it."""
    return [
        call
        for stream in _used(service)
        for call in (
            f"$JS.API.STREAM.INFO.{stream.name}",
            *(f"$JS.API.CONSUMER.INFO.{stream.name}.{consumer.name}" for consumer in stream.consumers),
        )
    ]


def _makes_consumers() -> list[str]:
    """With a filter the call names it too."""
    return [
        f"$JS.API.CONSUMER.CREATE.{stream.name}.{consumer.name}{end}"
        for stream in topology()
        for consumer in stream.consumers
        for end in ("", *([".>"] if "filter_subject" in consumer.config else []))
    ]


def _reads(*streams: str) -> list[str]:
    return [f"$JS.API.STREAM.MSG.GET.{stream}" for stream in streams]


def _deletes(*streams: str) -> list[str]:
    return [f"$JS.API.STREAM.MSG.DELETE.{stream}" for stream in streams]


def _pulls(stream: str, durable: str) -> list[str]:
    return [f"$JS.API.CONSUMER.MSG.NEXT.{stream}.{durable}", f"$JS.ACK.{stream}.{durable}.>"]


_HEAD = """\
# The users of the broker and what each may do. Written by `python -m contracts.permissions`: do not edit.
#
# The passwords come from the broker's environment, where they are read as configuration: put them in quotes, e.g.
#   NATS_USER_SVC_PASSWORD='"correct horse 123"'
# One that is not set stops the broker. An empty one would let everybody in: do not set that.
"""


def accounts_conf() -> str:
    """The file that deploy/nats.conf includes."""
    users = "".join(_entry(user, rights(user)) for user in USERS)
    return f"{_HEAD}\nauthorization {{\n  users: [\n{users}  ]\n}}\n"


def _entry(user: User, of: Rights) -> str:
    lines = [
        "    {",
        f'      user: "{user}"',
        f"      password: ${password_variable(user)}",
        "      permissions: {",
        "        publish: {",
        *_listed("allow", of.publish),
        *_listed("deny", of.denied),
        "        }",
        "        subscribe: {",
        *_listed("allow", of.subscribe),
        "        }",
        "      }",
        "    }",
    ]
    return "".join(f"{line}\n" for line in lines)


def _listed(word: str, subjects: Iterable[str]) -> list[str]:
    if not subjects:
        return []
    return [f"          {word}: [", *(f'            "{subject}"' for subject in subjects), "          ]"]


if __name__ == "__main__":
    sys.stdout.write(accounts_conf())
