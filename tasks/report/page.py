"""The report: one self-contained page made from the tables and the Zarr stores."""

import base64
import hashlib
import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from infra.fingerprint import Json
from infra.storage import StorePaths, write_text
from sr_models.registry import CEILING
from tasks.charts import colour_of, ticks
from tasks.gallery import make_gallery
from tasks.pictures import GAMMA, colour_stops, label_colours
from tasks.quality_summary import CONTROL
from tasks.report.answer import METRIC, Answer, answers
from tasks.report.cells import Cell, Row, number
from tasks.report.costs import PER_PATCHES, device_hours
from tasks.report.curves import calibration_panels, training_panels
from tasks.report.differences import MINUS_COLUMNS, RARE, label_heat_maps, place_heat_maps, table_1_minus
from tasks.report.hallucination import MADE_UP_FROM, MAE_LIMIT, model_faults
from tasks.report.map_tables import METHOD_NAMES
from tasks.report.maps import maps_of_run
from tasks.report.means import CLAIMS_NEED_SEEDS
from tasks.report.numbers import METRIC_COLUMNS, Numbers
from tasks.report.quality import quality_notes, quality_tables
from tasks.report.reliability import reliability_of_run
from tasks.report.strips import make_strips

_FOLDER = Path(__file__).parent
_SHA256 = re.compile("[0-9a-f]{64}")


@dataclass(frozen=True, slots=True)
class Spread:
    """One seed's value and interval; places in % of the axis."""

    seed: int
    at: float
    left: float | None
    width: float | None
    title: str
    """Value and interval."""


@dataclass(frozen=True, slots=True)
class Bar:
    """One line of the interval chart: an SR model's mean over seeds, and its seeds."""

    row: Row
    at: float
    """Place of the mean, % of the axis."""
    spreads: Sequence[Spread]


@dataclass(frozen=True, slots=True)
class Intervals:
    """The interval chart of one classifier."""

    classifier: str
    bars: Sequence[Bar]
    axis: Sequence[tuple[float, str]]
    """Place in %, and text, of each tick."""

    @property
    def known(self) -> bool:
        """Whether any interval is."""
        return any(spread.left is not None for bar in self.bars for spread in bar.spreads)


@dataclass(frozen=True, slots=True)
class ClaimAxis:
    """The axis of the answers' differences, points of macro AP; it shows 0."""

    low: float
    high: float
    ticks: Sequence[tuple[float, str]]
    """Place in %, and text, of each tick."""

    def place(self, value: float) -> float:
        """Return a difference's place, %."""
        return 100 * (value - self.low) / (self.high - self.low)


def write_report(paths: StorePaths, out: Path | None = None) -> Path:
    """Write the page from what the store holds, and return where it is.

    Args:
        paths: The store, a folder or on object storage; nothing in it but the page is written.
        out: The page, any name; None: `report/index.html` of the store.

    Raises:
        StoreError: The store holds no finished run, or the page cannot be written.
    """
    target = paths.report if out is None else out
    write_text(target, render(Numbers(paths)))
    return target


def render(numbers: Numbers) -> str:
    """Return the page."""
    environment = Environment(
        loader=FileSystemLoader(_FOLDER),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"number": number, "duration": duration, "moment": moment, "grouped": grouped}
    run = numbers.run
    there = dict.fromkeys([*run.sr, *(row.sr for row in numbers.metrics)])
    branches = sorted(there, key=lambda sr: sr == CEILING)
    found = answers(numbers)
    script = (_FOLDER / "page.js").read_text(encoding="utf-8")
    return environment.get_template("page.html.j2").render(
        run=run,
        numbers=numbers,
        script=Markup(script),  # noqa: S704  # our own file
        script_hash=f"sha256-{base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()}",
        branches=branches,
        colour=lambda sr: colour_of(branches, sr),
        class_colours=label_colours(numbers.labels),
        control=CONTROL,
        ceiling=CEILING,
        answers=found,
        claim_axis=claim_axis(found),
        networks=[sr for sr in branches if sr not in {"none", CONTROL, CEILING}],
        most_seeds=max((len(row.seeds) for row in numbers.metrics), default=0),
        claims_need_seeds=CLAIMS_NEED_SEEDS,
        intervals=[intervals(numbers, classifier) for classifier in numbers.classifiers],
        metric_columns=METRIC_COLUMNS,
        minus_columns=MINUS_COLUMNS,
        minus_lines=table_1_minus(numbers),
        per_class=[(classifier, numbers.label_rows("f2", classifier)) for classifier in numbers.classifiers],
        label_maps=label_heat_maps(numbers),
        place_maps=place_heat_maps(numbers),
        rare=RARE,
        quality=quality_tables(numbers.quality, numbers.degrade),
        quality_notes=quality_notes(numbers.quality),
        model_faults=model_faults(numbers.quality_rows, numbers.quality),
        mae_limit=MAE_LIMIT,
        made_up_from=MADE_UP_FROM,
        strips=make_strips(numbers),
        hours=device_hours(run.stages, run.patches),
        per_patches=PER_PATCHES,
        panels=training_panels(numbers, branches),
        calibration=calibration_panels(numbers, branches),
        gallery=make_gallery(numbers),
        maps=maps_of_run(
            numbers.paths,
            run.configs,
            run.sr,
            run.classifiers,
            run.settings.get("explain", {}).get("methods", ()),
            numbers.split,
        ),
        reliability=reliability_of_run(numbers),
        method_names=METHOD_NAMES,
        gamma=GAMMA,
        stops=colour_stops(),
        configs=[(config, stage, _words(values)) for config, stage, values in numbers.run_configs],
    )


def claim_axis(found: Sequence[Answer]) -> ClaimAxis:
    """Return the one axis of all answers' claims."""
    values = [v for answer in found for c in answer.claims for v in (c.value, c.low, c.high) if v is not None]
    places = ticks(min([0.0, *values]), max([0.0, *values]), 5)
    low, high = places[0], places[-1]
    return ClaimAxis(
        low, high, [(100 * (tick - low) / (high - low), f"{tick:zg}".replace("-", "\N{MINUS SIGN}")) for tick in places]
    )


def intervals(numbers: Numbers, classifier: str) -> Intervals:
    """Return the interval chart of macro AP; all classifiers share its axis."""
    values = [
        value
        for row in numbers.seed_metrics
        if (cell := row.cells.get(METRIC)) is not None
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
        mean = row.cells.get(METRIC)
        if row.classifier != classifier or mean is None or mean.value is None:
            continue
        spreads = [
            _spread(of_seed.seeds[0], cell, place)
            for of_seed in numbers.seed_metrics
            if (of_seed.sr, of_seed.classifier) == (row.sr, classifier)
            and (cell := of_seed.cells.get(METRIC)) is not None
        ]
        bars.append(Bar(row, place(mean.value), [spread for spread in spreads if spread is not None]))
    return Intervals(classifier, bars, [(place(tick), f"{tick:g}") for tick in axis])


def _spread(seed: int, cell: Cell, place: Callable[[float], float]) -> Spread | None:
    if cell.value is None:
        return None
    if cell.low is None or cell.high is None:
        return Spread(seed, place(cell.value), None, None, f"seed {seed}: {cell.text}")
    left, width = place(cell.low), place(cell.high) - place(cell.low)
    title = f"seed {seed}: {cell.text}, {number(cell.low, 3)} to {number(cell.high, 3)}"
    return Spread(seed, place(cell.value), left, width, title)


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
