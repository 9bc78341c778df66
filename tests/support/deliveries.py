"""Everything around the delivery of mails, on a real broker: outbox, relay, guard and erasure in this process, any
number of email_svc processes, a scripted SMTP server; and the books at the end.
"""

import asyncio
import contextlib
import itertools
import signal
from collections.abc import Callable, Iterator
from contextlib import AsyncExitStack
from datetime import UTC, datetime, timedelta

from contracts import messages as m
from contracts import subjects as s
from contracts import topology
from contracts.runtime.broker import ApiError, StreamFull, Unavailable, connect
from contracts.runtime.lifecycle import cancelled
from email_svc.decision import Phase
from tests.support.delivery_laws import Danger, Mail, broken_laws
from tests.support.email_workers import ACK_WAIT_S, EmailWorkers
from tests.support.guards import CONSUMER, QUEUE_MAX_SIZE, Replica
from tests.support.load import pending
from tests.support.machines import consumer_deleted, restarted
from tests.support.processes import NatsServer
from tests.support.smtp_server import Action, Drop, Late, Reply, Reset, Silence, SmtpServer, Transaction
from tests.support.waiting import eventually
from user_svc.breaker import Rules
from user_svc.erasure import erase
from user_svc.ledger import books
from user_svc.reconciler import reconcile
from user_svc.relay import Relay
from user_svc.settings import Settings

RETRIES = 2
BREAKER = Rules(failure_threshold=4, success_threshold=2, open_s=0.3, half_open_permits=2)
SETTLED_WITHIN_S = 60.0
"""Retries and probes take a second, a dead worker's mails ack_wait; a busy machine may take its time."""
_RECONCILED_EVERY_S = 1.5
_SAID_LATE_S = 0.4
_NUMBERS = itertools.count(1)


