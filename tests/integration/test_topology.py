"""contracts.topology against a real nats-server: makes what is missing, changes what may change, refuses the rest."""

import asyncio
import http.server
import sys
import threading
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest

from contracts import subjects as s
from contracts import topology as t
from contracts.runtime.broker import ApiError, Broker, Unavailable, connect
from contracts.runtime.process import BadStart
from contracts.streams import topology
from tests.support.processes import NatsServer, Process, cluster_of_three, free_port, stopping
from tests.support.waiting import eventually

ALL = [stream.name for stream in topology()]


@pytest.fixture
async def empty(broker: Broker) -> AsyncIterator[Broker]:
    """The module's broker with nothing on it, before and after."""
    yield broker
    await clear(broker)


async def clear(broker: Broker) -> None:
    for name in (await broker.api("STREAM.NAMES"))["streams"] or ():
        await broker.api(f"STREAM.DELETE.{name}")


async def provision(broker: Broker, service: t.Service | None = None, **options: Any) -> None:
    await t.provision(broker, service=service, **({"mode": "auto", "replicas": 1} | options))


async def config_of(broker: Broker, stream: str, consumer: str | None = None) -> dict[str, Any]:
    call = f"STREAM.INFO.{stream}" if consumer is None else f"CONSUMER.INFO.{stream}.{consumer}"
    config: dict[str, Any] = (await broker.api(call))["config"]
    return config


async def everything(broker: Broker) -> dict[str, Any]:
    """All configuration on the broker."""
    found = {}
    for name in sorted((await broker.api("STREAM.NAMES"))["streams"] or ()):
        found[name] = await config_of(broker, name)
        for consumer in sorted((await broker.api(f"CONSUMER.NAMES.{name}"))["consumers"] or ()):
            found[f"{name}/{consumer}"] = await config_of(broker, name, consumer)
    return found


async def test_one_call_makes_all_of_it(empty: Broker) -> None:
    """Streams and durables of the design; nothing is missing then."""
    await provision(empty)
    found = await everything(empty)
    assert set(ALL) <= set(found)
    assert f"{s.WELCOME_EMAILS}/{s.EMAIL_SVC}" in found
    assert f"{s.USERS}/{s.RELAY}" in found
    assert await t.missing(empty, "user_svc") == []
    assert await t.missing(empty, "email_svc") == []
    queue = found[s.WELCOME_EMAILS]
    assert (queue["retention"], queue["discard"], queue["max_msgs"]) == ("workqueue", "new", 100_000)
    consumer = found[f"{s.WELCOME_EMAILS}/{s.EMAIL_SVC}"]
    assert (consumer["max_deliver"], consumer["max_ack_pending"], consumer["ack_wait"]) == (-1, 200_000, 30 * 10**9)


async def test_again_changes_nothing(empty: Broker) -> None:
    """Idempotent, all of it and each service's part."""
    await provision(empty)
    before = await everything(empty)
    await provision(empty)
    await provision(empty, "user_svc")
    await provision(empty, "email_svc")
    assert await everything(empty) == before


@pytest.mark.parametrize("order", [("user_svc", "email_svc"), ("email_svc", "user_svc")])
async def test_either_service_may_be_first(empty: Broker, order: tuple[t.Service, t.Service]) -> None:
    """The result is the same; who is first makes what it needs and nothing else."""
    await provision(empty, order[0], queue_max_size=77 if order[0] == "user_svc" else None)
    assert await t.missing(empty, order[0]) == []
    await provision(empty, order[1], queue_max_size=77 if order[1] == "user_svc" else None)
    assert set(ALL) <= set(await everything(empty))
    assert (await config_of(empty, s.WELCOME_EMAILS))["max_msgs"] == 77
    assert (await config_of(empty, s.WELCOME_EMAILS, s.EMAIL_SVC))["max_ack_pending"] == 154


async def test_all_at_once(empty: Broker) -> None:
    """Four replicas of each start at the same moment: all of them succeed."""
    for _ in range(3):
        await asyncio.gather(
            *(provision(empty, "user_svc", queue_max_size=50) for _ in range(4)),
            *(provision(empty, "email_svc") for _ in range(4)),
            provision(empty, queue_max_size=50),
        )
        assert (await config_of(empty, s.WELCOME_EMAILS))["max_msgs"] == 50
        await clear(empty)


