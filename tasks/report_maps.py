"""What the report says of activation maps: which methods point at the land cover, and what super-resolution changes."""

import json
import math
from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from classifiers.cam.explain import METHODS
from infra.storage import StorePaths
from infra.tables import EXPLANATION_METRICS, read_table
from tasks.explanation_metrics import EXCESS, FLOOR, UNIFORM, ZERO
from tasks.quality_summary import CONTROL
from tasks.report_cells import Cell, Column, Row, number, signed, with_best
from tasks.report_map_tables import (
    AREA,
    COLUMNS,
    FLOORS,
    QUARTILE_METRIC,
    AreaLine,
    ClassifierMaps,
    MapCell,
    MapLine,
    MapMinus,
    Maps,
    MapTable,
)
from tasks.report_means import of_configs
from tasks.report_order import branch_order, shown_split

ONE_MAP = (("cam", "grad_cam", "hires_cam", "x_grad_cam"), ("grad_cam_pp", "smooth_grad_cam_pp"))
"""Methods that are one map, but for its unit, where a linear head sees pooled features."""

_ALIKE = ("judd_auc", "correlation", "coverage", "entropy")  # no ties, which rounding would turn
_ROUNDING = 1e-3


@dataclass(frozen=True, slots=True)
class _Key:
    """Whose maps numbers are of."""

    sr: str
    classifier: str
    method: str


type _Row = Mapping[str, Any]
type _ByMetric = dict[str, _Row]
type _Means = Mapping[_Key, _ByMetric]


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
    there = set(rows["split"].to_pylist())
    shown = split if split in there else shown_split(there)
    if shown is None:
        return None
    found = rows.filter(pc.and_(pc.equal(rows["split"], shown), pc.is_null(rows["label"])))
    means = _by_key(found, lambda row: row["reference"] is None and row["area_quartile"] is None)
    minus = _by_key(found, lambda row: row["reference"] == CONTROL)
    uniform = _uniform(found)
    sampled = _sampled_configs(paths)
    names = sorted({key.classifier for key in means}, key=lambda name: branch_order(name, "", classifiers, ())[:2])
    made = []
    for name in names:
        branches = sorted(
            {key.sr for key in means if key.classifier == name}, key=lambda s: branch_order(name, s, classifiers, sr)
        )
        made.append(
            ClassifierMaps(
                name,
                _any_row(means, name)["seed"],
                [c for c in COLUMNS if any(c.name in m for key, m in means.items() if key.classifier == name)],
                [table for s in branches for table in _tables(means, uniform, s, name, methods, sampled)],
                _minus(means, minus, branches, name, methods),
                _areas(found, means, branches, name, methods),
            )
        )
    located = any("judd_auc" in metrics for metrics in means.values())
    return Maps(shown, located, made, _quarantined(paths, configs, sr, classifiers))


def _by_key(rows: pa.Table, wanted: Callable[[_Row], bool]) -> _Means:
    means: dict[_Key, _ByMetric] = defaultdict(dict)
    for row in rows.to_pylist():
        if row["method"] != UNIFORM and row["value"] is not None and wanted(row):
            means[_Key(row["sr"], row["classifier"], row["method"])][row["metric"]] = row
    return dict(means)


def _uniform(rows: pa.Table) -> Mapping[str, _ByMetric]:
    """Return what a uniform map scores on the maps of each config."""
    found: dict[str, _ByMetric] = defaultdict(dict)
    for row in rows.filter(pc.equal(rows["method"], UNIFORM)).to_pylist():
        if row["area_quartile"] is None and row["value"] is not None:
            found[row["config"]][row["metric"]] = row
    return dict(found)


def _any_row(means: _Means, classifier: str) -> _Row:
    return next(next(iter(m.values())) for key, m in means.items() if key.classifier == classifier)


def _sampled_configs(paths: StorePaths) -> set[str]:
    """Return the configs of explanations that had a sample."""
    rows = read_table(paths.table("configs")).to_pylist()
    explanations = [row for row in rows if row["stage"] == "explanations"]
    return {row["config"] for row in explanations if json.loads(row["json"]).get("sample") is not None}


def _tables(
    means: _Means,
    uniform: Mapping[str, _ByMetric],
    sr: str,
    classifier: str,
    methods: Sequence[str],
    sampled: Collection[str],
) -> Iterable[MapTable]:
    """Yield the methods that saw every patch, then those that saw the sample alone."""
    of_branch = {key.method: m for key, m in means.items() if (key.sr, key.classifier) == (sr, classifier)}
    of_all = max((_count(m) for name, m in of_branch.items() if _forwards(name) == "none"), default=math.inf)

    def saw_the_sample(method: str) -> bool:
        costly = _forwards(method) != "none" and _config(of_branch[method]) in sampled
        return costly and _count(of_branch[method]) < of_all

    ranked = [method for method in _ordered(of_branch, methods) if method not in FLOORS]
    for of_sample in (False, True):
        chosen = [method for method in ranked if saw_the_sample(method) == of_sample]
        if not chosen and (of_sample or ranked):
            continue
        floors = []
        of = chosen or [FLOOR]  # a run of random maps alone
        if _config(of_branch[of[0]]) in uniform:
            floors.append(_line((UNIFORM,), uniform[_config(of_branch[of[0]])], number))
        if FLOOR in of_branch:
            floors.append(_line((FLOOR,), of_branch[FLOOR], number))
        yield MapTable(sr, of_sample, _ranked(_merged(of_branch, chosen)), floors)


