"""The broker's files are damaged while it is down: every mail arrives all the same, and what cannot be mended is seen.

What the broker makes of a damaged block (nats-server 2.15; each record has a checksum of its bytes):

    after kill -9         it reads all blocks, and cuts each at the first record that is damaged: those behind it go too
    after an orderly end  it trusts its index; a damaged record is stepped over, never handed out, and counted for ever

So no event with altered bytes is ever sent. What is not covered by a checksum is where a record's headers end, which
moves bytes between headers and body: then no event can be decoded, and it is quarantined.
"""

import random
import re
import shutil
import time
from collections.abc import Callable
from pathlib import Path

import httpx
import pytest

from contracts import subjects as s
from contracts.runtime.broker import Broker
from tests.support.load import broker_of, client_of, doubled, queued, register, together
from tests.support.processes import System, provisioned
from tests.support.smtp_server import SmtpServer
from tests.support.waiting import eventually

Damage = Callable[[Path, random.Random], None]
"""Done to the folder of a stream."""


def blocks(stream: Path) -> list[Path]:
    """Its messages, oldest first; those that hold some."""
    found = sorted(stream.glob("msgs/*.blk"), key=lambda path: int(path.stem))
    return [path for path in found if path.stat().st_size]


def flip(path: Path, rng: random.Random) -> None:
    """Turns a bit at a random place."""
    data = bytearray(path.read_bytes())
    data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
    path.write_bytes(data)


def flip_block(stream: Path, rng: random.Random) -> None:
    flip(rng.choice(blocks(stream)), rng)


def flip_record(stream: Path, rng: random.Random) -> None:
    """In the words of one record, which then is no more what its checksum says."""
    block = rng.choice(blocks(stream))
    data = bytearray(block.read_bytes())
    data[rng.choice([found.start() for found in re.finditer(rb'"kind":', data)]) + 2] ^= 1
    block.write_bytes(data)


def flip_without_index(stream: Path, rng: random.Random) -> None:
    (stream / "msgs" / "index.db").unlink(missing_ok=True)
    flip_block(stream, rng)


def truncate(stream: Path, rng: random.Random) -> None:
    block = rng.choice(blocks(stream))
    with block.open("r+b") as file:
        file.truncate(rng.randrange(block.stat().st_size))


def empty(stream: Path, rng: random.Random) -> None:
    rng.choice(blocks(stream)).write_bytes(b"")


def delete_blocks(stream: Path, _: random.Random) -> None:
    for block in blocks(stream):
        block.unlink()


def move_boundary(stream: Path, _: random.Random) -> None:
    """Lets the headers of each record end 8 bytes later or earlier: that place has no checksum."""
    for block in blocks(stream):
        data = bytearray(block.read_bytes())
        for found in re.finditer(rb"(?s)(....)NATS/1\.0\r\n", bytes(data)):
            data[found.start()] ^= 8
        block.write_bytes(data)


def damage_index(stream: Path, rng: random.Random) -> None:
    index = stream / "msgs" / "index.db"
    if index.exists():
        flip(index, rng)
    else:
        index.write_bytes(rng.randbytes(100))


def damage_consumers(stream: Path, rng: random.Random) -> None:
    for state in stream.glob("obs/*/o.dat"):
        state.write_bytes(rng.randbytes(20))


def delete_consumer_states(stream: Path, _: random.Random) -> None:
    for state in stream.glob("obs/*/o.dat"):
        state.unlink()


def delete_consumers(stream: Path, _: random.Random) -> None:
    shutil.rmtree(stream / "obs")


def damage_description(stream: Path, rng: random.Random) -> None:
    flip(stream / "meta.inf", rng)


def delete_all(stream: Path, _: random.Random) -> None:
    shutil.rmtree(stream)


OF_MESSAGES: tuple[Damage, ...] = (
    flip_block,
    flip_without_index,
    truncate,
    empty,
    delete_blocks,
    move_boundary,
    damage_index,
)
OF_ALL_ELSE: tuple[Damage, ...] = (
    delete_consumer_states,
    delete_consumers,
    damage_description,
    delete_all,
)


def folder(system: System, stream: str) -> Path:
    """Where the broker keeps a stream."""
    return next(system.nats.store.glob(f"jetstream/*/streams/{stream}"))