async def test_the_owner_changes_the_queue_live(empty: Broker) -> None:
    """QUEUE_MAX_SIZE up and down again, with messages in it; email_svc changes nothing back."""
    await provision(empty, "user_svc", queue_max_size=10)
    await empty.store(s.welcome_requested(f"{'a' * 26}.1"), b"x")
    for size in (500, 20):
        await provision(empty, "user_svc", queue_max_size=size)
        await provision(empty, "email_svc")
        assert (await config_of(empty, s.WELCOME_EMAILS))["max_msgs"] == size
        assert (await config_of(empty, s.WELCOME_EMAILS, s.EMAIL_SVC))["max_ack_pending"] == 2 * size
    assert await empty.last(s.WELCOME_EMAILS, s.WELCOME_REQUESTED) is not None


async def test_a_pause_survives_an_update(empty: Broker) -> None:
    """An open breaker is not closed by a restart with another QUEUE_MAX_SIZE."""
    await provision(empty, "user_svc", queue_max_size=10)
    call = f"CONSUMER.PAUSE.{s.WELCOME_EMAILS}.{s.EMAIL_SVC}"
    await empty.api(call, {"pause_until": "2199-01-01T00:00:00Z"})
    await provision(empty, "user_svc", queue_max_size=20)
    info = await empty.api(f"CONSUMER.INFO.{s.WELCOME_EMAILS}.{s.EMAIL_SVC}")
    assert info["paused"] is True
    assert info["config"]["max_ack_pending"] == 40


async def test_a_consumer_that_is_made_anew_while_it_is_deleted_can_be_paused(
    empty: Broker, nats_server: NatsServer
) -> None:
    """The broker would delete its files with those of the old one, and refuse every pause from then on."""
    consumer = f"{s.WELCOME_EMAILS}.{s.EMAIL_SVC}"
    await provision(empty)
    deleter = await connect(name="test", url=nats_server.url, on_closed=lambda reason: None)
    for _ in range(3):
        deleting = asyncio.create_task(deleter.api(f"CONSUMER.DELETE.{consumer}"))
        while await is_there(empty, consumer):
            pass
        await t.remake_queue_consumer(empty, 100_000)
        await deleting
        await empty.api(f"CONSUMER.PAUSE.{consumer}", {"pause_until": "2199-01-01T00:00:00Z"})
    await deleter.close()


async def test_an_unreadable_record_of_the_breaker_keeps_no_consumer_from_being_made(empty: Broker) -> None:
    """Or a guard that has just started, whose clock is the consumer's, could mend neither: no mail would move."""
    await provision(empty)
    await empty.store(s.BREAKER_KEY, b'{"kind": "control.breaker.v1"')
    await empty.api(f"CONSUMER.DELETE.{s.WELCOME_EMAILS}.{s.EMAIL_SVC}")
    await t.remake_queue_consumer(empty, 100_000)
    assert await t.missing(empty, "email_svc") == []


async def is_there(broker: Broker, consumer: str) -> bool:
    try:
        await broker.api(f"CONSUMER.INFO.{consumer}")
    except ApiError:
        return False
    return True


@pytest.mark.parametrize(
    ("stream", "wrong"),
    [
        (s.WELCOME_EMAILS, {"retention": "limits"}),
        (s.WELCOME_EMAILS, {"storage": "memory"}),
        (s.WELCOME_EMAILS, {"discard": "old"}),
        (s.WELCOME_EMAILS, {"max_age": 3600 * 10**9}),
        (s.WELCOME_EMAILS, {"subjects": ["email.welcome.requested.*"]}),
        (s.USERS, {"deny_delete": True}),
        (s.USERS, {"max_msgs_per_subject": 5}),
        (s.USERS, {"storage": "memory"}),
        (s.DELIVERIES, {"max_age": 3600 * 10**9}),
        (s.DELIVERIES, {"subjects": ["deliveries.>"]}),
        (s.DEAD_LETTERS, {"retention": "interest"}),
    ],
)
async def test_a_contradicting_stream_is_refused_and_untouched(
    empty: Broker, stream: str, wrong: dict[str, Any]
) -> None:
    """The text names stream, setting, what is there and what is needed; nothing was changed."""
    (design,) = [d for d in topology() if d.name == stream]
    config = {"name": stream, **design.fixed, **design.config, **wrong}
    await empty.api(f"STREAM.CREATE.{stream}", config)
    before = await config_of(empty, stream)
    with pytest.raises(BadStart) as caught:
        await provision(empty, design.owner, queue_max_size=7)
    (name,) = wrong
    for word in (stream, name, repr(before[name]), repr(design.fixed[name]), "Nothing was changed"):
        assert word in str(caught.value)
    assert await config_of(empty, stream) == before


