"""The breaker never jams and never lets through more than it may, whatever happens on the way.

The real rules (user_svc.breaker) on a record under compare-and-set, up to three replicas that read, then write, and up
to four workers in a model of email_svc.leave: the same nonces, the same look just before MAIL. Every message waits in
the network until a rule delivers, repeats or loses it; an actor that no rule moves is frozen. At the end of each run
the path first fails and then works, with messages getting through: open or half-open, then closed within bounded time.
"""

import random
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any, Literal

import hypothesis.strategies as st
import msgspec
import pytest
from hypothesis import given, settings
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from contracts.control import Answer, Ask, Blame, Breaker, BreakerRecord, Report, Result, paused_until
from user_svc import breaker
from user_svc.breaker import Memory, Rules

START = datetime(2026, 1, 1, tzinfo=UTC)
OPEN_S, ATTEMPT_S, LAPSE_S = 3.0, 5.0, 10.0
FRESH_S, ASK_TIMEOUT_S, YOUNG_S = 2.0, 1.0, 2.0


class Leave(msgspec.Struct, frozen=True):
    """As in email_svc.leave: free or a permit, of an epoch, given at a time."""

    kind: Literal["free", "permit"]
    epoch: int
    nonce: int = 0
    given_at: float = 0.0


class Worker:
    """The model of one worker: one slot that asks, one attempt at a time."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.nonce = 1
        self.record: BreakerRecord | None = None
        self.revision = 0
        self.read_at = -1e9
        self.doubt = False
        self.successes = 0
        self.asked: tuple[Ask, float] | None = None
        """The ask whose answer is waited for, and when it was sent. Each has an inbox of its own."""
        self.leave: Leave | None = None
        self.attempt: tuple[Leave, bool, float] | None = None
        """Under which leave, whether the path worked, when it began."""
        self.result: tuple[Result, float] | None = None
        """To be told until it is acknowledged, with when it was first told."""

    @property
    def epoch(self) -> int:
        return 0 if self.record is None else self.record.epoch

    def free(self, now: float) -> bool:
        closed = self.record is not None and self.record.state is Breaker.CLOSED
        return closed and not self.doubt and now - self.read_at <= FRESH_S

    def adopt(self, record: BreakerRecord, revision: int) -> None:
        if revision > self.revision:
            if record.epoch != self.epoch:
                self.successes = 0
            self.record, self.revision = record, revision

    def still(self, now: float) -> bool:
        """Just before MAIL; what would have to ask again is told apart by the caller."""
        assert self.leave is not None
        if self.leave.kind == "free":
            return self.free(now) and self.epoch == self.leave.epoch
        return now - self.leave.given_at <= YOUNG_S and self.epoch == self.leave.epoch


class Operation:
    """An event in a replica's hands: the record has been read, the write is to come."""

    def __init__(self, replica: int, event: Any, record: BreakerRecord, revision: int) -> None:
        self.replica = replica
        self.event = event
        self.record = record
        self.revision = revision
        self.tries = 0


Message = tuple[str, Any]
"""To "user_svc" or to a worker's name, and what it says."""


