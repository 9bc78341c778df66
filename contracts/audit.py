"""Writes down what operators do: stream AUDIT, ids only, 90 days."""

from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from typing import Final, TypeVar

import structlog
from starlette.requests import Request

from contracts import messages as m
from contracts import subjects as s
from contracts.runtime.admin import Refused
from contracts.runtime.broker import ApiError, Broker, Unavailable
from contracts.runtime.logs import without_addresses
from contracts.runtime.session import by

log = structlog.get_logger()

T = TypeVar("T")

UNKNOWN: Final = "It is not known whether it was done."


class Auditor:
    """Of one service."""

    def __init__(self, broker: Broker, service: str, token: str | None) -> None:
        self._broker = broker
        self._service = service
        self._token = token

    async def __call__(
        self, request: Request, action: str, target: str, outcome: str = "done", *, who: str | None = None
    ) -> None:
        """Writes one record. One that cannot be written is logged instead: the action is done already.

        Args:
            who: if the request's headers do not tell.
        """
        record = m.Audit(
            at=datetime.now(UTC),
            service=self._service,
            action=action,
            by=who or by(request, self._token),
            peer=request.client.host if request.client else "",
            target=without_addresses(target),  # a filter may hold what its author likes
            outcome=without_addresses(outcome),
        )
        try:
            await self._broker.store(s.audited(self._service, action), m.AUDIT.encode(record))
        except (Unavailable, ApiError) as exc:
            log.error("audit.not_written", action=action, target=target, outcome=outcome, reason=str(exc))

    async def doing(self, request: Request, action: str, target: str, do: Callable[[], Awaitable[T]]) -> T:
        """Does it, and writes down what came of it.

        Raises:
            Refused: 503. The broker has not done it; or may have, for its answer did not come.
        """
        try:
            done = await do()
        except Unavailable as exc:
            how, says = ("unknown", UNKNOWN) if exc.sent else ("failed", "It was not done.")
            await self(request, action, target, f"{how}: {exc}")
            words, again = f"The broker does not answer: {exc}. {says}", {"Retry-After": "1"}
            raise Refused(503, words, again, unknown=exc.sent) from exc
        except ApiError as exc:
            await self(request, action, target, f"failed: {exc}")
            raise Refused(503, f"The broker refuses: {exc}. It was not done.", {"Retry-After": "1"}) from exc
        await self(request, action, target)
        return done
