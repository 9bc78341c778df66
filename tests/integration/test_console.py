"""The console's pages and files as they leave the listener: policy, types, licence, text that stays text."""

import re
import time
from collections.abc import AsyncIterator
from pathlib import Path

import httpx
import pytest

from contracts.runtime import session
from contracts.runtime.admin import admin_app
from tests.support.processes import System
from tests.support.waiting import eventually
from user_svc.console.pages import PAGES, routes
from user_svc.settings import Settings

CONSOLE = Path(__file__).resolve().parents[2] / "user_svc" / "console"
STATIC = {
    path.relative_to(CONSOLE / "static").as_posix(): path.read_bytes()
    for path in sorted((CONSOLE / "static").rglob("*"))
    if path.is_file()
}
OURS = [name for name in STATIC if name.endswith(".js") and not name.startswith("vendor/")]
INSIDE = [*PAGES.values(), "/console/mails/abcdefghijklmnopqrstuvwxyz"]
ADDRESSES = [*INSIDE, "/console/login"]
TOKEN = "s3cret-token-of-the-test"


async def ready() -> list[str]:
    """Nothing is missing."""
    return []


def console(token: str | None = None) -> httpx.AsyncClient:
    """The admin listener with the console alone."""
    app = admin_app(ready, routes(Settings(admin_token=token)))
    return httpx.AsyncClient(transport=httpx.ASGITransport(app=app), base_url="http://127.0.0.1:9101")


@pytest.fixture
async def web() -> AsyncIterator[httpx.AsyncClient]:
    """A console without a token."""
    async with console() as client:
        yield client


def rules(answer: httpx.Response) -> set[str]:
    """The answer's content security policy."""
    return {rule.strip() for rule in answer.headers["content-security-policy"].split(";")}


@pytest.mark.parametrize("address", ADDRESSES)
async def test_a_page_allows_its_own_files_and_nothing_else(web: httpx.AsyncClient, address: str) -> None:
    """No inline code, no other host, no frame around it, nothing kept by a cache."""
    page = await web.get(address)
    assert page.status_code == 200
    assert page.headers["content-type"] == "text/html; charset=utf-8"
    assert {"default-src 'none'", "script-src 'self'", "style-src 'self'", "connect-src 'self'"} <= rules(page)
    assert {"base-uri 'none'", "form-action 'self'", "frame-ancestors 'none'"} <= rules(page)
    assert "unsafe" not in page.headers["content-security-policy"]
    assert page.headers["x-content-type-options"] == "nosniff"
    assert page.headers["referrer-policy"] == "no-referrer"
    assert page.headers["cache-control"] == "no-store"


@pytest.mark.parametrize("address", ADDRESSES)
async def test_a_page_keeps_to_its_policy(web: httpx.AsyncClient, address: str) -> None:
    """Every script is a file of ours, no element has a style or a handler, every file that is named is there."""
    html = (await web.get(address)).text
    assert re.findall(r"<style|\sstyle=|\son[a-z]+=|javascript:|https?://", html) == []
    assert html.count("<script") == html.count('<script src="/console/static/')
    named = set(re.findall(r'(?:src|href)="(/console/static/[^"]+)"', html))
    assert len(named) >= 3
    for file in named:
        assert (await web.get(file)).status_code == 200, file


@pytest.mark.parametrize("name", STATIC)
async def test_a_file_is_sent_as_what_it_is(web: httpx.AsyncClient, name: str) -> None:
    """With its type, the policy, and a tag by which it is sent once."""
    answer = await web.get(f"/console/static/{name}")
    assert answer.content == STATIC[name]
    kinds = {"js": "text/javascript", "css": "text/css", "svg": "image/svg+xml"}
    assert answer.headers["content-type"].partition(";")[0] == kinds.get(name.rpartition(".")[2], "text/plain")
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert "default-src 'none'" in rules(answer)
    again = await web.get(f"/console/static/{name}", headers={"If-None-Match": answer.headers["etag"]})
    assert (again.status_code, again.content) == (304, b"")


