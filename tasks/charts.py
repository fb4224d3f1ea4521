"""Charts as inline SVG, drawn from numbers; colours come from the page's style sheet."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import Markup, escape

SERIES_COLOURS = 8
"""Colours that the style sheet has for SR models."""

_WIDTH, _HEIGHT = 380, 230
_LEFT, _RIGHT, _TOP, _BOTTOM = 46, 12, 12, 34
_COUNTS_HEIGHT = 84  # of the histogram under a reliability diagram


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
    thin: bool = False
    """Whether it is one of several that a thicker line is the mean of."""
    marked: tuple[float, float] | None = None
    """A point to mark."""


@dataclass(frozen=True, slots=True)
class Reliability:
    """One curve of a reliability diagram, and what it is made of."""

    title: str
    colour: int
    """As of a line."""
    points: Sequence[tuple[float, float]]
    """(mean probability, share of positives) of each bin that is not empty."""
    counts: Sequence[tuple[float, float, int]]
    """(lower end, upper end, decisions) of each bin, ascending."""


@dataclass(frozen=True, slots=True)
class ClusterBar:
    """What the decisions in one cluster turned out to be."""

    cluster: int
    tp: int
    tn: int
    fp: int
    fn: int

    @property
    def n(self) -> int:
        """Decisions."""
        return self.tp + self.tn + self.fp + self.fn


@dataclass(frozen=True, slots=True)
class _Axes:
    """A rectangle of the drawing, and the range of numbers that it shows; y grows upwards."""

    left: float
    right: float
    top: float
    bottom: float
    x: tuple[float, float]
    y: tuple[float, float]

    def place(self, x: float, y: float) -> tuple[float, float]:
        """Return a point's place in the drawing."""
        across = (x - self.x[0]) / (self.x[1] - self.x[0])
        up = (y - self.y[0]) / (self.y[1] - self.y[0])
        return self.left + across * (self.right - self.left), self.bottom - up * (self.bottom - self.top)

    def path(self, points: Sequence[tuple[float, float]]) -> str:
        """Return points as SVG writes them."""
        return " ".join(f"{x:.1f},{y:.1f}" for x, y in (self.place(*point) for point in points))

    def y_ticks(self, values: Sequence[tuple[float, str]]) -> list[Markup]:
        """Return lines across, and their texts on the left."""
        parts = []
        for value, text in values:
            _, y = self.place(self.x[0], value)
            parts.append(
                Markup('<line class="grid" x1="{:g}" x2="{:g}" y1="{:.1f}" y2="{:.1f}"/>').format(
                    self.left, self.right, y, y
                )
            )
            parts.append(
                Markup('<text class="tick end" x="{:g}" y="{:.1f}">{}</text>').format(self.left - 8, y + 4, text)
            )
        return parts

    def x_ticks(self, values: Sequence[tuple[float, str]]) -> list[Markup]:
        """Return texts below."""
        return [
            Markup('<text class="tick mid" x="{:.1f}" y="{:g}">{}</text>').format(
                self.place(value, self.y[0])[0], self.bottom + 16, text
            )
            for value, text in values
        ]

    def x_title(self, title: str) -> Markup:
        """Return the title of the x axis."""
        middle = (self.left + self.right) / 2
        return Markup('<text class="tick mid" x="{:.1f}" y="{:g}">{}</text>').format(middle, self.bottom + 31, title)


def colour_of(names: Sequence[str], name: str) -> int:
    """Return the number of a colour: a name's place among names."""
    return (names.index(name) if name in names else len(names)) % SERIES_COLOURS


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
    axes = _Axes(
        _LEFT,
        _WIDTH - _RIGHT,
        _TOP,
        _HEIGHT - _BOTTOM,
        (min(xs), max(*xs, min(xs) + 1)),
        (min(y_ticks[0], *ys), max(y_ticks[-1], *ys)),
    )
    decimals = max(0, -math.floor(math.log10(y_ticks[1] - y_ticks[0])))
    parts = [
        _opening(name, _HEIGHT, x_title),
        *axes.y_ticks([(tick, f"{tick:z.{decimals}f}") for tick in y_ticks]),
        *axes.x_ticks([(tick, f"{tick:.0f}") for tick in x_ticks]),
        axes.x_title(x_title),
    ]
    for line in sorted(lines, key=lambda line: not line.thin):  # means lie over what they are means of
        style = f"{' dashed' if line.dashed else ''}{' thin' if line.thin else ''}"
        parts.append(
            Markup(
                '<polyline class="line s{}{}" points="{}" data-x="{}" data-y="{}"><title>{}</title></polyline>'
            ).format(line.colour, style, axes.path(line.points), *_values(line.points), escape(line.title))
        )
    for line in lines:
        if line.marked is not None:
            x, y = axes.place(*line.marked)
            title = f"{line.title}: epoch {line.marked[0]:.0f}, {line.marked[1]:.3f}"
            parts.append(_mark(line.colour, x, y, title, small=line.thin))
    return Markup("").join([*parts, Markup("</svg>")])


