"""The shipped Prometheus configuration over the whole system: each alert fires from a real fault, and no expression of
rules or dashboards is empty.

Time runs 90 times as fast in the rules (support.monitoring.shortened): an hour there is 40 s here, ages that
alerts compare included. What the services show is real, and so are the faults. One system and one Prometheus for all.
"""

import asyncio
import re
import subprocess
import sys
import time
from pathlib import Path

import httpx

from contracts import subjects as s
from contracts.runtime.broker import Stored
from tests.support.load import broker_of, client_of, pending, register_whatever_happens
from tests.support.monitoring import ALERTS, RECORDED, Prometheus, expressions
from tests.support.processes import ROOT, System, stopping
from tests.support.smtp_server import Reply, Reset, SmtpServer
from tests.support.waiting import eventually

FACTOR = 90
SICK = Reply(421, "4.3.0 out of order")
NOT_HERE = {"gnatsd": "prometheus-nats-exporter", "jetstream": "prometheus-nats-exporter", "http_server": "KrakenD"}
"""Prefixes of metrics of what cannot be installed in CI, so nobody exposes them here."""


class Scene:
    """The system under fire, and who watches it."""

    def __init__(self, system: System, smtp: SmtpServer, prometheus: Prometheus, client: httpx.AsyncClient) -> None:
        self.system = system
        self.smtp = smtp
        self.prometheus = prometheus
        self.client = client
        self.users = 0
        self.run_began = self.began = time.monotonic()
        """When the first fault began, and that of now."""
        self.fired: set[str] = set()

    async def register(self, n: int) -> list[str]:
        """So many users more; their ids."""
        first, self.users = self.users, self.users + n
        return await asyncio.gather(*(register_whatever_happens(self.client, i) for i in range(first, self.users)))

    async def fires(self, *names: str, within_s: float = 60, before: bool = False) -> None:
        """Waits until each of these alerts has fired since the fault began; with `before`, or before it."""
        since = self.run_began if before else self.began

        async def look() -> bool:
            seen.append(await self.prometheus.fired(self.client, within_s=time.monotonic() - since))
            return set(names) <= seen[-1]

        seen: list[set[str]] = []
        self.fired |= set(names)
        try:
            await eventually(look, within_s=within_s)
        except AssertionError as exc:
            raise AssertionError(f"not fired within {within_s} s: {set(names) - seen[-1]}; so far {seen[-1]}") from exc

    async def operate(self, action: str) -> None:
        """The breaker, by hand."""
        answer = await self.client.post(f"{self.system.user.admin}/circuit-breaker/{action}", json={})
        assert answer.status_code == 200, answer.text

    async def breaker(self, state: str) -> None:
        """Waits for a state of the breaker."""

        async def look() -> bool:
            found = (await self.client.get(f"{self.system.user.admin}/circuit-breaker")).json()
            return bool(found["state"] == state)

        await eventually(look, within_s=30, what=f"breaker {state}")


async def refused_for_good(scene: Scene) -> None:
    """Addresses that do not exist."""
    scene.smtp.on("rcpt", Reply(550, "5.1.1 no such user"), times=8)
    await scene.register(8)
    await scene.fires("DeadLettersGrowing")


async def no_reply_to_the_dot(scene: Scene) -> None:
    """The server takes mails and resets. They come again after ten minutes, so they are overdue at the end."""
    scene.smtp.on("dot", Reset(accept=True), times=5)
    await scene.register(6)
    await scene.fires("UnknownOutcomes")
    await scene.register(5)  # to probe with
    await scene.breaker("closed")


async def stranger_in_the_queue(scene: Scene) -> None:
    """Somebody else writes into the queue."""
    async with broker_of(scene.system) as broker:
        await broker.store(s.welcome_requested("stranger.1"), b"what is this?")
    await scene.fires("Quarantined")


async def broker_dies(scene: Scene) -> None:
    """kill -9 of the broker, while people register."""

    async def refused() -> None:
        while True:
            answer = await scene.client.post("/v1/users", json={"email": "nobody@example.com", "name": "Nobody"})
            assert answer.status_code == 503, answer.text
            await asyncio.sleep(0.1)  # the rate of a few people

    scene.system.nats.kill()
    people = [asyncio.create_task(refused()) for _ in range(4)]
    try:
        await scene.fires("BrokerLost", "BooksUnread", "ApiErrorBudgetFast")
        assert not any(task.done() for task in people), [task.exception() for task in people if task.done()]
    finally:
        for task in people:
            task.cancel()
        await asyncio.gather(*people, return_exceptions=True)
        scene.system.nats.start()
        await scene.system.nats.ready()
    await scene.system.user.ready()
    await scene.system.email.ready()