class World:
    """Broker, replicas, network and workers; the laws are checked at each write and each attempt."""

    def __init__(self, rules: Rules, replicas: int, workers: int) -> None:
        self.rules = rules
        self.now = 0.0
        self.record = breaker.first(START, rules)
        self.revision = 1
        self.memories = [Memory() for _ in range(replicas)]
        self.operations: list[Operation] = []
        self.network: list[Message] = []
        self.workers = [Worker(f"w{n}") for n in range(workers)]
        self.born = workers
        self.works = True
        self.events = 0
        self.rounds: dict[tuple[str, int, int], tuple[int, int]] = {}
        """(worker, epoch, nonce) of each permit -> (epoch, round)."""
        self.granted: dict[tuple[int, int], int] = {}
        self.begun: dict[tuple[int, int], int] = {}
        self.good: dict[int, set[tuple[str, int]]] = {}
        """Epoch -> the permits whose attempts found that the path works."""

    @property
    def time(self) -> datetime:
        return START + timedelta(seconds=self.now)

    # --- the record --------------------------------------------------------------------------------------------------

    def write(self, new: BreakerRecord, expected: int, *, operator: bool = False) -> bool:
        """Compare-and-set. The laws of the record are looked at here."""
        if expected != self.revision:
            return False
        old, self.record = self.record, new
        self.revision += 1
        moved = new.state is not old.state or operator
        assert new.epoch == old.epoch + moved, "the epoch rises by one at each change of state and only then"
        assert 0 <= new.issued <= self.rules.half_open_permits
        if new.state is Breaker.CLOSED and not operator:
            assert len(self.good.get(old.epoch, ())) >= self.rules.success_threshold, "closed by S probes"
        if moved:
            assert (new.issued, new.ok, new.permits) == (0, 0, {})
            return True
        assert new.state is Breaker.HALF_OPEN
        for name, permit in new.permits.items():
            before, key = old.permits.get(name), (new.epoch, permit.round)
            if before is None or before.nonce != permit.nonce:
                assert before is None or permit.nonce > before.nonce
                self.rounds[name, new.epoch, permit.nonce] = key
                self.granted[key] = self.granted.get(key, 0) + 1
                assert permit.round == new.round
            elif permit.state == "back" != before.state and permit.round == new.round:
                self.granted[key] -= 1
        current = (new.epoch, new.round)
        assert self.granted.get(current, 0) == new.issued <= self.rules.half_open_permits
        return True

    def decide(self, op: Operation) -> tuple[BreakerRecord | None, Message | None]:
        """The replica's rule on what it has read: what to write, and what to answer after that."""
        match op.event:
            case ("tick", _):
                return breaker.ticked(op.record, self.time, self.rules), None
            case ("open", (epoch, opening)):
                if op.record.epoch != epoch:
                    return None, None
                new = breaker.opened(op.record, self.time, self.rules, reason="", for_s=OPEN_S, surge=opening.surge)
                return new, None
            case (name, Ask() as ask):
                new, answer = breaker.asked(op.record, op.revision, ask, self.time, self.rules)
                return new, (name, (ask, answer))
            case (name, Result() as result):
                new = breaker.resulted(op.record, result, self.time, self.rules)
                return new, (name, (result, Answer(word="wait", record=op.record, revision=op.revision)))
        raise AssertionError

    def carry_on(self, op: Operation) -> None:
        """The write of an operation and its answer; on conflict another step, or the event is dropped."""
        epoch = op.record.epoch
        new, reply = self.decide(op)
        if new is not None and not self.write(new, op.revision):
            op.record, op.revision, op.tries = self.record, self.revision, op.tries + 1
            if op.record.epoch == epoch and op.tries < 4:
                return
            self.operations.remove(op)
            if reply is not None and isinstance(reply[1][0], Result) and op.record.epoch != epoch:
                self.network.append((reply[0], (reply[1][0], self._now_answer("wait"))))
            elif reply is not None and isinstance(reply[1][0], Ask) and op.record.epoch != epoch:
                self.network.append((reply[0], (reply[1][0], self._now_answer("again"))))
            return
        self.operations.remove(op)
        if reply is not None:
            name, (request, answer) = reply
            if new is not None:
                answer = msgspec.structs.replace(answer, record=new, revision=self.revision)
            self.network.append((name, (request, answer)))

    def _now_answer(self, word: Any) -> Answer:
        return Answer(word=word, record=self.record, revision=self.revision)

    def hear(self, replica: int, message: Message) -> None:
        """A replica takes a message up: it reads the record, except for reports."""
        _, (name, what) = message
        if isinstance(what, Report):
            record = self.record
            opening = self.memories[replica].hear(record, what, self.time, self.rules)
            if opening is None:
                return
            event: Any = ("open", (what.epoch, opening))
        else:
            event = (name, what)
        self.operations.append(Operation(replica, event, self.record, self.revision))

    # --- workers -----------------------------------------------------------------------------------------------------

    def to_user_svc(self, worker: Worker, what: Any) -> None:
        self.network.append(("user_svc", (worker.name, what)))

    def read(self, worker: Worker) -> None:
        """A read that comes back at once."""
        worker.read_at = self.now
        worker.adopt(self.record, self.revision)

    def ask(self, worker: Worker) -> None:
        """The first try, or another one with the same nonce."""
        ask = Ask(worker=worker.name, nonce=worker.nonce, epoch=worker.epoch, lapse_s=LAPSE_S)
        worker.asked = (ask, self.now)
        self.to_user_svc(worker, ask)

    def answered(self, worker: Worker, request: Any, answer: Answer) -> None:
        """A reply arrives. One that nobody waits for any more is dropped by the client."""
        if isinstance(request, Result):
            worker.adopt(answer.record, answer.revision)
            if worker.result is not None and worker.result[0] == request:
                worker.result = None
            return
        if worker.asked is None or worker.asked[0] is not request or self.now - worker.asked[1] > ASK_TIMEOUT_S:
            return
        nonce, sent_at = request.nonce, worker.asked[1]
        worker.asked = None
        worker.doubt = False
        worker.adopt(answer.record, answer.revision)
        match answer.word:
            case "go" if answer.record.state is Breaker.CLOSED:
                self.read(worker)
            case "go":
                if worker.leave is None or (worker.leave.epoch, worker.leave.nonce) == (answer.record.epoch, nonce):
                    worker.leave = Leave("permit", answer.record.epoch, nonce, sent_at)
            case "old":
                worker.nonce = max(worker.nonce, nonce + 1)
                self.no_longer(worker)
            case "wait" | "again":
                self.no_longer(worker)

    def no_longer(self, worker: Worker) -> None:
        """The look just before MAIL was refused: nothing is attempted, and the permit goes back."""
        if worker.leave is not None and worker.leave.kind == "permit":
            self.unused(worker, worker.leave)
        worker.leave = worker.asked = None  # one thing after another: nobody gives back while an ask is out

    def unused(self, worker: Worker, leave: Leave) -> None:
        worker.nonce = max(worker.nonce, leave.nonce + 1)
        self.tell(worker, leave, "unused")

    def tell(self, worker: Worker, leave: Leave, how: Any) -> None:
        if worker.epoch == leave.epoch:
            result = Result(worker=worker.name, nonce=leave.nonce, epoch=leave.epoch, how=how)
            worker.result = (result, self.now)
            self.to_user_svc(worker, result)

    def tell_again(self, worker: Worker) -> None:
        """Until it is acknowledged, superseded by another epoch, or lapsed."""
        assert worker.result is not None
        result, since = worker.result
        if worker.epoch != result.epoch or self.now - since >= LAPSE_S:
            worker.result = None
        else:
            self.to_user_svc(worker, result)

    def begin(self, worker: Worker) -> None:
        """The look just before MAIL, and the attempt if it still may; nothing can come between the two."""
        leave = worker.leave
        assert leave is not None
        if not worker.still(self.now):
            if leave.kind == "free" or worker.epoch != leave.epoch:
                self.no_longer(worker)
            else:
                self.ask(worker)
            return
        worker.leave = None
        if leave.kind == "permit":
            worker.nonce = max(worker.nonce, leave.nonce + 1)
            key = self.rounds[worker.name, leave.epoch, leave.nonce]
            self.begun[key] = self.begun.get(key, 0) + 1
            assert self.begun[key] <= self.rules.half_open_permits, "at most P attempts begin a round"
            if self.record.epoch == leave.epoch:
                assert self.record.round == key[1], "nobody begins in a round that is not the permit's"
        worker.attempt = (leave, self.works, self.now)

    def end(self, worker: Worker) -> None:
        """The attempt's outcome, told or reported."""
        assert worker.attempt is not None
        (leave, worked, _), worker.attempt = worker.attempt, None
        if leave.kind == "permit":
            if worked:
                self.good.setdefault(leave.epoch, set()).add((worker.name, leave.nonce))
            self.tell(worker, leave, "ok" if worked else "failed")
            return
        of_now = leave.epoch == worker.epoch
        if worked:
            worker.successes += of_now
            return
        worker.doubt = True
        self.events += 1
        successes, worker.successes = (worker.successes, 0) if of_now else (0, worker.successes)
        blame = Blame(event_id=f"e{self.events}", verdict="path")
        self.to_user_svc(worker, Report(epoch=leave.epoch, successes=successes, blame=blame))

    def step(self, worker: Worker) -> None:
        """What a worker that runs does next, as in email_svc.worker."""
        if self.now - worker.read_at >= 1.0:
            self.read(worker)
        if worker.attempt is not None:
            self.end(worker)
        elif worker.result is not None:
            self.tell_again(worker)
        elif worker.leave is not None:
            self.begin(worker)
        elif worker.free(self.now):
            worker.leave = Leave("free", worker.epoch)
        elif worker.asked is None or self.now - worker.asked[1] >= ASK_TIMEOUT_S:
            self.ask(worker)

    # --- a healthy world ---------------------------------------------------------------------------------------------

    def healthy(self, seconds: float) -> None:
        """Messages get through, everybody runs: so many seconds of that, or until it is closed and works."""
        end = self.now + seconds
        while self.now < end and not (self.works and self.record.state is Breaker.CLOSED):
            for worker in self.workers:
                self.step(worker)
            self.operations += [
                Operation(replica, ("tick", None), self.record, self.revision) for replica in range(len(self.memories))
            ]
            while self.network or self.operations:
                messages, self.network = self.network, []
                for message in messages:
                    self.arrive(message, len(self.network) % len(self.memories))
                for op in list(self.operations):
                    self.carry_on(op)
            self.now += 0.25

    def arrive(self, message: Message, replica: int) -> None:
        """To a replica (all of them, if it is a report), or to the worker if it lives."""
        to, what = message
        if to == "user_svc":
            everybody = range(len(self.memories)) if isinstance(what[1], Report) else (replica,)
            for one in everybody:
                self.hear(one, message)
            return
        for worker in self.workers:
            if worker.name == to:
                self.answered(worker, *what)

    def ends_well(self) -> None:
        """From wherever it is: a sick path never closes it, a sound one does in bounded time."""
        self.works = False
        # An attempt that began on a sound path may still report that, so what is under way ends first.
        self.healthy(LAPSE_S + 2 * OPEN_S)
        for _ in range(8):
            assert self.record.state is not Breaker.CLOSED
            self.healthy(1.0)
        self.works = True
        # At worst: permits under way fail, T passes, and each round but the last waits for permits that lapse.
        self.healthy(OPEN_S + (LAPSE_S + 2.0) * (1 + self.rules.success_threshold))
        assert self.record.state is Breaker.CLOSED, "it jammed"


