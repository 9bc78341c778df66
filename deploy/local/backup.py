"""Backup, restore and move of all that the broker keeps: python deploy/local/backup.py save DIR | restore DIR | move …

    save      the relay's place, then  DEAD_LETTERS  IDEMPOTENCY  WELCOME_EMAILS  USERS  DELIVERIES  CONTROL  AUDIT
    restore   the streams as they were  ->  topology  ->  the relay's place  ->  the seams mended  ->  the books checked

A backup may be made while everything runs. The streams are not saved at one moment, so the order is chosen such that
what happens meanwhile is seen twice rather than not at all, and seeing twice is what the ledger absorbs:

- The relay's place is read first. What it took after that it takes again: the queue or the ledger refuses the copy.
- The queue comes before the users, so nothing is queued for a user who is not there.
- The ledger comes after both, so every mail that was sent before it was saved is known to be sent.
- Dead letters come before the users: a letter that is missing because it was replayed has its `again` key.

Three seams are left, and `restore` mends them from the tail of the ledger: outcomes of registrations that came after
the users were saved go (they would hide a real gap for ever); a dead letter that was written too late is written again;
an erasure that came too late is asked for again.

Consumers are not saved but made anew. The broker saves their state after the messages, so nothing keeps it from being
ahead of them, and what a consumer is ahead by, it would skip for ever (not seen in 16 tries under load; not ruled out).
The counters count afresh, and the queue is handed out from its beginning: what was tried, and when the next try is due,
is in the ledger.

What a backup cannot do: mails that go out after the ledger was saved are not known in it. Restore it elsewhere, and
those that were pending then are sent again (same Message-ID). So for a move both services are stopped first.

`snapshot` saves and restores one stream.
"""

import asyncio
import hashlib
import os
import sys
import time
from datetime import UTC, datetime
from pathlib import Path

import msgspec
import nats.errors
import passwords
from snapshot import API_S, Saved, again, restore_stream, save_stream, stream_info

from contracts import messages as m
from contracts import streams, topology
from contracts import subjects as s
from contracts.runtime.broker import ApiError, Broker, Conflict, Stored, Unavailable
from contracts.runtime.lifecycle import Stop
from contracts.runtime.process import BAD_START, BadStart, connect_as, run
from email_svc.ledger import Ledger
from user_svc.ledger import Books, books
from user_svc.store import walk

ORDER = (s.DEAD_LETTERS, s.IDEMPOTENCY, s.WELCOME_EMAILS, s.USERS, s.DELIVERIES, s.CONTROL, s.AUDIT)
_MANIFEST = "mailflow.json"
_LIVE_S = 2.5
_CURRENT_S = 120.0


class Manifest(msgspec.Struct, frozen=True, kw_only=True):
    """What a backup is."""

    kind: str = "mailflow.backup.v1"
    began_at: datetime
    ended_at: datetime
    relay_floor: int
    """Up to here the relay had done what the outbox asks for, before anything was saved."""
    ledger_from: int
    """The ledger's last sequence at that moment: the seams are behind it."""
    streams: tuple[Saved, ...]


class Settings(topology.TopologySettings, frozen=True, kw_only=True):
    """The environment of the services does: NATS_* and STREAM_REPLICAS."""


# --- save ------------------------------------------------------------------------------------------------------------


async def save(broker: Broker, folder: Path) -> Manifest:
    """Saves all streams into a folder, which is made and must be empty.

    Raises:
        BadStart: not possible as things are. Unavailable, ApiError: broken off.
    """
    assert {*ORDER} == {stream.name for stream in streams.topology()}
    _make(folder)
    began = datetime.now(UTC)
    relay = await broker.api(f"CONSUMER.INFO.{s.USERS}.{s.RELAY}")
    ledger = await broker.api(f"STREAM.INFO.{s.DELIVERIES}")
    saved = []
    for name in ORDER:
        saved.append(one := await again(lambda name=name: save_stream(broker, name, folder / name)))  # type: ignore[misc]
        say(f"saved    {one.name:<15} {one.messages:>9} messages")
    manifest = Manifest(
        began_at=began,
        ended_at=datetime.now(UTC),
        relay_floor=relay["ack_floor"]["stream_seq"],
        ledger_from=ledger["state"]["last_seq"],
        streams=tuple(saved),
    )
    (folder / _MANIFEST).write_bytes(msgspec.json.format(msgspec.json.encode(manifest)))
    return manifest


