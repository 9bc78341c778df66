"""The edge of the API: what surrounds every request. A limit on how many are in flight, a request id, the metrics,
one log line, and problem+json for whatever goes wrong. HTTP and the bus (user_svc.rpc) share `Traffic`.
"""

import secrets
import string
import time
from collections.abc import Mapping
from typing import Any

import msgspec
import structlog
from fastapi.routing import APIRoute
from prometheus_client import Counter
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from contracts import semconv
from contracts.runtime import traces
from user_svc import metrics
from user_svc.api import ProblemView, problem_view
from user_svc.errors import Problem, TryLater

log = structlog.get_logger()

_ID_CHARS = frozenset(string.ascii_letters + string.digits + "-_.")
_CODES = {404: "not-found", 405: "method-not-allowed"}


def problem_response(problem: Problem) -> Response:
    """A problem as its caller gets it."""
    return _response(problem_view(problem), problem.headers)


async def http_exception(_: Request, exc: Exception) -> Response:
    """The framework's own refusals (404, 405) in the same shape."""
    assert isinstance(exc, HTTPException)
    kind = _CODES.get(exc.status_code, "refused")
    view = ProblemView(type=f"urn:mailflow:problem:{kind}", title=str(exc.detail), status=exc.status_code)
    return _response(view, dict(exc.headers or {}))


def _response(view: ProblemView, headers: dict[str, str]) -> Response:
    return Response(msgspec.json.encode(view), view.status, headers, "application/problem+json")


class Traffic:
    """All requests, whichever way they come: how many are in flight, and what is counted and logged of each."""

    def __init__(self, max_in_flight: int) -> None:
        self._max = max_in_flight
        self._in_flight = 0
        self._children: dict[tuple[Any, ...], tuple[Counter, Any]] = {}

    def enter(self) -> None:
        """One more is in flight, until `leave`.

        Raises:
            TryLater: as many as may be are. Before anything of the request is read: memory is what runs out first.
        """
        if self._in_flight >= self._max:
            metrics.REFUSED.inc()
            raise TryLater("Too many requests are in flight.")
        self._in_flight += 1
        metrics.IN_FLIGHT.inc()

    def leave(self) -> None:
        """One less."""
        self._in_flight -= 1
        metrics.IN_FLIGHT.dec()

    def answered(self, method: str, route: str, status: int, began: float) -> None:
        """Counts and logs one request. Method and route are labels: never what a caller may invent.

        Args:
            began: by time.perf_counter.
        """
        seconds = time.perf_counter() - began
        key = (method, route, status)
        if key not in self._children:
            self._children[key] = (
                metrics.REQUESTS.labels(method, route, status),
                metrics.SECONDS.labels(method, route),
            )
        semconv.answered(method, route, status)
        requests, duration = self._children[key]
        requests.inc()
        duration.observe(seconds, traces.exemplar())
        if status >= 500:
            metrics.ERRORS.labels(method, route).inc()
        log.info("request.answered", method=method, route=route, status=status, ms=round(seconds * 1000, 2))


class Edge:
    """ASGI middleware. Outermost, so that nothing gets past it."""

    def __init__(self, app: ASGIApp, *, traffic: Traffic, direct: Mapping[tuple[str, str], APIRoute]) -> None:
        """`direct`: the routes, by method and path, that are called from here: they have nothing in their path to be
        looked for, and ask only for the request. The framework's way to them costs more than a registration."""
        self._app = app
        self._traffic = traffic
        self._direct = direct

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        began = time.perf_counter()
        request_id = harmless_id(_header(scope, b"x-request-id"))
        status = 0

        async def tagged(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                message["headers"] = [*message["headers"], (b"x-request-id", request_id.encode())]
            await send(message)

        try:
            self._traffic.enter()
        except TryLater as busy:
            await problem_response(busy)(scope, receive, tagged)
            self._count(scope, status, began)
            return
        structlog.contextvars.bind_contextvars(request_id=request_id)
        with semconv.answering({name: _header(scope, name.encode()) for name in traces.FIELDS}):
            try:
                route = self._direct.get((scope["method"], scope["path"]))
                if route is None:
                    await self._app(scope, receive, tagged)
                else:
                    scope["route"] = route
                    await _answer(route, scope, receive, tagged)
            except ClientDisconnect:
                status = status or 499  # nobody is there to be answered
            except Exception:  # outermost: the caller gets a 500, the log the traceback
                log.exception("request.failed")
                if status == 0:
                    await problem_response(Problem())(scope, receive, tagged)
            finally:
                self._traffic.leave()
                self._count(scope, status, began)
                structlog.contextvars.unbind_contextvars("request_id")

    def _count(self, scope: Scope, status: int, began: float) -> None:
        method = scope["method"] if scope["method"] in ("GET", "POST", "DELETE") else "other"
        self._traffic.answered(method, getattr(scope.get("route"), "path", "(none)"), status, began)


async def _answer(route: APIRoute, scope: Scope, receive: Receive, send: Send) -> None:
    try:
        response = await route.endpoint(Request(scope, receive))
    except Problem as exc:
        response = problem_response(exc)
    await response(scope, receive, send)


def harmless_id(text: str) -> str:
    """The caller's X-Request-ID if it is harmless, else one of ours."""
    if 1 <= len(text) <= 64 and all(c in _ID_CHARS for c in text):
        return text
    return secrets.token_hex(8)


def _header(scope: Scope, name: bytes) -> str:
    for key, value in scope["headers"]:
        if key == name:
            text: str = value.decode("latin-1")
            return text
    return ""
