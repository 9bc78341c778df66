"""`just up` without the services: how the runner starts, watches and stops its children."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.support.processes import free_port

LOCAL = Path(__file__).resolve().parents[2] / "deploy" / "local"
DEADLINE_S = 30.0
PORTS = (
    "HTTP_PORT",
    "USER_METRICS_PORT",
    "EMAIL_METRICS_PORT",
    "NATS_PORT",
    "NATS_MONITORING_PORT",
    "INBOX_SMTP_PORT",
    "INBOX_HTTP_PORT",
)

RUN = """
import asyncio, json, sys
import supervisor
supervisor.FIRST_DELAY_S = 0.01
waves = [[supervisor.Child(**child) for child in wave] for wave in json.loads(sys.argv[1])]
sys.exit(asyncio.run(supervisor.run(waves, on_ready=lambda: "everything is ready")))
"""

BROKER_AND_INBOX = """
import asyncio, os, pathlib, sys
import supervisor, up
ports = up.read_ports(os.environ, up.SERVICES + up.BROKER + up.INBOX)
data = pathlib.Path(os.environ["MAILFLOW_DATA"])
lock = up.lock_data(data)
waves = up.children(os.environ, ports, data)[:1]
sys.exit(asyncio.run(supervisor.run(waves, on_ready=lambda: up.banner(ports, data))))
"""

POLITE = """
import signal, sys, threading
def bye(*_):
    print("bye", flush=True)
    sys.exit(0)
signal.signal(signal.SIGTERM, bye)
import os; print("pid", os.getpid(), flush=True)
while True:
    signal.pause()
"""

STUBBORN = POLITE.replace("sys.exit(0)", "pass")


class Runner:
    """One runner as a process; what it says is kept in a file."""

    def __init__(self, log: Path, code: str, *arguments: str, env: dict[str, str] | None = None) -> None:
        self.log = log
        with log.open("wb") as output:
            self.process = subprocess.Popen(
                [sys.executable, "-c", code, *arguments],
                env=os.environ | {"PYTHONPATH": str(LOCAL)} | (env or {}),
                stdout=output,
                stderr=subprocess.STDOUT,
                # Ignored where a shell has started these tests in the background, and the runner keeps to that.
                preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # noqa: PLW1509
            )

    def said(self) -> str:
        return self.log.read_text()

    def wait_for(self, text: str, times: int = 1) -> None:
        poll(lambda: self.said().count(text) >= times, lambda: f"{text!r} not said:\n{self.said()}")

    def exit_code(self) -> int:
        return self.process.wait(DEADLINE_S)

    def pids(self) -> list[int]:
        return [int(line.split("pid ")[1]) for line in self.said().splitlines() if "pid " in line]


Start = Callable[..., Runner]


def poll(done: Callable[[], bool], complaint: Callable[[], str]) -> None:
    deadline = time.monotonic() + DEADLINE_S
    while not done():
        assert time.monotonic() < deadline, complaint()
        time.sleep(0.02)


def alive(pid: int) -> bool:
    """Not gone and no zombie that waits for its new parent."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def child(name: str, code: str, **more: Any) -> dict[str, Any]:
    return {"name": name, "command": [sys.executable, "-c", code], **more}


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    """Start a runner over waves of stand-in children; none is left behind."""
    started: list[Runner] = []

    def begin(*waves: list[dict[str, Any]], code: str = RUN, env: dict[str, str] | None = None) -> Runner:
        started.append(Runner(tmp_path / f"log{len(started)}", code, json.dumps(waves), env=env))
        return started[-1]

    yield begin
    for runner in started:
        if runner.process.poll() is None:
            runner.process.kill()
            runner.process.wait(DEADLINE_S)


@pytest.fixture
def env(tmp_path: Path) -> dict[str, str]:
    """Free ports and a data directory of its own."""
    return {name: str(free_port()) for name in PORTS} | {"MAILFLOW_DATA": str(tmp_path / "data")}