@pytest.mark.parametrize("name", ["nosuch.js", "../pages.py", "..%2Fpages.py", "%2Fetc%2Fpasswd", "vendor", ""])
async def test_no_other_file_is_reached(web: httpx.AsyncClient, name: str) -> None:
    """Files are looked up among those that the package holds, never on the disk."""
    assert (await web.get(f"/console/static/{name}")).status_code == 404


async def test_the_library_has_its_licence_beside_it(web: httpx.AsyncClient) -> None:
    """uPlot's text of the MIT licence is shipped and served."""
    licence = await web.get("/console/static/vendor/uplot/LICENSE")
    assert "MIT License" in licence.text
    assert "Leon Sorokin" in licence.text


@pytest.mark.parametrize("name", OURS)
def test_a_script_makes_no_html_of_text(name: str) -> None:
    """What comes from a name, an address or a mail server has no way to become an element, or an address to go to."""
    script = STATIC[name].decode()
    for trap in ("innerHTML", "outerHTML", "insertAdjacentHTML", "document.write", "eval(", "Function(", "://"):
        assert trap not in script


async def test_a_console_without_a_token_says_that_it_is_open(web: httpx.AsyncClient) -> None:
    """On every page; there is nothing to log out of."""
    for address in INSIDE:
        html = (await web.get(address)).text
        assert "No <code>ADMIN_TOKEN</code> is set" in html
        assert "logout" not in html


@pytest.mark.parametrize("address", INSIDE)
async def test_a_page_wants_a_login_where_a_token_is_set(address: str) -> None:
    """Whoever has none is sent to the login, which leads back; a foreign or expired cookie does not help."""
    now = time.time()
    useless = ["", "x", session.issue("another-token-than-that", now), session.issue(TOKEN, now - session.LASTS_S - 1)]
    async with console(TOKEN) as web:
        for cookie in useless:
            answer = await web.get(address, headers={"Cookie": f"{session.COOKIE}={cookie}"})
            assert (answer.status_code, answer.content) == (303, b"")
            assert answer.headers["location"] == f"/console/login?next={address}"
        login = await web.get("/console/login")
        page = await web.get(address, headers={"Cookie": f"{session.COOKIE}={session.issue(TOKEN, now)}"})
    assert (login.status_code, page.status_code) == (200, 200)
    assert "ADMIN_TOKEN</code> is set" not in page.text
    assert 'id="logout"' in page.text
    assert TOKEN not in login.text + page.text


async def test_the_login_sends_no_token_in_an_address() -> None:
    """Even where scripts are off, its form posts."""
    async with console(TOKEN) as web:
        assert '<form id="login" method="post" action="/login">' in (await web.get("/console/login")).text


async def test_what_stands_in_an_address_stays_text(web: httpx.AsyncClient) -> None:
    """The id that a page of mails was asked for comes back as an attribute's value and no more."""
    html = (await web.get("/console/mails/%22%3E%3Cscript%3Ealert(1)%3C%2Fscript%3E")).text
    assert "alert(1)" not in html or "&#34;&gt;&lt;script&gt;alert(1)" in html
    assert "<script>alert" not in html


def test_traces_are_looked_for_at_a_web_address() -> None:
    """Anything else in JAEGER_URL stops the start, for it becomes a link."""
    assert Settings(jaeger_url="http://127.0.0.1:16686").jaeger_url
    with pytest.raises(ValueError, match="JAEGER_URL: expected http"):
        Settings(jaeger_url="javascript:alert(1)")


async def test_the_overview_is_there_before_the_broker_is(system: System) -> None:
    """The page comes from the first moment on, and says itself what does not answer; nobody is told "no such user"."""
    system.user.start()
    async with httpx.AsyncClient(base_url=system.user.admin) as web:

        async def there() -> bool:
            try:
                return (await web.get("/")).status_code == 200
            except httpx.TransportError:
                return False

        await eventually(there, within_s=20, what="the overview")
        assert (await web.get("/readyz")).status_code == 503
        answer = await web.get(f"/mails/{'a' * 26}")
        assert (answer.status_code, answer.json()["detail"]) == (503, "It is starting.")
