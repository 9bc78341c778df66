"""Dead letters: what there is, and how it is sent again.

    replay of one = an `again` key of its own name (r<revision of the dead event>), then the dead letter goes

The key is written once however often it is asked for, so a crash in the middle loses nothing and replays nothing
twice: a replay that was broken off is simply issued again. A letter that is there is open.
"""

import asyncio
import math
from collections.abc import AsyncIterator, Awaitable, Callable
from datetime import UTC, datetime, timedelta
from typing import Annotated, Any, Literal

import msgspec
import structlog

from contracts import messages as m
from contracts import subjects as s
from contracts.runtime import crash
from contracts.runtime.admin import Refused
from contracts.runtime.broker import ApiError, Broker, Conflict, Stored, Unavailable
from contracts.runtime.settings import duration_s
from user_svc import metrics
from user_svc.store import living, walk
from user_svc.users import nonce

log = structlog.get_logger()


_FRESH_S = 1.0
"""So long a list that was read is everybody's: many pages may be open, and a filter may walk the whole stream."""
_READINGS_MAX = 8
"""At once. Each may walk the whole stream, and goes on though whoever asked for it has left."""
_IN_HAND_S = 2.0
"""So long a replay that is stopped may take for the letter in hand. One that is cut off may have been asked for."""
_REASON_KEPT = 100
"""Characters of a filter's, in the audit."""
_SELECTED_MAX = 1000
Selected = Annotated[frozenset[str], msgspec.Meta(min_length=1, max_length=_SELECTED_MAX)]
"""Event ids."""


class Filter(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True):
    """Which letters. What is not given does not filter."""

    state: Literal["dead", "expired"] | None = None
    reason: str | None = None
    """A part of the reason."""
    code: int | None = None
    event_id: str | None = None
    event_ids: Selected | None = None
    older_than: str | None = None
    """A duration: it ended so long ago, or longer."""
    younger_than: str | None = None
    """A duration: it ended not yet so long ago."""

    def __post_init__(self) -> None:
        for name, text in (("older_than", self.older_than), ("younger_than", self.younger_than)):
            try:
                _age(text)
            except ValueError as exc:
                raise ValueError(f"{name}: {exc}") from exc
        for event in {*(self.event_ids or ()), self.event_id} - {None}:
            s.split_event_id(event)

    def at(self, now: datetime) -> Callable[[m.DeadLetter], bool]:
        """Whether a letter is one of them, by that time."""
        older, younger = _age(self.older_than), _age(self.younger_than)

        def takes(letter: m.DeadLetter) -> bool:
            return (
                self._names(letter)
                and (older is None or now - letter.at >= older)
                and (younger is None or now - letter.at < younger)
            )

        return takes

    def _names(self, letter: m.DeadLetter) -> bool:
        return (
            self.state in (None, str(letter.state))
            and (self.reason is None or self.reason in letter.reason)
            and self.code in (None, letter.code)
            and self.event_id in (None, letter.event_id)
            and (self.event_ids is None or letter.event_id in self.event_ids)
        )


def _age(text: str | None) -> timedelta | None:
    return None if text is None else timedelta(seconds=duration_s(text))


