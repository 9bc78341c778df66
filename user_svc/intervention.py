"""What operators do to one user, over REST or on the admin listener: each is in the audit, whatever came of it.

Of nobody there is nothing to be written down, so who is not found leaves no record.
"""

from collections.abc import Awaitable
from typing import TypeVar

from starlette.requests import Request

from contracts.audit import UNKNOWN, Auditor
from user_svc.errors import NotFound, Problem, TryLater
from user_svc.registrar import Registrar

T = TypeVar("T")


async def resend(registrar: Registrar, audit: Auditor, request: Request, until: float) -> str:
    """Asks for another mail for the user in the path and returns its event id. Raises what `Registrar.resend` does."""
    user_id = request.path_params["user_id"]
    event = await _noted(audit, request, "resend", user_id, registrar.resend(user_id, until))
    await audit(request, "resend", event)
    return event


async def erase(registrar: Registrar, audit: Auditor, request: Request, until: float) -> None:
    """Erases the user in the path. Raises what `Registrar.ask_erase` does."""
    user_id = request.path_params["user_id"]
    await _noted(audit, request, "erase", user_id, registrar.ask_erase(user_id, until))
    await audit(request, "erase", user_id)
    await registrar.finish_erase(user_id, until)  # the relay would, if this does not


async def _noted(audit: Auditor, request: Request, action: str, user_id: str, work: Awaitable[T]) -> T:
    """Does it, and writes down what was not done, or is not known to be."""
    try:
        return await work
    except NotFound:
        raise
    except TryLater as exc:
        await audit(request, action, user_id, f"unknown: {exc}")
        exc.detail = f"{exc.detail} {UNKNOWN}"
        raise
    except Problem as exc:
        await audit(request, action, user_id, f"failed: {exc}")
        raise
