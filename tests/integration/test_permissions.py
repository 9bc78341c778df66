"""The users of deploy/nats-accounts.conf on a real broker: each can do what it needs and nothing else."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
import structlog.testing

from contracts import subjects as s
from contracts import topology as t
from contracts.permissions import USERS, User, accounts_conf, inbox, rights
from contracts.runtime.broker import Broker, Denied, connect
from tests.support.processes import ACCOUNTS, NatsServer, login, provisioned, stopping
from tests.support.waiting import eventually

SOMEBODY = "a" * 26
EVENT = f"{SOMEBODY}.1"
NO_ACK = "1.1.1.1700000000000000000.0"


def test_the_file_is_what_the_command_writes() -> None:
    """`python -m contracts.permissions > deploy/nats-accounts.conf` changes nothing."""
    assert ACCOUNTS.read_text() == accounts_conf()


@pytest.fixture(scope="module")
def nats_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[NatsServer]:
    """Our own, for its users."""
    server = NatsServer(tmp_path_factory.mktemp("nats"))
    with stopping(server):
        server.start()
        asyncio.run(server.ready())
        yield server


@pytest.fixture
async def users(nats_server: NatsServer, broker: Broker) -> AsyncIterator[dict[User, Broker]]:
    """A connection of each user to a broker that was provisioned, and holds a little in each stream."""
    await provisioned(nats_server.url)
    for subject in (s.user_key("b" * 26), s.welcome_requested(f"{'b' * 26}.1"), s.outcome(f"{'b' * 26}.1", "sent")):
        await broker.store(subject, b"{}")
    for subject in (s.BREAKER_KEY, s.idempotency_key("b"), s.audited("user_svc", "b"), s.quarantined(9)):
        await broker.store(subject, b"")
    async with contextlib.AsyncExitStack() as stack:
        found: dict[User, Broker] = {}
        for user in USERS:
            account = login(user)
            found[user] = await connect(
                name=user,
                url=nats_server.url,
                user=account["NATS_USER"],
                password=account["NATS_PASSWORD"],
                on_closed=lambda reason: None,
            )
            stack.push_async_callback(found[user].close)
        yield found
    for name in (await broker.api("STREAM.NAMES"))["streams"]:
        await broker.api(f"STREAM.DELETE.{name}")


# What is published, by whom: a call of JetStream's API (with "$JS.API." before it), or a subject of ours.
DENIED: dict[User, tuple[str, ...]] = {
    "user_svc": (
        "STREAM.CREATE.MINE",
        f"STREAM.CREATE.{s.USERS}",
        f"STREAM.UPDATE.{s.USERS}",
        f"STREAM.DELETE.{s.USERS}",
        f"STREAM.DELETE.{s.WELCOME_EMAILS}",
        f"STREAM.PURGE.{s.USERS}",
        f"STREAM.SNAPSHOT.{s.USERS}",
        f"STREAM.RESTORE.{s.USERS}",
        f"STREAM.MSG.DELETE.{s.AUDIT}",
        f"STREAM.MSG.DELETE.{s.CONTROL}",
        f"CONSUMER.CREATE.{s.USERS}.spy",
        f"CONSUMER.CREATE.{s.DELIVERIES}.count-sent",
        f"CONSUMER.DELETE.{s.WELCOME_EMAILS}.{s.EMAIL_SVC}",
        f"CONSUMER.DELETE.{s.USERS}.{s.RELAY}",
        f"CONSUMER.RESET.{s.USERS}.{s.RELAY}",
        f"CONSUMER.PAUSE.{s.USERS}.count-users",
        f"CONSUMER.MSG.NEXT.{s.WELCOME_EMAILS}.{s.EMAIL_SVC}",
        f"CONSUMER.MSG.NEXT.{s.USERS}.count-users",
        f"$JS.ACK.{s.WELCOME_EMAILS}.{s.EMAIL_SVC}.{NO_ACK}",
        s.outcome(EVENT, "sent"),
        s.outcome(EVENT, "dead"),
        s.attempts(EVENT),
        s.dead_letter(EVENT, "dead"),
        s.quarantined(1),
        s.RATE_LIMIT_KEY,
        s.audited("email_svc", "downtime"),
        "$KV.USERS.admin",
        s.changed(s.BREAKER_KEY),
        s.REPORT,
        "_INBOX_provisioner.forged",
        "anything.else",
    ),
    "email_svc": (
        f"STREAM.MSG.GET.{s.USERS}",
        f"STREAM.MSG.GET.{s.IDEMPOTENCY}",
        f"STREAM.MSG.GET.{s.AUDIT}",
        f"DIRECT.GET.{s.USERS}",
        f"DIRECT.GET.{s.USERS}.{s.user_key(SOMEBODY)}",
        f"STREAM.INFO.{s.USERS}",
        "STREAM.NAMES",
        "STREAM.CREATE.MINE",
        f"STREAM.UPDATE.{s.DELIVERIES}",
        f"STREAM.DELETE.{s.DELIVERIES}",
        f"STREAM.PURGE.{s.WELCOME_EMAILS}",
        f"STREAM.PURGE.{s.USERS}",
        f"STREAM.SNAPSHOT.{s.USERS}",
        f"STREAM.MSG.DELETE.{s.USERS}",
        f"STREAM.MSG.DELETE.{s.DELIVERIES}",
        f"STREAM.MSG.DELETE.{s.AUDIT}",
        f"CONSUMER.CREATE.{s.USERS}.spy",
        f"CONSUMER.CREATE.{s.USERS}.spy.{s.USER_KEYS}",
        f"CONSUMER.CREATE.{s.WELCOME_EMAILS}.{s.EMAIL_SVC}",
        f"CONSUMER.PAUSE.{s.WELCOME_EMAILS}.{s.EMAIL_SVC}",
        f"CONSUMER.DELETE.{s.WELCOME_EMAILS}.{s.EMAIL_SVC}",
        f"CONSUMER.MSG.NEXT.{s.USERS}.{s.RELAY}",
        f"CONSUMER.MSG.NEXT.{s.DELIVERIES}.count-sent",
        f"$JS.ACK.{s.USERS}.{s.RELAY}.{NO_ACK}",
        s.user_key(SOMEBODY),
        s.again_key(SOMEBODY, "r1"),
        s.erase_key(SOMEBODY),
        s.idempotency_key("x"),
        s.welcome_requested(EVENT),
        s.outcome(EVENT, "erased"),
        s.BREAKER_KEY,
        s.audited("user_svc", "breaker-open"),
        s.changed(s.BREAKER_KEY),
        "users.get",
        s.REPLICAS_ASK,
        "_INBOX_user_svc.forged",
    ),
    "provisioner": (
        f"STREAM.MSG.GET.{s.USERS}",
        f"STREAM.DELETE.{s.USERS}",
        f"STREAM.PURGE.{s.USERS}",
        f"STREAM.SNAPSHOT.{s.USERS}",
        "STREAM.CREATE.MINE",
        f"STREAM.MSG.DELETE.{s.USERS}",
        f"CONSUMER.CREATE.{s.USERS}.spy",
        f"CONSUMER.DELETE.{s.USERS}.{s.RELAY}",
        f"CONSUMER.MSG.NEXT.{s.WELCOME_EMAILS}.{s.EMAIL_SVC}",
        f"CONSUMER.PAUSE.{s.WELCOME_EMAILS}.{s.EMAIL_SVC}",
        s.user_key(SOMEBODY),
        s.welcome_requested(EVENT),
        s.BREAKER_KEY,
        "users.get",
    ),
    "operator": (
        f"STREAM.PURGE.{s.USERS}",
        f"STREAM.PURGE.{s.WELCOME_EMAILS}",
        f"STREAM.MSG.DELETE.{s.AUDIT}",
        f"STREAM.MSG.DELETE.{s.USERS}",
        "STREAM.CREATE.MINE",
        f"CONSUMER.DELETE.{s.USERS}.{s.RELAY}",
        f"CONSUMER.DELETE.{s.WELCOME_EMAILS}.{s.EMAIL_SVC}",
        f"CONSUMER.DELETE.{s.DELIVERIES}.count-sent",
        f"CONSUMER.MSG.NEXT.{s.WELCOME_EMAILS}.{s.EMAIL_SVC}",
        f"CONSUMER.MSG.NEXT.{s.USERS}.{s.RELAY}",
        f"CONSUMER.MSG.NEXT.{s.DELIVERIES}.count-sent",
        f"$JS.ACK.{s.WELCOME_EMAILS}.{s.EMAIL_SVC}.{NO_ACK}",
        s.user_key(SOMEBODY),
        s.again_key(SOMEBODY, "r1"),
        s.welcome_requested(EVENT),
        s.outcome(EVENT, "sent"),
        s.attempts(EVENT),
        s.BREAKER_KEY,
        s.RATE_LIMIT_KEY,
        s.audited("user_svc", "breaker-open"),
        s.REPORT,
        s.ASK,
        s.REPLICAS_ASK,
        s.changed(s.BREAKER_KEY),
        "_INBOX_user_svc.forged",
    ),
}
UNHEARD: dict[User, tuple[str, ...]] = {
    "user_svc": (
        inbox("email_svc"),
        inbox("operator"),
        "_INBOX.>",
        s.WELCOME_REQUESTED,
        s.OUTCOMES,
        "$JS.API.>",
        "$JS.ACK.>",
        "$JS.EVENT.>",
        s.changed(s.RATE_LIMIT_KEY),
        ">",
    ),
    "email_svc": (
        inbox("user_svc"),
        inbox("provisioner"),
        "_INBOX.>",
        "$KV.USERS.>",
        s.USER_KEYS,
        s.ASK,
        s.REPORT,
        "users.create",
        "$SRV.>",
        "$JS.API.>",
        ">",
    ),
    "provisioner": (inbox("user_svc"), "$KV.USERS.>", "control.changed.>", ">"),
    "operator": (inbox("user_svc"), inbox("email_svc"), "_INBOX.>", "$KV.USERS.>", s.WELCOME_REQUESTED, "users.*", ">"),
}


async def heard_by_broker(connection: Broker) -> None:
    """All that was said so far. Twice, for nats-py sends the first PING before what it holds back."""
    await connection.client.flush()
    await connection.client.flush()


def subject_of(what: str) -> str:
    return f"$JS.API.{what}" if what.partition(".")[0] in ("STREAM", "CONSUMER", "DIRECT") else what


async def everything(broker: Broker) -> dict[str, Any]:
    """What streams and consumers there are, how they are configured, and what they hold."""
    found = {}
    for name in (await broker.api("STREAM.NAMES"))["streams"]:
        info = await broker.api(f"STREAM.INFO.{name}")
        found[name] = (info["config"], info["state"])
        for consumer in (await broker.api(f"CONSUMER.NAMES.{name}"))["consumers"] or ():
            about = await broker.api(f"CONSUMER.INFO.{name}.{consumer}")
            found[f"{name}/{consumer}"] = (about["config"], about["delivered"], about["ack_floor"])
    return found


def test_the_matrix_is_large_enough() -> None:
    """At least 25 operations that each service must not do."""
    for user in ("user_svc", "email_svc"):
        assert len(set(DENIED[user])) >= 25


@pytest.mark.parametrize("user", USERS)
async def test_what_is_denied_has_no_effect_and_is_said(users: dict[User, Broker], broker: Broker, user: User) -> None:
    """Each call fails at once with the subject in its text, and in the log; nothing on the broker has changed.

    The body is what each would take, so that it is the broker's users that refuse, and not JetStream.
    """
    before = await everything(broker)
    with structlog.testing.capture_logs() as said:
        for what in DENIED[user]:
            subject = subject_of(what)
            with pytest.raises(Denied) as caught:
                await users[user].request(subject, b'{"seq":1}', timeout_s=10)
            assert str(caught.value) == f"the broker does not allow {user} to publish to {subject}"
            await users[user].client.publish(subject, b"{}")
        await heard_by_broker(users[user])
    logged = [line for line in said if line["event"] == "broker.denied"]
    assert {line["subject"] for line in logged} == {subject_of(what).lower() for what in DENIED[user]}
    assert {(line["operation"], line["user"], line["log_level"]) for line in logged} == {("publish", user, "error")}
    assert await everything(broker) == before


@pytest.mark.parametrize("user", USERS)
async def test_nobody_hears_what_is_not_for_him(users: dict[User, Broker], broker: Broker, user: User) -> None:
    """The subscription is refused, said in the log, and brings nothing."""
    heard: list[str] = []

    async def hear(message: Any) -> None:
        heard.append(message.subject)

    with structlog.testing.capture_logs() as said:
        for subject in UNHEARD[user]:
            await users[user].client.subscribe(subject, cb=hear)
        await heard_by_broker(users[user])
        for subject in UNHEARD[user]:
            await broker.client.publish(subject.replace("*", "x").replace(">", "x"), b"")
        await heard_by_broker(broker)
        await heard_by_broker(users[user])
    refused = {line["subject"] for line in said if line["event"] == "broker.denied"}
    assert refused == {subject.lower() for subject in UNHEARD[user]}
    assert heard == []


async def test_each_does_what_it_needs(users: dict[User, Broker], broker: Broker) -> None:
    """A registration's way over the broker, with nothing denied (the e2e suite has the rest)."""
    user, email = users["user_svc"], users["email_svc"]
    with structlog.testing.capture_logs() as said:
        for service, own in (("user_svc", user), ("email_svc", email)):
            await t.provision(own, service=service, mode="verify", replicas=1)
            assert await t.missing(own, service) == []
        await t.provision(users["provisioner"], service=None, mode="auto", replicas=1, queue_max_size=77)
        revision = await user.store(s.user_key(SOMEBODY), b"{}", expect_last=0)
        event = s.event_id(SOMEBODY, revision)
        await user.store(s.welcome_requested(event), b"{}", expect_last=0)
        arrived: asyncio.Queue[Any] = asyncio.Queue()
        await email.client.subscribe(hole := email.client.new_inbox(), cb=arrived.put)
        pull = f"$JS.API.CONSUMER.MSG.NEXT.{s.WELCOME_EMAILS}.{s.EMAIL_SVC}"
        await email.client.publish(pull, b'{"batch":2,"expires":5000000000}', reply=hole)
        while (message := await asyncio.wait_for(arrived.get(), 5)).subject != s.welcome_requested(event):
            await email.request(message.reply, b"+ACK")
        await email.store(s.outcome(event, "sent"), b"{}", expect_last=0, expect_on=s.outcome(event, "*"))
        await email.request(message.reply, b"+ACK")
        assert await user.last(s.WELCOME_EMAILS, s.welcome_requested(event)) is None
        until = (datetime.now(UTC) + timedelta(seconds=60)).isoformat()
        assert (await pause(users["operator"], until))["paused"] is True
        assert (await pause(user, None))["paused"] is False
    assert [line for line in said if line["event"] == "broker.denied"] == []


