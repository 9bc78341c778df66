"""user_svc's admin API: the breaker, the queue, the ledger, the dead letters; each action is in AUDIT."""

import contextlib
from typing import Annotated, Any

import msgspec
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from contracts import control as c
from contracts.audit import Auditor
from contracts.runtime.admin import Refused, acting, body_as, json_response, seconds_in
from contracts.runtime.broker import ApiError, Broker, Unavailable
from contracts.runtime.logs import without_addresses
from user_svc.breaker_guard import Guard
from user_svc.dead_letters import DeadLetters, Filter, Progress, Replay, view
from user_svc.ledger import Drain, ledger, queue
from user_svc.settings import Settings

_PAGE_MAX = 500
_REPLAY_MAX_BYTES = 65_536
"""A thousand event ids."""


class Open(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Body of `POST /circuit-breaker/open`: `for` a duration like `5m`; without it, until further notice."""

    for_: str | None = msgspec.field(default=None, name="for")
    reason: Annotated[str, msgspec.Meta(max_length=200)] = "by an operator"


class Close(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Body of `POST /circuit-breaker/close`."""

    reason: Annotated[str, msgspec.Meta(max_length=200)] = "by an operator"


def routes(
    broker: Broker, audit: Auditor, guard: Guard, letters: DeadLetters, drain: Drain, settings: Settings
) -> list[Route]:
    """All routes of the admin API."""
    token = settings.admin_token

    async def breaker(_: Request) -> Response:
        return json_response(breaker_view(guard, settings))

    async def breaker_now() -> Response:
        """With what the broker shows now, if it says so at once: it follows the record by itself."""
        with contextlib.suppress(Unavailable, ApiError):
            await guard.look()
        return json_response(breaker_view(guard, settings))

    async def breaker_open(request: Request) -> Response:
        body: Open = body_as(Open, await acting(request, token))
        for_s, target = seconds_in(body.for_), body.for_ or "until further notice"
        await audit.doing(request, "breaker-open", target, lambda: guard.open(for_s, without_addresses(body.reason)))
        return await breaker_now()

    async def breaker_close(request: Request) -> Response:
        body: Close = body_as(Close, await acting(request, token))
        await audit.doing(request, "breaker-close", "", lambda: guard.close(without_addresses(body.reason)))
        return await breaker_now()

    async def show(what: Any) -> Response:
        try:
            return json_response(await what())
        except (Unavailable, ApiError) as exc:
            raise Refused(503, f"The broker does not answer: {exc}", {"Retry-After": "1"}) from exc

    async def queue_(_: Request) -> Response:
        return await show(lambda: queue(broker, drain, email_deadline_s=settings.email_deadline_s))

    async def ledger_(_: Request) -> Response:
        return await show(lambda: ledger(broker))

    async def dead_letters(request: Request) -> Response:
        query = request.query_params
        asked = {name: value for name, value in query.items() if name not in ("limit", "cursor")}
        chosen: Filter = body_as(Filter, asked | ({"code": _number(query["code"], 999)} if "code" in query else {}))
        limit = max(1, _number(query.get("limit", "100"), _PAGE_MAX))
        after = _number(query.get("cursor", "0"), 10**18)

        async def page() -> dict[str, Any]:
            found = await letters.page(chosen, after=after, limit=limit)
            cursor = str(found[-1].seq) if len(found) == limit else None
            return {"dead_letters": [view(letter) for letter in found], "next_cursor": cursor}

        return await show(page)

    async def replay(request: Request) -> Response:
        body: Replay = body_as(Replay, await acting(request, token, max_bytes=_REPLAY_MAX_BYTES))
        target = body.target

        async def ended(found: Progress) -> None:
            counts = f"{found.replayed} of {found.matching} sent again, {found.users_gone} without their user"
            await audit(request, "replay", target, f"{found.ended}; {counts}")

        try:
            matching = await letters.count(body.chosen)
        except (Unavailable, ApiError) as exc:
            raise Refused(503, f"The broker does not answer: {exc}", {"Retry-After": "1"}) from exc
        if body.dry_run:
            await audit(request, "replay-count", target, f"{matching} would be sent again")
            return json_response({"dry_run": True, "matching": matching})
        if matching == 0:
            raise Refused(404, "No dead letter matches.")
        if not letters.start(body, matching, ended):
            await audit(request, "replay", target, "refused: one is running")
            raise Refused(409, "A replay is running: see GET /dead-letters/replay.")
        await audit(request, "replay", target, f"started for {matching}")
        return json_response(letters.progress, 202, {"Location": "/dead-letters/replay"})

    async def replay_progress(_: Request) -> Response:
        return json_response(letters.progress)

    async def replay_stop(request: Request) -> Response:
        await acting(request, token)
        stopped = await letters.stop()
        await audit(request, "replay-stop", "", "done" if stopped else "none was running")
        return json_response(letters.progress)

    return [
        Route("/circuit-breaker", breaker),
        Route("/circuit-breaker/open", breaker_open, methods=["POST"]),
        Route("/circuit-breaker/close", breaker_close, methods=["POST"]),
        Route("/queue", queue_),
        Route("/ledger", ledger_),
        Route("/dead-letters", dead_letters),
        Route("/dead-letters/replay", replay_progress),
        Route("/dead-letters/replay", replay, methods=["POST"]),
        Route("/dead-letters/replay/stop", replay_stop, methods=["POST"]),
    ]


def breaker_view(guard: Guard, settings: Settings) -> dict[str, Any]:
    """What `GET /circuit-breaker` shows. Raises `Refused` (503) before the first look at the record."""
    record = guard.record
    if record is None:
        raise Refused(503, "The breaker's record has not been read yet.", {"Retry-After": "1"})
    ok, failed = guard.memory.counts(guard.now())
    return {
        "state": record.state,
        "epoch": record.epoch,
        "since": record.since,
        "reason": record.reason,
        "surge": record.surge,
        "next_attempt_at": record.open_until if record.state is c.Breaker.OPEN else None,
        "until_further_notice": record.state is c.Breaker.OPEN and record.open_until is None,
        "half_open": {"round": record.round, "permits_issued": record.issued, "probes_ok": record.ok},
        "counts": {"failures_in_a_row": guard.memory.run, "ok_30s": ok, "failed_30s": failed},
        "settings": {
            "failure_threshold": settings.circuit_breaker_failure_threshold,
            "success_threshold": settings.circuit_breaker_success_threshold,
            "timeout_s": settings.circuit_breaker_timeout_s,
            "half_open_requests": settings.circuit_breaker_half_open_requests,
        },
        "broker": guard.shown,
        "transitions": [
            {"at": r.since, "state": r.state, "epoch": r.epoch, "reason": r.reason} for r in reversed(guard.transitions)
        ],
    }


def _number(text: str, highest: int) -> int:
    if not (text.isascii() and text.isdigit() and len(text) <= 18 and int(text) <= highest):
        raise Refused(422, f"expected a whole number up to {highest}, not {text[:40]!r}")
    return int(text)
