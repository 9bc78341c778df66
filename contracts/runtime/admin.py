"""The admin listener of a service: /metrics, /healthz, /readyz, and what the service adds. Never behind the gateway.

GET reads and is open, but for what is about persons; POST acts and is guarded: a bearer token or a login where a token
is set, a JSON body, and an Origin of its own, so that no web page can act on an operator's localhost. Nor can one read
there, its name made to point here by DNS: whatever is for people wants a Host of ours.
"""

import ipaddress
import time
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

import msgspec
import prometheus_client
from prometheus_client.exposition import choose_encoder
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Route
from starlette.types import ASGIApp, Receive, Scope, Send

from contracts.runtime.session import authorized, has_session, logged_in
from contracts.runtime.settings import duration_s

Ready = Callable[[], Awaitable[list[str]]]
"""What is missing; an empty list means ready."""

_FOR_MACHINES = ("/healthz", "/readyz", "/metrics")
"""Asked by probes and collectors, under whatever name their network has for us."""
_READY_FOR_S = 0.5
_BODY_MAX_BYTES = 16_384


class Refused(Exception):
    """The request is refused with this status and these words; `unknown`: it may have been done all the same."""

    def __init__(
        self, status: int, detail: str, headers: dict[str, str] | None = None, *, unknown: bool = False
    ) -> None:
        super().__init__(detail)
        self.status = status
        self.detail = detail
        self.headers = headers or {}
        self.unknown = unknown


def json_response(body: Any, status: int = 200, headers: dict[str, str] | None = None) -> Response:
    """A JSON answer with a Content-Length."""
    return Response(msgspec.json.encode(body), status, headers, "application/json")


def admin_app(
    ready: Ready, routes: Sequence[BaseRoute] = (), *, starting: Callable[[], bool] = lambda: False
) -> Starlette:
    """The application. `/healthz` = the process runs; `/readyz` = it can do its work (looked at twice a second).

    Args:
        starting: whether routes are still to come: until then a path that is not known is a 503 and no 404, which would
            say that what it names is not there.
    """
    seen_at = -1.0
    missing: list[str] = []

    async def healthz(_: Request) -> Response:
        return json_response({"status": "ok"})

    async def readyz(_: Request) -> Response:
        nonlocal seen_at, missing
        if time.monotonic() - seen_at > _READY_FOR_S:
            missing, seen_at = await ready(), time.monotonic()
        if missing:
            return json_response({"status": "not ready", "missing": missing}, 503)
        return json_response({"status": "ready"})

    async def metrics(request: Request) -> Response:
        encode, content_type = choose_encoder(request.headers.get("accept", ""))
        return Response(encode(prometheus_client.REGISTRY), headers={"Content-Type": content_type})

    async def refused(_: Request, exc: Exception) -> Response:
        assert isinstance(exc, Refused)
        unknown = {"unknown": True} if exc.unknown else {}
        return json_response({"status": exc.status, "detail": exc.detail} | unknown, exc.status, exc.headers)

    app = Starlette(
        routes=[Route("/healthz", healthz), Route("/readyz", readyz), Route("/metrics", metrics), *routes],
        middleware=[Middleware(_own_host)],
        exception_handlers={Refused: refused},
    )

    async def unknown(scope: Scope, receive: Receive, send: Send) -> None:
        if starting():
            raise Refused(503, "It is starting.", {"Retry-After": "1"})
        await app.router.not_found(scope, receive, send)

    app.router.default = unknown
    return app


def _own_host(app: ASGIApp) -> ASGIApp:
    """Lets through what has a Host of ours, and is not asked for by another site's page; its links may lead here."""

    async def checked(scope: Scope, receive: Receive, send: Send) -> None:
        answer: ASGIApp = app
        headers = Request(scope).headers
        if headers.get("sec-fetch-site") == "cross-site" and headers.get("sec-fetch-mode") != "navigate":
            answer = json_response({"status": 403, "detail": "Another site's page asks."}, 403)
        elif scope["path"] not in _FOR_MACHINES and not _own(headers.get("host", "")):
            answer = json_response({"status": 403, "detail": "The Host is none of ours."}, 403)
        await answer(scope, receive, send)

    return checked


async def acting(request: Request, token: str | None, *, max_bytes: int = _BODY_MAX_BYTES) -> dict[str, Any]:
    """Guards an acting POST and returns its JSON object.

    Raises:
        Refused: 401, 403, 413, 415 or 422.
    """
    bearer = authorized(request.headers.get("authorization", ""), token)
    # Browsers send the cookie with what any page of this host asks for, and say for which page they do.
    if not bearer and not (_own_origin(request) and has_session(request, token)):
        raise _unknown()
    return await asked(request, max_bytes=max_bytes)


def reading(request: Request, token: str | None) -> None:
    """Guards a GET of what is about persons. Raises `Refused` (401)."""
    if not logged_in(request, token):
        raise _unknown()


async def asked(request: Request, *, max_bytes: int = _BODY_MAX_BYTES) -> dict[str, Any]:
    """Guards a POST that wants no token, a login for one, and returns its JSON object.

    Raises:
        Refused: 403, 413, 415 or 422.
    """
    if "origin" in request.headers and not _own_origin(request):
        raise Refused(403, "The Origin is not this listener.")
    if request.headers.get("content-type", "").partition(";")[0].strip().lower() != "application/json":
        raise Refused(415, "The body must be application/json.")
    body = bytearray()
    async for chunk in request.stream():
        body += chunk
        if len(body) > max_bytes:
            raise Refused(413, f"At most {max_bytes} bytes.")
    try:
        found = msgspec.json.decode(body or b"{}", type=dict[str, Any])
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as exc:
        raise Refused(422, f"The body must be a JSON object: {exc}") from exc
    return found


def body_as(kind: type[Any], body: dict[str, Any]) -> Any:
    """The body of an acting POST as a Struct. Raises `Refused` (422) naming the field."""
    try:
        return msgspec.convert(body, kind)
    except (msgspec.ValidationError, ValueError) as exc:
        raise Refused(422, str(exc)) from exc


def seconds_in(duration: str | None) -> float | None:
    """The field `for` of an acting POST, a duration like `30s`. Raises `Refused` (422)."""
    try:
        return None if duration is None else duration_s(duration)
    except ValueError as exc:
        raise Refused(422, f"for: {exc}") from exc


def _unknown() -> Refused:
    return Refused(401, "A valid bearer token or a login is needed.", {"WWW-Authenticate": 'Bearer realm="mailflow"'})


def _own_origin(request: Request) -> bool:
    """Whether it says that a page of this listener asks."""
    host = request.headers.get("host", "")
    return request.headers.get("origin") in (f"http://{host}", f"https://{host}")


def _own(host: str) -> bool:
    """An IP address, localhost, or a name without a dot (a container): none that a page could point here by DNS."""
    name = host.rpartition(":")[0] if host.rpartition(":")[2].isdigit() else host
    name = name.strip("[]")
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return name == "localhost" or (name != "" and "." not in name)
    return True
