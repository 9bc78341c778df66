"""The breaker's guard on a real broker: whatever happens, the record keeps its laws and the broker shows what it wants.

Two guards in this process, each with a connection of its own, and three workers that ask and tell. A rule is one thing
that happens; most take a few milliseconds, so that several fall into one period of the guards. What the record must be
after each is known, but for the moment in which an open time is over. At the end of each run the guards settle, a pull
that waits is woken, and probes that succeed close the breaker.
"""

import asyncio
import contextlib
from datetime import timedelta
from pathlib import Path

import hypothesis.strategies as st
import msgspec
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule, run_state_machine_as_test

from contracts import control as c
from contracts import subjects as s
from contracts.control import Breaker
from contracts.runtime.broker import ApiError, Unavailable
from tests.support.breaker_laws import OPERATOR, Heard, wanted_pause
from tests.support.guards import CONSUMER, SETTLED_WITHIN_S, Guards, How, Replica, SimulatedWorker, now
from tests.support.machines import Steps, machine_settings, restarted
from tests.support.processes import NatsServer, stopping
from tests.support.waiting import eventually
from user_svc.breaker import Rules

RULES = Rules(failure_threshold=3, success_threshold=2, open_s=0.3, half_open_permits=2)
LAPSES = st.sampled_from([0.2, 0.6, 30.0])
"""How long a permit is good for, seconds."""


def somebody_is_there(machine: "GuardMachine") -> bool:
    return bool(machine.guards.replicas)


