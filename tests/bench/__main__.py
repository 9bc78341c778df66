"""How fast MailFlow is, beside its floor and its peers: a table and a plot.

uv run --group bench python -m tests.bench                     all of it, some ten minutes: RESULTS.md, results.svg
uv run --group bench python -m tests.bench --quick             one tiny iteration of everything, printed only
… --only MailFlow floor    --sync always    --rounds 5    --out FOLDER
"""

import argparse
import asyncio
import logging
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import structlog

from tests.bench import cold_start, machine
from tests.bench.peers import celery, faststream, missing
from tests.bench.plot import plot
from tests.bench.report import report
from tests.bench.results import FLOOR, PEERS, SELF, STACKS, SYNCS, Results
from tests.bench.scale import scaled
from tests.bench.sink import Sink
from tests.bench.speed import FULL, TINY, Size, measured
from tests.bench.stacks import Start, bare, mailflow
from tests.bench.usage import peak_mb

HERE = Path(__file__).resolve().parent
COLD, SCALE = "cold", "scale"
_STARTS: dict[str, Start] = {SELF: mailflow, FLOOR: bare, "FastStream": faststream, "Celery": celery}


async def bench(only: Sequence[str], syncs: Sequence[str], rounds: int, *, quick: bool) -> Results:
    """A whole run."""
    run = Results(skipped={peer: why for peer in PEERS if peer in only and (why := missing(peer))})
    run.about = machine.about()
    stacks = [stack for stack in STACKS if stack in only and stack not in run.skipped]
    size = TINY if quick else FULL
    for sync in syncs:
        for number in range(rounds):
            for stack in stacks:
                await _round(run, sync, stack, size)
            _say(f"{SYNCS[sync]}: round {number + 1} of {rounds}")
    if COLD in only:
        for _ in range(rounds):
            for stack, start in ((SELF, cold_start.mailflow_s), (FLOOR, cold_start.floor_s)):
                with tempfile.TemporaryDirectory(prefix="mailflow-bench-") as folder:
                    run.cold.setdefault(stack, []).append(await start(Path(folder)))
        _say("cold start")
    if SCALE in only:
        for users in (50, 500) if quick else (1000, 1_000_000):
            with tempfile.TemporaryDirectory(prefix="mailflow-bench-") as folder:
                run.scale[users] = await scaled(Path(folder), users, load_s=size.load_s)
            _say(f"{users:,} users")
    return run


async def _round(run: Results, sync: str, stack: str, size: Size) -> None:
    with tempfile.TemporaryDirectory(prefix="mailflow-bench-") as folder:
        async with Sink() as sink, _STARTS[stack](Path(folder), sync, sink.port) as running:
            found = await measured(running, sink, size, outage=stack in (SELF, FLOOR))
            front, worker = running.services
            found |= {"peak MB of the API": peak_mb(front), "peak MB of the worker": peak_mb(worker)}
    run.add(sync, stack, found)


def _say(what: str) -> None:
    print(f"{time.strftime('%H:%M:%S')} {what}", file=sys.stderr, flush=True)


def main() -> None:
    names = (*STACKS, COLD, SCALE)
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="tiny and once: says that it runs, nothing of speed")
    parser.add_argument("--only", nargs="+", metavar="NAME", choices=names, default=names, help=", ".join(names))
    parser.add_argument("--sync", nargs="+", choices=SYNCS, default=list(SYNCS), help="how often the broker fsyncs")
    parser.add_argument("--rounds", type=int, default=None, help="3; 1 if quick")
    parser.add_argument("--out", type=Path, default=None, help="where to write; a whole run writes beside this file")
    chosen = parser.parse_args()
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.WARNING))
    rounds = chosen.rounds or (1 if chosen.quick else 3)
    run = asyncio.run(bench(chosen.only, chosen.sync, rounds, quick=chosen.quick))
    print(report(run))
    whole = not chosen.quick and set(chosen.only) == set(names) and set(chosen.sync) == set(SYNCS)
    if folder := chosen.out or (HERE if whole else None):
        (folder / "RESULTS.md").write_text(report(run))
        (folder / "results.svg").write_text(plot(run))


if __name__ == "__main__":
    main()