async def pause(broker: Broker, until: str | None) -> dict[str, Any]:
    call = f"CONSUMER.PAUSE.{s.WELCOME_EMAILS}.{s.EMAIL_SVC}"
    found: dict[str, Any] = await broker.api(call, {"pause_until": until} if until else None)
    return found


async def test_user_svc_answers_whoever_asks_it(users: dict[User, Broker]) -> None:
    """Workers about the breaker, an operator over NATS."""

    async def answer(message: Any) -> None:
        await message.respond(b"yes")

    for subject in (s.ASK, "users.get", "$SRV.PING"):
        await users["user_svc"].client.subscribe(subject, cb=answer)
    await heard_by_broker(users["user_svc"])
    assert (await users["email_svc"].request(s.ASK, b"")).data == b"yes"
    assert (await users["operator"].request("users.get", b"")).data == b"yes"
    assert (await users["operator"].request("$SRV.PING", b"")).data == b"yes"


async def test_nobody_acts_through_the_answers_of_user_svc(users: dict[User, Broker], broker: Broker) -> None:
    """A question whose reply subject is an order to the broker: the answer is denied, not carried out."""
    before = await everything(broker)

    async def answer(message: Any) -> None:
        await message.respond(b"{}")

    await users["user_svc"].client.subscribe(s.ASK, cb=answer)
    await heard_by_broker(users["user_svc"])
    orders = [f"$JS.API.STREAM.PURGE.{s.USERS}", s.outcome(EVENT, "sent"), s.RATE_LIMIT_KEY]
    with structlog.testing.capture_logs() as said:
        for order in orders:
            await users["email_svc"].client.publish(s.ASK, b"", reply=order)
        await heard_by_broker(users["email_svc"])
        denied = lambda: {line["subject"] for line in said if line["event"] == "broker.denied"}  # noqa: E731
        await eventually(lambda: denied() == {order.lower() for order in orders})
    assert await everything(broker) == before


