"""A small system whose services die at crash points, one after another, and whose books are compared in the end.

    kill_at(case)   the service that has the point is started with CRASH_AT; what reaches it is done; it is dead
    settle()        both services are started without; clients repeat what was not answered; all comes to rest
    compare()       what clients were told, what the SMTP server took, what the broker holds

Messages in the hands of the dead come back after ack_wait (30 s). Nobody waits for them between two deaths: they come
to whoever lives by then, so that one wait does for many deaths.
"""

import asyncio
import itertools
from collections import Counter, defaultdict
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import httpx

from contracts import control as c
from contracts import messages as m
from contracts import subjects as s
from contracts.runtime.broker import Broker
from tests.support.load import address, pending, register_whatever_happens, together
from tests.support.processes import Process, Service, System
from tests.support.smtp_server import Action, SmtpServer, Transaction
from tests.support.waiting import eventually
from user_svc.crash_points import POINTS as USER_POINTS

DEATH = -9
_PATIENCE_S = 150.0
"""Many services start at once here, on two cores perhaps. Nothing that is tested is a matter of time."""
_WORDS = {("sent", 1): "sent", ("sent", 2): "twice", ("dead", 0): "dead"}


@dataclass(frozen=True)
class Case:
    """One death, and what becomes of the mails of the user that it was made with.

    Attributes:
        at: value of CRASH_AT.
        act: what makes the process come there: done to a user_svc that runs, or before an email_svc is started.
        replies: of the SMTP server to this user's RCPTs, one after another; then as usual.
        ends: of each of the user's events, in their order: sent, twice (two copies), dead. None: not compared.
        in_flight: so many other mails may be between the answer and the outcome.
    """

    at: str
    act: Callable[["Stage", int], Awaitable[Any]]
    replies: tuple[Action, ...] = ()
    ends: str | None = "sent"
    in_flight: int = 0

    @property
    def point(self) -> str:
        return self.at.partition(":")[0]


