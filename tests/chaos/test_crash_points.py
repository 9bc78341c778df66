"""Every crash point is died at, in the process that has it: nothing is lost, nothing jams, and a mail is sent twice
only if its worker died between the server's answer and the durable outcome.

The groups below run side by side, each with a system of its own; in a group one death follows the other. What each came
to is a test of its own. Selected tests run only their groups.
"""

import asyncio
import contextlib
import traceback
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import httpx
import pytest

from contracts import control as c
from contracts import messages as m
from contracts import subjects as s
from email_svc.crash_points import POINTS as EMAIL_POINTS
from tests.support.crashes import Case, Stage
from tests.support.load import broker_of, together
from tests.support.processes import System, nats_source
from tests.support.smtp_server import Reply, SmtpServer
from tests.support.waiting import eventually
from user_svc.crash_points import POINTS as USER_POINTS

UNKNOWN_USER, GREYLISTED, SICK = Reply(550, "5.1.1 unknown"), Reply(451, "4.7.1 later"), Reply(421, "4.3.0 sick")
CROWD, SLOTS = 50, 16


# --- what makes a process come to a point ----------------------------------------------------------------------------


async def register(stage: Stage, n: int) -> None:
    await stage.register(n)


async def resend(stage: Stage, n: int) -> None:
    """Of a mail that was sent. Its 202 may not be heard, and is not asked for again: that would be another mail."""
    assert await stage.register(n)
    await stage.rows(n, "outcome.sent")
    await stage.ask("POST", f"/v1/users/{stage.ids[n]}/welcome-email")


async def again_for_nobody(stage: Stage, n: int) -> None:
    """A key that asks for a mail to a user who is gone, as a resend may leave it that ran into an erasure."""
    user_id = "a" * 26
    again = m.WelcomeAgain(
        user_id=user_id, repeats=f"{user_id}.1", why=m.Why.RESEND, nonce="n", asked_at=datetime.now(UTC)
    )
    await stage.broker.store(s.again_key(user_id, "2026-01-01-1"), m.WELCOME_AGAIN.encode(again))


async def replay(stage: Stage, n: int) -> None:
    """Of a dead letter; a replay that was broken off is issued again."""
    assert await stage.register(n)
    event = await stage.letter(n)
    stage.replayed.append(event)
    await stage.ask("POST", f"{stage.system.user.admin}/dead-letters/replay", json={"event_id": event})


async def lose(stage: Stage, n: int) -> None:
    """The queue loses a mail that waits for its retry."""
    assert await stage.register(n)
    event = s.event_in((await stage.rows(n, "attempts"))[0], stage.ids[n])
    entry = await stage.broker.last(s.WELCOME_EMAILS, s.welcome_requested(event))
    assert entry is not None
    await stage.broker.delete(s.WELCOME_EMAILS, entry.seq)


async def erase(stage: Stage, n: int) -> None:
    """A user with a dead letter and a mail that waits for its retry. Not repeated: the relay is to finish it."""
    assert await stage.register(n)
    await stage.letter(n)
    await stage.ask("POST", f"/v1/users/{stage.ids[n]}/welcome-email")
    await stage.rows(n, "attempts")
    stage.erased[n] = False
    await stage.ask("DELETE", f"/v1/users/{stage.ids[n]}")
    kept, asked = [await stage.broker.last(s.USERS, key(stage.ids[n])) for key in (s.user_key, s.erase_key)]
    assert asked or not kept
    stage.erased[n] = True


async def forget_breaker(stage: Stage, n: int) -> None:
    """An operator deletes its record."""
    await stage.broker.purge(s.CONTROL, s.BREAKER_KEY)


async def open_by_hand(stage: Stage, n: int) -> None:
    await stage.ask("POST", f"{stage.system.user.admin}/circuit-breaker/open", json={})


async def close_by_hand(stage: Stage, n: int) -> None:
    """After an open of which the broker had not heard: it is paused by now, until further notice."""

    async def paused() -> bool:
        return (await stage.paused_until() or "").startswith(c.FAR.date().isoformat())

    await eventually(paused, within_s=60, what="paused until further notice")
    await stage.ask("POST", f"{stage.system.user.admin}/circuit-breaker/close", json={})


async def throttled(stage: Stage, n: int) -> None:
    stage.smtp.on("mail", Reply(452, "4.3.1 too many"), times=1)
    await stage.register(n)


