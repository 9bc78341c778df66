"""`POST /downtime`, the same at both services: what it takes, and what is written down. What it does is theirs."""

from collections.abc import Awaitable, Callable
from typing import Any

import msgspec
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from contracts.audit import Auditor
from contracts.runtime.admin import acting, body_as, json_response, seconds_in


class DowntimeAction(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Body of `POST /downtime`: `{"for": "30s"}` starts one, `{"end": true}` ends the one that is on."""

    for_: str | None = msgspec.field(default=None, name="for")
    end: bool = False

    def __post_init__(self) -> None:
        if (self.for_ is not None) == self.end:
            raise ValueError('give either "for", a duration like 30s, or "end": true')


def downtime_route(audit: Auditor, token: str | None, ask: Callable[[float | None], Awaitable[Any]]) -> Route:
    """The route. `ask` is given for how many seconds it is to be down, None: to be up; what it returns is answered."""

    async def downtime(request: Request) -> Response:
        body: DowntimeAction = body_as(DowntimeAction, await acting(request, token))
        for_s = seconds_in(body.for_)
        action = "downtime-end" if body.end else "downtime-start"
        return json_response(await audit.doing(request, action, body.for_ or "", lambda: ask(for_s)))

    return Route("/downtime", downtime, methods=["POST"])
