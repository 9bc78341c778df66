"""contracts.runtime.pull against a real nats-server: nothing is lost, nothing waits for an ack_wait that need not."""

import asyncio
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import pytest

from contracts.runtime.broker import Broker, connect
from contracts.runtime.pull import Message, PullLoop
from tests.support.processes import NatsServer, stopping
from tests.support.waiting import eventually

STREAM = {"name": "W", "subjects": ["w.>"], "retention": "workqueue", "storage": "file"}
CONSUMER = {
    "durable_name": "c",
    "name": "c",
    "ack_policy": "explicit",
    "ack_wait": 30_000_000_000,
    "max_deliver": -1,
    "max_waiting": 8192,
    "max_ack_pending": 100_000,
}
Handle = Callable[[Message], Awaitable[None]]


async def make_consumer(broker: Broker) -> None:
    await broker.api("CONSUMER.CREATE.W.c", {"stream_name": "W", "action": "create", "config": CONSUMER})


@pytest.fixture
async def queue(broker: Broker) -> AsyncIterator[Broker]:
    """The module's broker with an empty work queue W and its consumer c."""
    await broker.api("STREAM.CREATE.W", STREAM)
    await make_consumer(broker)
    yield broker
    await broker.api("STREAM.DELETE.W")


@pytest.fixture
async def mortal(tmp_path: Path) -> AsyncIterator[tuple[NatsServer, Broker]]:
    """A broker of one's own with the same queue."""
    server = NatsServer(tmp_path)
    with stopping(server):
        server.start()
        await server.ready()
        broker = await connect(name="mortal", url=server.url, on_closed=lambda reason: None)
        await broker.api("STREAM.CREATE.W", STREAM)
        await make_consumer(broker)
        yield server, broker
        server.resume()
        await broker.close()


def loop_of(broker: Broker, handle: Handle, *, slots: int = 64, credit: int | None = None) -> PullLoop:
    return PullLoop(broker, stream="W", durable="c", handle=handle, slots=slots, credit=credit)


async def fill(broker: Broker, count: int) -> None:
    turn = asyncio.Semaphore(128)

    async def store(n: int) -> None:
        async with turn:
            await broker.store(f"w.{n}", str(n).encode(), timeout_s=10)

    await asyncio.gather(*(store(n) for n in range(count)))


async def left(broker: Broker) -> int:
    info = await broker.api("STREAM.INFO.W")
    messages: int = info["state"]["messages"]
    return messages


async def pulls_waiting(broker: Broker) -> int:
    info = await broker.api("CONSUMER.INFO.W.c")
    waiting: int = info["num_waiting"]
    return waiting


async def test_thousands_are_handled_in_seconds(queue: Broker) -> None:
    """Each once, each acked."""
    seen: Counter[bytes] = Counter()

    async def handle(message: Message) -> None:
        seen[message.data] += 1
        await message.ack()

    await fill(queue, 3000)
    began = time.monotonic()
    async with loop_of(queue, handle, slots=256):
        await eventually(lambda: len(seen) == 3000, within_s=20)
        assert time.monotonic() - began < 6
        await eventually(lambda: _is_empty(queue))
    assert set(seen.values()) == {1}


async def _is_empty(broker: Broker) -> bool:
    return await left(broker) == 0


async def test_a_message_knows_where_it_comes_from(queue: Broker) -> None:
    """Subject, bytes, headers, sequence, deliveries, the broker's time, and since when it may be ours."""
    got: asyncio.Queue[Message] = asyncio.Queue()

    async def handle(message: Message) -> None:
        got.put_nowait(message)
        await (message.ack() if message.delivered == 2 else message.nak())

    before = time.monotonic()
    seq = await queue.store("w.x", b"data", headers={"A": "b"})
    async with loop_of(queue, handle):
        one, two = await got.get(), await got.get()
    assert (one.subject, one.data, one.headers["A"], one.sequence) == ("w.x", b"data", "b", seq)
    assert (one.delivered, two.delivered) == (1, 2)
    assert abs(one.stored_at.timestamp() - time.time()) < 5
    assert before <= one.pulled_at <= two.pulled_at <= time.monotonic()


