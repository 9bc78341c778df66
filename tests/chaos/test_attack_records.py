"""Garbage and forgeries in bucket USERS, the outbox: each is reported once and harms its own user alone.

Deliveries are counted: what comes again for ever would be a jam that nobody sees.
"""

from datetime import UTC, datetime

import httpx
import pytest

from contracts import messages as m
from contracts import subjects as s
from contracts.runtime.broker import Broker
from tests.support.attack import GARBAGE, deliveries, gone, join, put, raw, text_and_html
from tests.support.load import settled
from tests.support.processes import System
from tests.support.smtp_server import SmtpServer
from tests.support.waiting import eventually

pytestmark = pytest.mark.asyncio(loop_scope="module")

Target = tuple[System, SmtpServer]
NOW = datetime.now(UTC)


async def test_unreadable_records_harm_their_user_alone(
    target: Target, client: httpx.AsyncClient, broker: Broker
) -> None:
    """GET says that the record cannot be read, the list goes on without it, the address stays taken, DELETE erases."""
    system, smtp = target
    address, user = await gone(client)
    _, other = await join(client)
    record = m.UserRegistered(user_id=other, email="victim@example.net", name="V", nonce="n", created_at=NOW)
    huge = m.UserRegistered(user_id=user, email=address, name="x" * 900_000, nonce="n", created_at=NOW)
    forged = [m.USER_REGISTERED.encode(record), m.USER_REGISTERED.encode(huge)]
    forged.append(m.USER_REGISTERED.encode(record).replace(other.encode(), b"../../etc x\\r\\nPUB a 0"))
    reported = system.user.text().count('"relay.undecodable"')
    before = await deliveries(broker, s.USERS, s.RELAY)
    for data in (*GARBAGE, *forged):
        await broker.store(s.user_key(user), data)
        for path in (f"/v1/users/{user}", f"/v1/users/{user}/welcome-email"):
            answer = await client.get(path)
            assert (answer.status_code, answer.json()["type"]) == (500, "urn:mailflow:problem:unreadable-record")
        assert (await client.post(f"/v1/users/{user}/welcome-email")).status_code == 500
        assert (await client.post("/v1/users", json={"email": address, "name": "M"})).status_code == 409
        page = (await client.get("/v1/users?limit=100")).json()["users"]
        assert user not in [row["id"] for row in page]
        assert other in [row["id"] for row in page]
    await settled(broker)
    assert await deliveries(broker, s.USERS, s.RELAY) - before == len(GARBAGE) + len(forged)
    assert system.user.text().count('"relay.undecodable"') - reported == len(GARBAGE) + len(forged)
    assert (await client.delete(f"/v1/users/{user}")).status_code == 204
    assert await broker.last(s.USERS, s.user_key(user)) is None
    assert (await client.post("/v1/users", json={"email": address, "name": "M"})).status_code == 201
    await settled(broker)
    assert "victim@example.net" not in {sent.rcpt for sent in smtp.accepted}
    assert '"request.failed"' not in system.user.text()


