"""The ratios of a run as an SVG, by hand: bars on a logarithmic scale, to the right of 1 where MailFlow is faster."""

import math
from html import escape

from tests.bench.results import RATES, SELF, STACKS, SYNCS, Results

_WIDTH, _LEFT, _TOP, _ROW = 760, 250, 56, 18
_LOW, _HIGH = 1 / 8, 32.0
_COLOURS = {"floor": "#8a8f98", "FastStream": "#3a7bd5", "Celery": "#5aa469"}


def plot(run: Results) -> str:
    """MailFlow's rates, divided by each other stack's."""
    parts, y = [], _TOP
    for sync in run.speed:
        parts.append(_text(12, y, SYNCS[sync], "font-weight='bold'"))
        y += _ROW + 4
        for measure in RATES:
            bars = [(stack, run.ratio(sync, measure, stack)) for stack in STACKS if stack != SELF]
            known = [(stack, ratio) for stack, ratio in bars if ratio is not None]
            for i, (stack, ratio) in enumerate(known):
                if i == 0:
                    parts.append(_text(24, y, measure))
                parts += _bar(y, stack, ratio)
                y += _ROW
            y += 8 if known else 0
        y += 10
    lines = [_line(ratio, y) for ratio in (0.25, 0.5, 1, 2, 4, 8, 16)]
    title = _text(12, 22, "MailFlow's rate, divided by that of …", "font-size='15' font-weight='bold'")
    legend = [
        f"<rect x='{_LEFT + i * 130}' y='28' width='10' height='10' fill='{colour}'/>"
        + _text(_LEFT + i * 130 + 16, 38, name)
        for i, (name, colour) in enumerate(_COLOURS.items())
    ]
    head = f"<svg xmlns='http://www.w3.org/2000/svg' viewBox='0 0 {_WIDTH} {y + 24}' font-family='sans-serif'"
    ground = f"<rect width='{_WIDTH}' height='{y + 24}' fill='white'/>"
    return "\n".join([f"{head} font-size='12'>", ground, title, *legend, *lines, *parts, "</svg>"]) + "\n"


def _x(ratio: float) -> float:
    share = math.log(min(_HIGH, max(_LOW, ratio)) / _LOW) / math.log(_HIGH / _LOW)
    return _LEFT + share * (_WIDTH - _LEFT - 60)


def _bar(y: int, stack: str, ratio: float) -> list[str]:
    start, end = sorted((_x(1), _x(ratio)))
    bar = f"<rect x='{start:.1f}' y='{y - 11}' width='{max(1, end - start):.1f}' height='13' fill='{_COLOURS[stack]}'/>"
    return [bar, _text(end + 5, y, f"{ratio:.2f}")]


def _line(ratio: float, bottom: int) -> str:
    x, width = _x(ratio), 2 if ratio == 1 else 1
    line = f"<line x1='{x:.1f}' x2='{x:.1f}' y1='{_TOP - 8}' y2='{bottom}' stroke='#d0d3d8' stroke-width='{width}'/>"
    return line + _text(x - 8, bottom + 14, f"{ratio:g}", "fill='#666'")


def _text(x: float, y: float, words: str, more: str = "") -> str:
    return f"<text x='{x:.1f}' y='{y:.1f}' {more}>{escape(words)}</text>"
