"""The breaker's guards and workers on a real broker, and what the record and the pause must be meanwhile."""

import asyncio
import contextlib
from datetime import UTC, datetime, timedelta
from typing import Any, Literal

import msgspec
from nats.aio.msg import Msg

from contracts import control as c
from contracts import subjects as s
from contracts import topology
from contracts.control import Breaker, BreakerRecord
from contracts.runtime.broker import NO_CONSUMER, ApiError, Unavailable, connect
from contracts.runtime.lifecycle import cancelled
from tests.support.breaker_laws import OPERATOR, Heard, Watch, wanted_pause
from tests.support.machines import consumer_deleted
from tests.support.waiting import eventually
from user_svc.breaker import Rules
from user_svc.breaker_guard import Guard

SETTLED_WITHIN_S = 20.0
"""A period of the guards and the end of a pause take half a second; a busy machine may take its time."""
QUEUE_MAX_SIZE = 100_000
CONSUMER = f"{s.WELCOME_EMAILS}.{s.EMAIL_SVC}"
How = Literal["ok", "failed", "unused"]


class Replica:
    """One user_svc, as far as the breaker goes."""

    def __init__(self) -> None:
        self.heard: dict[int, Heard] = {}
        """By epoch: what it was told."""

    async def start(self, url: str, rules: Rules) -> None:
        broker = self.broker = await connect(name="user_svc", url=url, on_closed=lambda reason: None)
        self.guard = Guard(broker, rules, lambda: topology.remake_queue_consumer(broker, QUEUE_MAX_SIZE))
        await self.guard.start()
        self.running = asyncio.create_task(self.guard.run())

    async def die(self) -> None:
        """In the middle of whatever it does."""
        for task in [self.running, *self.guard._tasks]:
            await cancelled(task)
        await self.broker.close()

    async def up_to_date(self) -> None:
        """All that was said to it has been dealt with."""
        await self.broker.client.flush(timeout=20)
        await eventually(lambda: not self.guard._tasks, within_s=SETTLED_WITHIN_S)


