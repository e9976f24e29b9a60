"""The one chart: ten-step runs, 500 in flight, as docs/performance.svg. Legible on a light and on a dark page."""

from __future__ import annotations

import math
from xml.sax.saxutils import escape

from benchmarks.figures import OURS, Results, shown

KEY = "B.500"
NAMES = (OURS, "dbos", "absurd", "floor")
LABELS = {"floor": "floor: the bare SQL"}
WIDTH, LEFT, RIGHT, ROW, TOP = 760, 150, 90, 40, 56
STYLE = """
text { font: 14px system-ui, -apple-system, 'Segoe UI', sans-serif; fill: #1f2328 }
.title { font-weight: 600; font-size: 15px } .small { font-size: 12px; fill: #59636e }
.bar { fill: #8c959f } .ours { fill: #0969da }
.grid { stroke: #d1d9e0 }
@media (prefers-color-scheme: dark) {
  text { fill: #f0f6fc } .small { fill: #9198a1 }
  .bar { fill: #656c76 } .ours { fill: #4493f8 } .grid { stroke: #3d444d }
}
"""


def chart(results: Results) -> str:
    """Bars on a linear scale: what is a hundred times less is seen to be."""
    values = [(name, value) for name in NAMES if (value := results.median(KEY, name)) is not None]
    tick = step(max((value for _, value in values), default=1.0))
    most = max(value for _, value in [("", tick), *values])
    height = TOP + ROW * len(values) + 34
    bottom = TOP + ROW * len(values)

    def x(value: float) -> float:
        return LEFT + value / most * (WIDTH - LEFT - RIGHT)

    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" role="img">',
        "<title>Steps per second of ten-step runs, 500 in flight</title>",
        f"<style>{STYLE}</style>",
        '<text class="title" x="0" y="20">Durable steps per second, one worker process</text>',
        '<text class="small" x="0" y="38">ten-step runs, 500 in flight, every commit synced to disk</text>',
    ]
    for number in range(int(most / tick) + 1):
        at = x(number * tick)
        lines.append(f'<line class="grid" x1="{at:.1f}" y1="{TOP}" x2="{at:.1f}" y2="{bottom}"/>')
        lines.append(
            f'<text class="small" x="{at:.1f}" y="{bottom + 20}" text-anchor="middle">{number * tick:,}</text>'
        )
    for row, (name, value) in enumerate(values):
        y = TOP + ROW * row + 8
        ratio = results.ratio(KEY, name)
        beside = f" ({shown(ratio)} × less)" if ratio is not None and name != OURS and ratio >= 1 else ""
        kind = "ours" if name == OURS else "bar"
        lines += [
            f'<text x="{LEFT - 10}" y="{y + 17}" text-anchor="end">{escape(LABELS.get(name, name))}</text>',
            f'<rect class="{kind}" x="{LEFT}" y="{y}" width="{x(value) - LEFT:.2f}" height="24"/>',
            f'<text x="{x(value) + 8:.1f}" y="{y + 17}">{shown(value)}<tspan class="small">{beside}</tspan></text>',
        ]
    return "\n".join([*lines, "</svg>"]) + "\n"


def step(most: float) -> int:
    """Between two lines of the grid: 1, 2 or 5 times a power of ten, so that there are three to seven."""
    power: int = 10 ** max(0, math.floor(math.log10(most)) - 1)
    return next(power * factor for factor in (1, 2, 5, 10, 20, 50) if most / (power * factor) < 7)
