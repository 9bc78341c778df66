"""The breaker as operators open and close it, on a broker that has no consumer to be paused."""

import httpx
import pytest

from contracts import messages as m
from contracts import subjects as s
from contracts import topology
from contracts.audit import Auditor
from contracts.control import Breaker
from contracts.runtime.admin import admin_app
from contracts.runtime.broker import ApiError, Broker
from user_svc.admin import routes
from user_svc.breaker_guard import Guard
from user_svc.dead_letters import DeadLetters
from user_svc.ledger import Drain
from user_svc.settings import Settings


async def test_a_breaker_that_was_opened_is_open_whatever_the_broker_shows(broker: Broker) -> None:
    """Its consumer is gone, so nothing can be looked at: the action is done, and so the audit says."""

    async def left() -> None:
        """It is not made anew."""

    async def ready() -> list[str]:
        return []

    await topology.provision(broker, service=None, mode="auto", replicas=1, queue_max_size=100)
    settings = Settings()
    guard = Guard(broker, settings.breaker_rules, left)
    await guard.look()
    found = routes(broker, Auditor(broker, "user_svc", None), guard, DeadLetters(broker), Drain(), settings)
    await broker.api(f"CONSUMER.DELETE.{s.WELCOME_EMAILS}.{s.EMAIL_SVC}")
    with pytest.raises(ApiError):
        await guard.look()
    transport = httpx.ASGITransport(app=admin_app(ready, found))
    async with httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1:9101") as http:
        for path, state in (("open", Breaker.OPEN), ("close", Breaker.CLOSED)):
            answer = await http.post(f"/circuit-breaker/{path}", json={})
            assert (answer.status_code, answer.json()["state"]) == (200, state)
            kept = await broker.last(s.AUDIT, s.audited("user_svc", f"breaker-{path}"))
            assert kept is not None
            assert m.AUDIT.decode(kept.data).outcome == "done"