class Replay(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What `POST /dead-letters/replay` takes: one event, some, a filter, or all; never nothing by mistake."""

    event_id: str | None = None
    event_ids: Selected | None = None
    filter: Filter | None = None
    all: bool = False
    per_second: Annotated[float, msgspec.Meta(gt=0, le=10_000)] = 100.0
    dry_run: bool = False

    def __post_init__(self) -> None:
        if sum(given is not None for given in (self.event_id, self.event_ids, self.filter)) + self.all != 1:
            raise ValueError("give exactly one of event_id, event_ids, filter and all=true")
        _ = self.chosen  # its ids are checked

    @property
    def chosen(self) -> Filter:
        return self.filter or Filter(event_id=self.event_id, event_ids=self.event_ids)

    @property
    def target(self) -> str:
        """What the audit says that it was done to. Of many the first three: each one replayed has a key of its own."""
        chosen = self.chosen
        if chosen.reason is not None:  # which is any text
            chosen = msgspec.structs.replace(chosen, reason=chosen.reason[:_REASON_KEPT])
        if chosen.event_ids is None:
            return "all" if self.all else chosen.event_id or msgspec.json.encode(chosen).decode()
        first = sorted(chosen.event_ids)
        return f"{len(first)} selected: {', '.join(first[:3])}{', …' if len(first) > 3 else ''}"


class Letter(msgspec.Struct, frozen=True):
    """A dead letter and its sequence."""

    letter: m.DeadLetter
    seq: int


class Progress(msgspec.Struct, kw_only=True):
    """Of a replay: how many match, how many were asked for again, how many of those had lost their user."""

    running: bool = False
    matching: int = 0
    replayed: int = 0
    users_gone: int = 0
    per_second: float = 0.0
    started_at: datetime | None = None
    ended_at: datetime | None = None
    ended: str = ""


class DeadLetters:
    """Reads and replays. One bulk replay at a time in this process; several processes do each other no harm."""

    def __init__(self, broker: Broker) -> None:
        self._broker = broker
        self._task: asyncio.Task[None] | None = None
        self._stopped: asyncio.Future[None]
        self._pages: dict[tuple[Filter, int, int], asyncio.Task[list[Letter]]] = {}
        self.progress = Progress()

    async def page(self, chosen: Filter, *, after: int, limit: int) -> list[Letter]:
        """Up to `limit` matching letters with sequences above `after`, the oldest first.

        Without those that this process has replayed; what others did since may be missing for a second.
        """
        key = chosen, after, limit
        reading = self._pages.get(key)
        if reading is None:
            if sum(not each.done() for each in self._pages.values()) >= _READINGS_MAX:
                raise Refused(503, "So many lists are being read already.", {"Retry-After": "1"})
            reading = self._pages[key] = asyncio.create_task(self._page(*key))
            expire = asyncio.get_running_loop().call_later
            reading.add_done_callback(lambda _: expire(_FRESH_S, self._pages.pop, key, None))
        return await asyncio.shield(reading)  # whoever goes away leaves it to the others

    async def _page(self, chosen: Filter, after: int, limit: int) -> list[Letter]:
        found: list[Letter] = []
        async for letter in self._matching(chosen, after):
            found.append(letter)
            if len(found) == limit:
                break
        return found

    async def count(self, chosen: Filter) -> int:
        """How many match."""
        return sum([1 async for _ in self._matching(chosen, 0)])

    async def _matching(self, chosen: Filter, after: int, upto: float = math.inf) -> AsyncIterator[Letter]:
        takes = chosen.at(datetime.now(UTC))
        async for rows in walk(self._broker, stream=s.DEAD_LETTERS, pattern=">", after=after):
            for row in rows:
                if row.seq > upto:
                    return
                letter = _decoded(row)
                if letter is not None and takes(letter):
                    yield Letter(letter, row.seq)

    async def replay_one(self, found: Letter) -> bool:
        """Asks for the mail again, then removes the letter. False: the user is gone, so only the letter goes.

        Raises:
            Unavailable, ApiError: broken off; again is the same.
        """
        user_id, revision = s.split_event_id(found.letter.event_id)
        alive = await living(self._broker, user_id, before=revision) is not None
        if alive:
            again = m.WelcomeAgain(
                user_id=user_id,
                repeats=found.letter.event_id,
                why=m.Why.REPLAY,
                nonce=nonce(),
                asked_at=datetime.now(UTC),
            )
            try:
                await self._broker.store(
                    s.again_key(user_id, f"r{revision}"), m.WELCOME_AGAIN.encode(again), expect_last=0
                )
                metrics.REPLAYED.inc()
            except Conflict as exc:
                if exc.in_flight:
                    raise
                # asked for already, by a replay that was broken off
            crash.point("replay.asked")
        await self._broker.delete(s.DEAD_LETTERS, found.seq)
        self._pages.clear()
        crash.point("replay.letter_removed")
        return alive

    def start(self, replay: Replay, matching: int, on_end: Callable[[Progress], Awaitable[None]]) -> bool:
        """Begins a bulk replay in the background; False: one is running. `on_end` is told how it ended."""
        if self._task is not None and not self._task.done():
            return False
        self.progress = Progress(
            running=True, matching=matching, per_second=replay.per_second, started_at=datetime.now(UTC)
        )
        self._stopped = asyncio.get_running_loop().create_future()
        self._task = asyncio.create_task(self._replay(replay, self.progress, on_end))
        return True

    async def stop(self, why: str = "stopped") -> bool:
        """Ends the bulk replay that is running; False: there is none."""
        if self._task is None or self._task.done():
            return False
        running = not self.progress.ended  # else its end is being told
        if running:
            self.progress.ended = why
            self._stopped.set_result(None)
            await asyncio.wait({self._task}, timeout=_IN_HAND_S)
            if self.progress.ended_at is None:
                self._task.cancel()
        await asyncio.wait({self._task})
        return running

    async def _replay(self, replay: Replay, progress: Progress, on_end: Callable[[Progress], Awaitable[None]]) -> None:
        loop = asyncio.get_running_loop()
        due = loop.time()
        try:
            info = await self._broker.api(f"STREAM.INFO.{s.DEAD_LETTERS}")
            upto = info["state"]["last_seq"]  # what dies again meanwhile is a new letter, and for another replay
            async for found in self._matching(replay.chosen, 0, upto):
                alive = await self._persist(found)
                progress.replayed += alive
                progress.users_gone += not alive
                due = max(due + 1 / replay.per_second, loop.time() - 1)
                await asyncio.wait({self._stopped}, timeout=max(0.0, due - loop.time()))
                if self._stopped.done():  # looked at between two, so that the count is true
                    break
            progress.ended = progress.ended or "done"
        except (Unavailable, ApiError) as exc:
            progress.ended = f"broken off: {exc}; issue it again"
            log.warning("dead_letters.replay_broken_off", reason=str(exc), replayed=progress.replayed)
        except Exception as exc:  # outermost: who looks at the progress must not take it for done
            progress.ended = f"broken off: {type(exc).__name__}, see the log"
            log.exception("dead_letters.replay_failed", replayed=progress.replayed)
        finally:
            progress.ended_at = datetime.now(UTC)
            log.info("dead_letters.replay_ended", how=progress.ended, replayed=progress.replayed)
            try:
                await on_end(progress)
            finally:
                progress.running = False

    async def _persist(self, found: Letter) -> bool:
        """A short absence of the broker does not end a long replay."""
        for attempt in range(5):
            try:
                return await self.replay_one(found)
            except Unavailable:
                if attempt == 4:
                    raise
                await asyncio.sleep(min(5.0, 0.2 * math.pow(3, attempt)))
        raise AssertionError


def view(found: Letter) -> dict[str, Any]:
    """A letter as it is shown."""
    letter = found.letter
    return {
        "event_id": letter.event_id,
        "user_id": letter.user_id,
        "state": letter.state,
        "reason": letter.reason,
        "code": letter.code,
        "attempts": letter.attempts,
        "at": letter.at,
        "requested_at": letter.requested_at,
    }


def _decoded(row: Stored) -> m.DeadLetter | None:
    """None: a quarantined message, which has no id to be replayed by."""
    if row.subject.startswith("dead_letters.quarantine."):
        return None
    try:
        letter = m.DEAD_LETTER.decode(row.data)
        s.split_event_id(letter.event_id)
        if row.subject == s.dead_letter(letter.event_id, letter.state):
            return letter
    except ValueError:  # msgspec's errors among them
        pass
    log.error("dead_letters.undecodable", sequence=row.seq)
    return None