def _ordered(of_branch: Collection[str], methods: Sequence[str]) -> list[str]:
    """Return methods in the order of RUN.yaml, others behind."""
    return sorted(of_branch, key=lambda name: (methods.index(name) if name in methods else len(methods), name))


def _forwards(method: str) -> str:
    """Return which passes a method needs; one that is known no more is taken for a cheap one."""
    return METHODS[method].forwards if method in METHODS else "none"


def _count(metrics: Mapping[str, _Row]) -> int:
    return max(int(row["n"]) for row in metrics.values())


def _config(metrics: Mapping[str, _Row]) -> str:
    return str(next(iter(metrics.values()))["config"])


def _merged(of_branch: Mapping[str, _ByMetric], chosen: Sequence[str]) -> list[MapLine]:
    """Return a line for each method, or for several that are one map by their formulas and by their numbers."""
    return [_line(group, of_branch[group[0]], number) for group in _groups(of_branch, chosen)]


def _groups(of_branch: Mapping[str, _ByMetric], chosen: Sequence[str]) -> list[tuple[str, ...]]:
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


def _alike(first: _ByMetric, second: _ByMetric) -> bool:
    common = [name for name in _ALIKE if name in first and name in second]
    return bool(common) and all(
        math.isclose(first[name]["value"], second[name]["value"], abs_tol=_ROUNDING) for name in common
    )


def _line(group: tuple[str, ...], metrics: _ByMetric, text: Callable[[float | None, int], str]) -> MapLine:
    cells = {c.name: _cell(metrics[c.name], c, text) for c in COLUMNS if c.name in metrics}
    of_zeros = metrics.get(ZERO)
    n, zeros = (None, None) if of_zeros is None else (of_zeros["n"], round(of_zeros["value"] * of_zeros["n"]))
    return MapLine(group, n, zeros, metrics["iou_75"]["n"] if "iou_75" in metrics else 0, cells)


def _cell(row: _Row, column: Column, text: Callable[[float | None, int], str]) -> MapCell:
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


def _minus(
    means: _Means, minus: _Means, branches: Sequence[str], classifier: str, methods: Sequence[str]
) -> list[MapMinus]:
    lines = []
    for sr in branches:
        if sr in {"none", CONTROL}:  # maps of none have another size
            continue
        of_branch = {key.method: m for key, m in minus.items() if (key.sr, key.classifier) == (sr, classifier)}
        own = {method: means.get(_Key(sr, classifier, method), {}) for method in of_branch}
        chosen = [method for method in _ordered(of_branch, methods) if method not in FLOORS]
        groups = _groups(own, chosen)
        lines += [MapMinus(sr, _line(group, of_branch[group[0]], signed)) for group in groups]
    return [line for line in lines if line.line.cells]


def _areas(
    rows: pa.Table, means: _Means, branches: Sequence[str], classifier: str, methods: Sequence[str]
) -> list[AreaLine]:
    """Return IoU by quarter of area of the first method, and of the floors beside it."""
    first = next((m for m in _ordered({k.method for k in means}, methods) if m not in FLOORS), FLOOR)
    of_area = rows.filter(pc.and_(pc.is_valid(rows["area_quartile"]), pc.is_null(rows["reference"])))
    found = {
        (row["sr"], row["config"], row["method"], row["metric"], row["area_quartile"]): row
        for row in of_area.filter(pc.equal(of_area["classifier"], classifier)).to_pylist()
        if row["value"] is not None
    }
    quarters = sorted({key[-1] for key in found})
    lines = []
    for sr in branches:
        of_method, of_random = (means.get(_Key(sr, classifier, method)) for method in (first, FLOOR))
        if of_method is None:
            continue
        config = _config(of_method)
        wanted = [(first, config, first, QUARTILE_METRIC), (UNIFORM, config, UNIFORM, QUARTILE_METRIC)]
        if of_random is not None and first != FLOOR:
            wanted.append((FLOOR, _config(of_random), FLOOR, QUARTILE_METRIC))
        wanted.append((AREA, config, UNIFORM, "similarity"))  # a uniform map's similarity is the area
        column = Column(QUARTILE_METRIC, "", "")
        for shown, of_config, method, metric in wanted:
            of_quarters = [found.get((sr, of_config, method, metric, quarter)) for quarter in quarters]
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