async def we_are_refused(scene: Scene) -> None:
    """The server does not know our sender."""
    scene.smtp.on("mail", Reply(550, "5.1.8 sender refused"))
    await scene.register(1)
    await scene.fires("MailServerRefusesUs")
    await scene.breaker("open")
    scene.smtp.on("mail", None)
    await scene.operate("close")


async def too_fast_for_them(scene: Scene) -> None:
    """Throttled all the time."""
    scene.smtp.on("mail", Reply(454, "4.7.0 Throttling failure: Maximum sending rate exceeded."))
    await scene.register(5)
    await scene.fires("Throttled")
    scene.smtp.on("mail", None)


async def breaks_again_and_again(scene: Scene) -> None:
    """The path carries a few mails, then breaks."""

    async def breaks() -> None:
        while True:
            scene.smtp.on("mail", SICK)
            await scene.register(6)
            await scene.breaker("open")
            scene.smtp.on("mail", None)
            await scene.breaker("closed")

    breaking = asyncio.create_task(breaks())
    try:
        await scene.fires("BreakerFlapping")
    finally:
        breaking.cancel()
        await asyncio.gather(breaking, return_exceptions=True)
        scene.smtp.on("mail", None)
    await scene.register(4)  # to probe with
    await scene.breaker("closed")


async def blocked_by_policy(scene: Scene) -> None:
    """5.7.1 to everybody."""
    scene.smtp.on("rcpt", Reply(550, "5.7.1 your network is blocked"))
    await scene.register(30)
    await scene.fires("PolicySurge")
    scene.smtp.on("rcpt", None)
    await scene.breaker("closed")


async def mail_server_is_gone(scene: Scene) -> None:
    """Connections are refused, while more people register than the queue has room for."""
    await scene.smtp.refuse()
    await scene.register(120)
    await scene.fires("BreakerOpen", "MailWaits", "OutboxBehind")
    await scene.smtp.listen()
    await scene.breaker("closed")


async def queue_loses_events(scene: Scene) -> None:
    """Ten entries are deleted from the queue; the reconciler finds out after RECONCILE_AFTER."""
    async with broker_of(scene.system) as broker:

        async def room() -> bool:
            outbox, queue = await pending(broker)
            return outbox == 0 and queue < 60

        async def found(user_id: str) -> Stored | None:
            return await broker.last(s.WELCOME_EMAILS, s.welcome_requested(f"{user_id}.*"))

        await eventually(room, within_s=60, what="room in the queue")
        await scene.operate("open")
        users = await scene.register(10)
        for user in users:
            entry = await eventually(lambda user=user: found(user), within_s=20, what="the entry")
            assert await broker.delete(s.WELCOME_EMAILS, entry.seq)
        await scene.fires("LedgerGap", "EventsLost")
        for user in users:
            await eventually(lambda user=user: found(user), within_s=20, what="the entry, published again")
    await scene.operate("close")


async def bucket_loses_users(scene: Scene) -> None:
    """Two users are deleted from the bucket though their mails went out, as a damaged disk does."""
    accepted = len(scene.smtp.accepted)
    async with broker_of(scene.system) as broker:
        users = await scene.register(2)
        await eventually(lambda: len(scene.smtp.accepted) == accepted + 2)
        for user in users:
            key = await broker.last(s.USERS, s.user_key(user))
            assert key is not None
            assert await broker.delete(s.USERS, key.seq)
        await scene.fires("UsersLost")


async def stranger_in_the_outbox(scene: Scene) -> None:
    """Somebody else writes into the bucket."""
    async with broker_of(scene.system) as broker:
        seq = await broker.store(s.user_key("stranger"), b"what is this?")
        await scene.fires("RelayUndecodable")
        await broker.delete(s.USERS, seq)


async def user_svc_dies(scene: Scene) -> None:
    """kill -9 of the only user_svc while the path is sick: workers go on alone."""
    scene.smtp.on("mail", SICK)
    await scene.register(6)
    await scene.breaker("open")
    scene.system.user.kill()
    await scene.fires("ServiceDown", "TargetDown", "WorkersAlone")
    scene.smtp.on("mail", None)


async def deadline_passes(scene: Scene) -> None:
    """A mailbox that is full for longer than the deadline, which is short from now on."""
    scene.system.user.start(EMAIL_DEADLINE="2s")
    await scene.system.user.ready()
    scene.smtp.on("rcpt", Reply(452, "4.2.2 mailbox full"))
    await scene.register(3)
    await scene.fires("MailsExpired")
    scene.smtp.on("rcpt", None)