async def damaged(system: System, stream: str, damage: Damage, rng: random.Random, *, orderly: bool) -> None:
    """The broker ends, is damaged and starts again.

    It writes down what was acked a moment later. What a kill takes of that comes again after ack_wait, and is in the
    outbox till then: true, but here it would only take half a minute each time.
    """

    def at_rest() -> bool:
        return time.time() - max(path.stat().st_mtime for path in system.nats.store.rglob("o.dat")) > 0.3

    await eventually(at_rest, what="acks on disk")
    if orderly:
        await system.nats.terminate()
    else:
        system.nats.kill()
    damage(folder(system, stream), rng)
    system.nats.start()
    await system.nats.ready()


async def breaker(client: httpx.AsyncClient, system: System, word: str) -> None:
    """Opens or closes it, as soon as the broker is there."""

    async def done() -> bool:
        answer = await client.post(f"{system.user.admin}/circuit-breaker/{word}", json={})
        return answer.status_code == 200

    await eventually(done, within_s=20, what=f"breaker {word}")


async def ledger(client: httpx.AsyncClient, system: System) -> dict[str, int]:
    """The books, as soon as the broker can tell."""

    async def look() -> dict[str, int] | None:
        answer = await client.get(f"{system.user.admin}/ledger")
        return answer.json() if answer.status_code == 200 else None

    return await eventually(look, within_s=20, what="the ledger")


async def metric(client: httpx.AsyncClient, system: System, name: str) -> float:
    """Of user_svc."""
    text = (await client.get(f"{system.user.admin}/metrics")).text
    return float(re.findall(rf"^{name} (\S+)", text, re.MULTILINE)[0])


def unharmed(system: System, smtp: SmtpServer) -> None:
    """Every mail names the person whom it went to, and no service has ended or stumbled."""
    for mail in smtp.accepted:
        n = mail.rcpt.removeprefix("user").partition("@")[0]
        assert f"Hello User {n},".encode() in mail.content
    for process in system.services:
        assert process.running
        assert "Traceback" not in process.text()


class Round:
    """People register while the breaker is open, the broker is damaged, the breaker closes: all mails come."""

    def __init__(self, system: System, smtp: SmtpServer, client: httpx.AsyncClient, broker: Broker) -> None:
        self.system, self.smtp, self.client, self.broker = system, smtp, client, broker
        self.total = 0

    async def run(self, stream: str, damage: Damage, rng: random.Random, *, orderly: bool, people: int) -> None:
        await breaker(self.client, self.system, "open")
        first, self.total = self.total, self.total + people
        await together(*(register(self.client, n) for n in range(first, self.total)))
        await eventually(lambda: queued(self.broker, people))
        await damaged(self.system, stream, damage, rng, orderly=orderly)
        await breaker(self.client, self.system, "close")
        await eventually(lambda: len({t.rcpt for t in self.smtp.accepted}) == self.total, within_s=60)


@pytest.mark.parametrize("seed", [1])
async def test_damaged_queue_loses_and_doubles_no_mail(system: System, smtp: SmtpServer, seed: int) -> None:
    """Each damage to WELCOME_EMAILS while mails wait in it, the broker killed or ended: all arrive, each once."""
    rng = random.Random(seed)
    system.without_accounts()  # with them, only the provisioner may make a stream that is gone
    system.user.env["RECONCILE_AFTER"] = "500ms"
    await system.start()
    todo = [(damage, rng.random() < 0.5) for damage in (*OF_MESSAGES, *OF_ALL_ELSE)] + [(flip_record, True)]
    rng.shuffle(todo)
    async with client_of(system) as client, broker_of(system) as broker:
        rounds = Round(system, smtp, client, broker)
        for damage, orderly in todo:
            await rounds.run(s.WELCOME_EMAILS, damage, rng, orderly=orderly, people=25)
            assert doubled(smtp, range(rounds.total)) == {}, f"{damage.__name__}, orderly: {orderly}"

            async def balanced() -> bool:
                seen = await ledger(client, system)
                return seen["sent"] == rounds.total and seen["gap"] + seen["unreadable_in_queue"] == 0

            await eventually(balanced, within_s=60)
            # What nobody can read is counted until the stream is emptied; the next round wants to count its own.
            await broker.api(f"STREAM.PURGE.{s.WELCOME_EMAILS}")
        told = system.nats.text().count("checksums do not match")
        assert told <= 1, "what `damage_description` did is mended for good"
        assert (await ledger(client, system))["quarantined"] >= 25  # of `move_boundary`
    unharmed(system, smtp)


