"""The system of a drill: one broker or three, two replicas of each service, an SMTP server to be broken, and a gate
between every two of them. All on loopback, on free ports, in one folder.

    client ~ user_svc, user_svc-2 ~ broker(s) ~ email_svc, email_svc-2 ~ smtp
"""

import asyncio
import contextlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

from contracts.runtime.broker import NO_CONSUMER, NO_STREAM, ApiError, Broker, Unavailable, connect
from tests.drill.client import Http
from tests.drill.history import Rules
from tests.drill.plan import EMAILS, USERS
from tests.drill.proxy import Gate
from tests.support.processes import NatsServer, Service, free_port, http_status, login, provisioned
from tests.support.smtp_server import Action, Phase, Reply, SmtpServer, Transaction
from tests.support.waiting import eventually

RATE_PER_S = 250
BURST = 25
RETRIES = 3
QUEUE_MAX_SIZE = 400
REPLAY = "/dead-letters/replay"
DEADLINE_S = 3600
RULES = Rules(rate_per_s=RATE_PER_S, burst=BURST, retries=RETRIES, deadline_s=DEADLINE_S, half_open_permits=3)

SETTINGS = {
    "RATE_LIMIT_RPM": str(RATE_PER_S * 60),
    "RATE_LIMIT_BURST": str(BURST),
    "QUEUE_MAX_RETRIES": str(RETRIES),
    "MESSAGE_RETRY_DELAYS": "1s,2s,3s",
    "SMTP_TIMEOUT": "3s",
    "WORKER_CONCURRENCY": "16",
    "CIRCUIT_BREAKER_TIMEOUT": "2s",
    "CIRCUIT_BREAKER_HALF_OPEN_REQUESTS": "3",
    "QUEUE_MAX_SIZE": str(QUEUE_MAX_SIZE),
    "EMAIL_DEADLINE": f"{DEADLINE_S}s",
    "RECONCILE_AFTER": "4s",
    "PROVISION": "verify",
    "LOG_LEVEL": "WARNING",
}


