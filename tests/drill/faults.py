"""What a fault is: broken, left so for a while, mended. One function a kind, each on a whole stack."""

import asyncio
import contextlib
import random
import signal
import time
from collections import Counter
from collections.abc import Awaitable, Callable

from contracts import subjects as s
from tests.drill.history import Fault
from tests.drill.plan import EMAILS, Step
from tests.drill.stack import QUEUE_MAX_SIZE, REPLAY, Stack, broker_up
from tests.support.processes import NatsServer, Process
from tests.support.smtp_server import Action, Late, Phase, Reply, Reset, Silence
from tests.support.waiting import eventually

_LEADS = (s.USERS, s.WELCOME_EMAILS, s.DELIVERIES, s.CONTROL)
_STOP_WITHIN_S = 20.0


class Faults:
    """Carries out a plan. `done` is what was broken, `now` what is."""

    def __init__(self, stack: Stack, steps: tuple[Step, ...]) -> None:
        self._stack = stack
        self._steps = steps
        self.done: list[Fault] = []
        self.now: Counter[str] = Counter()
        self._turns: dict[str, asyncio.Lock] = {}

    async def run(self) -> None:
        """The whole plan; returns when everything is mended."""
        started = time.monotonic()
        async with asyncio.TaskGroup() as group:
            for step in self._steps:
                await asyncio.sleep(started + step.at - time.monotonic())
                group.create_task(self._one(step))

    async def _one(self, step: Step) -> None:
        # A step may last longer than planned (a service takes its time to start): the next on the same thing waits.
        async with self._turns.setdefault(step.target, asyncio.Lock()):
            name, began = f"{step.kind} {step.target}", time.monotonic()
            self.now[name] += 1
            try:
                await FAULTS[step.kind](self._stack, step, random.Random(step.draw))
            finally:
                self.now -= Counter([name])
                self.done.append(
                    Fault(
                        kind=step.kind,
                        target=step.target,
                        began=began,
                        ended=time.monotonic(),
                        delay_s=step.delay_s,
                    )
                )


Break = Callable[[Stack, Step, random.Random], Awaitable[None]]


def _process(stack: Stack, step: Step, rng: random.Random) -> Process:
    return rng.choice(stack.brokers) if step.target == "broker" else stack.services[step.target]


async def _up(stack: Stack, process: Process) -> None:
    if isinstance(process, NatsServer):
        await broker_up(process)
    else:
        await stack.ready(process.name)


async def _again(stack: Stack, process: Process, after_s: float, *, politely: bool) -> None:
    """Ends a process and starts it again."""
    stack.stopping.add(process.name)
    if politely:
        process.signal(signal.SIGTERM)
        with contextlib.suppress(AssertionError):  # it may be cut off from what it wants to say goodbye to
            await eventually(lambda: not process.running, within_s=_STOP_WITHIN_S)
    await asyncio.to_thread(process.kill)
    await asyncio.sleep(after_s)
    process.start()
    stack.stopping.discard(process.name)
    await _up(stack, process)


async def kill(stack: Stack, step: Step, rng: random.Random) -> None:
    """kill -9; started again after a while."""
    await _again(stack, _process(stack, step, rng), step.seconds, politely=False)


async def restart(stack: Stack, step: Step, rng: random.Random) -> None:
    """SIGTERM, and started again at once."""
    await _again(stack, _process(stack, step, rng), 0.0, politely=True)


async def freeze(stack: Stack, step: Step, rng: random.Random) -> None:
    """SIGSTOP, SIGCONT."""
    process = _process(stack, step, rng)
    process.pause()
    try:
        await asyncio.sleep(step.seconds)
    finally:
        process.resume()
    await _up(stack, process)


async def leader_kill(stack: Stack, step: Step, rng: random.Random) -> None:
    """kill -9 of the broker that leads a stream."""
    info = await stack.api(f"STREAM.INFO.{rng.choice(_LEADS)}")
    leads = info["cluster"].get("leader") if info else None
    broker = next((broker for broker in stack.brokers if broker.name == leads), stack.brokers[0])
    await _again(stack, broker, step.seconds, politely=False)


async def network(stack: Stack, step: Step, rng: random.Random) -> None:
    """Between two; with several brokers, to all of them."""
    gates = stack.gates[step.target]
    for gate in gates:
        match step.kind:
            case "cut":
                gate.cut()
            case "delay":
                gate.delay_s = step.delay_s
            case "black_hole":
                gate.black_hole()
            case "half_open":
                gate.half_open()
    await asyncio.sleep(step.seconds)
    for gate in gates:
        gate.mend()


def _smtp(*choices: tuple[Phase, Callable[[random.Random], Action]], share: tuple[float, ...]) -> Break:
    """A fault of the SMTP server: in one of these phases, for that share of the mails."""

    async def broken(stack: Stack, step: Step, rng: random.Random) -> None:
        phase, action = rng.choice(choices)
        of_all = rng.choice(share)
        stack.break_smtp(phase, lambda: action(rng) if rng.random() < of_all else None)
        await asyncio.sleep(step.seconds)
        stack.break_smtp(phase, lambda: None)
        if step.kind in ("smtp_silent", "smtp_lost_dot"):
            # Who waits for the reply to a dot waits ten minutes, as the RFC wants it; the drill does not.
            for name in EMAILS:
                for gate in stack.gates[f"{name}~smtp"]:
                    gate.reset_all()

    return broken