def reliability_chart(name: str, curves: Sequence[Reliability]) -> Markup:
    """Return a reliability diagram with the histogram of its decisions below, on a logarithmic scale, as SVG.

    Args:
        name: What the chart shows, for those who cannot see it.
        curves: Its curves; at least one.
    """
    unit = [(i / 5, f"{i / 5:.1f}") for i in range(6)]
    side = _WIDTH - _LEFT - _RIGHT
    main = _Axes(_LEFT, _WIDTH - _RIGHT, _TOP, _TOP + side, (0.0, 1.0), (0.0, 1.0))
    most = max((n for curve in curves for *_, n in curve.counts), default=1)
    powers = math.ceil(math.log10(max(most, 10)))
    top = main.bottom + 18
    counts = _Axes(_LEFT, _WIDTH - _RIGHT, top, top + _COUNTS_HEIGHT, (0.0, 1.0), (0.0, powers))
    step = -(-powers // 3)
    parts = [
        _opening(name, counts.bottom + _BOTTOM),
        *main.y_ticks(unit),
        *counts.y_ticks([(power, _thousands(10**power)) for power in range(0, powers + 1, step)]),
        *counts.x_ticks(unit),
        counts.x_title("probability"),
        Markup('<polyline class="diagonal" points="{}"><title>probability = frequency</title></polyline>').format(
            main.path([(0, 0), (1, 1)])
        ),
    ]
    for curve in curves:
        parts.append(
            Markup('<polyline class="line s{}" points="{}"><title>{}</title></polyline>').format(
                curve.colour, main.path(curve.points), curve.title
            )
        )
        for probability, share in curve.points:
            x, y = main.place(probability, share)
            title = f"{curve.title}: {share:.3f} of those at {probability:.3f}"
            parts.append(_mark(curve.colour, x, y, title, small=True))
        outline = [
            (end, math.log10(n) if n else 0.0)  # one decision and none look alike: both are next to nothing
            for low, high, n in curve.counts
            for end in (low, high)
        ]
        parts.append(
            Markup('<polyline class="line thin s{}" points="{}"><title>{}</title></polyline>').format(
                curve.colour, counts.path(outline), f"{curve.title}: decisions in each bin"
            )
        )
        for low, high, n in curve.counts:
            x, y = counts.place((low + high) / 2, math.log10(n) if n else 0.0)
            title = f"{curve.title}: {n:,} decisions from {low:.3g} to {high:.3g}"
            parts.append(
                Markup('<circle class="hit s{}" cx="{:.1f}" cy="{:.1f}" r="3"><title>{}</title></circle>').format(
                    curve.colour, x, y, title
                )
            )
    return Markup("").join([*parts, Markup("</svg>")])


def outcome_bars(name: str, clusters: Sequence[ClusterBar]) -> Markup:
    """Return the decisions of each cluster as bars of true and false, positives and negatives, as SVG.

    Args:
        name: What the chart shows, for those who cannot see it.
        clusters: At least one.
    """
    most = max(1, *(bar.n for bar in clusters))
    y_ticks = ticks(0, most, 4)
    axes = _Axes(_LEFT, _WIDTH - _RIGHT, _TOP, _HEIGHT - _BOTTOM, (-0.5, len(clusters) - 0.5), (0.0, y_ticks[-1]))
    parts = [
        _opening(name, _HEIGHT),
        *axes.y_ticks([(tick, f"{tick:g}" if tick < 1000 else f"{tick / 1000:g}k") for tick in y_ticks]),
        *axes.x_ticks([(i, str(bar.cluster + 1)) for i, bar in enumerate(clusters)]),
        axes.x_title("cluster"),
    ]
    for i, bar in enumerate(clusters):
        left, right = axes.place(i - 0.36, 0)[0], axes.place(i + 0.36, 0)[0]
        below = 0
        for kind, words, n in (
            ("tp", "true positives", bar.tp),
            ("tn", "true negatives", bar.tn),
            ("fp", "false positives", bar.fp),
            ("fn", "false negatives", bar.fn),
        ):
            bottom, top = axes.place(i, below)[1], axes.place(i, below + n)[1]
            below += n
            if n:
                title = f"cluster {bar.cluster + 1}: {n} {words} of {bar.n}"
                parts.append(
                    Markup(
                        '<rect class="outcome {}" x="{:.1f}" y="{:.1f}" width="{:.1f}" height="{:.1f}">'
                        "<title>{}</title></rect>"
                    ).format(kind, left, top, right - left, bottom - top, title)
                )
    return Markup("").join([*parts, Markup("</svg>")])


def ticks(low: float, high: float, at_most: int) -> list[float]:
    """Return two to at_most + 1 round numbers that cover low to high."""
    size = max(abs(low), abs(high), 1.0)
    span = high - low if high - low > 1e-9 * size else 0.1 * size
    step = 10.0 ** math.floor(math.log10(span / at_most))
    step *= next(factor for factor in (1, 2, 5, 10, 20) if span / (factor * step) <= at_most - 1)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [i * step for i in range(first, max(last, first + 1) + 1)]


def _opening(name: str, height: float, x_title: str = "") -> Markup:
    """Return a chart's first tag; the script of the page tells values of lines with the title of their x axis."""
    return Markup('<svg class="chart" viewBox="0 0 {} {:g}" role="img" data-x="{}" aria-label="{}">').format(
        _WIDTH, height, x_title, name
    )


def _values(points: Sequence[tuple[float, float]]) -> tuple[str, str]:
    """Return what the points stand for, as the page's script reads it: all x, all y."""
    return " ".join(f"{x:.6g}" for x, _ in points), " ".join(f"{y:.3f}" for _, y in points)


def _mark(colour: int, x: float, y: float, title: str, *, small: bool) -> Markup:
    return Markup('<circle class="mark{} s{}" cx="{:.1f}" cy="{:.1f}" r="{}"><title>{}</title></circle>').format(
        " small" if small else "", colour, x, y, 2.5 if small else 4.5, title
    )


def _thousands(count: int) -> str:
    """Return a power of ten in few signs: 1, 100, 10k, 1M."""
    for size, unit in ((10**9, "G"), (10**6, "M"), (1000, "k")):
        if count >= size:
            return f"{count // size}{unit}"
    return str(count)
