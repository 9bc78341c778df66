"""The guards of an admin listener: Host before all; before each acting POST token, Origin, content type, body."""

from collections.abc import AsyncIterator
from typing import Any

import httpx
import msgspec
import pytest
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from contracts.runtime.admin import acting, admin_app, body_as, json_response

OWN = "127.0.0.1:9101"
JSON = {"content-type": "application/json"}


def client(token: str | None = None, missing: list[str] | None = None) -> httpx.AsyncClient:
    """An admin listener with one acting POST that gives back the object which it was given."""

    async def act(request: Request) -> Response:
        return json_response(await acting(request, token))

    async def ready() -> list[str]:
        return missing or []

    async def read(_: Request) -> Response:
        return json_response("read")

    app = admin_app(ready, [Route("/act", act, methods=["POST"]), Route("/read", read)])
    return httpx.AsyncClient(transport=httpx.ASGITransport(app=app), base_url=f"http://{OWN}")


async def post(
    headers: dict[str, str] | None = None, *, token: str | None = None, content: Any = b'{"a": 1}'
) -> httpx.Response:
    """The answer to a POST that is right but for what is given."""
    async with client(token) as http:
        return await http.post("/act", content=content, headers=JSON | (headers or {}))


async def test_what_is_right_acts() -> None:
    """And has a Content-Length."""
    answer = await post()
    assert (answer.status_code, answer.json()) == (200, {"a": 1})
    assert int(answer.headers["content-length"]) == len(answer.content)


@pytest.mark.parametrize(
    ("authorization", "status"),
    [
        ("Bearer s3cret", 200),
        ("bearer s3cret", 200),
        ("", 401),
        ("Bearer", 401),
        ("Bearer ", 401),
        ("Bearer s3cre", 401),
        ("Bearer s3cret2", 401),
        ("Basic s3cret", 401),
        ("s3cret", 401),
        ("Bearer \xe9", 401),
    ],
)
async def test_the_token_is_wanted_where_one_is_set(authorization: str, status: int) -> None:
    """401 says how to ask."""
    async with client("s3cret") as http:
        headers = {**JSON, "authorization": authorization} if authorization else JSON
        raw = [(name.encode(), value.encode("latin-1")) for name, value in headers.items()]
        answer = await http.post("/act", content=b"{}", headers=raw)
    assert answer.status_code == status
    assert ("www-authenticate" in answer.headers) is (status == 401)


@pytest.mark.parametrize(
    ("host", "status"),
    [
        ("127.0.0.1:9101", 200),
        ("10.1.2.3", 200),
        ("[::1]:9101", 200),
        ("[::1]", 200),
        ("localhost", 200),
        ("localhost:9101", 200),
        ("user_svc:9101", 200),  # a container's name
        ("evil.example", 403),
        ("evil.example:9101", 403),
        ("127.0.0.1.nip.io:9101", 403),
        ("localhost.evil.example", 403),
        ("localhost.:9101", 403),
        ("", 403),
        (":9101", 403),
    ],
)
async def test_the_host_must_be_none_that_dns_can_point_here(host: str, status: int) -> None:
    """An address, localhost, or a name without a dot; to read as well as to act, but for probes and collectors."""
    assert (await post({"host": host})).status_code == status
    async with client() as http:
        for path, found in (("/read", 200), ("/nosuch", 404)):
            assert (await http.get(path, headers={"host": host})).status_code == (found if status == 200 else 403)
        for path in ("/healthz", "/readyz", "/metrics"):
            assert (await http.get(path, headers={"host": host})).status_code == 200


@pytest.mark.parametrize(
    ("site", "mode", "status"),
    [
        ("cross-site", "no-cors", 403),  # an image, a script
        ("cross-site", "cors", 403),
        ("cross-site", "navigate", 200),  # a link
        ("same-site", "no-cors", 200),
        ("same-origin", "cors", 200),
        ("none", "navigate", 200),
    ],
)
async def test_another_sites_page_gets_nothing_by_itself(site: str, mode: str, status: int) -> None:
    """Whatever it asks for: its reader would pay for a walk through the dead letters."""
    async with client() as http:
        headers = {"sec-fetch-site": site, "sec-fetch-mode": mode}
        assert (await http.get("/read", headers=headers)).status_code == status


