"""What the report says of activation maps: which methods point at the land cover, and what super-resolution changes."""

import math
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import replace

import pyarrow.compute as pc

from classifiers.cam.methods import FLOOR
from infra.storage import StorePaths
from infra.tables import EXPLANATION_METRICS, read_table
from tasks.explanation_metrics import EXCESS, UNIFORM, ZERO
from tasks.quality_summary import CONTROL
from tasks.report.cells import Cell, Column, Row, number, signed, with_best
from tasks.report.map_numbers import ByMetric, MapNumbers, MetricRow, config_of, map_numbers
from tasks.report.map_tables import (
    AREA,
    COLUMNS,
    FLOORS,
    MINUS_COLUMNS,
    QUARTILE_METRIC,
    AreaLine,
    ClassifierMaps,
    MapCell,
    MapLine,
    MapMinus,
    MapMinusTable,
    Maps,
    MapTable,
)
from tasks.report.means import of_configs
from tasks.report.order import branch_order, shown_split

ONE_MAP = (("cam", "grad_cam", "hires_cam", "x_grad_cam"), ("grad_cam_pp", "smooth_grad_cam_pp"))
"""Methods that are one map, but for its unit, where a linear head sees pooled features."""

_ALIKE = ("judd_auc", "correlation", "coverage", "entropy")  # no ties, which rounding would turn
_ROUNDING = 1e-3


def maps_of_run(
    paths: StorePaths,
    configs: Collection[str],
    sr: Sequence[str],
    classifiers: Sequence[str],
    methods: Sequence[str],
    split: str | None = None,
) -> Maps | None:
    """Return what tables/explanation_metrics says of a run's maps; None where it has no rows of the run.

    Args:
        paths: The store.
        configs: Configs of the run; others do no harm.
        sr: SR models in the order of RUN.yaml.
        classifiers: Classifiers in the order of RUN.yaml.
        methods: Methods in the order of RUN.yaml; the first one is shown by area.
        split: The split to show; None, or one without maps: as metrics choose it.
    """
    rows = of_configs(read_table(paths.table("explanation_metrics")), EXPLANATION_METRICS, configs)
    rows = rows.filter(pc.is_valid(rows["subset"]))  # an earlier version did not say which patches means are over
    there = set(rows["split"].to_pylist())
    shown = split if split in there else shown_split(there)
    if shown is None:
        return None
    rows = rows.filter(pc.and_(pc.equal(rows["split"], shown), pc.is_null(rows["label"])))
    names = sorted(
        rows["classifier"].unique().to_pylist(), key=lambda name: branch_order(name, "", classifiers, ())[:2]
    )
    made = []
    for name in names:
        of_one = rows.filter(pc.equal(rows["classifier"], name))
        branches = sorted(of_one["sr"].unique().to_pylist(), key=lambda s: branch_order(name, s, classifiers, sr))
        made.append(_of_classifier(name, of_one["seed"][0].as_py(), map_numbers(of_one), branches, methods))
    located = any(column.name == "judd_auc" for of_one in made for table in of_one.tables for column in table.columns)
    return Maps(shown, located, made, _quarantined(paths, configs, sr, classifiers))


def _of_classifier(
    name: str, seed: int, numbers: Sequence[MapNumbers], branches: Sequence[str], methods: Sequence[str]
) -> ClassifierMaps:
    minus = [_minus(of_subset, branches, methods) for of_subset in numbers]
    return ClassifierMaps(
        name,
        seed,
        [_table(n, sr, methods) for sr in branches for n in numbers if n.of_branch(sr)],
        [table for table in minus if table.lines],
        _areas(numbers, branches, methods),
    )


def _table(numbers: MapNumbers, sr: str, methods: Sequence[str]) -> MapTable:
    """Return all methods that saw these patches, and the floors."""
    of_branch = numbers.of_branch(sr)
    ranked = [method for method in _ordered(of_branch, methods) if method not in FLOORS]
    floors = []
    if uniform := numbers.uniform_of(of_branch.values()):
        floors.append(_line((UNIFORM,), uniform, number))
    if FLOOR in of_branch:
        floors.append(_line((FLOOR,), of_branch[FLOOR], number))
    columns = [column for column in COLUMNS if any(column.name in metrics for metrics in numbers.means.values())]
    return MapTable(sr, numbers.of_sample, columns, _ranked(_merged(of_branch, ranked)), floors)


def _ordered(of_branch: Collection[str], methods: Sequence[str]) -> list[str]:
    """Return methods in the order of RUN.yaml, others behind."""
    return sorted(of_branch, key=lambda name: (methods.index(name) if name in methods else len(methods), name))


def _merged(of_branch: Mapping[str, ByMetric], chosen: Sequence[str]) -> list[MapLine]:
    """Return a line for each method, or for several that are one map by their formulas and by their numbers."""
    return [_line(group, of_branch[group[0]], number) for group in _groups(of_branch, chosen)]


def _groups(of_branch: Mapping[str, ByMetric], chosen: Sequence[str]) -> list[tuple[str, ...]]:
    groups: list[tuple[str, ...]] = []
    for method in chosen:
        family = next((names for names in ONE_MAP if method in names), ())
        at = next(
            (i for i, g in enumerate(groups) if g[0] in family and _alike(of_branch[g[0]], of_branch[method])), None
        )
        if at is None:
            groups.append((method,))
        else:
            groups[at] += (method,)
    return groups


