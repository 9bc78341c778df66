"""The console's login: the token once, and a cookie from then on (contracts.runtime.session)."""

import time
from typing import Annotated

import msgspec
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from contracts.audit import Auditor
from contracts.runtime import session
from contracts.runtime.admin import Refused, asked, body_as

_REFUSALS_EVERY_S = 60.0
"""Whoever guesses must not fill the audit."""


class Login(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Body of `POST /login`."""

    token: Annotated[str, msgspec.Meta(max_length=1000)]


def routes(audit: Auditor, token: str | None) -> list[Route]:
    """`POST /login` and `POST /logout`."""
    refused_at = -_REFUSALS_EVERY_S

    async def login(request: Request) -> Response:
        nonlocal refused_at
        body: Login = body_as(Login, await asked(request))
        if token is None:
            raise Refused(404, "No ADMIN_TOKEN is set: there is nothing to log in to.")
        if not session.is_token(body.token, token):
            if time.monotonic() - refused_at >= _REFUSALS_EVERY_S:
                refused_at = time.monotonic()
                await audit(request, "login", "", "refused", who="anyone")
            raise Refused(401, "That is not the token.", {"WWW-Authenticate": 'Bearer realm="mailflow"'})
        await audit(request, "login", "", "done", who="token")
        return _answer(session.issue(token, time.time()))

    async def logout(request: Request) -> Response:
        await asked(request)
        if session.has_session(request, token):  # else nobody's: whoever likes could fill the audit
            await audit(request, "logout", "", who="login")
        return _answer("")

    return [Route("/login", login, methods=["POST"]), Route("/logout", logout, methods=["POST"])]


def _answer(cookie: str) -> Response:
    return Response(status_code=204, headers={"Set-Cookie": session.set_cookie(cookie), "Cache-Control": "no-store"})