class GuardMachine(RuleBasedStateMachine):
    """What happens to the guards."""

    def __init__(self, server: NatsServer) -> None:
        super().__init__()
        self.server = server
        self.steps = Steps()
        self.guards = Guards(server.url, RULES)
        self.workers = [SimulatedWorker(f"w{n}") for n in range(3)]
        self.born = 3
        self.events = 0

    def replica(self, n: int) -> Replica:
        return self.guards.replicas[n % len(self.guards.replicas)]

    @initialize()
    def begin(self) -> None:
        self.steps.run(self.guards.begin())

    def teardown(self) -> None:
        try:
            if not self.steps.failed:
                self.steps.run(self.guards.end_well())
        finally:
            self.steps.run(self.guards.close())
            self.steps.close()

    # --- time, operators, replicas -----------------------------------------------------------------------------------

    @rule(seconds=st.sampled_from([0.02, 0.1, 0.35, 0.7]))
    def time_passes(self, seconds: float) -> None:
        async def work() -> None:
            await asyncio.sleep(seconds)
            await self.guards.agree()

        self.steps.run(work())

    @rule()
    def all_settles(self) -> None:
        self.steps.run(self.guards.settled())

    @precondition(somebody_is_there)
    @rule(n=st.integers(0, 1), for_s=st.sampled_from([0.3, 0.3, 60.0, None]))
    def an_operator_opens(self, n: int, for_s: float | None) -> None:
        async def work() -> None:
            await self.replica(n).guard.open(for_s, OPERATOR)
            await self.guards.agree(Breaker.OPEN)

        self.steps.run(work())

    @precondition(somebody_is_there)
    @rule(n=st.integers(0, 1))
    def an_operator_closes(self, n: int) -> None:
        async def work() -> None:
            await self.replica(n).guard.close(OPERATOR)
            await self.guards.agree(Breaker.CLOSED)

        self.steps.run(work())

    @precondition(lambda self: len(self.guards.replicas) == 2)
    @rule()
    def two_operators_disagree(self) -> None:
        """At the same moment: both are done, in some order."""

        async def work() -> None:
            (one, other), before = self.guards.replicas, self.guards.record
            await asyncio.gather(one.guard.open(60.0, OPERATOR), other.guard.close(OPERATOR))
            after = await self.guards.read()
            assert after is not None
            assert after.epoch - before.epoch in ((2, 3) if before.state is Breaker.OPEN else (2,))
            self.guards.record = msgspec.structs.replace(after, epoch=after.epoch - 1)
            await self.guards.agree(Breaker.OPEN, Breaker.CLOSED)

        self.steps.run(work())

    @precondition(somebody_is_there)
    @rule(n=st.integers(0, 1))
    def a_replica_dies(self, n: int) -> None:
        replica = self.replica(n)
        self.guards.replicas.remove(replica)
        self.steps.run(replica.die())

    @precondition(lambda self: len(self.guards.replicas) < 2)
    @rule()
    def a_replica_starts(self) -> None:
        async def work() -> None:
            await self.guards.start_replica()
            await self.guards.agree()

        self.steps.run(work())

    # --- by hand, behind the guards' backs ---------------------------------------------------------------------------

    @precondition(somebody_is_there)
    @rule(how=st.sampled_from(["deleted", "purged", "garbage", "another kind"]))
    def the_record_is_spoilt(self, how: str) -> None:
        """It begins anew, closed."""

        async def work() -> None:
            guards, bus = self.guards, self.guards.bus
            guards.watch.may_begin_anew = True
            match how:
                case "deleted":
                    await bus.store(s.BREAKER_KEY, b"", headers={"KV-Operation": "DEL"})
                case "purged":
                    await bus.purge(s.CONTROL, s.BREAKER_KEY)
                case "garbage":
                    await bus.store(s.BREAKER_KEY, b'{"kind": "control.breaker.v1", "epoch": "\xff"')
                case _:
                    await bus.store(s.BREAKER_KEY, c.ASKED.encode(c.Ask(worker="", nonce=1, epoch=1, lapse_s=1)))
            record = await eventually(guards.read, within_s=SETTLED_WITHIN_S)
            assert (record.state, record.epoch) == (Breaker.CLOSED, 1)
            guards.highest_known = max(guards.highest_known, guards.record.epoch + 1)
            guards.record = record
            for replica in guards.replicas:
                replica.heard.clear()
            await guards.agree()
            guards.watch.may_begin_anew = False

        self.steps.run(work())

    @rule(until_s=st.sampled_from([None, -1.0, 0.1, 0.8, 3.0, 600.0]))
    def the_pause_is_changed(self, until_s: float | None) -> None:
        async def work() -> None:
            body = {} if until_s is None else {"pause_until": (now() + timedelta(seconds=until_s)).isoformat()}
            with contextlib.suppress(ApiError):  # there may be no consumer
                await self.guards.bus.api(f"CONSUMER.PAUSE.{CONSUMER}", body)
            await self.guards.agree()

        self.steps.run(work())

    @rule()
    def the_consumer_is_deleted(self) -> None:
        """It comes again, and while the breaker is open it is paused from the first moment."""

        async def work() -> None:
            await self.guards.delete_consumer()
            if self.guards.replicas:
                found = await eventually(self.guards.consumer, within_s=SETTLED_WITHIN_S)
                await self.guards.agree()
                wanted = wanted_pause(self.guards.record)
                assert wanted is None or found.get("paused"), f"made without its pause: {self.guards.record}"

        self.steps.run(work())

    @rule(down_s=st.sampled_from([0.0, 0.5]), amid_s=st.sampled_from([None, 0.0, 0.001, 0.003]))
    def the_broker_is_killed(self, down_s: float, amid_s: float | None) -> None:
        """`amid_s`: so long after an operator began to open; nobody knows then whether that was written."""

        async def work() -> None:
            opening = None
            if amid_s is not None and self.guards.replicas:
                opening = asyncio.create_task(self.replica(0).guard.open(60.0, OPERATOR))
                await asyncio.sleep(amid_s)
            brokers = [self.guards.bus, *(replica.broker for replica in self.guards.replicas)]
            await restarted(self.server, brokers, down_s=down_s)
            if opening is None:
                await self.guards.agree()
            else:
                with contextlib.suppress(Unavailable, ApiError):
                    await opening
                await self.guards.agree(None, Breaker.OPEN)

        self.steps.run(work())

    # --- workers -----------------------------------------------------------------------------------------------------

    @precondition(somebody_is_there)
    @rule(
        verdict=st.sampled_from(["sent", "path", "path", "path", "policy", "configuration"]),
        times=st.sampled_from([1, 1, 2, 4, 21]),
        same=st.booleans(),
        late=st.sampled_from([0, 0, 0, -1, 1]),
    )
    def workers_report(self, verdict: str, times: int, same: bool, late: int) -> None:
        """`same`: all of one event; `late`: of another epoch."""

        async def work() -> None:
            epoch = self.guards.record.epoch + late
            counts = self.guards.record.state is Breaker.CLOSED and not late
            for n in range(times):
                self.events += not (same and n)
                event = f"e{self.events}"
                blame = None if verdict == "sent" else c.Blame(event_id=event, verdict=verdict)
                report = c.Report(epoch=epoch, successes=int(blame is None), blame=blame)
                await self.guards.bus.client.publish(s.REPORT, c.REPORTED.encode(report))
                if counts:
                    for replica in self.guards.replicas:
                        replica.heard.setdefault(epoch, Heard()).hear(verdict, event)
            await self.guards.bus.client.flush(timeout=20)
            await self.guards.agree(*(self.moves(verdict) if counts else ()))

        self.steps.run(work())

    def moves(self, verdict: str) -> tuple[Breaker | None, ...]:
        """Open, as before, or either: a replica may have heard of an epoch of that number before."""
        epoch = self.guards.record.epoch
        heard = [replica.heard.get(epoch, Heard()) for replica in self.guards.replicas]
        known_before = epoch <= self.guards.highest_known
        if verdict == "configuration" or any(h.run >= RULES.failure_threshold or h.surge for h in heard):
            return (Breaker.OPEN,)
        if any(h.half_failed for h in heard) and not known_before:
            return (Breaker.OPEN, None)  # within 30 s: a slow machine may have taken longer
        return (None, Breaker.OPEN) if known_before else (None,)

    @precondition(somebody_is_there)
    @rule(n=st.integers(0, 2), lapse_s=LAPSES, to_all=st.booleans())
    def a_worker_asks(self, n: int, lapse_s: float, to_all: bool) -> None:
        self.steps.run(self.guards.asked_rightly(self.workers[n], lapse_s, to_all))

    @precondition(somebody_is_there)
    @rule(lapse_s=LAPSES)
    def all_workers_ask_at_once(self, lapse_s: float) -> None:
        """And all replicas: the watch counts the permits."""

        async def work() -> None:
            await asyncio.gather(*(self.guards.ask(worker, lapse_s, to_all=True) for worker in self.workers))
            await self.guards.agree()

        self.steps.run(work())

    @precondition(somebody_is_there)
    @rule(n=st.integers(0, 2), how=st.sampled_from(["ok", "ok", "failed", "unused"]), twice=st.booleans())
    def a_worker_tells(self, n: int, how: How, twice: bool) -> None:
        """What came of its permit, perhaps of an epoch or a round that is over."""
        # Not a precondition: those may depend on nothing that real time decides.
        if holders := [worker for worker in self.workers if worker.permit]:
            self.steps.run(self.guards.tell(holders[n % len(holders)], how, twice=twice))

    @rule(n=st.integers(0, 2))
    def a_worker_dies(self, n: int) -> None:
        """What it held never reports."""
        self.workers[n] = SimulatedWorker(f"w{self.born}")
        self.born += 1


def test_the_guards_keep_record_and_pause_together(tmp_path: Path) -> None:
    """See the module's docstring."""
    server = NatsServer(tmp_path)
    server.start()
    with stopping(server):
        asyncio.run(server.ready())
        run_state_machine_as_test(lambda: GuardMachine(server), settings=machine_settings(examples=8, steps=20))