class BreakerMachine(RuleBasedStateMachine):
    """Every rule is one thing that can happen. What no rule moves is frozen, or on its way."""

    world: World

    @initialize(
        replicas=st.integers(1, 3),
        workers=st.integers(1, 4),
        rules=st.builds(
            Rules,
            failure_threshold=st.integers(1, 3),
            success_threshold=st.integers(1, 5),
            half_open_permits=st.integers(1, 3),
            open_s=st.just(OPEN_S),
        ),
        begins=st.sampled_from([*Breaker]),
    )
    def born(self, replicas: int, workers: int, rules: Rules, begins: Breaker) -> None:
        world = self.world = World(rules, replicas, workers)
        if begins is not Breaker.CLOSED:
            new = breaker.opened(world.record, world.time, rules, reason="", for_s=OPEN_S)
            world.write(new, world.revision)
        if begins is Breaker.HALF_OPEN:
            world.now += OPEN_S
            half = breaker.ticked(world.record, world.time, rules)
            assert half is not None
            world.write(half, world.revision)

    @rule(seconds=st.sampled_from([0.1, 0.5, 1.1, 2.1, OPEN_S, LAPSE_S + 1]))
    def time_passes(self, seconds: float) -> None:
        self.world.now += seconds

    @rule(works=st.booleans())
    def the_path_turns(self, works: bool) -> None:
        self.world.works = works

    @rule(n=st.integers(0, 3), steps=st.integers(1, 3))
    def a_worker_runs(self, n: int, steps: int) -> None:
        world = self.world
        for _ in range(steps):
            world.step(world.workers[n % len(world.workers)])

    @rule(n=st.integers(0, 3))
    def a_worker_asks_again(self, n: int) -> None:
        """Another try, before or after the time-out."""
        worker = self.world.workers[n % len(self.world.workers)]
        if worker.asked is not None:
            self.world.ask(worker)

    @rule(n=st.integers(0, 3))
    def a_worker_gives_back(self, n: int) -> None:
        """No message came, or it was known already."""
        worker = self.world.workers[n % len(self.world.workers)]
        if worker.result is None:
            self.world.no_longer(worker)

    @rule(n=st.integers(0, 3))
    def a_worker_starts_anew(self, n: int) -> None:
        world = self.world
        world.workers[n % len(world.workers)] = Worker(f"w{world.born}")
        world.born += 1

    @rule(n=st.integers(0, 2))
    def a_replica_starts_anew(self, n: int) -> None:
        world = self.world
        n %= len(world.memories)
        world.memories[n] = Memory()
        world.operations = [op for op in world.operations if op.replica != n]

    @rule(n=st.integers(0, 2))
    def a_replica_looks(self, n: int) -> None:
        world = self.world
        world.operations.append(Operation(n % len(world.memories), ("tick", None), world.record, world.revision))

    @precondition(lambda self: self.world.network)
    @rule(n=st.integers(0, 9), replica=st.integers(0, 2), keep=st.booleans())
    def a_message_arrives(self, n: int, replica: int, keep: bool) -> None:
        """In any order; `keep`: a copy of it will arrive, too."""
        world = self.world
        n %= len(world.network)
        message = world.network[n] if keep else world.network.pop(n)
        world.arrive(message, replica % len(world.memories))

    @precondition(lambda self: self.world.network)
    @rule(n=st.integers(0, 9))
    def a_message_is_lost(self, n: int) -> None:
        self.world.network.pop(n % len(self.world.network))

    @precondition(lambda self: self.world.operations)
    @rule(n=st.integers(0, 9))
    def a_replica_writes(self, n: int) -> None:
        self.world.carry_on(self.world.operations[n % len(self.world.operations)])

    @rule()
    def everything_arrives(self) -> None:
        """A good moment, so that runs get far."""
        world = self.world
        for _ in range(4):
            messages, world.network = world.network, []
            for message in messages:
                world.arrive(message, 0)
            for op in list(world.operations):
                world.carry_on(op)

    @rule(to_open=st.booleans())
    def an_operator_acts(self, to_open: bool) -> None:
        world = self.world
        if to_open:
            new = breaker.opened(world.record, world.time, world.rules, reason="operator", for_s=OPEN_S)
        else:
            new = breaker.closed(world.record, world.time, world.rules, reason="operator")
        world.write(new, world.revision, operator=True)

    @rule(n=st.integers(0, 3), how=st.sampled_from(["ok", "failed", "unused"]), other=st.sampled_from([-2, -1, 1]))
    def a_result_of_another_epoch_changes_nothing(self, n: int, how: Any, other: int) -> None:
        world = self.world
        for name, permit in world.record.permits.items():
            result = Result(worker=name, nonce=permit.nonce, epoch=world.record.epoch + other, how=how)
            assert breaker.resulted(world.record, result, world.time, world.rules) is None

    @invariant()
    def paused_only_while_open(self) -> None:
        if hasattr(self, "world"):
            record = self.world.record
            assert (paused_until(record) is not None) is (record.state is Breaker.OPEN)

    def teardown(self) -> None:
        if hasattr(self, "world"):
            self.world.ends_well()


