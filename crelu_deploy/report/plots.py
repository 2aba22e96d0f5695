"""The plots of a report as SVG in HTML: colours come from the page, so that it may be dark.

They are drawn here and not by a plotting library because they are a few rectangles, which follow
the page's width and colours and are read aloud by their labels.
"""

from __future__ import annotations

import math
from html import escape

from crelu_deploy.report.parts import Curve, Curves, Range, Ranges
from crelu_deploy.tables import printable

WIDTH, HEIGHT, LEFT, RIGHT, TOP, BOTTOM = 700, 310, 70, 20, 15, 65
"""The size of a plot of curves and its margins, in units of its own."""

COLOURS = 6


def ranges(part: Ranges) -> str:
    """Return a row per range on an axis from 0 to a round number."""
    end = rounded(max((row.p90 for row in part.rows), default=0.0))
    rows = "\n".join(_range(row, end) for row in part.rows)
    axis = f"<span></span><span><span>0</span><span>{end:g} ms</span></span><span></span>"
    return f'{rows}\n<div class="range axis" aria-hidden="true">{axis}</div>'


def _range(row: Range, end: float) -> str:
    low, middle, high = (100 * value / end for value in (row.p10, row.median, row.p90))
    name = escape(printable(row.label))
    words = f"{row.median:.2f} ms, 10th to 90th percentile {row.p10:.2f} to {row.p90:.2f} ms"
    return (
        f'<div class="range"><span><code>{name}</code></span>'
        f'<svg viewBox="0 0 100 10" preserveAspectRatio="none" role="img" '
        f'aria-label="{name}: {words}">'
        f'<rect class="bar" x="{low:.2f}" y="2" width="{max(high - low, 0.4):.2f}" height="6"/>'
        f'<rect class="mark" x="{middle - 0.25:.2f}" y="0" width="0.5" height="10"/></svg>'
        f'<span class="value">{row.median:.2f} ms <small>{row.p10:.2f} .. {row.p90:.2f}</small>'
        "</span></div>"
    )


def rounded(value: float) -> float:
    """Return the next 1, 1.5, 2, 3, 5 or 7 times a power of ten; 1 for zero and below."""
    if not value > 0 or math.isinf(value):
        return 1.0
    power = 10.0 ** math.floor(math.log10(value))
    return next((k * power for k in (1, 1.5, 2, 3, 5, 7, 10) if value <= k * power), 10 * power)


def curves(part: Curves) -> str:
    """Return a line per curve over the values of x, spread evenly, and a legend."""
    xs = sorted({x for curve in part.curves for x, _ in curve.points})
    ticks = decades([y for curve in part.curves for _, y in curve.points])
    lines = "".join(_curve(curve, i, xs, ticks) for i, curve in enumerate(part.curves))
    legend = "".join(
        f'<li><svg viewBox="0 0 36 10" aria-hidden="true"><path class="k{i % COLOURS}" '
        f'd="M0 5H36"/></svg><code>{escape(printable(curve.label))}</code></li>'
        for i, curve in enumerate(part.curves)
    )
    words = f"{escape(part.caption)}; the figures are in the table below"
    return (
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{words}">'
        f"{_axes(part, xs, ticks)}{lines}</svg>\n"
        f'<ul class="legend">{legend}</ul>'
    )


def decades(values: list[float]) -> list[float]:
    """Return the ticks 1, 2 and 5 times powers of ten that enclose some positive values."""
    known = [value for value in values if 0 < value < math.inf] or [1.0]
    low, high = (math.floor(math.log10(value)) for value in (min(known), max(known)))
    ticks = [k * 10.0**power for power in range(low, high + 2) for k in (1, 2, 5)]
    first = max(i for i, tick in enumerate(ticks) if tick <= min(known))
    last = min(i for i, tick in enumerate(ticks) if tick >= max(known))
    return ticks[first : max(last, first + 1) + 1]


def _axes(part: Curves, xs: list[float], ticks: list[float]) -> str:
    drawn = []
    for tick in ticks:
        y = _y(tick, ticks)
        drawn.append(f'<path class="grid" d="M{LEFT} {y:.1f}H{WIDTH - RIGHT}"/>')
        drawn.append(f'<text x="{LEFT - 8}" y="{y + 6:.1f}" text-anchor="end">{tick:g}</text>')
    drawn += [
        f'<text x="{_x(x, xs):.1f}" y="{HEIGHT - BOTTOM + 25}" text-anchor="middle">{x:g}</text>'
        for x in xs
    ]
    middle = (LEFT + WIDTH - RIGHT) / 2
    label = escape(f"{part.x}; upwards {part.y}, logarithmic")
    drawn.append(f'<text x="{middle}" y="{HEIGHT - 8}" text-anchor="middle">{label}</text>')
    return "".join(drawn)


def _curve(curve: Curve, index: int, xs: list[float], ticks: list[float]) -> str:
    points = [f"{_x(x, xs):.1f} {_y(y, ticks):.1f}" for x, y in curve.points if y > 0]
    return f'<path class="k{index % COLOURS}" d="M{"L".join(points)}"/>' if points else ""


def _x(x: float, xs: list[float]) -> float:
    return LEFT + 20 + xs.index(x) * (WIDTH - LEFT - RIGHT - 40) / max(len(xs) - 1, 1)


def _y(y: float, ticks: list[float]) -> float:
    share = math.log(y / ticks[0]) / math.log(ticks[-1] / ticks[0])
    return HEIGHT - BOTTOM - share * (HEIGHT - TOP - BOTTOM)
