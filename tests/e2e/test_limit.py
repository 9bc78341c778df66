"""The rate limit of the whole fleet: four replicas, kills, and one whose host clock is an hour off."""

import asyncio
import contextlib
import random
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable
from itertools import pairwise
from pathlib import Path
from statistics import median
from typing import Any

import httpx
import pytest

from tests.e2e.test_way_of_a_mail import register
from tests.support.load import together
from tests.support.processes import System
from tests.support.smtp_server import SmtpServer
from tests.support.waiting import eventually

RPM, BURST = 1200, 10
RATE = RPM / 60
WINDOW_RPM = 240  # of the windows: two of them are seen
SEEN_LATER_S = 0.4
"""A MAIL begins up to 0.1 s after its token, and a crowded machine lets the server see it later still; what this
process stood still meanwhile comes on top. The laws without allowance are held to a simulated clock in
tests/property/test_limit_property.py."""


# The library itself: the command `faketime` would be a process in between, and its child would outlive a kill.
FAKETIME = next(Path("/usr/lib").glob("*/faketime/libfaketime.so.1"), None)


def most_within(times: list[float], window_s: float) -> int:
    """The most events in any window of that length."""
    times, most, first = sorted(times), 0, 0
    for last, at in enumerate(times):
        while at - times[first] > window_s:
            first += 1
        most = max(most, last - first + 1)
    return most


@contextlib.asynccontextmanager
async def standstill() -> AsyncIterator[list[float]]:
    """The longest time that this process, which is the server, did not get to look, in seconds."""
    longest = [0.0]

    async def watch() -> None:
        while True:
            before = time.monotonic()
            await asyncio.sleep(0.01)  # what is measured
            longest[0] = max(longest[0], time.monotonic() - before - 0.01)

    watching = asyncio.create_task(watch())
    try:
        yield longest
    finally:
        watching.cancel()


def bucket_law(burst: int) -> Callable[[list[float], float], None]:
    def check(times: list[float], later_s: float) -> None:
        for window_s in (0.5, 1, 2, 5, 10):
            allowed = RATE * (window_s + later_s) + burst
            assert most_within(times, window_s) <= allowed, f"{most_within(times, window_s)} in {window_s} s"

    return check


def window_law(times: list[float], later_s: float) -> None:
    assert most_within(times, 60.0 - later_s) <= WINDOW_RPM