async def queue_is_deleted(scene: Scene) -> None:
    """The stream itself is gone, which only the provisioner may make again: the relay gives back (chaos/test_queue)."""
    # Of long ago: the outage of the broker, and the mails whose dot was not answered, which go with the queue now.
    await scene.fires("ApiErrorBudgetSlow", "ApiErrorBudgetTicket", "MailOverdue", within_s=120, before=True)
    async with broker_of(scene.system) as broker:
        await broker.api(f"STREAM.DELETE.{s.WELCOME_EMAILS}")
    await scene.register(10)
    await scene.fires("RelayGivesBack")


FAULTS = (
    bucket_loses_users,
    refused_for_good,
    no_reply_to_the_dot,
    stranger_in_the_queue,
    broker_dies,
    we_are_refused,
    breaks_again_and_again,
    blocked_by_policy,
    mail_server_is_gone,
    queue_loses_events,
    too_fast_for_them,
    stranger_in_the_outbox,
    user_svc_dies,
    deadline_passes,
    queue_is_deleted,
)


async def test_each_alert_fires_from_a_real_fault(system: System, smtp: SmtpServer, tmp_path: Path) -> None:
    """All of them, none before the first fault; then no expression of rules and dashboards is without data."""
    targets = {
        "user_svc": [f"127.0.0.1:{system.user.metrics_port}"],
        "email_svc": [f"127.0.0.1:{system.email.metrics_port}"],
    }
    prometheus = Prometheus(tmp_path / "prometheus", targets, factor=FACTOR)
    system.set_env(
        CIRCUIT_BREAKER_TIMEOUT="500ms",
        MESSAGE_RETRY_DELAYS="10m",
        QUEUE_MAX_SIZE="100",
        RATE_LIMIT_RPM="6000",
        RATE_LIMIT_BURST="100",
        RECONCILE_AFTER="10s",
        HTTP_REQUEST_TIMEOUT="500ms",
        CLIENT_EMAIL_SERVICE_RETRY_ATTEMPTS="2",
        CLIENT_EMAIL_SERVICE_RETRY_DELAY="50ms",
    )
    await system.start()
    with stopping(prometheus):
        prometheus.start()
        await prometheus.ready()
        began = time.time()
        async with client_of(system) as client:
            scene = Scene(system, smtp, prometheus, client)
            await eventually(lambda: _all_up(scene), within_s=20)
            await scene.register(10)
            await eventually(lambda: len(smtp.accepted) == 10)
            await eventually(lambda: _calm(scene), within_s=30)
            scene.run_began = time.monotonic()
            for fault in FAULTS:
                scene.began = time.monotonic()
                await fault(scene)
                print(f"{fault.__name__}: {time.monotonic() - scene.began:.1f} s")  # noqa: T201 - of use with -s
            await scene.fires("Watchdog")
            assert scene.fired == ALERTS.keys()
            assert await prometheus.query(client, "sum(prometheus_rule_evaluation_failures_total) > 0") == []
            await _nothing_is_empty(scene, began)
            urls = [f"{service.admin}/metrics" for service in (system.user, system.email)]
            command = [sys.executable, ROOT / "deploy/local/figures.py", *urls]
            shown = subprocess.run(command, check=True, capture_output=True, text=True).stdout
            assert re.search(r"state +(closed|open|half-open)\n", shown), shown
            assert not re.search(r" -$", shown, re.MULTILINE), shown


async def _all_up(scene: Scene) -> bool:
    found = await scene.prometheus.query(scene.client, "sum(up)")
    return bool(found) and float(found[0]["value"][1]) == 3


async def _calm(scene: Scene) -> bool:
    """For two seconds nothing fires but Watchdog. Targets are found after 5 s: before, the services seem to be down."""
    return await scene.prometheus.fired(scene.client, within_s=2) == {"Watchdog"}


async def _nothing_is_empty(scene: Scene, began: float) -> None:
    """Recorded series and the dashboards' queries, over the whole run, with the variables at All."""
    values = {"$job": ".+", "$instance": ".+", "$__rate_interval": "5s", "$__range": "5m"}
    empty = []
    for where, expr in expressions():
        if where in ALERTS or any(re.search(rf"\b{prefix}_", expr) for prefix in NOT_HERE):
            continue
        asked = where if where in RECORDED else expr
        for variable, value in values.items():
            asked = asked.replace(variable, value)
        if not await scene.prometheus.ever(scene.client, asked, start=began, end=time.time()):
            empty.append((where, asked))
    assert empty == []
