"""The floor of a delivery: nats-py's requests and an SMTP dialogue by hand, with the same durable writes as MailFlow.

    relay     FLOOR_USERS -> FLOOR_QUEUE -> ack
    deliver   FLOOR_QUEUE -> SMTP -> FLOOR_SENT -> ack

No look-up, no limit, no breaker, no templates, no lease: nothing is promised but that a mail which was sent is noted.
A mail that cannot be sent is given back for 200 ms.
"""

import asyncio
import os
from collections.abc import Awaitable, Callable

import nats
import uvloop
from nats.aio.client import Client
from nats.aio.msg import Msg

from tests.bench.floor import NONE_BEFORE

AT_ONCE = 16
_PULL = 256
CONSUMERS = {"FLOOR_USERS": "relay", "FLOOR_QUEUE": "deliver"}
MAIL = (
    b"".join(
        b"%b: %b\r\n" % pair
        for pair in (
            (b"From", b"MailFlow <welcome@mailflow.local>"),
            (b"Subject", b"Welcome"),
            (b"Date", b"Wed, 25 Nov 2026 00:00:00 +0000"),
            (b"Message-ID", b"<1@mailflow.local>"),
            (b"MIME-Version", b"1.0"),
            (b"Content-Type", b"text/plain; charset=utf-8"),
        )
    )
    + b"\r\n"
    + b"Welcome, and here is a line of a mail that is as long as ours.\r\n" * 40
)
"""About as many bytes as a mail of MailFlow."""


async def pulled(client: Client, stream: str, work: Callable[[Msg], Awaitable[None]], at_once: int) -> None:
    """For ever: pulls, asking for more while there is still something in hand, and does the work `at_once`."""
    inbox, waiting = client.new_inbox(), asyncio.Queue[Msg]()
    subject = f"$JS.API.CONSUMER.MSG.NEXT.{stream}.{CONSUMERS[stream]}"
    asked, empty = 0, asyncio.Event()

    async def arrived(message: Msg) -> None:
        nonlocal asked
        if message.reply:
            asked -= 1
            waiting.put_nowait(message)
        elif (message.headers or {}).get("Status") in ("404", "408", "409"):
            asked = 0
        if asked < _PULL // 2:
            empty.set()

    async def worker() -> None:
        while True:
            await work(await waiting.get())

    await client.subscribe(inbox, cb=arrived)
    workers = [asyncio.create_task(worker()) for _ in range(at_once)]
    while True:
        empty.clear()
        asked += _PULL
        await client.publish(subject, b'{"batch":%d,"expires":5000000000}' % _PULL, reply=inbox)
        await empty.wait()
        for done in workers:
            assert not done.done(), done.exception()


async def relay(client: Client) -> None:
    async def work(message: Msg) -> None:
        subject = f"floor.mail.{message.subject.rpartition('.')[2]}"
        await client.request(subject, message.data, timeout=10, headers=NONE_BEFORE)
        await client.publish(message.reply, b"+ACK")

    await pulled(client, "FLOOR_USERS", work, 256)


async def deliver(client: Client, smtp_port: int) -> None:
    idle: list[tuple[asyncio.StreamReader, asyncio.StreamWriter]] = []

    async def dialogue(recipient: bytes) -> None:
        reader, writer = idle.pop() if idle else await asyncio.open_connection("127.0.0.1", smtp_port)
        try:
            for command in (b"MAIL FROM:<welcome@mailflow.local>", b"RCPT TO:<%b>" % recipient, b"DATA", MAIL + b"."):
                writer.write(command + b"\r\n")
                reply = await reader.readuntil(b"\n")
                while reply[:3] == b"220":  # the greeting of a new connection
                    reply = await reader.readuntil(b"\n")
                if reply[:1] not in (b"2", b"3"):
                    raise ConnectionError(reply)
        except BaseException:
            writer.close()
            raise
        idle.append((reader, writer))

    async def work(message: Msg) -> None:
        recipient = message.data.partition(b'"email": "')[2].partition(b'"')[0]
        try:
            await dialogue(recipient)
        except (OSError, EOFError):
            await client.publish(message.reply, b'-NAK {"delay": 200000000}')
            return
        subject = f"floor.sent.{message.subject.rpartition('.')[2]}"
        await client.request(subject, b'{"state":"sent"}' + b" " * 300, timeout=10, headers=NONE_BEFORE)
        await client.publish(message.reply, b"+ACK")

    await pulled(client, "FLOOR_QUEUE", work, AT_ONCE)


async def main() -> None:
    client = await nats.connect(os.environ["NATS_URL"])
    smtp_port = int(os.environ["SMTP_PORT"])
    await asyncio.gather(relay(client), deliver(client, smtp_port))


if __name__ == "__main__":
    uvloop.run(main())
