"""The mails of one user, for operators: found, shown with every attempt, sent again, erased.

An address is asked for in a body and shown in an answer, and is in no URL, for those are kept everywhere. Resend and
erase are the public API's, limits included.
"""

import contextlib
from collections.abc import Iterator
from typing import Any

import msgspec
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from contracts.audit import Auditor
from contracts.runtime.admin import Refused, acting, body_as, json_response, reading
from user_svc import api, intervention, users
from user_svc.errors import Problem, TryLater
from user_svc.registrar import Registrar, checked_id
from user_svc.store import Mail, Store, User


class Find(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Body of `POST /mails/find`: one of the two."""

    user_id: str | None = None
    email: str | None = None

    def __post_init__(self) -> None:
        if (self.user_id is None) == (self.email is None):
            raise ValueError("give either user_id or email")


class Erase(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Body of `POST /mails/{user_id}/erase`: the id once more, so that nobody erases the neighbour."""

    confirm: str


def routes(store: Store, registrar: Registrar, audit: Auditor, token: str | None) -> list[Route]:
    """All routes under `/mails`."""

    async def find(request: Request) -> Response:
        body: Find = body_as(Find, await acting(request, token))
        with _refusing():
            user_id = body.user_id if body.email is None else store.user_id(users.address(body.email.strip()))
            await store.record(checked_id(user_id or ""), registrar.deadline())
        return json_response({"user_id": user_id})

    async def mails(request: Request) -> Response:
        reading(request, token)
        until = registrar.deadline()
        with _refusing():
            user = await registrar.user(request.path_params["user_id"], until)
            return json_response(_view(user, await store.mails(user, until)), headers={"Cache-Control": "no-store"})

    async def resend(request: Request) -> Response:
        await acting(request, token)
        with _refusing():
            event = await intervention.resend(registrar, audit, request, registrar.deadline())
        return json_response(api.Resent("queued", event), 202)

    async def erase(request: Request) -> Response:
        body: Erase = body_as(Erase, await acting(request, token))
        if body.confirm != request.path_params["user_id"]:
            raise Refused(422, "confirm: expected the id of the user who is to be erased")
        with _refusing():
            await intervention.erase(registrar, audit, request, registrar.deadline())
        return Response(status_code=204)

    return [
        Route("/mails/find", find, methods=["POST"]),
        Route("/mails/{user_id}", mails),
        Route("/mails/{user_id}/resend", resend, methods=["POST"]),
        Route("/mails/{user_id}/erase", erase, methods=["POST"]),
    ]


def _view(user: User, mails: list[Mail]) -> dict[str, Any]:
    return {
        "user": api.row_view(user),
        "mails": [{"why": mail.why, **msgspec.structs.asdict(api.welcome_email_view(mail))} for mail in mails],
    }


@contextlib.contextmanager
def _refusing() -> Iterator[None]:
    """What the public API tells as a problem, as the admin API tells it."""
    try:
        yield
    except Problem as exc:
        wrong = "; ".join(f"{field}: {what}" for field, what in exc.errors.items())
        words = exc.detail or wrong or exc.title
        raise Refused(exc.status, words, exc.headers, unknown=isinstance(exc, TryLater)) from exc