class SimulatedWorker:
    """Asks and tells; one permit at a time."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.nonce = 1
        self.epoch = 0
        self.permit: tuple[int, int] | None = None
        """(epoch, nonce)."""


class Guards:
    """Any number of replicas. `record` is what the breaker's record was when it was last looked at."""

    def __init__(self, url: str, rules: Rules) -> None:
        self.url = url
        self.rules = rules
        self.replicas: list[Replica] = []
        self.watch = Watch(rules.half_open_permits, rules.success_threshold)
        self.record: BreakerRecord
        self.highest_known = 0
        """Epochs up to this one may have been heard of before, in a record that is gone."""

    async def begin(self) -> None:
        """Everything new: consumer, record, two replicas."""
        self.bus = await connect(name="test", url=self.url, on_closed=lambda reason: None)
        await topology.provision(self.bus, service="user_svc", mode="auto", replicas=1, queue_max_size=QUEUE_MAX_SIZE)
        await self.bus.purge(s.CONTROL, s.BREAKER_KEY)
        await self.bus.api(f"STREAM.PURGE.{s.WELCOME_EMAILS}")
        await self.delete_consumer()
        await topology.remake_queue_consumer(self.bus, QUEUE_MAX_SIZE)
        await self.bus.client.subscribe(s.changed(s.BREAKER_KEY), cb=self._changed)
        await self.bus.client.flush()
        for _ in range(2):
            await self.start_replica()
        self.record = await eventually(self.read)

    async def close(self) -> None:
        for replica in self.replicas:
            await replica.die()
        await self.bus.close()

    async def start_replica(self) -> None:
        replica = Replica()
        await replica.start(self.url, self.rules)
        self.replicas.append(replica)

    async def _changed(self, raw: Msg) -> None:
        headers = raw.headers or {}
        self.watch.heard(int(headers["Nats-Sequence"]), datetime.fromisoformat(headers["Nats-Time-Stamp"]), raw.data)

    async def read(self) -> BreakerRecord | None:
        """The record; None: there is none, or what is there is none."""
        stored = await self.bus.last(s.CONTROL, s.BREAKER_KEY)
        with contextlib.suppress(msgspec.DecodeError):
            return None if stored is None else c.BREAKER.decode(stored.data)
        return None

    async def delete_consumer(self) -> None:
        await consumer_deleted(self.bus, CONSUMER)

    async def consumer(self) -> dict[str, Any] | None:
        """What the broker says of the queue's consumer; None: there is none."""
        try:
            info: dict[str, Any] = await self.bus.api(f"CONSUMER.INFO.{CONSUMER}")
        except ApiError as exc:
            if exc.err_code != NO_CONSUMER:
                raise
            return None
        return info

    # --- what must be ------------------------------------------------------------------------------------------------

    async def agree(self, *moves: Breaker | None) -> None:
        """The record is as before (None), or one change brought it to one of these states; an open time may be over."""
        for replica in self.replicas:
            await replica.up_to_date()
        await self.bus.client.flush(timeout=20)
        before, now = self.record, await self.read()
        allowed = {
            (state, epoch) if move is None else (move, epoch + 1)
            for state, epoch in _or_half_open({(before.state, before.epoch)})
            for move in moves or (None,)
        }
        assert now is not None
        assert (now.state, now.epoch) in _or_half_open(allowed), f"{before} became {now}, allowed was {allowed}"
        assert not self.watch.broken, self.watch.broken
        self.record = now

    async def settled(self) -> None:
        """The broker shows what the record wants, and every replica has seen both."""

        async def look() -> bool:
            nonlocal seen
            record, consumer = await self.read(), await self.consumer()
            seen = record, consumer, [(replica.guard.record, replica.guard.shown) for replica in self.replicas]
            if record is None or consumer is None:
                return False
            wanted, shown = wanted_pause(record), None
            if consumer.get("paused"):
                shown = msgspec.convert(consumer["config"]["pause_until"], datetime)
            return _same(wanted, shown) and all(
                replica.guard.record == record
                and replica.guard.shown is not None
                and _same(wanted, replica.guard.shown.paused_until)
                for replica in self.replicas
            )

        seen: Any = None
        if self.replicas:
            try:
                await eventually(look, within_s=SETTLED_WITHIN_S)
            except AssertionError as exc:
                raise AssertionError(f"the guards do not settle: {seen}") from exc
        await self.agree()

    # --- what workers say --------------------------------------------------------------------------------------------

    async def answer(self, subject: str, data: bytes) -> bytes:
        """Said until somebody answers, as workers do; the same message is the same permit."""

        async def told() -> bytes:
            with contextlib.suppress(Unavailable):
                said: bytes = (await self.bus.request(subject, data, timeout_s=2)).data
                return said
            return b""

        return await eventually(told, within_s=15, what=f"an answer to {subject}")

    async def ask(self, worker: SimulatedWorker, lapse_s: float, to_all: bool) -> c.Answer:
        """One ask, and what the worker learns of it."""
        ask = c.Ask(worker=worker.name, nonce=worker.nonce, epoch=worker.epoch, lapse_s=lapse_s)
        answer = c.ANSWER.decode(await self.answer(s.ASK_ALL if to_all else s.ASK, c.ASKED.encode(ask)))
        worker.epoch = answer.record.epoch
        if answer.word == "old":
            worker.nonce += 1
        elif answer.word == "go" and answer.record.state is Breaker.HALF_OPEN:
            worker.permit = (answer.record.epoch, worker.nonce)
            given = answer.record.permits[worker.name]
            assert (given.nonce, given.state) == (worker.nonce, "out")
        return answer

    async def asked_rightly(self, worker: SimulatedWorker, lapse_s: float, to_all: bool) -> c.Answer:
        """One ask, with nothing else going on: its answer is the one that the record wants."""
        before, asked_at, epoch, had = self.record, now(), worker.epoch, (worker.permit, worker.nonce)
        answer = await self.ask(worker, lapse_s, to_all)
        await self.agree()
        if before.epoch != answer.record.epoch:
            return answer  # its open time was over meanwhile
        match before.state:
            case Breaker.CLOSED:
                assert answer.word == "go"
            case Breaker.OPEN:
                assert answer.word == "wait"
            case Breaker.HALF_OPEN if epoch != before.epoch:
                assert answer.word == "again"
            case Breaker.HALF_OPEN if answer.word != "old" and had[0] != (before.epoch, had[1]):
                outs = [p for p in before.permits.values() if p.round == before.round and p.state == "out"]
                if before.issued < self.rules.half_open_permits or all(_lapsed(p, asked_at, 0.5) for p in outs):
                    assert answer.word == "go", "some later probe is allowed"
                elif any(not _lapsed(p, now(), -0.1) for p in outs):
                    assert answer.word == "wait", "at most P permits a round"
        return answer

    async def tell(self, worker: SimulatedWorker, how: How, *, twice: bool = False) -> None:
        """What came of its permit: the record follows, unless the permit is of another epoch or round."""
        assert worker.permit is not None
        (epoch, nonce), worker.permit = worker.permit, None
        worker.nonce = max(worker.nonce, nonce + 1)
        before, move, ok = self.record, None, self.record.ok
        permit = before.permits.get(worker.name)
        if before.epoch == epoch and permit is not None and permit.nonce == nonce and permit.state != "ok":
            ok += how == "ok"
            if how == "ok" and ok >= self.rules.success_threshold:
                move = Breaker.CLOSED
            elif how == "failed" and permit.round == before.round:
                move = Breaker.OPEN
        result = c.RESULTED.encode(c.Result(worker=worker.name, nonce=nonce, epoch=epoch, how=how))
        await asyncio.gather(*(self.answer(s.RESULT_ALL if n else s.RESULT, result) for n in range(1 + twice)))
        await self.agree(move)
        if move is None and self.record.epoch == epoch:
            assert self.record.ok == ok

    # --- the end of every run ----------------------------------------------------------------------------------------

    async def end_well(self) -> None:
        """A pull that waits while it is paused is woken once it is closed; and probes close it after an open time."""
        if not self.replicas:
            await self.start_replica()
        await self.settled()
        await self.replicas[0].guard.open(60.0, OPERATOR)
        await self.agree(Breaker.OPEN)
        await self.settled()
        arrived = asyncio.ensure_future(self._pulled())
        await self.bus.store(s.welcome_requested("a.1"), b"")
        assert not arrived.done()
        await self.replicas[-1].guard.close(OPERATOR)
        await self.agree(Breaker.CLOSED)
        await arrived
        await self.replicas[-1].guard.open(self.rules.open_s, OPERATOR)
        await self.agree(Breaker.OPEN)
        worker = SimulatedWorker("last")

        async def probed() -> bool:
            answer = await self.asked_rightly(worker, 0.5, to_all=False)
            if worker.permit is not None:
                await self.tell(worker, "ok")
            return answer.word == "go" and self.record.state is Breaker.CLOSED

        await eventually(probed, within_s=SETTLED_WITHIN_S, what="probes close it")
        await self.settled()

    async def _pulled(self) -> None:
        inbox = self.bus.client.new_inbox()
        arrived: asyncio.Queue[Msg] = asyncio.Queue()
        subscription = await self.bus.client.subscribe(inbox, cb=arrived.put)
        pull = b'{"batch":1,"expires":60000000000}'
        await self.bus.client.publish(f"$JS.API.CONSUMER.MSG.NEXT.{CONSUMER}", pull, reply=inbox)
        async with asyncio.timeout(SETTLED_WITHIN_S):
            assert (await arrived.get()).reply
        await subscription.unsubscribe()


def now() -> datetime:
    """The broker's time: it runs on this machine."""
    return datetime.now(UTC)


def _or_half_open(records: set[tuple[Breaker, int]]) -> set[tuple[Breaker, int]]:
    """These, and what becomes of them when an open time is over; whether it is the watch sees."""
    return records | {(Breaker.HALF_OPEN, epoch + 1) for state, epoch in records if state is Breaker.OPEN}


def _same(wanted: datetime | None, shown: datetime | None) -> bool:
    if wanted is None or shown is None:
        return wanted is shown
    return abs((wanted - shown).total_seconds()) <= 0.5


def _lapsed(permit: c.Permit, at: datetime, margin_s: float) -> bool:
    return permit.lapses_at + timedelta(seconds=margin_s) <= at