async def test_a_contradicting_consumer_is_refused(empty: Broker) -> None:
    """A max_deliver would make mails disappear silently."""
    (queue,) = [d for d in topology() if d.name == s.WELCOME_EMAILS]
    await empty.api(f"STREAM.CREATE.{queue.name}", {"name": queue.name, **queue.fixed, **queue.config})
    config = {"durable_name": s.EMAIL_SVC, "name": s.EMAIL_SVC, **queue.consumers[0].config, "max_deliver": 5}
    call = f"CONSUMER.CREATE.{queue.name}.{s.EMAIL_SVC}"
    await empty.api(call, {"stream_name": queue.name, "action": "create", "config": config})
    before = await config_of(empty, queue.name, s.EMAIL_SVC)
    with pytest.raises(BadStart, match=r"max_deliver=5, MailFlow needs -1"):
        await provision(empty, "user_svc")
    assert await config_of(empty, queue.name, s.EMAIL_SVC) == before


async def test_verify_only_checks(empty: Broker) -> None:
    """Nothing is created or changed; what is missing is named, with what to do."""
    with pytest.raises(BadStart, match=r"stream KV_USERS is missing: run `python -m contracts.topology`"):
        await provision(empty, "user_svc", mode="verify")
    assert await everything(empty) == {}
    await provision(empty, queue_max_size=10)
    before = await everything(empty)
    await provision(empty, "user_svc", mode="verify", queue_max_size=999)
    await provision(empty, "email_svc", mode="verify")
    assert await everything(empty) == before
    await empty.api(f"CONSUMER.DELETE.{s.USERS}.{s.RELAY}")
    with pytest.raises(BadStart, match=r"consumer welcome-relay of KV_USERS is missing"):
        await provision(empty, "user_svc", mode="verify")


async def test_queue_consumer_is_made_anew_at_the_start_in_either_mode(empty: Broker) -> None:
    """Else whoever starts while it is gone would end with "cannot start", and with all of them nobody would make it."""
    await provision(empty, queue_max_size=10)
    before = await everything(empty)
    await empty.api(f"CONSUMER.DELETE.{s.WELCOME_EMAILS}.{s.EMAIL_SVC}")
    with pytest.raises(BadStart, match=r"consumer email-svc of WELCOME_EMAILS is missing"):
        await provision(empty, mode="verify")  # the one-shot command only looks
    with pytest.raises(Unavailable, match=r"user_svc makes it anew"):
        await provision(empty, "email_svc", mode="verify")  # tried again until it is there
    await provision(empty, "user_svc", mode="verify", queue_max_size=10)
    await provision(empty, "email_svc", mode="verify")
    assert await everything(empty) == before


async def test_missing_names_what_is_gone(empty: Broker) -> None:
    """Streams, and consumers of streams that are there."""
    await provision(empty)
    await empty.api(f"STREAM.DELETE.{s.DELIVERIES}")
    await empty.api(f"CONSUMER.DELETE.{s.WELCOME_EMAILS}.{s.EMAIL_SVC}")
    for service in ("user_svc", "email_svc"):
        assert await t.missing(empty, service) == ["consumer email-svc of WELCOME_EMAILS", "stream DELIVERIES"]


# --- counters ------------------------------------------------------------------------------------------------------


async def pending(broker: Broker, stream: str, consumer: str) -> int:
    info = await broker.api(f"CONSUMER.INFO.{stream}.{consumer}")
    count: int = info["num_pending"]
    return count


