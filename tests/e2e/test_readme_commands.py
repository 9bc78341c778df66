"""The README's commands, run as it says, against a system that `just up` started."""

import asyncio
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import httpx
import pytest

from tests.support.monitoring import ALERTS, RECORDED
from tests.support.processes import ROOT, NatsServer, Process, System, free_port, login, stopping
from tests.support.recipes import just, run, said
from tests.support.smtp_server import Reply, SmtpServer
from tests.support.waiting import eventually

README = (ROOT / "README.md").read_text()
PORTS = (
    "NATS_PORT",
    "NATS_MONITORING_PORT",
    "INBOX_SMTP_PORT",
    "INBOX_HTTP_PORT",
    "HTTP_PORT",
    "USER_METRICS_PORT",
    "EMAIL_METRICS_PORT",
)


@pytest.fixture
async def local(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[dict[str, str]]:
    """The environment of a running `just up` with ports and data of its own; a test may add to it (indirect)."""
    env = {name: str(free_port()) for name in PORTS} | {"MAILFLOW_DATA": str(tmp_path / "data"), "NO_COLOR": "1"}
    env |= getattr(request, "param", {})
    runner = Process("up", just("up"), tmp_path, env)
    runner.start()

    def running() -> bool:
        assert runner.running, runner.text()[-3000:]
        return "MailFlow is running" in runner.text()

    try:
        await eventually(running, within_s=60)
        yield env
    finally:
        await runner.terminate(30)  # just gives the signal on, and has a status of its own
    assert re.search(r"^mailflow .*stopped$", runner.text(), re.MULTILINE), runner.text()[-3000:]


async def test_first_mail_and_every_recipe(local: dict[str, str]) -> None:
    """The README's curl gives a 201 and a mail in the inbox; each recipe that looks or acts does what it says."""
    shown = re.search(r"^curl .*?(?=^```)", README, re.MULTILINE | re.DOTALL)
    assert shown is not None
    command = shown[0].replace("127.0.0.1:8080", f"127.0.0.1:{local['HTTP_PORT']}")
    assert command != shown[0]
    assert "201 Created" in said(["bash", "-c", command])
    async with httpx.AsyncClient() as client:

        async def arrived() -> bool:
            inbox = await client.get(f"http://127.0.0.1:{local['INBOX_HTTP_PORT']}/api/v1/messages")
            return bool(inbox.json()["total"] == 1)

        await eventually(arrived, within_s=15)

    assert said(just("create-user"), local).startswith("201")
    assert said(just("health-check"), local).count("ok ") == 5
    for command, expected in (
        (just("breaker"), '"state": "closed"'),
        (just("ledger"), '"gap"'),
        (just("backlog"), '"oldest_age_seconds"'),
        (just("rate-limit"), '"token_bucket"'),
        (just("dead-letters"), '"dead_letters"'),
        (just("replay-count"), '"matching": 0'),
        (just("replay-progress"), '"running": false'),
        (just("replay-stop"), '"running": false'),
        (just("downtime"), '"down": true'),
        (just("downtime-end"), '"down": false'),
        (just("breaker-open"), '"until_further_notice": true'),
        (just("breaker-close"), '"state": "closed"'),
        (just("breaker-open", "10m"), '"state": "open"'),
        (just("audit"), '"breaker-open"'),
        (just("monitor-metrics"), "breaker"),
        (just("versions"), "nats-server"),
    ):
        assert expected in said(command, local), command
    assert "No dead letter matches" in run(just("replay"), local).stdout


@pytest.mark.parametrize("local", [{"CIRCUIT_BREAKER_TIMEOUT": "2s", "RATE_LIMIT_RPM": "0"}], indirect=True)
async def test_a_demo_fails_and_recovers(local: dict[str, str], tmp_path: Path) -> None:
    """`just demo`: the breaker opens and closes, everybody has a mail; ended on the way, the mail server is up."""
    told = await asyncio.to_thread(said, just("demo", "--every", "0.2", "--well", "1"), local)
    steps = ("Somebody registers", "is down", "The breaker is open", "up again", "the breaker closed", "Done.")
    places = [told.index(step) for step in steps]
    assert places == sorted(places)
    assert "the books' gap is 0" in told
    assert run(just("demo", "--every", "0"), local).returncode != 0
    demo = Process("demo", [sys.executable, str(ROOT / "deploy/local/demo.py"), "--well", "0"], tmp_path, local)
    with stopping(demo):
        demo.start()
        await eventually(lambda: "The breaker is open" in demo.text(), within_s=60)
        assert await demo.terminate() == 130
    async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{local['EMAIL_METRICS_PORT']}") as email:

        async def up() -> bool:
            return (await email.get("/downtime")).json()["down"] is False

        await eventually(up, what="a mail server that is up again")


async def test_the_nats_cli_shows_it_all(local: dict[str, str]) -> None:
    """Without the CLI: what to install. With it: streams, consumers, the queue and its pause, the users' keys."""
    uv = Path(shutil.which("uv") or "").parent
    without = local | {"PATH": f"{Path(sys.executable).parent}:{uv}:/usr/bin:/bin", "GOBIN": "", "GOPATH": "/nowhere"}
    if shutil.which("nats", path=without["PATH"]) is None:
        done = run(just("streams"), without)
        assert done.returncode != 0
        assert "go install github.com/nats-io/natscli/nats" in done.stdout
    if shutil.which("nats") is None:
        pytest.skip("the nats CLI is not installed: go install github.com/nats-io/natscli/nats@v0.5.0")
    said(just("create-user"), local)
    for command, expected in (
        (just("streams"), "WELCOME_EMAILS"),
        (just("stream", "DELIVERIES"), "deliveries.*.*.attempts"),
        (just("consumers", "DELIVERIES"), "count-sent"),
        (just("users-bucket"), "u."),
        (just("kv", "CONTROL"), "breaker"),
        (just("rpc-ls"), "mailflow-users"),
        (just("rpc-info"), "users.create"),
        (just("rpc-create"), '"status":"queued"'),
        (just("rpc-stats"), "Processing Time"),
    ):
        assert expected in said(command, local), command

    assert "remaining)" not in said(just("queue"), local)
    said(just("breaker-open"), local)
    await eventually(
        lambda: re.search(r"Paused Until.* remaining\)", said(just("queue"), local)), what="the pause shown"
    )
    said(just("breaker-close"), local)
    await eventually(lambda: "remaining)" not in said(just("queue"), local), what="no pause")

    by_hand = re.search(r"`(nats --user operator --password … --inbox-prefix _INBOX_operator)`", README)
    assert by_hand is not None
    kept = (Path(local["MAILFLOW_DATA"]) / "nats-passwords.env").read_text()
    password = re.search(r"^NATS_OPERATOR_PASSWORD=(.+)$", kept, re.MULTILINE)
    assert password is not None
    url = {"NATS_URL": f"nats://127.0.0.1:{local['NATS_PORT']}"}
    stream_ls = [*shlex.split(by_hand[1].replace("…", password[1])), "stream", "ls", "--names"]
    assert "WELCOME_EMAILS" in said(stream_ls, url)
    assert run([word.replace(password[1], "wrong") for word in stream_ls], url).returncode != 0


async def test_nothing_runs_says_so() -> None:
    """Recipes that need a running system say what starts it."""
    env = {name: str(free_port()) for name in PORTS}
    for command in (just("create-user"), just("health-check"), just("ledger")):
        done = run(command, env)
        assert done.returncode != 0
        assert "just up" in done.stdout or "down" in done.stdout


async def test_a_dead_letter_is_replayed(system: System, smtp: SmtpServer) -> None:
    """`just replay-count` counts it, `just replay` sends it again."""
    smtp.on("rcpt", lambda transaction: Reply(550, "5.1.1 no such user"))
    await system.start()
    env = {
        "HTTP_PORT": str(system.user.http_port),
        "USER_METRICS_PORT": str(system.user.metrics_port),
        "EMAIL_METRICS_PORT": str(system.email.metrics_port),
    }
    assert "201" in await asyncio.to_thread(said, just("create-user", "ada@example.com"), env)

    async def dead() -> bool:
        return '"code": 550' in await asyncio.to_thread(said, just("dead-letters", "state=dead&code=550"), env)

    await eventually(dead, within_s=30)
    assert '"matching": 1' in await asyncio.to_thread(said, just("replay-count", '{"code": 550}'), env)
    smtp.on("rcpt", lambda transaction: None)
    assert "202" in await asyncio.to_thread(said, just("replay"), env)
    await eventually(lambda: [t.rcpt for t in smtp.accepted] == ["ada@example.com"], within_s=30)


async def test_prometheus_beside_it(local: dict[str, str], tmp_path: Path) -> None:
    """`just prometheus`: the shipped rules, both services and itself scraped, on the ports that were asked for."""
    if shutil.which("prometheus") is None:
        pytest.skip("prometheus is not installed: apt-get install prometheus")
    env = local | {"PROMETHEUS_PORT": str(free_port()), "USER_METRICS_PORT": f":{local['USER_METRICS_PORT']}"}
    beside = Process("prometheus", just("prometheus"), tmp_path, env)
    beside.start()
    ports = (local["USER_METRICS_PORT"], local["EMAIL_METRICS_PORT"], env["PROMETHEUS_PORT"])
    try:
        async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{env['PROMETHEUS_PORT']}/api/v1") as client:

            async def scraped() -> bool:
                assert beside.running, beside.text()[-3000:]
                try:
                    answer = await client.get("/targets")
                except httpx.TransportError:
                    return False
                targets = answer.json()["data"]["activeTargets"] if answer.status_code == 200 else []
                up = {target["scrapeUrl"] for target in targets if target["health"] == "up"}
                return up == {f"http://127.0.0.1:{port}/metrics" for port in ports}

            await eventually(scraped, within_s=60, what="all scraped")
            groups = (await client.get("/rules")).json()["data"]["groups"]
            assert {rule["name"] for group in groups for rule in group["rules"]} == ALERTS.keys() | RECORDED.keys()
    finally:
        await beside.terminate(30)


async def test_moved_from_the_local_broker(tmp_path: Path) -> None:
    """`just broker` alone; `just backup`, `just restore` and `just move-to-cluster` bring what it keeps to others."""
    env = {name: str(free_port()) for name in PORTS} | {"MAILFLOW_DATA": str(tmp_path / "data")}
    old = Process("broker", just("broker"), tmp_path, env | {"NATS_OPERATOR_PASSWORD": "of-operator"})
    restored, moved = NatsServer(tmp_path / "restored"), NatsServer(tmp_path / "moved")
    url = f"nats://127.0.0.1:{env['NATS_PORT']}"
    with stopping(restored, moved):
        for process in (old, restored, moved):
            process.start()
        try:
            await asyncio.gather(restored.ready(), moved.ready())
            await eventually(lambda: "Server is ready" in old.text(), within_s=30)
            kept = (tmp_path / "data" / "nats-passwords.env").read_text()
            password = re.search(r"^NATS_PROVISIONER_PASSWORD=(.+)$", kept, re.MULTILINE)
            assert password is not None
            provisioner = {"NATS_URL": url, "NATS_USER": "provisioner", "NATS_PASSWORD": password[1]}
            provision = [sys.executable, "-m", "contracts.topology"]
            subprocess.run(provision, cwd=ROOT, env=os.environ | provisioner, check=True, capture_output=True)
            operator = login("operator") | {"STREAM_REPLICAS": "1"}
            saved = str(tmp_path / "saved")
            assert "KV_USERS" in said(just("backup", saved), operator | {"NATS_URL": url})
            for _ in range(2):
                assert "gap" in said(just("restore", saved, "replace"), operator | {"NATS_URL": restored.url})
            assert "holds" in run(just("restore", saved), operator | {"NATS_URL": restored.url}).stdout
            done = said(just("move-to-cluster", url, moved.url, str(tmp_path / "way")), operator)
            assert f"Start both services with NATS_URL={moved.url}" in done
        finally:
            await old.terminate(30)
