"""The report: one self-contained page made from the tables and the Zarr stores."""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from itertools import groupby
from pathlib import Path
from statistics import fmean

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from infra.bigearthnet.classes import CLASSES
from infra.fingerprint import Json
from infra.storage import StorePaths, write_text
from tasks.charts import Line, line_chart, ticks
from tasks.gallery import make_gallery
from tasks.pictures import GAMMA, colour_stops
from tasks.quality_summary import CONTROL
from tasks.report_numbers import METRIC_COLUMNS, Cell, Numbers, Row, number
from tasks.report_quality import quality_notes, quality_tables

SERIES_COLOURS = 8
"""Colours that the style sheet has for SR models."""

_SHA256 = re.compile("[0-9a-f]{64}")


@dataclass(frozen=True, slots=True)
class Answer:
    """What one classifier says about the run's question, in macro AP on the shown split, means over seeds."""

    classifier: str
    best: str
    """SR model with the highest macro AP."""
    value: str
    n: int
    """Patches."""
    chance: str
    """Macro AP of random scores."""
    differences: Sequence[tuple[str, str]]
    """"none" and "bicubic", as far as they were run and are not the best, and the best's lead in points."""


@dataclass(frozen=True, slots=True)
class Bar:
    """One line of the interval chart; places in % of the axis."""

    row: Row
    cell: Cell
    at: float
    left: float | None
    width: float | None


@dataclass(frozen=True, slots=True)
class Intervals:
    """The interval chart of one classifier."""

    classifier: str
    bars: Sequence[Bar]
    axis: Sequence[tuple[float, str]]
    """Place in %, and text, of each tick."""


@dataclass(frozen=True, slots=True)
class Panel:
    """The training curves of one network."""

    title: str
    sr: Sequence[str]
    quality: Markup | None
    """Validation macro AP; None where there is none."""
    loss: Markup


def write_report(paths: StorePaths) -> None:
    """Write `report/index.html` from the tables of the last run.

    Raises:
        StoreError: The store holds no finished run, or cannot be written.
    """
    write_text(paths.report, render(Numbers(paths)))


def render(numbers: Numbers) -> str:
    """Return the page."""
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"number": number, "duration": duration, "moment": moment, "grouped": grouped}
    run = numbers.run
    classifiers = list(dict.fromkeys(row.classifier for row in numbers.metrics))
    branches = list(run.sr) or list(dict.fromkeys(row.sr for row in numbers.metrics))
    return environment.get_template("report_template.html.j2").render(
        run=run,
        numbers=numbers,
        branches=branches,
        colour=lambda sr: _colour(branches, sr),
        class_colours={c.name: c.colour for c in CLASSES},
        control=CONTROL,
        answers=answers(numbers),
        networks=[sr for sr in branches if sr not in {"none", CONTROL}],
        seeds=sorted({row.seed for row in numbers.metrics}),
        intervals=[intervals(numbers, classifier) for classifier in classifiers],
        metric_columns=METRIC_COLUMNS,
        per_class=[(classifier, numbers.per_label("f2", classifier)) for classifier in classifiers],
        quality=quality_tables(numbers.quality),
        quality_notes=quality_notes(numbers.quality),
        panels=panels(numbers, branches),
        gallery=make_gallery(numbers),
        gamma=GAMMA,
        stops=colour_stops(),
        configs=[(config, stage, _words(values)) for config, stage, values in numbers.run_configs],
    )


def answers(numbers: Numbers) -> list[Answer]:
    """Return an answer for each classifier that has a macro AP."""
    found = []
    for classifier, members in groupby(numbers.metrics, lambda row: row.classifier):
        values: dict[str, list[float]] = {}
        rows = [row for row in members if _value(row, "ap_macro") is not None]
        for row in rows:
            values.setdefault(row.sr, []).append(_value(row, "ap_macro") or 0.0)
        if not rows:
            continue
        means = {sr: fmean(of_seeds) for sr, of_seeds in values.items()}
        best = max(means, key=lambda sr: means[sr])
        differences = [
            (sr, number(100 * (means[best] - means[sr]), 1)) for sr in ("none", CONTROL) if sr in means and sr != best
        ]
        chance = number(_value(rows[0], "prevalence_macro"), 3)
        found.append(Answer(classifier, best, number(means[best], 3), rows[0].n, chance, differences))
    return found