def test_the_breaker_keeps_its_laws() -> None:
    """See the module's docstring."""
    run_state_machine_as_test(BreakerMachine, settings=settings(max_examples=80, stateful_step_count=60, deadline=None))


def things_that_happen(world: World, rng: random.Random) -> dict[Callable[[], object], float]:
    """The same things as the machine's rules, each with its weight: a walk gets further than a machine."""
    worker, replica = rng.choice(world.workers), rng.randrange(len(world.memories))
    pick, draw = rng.random(), rng.random()

    def arrives() -> None:
        if world.network:
            n = int(pick * len(world.network))
            world.arrive(world.network[n] if draw < 0.2 else world.network.pop(n), replica)

    def is_lost() -> None:
        if world.network:
            world.network.pop(int(pick * len(world.network)))

    def writes() -> None:
        if world.operations:
            world.carry_on(world.operations[int(pick * len(world.operations))])

    def passes() -> None:
        world.now += 0.3 * draw if pick < 0.97 else 2 * LAPSE_S * draw

    def runs() -> None:
        world.step(worker)

    def asks_again() -> None:
        if worker.asked is not None:
            world.ask(worker)

    def gives_back() -> None:
        if worker.result is None:
            world.no_longer(worker)

    def looks() -> None:
        world.operations.append(Operation(replica, ("tick", None), world.record, world.revision))

    def turns() -> None:
        world.works = not world.works

    def worker_anew() -> None:
        world.workers[world.workers.index(worker)] = Worker(f"w{world.born}")
        world.born += 1

    def replica_anew() -> None:
        world.memories[replica] = Memory()
        world.operations = [op for op in world.operations if op.replica != replica]

    return {
        arrives: 8.0,
        writes: 8.0,
        passes: 4.0,
        runs: 6.0,
        looks: 1.0,
        asks_again: 0.4,
        gives_back: 0.4,
        is_lost: 0.4,
        turns: 0.1,
        worker_anew: 0.1,
        replica_anew: 0.05,
    }