async def test_stream_that_is_gone_is_said_at_the_start(system: System, smtp: SmtpServer) -> None:
    """The queue is gone from a broker with users: each service says what to run; then all mails come."""
    system.user.env["RECONCILE_AFTER"] = "500ms"
    await system.start(email=False)
    async with client_of(system) as client, broker_of(system) as broker:
        await together(*(register(client, n) for n in range(10)))
        await eventually(lambda: queued(broker, 10))
        system.user.kill()
        await damaged(system, s.WELCOME_EMAILS, delete_all, random.Random(1), orderly=True)
        for service in (system.user, system.email):
            service.start()
        for service in (system.user, system.email):
            assert await service.exit_status() == 78
            assert "stream WELCOME_EMAILS is missing: run `python -m contracts.topology`" in service.text()
            assert "Traceback" not in service.text()
        await provisioned(system.nats.url)
        system.email.start()
        system.user.start()
        await eventually(lambda: len(smtp.accepted) == 10, within_s=60)
        assert doubled(smtp, range(10)) == {}


async def test_damaged_consumer_is_a_matter_of_its_folder(system: System, smtp: SmtpServer) -> None:
    """The broker neither reads the consumer's state nor makes it anew over that: it is said what to remove."""
    await system.start()
    async with client_of(system) as client, broker_of(system) as broker:
        await breaker(client, system, "open")
        await together(*(register(client, n) for n in range(10)))
        await eventually(lambda: queued(broker, 10))
        await damaged(system, s.WELCOME_EMAILS, damage_consumers, random.Random(1), orderly=True)
        said = "consumer email-svc of WELCOME_EMAILS cannot be created because what the broker kept of it is damaged"
        await eventually(lambda: said in system.user.text(), within_s=20, what=said)
        await damaged(system, s.WELCOME_EMAILS, delete_consumers, random.Random(1), orderly=True)
        await breaker(client, system, "close")
        await eventually(lambda: len(smtp.accepted) == 10, within_s=60)
        assert doubled(smtp, range(10)) == {}
    unharmed(system, smtp)


@pytest.mark.parametrize("seed", [1])
async def test_damaged_ledger_is_seen_and_doubles_only_what_it_forgot(
    system: System, smtp: SmtpServer, seed: int
) -> None:
    """DELIVERIES: what no longer is known to be sent is sent again, and counted; nobody else gets a second mail."""
    rng = random.Random(seed)
    system.without_accounts()
    system.user.env |= {"RECONCILE_AFTER": "500ms", "RECONCILE_INTERVAL": "1s"}
    await system.start()
    async with client_of(system) as client, broker_of(system) as broker:
        rounds = Round(system, smtp, client, broker)
        for damage, orderly in (
            (damage_index, True),  # for the others to have something to damage
            (flip_record, True),
            (truncate, False),
            (delete_consumers, True),
            (delete_all, False),
        ):
            before, again = len(smtp.accepted), await metric(client, system, "user_service_reconciled_total")
            await rounds.run(s.DELIVERIES, damage, rng, orderly=orderly, people=10)

            async def balanced() -> bool:
                seen = await ledger(client, system)
                return seen["sent"] == rounds.total and seen["gap"] == 0

            await eventually(balanced, within_s=60)
            runs = system.user.text().count("reconciler.done")
            await eventually(lambda runs=runs: system.user.text().count("reconciler.done") > runs + 1)  # type: ignore[misc]
            copies = len(smtp.accepted) - before - 10
            again = await metric(client, system, "user_service_reconciled_total") - again
            assert copies <= again, f"{damage.__name__}, orderly: {orderly}"
            if orderly:
                assert copies == 0, damage.__name__
            doubled(smtp, range(rounds.total))
    unharmed(system, smtp)


@pytest.mark.parametrize("seed", [1])
async def test_damaged_users_are_seen_and_get_no_mail_out_of_nowhere(
    system: System, smtp: SmtpServer, seed: int
) -> None:
    """USERS: one broker cannot bring back what it lost, but it is said; the next registrations are as good as ever."""
    rng = random.Random(seed)
    system.without_accounts()
    system.user.env["RECONCILE_AFTER"] = "500ms"
    await system.start()
    async with client_of(system) as client, broker_of(system) as broker:
        rounds = Round(system, smtp, client, broker)
        for damage, orderly in ((flip_record, True), (flip_block, False), (truncate, False), (delete_all, False)):
            await rounds.run(s.USERS, damage, rng, orderly=orderly, people=20)
            lost = rounds.total - (await ledger(client, system))["live_events"]
            if not orderly:
                assert lost > 0
                said = f'"at_least":{lost},'
                await eventually(lambda said=said: said in system.user.text(), what=said)  # type: ignore[misc]
            assert doubled(smtp, range(rounds.total)) == {}, f"{damage.__name__}, orderly: {orderly}"
    unharmed(system, smtp)
