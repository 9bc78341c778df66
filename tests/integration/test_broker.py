"""contracts.runtime.broker against a real nats-server: what it stores and says, and what it does when that is gone."""

import asyncio
import time
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from nats.aio.msg import Msg

from contracts.runtime.broker import NO_STREAM, ApiError, Broker, Conflict, StreamFull, Unavailable, connect
from contracts.runtime.pull import drain
from tests.support.processes import NatsServer, stopping
from tests.support.waiting import eventually

STREAM = {"name": "T", "subjects": ["t.>"], "storage": "file", "allow_direct": True, "allow_msg_ttl": True}


@pytest.fixture
async def stream(broker: Broker) -> AsyncIterator[Broker]:
    """The module's broker with an empty stream T."""
    await broker.api("STREAM.CREATE.T", STREAM)
    yield broker
    await broker.api("STREAM.DELETE.T")


@pytest.fixture
async def mortal(tmp_path: Path) -> AsyncIterator[tuple[NatsServer, Broker]]:
    """A broker of one's own, to be killed and stopped, with stream T."""
    server = NatsServer(tmp_path)
    with stopping(server):
        server.start()
        await server.ready()
        broker = await connect(name="mortal", url=server.url, on_closed=lambda reason: None)
        await broker.api("STREAM.CREATE.T", STREAM)
        yield server, broker
        server.resume()
        await broker.close()


async def count(broker: Broker) -> int:
    info = await broker.api("STREAM.INFO.T")
    messages: int = info["state"]["messages"]
    return messages


# --- what it stores ------------------------------------------------------------------------------------------------


async def test_sequences_count_from_one(stream: Broker) -> None:
    """store returns the sequence; last and at find the message under it, with the broker's time."""
    assert [await stream.store("t.a", b"1"), await stream.store("t.a", b"2")] == [1, 2]
    last = await stream.last("T", "t.a")
    assert last is not None
    assert (last.subject, last.seq, last.data) == ("t.a", 2, b"2")
    assert last.time.tzinfo is not None
    assert abs(last.time.timestamp() - time.time()) < 5
    assert await stream.at("T", 2) == last


async def test_bytes_come_back_as_they_were(stream: Broker) -> None:
    """All 256 of them, and none at all."""
    await stream.store("t.a", bytes(range(256)))
    await stream.store("t.b", b"")
    full, empty = await stream.last("T", "t.a"), await stream.last("T", "t.b")
    assert full is not None
    assert full.data == bytes(range(256))
    assert empty is not None
    assert empty.data == b""


async def test_what_is_not_there_is_none(stream: Broker) -> None:
    """No message of that subject, sequence, or from there on: None from each read; 'not there' is no error."""
    await stream.store("t.a", b"")
    assert await stream.last("T", "t.b") is None
    assert await stream.at("T", 2) is None
    assert await stream.next("T", 2, "t.*") is None
    assert await stream.next("T", 1, "t.b") is None
    assert await stream.subjects("T", "t.b") == []


async def test_next_leaps_over_holes_and_other_subjects(stream: Broker) -> None:
    """The first from there on that matches."""
    for subject in ("t.a.1", "t.b.1", "t.a.2", "t.b.2"):
        await stream.store(subject, b"")
    await stream.delete("T", 3)
    found = await stream.next("T", 2, "t.a.*")
    assert found is None
    found = await stream.next("T", 1, "t.b.*")
    assert found is not None
    assert found.seq == 2
    found = await stream.next("T", 3, "t.*.*")
    assert found is not None
    assert found.seq == 4


async def test_expectation_none(stream: Broker) -> None:
    """expect_last=0: the first one is stored, the second is a Conflict and changes nothing."""
    assert await stream.store("t.a", b"1", expect_last=0) == 1
    with pytest.raises(Conflict) as caught:
        await stream.store("t.a", b"2", expect_last=0)
    assert not caught.value.in_flight
    assert await count(stream) == 1
    assert await stream.store("t.b", b"3", expect_last=0) == 2


async def test_expectation_of_a_sequence_is_compare_and_set(stream: Broker) -> None:
    """The subject's own last sequence, and no other."""
    one = await stream.store("t.a", b"1")
    await stream.store("t.b", b"")
    two = await stream.store("t.a", b"2", expect_last=one)
    with pytest.raises(Conflict):
        await stream.store("t.a", b"3", expect_last=one)
    assert await stream.store("t.a", b"3", expect_last=two) == 4


async def test_expectation_on_another_subject(stream: Broker) -> None:
    """With a wildcard: one outcome of whatever state."""
    await stream.store("t.x.outcome.sent", b"", expect_last=0, expect_on="t.x.outcome.*")
    with pytest.raises(Conflict):
        await stream.store("t.x.outcome.dead", b"", expect_last=0, expect_on="t.x.outcome.*")
    await stream.store("t.y.outcome.dead", b"", expect_last=0, expect_on="t.y.outcome.*")
    assert await stream.subjects("T", "t.x.>") == ["t.x.outcome.sent"]