class Stack:
    """Use as an async context manager; everything is killed at the end."""

    def __init__(self, folder: Path, *, cluster: bool) -> None:
        self.folder = folder
        self.cluster = cluster
        self.smtp = SmtpServer(bodies=False)
        self._greylisted: set[str] = set()
        self.brokers = self._brokers(3 if cluster else 1)
        self.gates: dict[str, list[Gate]] = {}
        """By the name of the link; several where there are several brokers."""
        self.services: dict[str, Service] = {}
        self.operators: dict[str, Http] = {}
        """To the admin listener of each service."""
        self.direct: Broker
        """A connection of the drill's own, past the gates."""
        self.ended_by_themselves: list[str] = []
        self.stopping: set[str] = set()
        """Services that are down because somebody wants so."""

    def usual(self, phase: Phase, mail: Transaction) -> Action | None:
        """What the SMTP server does with a mail where nothing is broken: some mailboxes are unknown, some greylist."""
        number = int("".join(filter(str.isdigit, mail.rcpt)) or 2)
        if phase == "rcpt" and number % 70 == 0:
            return Reply(550, "5.1.1 no such mailbox")
        if phase == "rcpt" and number % 40 == 1 and mail.rcpt not in self._greylisted:
            self._greylisted.add(mail.rcpt)
            return Reply(450, "4.7.1 greylisted")
        return None

    def break_smtp(self, phase: Phase, action: Callable[[], Action | None]) -> None:
        """What else it does in this phase from now on; None: as usual."""
        self.smtp.on(phase, lambda mail: action() or self.usual(phase, mail))

    def _brokers(self, n: int) -> list[NatsServer]:
        if n == 1:
            return [NatsServer(self.folder)]
        # no_advertise: else the services would hear of the brokers' own ports and go around the gates.
        ports = [free_port() for _ in range(n)]
        routes = ", ".join(f'"nats://127.0.0.1:{port}"' for port in ports)
        return [
            NatsServer(
                self.folder,
                name=f"n{i}",
                more=f'cluster {{ name: "drill", listen: "127.0.0.1:{port}", routes: [{routes}], no_advertise: true }}',
            )
            for i, port in enumerate(ports)
        ]

    @property
    def ports(self) -> list[int]:
        """Of the API, through the gates."""
        return [self.gates[f"client~{name}"][0].port for name in USERS]

    async def __aenter__(self) -> "Stack":
        try:
            await self._start()
        except BaseException:
            await self.stop()
            raise
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.stop()

    async def _start(self) -> None:
        self.break_smtp("rcpt", lambda: None)
        await self.smtp.listen()
        for broker in self.brokers:
            broker.start()
        for broker in self.brokers:
            await broker_up(broker)
        urls = ",".join(broker.url for broker in self.brokers)
        await provisioned(urls, QUEUE_MAX_SIZE, len(self.brokers))
        self.direct = await connect(name="test", url=urls, on_closed=lambda reason: None)
        for name in (*USERS, *EMAILS):
            await self._add(name)
        for service in self.services.values():
            service.start()
        for name in self.services:
            await self.ready(name)

    async def _add(self, name: str) -> None:
        module = name.partition("-")[0]
        to_broker = [await self._gate(f"{name}~broker", broker.port) for broker in self.brokers]
        env = SETTINGS | {
            "NATS_URL": ",".join(f"nats://127.0.0.1:{gate.port}" for gate in to_broker),
            "NATS_MONITORING_URL": ",".join(broker.monitoring_url for broker in self.brokers),
            "STREAM_REPLICAS": str(len(self.brokers)),
        }
        if module == "email_svc":
            env["SMTP_URL"] = f"smtp://127.0.0.1:{(await self._gate(f'{name}~smtp', self.smtp.port)).port}"
        service = self.services[name] = Service(module, self.folder, env | login(module), name=name)  # type: ignore[arg-type]
        self.operators[name] = Http(service.metrics_port)
        if module == "user_svc":
            await self._gate(f"client~{name}", service.http_port)

    async def _gate(self, name: str, port: int) -> Gate:
        gate = Gate(name, port)
        await gate.listen()
        self.gates.setdefault(name, []).append(gate)
        return gate

    async def ready(self, name: str, *, within_s: float = 180.0) -> None:
        """Waits until a service is; one that ends meanwhile is left to the supervisor."""

        async def look() -> bool:
            return (await self.operators[name].ask("GET", "/readyz", within_s=2))[0] == 200

        await eventually(look, within_s=within_s, what=f"{name} ready")

    async def supervise(self) -> None:
        """For ever: starts again what ended by itself, as a supervisor does in production."""
        while True:
            await asyncio.sleep(0.5)
            for name, service in self.services.items():
                if name not in self.stopping and not service.running:
                    self.ended_by_themselves.append(name)
                    service.start()

    async def operate(self, service: str, path: str, body: dict[str, Any], *, within_s: float = 180.0) -> Any:
        """An operator's action on whichever replica of a service (`user_svc`, `email_svc`) answers first, until one
        does; returns its answer, of a replay also that there is none or that one runs. Patient with each: what is
        given up may be done later.

        Raises:
            TimeoutError: none did.
        """
        async with asyncio.timeout(within_s):
            while True:
                for name in USERS if service == "user_svc" else EMAILS:
                    status, answer = await self.operators[name].ask("POST", path, body, within_s=30)
                    if status in (200, 202) or (path == REPLAY and status in (404, 409)):
                        return answer
                await asyncio.sleep(0.1)

    async def api(self, call: str, *, within_s: float = 180.0) -> Any:
        """One call of JetStream's API, past the gates, until it is answered; None: no such stream or consumer."""
        async with asyncio.timeout(within_s):
            while True:
                try:
                    return await self.direct.api(call, timeout_s=1)
                except Unavailable:
                    await asyncio.sleep(0.1)
                except ApiError as exc:
                    if exc.err_code in (NO_STREAM, NO_CONSUMER):
                        return None
                    await asyncio.sleep(0.1)  # a cluster without a leader, say

    async def stop(self) -> None:
        """Kills all that runs, and closes everything."""
        with contextlib.suppress(AttributeError):
            await self.direct.close()
        for operator in self.operators.values():
            operator.close()
        for process in (*self.services.values(), *self.brokers):
            await asyncio.to_thread(process.kill)
        for gates in self.gates.values():
            for gate in gates:
                gate.close()
        await self.smtp.refuse()


async def broker_up(broker: NatsServer) -> None:
    """Waits until JetStream is up, asking from a thread: a frozen broker must not stop the gates."""

    async def look() -> bool:
        return await asyncio.to_thread(http_status, broker.monitoring_url + "/healthz") == 200

    await eventually(look, within_s=180, what=f"{broker.name} ready")
