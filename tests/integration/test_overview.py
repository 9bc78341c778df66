"""The overview: one look at the whole system, as it is now, as it was, and as it comes."""

import asyncio
import contextlib
import json
import time
from collections.abc import AsyncIterator
from typing import Any

import httpx
import structlog

from contracts import presence, replica
from contracts import subjects as s
from contracts.runtime.broker import Broker
from tests.support.processes import Service, System, http_status
from tests.support.smtp_server import Silence, SmtpServer
from tests.support.waiting import eventually
from user_svc.replicas import Replicas


async def overview(of: Service) -> dict[str, Any]:
    """A snapshot; never anything but a 200."""
    async with httpx.AsyncClient(base_url=of.admin, timeout=20) as admin:
        answer = await admin.get("/overview")
        assert answer.status_code == 200, answer.text
        found: dict[str, Any] = answer.json()
        return found


async def register(system: System, name: str) -> None:
    """One user."""
    async with httpx.AsyncClient(base_url=system.user.url, timeout=20) as api:
        answer = await api.post("/v1/users", json={"email": f"{name}@example.com", "name": name})
        assert answer.status_code == 201, answer.text


@contextlib.asynccontextmanager
async def events(of: Service) -> AsyncIterator[AsyncIterator[tuple[str, Any]]]:
    """The event stream: names and data."""

    async def read(answer: httpx.Response) -> AsyncIterator[tuple[str, Any]]:
        name = ""
        async for line in answer.aiter_lines():
            if line.startswith("event: "):
                name = line.removeprefix("event: ")
            elif line.startswith("data: "):
                yield name, json.loads(line.removeprefix("data: "))

    async with (
        httpx.AsyncClient(base_url=of.admin, timeout=20) as admin,
        admin.stream("GET", "/overview/events") as answer,
    ):
        assert answer.status_code == 200
        assert answer.headers["content-type"].startswith("text/event-stream")
        yield read(answer)


async def test_a_registration_is_followed_until_it_is_sent(system: System, smtp: SmtpServer) -> None:
    """In every figure; and every replica of both services is there, with what it says of itself."""
    system.set_env(RATE_LIMIT_RPM="600")
    await system.start()
    another = system.another("email_svc")
    another.start()
    await another.ready()
    before = await overview(system.user)
    assert before["problem"] is None
    assert before["accepted"] == {"total": 0, "per_second": 0.0}
    assert (before["outbox"], before["sent"]["total"], before["queue"]["size"]) == ({"pending": 0}, 0, 0)
    await register(system, "ada")

    async def sent() -> dict[str, Any] | None:
        found = await overview(system.user)
        return found if found["sent"]["total"] and found["queue"]["size"] == 0 and found["sent"]["per_second"] else None

    after = await eventually(sent, what="the mail in the overview")
    assert after["accepted"]["total"] == 1
    assert after["accepted"]["per_second"] > 0
    assert (after["queue"]["in_flight"], after["queue"]["retrying"]) == (0, 0)
    assert after["ledger"] | {"live_events": 1, "sent": 1, "gap": 0, "balanced": True} == after["ledger"]
    assert after["breaker"]["state"] == "closed"
    assert after["replay"]["running"] is False
    assert after["limiter"]["algorithm"] == "token_bucket"
    assert after["limiter"]["limit_per_minute"] == 600
    assert 0 <= after["limiter"]["tokens"] <= 10
    assert after["downtime"]["down"] is False
    assert [(each["service"], each["ready"]) for each in after["replicas"]] == [
        ("email_svc", True),
        ("email_svc", True),
        ("user_svc", True),
    ]
    assert len({each["replica"] for each in after["replicas"]}) == 3


async def test_a_mail_in_hand_is_in_flight(system: System, smtp: SmtpServer) -> None:
    """What a worker has is told apart from what waits for its next try; no limit has no number of tokens."""
    smtp.on("dot", Silence())
    await system.start()
    await register(system, "held")

    async def held() -> dict[str, Any] | None:
        found = await overview(system.user)
        return found if found["queue"]["in_flight"] else None

    found = await eventually(held, what="a mail in flight")
    assert (found["queue"]["in_flight"], found["queue"]["retrying"]) == (1, 0)
    assert found["limiter"]["tokens"] is None
    system.email.kill()

    async def nobody() -> bool:
        seen = (await overview(system.user))["queue"]
        return (seen["in_flight"], seen["retrying"], seen["processing_or_retrying"]) == (None, None, 1)

    await eventually(nobody, what="no figure that no worker tells")


