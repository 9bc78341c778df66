"""The queue is full, or loses what it held: sign-up goes on, and every mail arrives."""

from contracts import subjects as s
from tests.support.load import broker_of, client_of, count, doubled, pending, queued, register, settled, together
from tests.support.processes import System, provisioned
from tests.support.smtp_server import SmtpServer
from tests.support.waiting import eventually


async def test_full_queue_refuses_no_registration(system: System, smtp: SmtpServer) -> None:
    """QUEUE_MAX_SIZE=50 with no worker: 500 registrations are 201; all 500 mails come once there is one, each once."""
    system.set_env(QUEUE_MAX_SIZE="50")
    await system.start(email=False)
    async with client_of(system) as client, broker_of(system) as broker:
        await together(*(register(client, n) for n in range(500)))
        assert (await pending(broker))[1] == 50
        assert (await pending(broker))[0] == 450
        system.email.start()
        await settled(broker)
        assert doubled(smtp, range(500)) == {}
        assert await count(broker, "sent") == 500


async def test_purged_queue_is_filled_again(system: System, smtp: SmtpServer) -> None:
    """An operator purges 200 waiting mails: the reconciler asks for them again, and all arrive, each once."""
    system.user.env["RECONCILE_AFTER"] = "1s"
    await system.start(email=False)
    async with client_of(system) as client, broker_of(system) as broker:
        await together(*(register(client, n) for n in range(200)))
        await eventually(lambda: queued(broker, 200))
        await broker.api(f"STREAM.PURGE.{s.WELCOME_EMAILS}")
        await eventually(lambda: queued(broker, 200), within_s=20)
        system.email.start()
        await settled(broker)
        assert doubled(smtp, range(200)) == {}


async def test_deleted_queue_is_made_and_filled_again(system: System, smtp: SmtpServer) -> None:
    """The whole stream is deleted while nobody sends, the worker's consumer with it: both come back, all mails come."""
    system.without_accounts()  # with them, only the provisioner may make streams
    system.user.env["RECONCILE_AFTER"] = "1s"
    await system.start(email=False)
    async with client_of(system) as client, broker_of(system) as broker:
        await together(*(register(client, n) for n in range(50)))
        await eventually(lambda: queued(broker, 50))
        await broker.api(f"STREAM.DELETE.{s.WELCOME_EMAILS}")
        system.email.start()
        await eventually(lambda: len({t.rcpt for t in smtp.accepted}) == 50, within_s=30)
        await settled(broker)
        assert doubled(smtp, range(50)) == {}


async def test_deleted_queue_waits_for_the_provisioner(system: System, smtp: SmtpServer) -> None:
    """With accounts no service may make it again: sign-up goes on, the log says who may, and then all mails come."""
    system.user.env["RECONCILE_AFTER"] = "1s"
    await system.start()
    async with client_of(system) as client, broker_of(system) as broker:
        await client.post(f"{system.user.admin}/circuit-breaker/open", json={})
        await together(*(register(client, n) for n in range(20)))
        await eventually(lambda: queued(broker, 20))
        await broker.api(f"STREAM.DELETE.{s.WELCOME_EMAILS}")
        await together(*(register(client, n) for n in range(20, 30)))
        await eventually(lambda: "stream WELCOME_EMAILS is missing: run `python -m" in system.user.text(), within_s=10)
        await provisioned(system.nats.url)
        await eventually(lambda: queued(broker, 30), within_s=30)
        await client.post(f"{system.user.admin}/circuit-breaker/close", json={})
        await settled(broker)
        assert doubled(smtp, range(30)) == {}
        said = system.user.text() + system.email.text()
        assert "Traceback" not in said
        assert "reconciler.failed" not in said


async def test_deleted_consumer_is_made_again(system: System, smtp: SmtpServer) -> None:
    """The consumer goes under the running worker; it makes it again and goes on."""
    await system.start()
    async with client_of(system) as client, broker_of(system) as broker:
        await together(*(register(client, n) for n in range(20)))
        await settled(broker)
        await broker.api(f"CONSUMER.DELETE.{s.WELCOME_EMAILS}.{s.EMAIL_SVC}")
        await together(*(register(client, n) for n in range(20, 40)))
        await settled(broker)
        assert doubled(smtp, range(40)) == {}
