"""A delivery that is cancelled, at any moment: given back or finished, never doubled."""

import asyncio
import contextlib
import random
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta

import pytest

from contracts import control as c
from contracts import messages as m
from contracts import subjects as s
from contracts import topology
from contracts.runtime.broker import Broker, Conflict, Unavailable
from contracts.runtime.clock import BrokerClock
from contracts.runtime.pull import Message, PullLoop
from email_svc.decision import Rules
from email_svc.delivery import Delivery
from email_svc.downtime import Downtime
from email_svc.leave import Leave, Path
from email_svc.ledger import Ledger, Row
from email_svc.limiter import Limit, Limiter
from email_svc.message import Composer
from email_svc.policies.downtime import Schedule
from email_svc.smtp import SmtpConnection
from email_svc.smtp_pool import SmtpPool
from email_svc.smtp_url import parse_smtp_url
from tests.support.load import address, count, doubled
from tests.support.smtp_server import Late, Reply, SmtpServer, Transaction
from tests.support.waiting import eventually

MAILS = 300
COMPOSER = Composer(sender="MailFlow <welcome@mailflow.local>")


def event(n: int) -> m.WelcomeEmailRequested:
    now, user_id = datetime.now(UTC), f"{'a' * 21}{n:05}".translate(str.maketrans("0189", "bcde"))
    return m.WelcomeEmailRequested(
        event_id=f"{user_id}.1{n}",
        user_id=user_id,
        email=address(n),
        name=f"User {n}",
        why=m.Why.REGISTRATION,
        requested_at=now,
        expires_at=now + timedelta(hours=1),
    )


@contextlib.asynccontextmanager
async def delivery_of(broker: Broker, smtp: SmtpServer) -> AsyncIterator[tuple[Delivery, SmtpPool, Path]]:
    """The real thing with a closed breaker and no limit."""
    await topology.provision(broker, service="email_svc", mode="auto", replicas=1)
    record = c.BREAKER.encode(c.BreakerRecord(state=c.Breaker.CLOSED, epoch=1, since=datetime.now(UTC)))
    with contextlib.suppress(Conflict):
        await broker.store(s.BREAKER_KEY, record, expect_last=0)
    pool = SmtpPool(parse_smtp_url(f"smtp://127.0.0.1:{smtp.port}"), size=16)
    clock = BrokerClock()
    path = Path(broker, clock, attempt_s=5)
    delivery = Delivery(
        ledger=Ledger(broker),
        composer=COMPOSER,
        pool=pool,
        limiter=Limiter(broker, clock, Limit(rpm=0)),
        path=path,
        downtime=Downtime(broker, clock, Schedule(enabled=False)),
        clock=clock,
        rules=Rules(delays_s=(0.05,)),
    )
    following = asyncio.create_task(path.run())
    await eventually(lambda: path.free)
    yield delivery, pool, path
    following.cancel()
    await pool.close()


class Overtaken(Ledger):
    """The broker is away at first, and meanwhile another worker tries the mail."""

    overtaken = False

    async def end(self, outcome: m.Outcome, row: Row | None) -> m.Outcome:
        if self.overtaken:
            return await super().end(outcome, row)
        self.overtaken = True
        await self.pend(m.Attempts(event_id=outcome.event_id, history=m.History(), due_at=outcome.at), None)
        raise Unavailable("away", sent=False)


async def test_outcome_that_took_long_leaves_no_attempts_of_another_worker(broker: Broker) -> None:
    """They would stay beside it for ever: whoever has the message next finds it sent."""
    await topology.provision(broker, service="email_svc", mode="auto", replicas=1)
    ledger, sent = Overtaken(broker), event(99_999)
    outcome = m.Outcome(
        event_id=sent.event_id, state=m.State.SENT, at=datetime.now(UTC), requested_at=sent.requested_at
    )
    assert await ledger.insist(outcome, None) == outcome
    assert ledger.overtaken
    assert await broker.last(s.DELIVERIES, s.attempts(sent.event_id)) is None
    assert await broker.last(s.DELIVERIES, s.outcome(sent.event_id, "sent")) is not None


async def test_reply_and_cancellation_in_the_same_moment(broker: Broker, smtp: SmtpServer) -> None:
    """The 250 is in and the task is cancelled before it could hear of it: it is a mail that was sent."""
    async with delivery_of(broker, smtp) as (delivery, pool, _):
        connection = await pool.acquire()
        assert isinstance(connection, SmtpConnection)
        mail = COMPOSER.compose(
            event_id="a.1", email=address(1), name="Ann", requested_at=datetime.now(UTC), now=datetime.now(UTC)
        )

        class Valid:
            valid = True

        sending = asyncio.ensure_future(delivery._send_on(connection, mail, Valid()))  # type: ignore[arg-type]
        while not connection.mails:  # noqa: ASYNC110 - this very turn of the loop is meant
            await asyncio.sleep(0)
        sending.cancel()
        assert (await sending).code == 250


@pytest.mark.parametrize("grace_s", [0.0, 0.02])
async def test_worker_that_is_stopped_again_and_again_doubles_nothing(
    broker: Broker, smtp: SmtpServer, grace_s: float
) -> None:
    """Stopped at some 100 random moments; the next worker has everything at once, and each mail goes out once."""
    rng = random.Random(grace_s)
    await topology.provision(broker, service="email_svc", mode="auto", replicas=1)
    before = await count(broker, "sent")
    for n in range(MAILS):
        one = event(n + int(grace_s * 100_000))
        await broker.store(s.welcome_requested(one.event_id), m.WELCOME_EMAIL_REQUESTED.encode(one))

    refused: set[str] = set()

    def sometimes_not_now(transaction: Transaction) -> Reply | None:
        if rng.random() < 0.1 and transaction.rcpt not in refused:
            refused.add(transaction.rcpt)
            return Reply(451, "4.7.1 not now")
        return None

    smtp.on("rcpt", sometimes_not_now)
    smtp.on("dot", lambda _: Late(rng.uniform(0, 0.01)))
    stops = 0

    async def queue_is_empty() -> bool:
        nonlocal stops
        async with delivery_of(broker, smtp) as (delivery, _, path):

            async def handle(message: Message) -> None:
                await delivery.handle(message, Leave(kind="free", epoch=path.epoch))

            loop = PullLoop(broker, stream=s.WELCOME_EMAILS, durable=s.EMAIL_SVC, handle=handle, slots=16)
            async with loop:
                await asyncio.sleep(rng.uniform(0, 0.05))  # the random moment of the blow
                await loop.stop(grace_s=grace_s)
        stops += 1
        info = await broker.api(f"STREAM.INFO.{s.WELCOME_EMAILS}")
        return bool(info["state"]["messages"] == 0)

    await eventually(queue_is_empty, within_s=25)
    first = int(grace_s * 100_000)
    assert doubled(smtp, range(first, first + MAILS)) == {}
    assert await count(broker, "sent") - before == MAILS
    assert await broker.subjects(s.DELIVERIES, s.ATTEMPTS) == []
    assert stops > 10