def minute_law(times: list[float], later_s: float) -> None:
    to_wall = time.time() - time.monotonic()
    # Of a minute's first moments nobody can tell here whether the MAIL began before it.
    minutes = Counter(int((at + to_wall) // 60) for at in times if (at + to_wall) % 60 >= later_s)
    assert max(minutes.values()) <= WINDOW_RPM


LAWS = {
    "token_bucket": bucket_law(BURST),
    "leaky_bucket": bucket_law(1),
    "fixed_window": minute_law,
    "sliding_window": window_law,
}


@pytest.fixture(scope="module")
def fleets(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What came of the fleet of each selected algorithm. One is busy at a time, but a window waits beside others."""
    if FAKETIME is None:
        pytest.skip("faketime is not installed: apt-get install faketime")
    chosen = {item.callspec.params["algorithm"] for item in request.session.items if "fleets" in item.fixturenames}
    in_order = sorted(chosen, key=lambda algorithm: (not algorithm.endswith("window"), algorithm))  # these wait longest

    async def run() -> dict[str, Any]:
        busy = asyncio.Lock()
        runs = (fleet(algorithm, tmp_path_factory.mktemp("fleet"), busy) for algorithm in in_order)
        return dict(zip(in_order, await asyncio.gather(*runs, return_exceptions=True), strict=True))

    return asyncio.run(run())


async def fleet(algorithm: str, folder: Path, busy: asyncio.Lock) -> tuple[list[float], float]:
    """When 300 mails were begun by four replicas, with kills and a clock an hour off; how much later it may be seen."""
    window, mails = algorithm.endswith("window"), 300
    limit = {"RATE_LIMIT_RPM": str(WINDOW_RPM if window else RPM), "RATE_LIMIT_BURST": str(BURST)}
    async with SmtpServer() as smtp, standstill() as longest:
        system = System(folder, f"smtp://127.0.0.1:{smtp.port}", RATE_LIMIT_ALGORITHM=algorithm, **limit)

        async def all_arrive() -> None:
            await eventually(lambda: len({t.rcpt for t in smtp.accepted}) == mails, within_s=150)

        try:
            async with busy:
                await through_kills(system, smtp, mails)
                if not window:
                    await all_arrive()
            await all_arrive()
        finally:
            await asyncio.to_thread(system.stop)  # others are not done
        assert not any('"broker.denied"' in process.text() for process in system.services)
        return smtp.mails_begun, SEEN_LATER_S + 2 * longest[0]


async def through_kills(system: System, smtp: SmtpServer, mails: int) -> None:
    """So many registrations, and two of the replicas are killed meanwhile."""
    replicas = [system.email, *(system.another("email_svc") for _ in range(3))]
    replicas[3].env |= {"LD_PRELOAD": str(FAKETIME), "FAKETIME": "+1h", "FAKETIME_DONT_FAKE_MONOTONIC": "1"}
    await system.start()
    for replica in replicas[1:]:
        replica.start()
        await replica.ready(40)
    rng = random.Random(7)
    async with httpx.AsyncClient(base_url=system.user.url, timeout=20) as client:
        registering = asyncio.create_task(together(*(register(client, n) for n in range(mails))))
        for victim in rng.sample(replicas[:3], 2):
            seen = len(smtp.mails_begun)
            await eventually(lambda seen=seen: len(smtp.mails_begun) > seen + 20, within_s=90)
            await asyncio.to_thread(victim.kill)  # this process is the server too: it must not stand still
            await asyncio.to_thread(victim.start)
        await registering


@pytest.mark.parametrize("algorithm", LAWS)
def test_fleet_holds_the_law_through_kills(fleets: dict[str, Any], algorithm: str) -> None:
    """No window has more MAIL commands than the law allows, with four replicas, kills, and a clock an hour off."""
    if isinstance(fleets[algorithm], BaseException):
        raise fleets[algorithm]
    LAWS[algorithm](*fleets[algorithm])


async def test_token_bucket_uses_its_limit_and_its_burst(system: System, smtp: SmtpServer) -> None:
    """Under backlog at least 95 % of the limit is used; a full burst goes out at once after idling."""
    system.set_env(RATE_LIMIT_RPM=str(RPM), RATE_LIMIT_BURST=str(BURST))
    await system.start()
    async with standstill() as longest, httpx.AsyncClient(base_url=system.user.url, timeout=20) as client:
        await together(*(register(client, n) for n in range(250)))
        await eventually(lambda: len(smtp.accepted) == 250, within_s=60)
        begun = sorted(smtp.mails_begun)
        steady = [t for t in begun if t > begun[0] + 2.0]
        assert most_within(steady, 5.0) >= 0.95 * RATE * 5, "in the best five seconds: a crowded machine may stall"
        bucket_law(BURST)(begun, SEEN_LATER_S + 2 * longest[0])
        shown = (await client.get(f"{system.email.admin}/rate-limit")).json()
        assert (shown["algorithm"], shown["burst"]) == ("token_bucket", BURST)

        async def full() -> bool:
            return (await client.get(f"{system.email.admin}/rate-limit")).json()["tokens"] == BURST

        await eventually(full)
        first = len(smtp.mails_begun)
        await asyncio.gather(*(register(client, 1000 + n) for n in range(BURST)))
        await eventually(lambda: len(smtp.mails_begun) == first + BURST)
        burst = smtp.mails_begun[first:]
        assert median(b - a for a, b in pairwise(burst)) < 1 / RATE / 2, "the burst was not at once"


async def test_windows_stop_at_their_limit(system: System, smtp: SmtpServer) -> None:
    """Sliding window and per-day limit: so many and not one more."""
    system.set_env(RATE_LIMIT_RPM="30", RATE_LIMIT_ALGORITHM="sliding_window", RATE_LIMIT_PER_DAY="20")
    await system.start()
    async with httpx.AsyncClient(base_url=system.user.url, timeout=20) as client:
        for n in range(25):
            await register(client, n)
        await eventually(lambda: len(smtp.accepted) == 20, within_s=60)
        since = time.monotonic()

        async def waited() -> bool:
            shown = (await client.get(f"{system.email.admin}/rate-limit")).json()
            return bool(shown["tokens"] == 0 and shown["left_today"] == 0 and time.monotonic() - since > 3)

        await eventually(waited)
        assert len(smtp.mails_begun) == 20


async def test_throttling_slows_the_fleet(system: System, smtp: SmtpServer) -> None:
    """454 Throttling: no budget is spent, the rate falls, and it recovers."""
    from tests.support.smtp_server import Reply

    system.set_env(RATE_LIMIT_RPM=str(RPM), RATE_LIMIT_BURST=str(BURST))
    smtp.on("mail", Reply(454, "4.7.0 Throttling failure: Maximum sending rate exceeded."), times=3)
    await system.start()
    async with httpx.AsyncClient(base_url=system.user.url, timeout=20) as client:
        users = [(await register(client, n)).json()["id"] for n in range(20)]
        await eventually(lambda: len(smtp.accepted) == 20, within_s=30)
        shown = (await client.get(f"{system.email.admin}/rate-limit")).json()
        assert shown["throttled_to"] < 1
        for user in users:
            mail = (await client.get(f"/v1/users/{user}/welcome-email")).json()
            assert {a["verdict"] for a in mail["attempts"]} <= {"sent"}
