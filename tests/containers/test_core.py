"""compose.yaml without gateway and monitoring: comes up, delivers, survives its broker, stops in order."""

import asyncio
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from tests.containers.test_compose_files import CORE
from tests.support.containers import IMAGE, Compose, docker, free_ports
from tests.support.processes import ROOT
from tests.support.waiting import eventually


@pytest.fixture(scope="module")
def core(image: str) -> Iterator[Compose]:
    """The running system as `just quick-start` starts it, on ports of its own, without simulated downtime."""
    ports = free_ports(
        "HTTP_PORT",
        "USER_METRICS_PORT",
        "EMAIL_METRICS_PORT",
        "NATS_PORT",
        "NATS_MONITORING_PORT",
        "INBOX_SMTP_PORT",
        "INBOX_HTTP_PORT",
    )
    compose = Compose("compose.yaml", name="core", DOWNTIME_ENABLED="false", **ports)
    with compose.removed():
        started = subprocess.run(
            [sys.executable, "deploy/local/containers.py", "quick-start", *CORE],
            cwd=ROOT,
            env=compose.env,
            capture_output=True,
            text=True,
        )
        assert started.returncode == 0, f"{started.stdout}\n{started.stderr}\n{compose('logs').stdout}"
        for port in ("HTTP_PORT", "USER_METRICS_PORT", "EMAIL_METRICS_PORT", "INBOX_HTTP_PORT"):
            assert f" http://127.0.0.1:{ports[port]}" in started.stdout
        assert '"status": "queued"' in started.stdout, "the first user"
        yield compose


async def register(compose: Compose, name: str) -> str:
    """A user's id; repeated while the answer is 503, which a broker that was just killed may give."""
    async with httpx.AsyncClient(base_url=compose.url("user-svc", 8080), timeout=10) as client:

        async def created() -> str | None:
            answer = await client.post(
                "/v1/users",
                json={"email": f"{name}@example.com", "name": name.title()},
                headers={"Idempotency-Key": f'"{name}"'},
            )
            assert answer.status_code in (201, 503), answer.text
            return answer.json()["id"] if answer.status_code == 201 else None

        return await eventually(created, within_s=60)


async def delivered(compose: Compose, name: str) -> dict[str, object]:
    """The mail as Mailpit shows it."""
    async with httpx.AsyncClient(base_url=compose.url("mailpit", 8025), timeout=10) as client:

        async def found() -> dict[str, object] | None:
            mails = (await client.get("/api/v1/search", params={"query": f"to:{name}@example.com"})).json()["messages"]
            assert len(mails) <= 1
            return (await client.get(f"/api/v1/message/{mails[0]['ID']}")).json() if mails else None

        return await eventually(found, within_s=60, what=f"mail for {name}")


async def test_a_mail_goes_through(core: Compose) -> None:
    """Registered over REST, read back from the inbox, known as sent."""
    user = await register(core, "ada")
    mail = await delivered(core, "ada")
    assert mail["To"] == [{"Name": "", "Address": "ada@example.com"}]
    assert "Ada" in str(mail["Text"])
    async with httpx.AsyncClient(base_url=core.url("user-svc", 8080)) as client:

        async def sent() -> bool:
            return (await client.get(f"/v1/users/{user}")).json()["welcome_email"]["status"] == "sent"

        await eventually(sent)


def test_everything_is_healthy_and_confined(core: Compose) -> None:
    """What runs is healthy, what had to end did so well; and the engine confines it as the file says."""
    for name, container in core.containers().items():
        state = (container["State"], container["Health"] or container["ExitCode"])
        assert state in (("running", "healthy"), ("exited", 0)), (name, state)
    for service in CORE:
        name = core.container(service)
        format_ = "{{.HostConfig.ReadonlyRootfs}} {{.HostConfig.CapDrop}} {{.Config.User}} {{.HostConfig.Memory}}"
        confined = docker("inspect", "-f", format_, name).stdout.split()
        assert confined[:3] == ["true", "[ALL]", "10001:10001"]
        assert int(confined[3]) > 0


