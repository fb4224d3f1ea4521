"""The numbers of the report: what the last run wrote to the tables, as rows that a page can show."""

import json
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from statistics import fmean
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from infra.bigearthnet.classes import NAMES
from infra.fingerprint import Json
from infra.storage import StorePaths
from infra.tables import SR_QUALITY, read_table
from tasks.last_run import last_run
from tasks.quality_summary import ModelQuality, summarise

SPLITS = ("test", "all", "validation", "train")
"""Splits in the order in which one is chosen to be shown."""


NULL = "\N{EN DASH}"
"""What the page shows for null."""


@dataclass(frozen=True, slots=True)
class Column:
    """One number of a table, and how it is read."""

    name: str
    """Column or metric of the tables."""
    title: str
    hint: str
    """What it means, one sentence."""
    decimals: int = 3
    better: int = 1
    """1: higher is better, -1: lower is better, 0: neither."""


METRIC_COLUMNS = (
    Column("acc", "ACC", "Sample accuracy: common labels over all labels, true or predicted"),
    Column("hl", "HL", "Hamming loss: share of wrong label decisions; lower is better", better=-1),
    Column("oe", "OE", "One-error: share of patches whose most probable label is wrong; lower is better", better=-1),
    Column("precision", "P", "Precision, mean over patches"),
    Column("recall", "R", "Recall, mean over patches"),
    Column("f1", "F1", "F1, mean over patches"),
    Column("f2_macro", "F2 macro", "F2, mean over labels; recall counts twice"),
    Column("f1_macro", "F1 macro", "F1, mean over labels"),
    Column("ap_macro", "AP macro", "Average precision, mean over labels; needs no threshold"),
    Column("ap_macro_above_prevalence", "AP above chance", "AP macro minus what random scores would reach"),
)
"""Columns of the metrics table: the six of the paper's table 1 first."""


@dataclass(frozen=True, slots=True)
class Cell:
    """A number in a table."""

    value: float | None
    text: str
    best: bool = False
    low: float | None = None
    high: float | None = None


@dataclass(frozen=True, slots=True)
class Row:
    """A line of a table: what it is about, and its numbers."""

    sr: str
    classifier: str
    seed: int
    n: int
    """Patches that the numbers are of."""
    cells: Mapping[str, Cell]
    """By column."""


@dataclass(frozen=True, slots=True)
class HiveFolder:
    """A folder of a partitioned table."""

    path: Path
    keys: Mapping[str, str]
    """The columns in its name."""


