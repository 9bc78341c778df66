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
import itertools
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from types import TracebackType

import structlog
from nats.aio.msg import Msg

from contracts.runtime.broker import Broker, Unavailable

log = structlog.get_logger()

EXPIRES_S = 1.0
_GRACE_S = 0.5
_ENDS = frozenset({"404", "408", "409", "503"})


class Message:
    """One delivery of a stored message."""

    def __init__(self, raw: Msg, broker: Broker, pulled_at: float, admit: Callable[[], None]) -> None:
        # $JS.ACK[.<domain>.<account>].<stream>.<consumer>.<delivered>.<stream seq>.<consumer seq>.<time>.<pending>
        parts = raw.reply.split(".")
        delivered, sequence, _, time_ns, _ = parts[-5:] if len(parts) == 9 else parts[-6:-1]
        self._raw = raw
        self._broker = broker
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
        self.admit = admit

    async def ack(self) -> None:
        """Done, for good. May be lost with the connection or the broker: then the message comes again."""
        await self._say(b"+ACK")

    async def nak(self, delay_s: float = 0.0) -> None:
        """Given back, to come again after a delay."""
        await self._say(b'-NAK {"delay": %d}' % int(delay_s * 1e9) if delay_s > 0 else b"-NAK")

    async def keep(self, timeout_s: float) -> None:
        """Asks for another ack_wait and waits until the broker has confirmed.

        Raises:
            Unavailable: not confirmed.
        """
        await self._broker.request(self._raw.reply, b"+WPI", timeout_s=timeout_s)

    async def _say(self, word: bytes) -> None:
        try:
            await self._broker.client.publish(self._raw.reply, word)
        except Exception as exc:  # noqa: BLE001 - unsaid is the same as lost: the message comes again
            log.debug("pull.answer_lost", error=repr(exc))


class _Pull:
    """A pull under way: how many messages may still come of it, and when it was sent."""

    def __init__(self, size: int, sent_at: float) -> None:
        self.left = size
        self.sent_at = sent_at


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
        self._credit = min(slots, credit or slots)
        self._pulls: dict[str, _Pull] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._admitted: set[asyncio.Task[None]] = set()
        self._missing = False
        self._stopping = False
        self._wake = asyncio.Event()
        self._names = itertools.count()
        self._log = log.bind(stream=stream, durable=durable)

    @property
    def in_hand(self) -> int:
        """Messages that are being handled."""
        return len(self._tasks)

    @property
    def credit(self) -> int:
        """How many messages may be asked for or waiting at once, 1 to `slots`."""
        return self._credit

    @credit.setter
    def credit(self, value: int) -> None:
        self._credit = max(1, min(self.slots, value))
        self._wake.set()

    async def __aenter__(self) -> "PullLoop":
        self._inbox = self._broker.client.new_inbox()
        self._subscription = await self._broker.client.subscribe(f"{self._inbox}.*", cb=self._arrived)
        self._broker.reconnected.append(self._forget_pulls)
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
        self._broker.reconnected.remove(self._forget_pulls)
        self._runner.cancel()
        try:
            await self._subscription.drain()  # type: ignore[no-untyped-call]  # the broker drops the waiting pulls; what has arrived is given back
        except Exception as exc:  # noqa: BLE001 - not connected: the pulls are gone with the connection
            self._log.debug("pull.unsubscribe_failed", error=repr(exc))
        for task in self._tasks - self._admitted:
            task.cancel()
        if self._tasks and grace_s > 0:
            await asyncio.wait(self._tasks, timeout=grace_s)
        for task in self._tasks:
            task.cancel()
        if self._tasks:
            await asyncio.wait(self._tasks)

    def _forget_pulls(self) -> None:
        self._pulls.clear()
        self._wake.set()

    async def _run(self) -> None:
        while True:
            self._wake.clear()
            now = asyncio.get_running_loop().time()
            for name, pull in list(self._pulls.items()):
                if now - pull.sent_at > EXPIRES_S + _GRACE_S:
                    del self._pulls[name]
            if self._missing:
                self._missing = False
                await self._find_missing()
            asked = sum(pull.left for pull in self._pulls.values())
            waiting = len(self._tasks) - len(self._admitted)
            room = min(self._credit - asked - waiting, self.slots - asked - len(self._tasks))
            # Half of the credit at a time: one pull a message would double the broker's work.
            if room > 0 and (room >= self._credit // 2 or asked == 0):
                await self._pull(room, now)
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

    async def _pull(self, size: int, now: float) -> None:
        name = str(next(self._names))
        self._pulls[name] = _Pull(size, now)
        body = b'{"batch":%d,"expires":%d}' % (size, int(EXPIRES_S * 1e9))
        try:
            if not self._broker.client.is_connected:
                raise Unavailable("not connected", sent=False)
            await self._broker.client.publish(self._next, body, reply=f"{self._inbox}.{name}")
        except Exception as exc:  # noqa: BLE001 - it expires by itself; the next one may go through
            self._log.debug("pull.failed", error=repr(exc))

    async def _arrived(self, raw: Msg) -> None:
        name = raw.subject.rpartition(".")[2]
        status = (raw.headers or {}).get("Status") if not raw.reply else None
        pull = self._pulls.get(name)
        if status is not None:
            if status in _ENDS:
                self._pulls.pop(name, None)
                self._missing = self._missing or status == "503"
                # An answer at once (409, 503) must not make a busy circle: the next look is in 250 ms.
                if status == "408":
                    self._wake.set()
            return
        if not raw.reply:
            return
        sent_at = asyncio.get_running_loop().time() - EXPIRES_S - _GRACE_S
        if pull is not None:
            sent_at = pull.sent_at
            pull.left -= 1
            if pull.left == 0:
                del self._pulls[name]
        self._take(raw, sent_at)

    def _take(self, raw: Msg, pulled_at: float) -> None:
        def admit() -> None:
            if task in self._tasks:
                self._admitted.add(task)
                self._wake.set()

        def ended(task: asyncio.Task[None]) -> None:
            self._tasks.discard(task)
            self._admitted.discard(task)
            self._wake.set()

        task = asyncio.create_task(self._guarded(Message(raw, self._broker, pulled_at, admit)))
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
