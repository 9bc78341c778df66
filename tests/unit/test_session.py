"""The cookie of a login: what is taken, what is not, and that it holds no token."""

import time

import httpx
import pytest
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from contracts.runtime import session
from contracts.runtime.admin import acting, admin_app, asked, json_response, reading

NOW = 1_800_000_000.0
TOKENS = ("s3cret", "pässwörd ☃", "x" * 500, "not UTF-8: \udcff", "\ud83d")
OWN = "127.0.0.1:9101"
ORIGIN = {"origin": f"http://{OWN}"}


@pytest.mark.parametrize("token", TOKENS)
def test_a_cookie_is_good_for_12_hours(token: str) -> None:
    """And for its own token alone."""
    cookie = session.issue(token, NOW)
    assert session.valid(cookie, token, NOW)
    assert session.valid(cookie, token, NOW + session.LASTS_S - 1)
    assert not session.valid(cookie, token, NOW + session.LASTS_S)
    assert not session.valid(cookie, token + "x", NOW)


@pytest.mark.parametrize("token", TOKENS)
def test_a_cookie_tells_nothing_of_its_token(token: str) -> None:
    """It is ASCII without a character that a cookie may not have; two are never the same."""
    cookie = session.issue(token, NOW)
    assert cookie.isascii()
    assert set(cookie) <= set("0123456789abcdef.")
    assert token not in cookie
    assert session.issue(token, NOW) != cookie


def test_no_character_of_a_cookie_may_be_changed_or_missing() -> None:
    """Each is signed, the time of its end before all."""
    cookie = session.issue("s3cret", NOW)
    for n, old in enumerate(cookie):
        for new in ("0", "f", ".", "", "\xe9", "9" if old != "9" else "1"):
            if new != old:
                assert not session.valid(cookie[:n] + new + cookie[n + 1 :], "s3cret", NOW), n
        assert not session.valid(cookie[:n], "s3cret", NOW)


@pytest.mark.parametrize(
    "cookie",
    ["", ".", "..", "...", "9999999999", "9999999999.0", "9999999999..", "\xff", "\u2603.1.2", "-1.a.b", "x" * 9000,
     "9999999999.a." + "0" * 64, "1e99.a." + "0" * 64, "\udcff.\ud800.x"],
)  # fmt: skip
def test_what_was_never_issued_is_not_taken(cookie: str) -> None:
    """And does not fail otherwise."""
    assert not session.valid(cookie, "s3cret", NOW)


@pytest.mark.parametrize(
    ("token", "given", "good"),
    [
        ("s3cret", "s3cret", True),
        ("s3cret", " s3cret\n", True),  # as settings read it
        ("s3cret", "S3cret", False),
        ("s3cret", "", False),
        ("pässwörd", "pässwörd", True),
        ("pässwörd", "passwörd", False),
        ("s3cret", "\ud800", False),
    ],
)
def test_a_typed_token_is_compared(token: str, given: str, good: bool) -> None:
    """Whatever was typed."""
    assert session.is_token(given, token) is good


@pytest.mark.parametrize(
    ("token", "sent", "good"),
    [
        ("pässwörd", "pässwörd".encode(), True),
        ("pässwörd", b"p\xe4ssw\xf6rd", False),
        ("a\udcffb", b"a\xffb", True),  # an environment's bytes
        ("s3cret", b"\xff", False),
    ],
)
def test_a_token_outside_of_ascii_is_compared_by_its_bytes(token: str, sent: bytes, good: bool) -> None:
    """As the shell and the environment have them: UTF-8, or whatever was set."""
    assert session.authorized("Bearer " + sent.decode("latin-1"), token) is good


def client(token: str | None) -> httpx.AsyncClient:
    """A listener that says who acts, and lets read."""

    async def act(request: Request) -> Response:
        await acting(request, token)
        return json_response(session.by(request, token))

    async def read(request: Request) -> Response:
        reading(request, token)
        return json_response("read")

    async def anybody(request: Request) -> Response:
        return json_response(await asked(request))

    async def ready() -> list[str]:
        return []

    routes = [
        Route("/act", act, methods=["POST"]),
        Route("/read", read),
        Route("/anybody", anybody, methods=["POST"]),
    ]
    return httpx.AsyncClient(
        transport=httpx.ASGITransport(app=admin_app(ready, routes)), base_url=f"http://{OWN}", trust_env=False
    )


def cookie_header(token: str, *, age_s: float = 0.0) -> dict[str, str]:
    """A login of so long ago."""
    return {"cookie": f"a=1; {session.COOKIE}={session.issue(token, time.time() - age_s)}; b=2"}


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        (ORIGIN, 200),
        ({"origin": f"https://{OWN}"}, 200),
        ({}, 401),
        ({"origin": "null"}, 401),
        ({"origin": ""}, 401),
        ({"origin": "http://evil.example"}, 401),
        ({"origin": "http://127.0.0.1:8025"}, 401),  # the inbox: the browser sends it the same cookies
        ({"origin": "http://evil.example", "host": "evil.example"}, 403),
    ],
)
async def test_a_cookie_acts_only_with_an_origin_of_its_own(headers: dict[str, str], status: int) -> None:
    """A page of another port of this host brings the cookie too."""
    async with client("s3cret") as http:
        answer = await http.post("/act", json={}, headers=cookie_header("s3cret") | headers)
    assert answer.status_code == status
    if status == 200:
        assert answer.json() == "login"


async def test_who_acts_is_told_apart() -> None:
    """By the token, by a login, or anyone where none is set."""
    bearer = {"authorization": "Bearer s3cret"}
    async with client("s3cret") as http:
        assert (await http.post("/act", json={}, headers=bearer)).json() == "token"
        assert (await http.post("/act", json={}, headers=bearer | cookie_header("s3cret"))).json() == "token"
        for cookie in (cookie_header("other"), cookie_header("s3cret", age_s=session.LASTS_S + 1)):
            assert (await http.post("/act", json={}, headers=ORIGIN | cookie)).status_code == 401
    async with client(None) as http:
        assert (await http.post("/act", json={}, headers=cookie_header("s3cret"))).json() == "anyone"


async def test_reading_about_persons_wants_a_login_and_a_host_of_ours() -> None:
    """Without a token set everybody may who reaches it by a name that DNS cannot have pointed here."""
    async with client("s3cret") as http:
        refused = await http.get("/read")
        assert (refused.status_code, "www-authenticate" in refused.headers) == (401, True)
        assert (await http.get("/read", headers=cookie_header("s3cret"))).status_code == 200
        assert (await http.get("/read", headers={"authorization": "Bearer s3cret"})).status_code == 200
        assert (await http.get("/read", headers=cookie_header("other"))).status_code == 401
    async with client(None) as http:
        assert (await http.get("/read")).status_code == 200
        assert (await http.get("/read", headers={"host": "evil.example"})).status_code == 403


async def test_what_wants_no_token_is_guarded_all_the_same() -> None:
    """Host, Origin, content type."""
    async with client("s3cret") as http:
        assert (await http.post("/anybody", json={"a": 1})).json() == {"a": 1}
        assert (await http.post("/anybody", json={}, headers=ORIGIN)).status_code == 200
        assert (await http.post("/anybody", json={}, headers={"host": "evil.example"})).status_code == 403
        assert (await http.post("/anybody", json={}, headers={"origin": "http://evil.example"})).status_code == 403
        assert (await http.post("/anybody", content=b"{}")).status_code == 415
