"""The console's login, against two replicas with one token: what a browser may do with it, and what it leaves."""

import asyncio
from collections.abc import AsyncIterator, Iterator
from typing import Any

import httpx
import pytest

from tests.support.processes import NatsServer, Service, stopping
from tests.support.waiting import eventually

TOKEN = "sesam-öffne-dich"


@pytest.fixture(scope="module")
def services(nats_server: NatsServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Service, Service]]:
    """Two replicas with the same ADMIN_TOKEN."""
    folder = tmp_path_factory.mktemp("login")
    env = {"NATS_URL": nats_server.url, "NATS_MONITORING_URL": nats_server.monitoring_url, "ADMIN_TOKEN": TOKEN}
    replicas = Service("user_svc", folder, env, name="one"), Service("user_svc", folder, env, name="two")
    with stopping(*replicas):
        for service in replicas:
            service.start()
        for service in replicas:
            asyncio.run(service.ready())
        yield replicas


@pytest.fixture
async def page(services: tuple[Service, Service]) -> AsyncIterator[httpx.AsyncClient]:
    """A browser on the first replica: it keeps cookies and says where it asks from."""
    admin = services[0].admin
    async with httpx.AsyncClient(base_url=admin, headers={"origin": admin}, timeout=10, trust_env=False) as client:
        yield client


async def audited(page: httpx.AsyncClient) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = (await page.get("/audit")).json()["audit"]
    return rows


async def test_a_login_acts_on_every_replica_until_it_is_over(
    page: httpx.AsyncClient, services: tuple[Service, Service]
) -> None:
    """The cookie holds no token; the audit says that a login acted."""
    assert (await page.post("/circuit-breaker/close", json={})).status_code == 401
    answer = await page.post("/login", json={"token": TOKEN})
    assert (answer.status_code, answer.content) == (204, b"")
    (cookie,) = answer.headers.get_list("set-cookie")
    assert cookie.startswith("mailflow_session=")
    assert cookie.split("; ")[1:] == ["HttpOnly", "SameSite=Strict", "Path=/", "Max-Age=43200"]
    assert TOKEN not in cookie

    assert (await page.post("/circuit-breaker/close", json={})).status_code == 200
    newest = (await audited(page))[0]
    assert (newest["action"], newest["by"], newest["outcome"]) == ("breaker-close", "login", "done")
    value = cookie.partition("; ")[0]
    other = services[1].admin
    async with httpx.AsyncClient(trust_env=False) as elsewhere:
        act = f"{other}/circuit-breaker/close"
        own = {"cookie": value, "origin": other}
        assert (await elsewhere.post(act, json={}, headers=own)).status_code == 200
        for origin in ("http://evil.example", services[0].admin, "null", None):
            headers = own | {"origin": origin} if origin else {"cookie": value}
            assert (await elsewhere.post(act, json={}, headers=headers)).status_code == 401, origin
        for forged in (value[:-1], value + "0", "mailflow_session=9999999999.00.00", value.replace("=1", "=2")):
            assert (await elsewhere.post(act, json={}, headers=own | {"cookie": forged})).status_code == 401
        raw = [(b"cookie", b"mailflow_session=\xff\xc3\xa9"), (b"origin", other.encode())]
        raw += [(b"content-type", b"application/json")]
        assert (await elsewhere.post(act, content=b"{}", headers=raw)).status_code == 401

    answer = await page.post("/logout", json={})
    assert (answer.status_code, answer.headers["set-cookie"].endswith("Max-Age=0")) == (204, True)
    newest = (await audited(page))[0]
    assert (newest["action"], newest["by"], newest["outcome"]) == ("logout", "login", "done")
    assert (await page.post("/logout", json={})).status_code == 204  # of nobody
    assert [row["action"] for row in await audited(page)].count("logout") == 1
    assert (await page.post("/circuit-breaker/close", json={})).status_code == 401


async def test_a_login_is_written_down(page: httpx.AsyncClient, services: tuple[Service, Service]) -> None:
    """Each one that was let in; of those refused one a minute. The token is in no record and no log, tried ones too."""
    for n in range(5):
        answer = await page.post("/login", json={"token": f"gue\u00dfed-{n}"})
        assert (answer.status_code, "set-cookie" in answer.headers) == (401, False)
    assert (await page.post("/login", json={"token": TOKEN})).status_code == 204
    records = [row for row in await audited(page) if row["action"] == "login"]
    assert (records[0]["outcome"], records[0]["by"], records[0]["peer"]) == ("done", "token", "127.0.0.1")
    assert [(row["outcome"], row["by"]) for row in records if row["outcome"] != "done"] == [("refused", "anyone")]
    told = (await page.get("/audit")).text + "".join(service.text() for service in services)
    for secret in (TOKEN, "gue\u00dfed", "\\u00f6ffne", "mailflow_session"):
        assert secret not in told


@pytest.mark.parametrize(
    ("body", "status"),
    [({}, 422), ({"token": 1}, 422), ({"token": None}, 422), ({"token": ""}, 401), ({"token": TOKEN, "x": 1}, 422),
     ({"token": "x" * 1001}, 422), ({"token": "\x00"}, 401)],
)  # fmt: skip
async def test_a_login_of_another_shape_is_refused(page: httpx.AsyncClient, body: Any, status: int) -> None:
    """Without saying back what was tried."""
    answer = await page.post("/login", json=body)
    assert answer.status_code == status
    assert TOKEN not in answer.text


async def test_a_page_of_another_origin_cannot_log_in(page: httpx.AsyncClient) -> None:
    """Nor log out, nor as a form, nor by a URL."""
    for path in ("/login", "/logout"):
        foreign = await page.post(path, json={"token": TOKEN}, headers={"origin": "http://evil.example"})
        assert foreign.status_code == 403
        assert (await page.post(path, json={"token": TOKEN}, headers={"host": "evil.example"})).status_code == 403
        assert (await page.post(path, data={"token": TOKEN})).status_code == 415
        assert (await page.get(path, params={"token": "x"})).status_code == 405


async def test_without_a_token_there_is_nothing_to_log_in_to(nats_server: NatsServer, tmp_path: Any) -> None:
    """404, and everybody may act."""
    env = {"NATS_URL": nats_server.url, "NATS_MONITORING_URL": nats_server.monitoring_url}
    service = Service("user_svc", tmp_path, env)
    with stopping(service):
        service.start()
        await service.ready()
        async with httpx.AsyncClient(base_url=service.admin, trust_env=False) as client:
            assert (await client.post("/login", json={"token": "x"})).status_code == 404
            assert (await client.post("/circuit-breaker/close", json={})).status_code == 200

            async def known() -> bool:
                rows = (await client.get("/audit")).json()["audit"]
                return bool(rows[0]["by"] == "anyone")

            await eventually(known)
