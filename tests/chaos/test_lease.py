"""A worker that is frozen beyond ack_wait: its message is another's by then, and it must know when it wakes up."""

from tests.support.load import address, broker_of, client_of, count, doubled, register, settled
from tests.support.processes import System
from tests.support.smtp_server import Late, SmtpServer, Transaction
from tests.support.waiting import eventually


async def test_frozen_worker_lets_go(system: System, smtp: SmtpServer) -> None:
    """Frozen before the dot with one mail, and with others unread in its socket: another worker sends them all.

    Woken up, the first one sends none of them, and its late word on them changes nothing.
    """
    held: list[Transaction] = []

    def hold_first(transaction: Transaction) -> Late | None:
        if held:
            return None
        held.append(transaction)
        return Late(2.0)  # the 354 comes while the worker is frozen

    smtp.on("data", hold_first)
    system.email.env["SMTP_TIMEOUT"] = "5m"  # or it would wake up to a timeout, and never come to the dot
    await system.start()
    async with client_of(system) as client, broker_of(system) as broker:
        await register(client, 0)
        await eventually(lambda: held)
        system.email.pause()
        for n in range(1, 6):  # the frozen worker's pull still waits at the broker, and these are delivered to it
            await register(client, n)
        other = system.another("email_svc")
        other.start()
        await other.ready()
        await eventually(lambda: len({t.rcpt for t in smtp.accepted}) == 6, within_s=45)
        system.email.resume()
        await eventually(lambda: "email.lease_lost" in system.email.text())
        await register(client, 6)
        await settled(broker)
        assert doubled(smtp, range(7)) == {}
        assert await count(broker, "sent") == 7
    assert address(0) in held[0].rcpts
    assert not held[0].accepted
