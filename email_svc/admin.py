"""email_svc's admin API: the rate limit and the simulated downtime."""

from collections.abc import Awaitable, Callable

import msgspec
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from contracts.audit import Auditor
from contracts.runtime.admin import Refused, acting, body_as, json_response
from contracts.runtime.broker import ApiError, Unavailable
from contracts.runtime.settings import duration_s
from email_svc.downtime import Downtime
from email_svc.limiter import Limiter


class DowntimeAction(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Body of `POST /downtime`: `{"for": "30s"}` starts one, `{"end": true}` ends the one that is on."""

    for_: str | None = msgspec.field(default=None, name="for")
    end: bool = False

    def __post_init__(self) -> None:
        if (self.for_ is not None) == self.end:
            raise ValueError('give either "for", a duration like 30s, or "end": true')


def routes(audit: Auditor, limiter: Limiter, downtime: Downtime, token: str | None) -> list[Route]:
    """All routes of the admin API."""

    async def rate_limit(_: Request) -> Response:
        try:
            return json_response(await limiter.status())
        except (Unavailable, ApiError) as exc:
            raise Refused(503, f"The broker does not answer: {exc}", {"Retry-After": "1"}) from exc

    async def show_downtime(_: Request) -> Response:
        return json_response(downtime.status())

    async def act_downtime(request: Request) -> Response:
        body: DowntimeAction = body_as(DowntimeAction, await acting(request, token))
        try:
            for_s = 0.0 if body.for_ is None else duration_s(body.for_)
        except ValueError as exc:
            raise Refused(422, f"for: {exc}") from exc
        do: Callable[[], Awaitable[None]] = downtime.end if body.end else lambda: downtime.start(for_s)
        action, outcome = ("downtime-end" if body.end else "downtime-start"), "done"
        try:
            await do()
        except (Unavailable, ApiError) as exc:
            outcome = f"failed: {exc}"
        await audit(request, action, body.for_ or "", outcome)
        if outcome != "done":
            raise Refused(503, "The broker does not answer.", {"Retry-After": "1"})
        return json_response(downtime.status())

    return [
        Route("/rate-limit", rate_limit),
        Route("/downtime", show_downtime),
        Route("/downtime", act_downtime, methods=["POST"]),
    ]
