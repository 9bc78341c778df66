"""Break everything and balance the books: `python -m tests.drill [--minutes M] [--seed N] [--rate R] [--cluster]`.

start a system of its own -> load and faults -> all mended, the clients come to their end -> settle -> read the three
logs -> check -> say what was found. Exit status 0: no law was broken. 1: one was; then the folder stays.
"""

import argparse
import asyncio
import contextlib
import logging
import random
import shutil
import sys
import tempfile
import time
from collections.abc import AsyncIterator
from pathlib import Path

import msgspec
import structlog
import uvloop

from tests.drill import collect, report
from tests.drill.checker import check, excused
from tests.drill.evidence import Violation
from tests.drill.faults import Faults
from tests.drill.history import History
from tests.drill.load import Load
from tests.drill.plan import plan
from tests.drill.sabotage import DEFECTS
from tests.drill.stack import RULES, Stack

_AROUND_S = 40.0
"""What start, settling (a killed worker's mails come back after 30 s) and reading take of the time given."""
_SETTLE_S = 120.0
"""So long without a mail, and still not settled: something is stuck."""


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser("drill", description="Breaks everything, and balances the books.")
    parser.add_argument("--minutes", type=float, default=1.0, help="how long it takes, all in all (1)")
    parser.add_argument("--seed", type=int, help="of the plan of faults and of what the clients do (random)")
    parser.add_argument("--rate", type=float, default=120.0, help="registrations a second (120)")
    parser.add_argument("--at-least", type=int, default=0, metavar="N", help="go on until there were so many 201s")
    parser.add_argument("--cluster", action="store_true", help="three brokers, every stream on all of them")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write what was found there, for machines")
    parser.add_argument("--keep", action="store_true", help="keep the folder with all logs in any case")
    parser.add_argument("--sabotage", nargs="+", choices=DEFECTS, default=(), help=argparse.SUPPRESS)
    return parser.parse_args()


class Drill:
    """One run."""

    def __init__(self, arguments: argparse.Namespace, seed: int, folder: Path) -> None:
        self.arguments = arguments
        self.seed = seed
        self.folder = folder
        self.began = time.monotonic()
        self.stood_still_s = 0.0
        self.unsettled = ""
        self.doing = "starting"

    async def run(self) -> tuple[History, list[str]]:
        """All of it up to the history, and what the drill itself has to complain of."""
        arguments = self.arguments
        seconds = 3.0 if arguments.sabotage else max(5.0, 60 * arguments.minutes - _AROUND_S)
        steps = () if arguments.sabotage else plan(self.seed, seconds, cluster=arguments.cluster)
        complaints: list[str] = []
        async with Stack(self.folder, cluster=arguments.cluster) as stack:
            load = Load(stack.ports, rate=arguments.rate, seed=self.seed)
            faults = Faults(stack, steps)
            breaker = collect.BreakerLog(stack.direct)
            await breaker.listen()
            async with self._beside(stack, load, faults, breaker):
                self.doing = "breaking"
                async with asyncio.TaskGroup() as group:
                    group.create_task(load.run(seconds, at_least=arguments.at_least))
                    group.create_task(faults.run())
                self.doing = "mended"
                await load.finish()
                for defect in arguments.sabotage:
                    await DEFECTS[defect](stack, load)
                self.doing = "settling"
                if not await self._settle(stack):
                    complaints.append(f"outbox, queue or gap are not 0, and there was no mail for {_SETTLE_S:.0f} s")
                self.doing = "reading"
                history = await self._collect(stack, load, faults, breaker)
            complaints += [f"{name} ended by itself: see its log" for name in stack.ended_by_themselves]
        return history, complaints

    @contextlib.asynccontextmanager
    async def _beside(
        self, stack: Stack, load: Load, faults: Faults, breaker: collect.BreakerLog
    ) -> AsyncIterator[None]:
        """What runs along: the supervisor, the ear for the breaker, the progress, the pulse of this process itself."""
        progress = report.Progress()

        async def show() -> None:
            while True:
                broken = ", ".join(faults.now) or "nothing"
                progress.show(
                    f"{time.monotonic() - self.began:5.1f} s  {self.doing}: {load.created} registered, "
                    f"{len(stack.smtp.accepted)} mails, breaker {breaker.state}, {len(faults.done)} faults, "
                    f"broken now: {broken}"
                )
                await asyncio.sleep(0.2)  # so often a reader's eye is given something new

        async def pulse() -> None:
            while True:
                before = time.monotonic()
                await asyncio.sleep(0.02)  # what is measured
                self.stood_still_s = max(self.stood_still_s, time.monotonic() - before - 0.02)

        tasks = [asyncio.create_task(work) for work in (show(), pulse(), breaker.watch(), stack.supervise())]
        try:
            yield
            for task in tasks:
                if task.done():
                    task.result()  # raises what ended it
        finally:
            for task in tasks:
                task.cancel()
            load.stop()
            progress.done()

    async def _settle(self, stack: Stack) -> bool:
        """Waits until nothing is on its way. Twice in a row, for a replay or the reconciler may be between two."""
        calm, mails, since = 0, 0, time.monotonic()
        while time.monotonic() - since < _SETTLE_S:
            if len(stack.smtp.accepted) > mails:
                mails, since = len(stack.smtp.accepted), time.monotonic()
            calm = calm + 1 if await self._calm(stack) else 0
            if calm == 3:
                return True
            await asyncio.sleep(0.3)
        return False

    async def _calm(self, stack: Stack) -> bool:
        for name, operator in stack.operators.items():
            if name.startswith("user_svc"):
                status, progress = await operator.ask("GET", "/dead-letters/replay")
                if status != 200 or progress["running"]:
                    return False
        return await collect.settled(stack.direct)

    async def _collect(self, stack: Stack, load: Load, faults: Faults, breaker: collect.BreakerLog) -> History:
        keys, in_outbox = await collect.keys(stack.direct)
        rows, quarantined = await collect.rows(stack.direct)
        await breaker.read()
        return History(
            rules=RULES,
            calls=tuple(load.calls),
            transactions=tuple(collect.transactions(stack)),
            keys=tuple(keys),
            rows=(*in_outbox, *rows),
            changes=tuple(breaker.changes),
            faults=tuple(sorted(faults.done, key=lambda fault: fault.began)),
            books=await collect.counters(stack),
            quarantined=quarantined,
            brokers=len(stack.brokers),
            deaf=tuple(breaker.deaf),
            stood_still_s=self.stood_still_s,
        )


