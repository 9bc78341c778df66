"""The API over the bus: user_svc as a NATS service, for clients that have a connection to the broker anyway.

    users.create   the body of POST /v1/users   -> the JSON of its 201
    users.get      {"id": "..."}                -> the JSON of GET /v1/users/{id}

The rules are the registrar's, so they are REST's: the same bodies and problems, `Idempotency-Key`, `X-Request-ID`, one
limit on how many are in flight, one deadline. An answer's status is in the header `Status`; an error's is in
`Nats-Service-Error-Code`, for a client takes `Status: 503` for the broker's own "nobody listens".

A message without an inbox to reply to is no request: nobody could be told what became of it, so nothing is done. Any
other reply subject is refused like none: the broker does not ask whether the caller may publish there, and an answer
of ours on `$JS.API.STREAM.PURGE.…` would purge. What operators may do is not offered here: who may call is for the
broker's accounts to say, and they know no bearer token.

nats-py's own `nats.micro` is not used: it handles one request at a time, sends the text of unexpected exceptions to the
caller, and its `stop` drops requests that were received and not begun.

Source: the NATS service API (ADR-32), `nats micro ls|info|stats`.
"""

import asyncio
import importlib.metadata
import secrets
import time
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from typing import Any

import msgspec
import nats.errors
import structlog
from nats.aio.msg import Msg
from nats.aio.subscription import Subscription

from contracts import semconv
from contracts import subjects as s
from contracts.runtime.broker import Broker
from contracts.runtime.inbox import has_inbox
from contracts.runtime.pull import drain
from user_svc import api, metrics
from user_svc.edge import Traffic, harmless_id
from user_svc.errors import Problem, TryLater
from user_svc.registrar import Registrar, decoded

log = structlog.get_logger()

NAME = "mailflow-users"
DESCRIPTION = "Registers users and reads them: the same as the REST API."
VERSION = importlib.metadata.version("mailflow")

_METHOD = "RPC"
"""In the label that holds HTTP's method; the route is the subject."""
_DRAIN_S = 2.0
_WHICH_USER = msgspec.json.Decoder(api.WhichUser)
_encode = msgspec.json.Encoder().encode

Headers = dict[str, str]
"""By lower-case name: NATS tells apart what HTTP does not."""
Handler = Callable[[bytes, Headers, float], Awaitable[tuple[api.UserView, Headers]]]


class Endpoint(msgspec.Struct, kw_only=True):
    """One subject, what it does, and what `nats micro stats` shows of it."""

    name: str
    subject: str
    handler: Handler
    metadata: dict[str, str]
    requests: int = 0
    errors: int = 0
    last_error: str = ""
    busy_ns: int = 0


