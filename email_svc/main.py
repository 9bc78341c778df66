"""email_svc, wired: what is opened, in which order; it is closed in reverse.

admin listener -> broker -> topology -> SMTP connections -> worker
"""

import asyncio
from contextlib import AsyncExitStack
from pathlib import Path

import structlog

from contracts import presence, topology
from contracts.audit import Auditor
from contracts.runtime.admin import admin_app
from contracts.runtime.broker import Broker
from contracts.runtime.clock import BrokerClock
from contracts.runtime.durability import check_durability
from contracts.runtime.lifecycle import Stop, cancelled, serving, settled
from contracts.runtime.process import BadStart, connect_as
from email_svc import metrics
from email_svc.admin import routes as admin_routes
from email_svc.delivery import Delivery
from email_svc.downtime import Downtime
from email_svc.leave import Path as PathToSmtp
from email_svc.ledger import Ledger
from email_svc.limiter import Limiter
from email_svc.message import Composer
from email_svc.replica import said
from email_svc.settings import Settings
from email_svc.smtp_pool import SmtpPool
from email_svc.smtp_url import parse_smtp_url
from email_svc.worker import Worker

log = structlog.get_logger()

_DRAIN_S = 4.0


async def main(settings: Settings) -> int:
    """Runs the service until it is told to stop; returns its exit status."""
    stop = Stop()
    broker: Broker | None = None
    routed = False
    try:
        endpoint = parse_smtp_url(settings.smtp_url)
        templates = None if settings.email_templates_dir is None else Path(settings.email_templates_dir)
        composer = Composer(sender=settings.email_from, templates_dir=templates)
    except (ValueError, OSError) as exc:
        raise BadStart(str(exc)) from exc

    async def ready() -> list[str]:
        return ["broker"] if broker is None else await topology.missing(broker, "email_svc")

    admin = admin_app(ready, starting=lambda: not routed)
    async with AsyncExitStack() as stack:
        await stack.enter_async_context(
            serving(admin, host=settings.http_host, port=settings.metrics_port, variable="METRICS_PORT")
        )
        connected = await stop.unless(connect_as("email_svc", settings, stop.fail))
        if connected is None:
            return stop.code
        broker = connected
        metrics.BROKER_CONNECTED.set_function(lambda: connected.client.is_connected)
        stack.push_async_callback(broker.close)

        async def provision() -> None:
            await topology.provision(
                connected, service="email_svc", mode=settings.provision, replicas=settings.stream_replicas
            )

        async def prepare() -> bool:
            await check_durability(settings.nats_monitoring_url, settings.nats_durability)
            await topology.until_answered(provision)
            return True

        if await stop.unless(prepare()) is None:
            return stop.code
        pool = SmtpPool(endpoint, size=settings.worker_concurrency, timeout_s=settings.smtp_timeout_s)
        stack.push_async_callback(pool.close)
        metrics.CONNECTIONS.labels("idle").set_function(lambda: pool.idle)
        metrics.CONNECTIONS.labels("in_use").set_function(lambda: pool.in_use)
        clock = BrokerClock()
        path = PathToSmtp(broker, clock, attempt_s=settings.smtp_timeout_s)
        limiter = Limiter(broker, clock, settings.limit)
        downtime = Downtime(broker, clock, settings.downtime)
        audit = Auditor(broker, "email_svc", settings.admin_token)
        admin.routes.extend(admin_routes(audit, limiter, downtime, settings.admin_token))
        routed = True
        for task in (path.run(), limiter.run(), downtime.run()):
            stack.push_async_callback(cancelled, asyncio.create_task(task))
        delivery = Delivery(
            ledger=Ledger(broker),
            composer=composer,
            pool=pool,
            limiter=limiter,
            path=path,
            downtime=downtime,
            clock=clock,
            rules=settings.rules,
        )
        worker = Worker(
            broker, path, delivery, slots=settings.worker_concurrency, limit=_credit(settings), on_missing=provision
        )
        await stack.enter_async_context(worker.loop)
        stack.push_async_callback(worker.loop.stop, grace_s=_DRAIN_S)
        stack.push_async_callback(cancelled, asyncio.create_task(worker.run()))
        await presence.answering(broker, "email_svc", ready, lambda: said(limiter, downtime))
        settled()
        log.info("process.ready", metrics_port=settings.metrics_port)
        await stop.event.wait()
    log.info("process.stopped")
    return stop.code


def _credit(settings: Settings) -> int:
    """Messages asked for or waiting for a token: no more than the rate gives in a second.

    What may not be sent yet stays in the queue, where everyone can see it and another replica can take it.
    """
    if settings.rate_limit_rpm == 0:
        return settings.worker_concurrency
    return max(1, int(settings.rate_limit_rpm / 60))
