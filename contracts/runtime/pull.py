"""The pull loop: takes messages from a durable consumer and hands each to a handler, many at a time.

    asked for (pulls outstanding) + waiting (in hand, not yet admitted)  <=  credit
    asked for + everything in hand                                       <=  slots

`credit` is for the handler's owner to move: 1 while the way ahead is full or sick, up to `slots` when it is well. A
handler that paces its work calls `message.admit()` once it may go on, which frees its place for the next pull; one
that never does holds it until it ends.

Why not nats-py's fetch: with n > 1 it raises two kinds of TimeoutError, holds partial batches until its time is over
and stalls at low rates. Why pulls of at most 1 s: a pull that was lost (restart of the broker) or that the broker
forgot to wake (end of a pause) is replaced within that second.
"""

import asyncio
import functools
import time
from collections.abc import Awaitable, Callable, Iterable
from datetime import UTC, datetime
from types import TracebackType

import structlog
from nats.aio.client import Client
from nats.aio.msg import Msg
from nats.aio.subscription import Subscription

from contracts.runtime.broker import Broker, Unavailable

log = structlog.get_logger()

ACK_WAIT_S = 30
"""The broker hands a message to another after so long without a word; of every durable that is pulled."""
_LEASE_MARGIN_S = 5.0
_NAK_MAX_S = 86_400.0
"""A delay that is too long for the broker's 64 bits would count as none."""
EXPIRES_S = 1.0
_GRACE_S = 0.5
_RETIRED_S = 30.0
_AFTER_RECONNECT_S = 1.0
"""A broker that was killed forgets the deliveries of its last moments and hands them out again at once. Who had them
in hand gets so much time to write down what came of them."""
_DRAIN_S = 1.0
_ENDS = frozenset({"404", "408", "409", "503"})


class Message:
    """One delivery of a stored message."""

    def __init__(self, raw: Msg, broker: Broker, pulled_at: float, reconnects: int, admit: Callable[[], None]) -> None:
        # $JS.ACK[.<domain>.<account>].<stream>.<consumer>.<delivered>.<stream seq>.<consumer seq>.<time>.<pending>
        parts = raw.reply.split(".")
        delivered, sequence, _, time_ns, _ = parts[-5:] if len(parts) == 9 else parts[-6:-1]
        self._raw = raw
        self._broker = broker
        self._reconnects = reconnects
        self.subject = raw.subject
        self.data = raw.data
        self.headers = raw.headers or {}
        self.sequence = int(sequence)
        self.delivered = int(delivered)
        """How often the broker has handed it out, this time included."""
        self.stored_at = datetime.fromtimestamp(int(time_ns) / 1e9, UTC)
        """The broker's time of the write."""
        self.pulled_at = pulled_at
        """Monotonic time at which the pull was sent: the broker's ack_wait began at or after it."""
        self._held_until = pulled_at + ACK_WAIT_S - _LEASE_MARGIN_S
        self.admit = admit

    @property
    def lapsed(self) -> bool:
        """Whether ack_wait may be over, by what the broker has confirmed. Never false again."""
        return time.monotonic() >= self._held_until

    @property
    def ours(self) -> bool:
        """Whether it is certainly still ours: not lapsed, and the connection has been up ever since the pull. If it has
        not, the broker may have forgotten that it handed this out, and another may have it in hand."""
        undisturbed = self._broker.client.is_connected and self._reconnects == _reconnects(self._broker)
        return undisturbed and not self.lapsed

    async def ack(self) -> None:
        """Done, for good. May be lost with the connection or the broker: then the message comes again."""
        await self._say(b"+ACK")

    async def nak(self, delay_s: float = 0.0) -> None:
        """Given back, to come again after a delay. Unsaid where it may be another's: the broker would take our word."""
        if not self.ours:
            return
        delay_s = min(delay_s, _NAK_MAX_S)
        await self._say(b'-NAK {"delay": %d}' % int(delay_s * 1e9) if delay_s > 0 else b"-NAK")

    async def keep(self, timeout_s: float) -> None:
        """Asks for another ack_wait and waits until the broker has confirmed.

        Raises:
            Unavailable: not confirmed.
        """
        sent_at = time.monotonic()
        await self._broker.request(self._raw.reply, b"+WPI", timeout_s=timeout_s)
        if not self.lapsed:  # the process may have been stopped while it waited for the answer
            self._held_until = sent_at + ACK_WAIT_S - _LEASE_MARGIN_S

    async def _say(self, word: bytes) -> None:
        try:
            await self._broker.client.publish(self._raw.reply, word)
        except Exception as exc:  # noqa: BLE001 - unsaid is the same as lost: the message comes again
            log.debug("pull.answer_lost", error=repr(exc))


def _reconnects(broker: Broker) -> int:
    count: int = broker.client.stats["reconnects"]
    return count