async def test_without_the_broker_it_says_so_and_shows_what_it_knows(system: System) -> None:
    """No 500, over the whole of an outage, and the figures come back by themselves."""
    await system.start()
    await register(system, "before")
    await eventually(lambda: _sent(system), what="the mail")
    system.nats.kill()
    found = await eventually(lambda: _problem(system), what="a problem")
    assert found["problem"].startswith("The broker does not answer: ")
    again = await eventually(lambda: _problem(system), what="a problem")
    assert again["at"] == found["at"], "old figures, and they say of when"
    assert found["sent"]["total"] == found["accepted"]["total"] == 1
    assert len(found["replicas"]) == 2
    async with events(system.user) as stream:
        name, shown = await anext(stream)
        assert (name, shown["problem"] is None) == ("overview", False)
        system.nats.start()
        await system.nats.ready()
        async with asyncio.timeout(30):
            while name != "overview" or shown["problem"] is not None:
                name, shown = await anext(stream)
    assert http_status(f"{system.user.admin}/overview/samples") == 200


async def _sent(system: System) -> bool:
    return bool((await overview(system.user))["sent"]["total"])


async def _problem(system: System) -> dict[str, Any] | None:
    found = await overview(system.user)
    return found if found["problem"] else None


async def test_fifty_listeners_hear_one_snapshot_a_second(system: System) -> None:
    """All the same bytes, made once; and each five seconds a row of the samples."""
    await system.start()

    async def listen() -> list[tuple[str, Any]]:
        found: list[tuple[str, Any]] = []
        async with events(system.user) as stream:
            async for event in stream:
                found.append(event)
                if len([1 for name, _ in found if name == "sample"]) == 2:
                    return found
        return found

    async with asyncio.timeout(60):
        heard = await asyncio.gather(*(listen() for _ in range(50)))
    for found in heard:
        # The first is whatever was there when it came, and who still reads one misses the next; else all hear the same.
        shared = [event for event in found[1:] if event in heard[0]]
        assert len(shared) >= 5
        told = {data["at"]: data for name, data in heard[0] if name == "overview"}
        assert all(told.get(data["at"], data) == data for name, data in found if name == "overview")
        times = [data["at"] for name, data in found if name == "overview"]
        assert 5 <= len(times) <= 13
        assert len(set(times)) >= len(times) - 1
        first, second = (data for name, data in found if name == "sample")
        assert second["at"] - first["at"] == 5
    async with httpx.AsyncClient(base_url=system.user.admin, timeout=20) as admin:
        columns = (await admin.get("/overview/samples")).json()
    assert columns["every_s"] == 5
    rows = [data for name, data in heard[0] if name == "sample"]
    at = [columns["at"].index(row["at"]) for row in rows]
    for row, n in zip(rows, at, strict=True):
        assert {name: columns[name][n] for name in row if name != "verdicts_per_second"} == {
            name: value for name, value in row.items() if name != "verdicts_per_second"
        }
        assert {name: column[n] for name, column in columns["verdicts_per_second"].items()} == row[
            "verdicts_per_second"
        ]
    assert rows[1]["verdicts_per_second"] == {"sent": 0, "path": 0, "message": 0, "other": 0}


async def test_open_streams_do_not_keep_it_from_ending(system: System) -> None:
    """SIGTERM: they end at once, whole, and the process with 0, long before uvicorn would cut them off."""
    await system.start()
    async with contextlib.AsyncExitStack() as stack:
        streams = [await stack.enter_async_context(events(system.user)) for _ in range(5)]
        for stream in streams:
            await anext(stream)
        began = time.monotonic()
        ending = asyncio.create_task(system.user.terminate())
        for stream in streams:
            async for _ in stream:
                pass  # a stream that was cut off would raise
        assert await ending == 0
        assert time.monotonic() - began < 3