def _says(code: int, text: str) -> Callable[[random.Random], Action]:
    return lambda _: Reply(code, text)


async def queue_full(stack: Stack, step: Step, rng: random.Random) -> None:
    """An operator opens the breaker until the queue takes no more, then closes it."""
    await stack.operate("user_svc", "/circuit-breaker/open", {"for": "60s", "reason": "drill"})
    end = time.monotonic() + step.seconds + 6
    while time.monotonic() < end:
        info = await stack.api(f"STREAM.INFO.{s.WELCOME_EMAILS}")
        if info and info["state"]["messages"] >= QUEUE_MAX_SIZE:
            await asyncio.sleep(step.seconds / 2)
            break
        await asyncio.sleep(0.1)
    await stack.operate("user_svc", "/circuit-breaker/close", {"reason": "drill"})


async def breaker_open(stack: Stack, step: Step, rng: random.Random) -> None:
    """An operator stops all mail, and lets it go on."""
    how = {} if rng.random() < 0.5 else {"for": "60s"}
    await stack.operate("user_svc", "/circuit-breaker/open", how | {"reason": "drill"})
    await asyncio.sleep(step.seconds)
    await stack.operate("user_svc", "/circuit-breaker/close", {"reason": "drill"})


async def purge(stack: Stack, step: Step, rng: random.Random) -> None:
    """Somebody empties the queue."""
    await stack.api(f"STREAM.PURGE.{s.WELCOME_EMAILS}")


async def consumer_deleted(stack: Stack, step: Step, rng: random.Random) -> None:
    """Somebody deletes the queue's consumer under the running workers."""
    await stack.api(f"CONSUMER.DELETE.{s.WELCOME_EMAILS}.{s.EMAIL_SVC}")


async def downtime(stack: Stack, step: Step, rng: random.Random) -> None:
    """Simulated downtime of the mail server, on all replicas."""
    await stack.operate("email_svc", "/downtime", {"for": f"{max(200, int(step.seconds * 1000))}ms"})
    await asyncio.sleep(step.seconds)


async def replay(stack: Stack, step: Step, rng: random.Random) -> None:
    """An operator has all dead letters sent again."""
    await stack.operate("user_svc", REPLAY, {"all": True, "per_second": 100})


FAULTS: dict[str, Break] = {
    "kill": kill,
    "freeze": freeze,
    "restart": restart,
    "leader_kill": leader_kill,
    "cut": network,
    "delay": network,
    "black_hole": network,
    "half_open": network,
    "smtp_421": _smtp(
        ("greeting", _says(421, "4.3.2 closing")),
        ("mail", _says(421, "4.3.2 closing")),
        ("mail", _says(421, "4.7.0 too many messages in this connection")),
        ("rcpt", _says(421, "4.3.2 closing")),
        ("dot", _says(421, "4.3.2 closing")),
        share=(0.2, 1.0),
    ),
    "smtp_45x": _smtp(
        ("mail", _says(451, "4.3.0 not now")),
        ("rcpt", _says(450, "4.2.1 greylisted")),
        ("rcpt", _says(452, "4.2.2 mailbox full")),
        ("dot", _says(451, "4.3.0 local error")),
        ("dot", _says(452, "4.3.1 out of space")),
        share=(0.2, 1.0),
    ),
    "smtp_55x": _smtp(
        ("rcpt", _says(550, "5.1.1 nobody here")),
        ("rcpt", _says(550, "5.7.1 we do not like you")),
        ("dot", _says(554, "5.6.0 what a mail")),
        share=(0.1, 0.3),
    ),
    "smtp_slow": _smtp(
        ("mail", lambda rng: Late(rng.uniform(0, 0.6))),
        ("rcpt", lambda rng: Late(rng.uniform(0, 0.6))),
        ("data", lambda rng: Late(rng.uniform(0, 0.6))),
        share=(0.5, 1.0),
    ),
    "smtp_silent": _smtp(
        ("greeting", lambda _: Silence()),
        ("mail", lambda _: Silence()),
        ("rcpt", lambda _: Silence()),
        ("data", lambda _: Silence()),
        ("dot", lambda _: Silence()),
        share=(0.1, 0.5),
    ),
    "smtp_reset": _smtp(
        ("greeting", lambda _: Reset()),
        ("mail", lambda _: Reset()),
        ("rcpt", lambda _: Reset()),
        ("data", lambda rng: Reset(body_bytes=rng.randint(1, 500))),  # a mail has more: else nobody would end it
        ("dot", lambda _: Reset()),
        share=(0.1, 0.5),
    ),
    "smtp_late_dot": _smtp(("dot", lambda rng: Late(rng.uniform(0, 2))), share=(0.3, 1.0)),
    "smtp_lost_dot": _smtp(
        ("dot", lambda _: Reset(accept=True)),
        ("dot", lambda _: Silence(accept=True)),
        share=(0.05, 0.2),
    ),
    "queue_full": queue_full,
    "purge": purge,
    "consumer_deleted": consumer_deleted,
    "downtime": downtime,
    "breaker_open": breaker_open,
    "replay": replay,
}