def main() -> int:
    """Runs a drill and prints its verdict."""
    arguments = _arguments()
    seed = random.randrange(10**6) if arguments.seed is None else arguments.seed
    folder = Path(tempfile.mkdtemp(prefix="mailflow-drill-"))
    print(f"drill with seed {seed}, for {arguments.minutes:g} min, in {folder}", flush=True)
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.CRITICAL))
    drill = Drill(arguments, seed, folder)
    try:
        history, complaints = uvloop.run(drill.run())
    except KeyboardInterrupt:
        print("\nstopped; nothing was checked")
        shutil.rmtree(folder, ignore_errors=True)
        return 130
    except BaseException:
        print(f"\nthe drill itself failed; its logs are in {folder}, repeat with --seed {seed}", file=sys.stderr)
        raise
    (folder / "history.json").write_bytes(msgspec.json.encode(history))
    violations = [(violation.law, _told(violation)) for violation in check(history)]
    complaints += report.nothing_shown(history, sabotaged=bool(arguments.sabotage))
    violations += [("drill", text) for text in complaints]
    found = {"seed": seed} | report.summary(
        history, violations, excused(history), seconds=time.monotonic() - drill.began
    )
    if arguments.json is not None:
        arguments.json.write_bytes(msgspec.json.format(msgspec.json.encode(found), indent=2))
    for law, text in violations[:30]:
        print(f"{law:>14}  {text}")
    if len(violations) > 30:
        print(f"{'':>14}  and {len(violations) - 30} more")
    print(report.table(found))
    if violations or arguments.keep:
        again = f"just drill --minutes {arguments.minutes:g} --seed {seed} --rate {arguments.rate:g}"
        print(f"logs and history.json are in {folder}; once more: {again}{' --cluster' * arguments.cluster}")
    else:
        shutil.rmtree(folder, ignore_errors=True)
    print("not one law was broken" if not violations else f"{len(violations)} violations", flush=True)
    return 1 if violations else 0


def _told(violation: Violation) -> str:
    about = (("event", violation.event), ("user", violation.user), ("at", violation.at))
    return ", ".join([violation.what, *(f"{name} {value}" for name, value in about if value is not None)])


if __name__ == "__main__":
    sys.exit(main())
