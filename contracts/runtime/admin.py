"""The admin listener of a service: /metrics, /healthz, /readyz, and what the service adds. Never behind the gateway."""

import time
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

import msgspec
import prometheus_client
from prometheus_client.exposition import choose_encoder
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Route

Ready = Callable[[], Awaitable[list[str]]]
"""What is missing; an empty list means ready."""

_READY_FOR_S = 0.5


def json_response(body: Any, status: int = 200) -> Response:
    """A JSON answer with a Content-Length."""
    return Response(msgspec.json.encode(body), status, media_type="application/json")


def admin_app(ready: Ready, routes: Sequence[BaseRoute] = ()) -> Starlette:
    """The application. `/healthz` = the process runs; `/readyz` = it can do its work (looked at twice a second)."""
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

    return Starlette(
        routes=[Route("/healthz", healthz), Route("/readyz", readyz), Route("/metrics", metrics), *routes],
    )
