"""A downtime that is begun and ended at user_svc, which does not know the schedule, is one of every email_svc."""

import asyncio
from datetime import datetime
from typing import Any

import httpx

from contracts import subjects as s
from contracts.control import DOWNTIME
from contracts.runtime.broker import connect
from tests.support.processes import System
from tests.support.waiting import eventually


async def test_a_downtime_is_begun_and_ended_at_user_svc(system: System) -> None:
    """A scheduled one as well, on both replicas; each action is in the audit."""
    system.set_env(DOWNTIME_ENABLED="true", DOWNTIME_INTERVAL="24h", DOWNTIME_DURATION="86399s")  # all day but a second
    await system.start()
    another = system.another("email_svc")
    another.start()
    await another.ready()
    async with httpx.AsyncClient(base_url=system.user.admin, timeout=10, trust_env=False) as admin:

        async def both(*, down: bool) -> list[dict[str, Any]]:
            async def said() -> list[dict[str, Any]]:
                told = [(await admin.get(f"{each.admin}/downtime")).json() for each in (system.email, another)]
                return told if [one["down"] for one in told] == [down, down] else []

            return await eventually(said)

        await both(down=True)
        answer = await admin.post("/downtime", json={"end": True})
        assert (answer.status_code, answer.json()["down_until"]) == (200, None)
        await both(down=False)
        answer = await admin.post("/downtime", json={"for": "1h"})
        asked = {name: datetime.fromisoformat(time) for name, time in answer.json().items()}
        assert (asked["down_until"] - asked["at"]).total_seconds() == 3600
        assert all(one["on_demand"] for one in await both(down=True))
        # Ended by one of many at once: whoever writes meanwhile, all are told that it is over.
        answers = await asyncio.gather(*(admin.post("/downtime", json={"end": True}) for _ in range(3)))
        assert [answer.status_code for answer in answers] == [200] * 3
        await both(down=False)
        for body in ({}, {"for": "1h", "end": True}, {"end": False}, {"for": "soon"}, {"for": "9" * 400 + "d"}):
            assert (await admin.post("/downtime", json=body)).status_code == 422
        records = (await admin.get("/audit")).json()["audit"]
        told = [(row["service"], row["action"], row["target"], row["outcome"]) for row in records]
        begun, ended = ("user_svc", "downtime-start", "1h", "done"), ("user_svc", "downtime-end", "", "done")
        assert told == [ended, ended, ended, begun, ended]


async def test_a_downtime_is_asked_for_though_the_record_cannot_be_read(system: System) -> None:
    """At either service: what is there is written over."""
    system.without_accounts()
    await system.start()
    broker = await connect(name="test", url=system.nats.url, on_closed=lambda reason: None)
    async with httpx.AsyncClient(timeout=10, trust_env=False) as admin:
        for service in (system.email, system.user):
            for body in ({"for": "1h"}, {"end": True}):
                await broker.store(s.DOWNTIME_KEY, b"no record")
                answer = await admin.post(f"{service.admin}/downtime", json=body)
                assert answer.status_code == 200, answer.text
                kept = await broker.last(s.CONTROL, s.DOWNTIME_KEY)
                assert kept is not None
                assert (DOWNTIME.decode(kept.data).forced_until > 0) is ("for" in body)
    await broker.close()