def up(env: dict[str, str], *arguments: str) -> subprocess.CompletedProcess[str]:
    """`just up` where it is expected to refuse."""
    clean = {name: value for name, value in os.environ.items() if name not in ("NATS_URL", "SMTP_URL")}
    command = [sys.executable, str(LOCAL / "up.py"), *arguments]
    return subprocess.run(command, env=clean | env, capture_output=True, text=True, timeout=DEADLINE_S)


def test_taken_port_is_named_before_anything_starts(env: dict[str, str], tmp_path: Path) -> None:
    """Which port, what it is for, which variable changes it."""
    with socket.socket() as other:
        other.bind(("127.0.0.1", int(env["HTTP_PORT"])))
        other.listen()
        result = up(env)
    assert result.returncode == 2
    assert f"port {env['HTTP_PORT']} for the API" in result.stderr
    assert "HTTP_PORT=" in result.stderr
    assert "Is MailFlow already running?" in result.stderr
    assert "NATS_PORT" not in result.stderr
    assert not (tmp_path / "data").exists()


@pytest.mark.parametrize("value", ["0", "65536", "http", "80 80", "-1", "²"])
def test_what_is_no_port_is_refused(env: dict[str, str], value: str) -> None:
    """Name, value and what is allowed."""
    result = up(env | {"NATS_PORT": value})
    assert result.returncode == 2
    assert f"NATS_PORT={value!r} is not a port: 1 to 65535" in result.stderr


def test_one_port_for_two_purposes_is_refused(env: dict[str, str]) -> None:
    """Both variables are named."""
    result = up(env | {"HTTP_PORT": f":{env['INBOX_HTTP_PORT']}"})
    assert result.returncode == 2
    assert f"HTTP_PORT and INBOX_HTTP_PORT are both {env['INBOX_HTTP_PORT']}" in result.stderr


def test_children_start_wave_by_wave_and_stop_in_reverse(start: Start, env: dict[str, str]) -> None:
    """The second wave waits until the first is ready; SIGTERM ends it first; the exit code is 0."""
    port = env["HTTP_PORT"]
    serving = f"""
import http.server, os, signal, sys
class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200)
        self.end_headers()
def bye(*_):
    print("bye", flush=True)
    os._exit(0)
signal.signal(signal.SIGTERM, bye)
http.server.HTTPServer(("127.0.0.1", {port}), Handler).serve_forever()
"""
    runner = start(
        [child("first", serving, ready_url=f"http://127.0.0.1:{port}/readyz")],
        [child("second", POLITE)],
    )
    runner.wait_for("everything is ready")
    runner.wait_for("pid ")
    runner.process.send_signal(signal.SIGTERM)
    assert runner.exit_code() == 0
    lines = runner.said().splitlines()
    facts = ["first is ready", "second   | pid", "SIGTERM: stopping", "second   | bye", "first    | bye", "| stopped"]
    places = [next(at for at, line in enumerate(lines) if fact in line) for fact in facts]
    assert places == sorted(places), runner.said()
    assert "\033" not in runner.said(), "colour without a terminal"


def test_what_runs_once_is_done_before_the_next_wave(start: Start) -> None:
    """Its end is no death: the others go on, and it is not started again. If it fails the next does not start."""
    runner = start([child("steady", POLITE), child("work", "print('pid 0')", once=True)], [child("second", POLITE)])
    runner.wait_for("everything is ready")
    runner.wait_for("second   | pid")
    assert runner.said().index("work is done") < runner.said().index("second   | pid")
    assert runner.process.poll() is None
    runner.process.send_signal(signal.SIGTERM)
    assert runner.exit_code() == 0
    assert runner.said().count("work     | pid 0") == 1

    refused = start([child("work", "raise SystemExit(78)", once=True)], [child("second", POLITE)])
    assert refused.exit_code() == 1
    assert "work refused to start (exit status 78)" in refused.said()
    assert "second   |" not in refused.said()


def test_dying_child_is_named_and_started_again(start: Start) -> None:
    """Its exit status or signal is said; the others go on."""
    runner = start([child("steady", POLITE), child("weak", POLITE)])
    runner.wait_for("weak     | pid")
    before = next(line for line in runner.said().splitlines() if line.startswith("weak ") and "pid" in line)
    os.kill(int(before.split("pid ")[1]), signal.SIGKILL)
    runner.wait_for("weak died after")
    assert "killed by SIGKILL" in runner.said()
    runner.wait_for("weak     | pid", times=2)
    assert runner.said().count("steady   | pid") == 1
    runner.process.send_signal(signal.SIGINT)
    assert runner.exit_code() == 0


