"""What the API takes and gives: the JSON shapes, and the OpenAPI document made of them."""

from datetime import datetime
from typing import Annotated, Any, Literal

import msgspec

from contracts import messages as m
from user_svc import errors
from user_svc.store import Mail, User

Status = Literal["queued", "retrying", "sent", "dead", "expired", "erased"]
BODY_MAX_BYTES = 16_384
LIMIT_MAX = 100


class NewUser(msgspec.Struct, forbid_unknown_fields=True, frozen=True):
    """A registration."""

    email: Annotated[str, msgspec.Meta(min_length=3, max_length=320, examples=["ann@example.com"])]
    name: Annotated[str, msgspec.Meta(min_length=1, max_length=400, examples=["Ann"])]


class WhichUser(msgspec.Struct, forbid_unknown_fields=True, frozen=True):
    """The user that is asked for over the bus, where no path names one."""

    id: Annotated[str, msgspec.Meta(examples=["abcdefghijklmnopqrstuvwxyz"])]


class WelcomeEmail(msgspec.Struct, frozen=True):
    """Where the newest welcome mail is."""

    status: Status
    event_id: str
    attempts: int
    requested_at: datetime
    next_attempt_at: datetime | None = None
    """When the next try is due; only while retrying."""


class UserView(msgspec.Struct, frozen=True):
    """A user."""

    id: str
    email: str
    name: str
    created_at: datetime
    welcome_email: WelcomeEmail


class UserRow(msgspec.Struct, frozen=True):
    """A user in a list."""

    id: str
    email: str
    name: str
    created_at: datetime


class Page(msgspec.Struct, frozen=True):
    """A page of users in the order of registration; `next_cursor` is null at the end."""

    users: list[UserRow]
    next_cursor: str | None


class AttemptView(msgspec.Struct, frozen=True):
    """One try to hand the mail to the SMTP server."""

    at: datetime
    verdict: str
    phase: str
    code: int | None
    enhanced_code: str | None
    text: str
    seconds: float
    trace_id: str | None = None
    """Where its trace can be found; null if it is not sampled."""
    breaker: str = ""
    """By which state of the circuit breaker it was made: closed, half_open, or alone; empty where it is not known."""


class WelcomeEmailView(msgspec.Struct, frozen=True):
    """The newest welcome mail with its attempts (the first 3 and the last 17 of `attempts_total`)."""

    status: Status
    event_id: str
    requested_at: datetime
    attempts_total: int
    attempts: list[AttemptView]
    next_attempt_at: datetime | None = None
    ended_at: datetime | None = None
    reason: str = ""


class Resent(msgspec.Struct, frozen=True):
    """A mail was asked for again."""

    status: Status
    event_id: str


class ProblemView(msgspec.Struct, frozen=True):
    """An error (RFC 9457)."""

    type: str
    title: str
    status: int
    detail: str = ""
    errors: dict[str, str] = {}


def user_view(user: User, mail: Mail) -> UserView:
    return UserView(
        user.record.user_id, user.record.email, user.record.name, user.record.created_at, _welcome_email(mail)
    )


def _welcome_email(mail: Mail) -> WelcomeEmail:
    row = mail.row
    return WelcomeEmail(
        status=mail.status,  # type: ignore[arg-type]
        event_id=mail.event_id,
        attempts=row.history.total if row is not None else 0,
        requested_at=mail.requested_at,
        next_attempt_at=row.due_at if isinstance(row, m.Attempts) else None,
    )


def welcome_email_view(mail: Mail) -> WelcomeEmailView:
    row = mail.row
    return WelcomeEmailView(
        status=mail.status,  # type: ignore[arg-type]
        event_id=mail.event_id,
        requested_at=mail.requested_at,
        attempts_total=row.history.total if row is not None else 0,
        attempts=[
            AttemptView(a.at, a.verdict, a.phase, a.code, a.enhanced, a.text, a.seconds, a.trace_id or None, a.breaker)
            for a in mail.attempts
        ],
        next_attempt_at=row.due_at if isinstance(row, m.Attempts) else None,
        ended_at=row.at if isinstance(row, m.Outcome) else None,
        reason=row.reason if isinstance(row, m.Outcome) else "",
    )


def location(user: UserView) -> str:
    """The path where a user is found."""
    return f"/v1/users/{user.id}"


def problem_view(problem: errors.Problem) -> ProblemView:
    """A problem as its caller reads it."""
    return ProblemView(
        type=f"urn:mailflow:problem:{problem.kind}",
        title=problem.title,
        status=problem.status,
        detail=problem.detail,
        errors=problem.errors,
    )


def row_view(user: User) -> UserRow:
    return UserRow(user.record.user_id, user.record.email, user.record.name, user.record.created_at)


# --- the OpenAPI document ------------------------------------------------------------------------------------------

_SHAPES = (NewUser, UserView, Page, WelcomeEmailView, Resent, ProblemView)
_TEXT = {"schema": {"type": "string"}}
_EVERYWHERE: tuple[type[errors.Problem], ...] = (errors.TryLater, errors.Problem)
"""Problems that any operation may end in."""

USER_ID = {
    "name": "user_id",
    "in": "path",
    "required": True,
    "description": "As in the answer to the registration.",
    "schema": {"type": "string", "pattern": "^[a-z2-7]{26}$"},
}


def schemas() -> dict[str, Any]:
    """`components.schemas`: the shapes above as JSON Schema."""
    return msgspec.json.schema_components(_SHAPES, ref_template="#/components/schemas/{name}")[1]


def documented(
    answers: dict[int, tuple[str, type[msgspec.Struct] | None]],
    *problems: type[errors.Problem],
    headers: tuple[str, ...] = (),
    **operation: Any,
) -> dict[str, Any]:
    """Arguments for a route's decorator: what it answers, by status, and the rest of its OpenAPI operation."""
    responses: dict[str, Any] = {}
    for status, (description, shape) in answers.items():
        response: dict[str, Any] = {"description": description, "headers": {"X-Request-ID": _TEXT}}
        response["headers"] |= dict.fromkeys(headers, _TEXT)
        if shape is not None:
            response["content"] = {"application/json": {"schema": _ref(shape)}}
        responses[str(status)] = response
    for problem in (*problems, *_EVERYWHERE):
        head = {"X-Request-ID": _TEXT}
        if problem in (errors.TryLater, errors.TooManyResends):
            head["Retry-After"] = {"schema": {"type": "string"}}
        if problem is errors.Unauthorized:
            head["WWW-Authenticate"] = _TEXT
        responses[str(problem.status)] = {
            "description": problem.title + ".",
            "headers": head,
            "content": {"application/problem+json": {"schema": _ref(ProblemView)}},
        }
    return {"openapi_extra": {**operation, "responses": responses}, "response_model": None}


def json_body(shape: type[msgspec.Struct]) -> dict[str, Any]:
    """`requestBody` of one shape."""
    return {"required": True, "content": {"application/json": {"schema": _ref(shape)}}}


def _ref(shape: type[msgspec.Struct]) -> dict[str, str]:
    return {"$ref": f"#/components/schemas/{shape.__name__}"}