async def test_one_of_forty_is_stored(stream: Broker) -> None:
    """40 at once that expect none: 39 conflicts."""

    async def attempt(n: int) -> int | None:
        try:
            return await stream.store("t.a", str(n).encode(), expect_last=0)
        except Conflict:
            return None

    answers = await asyncio.gather(*(attempt(n) for n in range(40)))
    assert sorted(a for a in answers if a is not None) == [1]


async def test_a_full_stream_says_so(broker: Broker) -> None:
    """StreamFull; room again after a delete. A copy of what is there is a Conflict even when full."""
    await broker.api("STREAM.CREATE.T", STREAM | {"max_msgs": 2, "discard": "new"})
    try:
        await broker.store("t.a", b"", expect_last=0)
        await broker.store("t.b", b"", expect_last=0)
        with pytest.raises(StreamFull):
            await broker.store("t.c", b"", expect_last=0)
        with pytest.raises(Conflict):
            await broker.store("t.a", b"", expect_last=0)
        await broker.delete("T", 1)
        await broker.store("t.c", b"", expect_last=0)
    finally:
        await broker.api("STREAM.DELETE.T")


async def test_a_message_with_a_ttl_goes(stream: Broker) -> None:
    """After whole seconds, at least one."""
    await stream.store("t.a", b"", ttl_s=0.2)

    async def gone() -> bool:
        return await stream.last("T", "t.a") is None

    assert not await gone()
    await eventually(gone, within_s=6)


async def test_headers_are_kept(stream: Broker) -> None:
    """Ours beside those of the expectation."""
    await stream.store("t.a", b"", headers={"MailFlow-Reason": "why"}, expect_last=0)
    answer = await stream.request("$JS.API.DIRECT.GET.T", b'{"seq":1}')
    assert answer.headers is not None
    assert answer.headers["MailFlow-Reason"] == "why"


async def test_delete_overwrites_the_bytes(stream: Broker, nats_server: NatsServer) -> None:
    """They are in no file of the store any more; a second delete is False, not an error."""
    secret = b"sesame-opens-it"

    def on_disk() -> bool:
        return any(secret in path.read_bytes() for path in nats_server.store.rglob("*") if path.is_file())

    await stream.store("t.a", b"before")
    seq = await stream.store("t.a", secret)
    await stream.store("t.a", b"after")
    assert on_disk()
    assert await stream.delete("T", seq) is True
    assert not on_disk()
    assert await count(stream) == 2


@pytest.mark.parametrize("retention", ["limits", "workqueue"])
async def test_deleting_twice_is_no_error(broker: Broker, retention: str) -> None:
    """False, wherever in the stream the gap is; the broker has three different refusals for it."""
    await broker.api("STREAM.CREATE.T", STREAM | {"retention": retention})
    try:
        for _ in range(3):
            await broker.store("t.a", b"")
        for seq in (3, 1, 2):
            assert await broker.delete("T", seq) is True
            assert await broker.delete("T", seq) is False
        assert await broker.delete("T", 999) is False
        await broker.store("t.a", b"")
        await broker.purge("T", "t.a")
        assert await broker.delete("T", 4) is False
    finally:
        await broker.api("STREAM.DELETE.T")


async def test_a_forbidden_delete_is_an_error(broker: Broker) -> None:
    """It is there still, so it is not False."""
    await broker.api("STREAM.CREATE.T", STREAM | {"deny_delete": True})
    try:
        await broker.store("t.a", b"")
        with pytest.raises(ApiError):
            await broker.delete("T", 1)
    finally:
        await broker.api("STREAM.DELETE.T")


async def test_purge_takes_one_subject(stream: Broker) -> None:
    """And no other."""
    await stream.store("t.a", b"")
    await stream.store("t.b", b"")
    await stream.purge("T", "t.a")
    await stream.purge("T", "t.a")
    assert sorted(await stream.subjects("T", "t.*")) == ["t.b"]


async def test_refusals_carry_their_code(broker: Broker) -> None:
    """ApiError with err_code; a subject that no stream takes is Unavailable: nobody answers."""
    with pytest.raises(ApiError) as caught:
        await broker.api("STREAM.INFO.NONE")
    assert caught.value.err_code == NO_STREAM
    with pytest.raises(ApiError):
        await broker.last("NONE", "t.a")
    with pytest.raises(ApiError):
        await broker.delete("NONE", 1)
    with pytest.raises(Unavailable, match="nobody answers"):
        await broker.store("nowhere", b"")


async def test_a_time_that_is_over_is_no_hang(stream: Broker) -> None:
    """A deadline that has passed gives Unavailable at once."""
    for timeout_s in (0.0, -1.0):
        with pytest.raises(Unavailable):
            await stream.last("T", "t.a", timeout_s=timeout_s)