async def test_a_missing_stream_says_what_makes_it(users: dict[User, Broker], broker: Broker) -> None:
    """With PROVISION=auto a service that is not allowed to make it is told what is; a wrong user is told his right."""
    await broker.api(f"STREAM.DELETE.{s.AUDIT}")
    with pytest.raises(t.BadStart, match=r"AUDIT is missing: run `python -m contracts.topology` \(as the user prov"):
        await t.provision(users["email_svc"], service="email_svc", mode="verify", replicas=1)
    with pytest.raises(
        t.BadStart, match=r"AUDIT cannot be created: the broker does not allow email_svc to publish to "
    ):
        await t.provision(users["email_svc"], service="email_svc", mode="auto", replicas=1)
    with pytest.raises(t.BadStart, match=r"does not allow email_svc to publish to \$JS.API.STREAM.INFO.KV_USERS"):
        await t.until_answered(lambda: t.provision(users["email_svc"], service="user_svc", mode="auto", replicas=1))


def test_rights_name_each_subject_once() -> None:
    """And nothing but literal subjects, or patterns of ours."""
    for user in USERS:
        of = rights(user)
        for subjects in (of.publish, of.subscribe, of.denied):
            assert len(subjects) == len(set(subjects)), user
        assert ">" not in of.publish + of.subscribe
        assert not {"$JS.>", "$JS.API.>", "$KV.>"} & set(of.publish)
