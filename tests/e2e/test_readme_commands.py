"""The README's commands, run as it says, against a system that `just up` started."""

import asyncio
import json
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import httpx
import pytest

from tests.support.processes import ROOT, Process, free_port
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
async def local(tmp_path: Path) -> AsyncIterator[dict[str, str]]:
    """The environment of a running `just up` with ports and data of its own."""
    env = {name: str(free_port()) for name in PORTS} | {"MAILFLOW_DATA": str(tmp_path / "data"), "NO_COLOR": "1"}
    runner = Process("up", [sys.executable, "deploy/local/up.py"], tmp_path, env)
    runner.start()

    def running() -> bool:
        assert runner.running, runner.text()[-3000:]
        return "MailFlow is running" in runner.text()

    await eventually(running, within_s=60)
    yield env
    runner.signal(signal.SIGTERM)
    assert await runner.exit_status(30) == 0, runner.text()[-3000:]


async def just(env: dict[str, str], *arguments: str) -> tuple[int, str]:
    """Exit status and output of a recipe."""
    command = [str(Path(sys.executable).parent / "just"), "--yes", *arguments]
    child = await asyncio.create_subprocess_exec(
        *command, cwd=ROOT, env=os.environ | env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )
    async with asyncio.timeout(60):
        output, _ = await child.communicate()
    return child.returncode or 0, output.decode()


def body(output: str) -> dict[str, object]:
    """The JSON after the status line of a recipe's answer."""
    found: dict[str, object] = json.loads(output.partition("\n")[2])
    return found


async def test_first_mail_and_every_recipe(local: dict[str, str]) -> None:
    """The README's curl gives a 201 and a mail in the inbox; each recipe that looks or acts does what it says."""
    shown = re.search(r"-d '(\{\"email\".*?\})'", README)
    assert shown is not None
    async with httpx.AsyncClient() as client:
        answer = await client.post(
            f"http://127.0.0.1:{local['HTTP_PORT']}/v1/users", json=json.loads(shown[1]), timeout=10
        )
        assert answer.status_code == 201

        async def arrived() -> bool:
            inbox = await client.get(f"http://127.0.0.1:{local['INBOX_HTTP_PORT']}/api/v1/messages")
            return bool(inbox.json()["total"] == 1)

        await eventually(arrived, within_s=5)

    status, output = await just(local, "create-user")
    assert status == 0, output
    assert output.startswith("201")
    status, output = await just(local, "health-check")
    assert status == 0, output
    assert output.count("ok ") == 5

    for recipe, expected in {
        "breaker": '"state": "closed"',
        "ledger": '"gap"',
        "backlog": '"oldest_age_seconds"',
        "rate-limit": '"token_bucket"',
        "dead-letters": '"dead_letters"',
        "replay-count": '"matching": 0',
        "replay-progress": '"running": false',
        "downtime": '"down": true',
        "downtime-end": '"down": false',
        "breaker-open": '"until_further_notice": true',
        "breaker-close": '"state": "closed"',
        "audit": '"breaker-open"',
        "monitor-metrics": "breaker",
        "versions": "nats-server",
    }.items():
        status, output = await just(local, recipe)
        assert status == 0, f"{recipe}: {output}"
        assert expected in output, f"{recipe}: {output}"
    status, output = await just(local, "breaker-open", "10m")
    assert body(output)["state"] == "open"
    status, output = await just(local, "replay")
    assert status != 0
    assert "No dead letter matches" in output


async def test_streams_are_seen_with_the_nats_cli(local: dict[str, str]) -> None:
    """Without the CLI: what to install. With it: streams, consumers, the queue and the users' keys."""
    uv = Path(shutil.which("uv") or "").parent
    without = local | {"PATH": f"{Path(sys.executable).parent}:{uv}:/usr/bin:/bin", "GOBIN": "", "GOPATH": "/nowhere"}
    if shutil.which("nats", path=without["PATH"]) is None:
        status, output = await just(without, "streams")
        assert status != 0
        assert "go install github.com/nats-io/natscli/nats" in output
    if shutil.which("nats") is None:
        pytest.skip("the nats CLI is not installed: go install github.com/nats-io/natscli/nats@v0.5.0")
    await just(local, "create-user")
    for arguments, expected in (
        (("streams",), "WELCOME_EMAILS"),
        (("stream", "DELIVERIES"), "deliveries.*.*.attempts"),
        (("consumers", "DELIVERIES"), "count-sent"),
        (("queue",), "email-svc"),
        (("users-bucket",), "u."),
        (("kv", "CONTROL"), "breaker"),
        (("rpc-ls",), "mailflow-users"),
        (("rpc-info",), "users.create"),
        (("rpc-create",), '"status":"queued"'),
    ):
        status, output = await just(local, *arguments)
        assert status == 0, f"{arguments}: {output}"
        assert expected in output, f"{arguments}: {output}"


async def test_nothing_runs_says_so(tmp_path: Path) -> None:
    """Recipes that need a running system say what starts it."""
    env = {name: str(free_port()) for name in PORTS}
    for recipe in ("create-user", "health-check", "ledger"):
        status, output = await just(env, recipe)
        assert status != 0
        assert "just up" in output or "down" in output


async def test_prometheus_beside_it(local: dict[str, str], tmp_path: Path) -> None:
    """`just prometheus` scrapes what `just up` runs."""
    if shutil.which("prometheus") is None:
        pytest.skip("prometheus is not installed: apt-get install prometheus")
    env = local | {"PROMETHEUS_PORT": str(free_port())}
    beside = Process("prometheus", [str(Path(sys.executable).parent / "just"), "prometheus"], tmp_path, env)
    beside.start()
    try:
        async with httpx.AsyncClient() as client:

            async def scraped() -> bool:
                assert beside.running, beside.text()[-3000:]
                try:
                    answer = await client.get(f"http://127.0.0.1:{env['PROMETHEUS_PORT']}/api/v1/targets")
                except httpx.TransportError:
                    return False
                targets = answer.json()["data"]["activeTargets"] if answer.status_code == 200 else []
                up = {target["labels"]["job"] for target in targets if target["health"] == "up"}
                return len(up) >= 2

            await eventually(scraped, within_s=60, what="both services scraped")
    finally:
        beside.signal(signal.SIGTERM)
        await beside.exit_status(30)