@pytest.mark.parametrize("code", [2, 78])
def test_refused_settings_stop_everything(start: Start, code: int) -> None:
    """Nobody is started again who says that the settings are wrong."""
    refusing = f"print('HTTP_PORT=x is not a port'); raise SystemExit({code})"
    never = "http://127.0.0.1:1/readyz"
    runner = start([child("steady", POLITE), child("wrong", refusing, ready_url=never)])
    assert runner.exit_code() == 1
    assert "wrong    | HTTP_PORT=x is not a port" in runner.said()
    assert f"wrong refused to start (exit status {code})" in runner.said()
    assert not any(map(alive, runner.pids()))


def test_child_that_never_gets_ready_ends_the_run(start: Start) -> None:
    """After five deaths in a row; each is named."""
    runner = start([child("broken", "raise SystemExit(1)", ready_url="http://127.0.0.1:1/readyz")])
    assert runner.exit_code() == 1
    assert runner.said().count("starting it again") == 4
    assert "broken died 5 times in a row" in runner.said()


def test_missing_program_ends_the_run(start: Start) -> None:
    """What cannot be started at all is said, not retried."""
    runner = start([{"name": "absent", "command": ["/nonexistent/program"]}])
    assert runner.exit_code() == 1
    assert "absent cannot be started" in runner.said()


def test_child_that_ignores_sigterm_is_killed_after_its_limit(start: Start) -> None:
    """And the run still ends well."""
    runner = start([child("stubborn", STUBBORN, stop_within_s=0.2)])
    runner.wait_for("pid ")
    runner.process.send_signal(signal.SIGTERM)
    assert runner.exit_code() == 0
    assert "stubborn did not stop within 0.2 s: killing it" in runner.said()
    assert not any(map(alive, runner.pids()))


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux can tie a child's life to its parent's")
def test_killed_runner_leaves_no_orphan(start: Start) -> None:
    """kill -9 of the runner takes everything with it, even who ignores SIGTERM."""
    runner = start([child("polite", POLITE)], [child("stubborn", STUBBORN)])
    runner.wait_for("pid ", times=2)
    pids = runner.pids()
    assert all(map(alive, pids))
    runner.process.kill()
    runner.exit_code()
    poll(lambda: not any(map(alive, pids)), lambda: f"still there: {[pid for pid in pids if alive(pid)]}")


def test_broker_and_inbox_come_up_and_the_data_is_locked(start: Start, env: dict[str, str], tmp_path: Path) -> None:
    """The real broker syncs each write, its store lies in the data directory, a second run is refused."""
    runner = start(code=BROKER_AND_INBOX, env=env)
    runner.wait_for("MailFlow is running")
    jetstream = httpx.get(f"http://127.0.0.1:{env['NATS_MONITORING_PORT']}/jsz").json()
    assert jetstream["config"]["sync_always"] is True
    assert jetstream["config"]["store_dir"].startswith(str(tmp_path / "data" / "nats"))
    assert httpx.get(f"http://127.0.0.1:{env['INBOX_HTTP_PORT']}/readyz").text == "ok"
    assert f"curl -i -X POST http://127.0.0.1:{env['HTTP_PORT']}/v1/users" in runner.said()

    second = start(code=BROKER_AND_INBOX, env=env)
    assert second.exit_code() != 0
    assert "is in use by another `just up`" in second.said()

    runner.process.send_signal(signal.SIGTERM)
    assert runner.exit_code() == 0