@settings(max_examples=150, deadline=None)
@given(st.integers(0, 2**32), st.integers(1, 3), st.integers(1, 4), st.integers(1, 4), st.integers(1, 3))
def test_the_laws_hold_on_long_walks(seed: int, replicas: int, workers: int, successes: int, permits: int) -> None:
    """1,000 steps of one seed, then the end of every run."""
    rng = random.Random(seed)
    rules = Rules(failure_threshold=2, success_threshold=successes, half_open_permits=permits, open_s=OPEN_S)
    world = World(rules, replicas, workers)
    world.write(breaker.opened(world.record, world.time, rules, reason="", for_s=OPEN_S), world.revision)
    for _ in range(1000):
        things = things_that_happen(world, rng)
        rng.choices(list(things), list(things.values()))[0]()
    world.ends_well()


@pytest.mark.parametrize("workers", [1, 2, 4])
@pytest.mark.parametrize("permits", [1, 3])
def test_more_successes_than_permits_close_over_several_rounds(permits: int, workers: int) -> None:
    """S = 7 > P: the successes of an epoch are kept over its rounds."""
    rules = Rules(success_threshold=7, half_open_permits=permits, open_s=OPEN_S)
    world = World(rules, 2, workers)
    world.write(breaker.opened(world.record, world.time, rules, reason="", for_s=OPEN_S), world.revision)
    world.healthy(OPEN_S + 15.0)
    assert world.record.state is Breaker.CLOSED
    assert len(world.begun) >= 7 / permits
    assert max(world.begun.values()) <= permits


def test_lost_permits_cost_one_lapse() -> None:
    """All permits of a round die with their holders: the next round begins when they lapse."""
    rules = Rules(open_s=OPEN_S)
    world = World(rules, 1, 1)
    world.write(breaker.opened(world.record, world.time, rules, reason="", for_s=OPEN_S), world.revision)
    world.now = OPEN_S
    half = breaker.ticked(world.record, world.time, rules)
    assert half is not None
    world.write(half, world.revision)
    for n in range(3):
        gone = Ask(worker=f"gone{n}", nonce=1, epoch=half.epoch, lapse_s=LAPSE_S)
        new, _ = breaker.asked(world.record, world.revision, gone, world.time, rules)
        assert new is not None
        world.write(new, world.revision)
    world.healthy(LAPSE_S - 0.5)
    assert world.record.state is Breaker.HALF_OPEN
    world.healthy(5.0)
    assert world.record.state is Breaker.CLOSED
