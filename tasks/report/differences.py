"""The report's tables of differences to bicubic: table 1, F2 of each label, and macro AP by country and season."""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

from infra.bigearthnet.seasons import Season
from infra.tables import PAPER_METRICS
from sr_models.registry import CEILING
from tasks.quality_summary import CONTROL
from tasks.report.cells import Column, number, signed
from tasks.report.means import Difference, Subject
from tasks.report.numbers import METRIC_COLUMNS, Numbers

SEASONS = get_args(Season)
"""Seasons in their order."""

RARE = 10
"""Patches below which a single one moves a score a lot."""

MINUS_COLUMNS = tuple(column for column in METRIC_COLUMNS if column.name in {*PAPER_METRICS, "f2_macro", "ap_macro"})
"""Columns of table 1's differences: the paper's, and the two that the answers and table 2 are about."""

_MACRO = "Macro mean"

type _Rows = list[tuple[str, int, dict[str, Difference]]]
"""Name, patches and differences by SR model of each line."""

type Toward = Literal["better", "worse", ""]


@dataclass(frozen=True, slots=True)
class MinusCell:
    """A difference to bicubic."""

    value: float
    text: str
    interval: str
    """Of 95 %; empty where there is none."""
    significant: bool | None
    """None: nothing is claimed."""
    toward: Toward
    """Whether its sign says better or worse."""
    share: int
    """How far it is towards the colour scale's end, 0 to 100."""


@dataclass(frozen=True, slots=True)
class MinusRow:
    """A line of a heat map."""

    name: str
    n: int
    """Patches that it is of."""
    cells: Mapping[str, MinusCell]
    """By SR model."""


@dataclass(frozen=True, slots=True)
class HeatMap:
    """The differences of one classifier."""

    classifier: str
    branches: Sequence[str]
    """SR models, bicubic aside."""
    groups: Sequence[Sequence[MinusRow]]
    """Lines that belong together."""

    @property
    def bare(self) -> bool:
        """Whether a difference has no interval."""
        return any(not cell.interval for rows in self.groups for row in rows for cell in row.cells.values())


@dataclass(frozen=True, slots=True)
class HeatMaps:
    """Heat maps that share a colour scale."""

    maps: Sequence[HeatMap]
    limit: str
    """End of the scale."""


@dataclass(frozen=True, slots=True)
class MinusLine:
    """A line of table 1's differences."""

    sr: str
    classifier: str
    n_seeds: int
    n: int
    cells: Mapping[str, MinusCell]
    """By column."""

    @property
    def bare(self) -> bool:
        """Whether a difference has no interval."""
        return any(not cell.interval for cell in self.cells.values())


def table_1_minus(numbers: Numbers) -> list[MinusLine]:
    """Return the metrics of every classifier and SR model minus bicubic's."""
    found = numbers.differences(CONTROL)
    lines = []
    for classifier in numbers.classifiers:
        for sr in numbers.branches(classifier):
            of_branch = found.get(Subject(sr, classifier, numbers.split or ""), {})
            cells = {c.name: cell for c in MINUS_COLUMNS if (cell := _cell(of_branch.get(c.name), c, math.inf))}
            if cells:
                first = of_branch[next(iter(cells))]
                lines.append(MinusLine(sr, classifier, first.n_seeds, first.n, cells))
    return lines


def label_heat_maps(numbers: Numbers) -> HeatMaps | None:
    """Return F2 of every label minus bicubic's; None where there is no bicubic."""
    found = numbers.differences(CONTROL)
    split = numbers.split or ""
    tables: list[tuple[str, list[_Rows]]] = []
    for classifier in numbers.classifiers:
        labels = []
        for row in numbers.label_rows("f2", classifier):
            of_label = {
                sr: found[subject]["f2"]
                for sr in numbers.branches(classifier)
                if row.support and "f2" in found.get(subject := Subject(sr, classifier, split, row.label), {})
            }
            labels.append((row.label, row.support, of_label))
        macro = _over_branches(found, numbers, classifier, "f2_macro")
        n = max((difference.n for difference in macro.values()), default=0)
        tables.append((classifier, [labels, [(_MACRO, n, macro)]]))
    return _heat_maps(tables, numbers, Column("f2", "F2", ""))


def place_heat_maps(numbers: Numbers) -> HeatMaps | None:
    """Return macro AP by country and by season minus bicubic's; None where the tables have none."""
    found = numbers.differences(CONTROL)
    tables = []
    for classifier in numbers.classifiers:
        groups = []
        for of in ("country", "season"):
            names = {getattr(subject, of) for subject in found if subject.classifier == classifier} - {None}
            places = sorted(names, key=lambda name: (SEASONS.index(name) if name in SEASONS else len(SEASONS), name))
            rows = []
            for place in places:
                of_place = _over_branches(found, numbers, classifier, "ap_macro", **{of: place})
                if of_place:
                    rows.append((place, max(difference.n for difference in of_place.values()), of_place))
            if rows:
                groups.append(rows)
        tables.append((classifier, groups))
    return _heat_maps(tables, numbers, Column("ap_macro", "AP", ""))


def _over_branches(
    found: Mapping[Subject, Mapping[str, Difference]],
    numbers: Numbers,
    classifier: str,
    metric: str,
    country: str | None = None,
    season: str | None = None,
) -> dict[str, Difference]:
    subjects = {
        sr: Subject(sr, classifier, numbers.split or "", None, country, season) for sr in numbers.branches(classifier)
    }
    return {sr: found[subject][metric] for sr, subject in subjects.items() if metric in found.get(subject, {})}


def _heat_maps(tables: Sequence[tuple[str, Sequence[_Rows]]], numbers: Numbers, column: Column) -> HeatMaps | None:
    limit = _limit(tables)
    if limit is None:
        return None
    maps = []
    for classifier, groups in tables:
        made = [
            [
                MinusRow(name, n, {sr: cell for sr, d in of_row.items() if (cell := _cell(d, column, limit))})
                for name, n, of_row in rows
            ]
            for rows in groups
        ]
        if any(row.cells for rows in made for row in rows):
            branches = [sr for sr in numbers.branches(classifier) if sr != CONTROL]
            maps.append(HeatMap(classifier, branches, made))
    return HeatMaps(maps, number(limit, 2))


def _limit(tables: Iterable[tuple[str, Sequence[_Rows]]]) -> float | None:
    """Return the end of the colours: the largest difference of an SR model on enough patches, rounded up to 0.01."""
    sizes = [
        (n >= RARE and name != _MACRO, abs(difference.value))  # a mean over rare labels leaves them all at the end
        for _, groups in tables
        for rows in groups
        for name, n, of_row in rows
        for sr, difference in of_row.items()
        if difference.value is not None and sr != CEILING  # the ceiling is far off, and would leave the rest pale
    ]
    if not sizes:
        return None
    enough = [size for often, size in sizes if often] or [size for _, size in sizes]
    return max(math.ceil(100 * max(enough) - 1e-9), 1) / 100


def _cell(difference: Difference | None, column: Column, limit: float) -> MinusCell | None:
    if difference is None or difference.value is None:
        return None
    value, low, high = difference.value, difference.low, difference.high
    toward: Toward = ""
    if column.better and value:
        toward = "better" if (value > 0) == (column.better > 0) else "worse"
    return MinusCell(
        value,
        signed(value, column.decimals),
        "" if low is None or high is None else f"{signed(low, column.decimals)} to {signed(high, column.decimals)}",
        difference.significant,
        toward,
        round(100 * min(1.0, abs(value) / limit)),
    )