async def test_counters_are_exact(empty: Broker) -> None:
    """Through stores, refused stores and deletes; each counts its own state."""
    await provision(empty)
    events = [f"{'a' * 26}.{n}" for n in range(1, 61)]
    for n, event in enumerate(events):
        state = ("sent", "dead", "expired")[n % 3]
        await empty.store(s.outcome(event, state), b"{}", expect_last=0, expect_on=s.outcome(event, "*"))
        await empty.store(s.attempts(event), b"{}")
    for event in events[:6]:
        found = await empty.last(s.DELIVERIES, s.outcome(event, "*"))
        assert found is not None
        await empty.delete(s.DELIVERIES, found.seq)

    async def counts() -> list[int]:
        return [await pending(empty, s.DELIVERIES, f"count-{x}") for x in ("sent", "dead", "expired", "erased")]

    async def exact() -> bool:
        return await counts() == [18, 18, 18, 0]

    await eventually(exact, within_s=2)


async def test_a_stray_pull_does_not_falsify_a_counter(empty: Broker) -> None:
    """It is paused until far away, and gets nothing."""
    await provision(empty)
    for n in range(1, 11):
        await empty.store(s.user_key("a" * 24 + f"{n + 20}"), b"{}")
    inbox = empty.client.new_inbox()
    got = await empty.client.subscribe(inbox)
    await empty.client.publish(
        f"$JS.API.CONSUMER.MSG.NEXT.{s.USERS}.count-users", b'{"batch":10,"no_wait":true}', reply=inbox
    )
    answer = await got.next_msg(timeout=2)
    assert (answer.headers or {}).get("Status") == "404"
    assert await pending(empty, s.USERS, "count-users") == 10
    for stream in topology():
        for consumer in stream.consumers:
            if consumer.name.startswith("count-"):
                assert (await empty.api(f"CONSUMER.INFO.{stream.name}.{consumer.name}"))["paused"] is True


# --- replicas ------------------------------------------------------------------------------------------------------


async def test_replicas_beyond_a_single_broker_are_refused(empty: Broker) -> None:
    """With the broker's own words."""
    with pytest.raises(BadStart, match=r"stream KV_USERS cannot be created: .*replicas"):
        await provision(empty, "user_svc", replicas=3)


async def test_replicas_are_raised_and_never_lowered(tmp_path: Path) -> None:
    """On three brokers: 1 → 3 by the owner alone; a service that says 1 later changes nothing."""
    from contracts.runtime.broker import connect

    async with cluster_of_three(tmp_path) as nodes:
        broker = await connect(name="t", url=",".join(n.url for n in nodes), on_closed=lambda reason: None)
        try:
            await t.until_answered(lambda: provision(broker, queue_max_size=100))
            await t.until_answered(lambda: provision(broker, "email_svc", replicas=3))
            assert (await config_of(broker, s.WELCOME_EMAILS))["num_replicas"] == 1
            assert (await config_of(broker, s.DELIVERIES))["num_replicas"] == 3
            await t.until_answered(lambda: provision(broker, queue_max_size=100, replicas=3))
            assert {(await config_of(broker, name))["num_replicas"] for name in ALL} == {3}
            await t.until_answered(lambda: provision(broker, queue_max_size=100, replicas=1))
            assert {(await config_of(broker, name))["num_replicas"] for name in ALL} == {3}
        finally:
            await broker.close()


# --- fsync ---------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def lax_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[NatsServer]:
    """A broker that syncs once a second."""
    server = NatsServer(tmp_path_factory.mktemp("lax"))
    server.config.write_text(server.config.read_text().replace("sync_interval: always", "sync_interval: 1s"))
    with stopping(server):
        server.start()
        asyncio.run(server.ready())
        yield server


async def test_a_broker_that_syncs_later_is_refused(lax_server: NatsServer) -> None:
    """Under `always`; `interval` accepts it, and without a monitoring port nobody can know."""
    with pytest.raises(BadStart, match=r"does not fsync .* sync_interval: always.*NATS_DURABILITY=interval"):
        await t.check_durability(lax_server.monitoring_url, "always")
    await t.check_durability(lax_server.monitoring_url, "interval")
    await t.check_durability(None, "always")


async def test_a_broker_that_syncs_is_accepted(nats_server: NatsServer) -> None:
    """A slash at the end of the address does no harm."""
    await t.check_durability(nats_server.monitoring_url, "always")
    await t.check_durability(nats_server.monitoring_url + "/", "always")