async def test_orders_for_nobody_are_not_carried_out(target: Target, client: httpx.AsyncClient, broker: Broker) -> None:
    """`again` keys of nobody go; those that contradict themselves are reported once and send nothing."""
    system, smtp = target
    _, user = await join(client)
    _, other = await join(client)
    _, nobody = await gone(client)
    await settled(broker)
    smtp.accepted.clear()
    before = await deliveries(broker, s.USERS, s.RELAY)

    def again(who: str, repeats: str) -> bytes:
        return m.WELCOME_AGAIN.encode(
            m.WelcomeAgain(user_id=who, repeats=repeats, why=m.Why.REPLAY, nonce="n", asked_at=NOW)
        )

    await broker.store(s.again_key(nobody, "r1"), again(nobody, f"{nobody}.1"))
    await broker.store(s.again_key(user, "r1"), again(other, f"{other}.1"))
    for n, data in enumerate(GARBAGE):
        await broker.store(s.again_key(user, f"g{n}"), data)
    for n, repeats in enumerate(
        (f"{user}.{'9' * 30}", f"{user}.{'9' * 5000}", "x", "", f"{user}.18446744073709551615")
    ):
        await broker.store(s.again_key(user, f"x{n}"), again(user, repeats))
    await settled(broker)
    assert await deliveries(broker, s.USERS, s.RELAY) - before == 7 + len(GARBAGE)
    assert await broker.last(s.USERS, s.again_key(nobody, "r1")) is None
    assert len(smtp.accepted) == 5  # those whose only fault is what they name as the mail that they repeat
    assert (await client.get(f"/v1/users/{user}/welcome-email")).status_code == 200
    # A key of today's resends that is garbage is a resend that is used up.
    await broker.store(s.again_key(other, f"{datetime.now(UTC):%Y-%m-%d}-1"), b"garbage")
    assert (await client.get(f"/v1/users/{other}")).status_code == 200
    assert (await client.post(f"/v1/users/{other}/welcome-email")).status_code == 202
    assert (await client.delete(f"/v1/users/{user}")).status_code == 204
    assert (await client.delete(f"/v1/users/{other}")).status_code == 204
    assert await broker.subjects(s.USERS, s.AGAIN_KEYS) == []
    assert '"pull.handler_failed"' not in system.user.text()


async def test_erasures_erase_whom_their_key_names(target: Target, client: httpx.AsyncClient, broker: Broker) -> None:
    """Whatever is in it; a key that names nobody, or everybody, erases nobody and does not stay under way."""
    system, _ = target
    _, user = await join(client)
    _, other = await join(client)
    await settled(broker)
    before = await deliveries(broker, s.USERS, s.RELAY)
    everybody = m.ERASE_USER.encode(m.EraseUser(user_id="*", asked_at=NOW))
    for key in ("$KV.USERS.erase.*", s.erase_key("nobody"), s.erase_key("A" * 26)):
        await broker.store(key, everybody)
        await broker.store(key, m.ERASE_USER.encode(m.EraseUser(user_id=other, asked_at=NOW)))
    await broker.store(s.erase_key(user), b"garbage")

    async def done() -> bool:
        return await broker.subjects(s.USERS, s.ERASE_KEYS) == []

    await eventually(done)
    await settled(broker)
    assert await deliveries(broker, s.USERS, s.RELAY) - before <= 7
    assert (await client.get(f"/v1/users/{user}")).status_code == 404
    assert await broker.last(s.USERS, s.user_key(user)) is None
    assert (await client.get(f"/v1/users/{other}")).status_code == 200
    assert system.user.text().count('"relay.erases_nobody"') >= 3
    async with httpx.AsyncClient() as admin:
        assert (await admin.get(f"{system.user.admin}/ledger")).json()["erasures_under_way"] == 0


async def test_unreadable_headers_of_a_registration_cost_no_mail(
    target: Target, client: httpx.AsyncClient, broker: Broker
) -> None:
    """The relay is given it once, without them."""
    _, smtp = target
    address, user = await gone(client)
    await settled(broker)
    before = await deliveries(broker, s.USERS, s.RELAY)
    record = m.UserRegistered(user_id=user, email=address, name="H", nonce="n", created_at=NOW)
    await put(
        target[0], raw(s.user_key(user).encode(), b"\r\ntraceparent: \xff\xfe\xff", m.USER_REGISTERED.encode(record))
    )
    await put(target[0], raw(s.user_key("\xff").encode("latin-1"), b"\r\nA: b", b"x"))
    await eventually(lambda: [sent for sent in smtp.accepted if sent.rcpt == address])
    await settled(broker)
    assert await deliveries(broker, s.USERS, s.RELAY) - before == 2
    text_and_html(smtp.accepted[-1])
    assert (await client.get("/v1/users?limit=100")).status_code == 200