async def test_the_broker_is_killed_and_comes_back(core: Compose) -> None:
    """Its volume keeps what was registered; mails go on without anybody's help."""
    user = await register(core, "grace")
    docker("kill", "--signal", "KILL", core.container("nats"))
    core("start", "nats")
    await register(core, "linus")
    await asyncio.gather(delivered(core, "grace"), delivered(core, "linus"))
    async with httpx.AsyncClient(base_url=core.url("user-svc", 8080)) as client:
        assert (await client.get(f"/v1/users/{user}")).json()["email"] == "grace@example.com"


def started(compose: Compose, service: str) -> str:
    """When its container was started last."""
    return docker("inspect", "-f", "{{.State.StartedAt}}", compose.container(service)).stdout


def test_it_starts_again_as_it_is(core: Compose) -> None:
    """`up` on a running system: the one-shot services run once more and find all done."""
    began = started(core, "provision"), started(core, "nats-volume")
    core("up", "-d", "--wait", "--wait-timeout", "120", *CORE)
    again = started(core, "provision"), started(core, "nats-volume")
    assert all(before < after for before, after in zip(began, again, strict=True)), (began, again)
    assert {c["ExitCode"] for c in core.containers().values() if c["Service"] in ("provision", "nats-volume")} == {0}


def just(compose: Compose, *arguments: str) -> str:
    """What a recipe prints; it must end well."""
    command = [str(Path(sys.executable).parent / "just"), "--yes", *arguments]
    env = compose.env | {"LC_ALL": "C.UTF-8"}
    done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, f"{arguments}: {done.stdout}\n{done.stderr}"
    return done.stdout


async def test_the_recipes_look_and_act(core: Compose) -> None:
    """Each Docker recipe does what its help says; a mail goes through after all of them."""
    assert "user-svc" in just(core, "docker-ps")
    assert just(core, "status").count("ok ") == 5
    assert "process.started" in just(core, "docker-logs", "--no-color") or "topology" in just(core, "docker-logs")
    assert "email-svc" not in just(core, "logs-user", "--tail", "5")
    assert "user-svc" not in just(core, "logs-email", "--tail", "5")
    assert just(core, "logs-gateway") == ""
    assert IMAGE in just(core, "docker-build", "--print", "provision")
    for recipe, service in (("restart-user", "user-svc"), ("restart-email", "email-svc")):
        before = started(core, service)
        just(core, recipe)
        assert started(core, service) > before
    before = started(core, "mailpit")
    just(core, "restart-all")
    assert started(core, "mailpit") > before
    just(core, "rebuild")
    just(core, "docker-up", *CORE)
    await register(core, "barbara")
    await delivered(core, "barbara")


def test_services_stop_in_order(core: Compose) -> None:
    """SIGTERM ends them with 0, long before Docker would kill them."""
    core("stop", "user-svc", "email-svc")
    ended = {c["Service"]: c["ExitCode"] for c in core.containers().values() if c["State"] == "exited"}
    assert ended["user-svc"] == 0
    assert ended["email-svc"] == 0


def test_down_keeps_the_data_and_clean_does_not(core: Compose) -> None:
    """The last test: nothing of the project is left, its image neither (others here get it back)."""
    docker("tag", IMAGE, "mailflow:kept-by-a-test")
    volume = f"{core.env['COMPOSE_PROJECT_NAME']}_nats-data"
    just(core, "docker-down")
    assert core.containers() == {}
    assert volume in docker("volume", "ls", "--format", "{{.Name}}").stdout.split()
    just(core, "docker-clean")
    assert volume not in docker("volume", "ls", "--format", "{{.Name}}").stdout.split()
    assert docker("images", "-q", IMAGE).stdout == ""
    docker("tag", "mailflow:kept-by-a-test", IMAGE)
    docker("rmi", "mailflow:kept-by-a-test")
