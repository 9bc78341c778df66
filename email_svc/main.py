"""email_svc, wired: what is opened, in which order; it is closed in reverse.

admin listener -> broker -> topology -> SMTP connections -> worker
"""

from contextlib import AsyncExitStack
from pathlib import Path

import structlog

from contracts import subjects as s
from contracts import topology
from contracts.runtime.admin import admin_app
from contracts.runtime.broker import Broker
from contracts.runtime.lifecycle import Stop, serving
from contracts.runtime.process import BadStart, connect_as
from contracts.runtime.pull import PullLoop
from email_svc.delivery import Delivery
from email_svc.ledger import Ledger
from email_svc.limiter import LocalLimiter
from email_svc.message import Composer
from email_svc.policies.token_bucket import TokenBucket
from email_svc.settings import Settings
from email_svc.smtp import SmtpPool, parse_smtp_url

log = structlog.get_logger()

_DRAIN_S = 6.0


async def main(settings: Settings) -> int:
    """Runs the service until it is told to stop; returns its exit status."""
    stop = Stop()
    broker: Broker | None = None
    try:
        endpoint = parse_smtp_url(settings.smtp_url)
        templates = None if settings.email_templates_dir is None else Path(settings.email_templates_dir)
        composer = Composer(sender=settings.email_from, templates_dir=templates)
    except (ValueError, OSError) as exc:
        raise BadStart(str(exc)) from exc

    async def ready() -> list[str]:
        return ["broker"] if broker is None else await topology.missing(broker, "email_svc")

    async with AsyncExitStack() as stack:
        await stack.enter_async_context(
            serving(admin_app(ready), host=settings.http_host, port=settings.metrics_port, variable="METRICS_PORT")
        )
        connected = await stop.unless(connect_as("email_svc", settings, stop.fail))
        if connected is None:
            return stop.code
        broker = connected
        stack.push_async_callback(broker.close)

        async def provision() -> None:
            await topology.provision(
                connected, service="email_svc", mode=settings.provision, replicas=settings.stream_replicas
            )

        async def prepare() -> bool:
            await topology.check_durability(settings.nats_monitoring_url, settings.nats_durability)
            await topology.until_answered(provision)
            return True

        if await stop.unless(prepare()) is None:
            return stop.code
        pool = SmtpPool(endpoint, size=settings.worker_concurrency, timeout_s=settings.smtp_timeout_s)
        stack.push_async_callback(pool.close)
        delivery = Delivery(Ledger(broker), composer, pool, _limiter(settings), settings.rules)
        loop = PullLoop(
            broker,
            stream=s.WELCOME_EMAILS,
            durable=s.EMAIL_SVC,
            handle=delivery.handle,
            slots=settings.worker_concurrency,
            credit=_credit(settings),
            on_missing=provision,
        )
        await stack.enter_async_context(loop)
        stack.push_async_callback(loop.stop, grace_s=_DRAIN_S)
        log.info("process.ready", metrics_port=settings.metrics_port)
        await stop.event.wait()
    log.info("process.stopped")
    return stop.code


def _limiter(settings: Settings) -> LocalLimiter:
    if settings.rate_limit_rpm == 0:
        return LocalLimiter(None)
    return LocalLimiter(TokenBucket(settings.rate_limit_rpm / 60, settings.rate_limit_burst))


def _credit(settings: Settings) -> int:
    """Messages asked for or waiting for a token: no more than the rate gives in a second.

    What may not be sent yet stays in the queue, where everyone can see it and another replica can take it.
    """
    if settings.rate_limit_rpm == 0:
        return settings.worker_concurrency
    return max(1, int(settings.rate_limit_rpm / 60))