class Rpc:
    """`start` and `stop` are called once each."""

    def __init__(self, broker: Broker, registrar: Registrar, traffic: Traffic) -> None:
        self._client = broker.client
        self._registrar = registrar
        self._traffic = traffic
        self._id = secrets.token_hex(11)
        self._started = datetime.now(UTC)
        self._subscriptions: list[Subscription] = []
        self._tasks: set[asyncio.Task[None]] = set()
        self._endpoints = (
            Endpoint(
                name="create",
                subject=s.USERS_CREATE,
                handler=self._create,
                metadata=_described("Register a user. Headers: Idempotency-Key, X-Request-ID.", api.NewUser),
            ),
            Endpoint(
                name="get",
                subject=s.USERS_GET,
                handler=self._get,
                metadata=_described("One user and the state of the welcome mail.", api.WhichUser),
            ),
        )

    async def start(self) -> None:
        """Begins to answer."""
        for endpoint in self._endpoints:
            metrics.ERRORS.labels(_METHOD, endpoint.subject)  # begins at 0, like those of REST's routes
            await self._subscribe(endpoint.subject, self._receiver(endpoint), s.ONE_OF_USER_SVC)
        for verb, show in (("PING", self._ping), ("INFO", self._info), ("STATS", self._stats)):
            for subject in (f"$SRV.{verb}", f"$SRV.{verb}.{NAME}", f"$SRV.{verb}.{NAME}.{self._id}"):
                await self._subscribe(subject, self._shower(verb, show))

    async def stop(self, *, grace_s: float) -> None:
        """Takes no more requests, and lets those that were taken finish.

        The other replicas get what comes from now on; without any, the caller is told at once that nobody listens.
        """
        try:
            try:
                async with asyncio.timeout(_DRAIN_S):
                    await drain(self._client, self._subscriptions)
            finally:
                for each in self._subscriptions:
                    await each.unsubscribe()
        except (nats.errors.Error, OSError, TimeoutError) as exc:
            log.warning("rpc.not_drained", reason=repr(exc))  # not connected: nothing comes, and nothing is answered
        if self._tasks:
            _, unfinished = await asyncio.wait(self._tasks, timeout=grace_s)
            for task in unfinished:
                task.cancel()
            if unfinished:
                log.warning("rpc.cut_off", requests=len(unfinished))

    # --- requests --------------------------------------------------------------------------------------------------

    async def _create(self, body: bytes, headers: Headers, until: float) -> tuple[api.UserView, Headers]:
        user = await self._registrar.register(body, headers.get("idempotency-key"), until)
        return user, {"Status": "201", "Location": api.location(user)}

    async def _get(self, body: bytes, _: Headers, until: float) -> tuple[api.UserView, Headers]:
        return await self._registrar.view(decoded(_WHICH_USER, body).id, until), {"Status": "200"}

    def _receiver(self, endpoint: Endpoint) -> Callable[[Msg], Awaitable[None]]:
        async def receive(raw: Msg) -> None:
            """Returns at once: the client calls it for one message after another."""
            began = time.perf_counter()
            if not has_inbox(raw):
                log.warning("rpc.no_inbox", subject=endpoint.subject)
                self._traffic.answered(_METHOD, endpoint.subject, 400, began)
                return
            headers = {name.lower(): value for name, value in (raw.headers or {}).items()}
            try:
                self._traffic.enter()
            except TryLater as busy:
                await self._refuse(endpoint, raw, harmless_id(headers.get("x-request-id", "")), busy, began)
                return
            task = asyncio.create_task(self._handle(endpoint, raw, headers, began))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

        return receive

    async def _handle(self, endpoint: Endpoint, raw: Msg, headers: Headers, began: float) -> None:
        request_id = harmless_id(headers.get("x-request-id", ""))
        until = self._registrar.deadline()
        structlog.contextvars.bind_contextvars(request_id=request_id)  # of this task alone
        with semconv.answering(headers):
            try:
                view, more = await endpoint.handler(raw.data, headers, until)
                more |= {"Content-Type": "application/json", "X-Request-ID": request_id}
                await self._answer(endpoint, raw, int(more["Status"]), view, more, began)
            except Problem as problem:
                await self._refuse(endpoint, raw, request_id, problem, began)
            except Exception:  # outermost: the caller gets a 500, the log the traceback
                log.exception("request.failed")
                await self._refuse(endpoint, raw, request_id, Problem(), began)
            finally:
                self._traffic.leave()

    async def _refuse(self, endpoint: Endpoint, raw: Msg, request_id: str, problem: Problem, began: float) -> None:
        endpoint.errors += 1
        endpoint.last_error = f"{problem.status}: {problem.title}"
        headers = {
            "Nats-Service-Error": problem.title,
            "Nats-Service-Error-Code": str(problem.status),
            "Content-Type": "application/problem+json",
            "X-Request-ID": request_id,
        }
        view = api.problem_view(problem)
        await self._answer(endpoint, raw, problem.status, view, headers | problem.headers, began)

    async def _answer(
        self, endpoint: Endpoint, raw: Msg, status: int, view: msgspec.Struct, headers: Headers, began: float
    ) -> None:
        try:
            await self._client.publish(raw.reply, _encode(view), headers=headers)
        except (nats.errors.Error, OSError) as exc:
            log.warning("rpc.not_answered", status=status, reason=repr(exc))  # not connected just now
            status = 499  # as over HTTP when the caller is gone
        self._traffic.answered(_METHOD, endpoint.subject, status, began)
        endpoint.requests += 1
        endpoint.busy_ns += int((time.perf_counter() - began) * 1e9)

    async def _subscribe(self, subject: str, receive: Callable[[Msg], Awaitable[None]], queue: str = "") -> None:
        self._subscriptions.append(await self._client.subscribe(subject, queue=queue, cb=receive))

    # --- discovery -------------------------------------------------------------------------------------------------

    def _shower(self, verb: str, show: Callable[[], dict[str, Any]]) -> Callable[[Msg], Awaitable[None]]:
        async def answer(raw: Msg) -> None:
            if has_inbox(raw):
                kind = f"io.nats.micro.v1.{verb.lower()}_response"
                who = {"type": kind, "name": NAME, "id": self._id, "version": VERSION, "metadata": {}}
                await raw.respond(_encode(who | show()))

        return answer

    def _ping(self) -> dict[str, Any]:
        return {}

    def _info(self) -> dict[str, Any]:
        return {
            "description": DESCRIPTION,
            "endpoints": [_place(e) | {"metadata": e.metadata} for e in self._endpoints],
        }

    def _stats(self) -> dict[str, Any]:
        endpoints = [
            {
                **_place(e),
                "num_requests": e.requests,
                "num_errors": e.errors,
                "last_error": e.last_error,
                "processing_time": e.busy_ns,
                "average_processing_time": e.busy_ns // max(1, e.requests),
            }
            for e in self._endpoints
        ]
        return {"started": self._started, "endpoints": endpoints}


def _place(endpoint: Endpoint) -> dict[str, str]:
    return {"name": endpoint.name, "subject": endpoint.subject, "queue_group": s.ONE_OF_USER_SVC}


def _described(description: str, request: type[msgspec.Struct]) -> dict[str, str]:
    """What an endpoint's caller is to know, as `nats micro info` shows it: texts only, the schemas as JSON in one."""
    return {
        "description": description,
        "request_schema": _encode(msgspec.json.schema(request)).decode(),
        "response_schema": _encode(msgspec.json.schema(api.UserView)).decode(),
    }