class _Inbox:
    """Where the messages of one pull at a time arrive. A message bears its stream's subject, not the inbox's, so only
    an inbox of its own tells which pull it answers, and with that since when the broker's ack_wait may be running.
    """

    def __init__(self, subject: str) -> None:
        self.subject = subject
        self.subscription: Subscription | None = None
        self.left = 0
        """Messages that may still come of the pull under way; 0: free for the next one."""
        self.sent_at = 0.0
        """When the pull was sent."""
        self.reconnects = 0
        """How often the client had reconnected by then."""


class PullLoop:
    """Async context manager: pulls from entering on; leaving is `stop(grace_s=0)`."""

    def __init__(
        self,
        broker: Broker,
        *,
        stream: str,
        durable: str,
        handle: Callable[[Message], Awaitable[None]],
        slots: int,
        limit: int | None = None,
        credit: int | None = None,
        on_missing: Callable[[], Awaitable[None]] | None = None,
    ) -> None:
        """`handle` settles its message itself and raises nothing but by mistake (logged; given back after 1 s).

        `on_missing` is called, at most once a second, while the broker says that there is no such consumer.
        """
        self._broker = broker
        self._next = f"$JS.API.CONSUMER.MSG.NEXT.{stream}.{durable}"
        self._handle = handle
        self._on_missing = on_missing
        self.slots = slots
        self.limit = slots if limit is None else min(slots, limit)
        """The most that `credit` may be."""
        self._credit = self.limit if credit is None else min(self.limit, credit)
        self._inboxes: list[_Inbox] = []
        self._tasks: set[asyncio.Task[None]] = set()
        self._admitted: set[asyncio.Task[None]] = set()
        self._retired: set[asyncio.Task[None]] = set()
        self._reconnects = _reconnects(broker)
        self._not_before = 0.0
        self._missing = False
        self._stopping = False
        self._wake = asyncio.Event()
        self._log = log.bind(stream=stream, durable=durable)

    @property
    def in_hand(self) -> int:
        """Messages that are being handled."""
        return len(self._tasks)

    @property
    def credit(self) -> int:
        """How many messages may be asked for or waiting at once, 0 to `limit`."""
        return self._credit

    @credit.setter
    def credit(self, value: int) -> None:
        self._credit = max(0, min(self.limit, value))
        self._wake.set()

    async def __aenter__(self) -> "PullLoop":
        self._broker.reconnected.append(self._wake.set)
        self._runner = asyncio.create_task(self._run())
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.stop(grace_s=0)

    async def stop(self, *, grace_s: float) -> None:
        """Stops pulling; cancels what only waits; lets what was admitted finish for `grace_s`; cancels and waits."""
        if self._stopping:
            return
        self._stopping = True
        self._broker.reconnected.remove(self._wake.set)
        self._runner.cancel()
        try:
            async with asyncio.timeout(_DRAIN_S):
                await self._drain(self._inboxes)
        except TimeoutError:
            self._log.warning("pull.drain_timed_out")  # the broker is silent: ack_wait gives its messages to another
        for task in self._tasks - self._admitted:
            task.cancel()
        if self._tasks and grace_s > 0:
            await asyncio.wait(self._tasks, timeout=grace_s)
        for task in self._tasks:
            task.cancel()
        while self._tasks:  # what arrives meanwhile is given back
            await asyncio.wait(self._tasks)

    async def _drain(self, inboxes: list[_Inbox]) -> None:
        """The broker drops the pulls that wait; what has arrived already is handled, or given back while stopping."""
        subscriptions = [inbox.subscription for inbox in inboxes if inbox.subscription is not None]
        try:
            await drain(self._broker.client, subscriptions)
            for each in subscriptions:
                await each.unsubscribe()
        except Exception as exc:  # noqa: BLE001 - not connected: the pulls are gone with the connection
            self._log.debug("pull.drain_failed", error=repr(exc))

    def _retire(self, inbox: _Inbox) -> None:
        """Counts no longer on its pull, and never uses it again: what still arrives there keeps its own time."""
        self._inboxes.remove(inbox)
        task = asyncio.create_task(self._drain_later(inbox))
        self._retired.add(task)
        task.add_done_callback(self._retired.discard)

    async def _drain_later(self, inbox: _Inbox) -> None:
        await asyncio.sleep(_RETIRED_S)
        await self._drain([inbox])

    async def _run(self) -> None:
        while True:
            self._wake.clear()
            now = time.monotonic()
            reconnected = self._reconnects != _reconnects(self._broker)
            if reconnected:
                self._reconnects = _reconnects(self._broker)
                self._not_before = now + _AFTER_RECONNECT_S
            for inbox in list(self._inboxes):
                if reconnected or (inbox.left and now - inbox.sent_at > EXPIRES_S + _GRACE_S):
                    self._retire(inbox)  # lost, with the connection or a change of leader
            if self._missing:
                self._missing = False
                await self._find_missing()
            asked = sum(inbox.left for inbox in self._inboxes)
            waiting = len(self._tasks) - len(self._admitted)
            room = min(self._credit - asked - waiting, self.slots - asked - len(self._tasks))
            # Half of the credit at a time: one pull a message would double the broker's work.
            if room > 0 and (room >= self._credit // 2 or asked == 0) and now >= self._not_before:
                try:
                    await self._pull(room)
                except Exception as exc:  # noqa: BLE001 - not connected; the next look is in 250 ms
                    self._log.debug("pull.failed", error=repr(exc))
            try:
                async with asyncio.timeout(0.25):
                    await self._wake.wait()
            except TimeoutError:
                pass

    async def _find_missing(self) -> None:
        self._log.warning("pull.consumer_missing")
        if self._on_missing is not None:
            try:
                await self._on_missing()
            except Exception as exc:  # noqa: BLE001 - outermost loop: try again in a second
                self._log.warning("pull.still_missing", error=repr(exc))
        await asyncio.sleep(1)

    async def take_one(self) -> Message | None:
        """One message, asked for beside the loop and not handed to its handler; None: there was none within 1 s.

        Raises:
            Unavailable: not connected.
        """
        client = self._broker.client
        if not client.is_connected:
            raise Unavailable("not connected to the broker", sent=False)
        sent_at, reconnects = time.monotonic(), _reconnects(self._broker)
        if reconnects != self._reconnects or sent_at < self._not_before:
            return None
        arrived: asyncio.Queue[Msg] = asyncio.Queue()
        inbox = client.new_inbox()
        subscription = await client.subscribe(inbox, cb=arrived.put)
        try:
            await client.publish(self._next, b'{"batch":1,"expires":%d}' % int(EXPIRES_S * 1e9), reply=inbox)
            async with asyncio.timeout(EXPIRES_S + _GRACE_S):
                raw = await arrived.get()
        except TimeoutError:
            return None
        finally:
            await subscription.unsubscribe()
        if raw.reply:
            return Message(raw, self._broker, sent_at, reconnects, lambda: None)
        self._missing = self._missing or (raw.headers or {}).get("Status") == "503"
        return None

    async def _pull(self, size: int) -> None:
        client = self._broker.client
        if not client.is_connected:
            return
        inbox = next((inbox for inbox in self._inboxes if not inbox.left), None)
        if inbox is None:
            inbox = _Inbox(client.new_inbox())
            inbox.subscription = await client.subscribe(inbox.subject, cb=functools.partial(self._arrived, inbox))
            self._inboxes.append(inbox)
        inbox.left, inbox.sent_at, inbox.reconnects = size, time.monotonic(), _reconnects(self._broker)
        await client.publish(
            self._next, b'{"batch":%d,"expires":%d}' % (size, int(EXPIRES_S * 1e9)), reply=inbox.subject
        )

    async def _arrived(self, inbox: _Inbox, raw: Msg) -> None:
        if raw.reply:
            inbox.left = max(0, inbox.left - 1)
            self._take(raw, inbox)
            return
        status = (raw.headers or {}).get("Status")
        if status in _ENDS:
            inbox.left = 0
            self._missing = self._missing or status == "503"
            if status == "408":  # else it came at once, and must not make a busy circle: the next look is in 250 ms
                self._wake.set()

    def _take(self, raw: Msg, inbox: _Inbox) -> None:
        def admit() -> None:
            if task in self._tasks:
                self._admitted.add(task)
                self._wake.set()

        def ended(task: asyncio.Task[None]) -> None:
            self._tasks.discard(task)
            self._admitted.discard(task)
            self._wake.set()

        message = Message(raw, self._broker, inbox.sent_at, inbox.reconnects, admit)
        task = asyncio.create_task(self._guarded(message))
        self._tasks.add(task)
        task.add_done_callback(ended)

    async def _guarded(self, message: Message) -> None:
        if self._stopping:
            await message.nak()
            return
        try:
            await self._handle(message)
        except Exception:  # noqa: BLE001 - outermost loop: nothing may end it
            self._log.exception("pull.handler_failed", sequence=message.sequence)
            await message.nak(1.0)


async def drain(client: Client, subscriptions: Iterable[Subscription]) -> None:
    """Returns when the broker sends no more for them and all that it has sent went through their callbacks. Then they
    are to be unsubscribed, or the client would subscribe anew when it reconnects.

    What `Subscription.drain` is for; but there the PING overtakes the UNSUB, so that a message which arrives between
    the two is dropped (measured under load: 40 requests in 60 stops, messages of a pull in 27 of 4500).
    """
    subscriptions = tuple(subscriptions)
    for each in subscriptions:
        await client._send_unsubscribe(each._id)
    await client.flush()
    await client.flush()  # the second PING is written after all that was pending at the first
    for each in subscriptions:
        await each._pending_queue.join()
