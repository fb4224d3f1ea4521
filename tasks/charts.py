"""Line charts as inline SVG, drawn from numbers; colours come from the page's style sheet."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import Markup, escape

_WIDTH, _HEIGHT = 380, 230
_LEFT, _RIGHT, _TOP, _BOTTOM = 46, 12, 12, 34


@dataclass(frozen=True, slots=True)
class Line:
    """One line of a chart."""

    title: str
    """What a pointer that rests on it reads."""
    colour: int
    """Number of its colour: the place of its SR model in the run."""
    points: Sequence[tuple[float, float]]
    """(x, y), x ascending."""
    dashed: bool = False
    marked: tuple[float, float] | None = None
    """A point to mark."""


def line_chart(name: str, lines: Sequence[Line], x_title: str) -> Markup:
    """Return a line chart as an SVG element.

    Args:
        name: What the chart shows, for those who cannot see it.
        lines: Its lines; at least one point in all.
        x_title: Title of the x axis.
    """
    xs = [x for line in lines for x, _ in line.points]
    ys = [y for line in lines for _, y in line.points]
    x_ticks = [t for t in ticks(min(xs), max(xs), 6) if abs(t - round(t)) < 1e-9 and min(xs) <= t <= max(xs)]
    y_ticks = ticks(min(ys), max(ys), 5)
    x_low, x_high = min(xs), max(*xs, min(xs) + 1)
    y_low, y_high = min(y_ticks[0], *ys), max(y_ticks[-1], *ys)

    def place(x: float, y: float) -> tuple[float, float]:
        across = (x - x_low) / (x_high - x_low)
        up = (y - y_low) / (y_high - y_low)
        return _LEFT + across * (_WIDTH - _LEFT - _RIGHT), _HEIGHT - _BOTTOM - up * (_HEIGHT - _TOP - _BOTTOM)

    decimals = max(0, -math.floor(math.log10(y_ticks[1] - y_ticks[0])))
    parts = [Markup('<svg class="chart" viewBox="0 0 {} {}" role="img" aria-label="{}">').format(_WIDTH, _HEIGHT, name)]
    for tick in y_ticks:
        _, y = place(x_low, tick)
        parts.append(
            Markup('<line class="grid" x1="{}" x2="{}" y1="{:.1f}" y2="{:.1f}"/>').format(_LEFT, _WIDTH - _RIGHT, y, y)
        )
        parts.append(
            Markup('<text class="tick end" x="{}" y="{:.1f}">{:.{}f}</text>').format(_LEFT - 8, y + 4, tick, decimals)
        )
    for tick in x_ticks:
        x, _ = place(tick, y_low)
        parts.append(
            Markup('<text class="tick mid" x="{:.1f}" y="{}">{:.0f}</text>').format(x, _HEIGHT - _BOTTOM + 16, tick)
        )
    middle = (_LEFT + _WIDTH - _RIGHT) / 2
    parts.append(Markup('<text class="tick mid" x="{:.1f}" y="{}">{}</text>').format(middle, _HEIGHT - 3, x_title))
    for line in lines:
        path = " ".join(f"{x:.1f},{y:.1f}" for x, y in (place(*point) for point in line.points))
        parts.append(
            Markup('<polyline class="line s{}{}" points="{}"><title>{}</title></polyline>').format(
                line.colour, " dashed" if line.dashed else "", path, escape(line.title)
            )
        )
    for line in lines:
        if line.marked is not None:
            x, y = place(*line.marked)
            parts.append(
                Markup('<circle class="mark s{}" cx="{:.1f}" cy="{:.1f}" r="4.5"><title>{}</title></circle>').format(
                    line.colour, x, y, f"{line.title}: epoch {line.marked[0]:.0f}, {line.marked[1]:.3f}"
                )
            )
    parts.append(Markup("</svg>"))
    return Markup("").join(parts)


def ticks(low: float, high: float, at_most: int) -> list[float]:
    """Return two to at_most + 1 round numbers that cover low to high."""
    size = max(abs(low), abs(high), 1.0)
    span = high - low if high - low > 1e-9 * size else 0.1 * size
    step = 10.0 ** math.floor(math.log10(span / at_most))
    step *= next(factor for factor in (1, 2, 5, 10, 20) if span / (factor * step) <= at_most - 1)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [i * step for i in range(first, max(last, first + 1) + 1)]