async def test_what_is_not_there_yet_is_not_missing() -> None:
    """503 to a path that is not known, until all are; then 404. What is there answers meanwhile."""
    starting = True

    async def ready() -> list[str]:
        return []

    async def read(_: Request) -> Response:
        return json_response("read")

    app = admin_app(ready, [Route("/early", read)], starting=lambda: starting)
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app=app), base_url=f"http://{OWN}") as http:
        for answer in (await http.get("/mails/x"), await http.post("/login", json={})):
            assert (answer.status_code, answer.headers["retry-after"]) == (503, "1")
            assert answer.json()["detail"] == "It is starting."
        assert [(await http.get(path)).status_code for path in ("/early", "/healthz")] == [200, 200]
        app.routes.append(Route("/late", read))
        starting = False
        assert [(await http.get(path)).status_code for path in ("/late", "/mails/x")] == [200, 404]


@pytest.mark.parametrize(
    ("origin", "status"),
    [
        (f"http://{OWN}", 200),
        (f"https://{OWN}", 200),
        ("null", 403),
        ("", 403),
        ("http://evil.example", 403),
        ("http://127.0.0.1", 403),  # another port is another origin
        ("http://127.0.0.1:9102", 403),
        (f"http://{OWN}.evil.example", 403),
        ("http://localhost:9101", 403),
    ],
)
async def test_the_origin_must_be_this_listener(origin: str, status: int) -> None:
    """A page of another origin may not act, even if it reaches the port."""
    assert (await post({"origin": origin})).status_code == status


@pytest.mark.parametrize(
    ("content_type", "status"),
    [
        ("application/json", 200),
        ("application/json; charset=utf-8", 200),
        ("Application/JSON ;x=y", 200),
        ("text/plain", 415),
        ("application/x-www-form-urlencoded", 415),
        ("multipart/form-data; boundary=application/json", 415),
        ("application/json-patch+json", 415),
        ("", 415),
    ],
)
async def test_only_json_is_taken(content_type: str, status: int) -> None:
    """What a form of a web page can send without asking is refused."""
    assert (await post({"content-type": content_type})).status_code == status


@pytest.mark.parametrize(
    ("content", "status"),
    [
        (b"", 200),
        (b"{}", 200),
        (b"[]", 422),
        (b"1", 422),
        (b"null", 422),
        (b'{"a": 1', 422),
        (b"\xff\xfe", 422),
        (b'{"a": "\xff"}', 422),
        (b'{"a":' * 3000, 422),
        (b'{"a": "' + b"x" * 16_384 + b'"}', 413),
    ],
)
async def test_the_body_is_a_small_object(content: bytes, status: int) -> None:
    """Nothing is an empty object."""
    assert (await post(content=content)).status_code == status


async def test_a_body_without_a_length_is_measured_too() -> None:
    """Chunks are counted as they come."""

    async def chunks() -> AsyncIterator[bytes]:
        for _ in range(5):
            yield b" " * 4096

    assert (await post(content=chunks())).status_code == 413


async def test_who_may_not_act_learns_nothing_else() -> None:
    """Without the token the answer is 401, whatever else is wrong, but for the Host."""
    answer = await post({"origin": "http://evil.example", "content-type": "text/plain"}, token="s3cret", content=b"x")
    assert answer.status_code == 401


async def test_reading_is_open() -> None:
    """GETs want no token; `/readyz` names what is missing."""
    async with client("s3cret", ["broker"]) as http:
        assert (await http.get("/healthz")).status_code == 200
        ready = await http.get("/readyz")
        assert (ready.status_code, ready.json()["missing"]) == (503, ["broker"])
        assert b"# HELP" in (await http.get("/metrics")).content
        assert (await http.get("/act")).status_code == 405


async def test_a_wrong_field_is_named() -> None:
    """422 with the field and what was expected."""

    class Wanted(msgspec.Struct, forbid_unknown_fields=True):
        for_s: float

    async def ready() -> list[str]:
        return []

    async def act(request: Request) -> Response:
        return json_response(body_as(Wanted, await acting(request, None)))

    app = admin_app(ready, [Route("/act", act, methods=["POST"])])
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app=app), base_url=f"http://{OWN}") as http:
        for content, said in ((b'{"for_s": "x"}', "for_s"), (b'{"x": 1}', "`x`"), (b"{}", "for_s")):
            answer = await http.post("/act", content=content, headers=JSON)
            assert answer.status_code == 422
            assert said in answer.json()["detail"]
