"""user_svc, wired: what is opened, in which order; it is closed in reverse.

admin listener -> broker -> topology -> guard of the breaker -> relay, reconciler -> API -> the same over the bus
"""

import asyncio
from contextlib import AsyncExitStack
from typing import Any

import structlog
from fastapi import FastAPI, Request, Response
from fastapi.openapi.utils import get_openapi
from fastapi.routing import APIRoute
from starlette.exceptions import HTTPException

from contracts import presence, topology
from contracts.audit import Auditor
from contracts.runtime.admin import admin_app
from contracts.runtime.broker import Broker
from contracts.runtime.durability import check_durability
from contracts.runtime.lifecycle import Stop, cancelled, serving, settled
from contracts.runtime.process import connect_as
from user_svc import api, metrics
from user_svc.admin import routes as admin_routes
from user_svc.audit_trail import routes as audit_routes
from user_svc.breaker_guard import Guard
from user_svc.console.pages import routes as console_routes
from user_svc.dead_letters import DeadLetters
from user_svc.downtime import routes as downtime_routes
from user_svc.edge import Edge, Traffic, http_exception, problem_response
from user_svc.errors import Problem
from user_svc.ledger import Drain
from user_svc.login import routes as login_routes
from user_svc.mails import routes as mail_routes
from user_svc.overview import Overview
from user_svc.overview import routes as overview_routes
from user_svc.reconciler import keep_reconciled
from user_svc.registrar import Registrar
from user_svc.relay import Relay
from user_svc.routes import routes
from user_svc.rpc import Rpc
from user_svc.settings import Settings
from user_svc.store import Store
from user_svc.users import Ids

log = structlog.get_logger()

_DRAIN_S = 5.0


async def main(settings: Settings) -> int:
    """Runs the service until it is told to stop; returns its exit status."""
    stop = Stop()
    broker: Broker | None = None
    listening = False

    async def ready() -> list[str]:
        if broker is None:
            return ["broker"]
        return await topology.missing(broker, "user_svc") + ([] if listening else ["api"])

    # At once: it says what is not there yet.
    admin = admin_app(ready, console_routes(settings), starting=lambda: not listening)
    async with AsyncExitStack() as stack:
        await stack.enter_async_context(
            serving(admin, host=settings.http_host, port=settings.metrics_port, variable="METRICS_PORT")
        )
        connected = await stop.unless(connect_as("user_svc", settings, stop.fail))
        if connected is None:
            return stop.code
        broker = connected
        metrics.BROKER_CONNECTED.set_function(lambda: connected.client.is_connected)
        stack.push_async_callback(broker.close)
        store = Store(broker, Ids(settings.user_id_key))

        async def provision() -> None:
            await topology.provision(
                connected,
                service="user_svc",
                mode=settings.provision,
                replicas=settings.stream_replicas,
                queue_max_size=settings.queue_max_size,
            )

        async def remake() -> None:
            if settings.provision == "auto":
                await provision()
            else:
                await topology.remake_queue_consumer(connected, settings.queue_max_size)

        async def prepare() -> bool:
            await check_durability(settings.nats_monitoring_url, settings.nats_durability)
            await topology.until_answered(provision)
            await topology.until_answered(store.check_key)
            return True

        if await stop.unless(prepare()) is None:
            return stop.code
        guard = Guard(broker, settings.breaker_rules, remake)
        await guard.start()
        stack.push_async_callback(cancelled, asyncio.create_task(guard.run()))
        relay = Relay(broker, settings, provision)
        await stack.enter_async_context(relay.loop)
        stack.push_async_callback(relay.loop.stop, grace_s=_DRAIN_S)
        audit = Auditor(broker, "user_svc", settings.admin_token)
        letters, drain = DeadLetters(broker), Drain()
        stack.push_async_callback(letters.stop, "the process was stopped: issue it again")
        admin.routes.extend(login_routes(audit, settings.admin_token))
        admin.routes.extend(admin_routes(broker, audit, guard, letters, drain, settings))
        admin.routes.extend(downtime_routes(broker, audit, settings.admin_token))
        admin.routes.extend(audit_routes(broker))
        reconciler = asyncio.create_task(
            keep_reconciled(
                broker,
                relay,
                drain,
                after_s=settings.reconcile_after_s,
                interval_s=settings.reconcile_interval_s,
                on_missing=provision,
            )
        )
        stack.push_async_callback(cancelled, reconciler)
        registrar, traffic = Registrar(store, broker, settings), Traffic(settings.http_max_in_flight)
        admin.routes.extend(mail_routes(store, registrar, audit, settings.admin_token))
        app = build_app(store, registrar, traffic, audit, settings)
        await stack.enter_async_context(
            serving(
                app,
                host=settings.http_host,
                port=settings.http_port,
                variable="HTTP_PORT",
                message_s=settings.http_request_timeout_s + 1.0,  # our own 408 comes first
            )
        )
        rpc = Rpc(broker, registrar, traffic)
        await rpc.start()
        stack.push_async_callback(rpc.stop, grace_s=_DRAIN_S)
        await presence.answering(broker, "user_svc", ready)
        overview = Overview(broker, guard, letters, drain, settings)
        await overview.start()
        stack.push_async_callback(cancelled, asyncio.create_task(overview.run()))
        stack.callback(overview.close)  # first of all: its streams would keep the listener waiting
        admin.routes.extend(overview_routes(overview))
        settled()
        listening = True
        log.info("process.ready", http_port=settings.http_port, metrics_port=settings.metrics_port)
        await stop.event.wait()
    log.info("process.stopped")
    return stop.code


def build_app(store: Store, registrar: Registrar, traffic: Traffic, audit: Auditor, settings: Settings) -> FastAPI:
    """The public API as an ASGI application."""
    app = FastAPI(
        title="MailFlow",
        version="1",
        description="Register users; each gets a welcome email, whatever breaks in between.",
        docs_url=None,  # it would load scripts from another host
        redoc_url=None,
        redirect_slashes=False,  # a gateway would follow the redirect itself
        telemetry={"tracing": False, "metrics": False, "logs": False},  # ours are user_svc.edge's
    )
    router = routes(store, registrar, audit, settings)
    app.include_router(router)
    direct: dict[tuple[str, str], APIRoute] = {}
    for route in router.routes:
        assert isinstance(route, APIRoute)
        for method in route.methods or ():
            metrics.ERRORS.labels(method, route.path)
            metrics.ERRORS.labels(method, "(none)")  # refused before its route is known
            if "{" not in route.path:
                direct[method, route.path] = route
    app.add_middleware(Edge, traffic=traffic, direct=direct)
    app.add_exception_handler(HTTPException, http_exception)

    async def problem(_: Request, exc: Exception) -> Response:
        assert isinstance(exc, Problem)
        return problem_response(exc)

    app.add_exception_handler(Problem, problem)
    document = _openapi(app)
    app.openapi = lambda: document  # type: ignore[method-assign]
    return app


def _openapi(app: FastAPI) -> dict[str, Any]:
    document = get_openapi(title=app.title, version=app.version, description=app.description, routes=app.routes)
    document["components"] = {
        "schemas": api.schemas(),
        "securitySchemes": {
            "admin": {
                "type": "http",
                "scheme": "bearer",
                "description": "ADMIN_TOKEN; asked for only where that is set.",
            }
        },
    }
    for path in document["paths"].values():
        for operation in path.values():
            # FastAPI adds an answer of its own where a route declares none.
            operation["responses"] = {k: v for k, v in operation["responses"].items() if "headers" in v}
    return document