async def test_it_works_in_parallel_up_to_its_slots(queue: Broker) -> None:
    """8 at once, never 9."""
    running, most = 0, 0
    release = asyncio.Event()

    async def handle(message: Message) -> None:
        nonlocal running, most
        running += 1
        most = max(most, running)
        await release.wait()
        running -= 1
        await message.ack()

    await fill(queue, 40)
    async with loop_of(queue, handle, slots=8) as loop:
        await eventually(lambda: running == 8)
        assert loop.in_hand == 8
        assert await pulls_waiting(queue) == 0
        release.set()
        await eventually(lambda: _is_empty(queue))
    assert most == 8


async def test_credit_bounds_what_waits(queue: Broker) -> None:
    """Of 16 slots only 2 are used while nothing is admitted; each admission makes room for one more, up to 16."""
    waiting: list[tuple[Message, asyncio.Event]] = []
    most = 0

    async def handle(message: Message) -> None:
        nonlocal most
        go = asyncio.Event()
        waiting.append((message, go))
        most = max(most, len(waiting))
        await go.wait()
        await message.ack()

    await fill(queue, 40)
    async with loop_of(queue, handle, slots=16, credit=2) as loop:
        await eventually(lambda: len(waiting) == 2)
        await asyncio.sleep(0.4)  # longer than the loop's own look
        assert len(waiting) == 2
        for n in range(14):
            waiting[n][0].admit()
            await eventually(lambda wanted=n + 3: len(waiting) == wanted)  # type: ignore[misc]
        waiting[14][0].admit()
        waiting[15][0].admit()
        await asyncio.sleep(0.4)
        assert loop.in_hand == 16
        assert len(waiting) == 16
        for _, go in waiting:
            go.set()
        await eventually(lambda: len(waiting) == 18)


async def test_credit_can_be_moved(queue: Broker) -> None:
    """Down to nothing and up again at once; what is out of range is brought into it."""
    in_hand: list[asyncio.Event] = []

    async def handle(message: Message) -> None:
        go = asyncio.Event()
        in_hand.append(go)
        await go.wait()
        await message.ack()

    await fill(queue, 40)
    async with loop_of(queue, handle, slots=16, credit=1) as loop:
        await eventually(lambda: len(in_hand) == 1)
        loop.credit = -5
        assert loop.credit == 0
        loop.credit = 1000
        assert loop.credit == 16
        await eventually(lambda: len(in_hand) == 16)
        for go in in_hand:
            go.set()
        await eventually(lambda: len(in_hand) >= 32)


async def test_a_single_message_is_there_in_milliseconds(queue: Broker) -> None:
    """At idle a pull waits at the broker already."""
    arrived: asyncio.Queue[float] = asyncio.Queue()

    async def handle(message: Message) -> None:
        arrived.put_nowait(time.monotonic())
        await message.ack()

    late = []
    async with loop_of(queue, handle):
        await eventually(lambda: _pulls(queue))
        for n in range(60):
            stored = asyncio.create_task(queue.store(f"w.{n}", b""))
            sent = time.monotonic()
            late.append(await arrived.get() - sent)
            await stored
            await asyncio.sleep(0.013 * (n % 5))
    late.sort()
    assert late[30] < 0.02, late
    assert late[-1] < 0.8, late  # a pull that was lost costs a second and more


async def _pulls(broker: Broker) -> bool:
    return await pulls_waiting(broker) > 0


async def test_nak_with_a_delay_comes_again_after_it(queue: Broker) -> None:
    """Not before; and others are handled meanwhile."""
    times: list[float] = []
    others = 0

    async def handle(message: Message) -> None:
        nonlocal others
        if message.data != b"0":
            others += 1
            await message.ack()
            return
        times.append(time.monotonic())
        await (message.nak(0.5) if len(times) == 1 else message.ack())

    await fill(queue, 100)
    async with loop_of(queue, handle):
        await eventually(lambda: others == 99, within_s=3)
        await eventually(lambda: len(times) == 2)
    assert 0.49 < times[1] - times[0] < 1.2