# --- when it is gone -----------------------------------------------------------------------------------------------


async def fails_at_once(broker: Broker) -> None:
    began = time.monotonic()
    with pytest.raises(Unavailable):
        await broker.store("t.late", b"", timeout_s=5)
    with pytest.raises(Unavailable):
        await broker.last("T", "t.late")
    assert time.monotonic() - began < 0.1


async def test_kill_and_restart(mortal: tuple[NatsServer, Broker]) -> None:
    """While it is gone every call fails at once; soon after it is back, they work; what was stored is there."""
    server, broker = mortal
    reconnected = asyncio.Event()
    broker.reconnected.append(reconnected.set)
    for n in range(50):
        await broker.store(f"t.{n}", b"")
    server.kill()
    await eventually(lambda: not broker.client.is_connected, within_s=1)
    await fails_at_once(broker)
    server.start()
    await server.ready()
    back = time.monotonic()
    await asyncio.wait_for(reconnected.wait(), 5)
    assert time.monotonic() - back < 1.5

    async def stored() -> bool:
        try:
            return await count(broker) == 50
        except (Unavailable, ApiError):
            return False

    await eventually(stored, within_s=2)


async def test_what_was_reported_failed_is_never_stored_later(mortal: tuple[NatsServer, Broker]) -> None:
    """2,000 stores around a kill: after the restart no more is there than was answered, or was sent at least."""
    server, broker = mortal
    answered: set[str] = set()
    never: set[str] = set()

    async def writer(w: int) -> None:
        for n in range(250):
            name = f"t.{w}.{n}"
            try:
                await broker.store(name, b"x" * 100, timeout_s=0.5)
                answered.add(name)
            except Unavailable as exc:
                if not exc.sent:
                    never.add(name)
                await asyncio.sleep(0.01)  # else eight writers spin while it is away

    writers = [asyncio.create_task(writer(w)) for w in range(8)]
    await eventually(lambda: len(answered) > 200, within_s=20)
    server.kill()
    await eventually(lambda: len(never) > 200, within_s=20)
    server.start()
    await server.ready()
    await asyncio.gather(*writers)
    await eventually(lambda: broker.client.is_connected)
    await broker.client.flush()
    stored = set(await broker.subjects("T", "t.>"))
    assert answered <= stored
    assert not never & stored


async def test_a_frozen_broker_is_noticed(mortal: tuple[NatsServer, Broker]) -> None:
    """SIGSTOP: calls end with their time, `no answer`; within some 8 s it counts as gone, and calls fail at once.

    After SIGCONT it goes on by itself, and what fell through while disconnected has not been stored.
    """
    server, broker = mortal
    server.pause()
    began = time.monotonic()
    with pytest.raises(Unavailable, match="no answer in time"):
        await broker.store("t.frozen", b"", timeout_s=0.3)
    assert time.monotonic() - began < 0.6
    await eventually(lambda: not broker.client.is_connected, within_s=8)
    await fails_at_once(broker)
    server.resume()
    await eventually(lambda: broker.client.is_connected, within_s=5)
    assert await broker.store("t.after", b"", timeout_s=5) > 0
    assert "t.late" not in await broker.subjects("T", "t.>")


async def test_it_waits_for_a_broker_that_is_not_there_yet(tmp_path: Path) -> None:
    """connect() returns when the broker has come; closing says nothing to on_closed."""
    server = NatsServer(tmp_path)
    reasons: list[str] = []
    waiting = asyncio.create_task(connect(name="early", url=server.url, on_closed=reasons.append))
    with stopping(server):
        done, _ = await asyncio.wait({waiting}, timeout=0.5)
        assert not done
        server.start()
        broker = await asyncio.wait_for(waiting, 10)
        assert broker.client.is_connected
        await broker.close()
    assert reasons == []


async def test_a_drain_asks_only_after_its_unsub(broker: Broker, monkeypatch: pytest.MonkeyPatch) -> None:
    """Else what the broker sends between its answer and the UNSUB is dropped, and waits for its ack_wait."""

    async def ignore(message: Msg) -> None: ...

    subscriptions = [await broker.client.subscribe(f"drained.{n}", cb=ignore) for n in range(2)]
    transport, sent = broker.client._transport, bytearray()
    write, write_lines = transport.write, transport.writelines

    def noted(data: bytes) -> None:
        sent.extend(data)
        write(data)

    def noted_lines(lines: list[bytes]) -> None:
        sent.extend(b"".join(lines))
        write_lines(lines)

    monkeypatch.setattr(transport, "write", noted)
    monkeypatch.setattr(transport, "writelines", noted_lines)
    await drain(broker.client, subscriptions)
    assert sent.count(b"UNSUB") == 2
    assert sent.rindex(b"UNSUB") < sent.rindex(b"PING")
