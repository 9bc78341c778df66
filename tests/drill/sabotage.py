"""Defects planted on purpose, to see that a drill notices. Each does to a running system what no fault may."""

import asyncio
import time
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime, timedelta

from contracts import messages as m
from contracts import subjects as s
from contracts.runtime.broker import Stored
from tests.drill.client import Http
from tests.drill.history import Call
from tests.drill.load import Load
from tests.drill.stack import Stack
from tests.support.waiting import eventually


async def _registered(stack: Stack, load: Load, email: str) -> tuple[m.UserRegistered, str]:
    """Somebody, and the event of his mail."""
    client, began = Http(stack.ports[0]), time.monotonic()
    status, body = await client.ask("POST", "/v1/users", {"email": email, "name": "Somebody"})
    assert status == 201, status
    client.close()
    load.calls.append(
        Call(kind="register", began=began, ended=time.monotonic(), status=201, email=email, user_id=body["id"])
    )
    kept = await _last(stack, s.USERS, s.user_key(body["id"]))
    return m.USER_REGISTERED.decode(kept.data), s.event_id(body["id"], kept.seq)


async def _last(stack: Stack, stream: str, subject: str) -> Stored:
    found = await eventually(lambda: stack.direct.last(stream, subject), within_s=20, what=subject)
    assert found is not None
    return found


async def lose(stack: Stack, load: Load) -> None:
    """A registration and its mail go, though the client was told 201."""
    await stack.operate("user_svc", "/circuit-breaker/open", {})
    _, event = await _registered(stack, load, "lost@example.com")
    entry = await _last(stack, s.WELCOME_EMAILS, s.welcome_requested(event))
    await stack.direct.delete(s.WELCOME_EMAILS, entry.seq)
    await stack.direct.delete(s.USERS, s.split_event_id(event)[1])
    await stack.operate("user_svc", "/circuit-breaker/close", {})


async def double(stack: Stack, load: Load) -> None:
    """The ledger forgets a mail that was sent, and the queue gets it again."""
    user, event = await _registered(stack, load, "twice@example.com")
    sent = await _last(stack, s.DELIVERIES, s.outcome(event, "sent"))
    await asyncio.sleep(1)
    await stack.direct.delete(s.DELIVERIES, sent.seq)
    await _publish(stack, event, user)
    await _last(stack, s.DELIVERIES, s.outcome(event, "sent"))


async def ghost(stack: Stack, load: Load) -> None:
    """A mail to somebody who never registered."""
    user = m.UserRegistered(
        user_id="ghost" * 5 + "a", email="ghost@example.com", name="Ghost", nonce="", created_at=datetime.now(UTC)
    )
    event = s.event_id(user.user_id, 999_999)
    await _publish(stack, event, user)
    await _last(stack, s.DELIVERIES, s.outcome(event, "sent"))


async def _publish(stack: Stack, event: str, user: m.UserRegistered) -> None:
    asked = m.WelcomeEmailRequested(
        event_id=event,
        user_id=user.user_id,
        email=user.email,
        name=user.name,
        why=m.Why.REGISTRATION,
        requested_at=user.created_at,
        expires_at=user.created_at + timedelta(hours=1),
    )
    await stack.direct.store(s.welcome_requested(event), m.WELCOME_EMAIL_REQUESTED.encode(asked), expect_last=0)


DEFECTS: dict[str, Callable[[Stack, Load], Awaitable[None]]] = {"lose": lose, "double": double, "ghost": ghost}