async def test_a_handler_that_raises_gets_its_message_again(queue: Broker) -> None:
    """Logged, given back for a second; the loop lives."""
    tries = 0

    async def handle(message: Message) -> None:
        nonlocal tries
        tries += 1
        if tries == 1:
            raise RuntimeError("a mistake")
        await message.ack()

    await fill(queue, 1)
    async with loop_of(queue, handle):
        await eventually(lambda: _is_empty(queue), within_s=4)
    assert tries == 2


async def test_keep_asks_for_more_time(queue: Broker) -> None:
    """With an ack_wait of 1 s, a message kept for 2.5 s is not handed out again."""
    short = CONSUMER | {"ack_wait": 1_000_000_000}
    await queue.api("CONSUMER.CREATE.W.c", {"stream_name": "W", "action": "update", "config": short})
    tries = 0

    async def handle(message: Message) -> None:
        nonlocal tries
        tries += 1
        for _ in range(5):
            await asyncio.sleep(0.5)
            await message.keep(2)
        await message.ack()

    await fill(queue, 1)
    async with loop_of(queue, handle):
        await eventually(lambda: _is_empty(queue), within_s=6)
    assert tries == 1


async def test_stop_gives_back_what_was_not_admitted(queue: Broker) -> None:
    """What waits is another loop's at once, not after ack_wait; what was admitted may finish; nobody does both."""
    done: Counter[str] = Counter()
    admitted = asyncio.Event()

    async def slow(message: Message) -> None:
        try:
            if message.data == b"0":
                message.admit()
                admitted.set()
                await asyncio.sleep(0.5)
                done["first"] += 1
                await message.ack()
                return
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            await message.nak()
            raise

    async def quick(message: Message) -> None:
        done["second"] += 1
        await message.ack()

    await fill(queue, 50)
    async with loop_of(queue, slow, slots=64) as loop:
        await admitted.wait()
        await eventually(lambda: loop.in_hand == 50)
        async with loop_of(queue, quick):
            await loop.stop(grace_s=5)
            await eventually(lambda: _is_empty(queue), within_s=3)
    assert done == {"first": 1, "second": 49}


async def test_stop_loses_nothing_at_any_moment(queue: Broker) -> None:
    """Stopped under load, 20 times: what was on its way, or had arrived and not begun, is another's at once, and none
    waits for its ack_wait."""
    handled: Counter[bytes] = Counter()

    async def handle(message: Message) -> None:
        try:
            await asyncio.sleep(0.001)
            handled[message.data] += 1
            await message.ack()
        except asyncio.CancelledError:
            await message.nak()
            raise

    for trial in range(20):
        loop = loop_of(queue, handle, slots=64)
        async with loop:
            filling = asyncio.create_task(fill(queue, 100))
            await asyncio.sleep(0.003 * trial)
            await loop.stop(grace_s=0)
            assert loop.in_hand == 0
        await filling

    async def nobody_holds() -> bool:
        info = await queue.api("CONSUMER.INFO.W.c")
        return info["num_pending"] + info["num_ack_pending"] == 0

    async with loop_of(queue, handle, slots=256):
        # Far less than the ack_wait of 30 s; the broker has 2000 acks to write to its disk (6 s on a busy machine).
        await eventually(nobody_holds, within_s=15)
    assert await left(queue) == 0
    assert len(handled) == 100


async def test_leaving_the_context_is_a_stop(queue: Broker) -> None:
    """No pull waits at the broker any more, so nothing is handed to a loop that is gone."""

    async def handle(message: Message) -> None:
        await message.ack()

    async with loop_of(queue, handle):
        await eventually(lambda: _pulls(queue))
    assert await pulls_waiting(queue) == 0


async def test_a_deleted_consumer_is_asked_for(queue: Broker) -> None:
    """on_missing is called, again until it helps, and the loop goes on."""
    calls = 0
    handled = 0

    async def handle(message: Message) -> None:
        nonlocal handled
        handled += 1
        await message.ack()

    async def missing() -> None:
        nonlocal calls
        calls += 1
        if calls == 1:
            raise RuntimeError("not yet")
        await make_consumer(queue)

    loop = PullLoop(queue, stream="W", durable="c", handle=handle, slots=8, on_missing=missing)
    async with loop:
        await eventually(lambda: _pulls(queue))
        await queue.api("CONSUMER.DELETE.W.c")
        await fill(queue, 10)
        await eventually(lambda: handled == 10, within_s=6)
    assert calls == 2