class Numbers:
    """The tables of a store, cut down to what the last run published."""

    def __init__(self, paths: StorePaths) -> None:
        """Open them.

        Raises:
            StoreError: No run has ended in the store.
        """
        self.paths = paths
        self.run = last_run(paths)

    def hive(self, table: str) -> list[HiveFolder]:
        """Return the folders of a partitioned table that belong to the run, in the order of RUN.yaml."""
        found = []
        for path in {file.parent for file in self.paths.table(table).rglob("*.parquet")}:
            parts = path.relative_to(self.paths.table(table)).parts
            keys = dict(part.split("=", 1) for part in parts)
            if keys.get("config") in self.run.configs:
                found.append(HiveFolder(path, keys))
        return sorted(found, key=lambda f: (*self.order(f.keys["sr"], f.keys["classifier"]), str(f.path)))

    def order(self, sr: str, classifier: str) -> tuple[int, int, str, str]:
        """Sort key of a classifier on a branch: as RUN.yaml lists them, others behind."""
        return _place(classifier, self.run.classifiers), _place(sr, self.run.sr), classifier, sr

    @cached_property
    def configs(self) -> Mapping[str, tuple[str, Mapping[str, Json]]]:
        """Stage and determining values of every config of the store."""
        rows = read_table(self.paths.table("configs")).to_pylist()
        return {row["config"]: (row["stage"], json.loads(row["json"])) for row in rows}

    @cached_property
    def run_configs(self) -> list[tuple[str, str, Mapping[str, Json]]]:
        """Config, stage and values of the run's configs and of those they rest on."""
        wanted = {config: self.configs[config] for config in self.run.configs if config in self.configs}
        for _, values in list(wanted.values()):
            pixels = str(values.get("pixels"))
            if pixels in self.configs:
                wanted[pixels] = self.configs[pixels]
        order = ["ingest", "super_resolve", "sr_quality", "features", "train", "explanations", "predictions"]
        rows = [(config, stage, values) for config, (stage, values) in wanted.items()]
        return sorted(rows, key=lambda row: (order.index(row[1]) if row[1] in order else len(order), row[0]))

    def pixels(self, config: str) -> str | None:
        """Return the config of the pixels that a stage's config rests on."""
        _, values = self.configs.get(config, ("", {}))
        return str(values["pixels"]) if "pixels" in values else None

    @cached_property
    def sources(self) -> tuple[str, ...]:
        """Archives that the patches came from, with their versions."""
        return tuple(sorted(set(self.patches["source_version"].to_pylist()))) if self.patches.num_rows else ()

    @cached_property
    def patches(self) -> pa.Table:
        """Columns of tables/patches, without the footprints."""
        table = read_table(self.paths.table("patches"))
        return table.drop_columns(["geometry"]) if "geometry" in table.column_names else table

    @property
    def labelled(self) -> bool:
        """Whether any patch has labels."""
        return bool(self.patches.num_rows) and self.patches["labels"].null_count < self.patches.num_rows

    @cached_property
    def split_counts(self) -> Mapping[str, int]:
        """Patches of each split."""
        if not self.patches.num_rows:
            return {}
        return {c["values"].as_py(): c["counts"].as_py() for c in pc.value_counts(self.patches["split"])}

    @cached_property
    def _metrics(self) -> list[dict[str, Any]]:
        table = self._of_run("metrics", self.run.configs)
        return table.to_pylist() if table.num_rows else []

    @cached_property
    def split(self) -> str | None:
        """The split that the metrics are shown of; None where there are none."""
        there = {row["split"] for row in self._metrics}
        return next((split for split in (*SPLITS, *sorted(there)) if split in there), None)

    @cached_property
    def metrics(self) -> list[Row]:
        """Metrics over all labels, a row for each SR model, classifier and seed."""
        chosen = [row for row in self._metrics if row["split"] == self.split and row["label"] is None]
        groups: dict[tuple[str, str, int], list[dict[str, Any]]] = defaultdict(list)
        for row in chosen:
            groups[row["sr"], row["classifier"], row["seed"]].append(row)
        rows = []
        for (sr, classifier, seed), members in groups.items():
            values = {row["metric"]: row for row in members}
            cells = {
                metric: Cell(row["value"], number(row["value"], 3), low=row["low"], high=row["high"])
                for metric, row in values.items()
            }
            rows.append(Row(sr, classifier, seed, members[0]["n"], cells))
        rows.sort(key=lambda row: (*self.order(row.sr, row.classifier), row.seed))
        return with_best(rows, METRIC_COLUMNS, lambda row: row.classifier)

    def per_label(self, metric: str, classifier: str) -> list[tuple[str, int, dict[str, Cell]]]:
        """Return (label, patches with it, cell by SR model: the mean over seeds) of one metric and classifier."""
        found: dict[tuple[str, str], list[float]] = defaultdict(list)
        support: dict[str, int] = {}
        for row in self._metrics:
            if row["split"] != self.split or row["label"] is None or row["classifier"] != classifier:
                continue
            if row["metric"] == "support":
                support[row["label"]] = int(row["value"] or 0)
            elif row["metric"] == metric and row["value"] is not None:
                found[row["label"], row["sr"]].append(row["value"])
        branches = list(dict.fromkeys(row.sr for row in self.metrics if row.classifier == classifier))
        lines = []
        for label in [*NAMES, *sorted(support.keys() - set(NAMES))]:
            if label not in support:
                continue
            values = {sr: fmean(found[label, sr]) for sr in branches if (label, sr) in found and support[label]}
            lines.append((label, support[label], _best_of(values, 3)))
        return lines

    @cached_property
    def quality(self) -> list[ModelQuality]:
        """What tables/sr_quality says of each SR model, in the order of RUN.yaml."""
        configs = {p for config in self.run.configs if (p := self.pixels(config))} | self.run.configs
        models = summarise(self._of_run("sr_quality", configs), self.patches)
        return sorted(models, key=lambda model: self.order(model.sr, ""))

    @cached_property
    def training(self) -> list[dict[str, Any]]:
        """Rows of tables/training."""
        table = self._of_run("training", self.run.configs)
        rows = table.to_pylist() if table.num_rows else []
        return sorted(rows, key=lambda r: (*self.order(r["sr"], r["classifier"]), r["fitted"], r["seed"], r["epoch"]))

    @cached_property
    def quarantine(self) -> list[tuple[str, int, list[tuple[str, str]]]]:
        """(reason, inputs, path and detail of the first three), the commonest reason first."""
        table = read_table(self.paths.table("quarantine"))
        if not table.num_rows:
            return []
        counts = [(c["values"].as_py(), c["counts"].as_py()) for c in pc.value_counts(table["reason"])]
        groups = []
        for reason, count in sorted(counts, key=lambda c: (-c[1], c[0])):
            first = table.filter(pc.equal(table["reason"], reason)).slice(0, 3).to_pylist()
            groups.append((reason, count, [(row["path"], row["detail"]) for row in first]))
        return groups

    def _of_run(self, name: str, configs: Iterable[str]) -> pa.Table:
        table = read_table(self.paths.table(name))
        if not table.num_rows:
            return table
        if name == "sr_quality":
            # a column that an earlier version did not write is null
            table = pa.concat_tables([SR_QUALITY.empty_table(), table], promote_options="default")
            table = table.select(SR_QUALITY.names)
        return table.filter(pc.is_in(table["config"], value_set=pa.array(sorted(configs), pa.string())))


def _place(name: str, names: Sequence[str]) -> int:
    return names.index(name) if name in names else len(names)


def number(value: float | None, decimals: int) -> str:
    """Return a number as the page shows it, with a real minus sign, 0 without any; a dash for null."""
    return NULL if value is None else f"{value:z.{decimals}f}".replace("-", "\N{MINUS SIGN}")  # z: no -0.00


def with_best(rows: Sequence[Row], columns: Sequence[Column], group: Callable[[Row], str]) -> list[Row]:
    """Return rows with the best cell of every column marked in each group.

    Cells that look alike at the column's decimals are equally good; where all do, none is best.
    """
    best: dict[tuple[str, str], str] = {}
    for column in columns:
        for name in dict.fromkeys(map(group, rows)):
            cells = [r.cells[column.name] for r in rows if group(r) == name and column.name in r.cells]
            known = [c for c in cells if c.value is not None]
            if column.better and len({c.text for c in known}) > 1:
                best[column.name, name] = max(known, key=lambda c: column.better * (c.value or 0.0)).text
    return [
        replace(
            row,
            cells={n: replace(c, best=best.get((n, group(row))) == c.text) for n, c in row.cells.items()},
        )
        for row in rows
    ]


def _best_of(values: Mapping[str, float], decimals: int) -> dict[str, Cell]:
    texts = {sr: number(value, decimals) for sr, value in values.items()}
    top = number(max(values.values()), decimals) if len(set(texts.values())) > 1 else None
    return {sr: Cell(value, texts[sr], texts[sr] == top) for sr, value in values.items()}
