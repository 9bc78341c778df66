"""A run as Markdown: what was measured, against what, and on what machine."""

import statistics
from collections.abc import Iterator

from tests.bench.results import FLOOR, SELF, STACKS, SYNCS, Results, spread
from tests.bench.target import targets

_HEAD = """# Speed

Written by `just bench`. Everything ran on one machine, the clients and the SMTP server included, so the absolute
figures say little: compare the columns. Medians of {rounds} rounds, the ways in turn in each; ± is half of the distance
between the best and the worst round. A ratio is MailFlow's to the other's, of the same round; above 1 MailFlow is
faster (registrations, mails) or slower (times).

![ratios](results.svg)

- **floor**: a bare ASGI app with one durable create a request, and a raw nats-py loop that makes the same durable
  writes as MailFlow and holds an SMTP dialogue. No validation, limit, breaker, look-up, log, metrics, templates, lease.
- **FastStream**: FastAPI and FastStream on the same broker. A user's record is the queue entry too, so a mail costs one
  durable write less. Looked up before sending, noted after, acked last. Nothing bounds its queue, pauses it, limits its
  rate, shows what is retried, or erases.
- **Celery**: FastAPI and Celery on Redis (`appendfsync always` or `everysec`), sixteen threads, acks late, looked up
  before sending, noted after. A crash between its two writes leaves a user without a mail, which no setting mends.
"""


_NONE = "-"


def report(run: Results) -> str:
    """The whole page."""
    rounds = max((len(v) for by in run.speed.values() for f in by.values() for v in f.values()), default=0)
    lines = [_HEAD.format(rounds=rounds)]
    lines += [f"- {stack} was not measured: it needs {why}." for stack, why in run.skipped.items()]
    lines += ["", "## Targets", "", *_targets(run)]
    for sync in run.speed:
        lines += ["", f"## {SYNCS[sync].capitalize()}", "", *_speed(run, sync)]
    if run.cold:
        lines += ["", "## Cold start", "", *_cold(run)]
    if run.scale:
        lines += ["", "## Size", "", *_scale(run)]
    lines += ["", "## Machine", "", *(f"- {name}: {value}" for name, value in run.about.items())]
    return "\n".join(lines) + "\n"


def _targets(run: Results) -> Iterator[str]:
    yield "| target | | found | met |"
    yield "|---|---|---|---|"
    for target in targets():
        value = target.found(run)
        if value is not None:
            bound = f"{'≥' if target.at_least else '≤'} {target.bound:g} {target.unit}".strip()
            met = "yes" if target.met(value) else "**no**"
            yield f"| {target.what} | {bound} | {number(value)} {target.unit}".rstrip() + f" | {met} |"


def _speed(run: Results, sync: str) -> Iterator[str]:
    by_stack = run.speed[sync]
    stacks = [stack for stack in STACKS if stack in by_stack]
    yield "| | " + " | ".join(stack if stack == SELF else f"{stack} | ÷" for stack in stacks) + " |"
    yield "|---" * (2 * len(stacks)) + "|"
    measures = dict.fromkeys(measure for figures in by_stack.values() for measure in figures)
    for measure in measures:
        cells = []
        for stack in stacks:
            values = by_stack[stack].get(measure)
            cells.append(_cell(values) if values else _NONE)
            if stack != SELF:
                ratio = run.ratio(sync, measure, stack)
                cells.append(_NONE if ratio is None else f"{ratio:.2f}")
        yield f"| {measure} | {' | '.join(cells)} |"


def _cold(run: Results) -> Iterator[str]:
    for stack, values in run.cold.items():
        what = "`just up` on nothing" if stack == SELF else "a broker with one stream and a bare ASGI app"
        yield f"- {stack}, {what}: {_cell(values)} s until the first 201"
    if SELF in run.cold and FLOOR in run.cold:
        yield f"- ratio: {statistics.median(run.cold[SELF]) / statistics.median(run.cold[FLOOR]):.1f}"


def _scale(run: Results) -> Iterator[str]:
    yield "Users, queued mails and noted mails, so many of each; peaks while mails are sent and users registered."
    yield ""
    sizes = list(run.scale)
    yield "| | " + " | ".join(f"{size:,}" for size in sizes) + " | ÷ |"
    yield "|---" * (len(sizes) + 2) + "|"
    for measure in run.scale[sizes[0]]:
        values = [run.scale[size][measure] for size in sizes]
        yield f"| {measure} | {' | '.join(map(number, values))} | {values[-1] / values[0]:.2f} |"


def _cell(values: list[float]) -> str:
    median = number(statistics.median(values))
    return median if len(values) == 1 else f"{median} ± {spread(values) * 50:.0f} %"


def number(value: float) -> str:
    """Three digits or so."""
    return f"{value:,.0f}" if value >= 100 else f"{value:.1f}" if value >= 10 else f"{value:.2f}"