def test_the_broker_alone_has_the_data_and_the_users_of_the_local_run(env: dict[str, str], tmp_path: Path) -> None:
    """`up.py broker`: its operator gets in with the password that is kept there, nobody without; the data is locked."""
    data = Path(env["MAILFLOW_DATA"])
    with (tmp_path / "broker.log").open("wb") as log:
        broker = subprocess.Popen([sys.executable, str(LOCAL / "up.py"), "broker"], env=os.environ | env, stderr=log)
    try:
        up_and_well = f"http://127.0.0.1:{env['NATS_MONITORING_PORT']}/healthz"

        def ready() -> bool:
            assert broker.poll() is None, (tmp_path / "broker.log").read_text()
            try:
                return httpx.get(up_and_well).status_code == 200
            except httpx.TransportError:
                return False

        poll(ready, (tmp_path / "broker.log").read_text)
        refused = up(env | {"NATS_PORT": env["HTTP_PORT"], "NATS_MONITORING_PORT": env["INBOX_HTTP_PORT"]}, "broker")
        assert refused.returncode == 2
        assert "is in use by another `just up`" in refused.stderr
        command = [sys.executable, str(LOCAL / "backup.py"), "save", str(tmp_path / "saved")]
        own = {"NATS_USER": "operator", "NATS_PASSWORD": "guessed"}
        clean = {name: value for name, value in os.environ.items() if name != "NATS_URL"}
        saved, guessed = (
            subprocess.run(command, env=clean | env | login, capture_output=True, text=True, timeout=DEADLINE_S)
            for login in ({}, own)
        )
        assert (saved.returncode, "stream not found" in saved.stderr) == (1, True), saved
        assert (guessed.returncode, "the broker refuses the login" in guessed.stderr) == (78, True), guessed
    finally:
        broker.terminate()
        broker.wait(DEADLINE_S)
    assert (data / "nats").is_dir()


def test_each_logs_in_as_itself(env: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Before the services comes the provisioner, who alone may make streams; nobody has another's password."""
    monkeypatch.syspath_prepend(str(LOCAL))
    import passwords
    import up as local

    tmp_path.joinpath("data").mkdir()
    own = env | {"NATS_CREDS": "/for/another", "NATS_USER": "another", "PROVISION": "auto", "QUEUE_MAX_SIZE": "5"}
    ports = local.read_ports(own, local.SERVICES + local.BROKER + local.INBOX)
    (nats, inbox), (provisioner,), services = local.children(own, ports, tmp_path / "data")
    known = passwords.passwords(tmp_path / "data", {})
    for process in (provisioner, *services):
        user = process.name
        assert (process.env["NATS_USER"], process.env["NATS_PASSWORD"]) == (user, known[user])
        assert process.env["PROVISION"] == ("auto" if process is provisioner else "verify")
        assert process.env["QUEUE_MAX_SIZE"] == "5"
        assert "NATS_CREDS" not in process.env
    for process in (inbox, provisioner, *services):
        others = {password for user, password in known.items() if user != process.name}
        assert not others & set(process.env.values())
    assert {f'"{password}"' for password in known.values()} <= set(nats.env.values())


def test_own_urls_take_the_place_of_broker_and_inbox(env: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Only the services are run, with the URLs they were given and each with its own METRICS_PORT."""
    monkeypatch.syspath_prepend(str(LOCAL))
    import up as local

    own = env | {"NATS_URL": "nats://broker:4222", "SMTP_URL": "smtp://relay:25", "QUEUE_MAX_SIZE": "5"}
    own |= {"NATS_USER": "me", "NATS_PASSWORD": "x", "PROVISION": "auto"}
    ports = local.read_ports(own, local.SERVICES)
    below, (user_svc, email_svc) = local.children(own, ports, Path("unused"))
    assert below == []
    assert user_svc.env["NATS_URL"] == email_svc.env["NATS_URL"] == "nats://broker:4222"
    assert "NATS_MONITORING_URL" not in user_svc.env
    for service in (user_svc, email_svc):
        assert (service.env["NATS_USER"], service.env["PROVISION"]) == ("me", "auto")
    assert email_svc.env["SMTP_URL"] == "smtp://relay:25"
    assert user_svc.env["QUEUE_MAX_SIZE"] == "5"
    assert user_svc.env["METRICS_PORT"] == env["USER_METRICS_PORT"]
    assert email_svc.env["METRICS_PORT"] == env["EMAIL_METRICS_PORT"]
    assert not {"NATS_PORT", "EMAIL_METRICS_PORT", "SMTP_URL"} & set(user_svc.env)
