"""Delivery on a real broker with real email_svc processes: whatever happens, each mail ends once, as it may.

A rule is one thing that happens: users register, the SMTP server refuses a mail, goes silent or breaks off in some
phase, a worker is killed or stopped, a mail's event is published again, its user erased, the queue purged, its consumer
deleted, the broker killed. At the end of each run nothing is in the way any more and all must settle; the laws are in
tests.support.delivery_laws.
"""

import asyncio
import signal
from pathlib import Path
from typing import Any

import hypothesis.strategies as st
import pytest
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule, run_state_machine_as_test

from contracts import streams
from contracts.runtime import pull
from email_svc.decision import Phase
from tests.support.deliveries import Deliveries
from tests.support.delivery_laws import PERMANENT, Mail
from tests.support.email_workers import ACK_WAIT_S, EmailWorkers
from tests.support.machines import LONG, Steps, machine_settings
from tests.support.processes import NatsServer, stopping
from tests.support.smtp_server import Action, Drop, Late, Reply, Reset, Silence

POLICY = Reply(554, "5.7.1 refused by policy")
REFUSED: list[Action] = [Reply(450, "4.2.0 not now"), PERMANENT, POLICY, Reply(421, "4.3.2 shutting down")]
CUT: list[Action] = [Reset(), Drop(), Silence(), Late(0.3)]
BY_PHASE: list[tuple[Phase, Action]] = [
    *((phase, action) for phase in (Phase.RCPT, Phase.DOT) for action in REFUSED + CUT),
    *((Phase.DATA, action) for action in [*CUT, Reset(body_bytes=20), Reply(451, "4.3.0 disk trouble")]),
    *((Phase.DOT, action) for action in (Reset(accept=True), Drop(accept=True), Silence(accept=True))),
]
FREEZES = st.sampled_from([0.3, 0.3, ACK_WAIT_S + 1.5] if LONG else [0.3])
"""Seconds; longer than ack_wait only where there is time for it."""


def somebody_registered(machine: "DeliveryMachine") -> bool:
    return bool(machine.all.mails)


class DeliveryMachine(RuleBasedStateMachine):
    """What happens to mails."""

    def __init__(self, nats: NatsServer, workers: EmailWorkers) -> None:
        super().__init__()
        self.steps = Steps()
        self.all = Deliveries(nats, workers)

    def mail(self, n: int) -> Mail:
        """One of the last few."""
        return self.all.mails[-1 - n % len(self.all.mails)]

    @initialize(email_deadline_s=st.sampled_from([3600.0, 3600.0, 2.5]))
    def begin(self, email_deadline_s: float) -> None:
        self.steps.run(self.all.begin(email_deadline_s=email_deadline_s))

    def teardown(self) -> None:
        try:
            if not self.steps.failed:
                self.steps.run(self.all.end_well())
        except BaseException as exc:
            exc.add_note("email_svc said last:\n" + self.all.forks.log.read_text(errors="replace")[-6000:])
            raise
        finally:
            self.steps.run(self.all.close())
            self.steps.close()

    @rule(seconds=st.sampled_from([0.01, 0.05, 0.2, 0.6]))
    def time_passes(self, seconds: float) -> None:
        self.steps.run(asyncio.sleep(seconds))

    @rule(users=st.integers(1, 3), how=st.none() | st.sampled_from(BY_PHASE), times=st.sampled_from([1, 1, 2, 4]))
    def users_register(self, users: int, how: tuple[Phase, Action] | None, times: int) -> None:
        """`how`: what the server does with the first of them."""

        async def work() -> None:
            first = len(self.all.mails)
            for _ in range(users):
                await self.all.register()
            if how is not None:
                self.all.script(self.all.mails[first], *how, times)

        self.steps.run(work())

    @precondition(somebody_registered)
    @rule(n=st.integers(0, 3), how=st.sampled_from(BY_PHASE), times=st.sampled_from([1, 1, 2]))
    def the_server_will_do(self, n: int, how: tuple[Phase, Action], times: int) -> None:
        self.all.script(self.mail(n), *how, times)

    @rule(phase=st.sampled_from(["greeting", "ehlo", "mail"]), how=st.sampled_from([Reply(421), Reset(), Silence()]))
    def the_path_fails_once(self, phase: Any, how: Action) -> None:
        self.all.smtp.on(phase, how, times=1)

    @rule(seconds=st.sampled_from([0.05, 0.4]))
    def the_path_is_down(self, seconds: float) -> None:
        self.steps.run(self.all.path_is_down(seconds))

    @precondition(somebody_registered)
    @rule(n=st.integers(0, 5))
    def an_event_comes_again(self, n: int) -> None:
        self.steps.run(self.all.publish_again(self.mail(n)))

    @rule()
    def a_mail_is_under_way(self) -> None:
        """What comes next comes between the final dot and its outcome."""
        self.steps.run(self.all.under_way())

    @precondition(somebody_registered)
    @rule(n=st.integers(0, 5), under_way=st.booleans())
    def a_user_is_erased(self, n: int, under_way: bool) -> None:
        async def work() -> None:
            if under_way:
                await self.all.under_way()
            await self.all.erase(self.mail(0 if under_way else n))

        self.steps.run(work())

    @precondition(lambda self: self.all.workers)
    @rule(
        n=st.integers(0, 1),
        how=st.sampled_from([signal.SIGKILL, signal.SIGKILL, signal.SIGTERM]),
        under_way=st.booleans(),
    )
    def a_worker_ends(self, n: int, how: signal.Signals, under_way: bool) -> None:
        async def work() -> None:
            if under_way:
                await self.all.under_way()
            names = list(self.all.workers)
            await self.all.end_worker(names[n % len(names)], how)

        self.steps.run(work())

    @precondition(lambda self: self.all.workers)
    @rule(n=st.integers(0, 1), seconds=FREEZES)
    def a_worker_freezes(self, n: int, seconds: float) -> None:
        names = list(self.all.workers)
        self.steps.run(self.all.freeze_worker(names[n % len(names)], seconds))

    @precondition(lambda self: len(self.all.workers) < 2)
    @rule()
    def a_worker_starts(self) -> None:
        self.all.start_worker()

    @rule(reconciled=st.booleans())
    def the_queue_is_purged(self, reconciled: bool) -> None:
        async def work() -> None:
            await self.all.purge_queue()
            if reconciled:
                await self.all.reconcile()

        self.steps.run(work())

    @rule()
    def the_consumer_is_remade(self) -> None:
        self.steps.run(self.all.remake_consumer())

    @rule()
    def the_broker_is_killed(self) -> None:
        self.steps.run(self.all.restart_broker())


def test_each_mail_ends_once_as_it_may(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """See the module's docstring."""
    for module in (streams, pull):  # as the workers have it
        monkeypatch.setattr(module, "ACK_WAIT_S", ACK_WAIT_S)
    nats = NatsServer(tmp_path)
    nats.start()
    with stopping(nats), EmailWorkers(tmp_path) as workers:
        asyncio.run(nats.ready())
        run_state_machine_as_test(
            lambda: DeliveryMachine(nats, workers), settings=machine_settings(examples=6, steps=20)
        )
