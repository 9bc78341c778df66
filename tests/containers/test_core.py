"""compose.yaml without gateway and monitoring: comes up, delivers, survives its broker, stops in order."""

import asyncio
import re
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from tests.containers.test_compose_files import CORE
from tests.support.containers import IMAGE, Compose, docker, free_ports
from tests.support.recipes import cloned, just, run, said, unanswered
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
        quick = run(just("quick-start", *CORE), compose.env)
        assert quick.returncode == 0, f"{quick.stdout}\n{compose('logs').stdout}"
        for port in ("HTTP_PORT", "USER_METRICS_PORT", "EMAIL_METRICS_PORT", "INBOX_HTTP_PORT"):
            assert f" http://127.0.0.1:{ports[port]}" in quick.stdout
        assert '"status": "queued"' in quick.stdout, "the first user"
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


def shown(logs: str) -> set[str]:
    """Whose lines these are: compose writes the container's name, without the project's, before each."""
    return set(re.findall(r"([a-z-]+-\d+) +\| ", logs))


async def test_the_recipes_look_and_act(core: Compose) -> None:
    """Each Docker recipe does what its help says; a mail goes through after all of them."""
    env = core.env | {"LC_ALL": "C.UTF-8"}
    assert "user-svc" in said(just("docker-ps"), env)
    assert said(just("status"), env).count("ok ") == 5
    assert shown(said(just("docker-logs", "--no-color"), env)) >= {"nats-1", "user-svc-1", "email-svc-1"}
    assert shown(said(just("logs-user", "--no-color", "--tail", "5"), env)) == {"user-svc-1"}
    assert shown(said(just("logs-email", "--no-color", "--tail", "5"), env)) == {"email-svc-1"}
    assert said(just("logs-gateway"), env) == "", "it has no container here, and the recipe shows no other's log"
    for service, command in (("user-svc", just("restart-user")), ("email-svc", just("restart-email"))):
        before = started(core, service)
        said(command, env)
        assert started(core, service) > before
    before = started(core, "mailpit")
    said(just("restart-all"), env)
    assert started(core, "mailpit") > before
    said(just("rebuild"), env)
    said(just("docker-up", *CORE), env)
    await register(core, "barbara")
    await delivered(core, "barbara")


def test_services_stop_in_order(core: Compose) -> None:
    """SIGTERM ends them with 0, long before Docker would kill them."""
    core("stop", "user-svc", "email-svc")
    ended = {c["Service"]: c["ExitCode"] for c in core.containers().values() if c["State"] == "exited"}
    assert ended["user-svc"] == 0
    assert ended["email-svc"] == 0


def volumes(compose: Compose) -> list[str]:
    """Those of the project."""
    project = f"label=com.docker.compose.project={compose.env['COMPOSE_PROJECT_NAME']}"
    return docker("volume", "ls", "--quiet", "--filter", project).stdout.split()


def test_down_keeps_the_data_and_clean_and_reset_do_not(core: Compose, tmp_path: Path) -> None:
    """The last test: nothing of the project is left, its image neither (others here get it back); a clone builds one.

    `just reset` removes the tree's data too, so it is a clone's.
    """
    kept = "mailflow:kept-by-a-test"
    docker("tag", IMAGE, kept)
    try:
        said(just("docker-down"), core.env)
        assert core.containers() == {}
        assert volumes(core) != []
        said(just("docker-clean"), core.env)
        assert volumes(core) == []
        assert docker("images", "-q", IMAGE).stdout == ""

        clone = cloned(tmp_path / "mailflow")
        said(just("docker-build", tree=clone), core.env)
        assert docker("images", "-q", IMAGE).stdout != ""
        said(just("docker-up", "nats", tree=clone), core.env)
        data = clone / ".mailflow"
        data.mkdir()
        assert volumes(core) != []
        assert run(unanswered("reset", tree=clone), core.env).returncode != 0
        assert volumes(core) != []
        assert data.exists()
        said(just("reset", tree=clone), core.env)
        assert core.containers() == {}
        assert volumes(core) == []
        assert docker("images", "-q", IMAGE).stdout == ""
        assert not data.exists()
    finally:
        docker("tag", kept, IMAGE)
        docker("rmi", kept)