async def garbage(stage: Stage, n: int) -> None:
    """Something in the queue that is no event."""
    await stage.broker.store(s.welcome_requested(f"{'b' * 26}.{n + 1}"), b"no event")


async def mark(stage: Stage, n: int) -> None:
    """A queued mail whose user is being erased by somebody who has come to the first step."""
    assert await stage.register(n)
    user = await stage.broker.last(s.USERS, s.user_key(stage.ids[n]))
    assert user is not None
    event = s.event_id(stage.ids[n], user.seq)
    marker = m.Outcome(event_id=event, state=m.State.ERASED, at=datetime.now(UTC))
    await stage.broker.store(s.outcome(event, m.State.ERASED), m.OUTCOME.encode(marker))
    stage.erased[n] = False


async def crowd(stage: Stage, n: int) -> None:
    """Fifty registrations at once."""
    await together(*(stage.register(next(stage.numbers)) for _ in range(CROWD)), at_once=CROWD)


async def crowd_erased(stage: Stage, n: int) -> None:
    """Fifty users erased at once, whatever has become of their mails."""
    users = [next(stage.numbers) for _ in range(CROWD)]
    await together(*(stage.registered(user) for user in users), at_once=CROWD)
    stage.erased |= dict.fromkeys(users, False)
    await together(*(stage.ask("DELETE", f"/v1/users/{stage.ids[user]}") for user in users), at_once=CROWD)


# --- the deaths ------------------------------------------------------------------------------------------------------

RETRY = {"MESSAGE_RETRY_DELAYS": "4s", "RECONCILE_AFTER": "1s"}
LIMIT = {"MESSAGE_RETRY_DELAYS": "1s", "RATE_LIMIT_RPM": "6000", "RATE_LIMIT_BURST": "100"}
ALONE = {"WORKER_CONCURRENCY": "1"}
"""No mail may be between answer and outcome while another one's worker dies elsewhere."""
GROUPS: dict[str, tuple[dict[str, str], list[Case]]] = {
    "registration": (
        RETRY,
        [
            Case("reconciler.found", lose, (GREYLISTED,)),
            Case("reconciler.republished", lose, (GREYLISTED,)),
            Case("registration.key_claimed", register),
            Case("registration.written", register),
            Case("relay.taken", register),
            Case("relay.done", register),
            Case("relay.acked", register),
            Case("relay.user_read", resend, ends="sent sent"),
            Case("relay.key_removed", again_for_nobody, ends=None),
            Case("resend.written", resend, ends="sent sent"),
            Case("replay.asked", replay, (UNKNOWN_USER,), "dead sent"),
            Case("replay.letter_removed", replay, (UNKNOWN_USER,), "dead sent"),
        ],
    ),
    "erasure": (
        RETRY,
        [
            Case(f"erasure.{step}", erase, (UNKNOWN_USER, *[GREYLISTED] * 20))
            for step in ("asked", "listed", "marker_written", "marked", "row_removed", "key_removed", "done")
        ],
    ),
    "breaker": (
        {
            "CIRCUIT_BREAKER_FAILURE_THRESHOLD": "1",
            "CIRCUIT_BREAKER_SUCCESS_THRESHOLD": "1",
            "CIRCUIT_BREAKER_TIMEOUT": "1s",
            "SMTP_TIMEOUT": "2s",
        }
        | ALONE,
        [
            Case("breaker.record_made", forget_breaker, ends=None),
            Case("breaker.opening", register, (SICK,)),
            *(Case(f"breaker.record_written:{n}", register, (SICK,)) for n in range(1, 5)),
            Case("breaker.before_pause", register, (SICK,)),
            Case("breaker.paused", register, (SICK,)),
            Case("breaker.before_end", register, (SICK,)),
            Case("breaker.end_set", register, (SICK,)),
            Case("breaker.before_pause", open_by_hand, ends=None),
            Case("breaker.before_end", close_by_hand, ends=None),
            Case("leave.granted", register, (SICK,)),
            Case("worker.probing", register, (SICK,)),
            Case("leave.told", register, (SICK,)),
        ],
    ),
    "delivery": (
        LIMIT | ALONE,
        [
            Case("delivery.answered", register, ends="twice"),  # first, for no mail may come here twice
            Case("worker.taken", register),
            Case("delivery.looked_up", register),
            Case("delivery.connected", register),
            Case("limiter.before_write", register),
            Case("limiter.written", register),
            Case("delivery.token_taken", register),
            Case("delivery.cleared", register),
            Case("delivery.before_dot", register),
            Case("leave.blamed", register, (SICK,)),
            Case("limiter.throttled", throttled),
        ],
    ),
    "ledger": (
        LIMIT | ALONE,
        [
            Case("delivery.answered", register, (UNKNOWN_USER,) * 2, "dead"),
            Case("ledger.outcome_written", register),
            Case("ledger.outcome_written", register, (UNKNOWN_USER,), "dead"),
            Case("ledger.outcome_written", register, (GREYLISTED,)),
            Case("ledger.attempts_removed", register, (GREYLISTED,)),
            Case("ledger.attempts_written", register, (GREYLISTED,)),
            Case("ledger.letter_written", register, (UNKNOWN_USER,), "dead"),
            Case("ledger.quarantined", garbage, ends=None),
            Case("ledger.entry_erased", mark),
            Case("delivery.recorded", register),
            Case("delivery.recorded", register, (UNKNOWN_USER,), "dead"),
            Case("delivery.recorded", register, (GREYLISTED,)),
            Case("delivery.settled", register),
        ],
    ),
    "email_svc in a crowd": (
        LIMIT,
        [
            Case(f"{point}:25", crowd, ends=None, in_flight=SLOTS)
            for point in ("delivery.answered", "ledger.outcome_written", "delivery.recorded", "delivery.token_taken")
        ],
    ),
    "user_svc in a crowd": (
        RETRY,
        [
            Case("registration.written:25", crowd, ends=None),
            Case("relay.taken:25", crowd, ends=None),
            Case("relay.done:25", crowd, ends=None),
            Case("erasure.marked:10", crowd_erased, ends=None),
            Case("erasure.key_removed:25", crowd_erased, ends=None),
        ],
    ),
}