@dataclass
class Stage:
    """The system, and what its clients know. `numbers` names users."""

    system: System
    smtp: SmtpServer
    broker: Broker
    client: httpx.AsyncClient
    numbers: "itertools.count[int]" = field(default_factory=itertools.count)
    replies: dict[str, list[Action]] = field(default_factory=dict)
    ids: dict[int, str] = field(default_factory=dict)
    """Of the users whose registration was answered."""
    unanswered: list[int] = field(default_factory=list)
    erased: dict[int, bool] = field(default_factory=dict)
    """Users to be erased. True: their erase key is written, so it is finished without another word."""
    replayed: list[str] = field(default_factory=list)
    """Events whose replay was asked for."""
    done: list[tuple[Case, int]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.broker.timeout_s = 20.0

        def at_rcpt(transaction: Transaction) -> Action | None:
            left = self.replies.get(transaction.rcpt)
            return left.pop(0) if left else None

        self.smtp.on("rcpt", at_rcpt)

    # --- dying -----------------------------------------------------------------------------------------------------

    async def kill_at(self, case: Case) -> None:
        """The death of one process at one point; that it died there and in no other way."""
        is_user = case.point in USER_POINTS
        victim, other = self.system.user, self.system.email
        if not is_user:
            victim, other = other, victim
        await self._alive(other)
        if victim.running:
            assert await victim.terminate() == 0
        if not is_user:
            n = self._somebody(case)
            await case.act(self, n)
            victim.start(CRASH_AT=case.at)
            acted = True
        else:
            # What an earlier death left undone may bring it there before all is asked. Then once more.
            for _ in range(3):
                victim.start(CRASH_AT=case.at)
                n = self._somebody(case)
                if acted := await self._up(victim) and await self._acted(case, n, victim):
                    break
        status = await victim.exit_status(within_s=_PATIENCE_S)
        assert status == DEATH, f"{case.at}: ended with {status}:\n{victim.text()[-2000:]}"
        assert victim.text().endswith(f"died at the crash point {case.point}\n"), victim.text()[-2000:]
        self.done.append((case if acted else replace(case, ends=None), n))

    def _somebody(self, case: Case) -> int:
        """A user of this case's own."""
        n = next(self.numbers)
        self.replies[address(n)] = list(case.replies)
        return n

    async def _acted(self, case: Case, n: int, victim: Process) -> bool:
        try:
            await case.act(self, n)
        except AssertionError:
            if victim.running:
                raise
            return False
        return True

    async def _alive(self, service: Service) -> None:
        if not service.running:
            service.start(CRASH_AT="")
        assert await self._up(service), f"{service.name} ended:\n{service.text()[-2000:]}"

    async def _up(self, service: Service) -> bool:
        """Whether it has become ready; False: it has ended."""

        async def look() -> bool:
            return not service.running or await self.ask("GET", f"{service.admin}/readyz") is not None

        await eventually(look, within_s=_PATIENCE_S, what=f"{service.name} ready or dead")
        return service.running

    # --- clients ---------------------------------------------------------------------------------------------------

    async def ask(self, method: str, url: str, **more: Any) -> httpx.Response | None:
        """One request, repeated while it is told to; None: the service is dead, or died with it in hand."""
        async with asyncio.timeout(_PATIENCE_S):
            while True:
                try:
                    answer = await self.client.request(method, url, **more)
                except httpx.TransportError:
                    return None
                if answer.status_code != 503:
                    return answer
                await asyncio.sleep(0.05)  # a busy machine's broker was slow

    async def register(self, n: int) -> str | None:
        """One registration. Not answered, it is repeated when all comes to rest, with its Idempotency-Key."""
        headers = {"Idempotency-Key": f"key-{n}"}
        body = {"email": address(n), "name": f"User {n}"}
        answer = await self.ask("POST", "/v1/users", json=body, headers=headers)
        if answer is None:
            self.unanswered.append(n)
            return None
        assert answer.status_code == 201, answer.text
        self.ids[n] = answer.json()["id"]
        return self.ids[n]

    async def registered(self, n: int) -> str:
        """One that is answered in the end."""
        self.ids[n] = await register_whatever_happens(self.client, n)
        return self.ids[n]

    async def rows(self, n: int, what: str) -> list[str]:
        """Waits for rows of the ledger about a user's mails, of one kind: `attempts`, `outcome.sent`."""

        async def look() -> list[str]:
            rows = await self.broker.subjects(s.DELIVERIES, s.delivery_rows(f"{self.ids[n]}.*"))
            return [row for row in rows if row.endswith(f".{what}")]

        return await eventually(look, within_s=_PATIENCE_S, what=f"{what} of user {n}")

    async def letter(self, n: int) -> str:
        """Waits for a user's dead letter; the event's id."""
        pattern = s.dead_letter(f"{self.ids[n]}.*", "*")
        look = partial(self.broker.subjects, s.DEAD_LETTERS, pattern)
        found: list[str] = await eventually(look, within_s=_PATIENCE_S, what="dead letter")
        return s.event_in(found[0], self.ids[n])

    # --- rest ------------------------------------------------------------------------------------------------------

    async def settle(self) -> None:
        """Both services live; what was not answered is asked again; outbox and queue empty."""
        await self._alive(self.system.user)
        await self._alive(self.system.email)
        again, self.unanswered = self.unanswered, []
        await together(*(self.registered(n) for n in again))
        for event in self.replayed:
            body = {"event_id": event}
            answer = await self.ask("POST", f"{self.system.user.admin}/dead-letters/replay", json=body)
            assert answer is not None
            assert answer.status_code in (202, 404), answer.text  # 404: the letter is gone
            await eventually(
                partial(self._letter_gone, event), within_s=_PATIENCE_S, what=f"dead letter of {event} gone"
            )
        await eventually(self._at_rest, within_s=_PATIENCE_S, what="outbox and queue empty, nothing being erased")

    async def _letter_gone(self, event: str) -> bool:
        return not await self.broker.subjects(s.DEAD_LETTERS, s.dead_letter(event, "*"))

    async def _at_rest(self) -> bool:
        return await pending(self.broker) == (0, 0) and not await self.broker.subjects(s.USERS, s.ERASE_KEYS)

    async def _breaker_agrees(self) -> bool:
        kept = await self.broker.last(s.CONTROL, s.BREAKER_KEY)
        assert kept is not None
        return c.BREAKER.decode(kept.data).state is c.Breaker.CLOSED and not await self.paused_until()

    async def paused_until(self) -> str | None:
        """Until when the broker pauses the consumer, as it says it."""
        info = await self.broker.api(f"CONSUMER.INFO.{s.WELCOME_EMAILS}.{s.EMAIL_SVC}")
        until: str | None = info["config"].get("pause_until") if info.get("paused") else None
        return until

    async def compare(self) -> dict[str, str]:
        """What is wrong, by CRASH_AT; under "" what is nobody's in particular."""
        fresh = next(self.numbers)
        await self.registered(fresh)
        await self.rows(fresh, "outcome.sent")  # no jam
        await eventually(self._breaker_agrees, within_s=_PATIENCE_S, what="breaker closed, consumer not paused")
        await together(*(self._finally_erased(n) for n in self.erased))
        await eventually(self._at_rest, within_s=_PATIENCE_S, what="at rest again")
        events, states = await self._events(), await self._states()
        copies = Counter(str(t.message_id).partition("@")[0].removeprefix("<") for t in self.smtp.accepted)
        wrong: dict[str, list[str]] = {}
        for case, n in self.done:
            mine = [event for event in events if event.startswith(f"{self.ids.get(n)}.")]
            found = [(states[event], copies[event]) for event in mine]
            ends = " ".join(_WORDS.get(end, f"{end[0]}, {end[1]} copies") for end in found)
            if case.ends is not None and ends != case.ends:
                wrong.setdefault(case.at, []).append(f"user {n}: {ends!r} and not {case.ends!r}")
        general = wrong.setdefault("", [])
        allowed = sum(case.in_flight + (case.ends or "").split().count("twice") for case, _ in self.done)
        if (extra := sum(copies.values()) - len(copies)) > allowed:
            general.append(f"{extra} second copies, {allowed} allowed: {[e for e, k in copies.items() if k > 1]}")
        for event in events:
            if (states[event] == "sent") != (copies[event] > 0) or states[event] not in ("sent", "dead"):
                general.append(f"{event}: {states[event]}, {copies[event]} copies")
        if ghosts := [event for event in copies if event not in events and states.get(event) != "erased"]:
            general.append(f"mails of no event: {ghosts}")
        if lost := [n for n, user_id in self.ids.items() if not any(e.startswith(f"{user_id}.") for e in events)]:
            general.append(f"users who are gone: {lost}")
        letters = await self.broker.subjects(s.DEAD_LETTERS, s.DEAD_LETTERS_OF_EVENTS)
        open_letters = {row.split(".", 2)[2] for row in letters if not row.startswith("dead_letters.quarantine.")}
        if open_letters != {event for event in events if states[event] == "dead"} - set(self.replayed):
            general.append(f"dead letters: {sorted(open_letters)}")
        general += await self._books(events, states)
        for service in (self.system.user, self.system.email):
            lines = service.text().splitlines()
            general += [line for line in lines if "Traceback" in line or '"broker.denied"' in line]
        return {at: "; ".join(text) for at, text in wrong.items() if text}

    async def _events(self) -> list[str]:
        """All live events: one for each key that asks for a mail, in the order of asking."""
        found: list[tuple[int, str]] = []
        for pattern in (s.USER_KEYS, s.AGAIN_KEYS):
            for subject in await self.broker.subjects(s.USERS, pattern):
                kept = await self.broker.last(s.USERS, subject)
                assert kept is not None
                found.append((kept.seq, s.event_id(subject.split(".")[3], kept.seq)))
        return [event for _, event in sorted(found)]

    async def _states(self) -> defaultdict[str, str]:
        """How each event ended, by all the rows that the ledger has of it."""
        states: defaultdict[str, str] = defaultdict(str)
        for subject in sorted(await self.broker.subjects(s.DELIVERIES, ">")):
            _, user_id, revision, row = subject.split(".", 3)
            states[f"{user_id}.{revision}"] += row.removeprefix("outcome.")
        return states

    async def _finally_erased(self, n: int) -> None:
        """Nothing is left of the user, and the address is free."""
        gone = await self.ask("DELETE", f"/v1/users/{self.ids[n]}")
        assert gone is not None
        assert gone.status_code == 404 or (gone.status_code == 204 and not self.erased[n]), gone.text
        await self._nothing_left(n)
        self.replies.pop(address(n), None)
        await self.registered(n)
        await self.rows(n, "outcome.sent")

    async def _nothing_left(self, n: int) -> None:
        """Of a user who was erased, but for markers."""
        user_id = self.ids[n]
        for stream, pattern in (
            (s.USERS, s.user_key(user_id)),
            (s.USERS, s.again_key(user_id, "*")),
            (s.WELCOME_EMAILS, s.welcome_requested(f"{user_id}.*")),
            (s.DEAD_LETTERS, s.dead_letter(f"{user_id}.*", "*")),
        ):
            assert await self.broker.subjects(stream, pattern) == [], f"of erased user {n}"
        rows = await self.broker.subjects(s.DELIVERIES, s.delivery_rows(f"{user_id}.*"))
        assert [row for row in rows if not row.endswith(f".{m.State.ERASED}")] == []

    async def _books(self, events: list[str], states: dict[str, str]) -> list[str]:
        """That GET /ledger says the same."""
        counts = Counter(states[event] for event in events)
        wanted = {"live_events": len(events), "in_outbox": 0, "in_queue": 0, "gap": 0, "sent": counts["sent"]}

        async def balanced() -> bool:
            answer = await self.client.get(f"{self.system.user.admin}/ledger")
            seen.append({key: answer.json()[key] for key in wanted} | {"dead": answer.json()["dead"]["total"]})
            return seen[-1] == wanted | {"dead": counts["dead"]}

        seen: list[dict[str, Any]] = []
        try:
            await eventually(balanced, within_s=_PATIENCE_S)
        except AssertionError:
            return [f"books: {seen[-1]}, wanted {wanted} and {counts['dead']} dead"]
        return []