async def test_killed_broker_in_the_middle(mortal: tuple[NatsServer, Broker]) -> None:
    """kill -9 with messages in hand and on their way; it goes on within seconds, and all are handled in the end."""
    server, broker = mortal
    handled: Counter[bytes] = Counter()
    last_at = 0.0

    async def handle(message: Message) -> None:
        nonlocal last_at
        await asyncio.sleep(0.005)
        handled[message.data] += 1
        last_at = time.monotonic()
        await message.ack()

    await fill(broker, 2000)
    async with loop_of(broker, handle, slots=64):
        await eventually(lambda: len(handled) > 300)
        server.kill()
        await eventually(lambda: not broker.client.is_connected, within_s=1)
        server.start()
        await server.ready()
        back, before = time.monotonic(), len(handled)
        await eventually(lambda: len(handled) > before + 64, within_s=4)
        assert last_at - back < 3
        await eventually(lambda: len(handled) == 2000, within_s=20)


async def test_frozen_broker_in_the_middle(mortal: tuple[NatsServer, Broker]) -> None:
    """SIGSTOP until it counts as gone, then SIGCONT: the loop goes on within seconds."""
    server, broker = mortal
    handled: Counter[bytes] = Counter()

    async def handle(message: Message) -> None:
        handled[message.data] += 1
        await message.ack()

    await fill(broker, 100)
    async with loop_of(broker, handle):
        await eventually(lambda: len(handled) == 100)
        server.pause()
        await eventually(lambda: not broker.client.is_connected, within_s=8)
        server.resume()
        await eventually(lambda: broker.client.is_connected, within_s=3)
        await broker.store("w.x", b"x", timeout_s=5)
        await eventually(lambda: b"x" in handled, within_s=3)


@pytest.mark.parametrize("how", ["killed", "frozen"])
async def test_stopping_without_a_broker_takes_no_time(mortal: tuple[NatsServer, Broker], how: str) -> None:
    """SIGTERM while the broker is gone or silent: nothing to wait for. If it was only silent, what was admitted can go
    on with it afterwards."""
    server, broker = mortal

    async def handle(message: Message) -> None:
        await asyncio.Event().wait()

    await fill(broker, 20)
    loop = loop_of(broker, handle, slots=64, credit=16)
    async with loop:
        await eventually(lambda: loop.in_hand == 16)
        if how == "killed":
            server.kill()
            await eventually(lambda: not broker.client.is_connected, within_s=1)
        else:
            server.pause()
            stat = Path(f"/proc/{server.pid}/stat")
            await eventually(lambda: ") T " in stat.read_text(), within_s=1)  # the signal takes a moment
        began = time.monotonic()
        await loop.stop(grace_s=0)
        assert time.monotonic() - began < 2
        assert loop.in_hand == 0
    if how == "frozen":
        server.resume()
        assert await left(broker) == 20


async def test_two_loops_share_the_work(queue: Broker, nats_server: NatsServer) -> None:
    """Two replicas, each message once, both at work."""
    handled: Counter[tuple[int, bytes]] = Counter()
    other = await connect(name="other", url=nats_server.url, on_closed=lambda reason: None)

    def handler(who: int) -> Handle:
        async def handle(message: Message) -> None:
            await asyncio.sleep(0.002)
            handled[who, message.data] += 1
            await message.ack()

        return handle

    try:
        async with loop_of(queue, handler(1), slots=16), loop_of(other, handler(2), slots=16):
            await fill(queue, 600)
            await eventually(lambda: len(handled) == 600, within_s=15)
    finally:
        await other.close()
    assert set(handled.values()) == {1}
    shares = Counter(who for who, _ in handled)
    assert min(shares[1], shares[2]) > 100, shares