def test_every_point_is_in_the_sweep() -> None:
    """Of both services."""
    swept = {case.point for _, cases in GROUPS.values() for case in cases}
    assert swept == USER_POINTS.keys() | EMAIL_POINTS.keys()


@pytest.fixture(scope="module")
def swept(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, str]]:
    """What was wrong, by group and CRASH_AT."""
    if "://" in nats_source():
        pytest.skip("needs brokers of its own")
    chosen = {item.callspec.params["group"] for item in request.session.items if "swept" in item.fixturenames}

    async def run() -> dict[str, dict[str, str]]:
        found = await asyncio.gather(*(sweep(group, tmp_path_factory.mktemp("crash")) for group in chosen))
        return dict(zip(chosen, found, strict=True))

    return asyncio.run(run())


async def sweep(group: str, folder: Path) -> dict[str, str]:
    """All deaths of one group, and what was wrong afterwards."""
    env, cases = GROUPS[group]
    async with SmtpServer() as smtp, contextlib.AsyncExitStack() as stack:
        system = System(folder, f"smtp://127.0.0.1:{smtp.port}", HTTP_REQUEST_TIMEOUT="20s", **env)
        stack.callback(system.stop)
        await system.start_broker()
        limits = httpx.Limits(max_keepalive_connections=0)
        client = httpx.AsyncClient(base_url=system.user.url, limits=limits, timeout=30, verify=False)
        stage = Stage(
            system, smtp, await stack.enter_async_context(broker_of(system)), await stack.enter_async_context(client)
        )
        left = list(cases)
        try:
            while left:
                await stage.kill_at(left[0])
                left.pop(0)
            await stage.settle()
            return await stage.compare()
        except Exception:  # told by the test it belongs to, not by all of them
            what = traceback.format_exc()
            return {case.at: "not come to" for case in left[1:]} | {left[0].at if left else "": what}


def _deaths() -> list[Any]:
    return [
        pytest.param(group, case.at, id=f"{case.at} ({group})")
        for group, (_, cases) in GROUPS.items()
        for case in {case.at: case for case in cases}.values()
    ]


@pytest.mark.parametrize(("group", "at"), _deaths())
def test_death_costs_no_mail(swept: dict[str, dict[str, str]], group: str, at: str) -> None:
    """It died there, and each mail it was about ended as it should."""
    assert swept[group].get(at) is None, swept[group][at]


@pytest.mark.parametrize("group", GROUPS)
def test_books_are_balanced_after_all_deaths(swept: dict[str, dict[str, str]], group: str) -> None:
    """Every registration has its mail or its end, no mail is nobody's, breaker and pause agree, a fresh mail passes."""
    assert not swept[group], swept[group]