def _make(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        if any(folder.iterdir()):
            raise BadStart(f"{folder} is not empty: name a new directory for each backup")
        for name in ORDER:
            (folder / name).mkdir(mode=0o700)
    except OSError as exc:
        raise BadStart(f"{folder} cannot be used: {exc.strerror}") from exc


# --- restore ---------------------------------------------------------------------------------------------------------


async def restore(broker: Broker, folder: Path, settings: Settings, *, replace: bool = False) -> Books:
    """Makes the broker hold what the backup holds, and returns its books.

    Raises:
        BadStart: not possible as things are. Unavailable, ApiError: broken off; run it again with `replace`.
    """
    manifest = _read(folder)
    there = await _held(broker)
    if there and not replace:
        raise BadStart(
            f"this broker holds {', '.join(there)} already. Nothing was changed. To delete them and restore: "
            f"just restore {folder} replace"
        )
    await refuse_live(broker)
    for name in there:
        await broker.api(f"STREAM.DELETE.{name}", timeout_s=API_S)
        say(f"deleted  {name}")
    for saved in manifest.streams:
        info = await restore_stream(broker, saved, folder / saved.name, replicas=settings.stream_replicas)
        say(f"restored {saved.name:<15} {info['state']['messages']:>9} messages")
    await topology.until_answered(
        lambda: topology.provision(
            broker,
            service=None,
            mode="auto",
            replicas=settings.stream_replicas,
            queue_max_size=settings.queue_max_size,
        )
    )
    await _current(broker)
    await _place_relay(broker, manifest.relay_floor)
    await _mend(broker, manifest.ledger_from)
    seen = await books(broker)
    print(explained(seen))
    return seen


def _read(folder: Path) -> Manifest:
    try:
        manifest = msgspec.json.decode((folder / _MANIFEST).read_bytes(), type=Manifest)
        for saved in manifest.streams:
            with (folder / saved.name / "stream.tar.s2").open("rb") as file:
                if hashlib.file_digest(file, "sha256").hexdigest() != saved.sha256:
                    raise BadStart(f"{file.name} is not what was saved: the backup is damaged. Nothing was changed.")
    except (OSError, msgspec.DecodeError) as exc:
        raise BadStart(f"{folder} is not a whole backup of MailFlow: {exc}. Nothing was changed.") from exc
    return manifest


async def _held(broker: Broker) -> list[str]:
    """The streams of ours that a broker has."""
    return [name for name in ORDER if await stream_info(broker, name) is not None]


async def refuse_live(broker: Broker) -> None:
    """Refuses while a service pulls from this broker.

    Raises:
        BadStart: one does.
    """
    end = time.monotonic() + _LIVE_S
    while time.monotonic() < end:
        for stream, consumer in ((s.USERS, s.RELAY), (s.WELCOME_EMAILS, s.EMAIL_SVC)):
            try:
                info = await broker.api(f"CONSUMER.INFO.{stream}.{consumer}")
            except ApiError:
                continue
            if info["num_waiting"]:
                service = "user_svc" if consumer == s.RELAY else "email_svc"
                raise BadStart(f"{service} works on this broker. Stop both services first. Nothing was changed.")
        await asyncio.sleep(0.1)


async def _current(broker: Broker) -> None:
    """Waits until every replica has everything: nothing else may be the reason to wait later."""
    end = time.monotonic() + _CURRENT_S
    while True:
        infos = [await again(lambda name=name: stream_info(broker, name)) for name in ORDER]  # type: ignore[misc]
        behind = [
            info["config"]["name"]
            for info in infos
            if info is not None and not all(peer["current"] for peer in (info.get("cluster") or {}).get("replicas", ()))
        ]
        if not behind:
            return
        if time.monotonic() > end:
            say(f"the replicas of {', '.join(behind)} are still catching up; the services may be started all the same")
            return
        await asyncio.sleep(0.2)


async def _place_relay(broker: Broker, floor: int) -> None:
    """Where the relay goes on. A broker older than 2.14 cannot be told: it goes through everything again."""
    try:
        await again(lambda: broker.api(f"CONSUMER.RESET.{s.USERS}.{s.RELAY}", {"seq": floor + 1}, timeout_s=5))
    except (Unavailable, ApiError) as exc:
        say(f"the relay goes through all registrations again, which takes time and sends nothing twice ({exc})")


async def _mend(broker: Broker, ledger_from: int) -> None:
    """The seams between streams that were not saved at one moment; only the ledger's tail can have them."""
    users = await broker.api(f"STREAM.INFO.{s.USERS}")
    last = users["state"]["last_seq"]
    unknown = letters = erasures = 0
    async for rows in walk(broker, stream=s.DELIVERIES, pattern="deliveries.>", after=ledger_from):
        for row in rows:
            try:
                value = m.LEDGER_ROW.decode(row.data)
                user_id, revision = s.split_event_id(value.event_id)
            except (ValueError, RecursionError):  # msgspec's errors among them
                continue  # written by no version of ours
            if revision > last:
                unknown += await broker.delete(s.DELIVERIES, row.seq)
            elif isinstance(value, m.Outcome):
                letters += await _rebury(broker, value, user_id, revision)
                erasures += await _erase_again(broker, value, user_id, revision)
    if unknown:
        say(f"removed  {unknown} rows of the ledger: their users registered after the users were saved")
    if letters:
        say(f"restored {letters} dead letters from the ledger")
    if erasures:
        say(f"resumed  {erasures} erasures that came while the backup was made")


async def _rebury(broker: Broker, outcome: m.Outcome, user_id: str, revision: int) -> bool:
    if outcome.state not in (m.State.DEAD, m.State.EXPIRED):
        return False
    if await broker.last(s.DEAD_LETTERS, s.dead_letter(outcome.event_id, outcome.state)) is not None:
        return False
    if await broker.last(s.USERS, s.again_key(user_id, f"r{revision}")) is not None:
        return False  # it was replayed
    await Ledger(broker).bury(outcome)
    return True


async def _erase_again(broker: Broker, outcome: m.Outcome, user_id: str, revision: int) -> bool:
    if outcome.state is not m.State.ERASED:
        return False
    key: Stored | None = await broker.at(s.USERS, revision)
    if key is None or f".{user_id}" not in key.subject or await broker.last(s.USERS, s.erase_key(user_id)) is not None:
        return False
    record = m.EraseUser(user_id=user_id, asked_at=datetime.now(UTC))
    try:
        await broker.store(s.erase_key(user_id), m.ERASE_USER.encode(record), expect_last=0)
    except Conflict:
        return False
    return True


def explained(seen: Books) -> str:
    """The books in words."""
    figures = (
        f"registrations and repeats {seen.live}: in the outbox {seen.outbox}, in the queue {seen.queue}, "
        f"sent {seen.sent}, dead {seen.dead}, expired {seen.expired}; gap {seen.gap}"
    )
    lines = [figures]
    if seen.erasing:
        lines.append(
            f"{seen.erasing} erasures are under way: user_svc finishes them, and the gap means nothing till then."
        )
    elif seen.gap > 0:
        lines.append(
            f"{seen.gap} mails are neither queued nor ended. user_svc's reconciler queues them again, RECONCILE_AFTER "
            "after its start (`just ledger` shows it)."
        )
    elif seen.gap < 0:
        lines.append("What counts twice is still in the outbox or queue and already ended: the ledger absorbs it.")
    else:
        lines.append("The books balance.")
    return "\n".join(lines)


# --- the command -----------------------------------------------------------------------------------------------------


def say(text: str) -> None:
    print(text, flush=True)


_CONNECT_S = 10.0


def _login(settings: Settings, url: str) -> Settings:
    """For one URL: a login in the URL, else NATS_USER and so on, else, at the local broker, its operator's."""
    if "@" in url:
        return msgspec.structs.replace(settings, nats_url=url, nats_user=None, nats_password=None, nats_creds=None)
    try:
        login = passwords.as_operator(url, os.environ)
    except passwords.Unusable as exc:
        raise BadStart(str(exc)) from exc
    user, password = (login.get(name) for name in ("NATS_USER", "NATS_PASSWORD"))
    if user is None:
        return msgspec.structs.replace(settings, nats_url=url)
    return msgspec.structs.replace(settings, nats_url=url, nats_user=user, nats_password=password)


USAGE = """usage:
  backup.py save DIR                      saves what the broker at NATS_URL keeps; the services may run
  backup.py restore DIR [replace]         into the broker at NATS_URL, with STREAM_REPLICAS replicas; services stopped
  backup.py move FROM_URL TO_URL DIR      both, by way of DIR; services stopped"""


async def _main(settings: Settings) -> int:
    stop = Stop()

    async def at(url: str) -> Broker:
        try:
            async with asyncio.timeout(_CONNECT_S):
                return await connect_as("operator", _login(settings, url), stop.fail)
        except TimeoutError as exc:
            raise BadStart(f"no broker answers at {url}: `just up` or `just broker` starts one") from exc

    url = passwords.as_operator(os.environ.get("NATS_URL") or None, os.environ)["NATS_URL"]
    opened: list[Broker] = []
    try:
        match sys.argv[1:]:
            case ["save", folder]:
                opened.append(broker := await at(url))
                await save(broker, Path(folder))
                say(f"The backup is in {folder}. It holds addresses, and is of use only with the same USER_ID_KEY.")
            case ["restore", folder, *how] if how in ([], ["replace"]):
                opened.append(broker := await at(url))
                await restore(broker, Path(folder), settings, replace=bool(how))
            case ["move", source, target, folder]:
                opened += [old := await at(source), new := await at(target)]
                await refuse_live(old)
                if there := await _held(new):
                    raise BadStart(f"the new broker holds {', '.join(there)} already. Nothing was changed.")
                await save(old, Path(folder))
                await restore(new, Path(folder), settings)
                say(
                    f"Start both services with NATS_URL={target} STREAM_REPLICAS={settings.stream_replicas}, and not "
                    f"with the old broker: its data is as it was. The backup stays in {folder}."
                )
            case _:
                print(USAGE, file=sys.stderr)
                return BAD_START
    except (Unavailable, ApiError, nats.errors.Error) as exc:
        next_step = "make another one" if sys.argv[1] == "save" else "`just restore DIR replace` starts over"
        print(f"broken off: {exc}. What there is now is not whole: {next_step}.", file=sys.stderr)
        return 1
    finally:
        for broker in opened:
            await broker.close()
    return 0


if __name__ == "__main__":
    sys.exit(run("backup", Settings, _main, known=()))