def _alike(first: ByMetric, second: ByMetric) -> bool:
    common = [name for name in _ALIKE if name in first and name in second]
    return bool(common) and all(
        math.isclose(first[name]["value"], second[name]["value"], abs_tol=_ROUNDING) for name in common
    )


def _line(group: tuple[str, ...], metrics: ByMetric, text: Callable[[float | None, int], str]) -> MapLine:
    cells = {c.name: _cell(metrics[c.name], c, text) for c in COLUMNS if c.name in metrics}
    of_zeros = metrics.get(ZERO)
    n, zeros = (None, None) if of_zeros is None else (of_zeros["n"], round(of_zeros["value"] * of_zeros["n"]))
    return MapLine(group, n, zeros, metrics["iou_75"]["n"] if "iou_75" in metrics else 0, cells)


def _cell(row: MetricRow, column: Column, text: Callable[[float | None, int], str]) -> MapCell:
    value, low, high = row["value"], row["low"], row["high"]
    interval = ""
    if low is not None and high is not None and low < high:  # what a uniform map scores may be the same everywhere
        interval = f"{text(low, column.decimals)} to {text(high, column.decimals)}"
    return MapCell(Cell(value, text(value, column.decimals), low=low, high=high), interval, row["n"])


def _ranked(lines: Sequence[MapLine]) -> list[MapLine]:
    """Return lines with their ranks, the best first, and the best of every column marked."""
    rows = with_best(
        [Row("", "", (), line.n or 0, {name: c.cell for name, c in line.cells.items()}) for line in lines],
        COLUMNS,
        lambda _: "",
    )
    by_auc, by_pointing = (_places(lines, name) for name in ("judd_auc", EXCESS))
    marked = [
        replace(
            line,
            cells={name: replace(cell, cell=row.cells[name]) for name, cell in line.cells.items()},
            rank=auc,
            pointing_rank=pointing,
        )
        for line, row, auc, pointing in zip(lines, rows, by_auc, by_pointing, strict=True)
    ]
    return sorted(marked, key=lambda line: math.inf if line.rank is None else line.rank)


def _places(lines: Sequence[MapLine], name: str) -> list[int | None]:
    """Return the place of each line by a column, as it is seen: what looks alike shares a place."""
    seen = [round(line.cells[name].cell.value or 0.0, 3) if name in line.cells else None for line in lines]
    known = [value for value in seen if value is not None]
    return [None if value is None else 1 + sum(other > value for other in known) for value in seen]


def _minus(numbers: MapNumbers, branches: Sequence[str], methods: Sequence[str]) -> MapMinusTable:
    lines = []
    for sr in branches:
        if sr in {"none", CONTROL}:  # maps of none have another size
            continue
        of_branch = {key.method: metrics for key, metrics in numbers.minus.items() if key.sr == sr}
        own = numbers.of_branch(sr)
        chosen = [method for method in _ordered(of_branch, methods) if method not in FLOORS]
        lines += [MapMinus(sr, _line(group, of_branch[group[0]], signed)) for group in _groups(own, chosen)]
    lines = [line for line in lines if line.line.cells]
    columns = [column for column in MINUS_COLUMNS if any(column.name in line.line.cells for line in lines)]
    return MapMinusTable(numbers.of_sample, columns, lines)


def _areas(numbers: Sequence[MapNumbers], branches: Sequence[str], methods: Sequence[str]) -> list[AreaLine]:
    """Return IoU by quarter of area of the first method, and of the floors beside it, on all patches that it saw."""
    known = {key.method for of_subset in numbers for key in of_subset.means}
    first = next((m for m in _ordered(known, methods) if m not in FLOORS), FLOOR)
    of_first = next((n for n in numbers if any(key.method == first for key in n.means)), None)
    if of_first is None:
        return []
    quarters = sorted({quarter for *_, quarter in of_first.areas})
    lines = []
    for sr in branches:
        of_branch = of_first.of_branch(sr)
        if first not in of_branch:
            continue
        config = config_of(of_branch[first])
        wanted = [(first, config, first, QUARTILE_METRIC), (UNIFORM, config, UNIFORM, QUARTILE_METRIC)]
        if FLOOR in of_branch and first != FLOOR:
            wanted.append((FLOOR, config_of(of_branch[FLOOR]), FLOOR, QUARTILE_METRIC))
        wanted.append((AREA, config, UNIFORM, "similarity"))  # a uniform map's similarity is the area
        column = Column(QUARTILE_METRIC, "", "")
        for shown, of_config, method, metric in wanted:
            of_quarters = [of_first.areas.get((of_config, method, quarter), {}).get(metric) for quarter in quarters]
            if any(of_quarters):
                cells = [None if row is None else _cell(row, column, number) for row in of_quarters]
                lines.append(AreaLine(sr, shown, cells))
    return lines


def _quarantined(
    paths: StorePaths, configs: Collection[str], sr: Sequence[str], classifiers: Sequence[str]
) -> list[tuple[str, str, str, int]]:
    table = paths.table("quarantined_maps")
    found = []
    for folder in {file.parent for file in table.rglob("*.parquet")}:
        keys = dict(part.split("=", 1) for part in folder.relative_to(table).parts)
        count = read_table(folder).num_rows if keys["config"] in configs else 0
        if count:
            found.append((keys["sr"], keys["classifier"], keys["method"], count))
    return sorted(found, key=lambda row: (branch_order(row[1], row[0], classifiers, sr), row[2]))