async def test_so_many_may_listen_and_who_leaves_makes_room(system: System) -> None:
    """500 at once, 100 of one peer; one more is told to come again, until another has gone without a word."""
    await system.start()
    port = system.user.metrics_port

    async def listen(peer: int = 1) -> tuple[bytes, asyncio.StreamWriter]:
        reader, writer = await asyncio.open_connection("127.0.0.1", port, local_addr=(f"127.0.0.{peer}", 0))
        writer.write(b"GET /overview/events HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n")
        status = await reader.readline()
        return status.split(b" ")[1], writer

    async with asyncio.timeout(60):
        opened, refused = [], []
        for answer in await asyncio.gather(*(listen() for _ in range(120))):  # at once
            (opened if answer[0] == b"200" else refused).append(answer)
        assert (len(opened), len(refused)) == (100, 20)
        opened += await asyncio.gather(*(listen(peer) for peer in (2, 3, 4, 5) for _ in range(100)))
        refused.append(await listen(6))
        assert {status for status, _ in opened} == {b"200"}
        assert {status for status, _ in refused} == {b"503"}
        for _, writer in (*refused, opened[0]):
            writer.close()

        async def again() -> bool:
            status, another = await listen()
            if status != b"200":
                another.close()
                return False
            opened.append((status, another))
            return True

        await eventually(again, what="room for one more")
    for _, writer in opened:
        writer.close()


async def test_an_answer_goes_onto_an_inbox_and_nowhere_else(broker: Broker) -> None:
    """Whoever names another reply subject, or none, is not answered; one who asks properly is."""
    heard: asyncio.Queue[Any] = asyncio.Queue()
    for subject in ("anywhere.else", "$KV.USERS.>", inbox := s.replica_answers("test")):
        await broker.client.subscribe(subject, cb=heard.put)

    async def ready() -> list[str]:
        return ["stream AUDIT"]

    await presence.answering(broker, "user_svc", ready)
    with structlog.testing.capture_logs() as said:
        for reply in ("anywhere.else", "$KV.USERS.u.me", "", inbox):
            await broker.client.publish(s.REPLICAS_ASK, replica.ASK.encode(replica.ReplicaAsk()), reply)
        answer = await asyncio.wait_for(heard.get(), 5)
    assert answer.subject == inbox
    found = replica.ANSWER.decode(answer.data)
    assert (found.service, found.ready, found.in_hand, found.limiter) == ("user_svc", False, 0, None)
    assert [line["event"] for line in said] == ["replica.no_inbox"] * 3
    assert heard.empty()


async def test_a_forged_answer_fills_no_memory_and_spoils_no_figure(broker: Broker) -> None:
    """One that is too large, or says what no process can, is dropped; of new names there are a hundred and no more."""
    replicas = Replicas(broker)
    await replicas.start()
    plain = {
        "kind": "replica.answer.v1", "service": "email_svc", "replica": "forged", "version": "1", "ready": True,
        "started_at": "2026-11-25T00:00:00Z",
    }  # fmt: skip
    wrong: list[dict[str, Any]] = [
        {"more": "x" * replica.ANSWER_MAX_BYTES},
        *({name: "x" * 301} for name in ("service", "replica", "version")),
        *({"in_hand": number} for number in (-1, 2**53 + 1, 1.5)),
        {"verdicts": {"sent": -1}},
        {"verdicts": {"path": 10**30}},
        {"downtime": {"down": True, "ends_in_s": -1.0}},
        {"limiter": {"algorithm": "x", "limit_per_minute": 1e300, "burst": 1}},
    ]
    with structlog.testing.capture_logs() as said:
        for each in wrong:
            await broker.client.publish(replicas._inbox, json.dumps(plain | each).encode())
        assert await replicas.ask() == []
    assert [line["event"] for line in said] == [
        "replicas.too_large",
        *["replicas.undecodable"] * len(wrong),
    ]  # the last: nobody listens
    for n in range(150):
        await broker.client.publish(replicas._inbox, json.dumps(plain | {"replica": f"{n:03}"}).encode())
    heard = await replicas.ask()
    assert [each.answer.replica for each in heard] == [f"{n:03}" for n in range(100)]
