"""email_svc's admin API: the rate limit and the simulated downtime."""

from typing import Any

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from contracts.audit import Auditor
from contracts.downtime import downtime_route
from contracts.runtime.admin import Refused, json_response
from contracts.runtime.broker import ApiError, Unavailable
from email_svc.downtime import Downtime
from email_svc.limiter import Limiter


def routes(audit: Auditor, limiter: Limiter, downtime: Downtime, token: str | None) -> list[Route]:
    """All routes of the admin API."""

    async def rate_limit(_: Request) -> Response:
        try:
            return json_response(await limiter.status())
        except (Unavailable, ApiError) as exc:
            raise Refused(503, f"The broker does not answer: {exc}", {"Retry-After": "1"}) from exc

    async def show_downtime(_: Request) -> Response:
        return json_response(downtime.status())

    async def ask(for_s: float | None) -> dict[str, Any]:
        await (downtime.end() if for_s is None else downtime.start(for_s))
        return downtime.status()

    return [
        Route("/rate-limit", rate_limit),
        Route("/downtime", show_downtime),
        downtime_route(audit, token, ask),
    ]