class Deliveries:
    """One run with users of its own. `begin`, whatever is to happen, `end_well`, `close`."""

    def __init__(self, nats: NatsServer, workers: EmailWorkers) -> None:
        self.nats = nats
        self.forks = workers
        self.stack = AsyncExitStack()
        self.mails: list[Mail] = []
        self.workers: dict[str, int] = {}
        """Those that run: the sender that their mails bear -> pid."""
        self.dangers: list[Danger] = []
        self.crowded = False
        """Whether several workers were there at once, ever."""
        self._scripts: dict[tuple[str, str], list[Action]] = {}
        """(phase, recipient) -> what comes next."""

    async def begin(self, *, email_deadline_s: float) -> None:
        self.deadline_s = email_deadline_s
        self.smtp = await self.stack.enter_async_context(SmtpServer())
        self.smtp.on("rcpt", self._scripted("rcpt"))
        self.smtp.on("data", self._scripted("data"))
        self.smtp.on("dot", self._scripted("dot"))
        self.bus = await connect(name="test", url=self.nats.url, on_closed=lambda reason: None)
        self.stack.push_async_callback(self.bus.close)
        await topology.provision(self.bus, service=None, mode="auto", replicas=1)
        await self.bus.purge(s.CONTROL, s.BREAKER_KEY)
        await self.bus.api(f"STREAM.PURGE.{s.WELCOME_EMAILS}")
        await self.remake_consumer()
        self.guard = Replica()
        await self.guard.start(self.nats.url, BREAKER)
        self.stack.push_async_callback(self.guard.die)
        self.relay = Relay(self.bus, Settings(email_deadline_s=email_deadline_s), lambda: asyncio.sleep(0))
        await self.stack.enter_async_context(self.relay.loop)
        self.start_worker()

    async def close(self) -> None:
        for name in list(self.workers):
            await self.end_worker(name, signal.SIGKILL)
        await self.stack.aclose()

    # --- the SMTP server ---------------------------------------------------------------------------------------------

    def _scripted(self, phase: str) -> Callable[[Transaction], Action | None]:
        def next_action(transaction: Transaction) -> Action | None:
            mail = next((mail for mail in self.mails if mail.user.email == transaction.rcpt), None)
            script = self._scripts.get((phase, transaction.rcpt))
            if mail is None or not script:
                return None
            action = script.pop(0)
            match action:
                case Reply(code=code):
                    mail.said[phase, code] += 1
                case Reset(accept=True) | Drop(accept=True) | Silence(accept=True):
                    mail.replies_lost += 1
            return action

        return next_action

    def script(self, mail: Mail, phase: Phase, action: Action, times: int) -> None:
        """What the server does with this mail, `times` times, before it is as usual."""
        self._scripts.setdefault((phase, mail.user.email), []).extend([action] * times)

    async def path_is_down(self, seconds: float) -> None:
        """And all that was under way is cut, replies to the dot as well."""
        with self._danger():
            await self.smtp.refuse()
            await asyncio.sleep(seconds)
        await self.smtp.listen()

    # --- mails -------------------------------------------------------------------------------------------------------

    async def register(self) -> None:
        """A new user; the relay publishes what its key asks for."""
        number = next(_NUMBERS)
        user_id = f"{'a' * 20}{number:06}".translate(str.maketrans("0189", "zyxw"))
        user = m.UserRegistered(
            user_id=user_id, email=f"user{number}@example.com", name="Ann", nonce="n", created_at=datetime.now(UTC)
        )
        revision = await self.bus.store(s.user_key(user_id), m.USER_REGISTERED.encode(user), expect_last=0)
        stored = await self.bus.at(s.USERS, revision)
        assert stored is not None
        expires_at = stored.time + timedelta(seconds=self.deadline_s)
        self.mails.append(Mail(user, revision, stored.time, expires_at))

    async def under_way(self) -> None:
        """One more user, whose mail the server has taken without having said so yet; if it gets there soon."""
        await self.register()
        mail = self.mails[-1]
        self.script(mail, Phase.DOT, Late(_SAID_LATE_S), 1)
        with contextlib.suppress(AssertionError):
            await eventually(lambda: mail.user.email in {t.rcpt for t in self.smtp.accepted}, within_s=2.0)

    async def publish_again(self, mail: Mail) -> None:
        """A relay that is late, or does it twice."""
        await self.relay.publish(mail.user, mail.revision, m.Why.REGISTRATION, mail.requested_at, {})

    async def erase(self, mail: Mail) -> None:
        key = s.erase_key(mail.user.user_id)
        asked = m.EraseUser(user_id=mail.user.user_id, asked_at=datetime.now(UTC))
        await self.bus.store(key, m.ERASE_USER.encode(asked))
        await erase(self.bus, mail.user.user_id, email_deadline_s=3600)
        mail.erased_at = mail.erased_at or datetime.now(UTC)

    # --- what breaks -------------------------------------------------------------------------------------------------

    def start_worker(self) -> None:
        name = f"w{next(_NUMBERS)}@mailflow.local"
        self.workers[name] = self.forks.start(
            {
                "NATS_URL": self.nats.url,
                "NATS_MONITORING_URL": self.nats.monitoring_url,
                "SMTP_URL": f"smtp://127.0.0.1:{self.smtp.port}",
                "SMTP_TIMEOUT": "1s",
                "EMAIL_FROM": name,
                "RATE_LIMIT_RPM": "0",
                "QUEUE_MAX_RETRIES": str(RETRIES),
                "MESSAGE_RETRY_DELAYS": "100ms,200ms",
                "WORKER_CONCURRENCY": "4",
            }
        )
        self.crowded = self.crowded or len(self.workers) > 1

    async def end_worker(self, name: str, how: signal.Signals) -> None:
        """Killed, or told to stop."""
        with self._danger(worker=name) if how is signal.SIGKILL else contextlib.nullcontext():
            await self.forks.end(self.workers.pop(name), how)

    async def freeze_worker(self, name: str, seconds: float) -> None:
        """Beyond ack_wait, its mails are another's."""
        with self._danger(worker=name) if seconds > ACK_WAIT_S - 1 else contextlib.nullcontext():
            self.forks.send(self.workers[name], signal.SIGSTOP)
            await asyncio.sleep(seconds)
            self.forks.send(self.workers[name], signal.SIGCONT)

    async def purge_queue(self) -> None:
        with self._danger(to_many=True):
            await self.bus.api(f"STREAM.PURGE.{s.WELCOME_EMAILS}")

    async def remake_consumer(self) -> None:
        """Deleted, and made again: all that is in the queue is new to it."""
        with self._danger(to_many=True):
            await consumer_deleted(self.bus, CONSUMER)
            await topology.remake_queue_consumer(self.bus, QUEUE_MAX_SIZE)

    async def restart_broker(self) -> None:
        """kill -9, and a start with what it had stored."""
        with self._danger(to_many=True):
            await restarted(self.nats, [self.bus, self.guard.broker])

    @contextlib.contextmanager
    def _danger(self, *, worker: str | None = None, to_many: bool = False) -> Iterator[None]:
        began = datetime.now(UTC)
        yield
        self.dangers.append(Danger(began, datetime.now(UTC), worker=worker, to_many=to_many))

    # --- the end of every run ----------------------------------------------------------------------------------------

    async def reconcile(self) -> None:
        with contextlib.suppress(Unavailable, ApiError, StreamFull):
            await reconcile(self.bus, self.relay)

    async def outcomes(self, mail: Mail) -> list[m.Outcome]:
        found = []
        for state in m.State:
            stored = await self.bus.last(s.DELIVERIES, s.outcome(mail.event_id, state))
            if stored is not None:
                found.append(m.OUTCOME.decode(stored.data))
        return found

    async def end_well(self) -> None:
        """Nothing is in the way any more: every mail ends, as it may, though all come again, and the books balance."""
        self._scripts.clear()
        if not self.workers:
            self.start_worker()
        reconciling = asyncio.create_task(self._keep_reconciled())
        try:
            await eventually(self._all_ended, within_s=SETTLED_WITHIN_S, what="every mail has ended")
            for mail in self.mails:
                await self.publish_again(mail)
            await eventually(self._all_ended, within_s=SETTLED_WITHIN_S, what="every mail is known to have ended")
        finally:
            await cancelled(reconciling)
        broken = []
        for mail in self.mails:
            (outcome,) = await self.outcomes(mail)
            dangers = [danger for danger in self.dangers if self.crowded or not danger.to_many]
            broken += broken_laws(mail, outcome, self.smtp.accepted, dangers, retries=RETRIES)
            kept = await self.bus.subjects(s.DEAD_LETTERS, s.dead_letter(mail.event_id, "*"))
            if kept != [
                s.dead_letter(mail.event_id, state)
                for state in (m.State.DEAD, m.State.EXPIRED)
                if state is outcome.state
            ]:
                broken.append(f"dead letters iff dead or expired: {outcome.state}: {kept}")
        assert not broken, broken
        ours = {mail.user.email for mail in self.mails}
        assert {copy.rcpt for copy in self.smtp.accepted} <= ours, "mails of nobody"
        balance = await books(self.bus)
        assert (balance.gap, balance.erasing, balance.outbox, balance.queue) == (0, 0, 0, 0), balance

    async def _keep_reconciled(self) -> None:
        while True:
            await asyncio.sleep(_RECONCILED_EVERY_S)
            await self.reconcile()

    async def _all_ended(self) -> bool:
        """One outcome each, nothing queued, no row of attempts."""
        with contextlib.suppress(Unavailable, ApiError):
            if await pending(self.bus) != (0, 0):
                return False
            for mail in self.mails:
                rows = await self.bus.subjects(s.DELIVERIES, s.delivery_rows(mail.event_id))
                if len(rows) != 1 or rows == [s.attempts(mail.event_id)]:
                    return False
            return True
        return False