def intervals(numbers: Numbers, classifier: str) -> Intervals:
    """Return the interval chart of macro AP; all classifiers share its axis."""
    values = [
        value
        for row in numbers.metrics
        if (cell := row.cells.get("ap_macro")) is not None
        for value in (cell.value, cell.low, cell.high)
        if value is not None
    ]
    if not values:
        return Intervals(classifier, [], [])
    axis = ticks(min(values), max(values), 6)
    low, span = axis[0], axis[-1] - axis[0]

    def place(value: float) -> float:
        return 100 * (value - low) / span

    bars = []
    for row in numbers.metrics:
        cell = row.cells.get("ap_macro")
        if row.classifier != classifier or cell is None or cell.value is None:
            continue
        known = cell.low is not None and cell.high is not None
        left = place(cell.low) if known and cell.low is not None else None
        width = place(cell.high) - left if left is not None and cell.high is not None else None
        bars.append(Bar(row, cell, place(cell.value), left, width))
    return Intervals(classifier, bars, [(place(tick), f"{tick:g}") for tick in axis])


def panels(numbers: Numbers, branches: Sequence[str]) -> list[Panel]:
    """Return the training curves, a panel for each classifier and what was fitted."""
    found = []
    rows = sorted(numbers.training, key=lambda row: row["fitted"])
    for (fitted, classifier), members in groupby(rows, lambda row: (row["fitted"], row["classifier"])):
        quality: list[Line] = []
        loss: list[Line] = []
        shown = []
        for (sr, seed), epochs in groupby(members, lambda row: (row["sr"], row["seed"])):
            of_seed = list(epochs)
            shown.append(sr)
            colour, title = _colour(branches, sr), f"{sr}, seed {seed}"
            best = next((row for row in of_seed if row["best"]), None)
            points = [(row["epoch"], row["validation_ap_macro"]) for row in of_seed]
            known = [(x, y) for x, y in points if y is not None]
            if known:
                mark = None
                if best is not None and best["validation_ap_macro"] is not None:
                    mark = (best["epoch"], best["validation_ap_macro"])
                quality.append(Line(title, colour, known, marked=mark))
            train = [(row["epoch"], row["train_loss"]) for row in of_seed]
            validation = [(row["epoch"], row["validation_loss"]) for row in of_seed]
            mark = None if best is None else (best["epoch"], best["validation_loss"])
            loss.append(Line(f"{title}, training", colour, train, dashed=True))
            loss.append(Line(f"{title}, validation", colour, validation, marked=mark))
        name = {
            "network": f"{classifier}, the whole network",
            "backbone": f"{classifier}, the backbone that every branch shares",
            "head": f"{classifier}, the head on a frozen backbone",
        }.get(fitted, f"{classifier}, {fitted}")
        found.append(
            Panel(
                name,
                list(dict.fromkeys(shown)),
                line_chart(f"Validation macro AP per epoch: {name}", quality, "epoch") if quality else None,
                line_chart(f"Training and validation loss per epoch: {name}", loss, "epoch"),
            )
        )
    return found


def duration(seconds: float) -> str:
    """Return seconds in words: 4.2 s, 3 min 20 s, 2 h 5 min."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest} s" if rest else f"{minutes} min"
    hours, minutes = divmod(minutes, 60)
    return f"{grouped(hours)} h {minutes} min" if minutes else f"{grouped(hours)} h"


def moment(when: datetime) -> str:
    """Return a time as 21 November 2026, 02:06 UTC."""
    return f"{when.day} {when:%B %Y, %H:%M} UTC"


def grouped(count: int) -> str:
    """Return an integer with thin spaces between thousands."""
    return f"{count:,}".replace(",", "\u202f")


def _value(row: Row, metric: str) -> float | None:
    cell = row.cells.get(metric)
    return None if cell is None else cell.value


def _colour(branches: Sequence[str], sr: str) -> int:
    return (branches.index(sr) if sr in branches else len(branches)) % SERIES_COLOURS


def _words(values: Mapping[str, Json]) -> list[tuple[str, str]]:
    """Return what a config stands for as names and short texts; the label order is told by its length."""
    words = []
    for key, value in values.items():
        if key == "labels" and isinstance(value, list):
            words.append((key, f"{len(value)} in the order of tables/classes"))
        elif key != "stage" and value is not None:
            words.append((key.replace("_", " "), _short(value)))
    return words


def _short(value: Json) -> str:
    """Return a value as text without brackets; digests by their first 12 digits."""
    if isinstance(value, Mapping):
        return ", ".join(f"{key} {_short(item)}" for key, item in value.items() if item is not None)
    if isinstance(value, list):
        return ", ".join(map(_short, value))
    if isinstance(value, str):
        return f"{value[:12]}…" if _SHA256.fullmatch(value) else value
    return json.dumps(value)
