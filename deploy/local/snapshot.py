"""One stream as a file and back, by JetStream's snapshot and restore API: what `backup` is made of.

    snapshot   pieces come on an inbox, each is answered   ->  stream.tar.s2, backup.json in the stream's folder
    restore    the pieces of that file, one after another  ->  the stream as it was, its consumers not

The files are laid out as `nats stream backup` does.
"""

import asyncio
import hashlib
import time
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TypeVar

import msgspec
import nats.errors
import structlog
from nats.aio.msg import Msg

from contracts.runtime.broker import NO_STREAM, ApiError, Broker, Unavailable

log = structlog.get_logger()
T = TypeVar("T")

API_S = 30.0
_CHUNK = 256 * 1024
_SILENT_S = 20.0
_TRIES = 4
_OPENS_S = 4.0


class Saved(msgspec.Struct, frozen=True, kw_only=True):
    """One stream of a backup; what it holds is in the folder of its name."""

    name: str
    began_at: datetime
    messages: int
    last_seq: int
    sha256: str


async def save_stream(broker: Broker, name: str, folder: Path) -> Saved:
    arrived: asyncio.Queue[Msg] = asyncio.Queue()
    inbox = broker.client.new_inbox()
    subscription = await broker.client.subscribe(inbox, cb=arrived.put)
    digest, chunks, began = hashlib.sha256(), 0, datetime.now(UTC)
    part = folder / "stream.tar.s2.part"
    try:
        ask = {"deliver_subject": inbox, "no_consumers": True, "chunk_size": _CHUNK}
        answer = await broker.api(f"STREAM.SNAPSHOT.{name}", ask, timeout_s=API_S)
        with part.open("wb") as file:
            while True:
                async with asyncio.timeout(_SILENT_S):
                    chunk = await arrived.get()
                if not chunk.data:
                    break
                digest.update(chunk.data)
                file.write(chunk.data)
                chunks += 1
                if chunk.reply:  # …<bytes>.<index>; the last one, if it is a short one, wants no answer
                    if int(chunk.reply.rpartition(".")[2]) != chunks:
                        raise Unavailable(f"a piece of {name} was lost on the way", sent=True)
                    await broker.client.publish(chunk.reply)
    except TimeoutError as exc:
        raise Unavailable(f"no more pieces of {name} came", sent=True) from exc
    finally:
        await subscription.unsubscribe()
    status = (chunk.headers or {}).get("Status", "204")
    if status != "204":
        raise Unavailable(f"{name}: {status} {(chunk.headers or {}).get('Description', '')}", sent=True)
    part.rename(folder / "stream.tar.s2")
    (folder / "backup.json").write_bytes(
        msgspec.json.format(msgspec.json.encode({"config": answer["config"], "state": answer["state"]}))
    )
    state = answer["state"]
    return Saved(
        name=name,
        began_at=began,
        messages=state["messages"],
        last_seq=state["last_seq"],
        sha256=digest.hexdigest(),
    )


async def restore_stream(broker: Broker, saved: Saved, folder: Path, *, replicas: int) -> dict[str, Any]:
    wanted: dict[str, Any] = msgspec.json.decode((folder / "backup.json").read_bytes())
    wanted["config"]["num_replicas"] = replicas
    opened = await broker.api(f"STREAM.RESTORE.{saved.name}", wanted, timeout_s=API_S)
    with (folder / "stream.tar.s2").open("rb") as file:
        while chunk := file.read(_CHUNK):
            await _hand_over(broker, opened["deliver_subject"], chunk, API_S)
    answer = await _hand_over(broker, opened["deliver_subject"], b"", 10 * API_S)
    info: dict[str, Any] = msgspec.json.decode(answer)
    if info["state"]["last_seq"] < saved.last_seq:
        raise ApiError(0, f"{saved.name} ends at {info['state']['last_seq']}, {saved.last_seq} was saved")
    return info


async def _hand_over(broker: Broker, subject: str, piece: bytes, timeout_s: float) -> bytes:
    """One piece, and the broker's answer to it. In a cluster the way to who takes it may open a moment later."""
    end = time.monotonic() + _OPENS_S
    while True:
        try:
            answer = (await broker.request(subject, piece, timeout_s=timeout_s)).data
        except Unavailable as exc:
            if exc.sent or time.monotonic() > end:
                raise
            await asyncio.sleep(0.05)
            continue
        error = msgspec.json.decode(answer).get("error") if answer else None
        if error is not None:
            raise ApiError(error.get("err_code", 0), error.get("description", "refused"))
        return answer


async def stream_info(broker: Broker, name: str) -> dict[str, Any] | None:
    try:
        info: dict[str, Any] = await broker.api(f"STREAM.INFO.{name}", timeout_s=API_S)
    except ApiError as exc:
        if exc.err_code == NO_STREAM:
            return None
        raise
    return info


async def again(work: Callable[[], Awaitable[T]]) -> T:
    """A few tries: an election of a leader, or a block of the store that goes while it is read."""
    for attempt in range(1, _TRIES + 1):
        try:
            return await work()
        except (Unavailable, ApiError, nats.errors.Error) as exc:
            if attempt == _TRIES or (isinstance(exc, ApiError) and exc.err_code == NO_STREAM):
                raise
            log.warning("backup.trying_again", reason=str(exc))
            await asyncio.sleep(attempt)
    raise AssertionError
