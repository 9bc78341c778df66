"""The REST API: each route reads its request, calls the registrar or the store, and says what happened."""

import asyncio
from typing import Any

import msgspec
from fastapi import APIRouter, Request, Response

from contracts.audit import Auditor
from contracts.runtime.session import authorized
from user_svc import api, intervention
from user_svc.api import documented
from user_svc.errors import (
    BodyTooLarge,
    EmailTaken,
    InvalidRequest,
    NotFound,
    RequestTimeout,
    TooManyResends,
    Unauthorized,
    UnsupportedType,
)
from user_svc.registrar import Registrar, check_size
from user_svc.settings import Settings
from user_svc.store import Store

_encode = msgspec.json.Encoder().encode
_ADMIN: dict[str, Any] = {"security": [{"admin": []}]}
_KEY_HEADER = {
    "name": "Idempotency-Key",
    "in": "header",
    "required": False,
    "description": "1 to 255 printable ASCII characters. A repeat with the same key and payload within 24 h is the "
    "same registration: after a 503 it is sure of its 201.",
    "schema": {"type": "string", "minLength": 1, "maxLength": 255, "pattern": r"^[!#-~]([ !#-~]*[!#-~])?$"},
}


def routes(store: Store, registrar: Registrar, audit: Auditor, settings: Settings) -> APIRouter:
    """All routes of the public API."""
    router = APIRouter()

    def admin(request: Request) -> None:
        if not authorized(request.headers.get("authorization", ""), settings.admin_token):
            raise Unauthorized

    @router.post(
        "/v1/users",
        name="Register a user",
        **documented(
            {201: ("Registered; the welcome mail is on its way.", api.UserView)},
            EmailTaken,
            InvalidRequest,
            RequestTimeout,
            BodyTooLarge,
            UnsupportedType,
            headers=("Location",),
            parameters=[_KEY_HEADER],
            requestBody=api.json_body(api.NewUser),
        ),
    )
    async def create(request: Request) -> Response:
        until = registrar.deadline()
        body = await _body(request, until)
        user = await registrar.register(body, request.headers.get("idempotency-key"), until)
        return _json(user, 201, {"Location": api.location(user)})

    @router.get(
        "/v1/users",
        name="List users",
        **documented(
            {200: ("A page.", api.Page)},
            InvalidRequest,
            Unauthorized,
            parameters=[
                {
                    "name": "limit",
                    "in": "query",
                    "schema": {"type": "integer", "minimum": 1, "maximum": api.LIMIT_MAX, "default": 50},
                },
                {
                    "name": "cursor",
                    "in": "query",
                    "description": "`next_cursor` of the page before.",
                    "schema": {"type": "string", "pattern": "^[0-9]{1,18}$"},
                },
            ],
            **_ADMIN,
        ),
    )
    async def page(request: Request) -> Response:
        admin(request)
        limit = _number(request, "limit", 50, 1, api.LIMIT_MAX)
        cursor = _number(request, "cursor", 0, 0, 10**18)
        found = await store.page(cursor, limit, registrar.deadline())
        after = str(found[-1].revision) if len(found) == limit else None
        return _json(api.Page([api.row_view(user) for user in found], after))

    @router.get(
        "/v1/users/{user_id}",
        name="One user",
        **documented({200: ("The user.", api.UserView)}, NotFound, parameters=[api.USER_ID]),
    )
    async def one(request: Request) -> Response:
        return _json(await registrar.view(request.path_params["user_id"], registrar.deadline()))

    @router.get(
        "/v1/users/{user_id}/welcome-email",
        name="The welcome mail with its attempts",
        **documented({200: ("The mail.", api.WelcomeEmailView)}, NotFound, parameters=[api.USER_ID]),
    )
    async def welcome_email(request: Request) -> Response:
        until = registrar.deadline()
        user = await registrar.user(request.path_params["user_id"], until)
        return _json(api.welcome_email_view(await store.mail(user, until)))

    @router.post(
        "/v1/users/{user_id}/welcome-email",
        name="Send the welcome mail again",
        **documented(
            {202: ("Asked for; at most three a day (UTC).", api.Resent)},
            NotFound,
            TooManyResends,
            Unauthorized,
            headers=("Location",),
            parameters=[api.USER_ID],
            **_ADMIN,
        ),
    )
    async def resend(request: Request) -> Response:
        admin(request)
        event = await intervention.resend(registrar, audit, request, registrar.deadline())
        location = {"Location": f"/v1/users/{request.path_params['user_id']}/welcome-email"}
        return _json(api.Resent("queued", event), 202, location)

    @router.delete(
        "/v1/users/{user_id}",
        name="Erase a user",
        status_code=204,
        **documented(
            {204: ("Erased everywhere, a pending mail included.", None)},
            NotFound,
            Unauthorized,
            parameters=[api.USER_ID],
            **_ADMIN,
        ),
    )
    async def delete(request: Request) -> Response:
        admin(request)
        await intervention.erase(registrar, audit, request, registrar.deadline())
        return Response(status_code=204)

    return router


def _json(body: msgspec.Struct, status: int = 200, headers: dict[str, str] | None = None) -> Response:
    return Response(_encode(body), status, headers, "application/json")


def _number(request: Request, name: str, default: int, lowest: int, highest: int) -> int:
    text = request.query_params.get(name)
    if text is None:
        return default
    if not (text.isascii() and text.isdigit() and len(text) <= 18 and lowest <= int(text) <= highest):
        raise InvalidRequest(errors={name: f"It must be a whole number from {lowest} to {highest}."})
    return int(text)


async def _body(request: Request, until: float) -> bytearray:
    """The body, by counted bytes: behind a gateway it arrives chunked, without a length."""
    if request.headers.get("content-type", "").partition(";")[0].strip().lower() != "application/json":
        raise UnsupportedType
    body = bytearray()
    try:
        async with asyncio.timeout_at(until):
            async for chunk in request.stream():
                body += chunk
                # The rest is read and dropped by the server: closing now would reset the connection, and a client
                # that is still sending would see that instead of the answer.
                check_size(len(body))
    except TimeoutError as exc:
        raise RequestTimeout(headers={"Connection": "close"}) from exc
    return body