async def test_a_monitoring_port_that_is_none_is_named() -> None:
    """Something else answers there: no start."""

    class NotFound(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_error(404)

        def log_message(self, format: str, *args: Any) -> None:  # noqa: A002
            pass

    with http.server.HTTPServer(("127.0.0.1", 0), NotFound) as other:
        threading.Thread(target=other.serve_forever, daemon=True).start()
        url = f"http://127.0.0.1:{other.server_port}"
        with pytest.raises(BadStart, match=r"NATS_MONITORING_URL=http://127.0.0.1:\d+: cannot ask how"):
            await t.check_durability(url, "always")
        other.shutdown()


async def test_a_monitoring_port_that_comes_late_is_waited_for(tmp_path: Path) -> None:
    """A broker that is just starting is no reason to give up for good."""
    server = NatsServer(tmp_path)
    asking = asyncio.create_task(t.check_durability(server.monitoring_url, "always"))
    with stopping(server):
        done, _ = await asyncio.wait({asking}, timeout=0.3)
        assert not done
        server.start()
        await asyncio.wait_for(asking, 5)


# --- the command ---------------------------------------------------------------------------------------------------


async def command(folder: Path, name: str, **env: str) -> tuple[int, str]:
    process = Process(name, [sys.executable, "-m", "contracts.topology"], folder, {"LOG_FORMAT": "json"} | env)
    with stopping(process):
        process.start()
        return await process.exit_status(), process.text()


async def test_the_command_makes_all_of_it(empty: Broker, nats_server: NatsServer, tmp_path: Path) -> None:
    """Exit 0, twice; then the services find everything in verify mode."""
    env = {"NATS_URL": nats_server.url, "NATS_MONITORING_URL": nats_server.monitoring_url, "QUEUE_MAX_SIZE": "33"}
    for run in range(2):
        code, text = await command(tmp_path, f"run{run}", **env)
        assert code == 0, text
        assert '"topology.ready"' in text
    await provision(empty, "user_svc", mode="verify")
    await provision(empty, "email_svc", mode="verify")
    assert (await config_of(empty, s.WELCOME_EMAILS))["max_msgs"] == 33


async def test_the_command_refuses_a_bad_environment(tmp_path: Path) -> None:
    """Exit 78, one line a variable, no traceback."""
    code, text = await command(tmp_path, "bad", STREAM_REPLICAS="9", PROVISION="maybe", NATS_PASSWORD="sesame")
    assert code == 78
    assert "topology cannot start:" in text
    assert "STREAM_REPLICAS='9': Expected `int` <= 5" in text
    assert "PROVISION='maybe': expected one of auto, verify" in text
    assert "Traceback" not in text
    assert "sesame" not in text


async def test_the_command_refuses_a_lax_broker(lax_server: NatsServer, tmp_path: Path) -> None:
    """Exit 78 with what to change; with NATS_DURABILITY=interval it does its work."""
    env = {"NATS_URL": lax_server.url, "NATS_MONITORING_URL": lax_server.monitoring_url}
    code, text = await command(tmp_path, "lax", **env)
    assert code == 78
    assert "sync_interval: always" in text
    assert "Traceback" not in text
    code, text = await command(tmp_path, "interval", **env, NATS_DURABILITY="interval")
    assert code == 0, text


async def test_the_command_in_verify_mode_says_what_is_missing(
    empty: Broker, nats_server: NatsServer, tmp_path: Path
) -> None:
    """Exit 78, nothing made."""
    code, text = await command(tmp_path, "verify", NATS_URL=nats_server.url, PROVISION="verify")
    assert code == 78
    assert "KV_USERS is missing" in text
    assert await everything(empty) == {}


async def test_the_command_can_be_stopped_while_it_waits(tmp_path: Path) -> None:
    """No broker: SIGTERM ends it, and it does not claim to have done its work."""
    process = Process(
        "alone",
        [sys.executable, "-m", "contracts.topology"],
        tmp_path,
        {"NATS_URL": f"nats://127.0.0.1:{free_port()}", "LOG_FORMAT": "json"},
    )
    with stopping(process):
        process.start()
        await eventually(lambda: "broker.connecting" in process.text())
        assert await process.terminate(within_s=3) == 1, process.text()
