"""The numbers of the report: what the last run wrote to the tables, as rows that a page can show."""

import json
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from infra.fingerprint import Json
from infra.storage import StorePaths
from infra.tables import CALIBRATION, COMPARISONS, METRICS, SR_QUALITY, TRAINING, read_table
from tasks.last_run import last_run
from tasks.quality_summary import ModelQuality, summarise
from tasks.report.cells import Cell, Column, Row, number, with_best, with_best_of_line
from tasks.report.means import Difference, Mean, Subject, differences, of_configs, overall, seed_means
from tasks.report.order import branch_order, shown_split

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
    Column("ece", "ECE", "Expected calibration error: how far probabilities are from frequencies", better=-1),
)
"""Columns of the metrics table: the six of the paper's table 1 first."""


@dataclass(frozen=True, slots=True)
class LabelRow:
    """One metric of one label."""

    label: str
    support: int
    """Patches that have it."""
    cells: Mapping[str, Cell]
    """By SR model; none without a patch that has the label."""


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

    @property
    def degrade(self) -> int:
        """Factor by which every branch but the ceiling saw the archive's pixels reduced."""
        return int(self.run.settings.get("degrade") or 1)

    def hive(self, table: str) -> list[HiveFolder]:
        """Return the folders of a partitioned table that belong to the run, in the order of RUN.yaml."""
        found = []
        for path in {file.parent for file in self.paths.table(table).rglob("*.parquet")}:
            parts = path.relative_to(self.paths.table(table)).parts
            keys = dict(part.split("=", 1) for part in parts)
            if keys.get("config") in self.run.configs:
                found.append(HiveFolder(path, keys))
        return sorted(found, key=lambda f: (*self.order(f.keys["sr"], f.keys["classifier"]), str(f.path)))

    def order(self, sr: str, classifier: str) -> tuple[int, str, bool, int, str]:
        """Sort key of a classifier on a branch: as RUN.yaml lists them, others behind, the ceiling last."""
        return branch_order(classifier, sr, self.run.classifiers, self.run.sr)

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

    @property
    def screened(self) -> bool:
        """Whether the archive tells patches with snow or cloud, which are not scored."""
        flags = [self.patches[name] for name in ("has_snow", "has_cloud")] if self.patches.num_rows else []
        return any(column.null_count < len(column) for column in flags)

    @property
    def tiled(self) -> bool:
        """Whether every patch has a tile, so that intervals resample tiles."""
        return bool(self.patches.num_rows) and not self.patches["tile"].null_count

    @cached_property
    def split_counts(self) -> Mapping[str, int]:
        """Patches of each split."""
        if not self.patches.num_rows:
            return {}
        return {c["values"].as_py(): c["counts"].as_py() for c in pc.value_counts(self.patches["split"])}

    @cached_property
    def labels(self) -> tuple[str, ...]:
        """Labels in the order of every vector; empty where tables/classes is absent."""
        table = read_table(self.paths.table("classes"))
        return tuple(table.sort_by("label_index")["label"].to_pylist()) if table.num_rows else ()

    @cached_property
    def _metrics(self) -> pa.Table:
        """Rows of tables/metrics over all patches."""
        return overall(self._of_run("metrics", METRICS))

    @cached_property
    def split(self) -> str | None:
        """The split that the metrics are shown of; None where there are none."""
        return shown_split(self._metrics["split"].unique().to_pylist())

    @cached_property
    def _shown_metrics(self) -> pa.Table:
        return self._metrics.filter(pc.equal(self._metrics["split"], pa.scalar(self.split, pa.string())))

    @cached_property
    def means(self) -> Mapping[Subject, Mapping[str, Mean]]:
        """Means over seeds of the shown split's metrics."""
        return seed_means(self._shown_metrics)

    @cached_property
    def metrics(self) -> list[Row]:
        """Metrics over all labels, a row for each SR model and classifier: means over seeds.

        An interval is there where there is one seed: it says nothing of the spread over seeds.
        """
        single = {(row.sr, row.classifier): row for row in self.seed_metrics}
        rows = []
        for subject, of_subject in self.means.items():
            if subject.label is not None:
                continue
            cells = {name: Cell(mean.value, number(mean.value, 3)) for name, mean in of_subject.items()}
            seeds = tuple(sorted({seed for mean in of_subject.values() for seed in mean.seeds}))
            if len(seeds) == 1:
                cells = dict(single[subject.sr, subject.classifier].cells)
            rows.append(Row(subject.sr, subject.classifier, seeds, min(m.n for m in of_subject.values()), cells))
        rows.sort(key=lambda row: self.order(row.sr, row.classifier))
        return with_best(rows, METRIC_COLUMNS, lambda row: row.classifier)

    @cached_property
    def seed_metrics(self) -> list[Row]:
        """Metrics over all labels, a row for each SR model, classifier and seed."""
        groups: dict[tuple[str, str, int], list[dict[str, Any]]] = defaultdict(list)
        for row in self._shown_metrics.filter(pc.is_null(self._shown_metrics["label"])).to_pylist():
            groups[row["sr"], row["classifier"], row["seed"]].append(row)
        rows = []
        for (sr, classifier, seed), members in groups.items():
            cells = {
                row["metric"]: Cell(row["value"], number(row["value"], 3), low=row["low"], high=row["high"])
                for row in members
            }
            rows.append(Row(sr, classifier, (seed,), members[0]["n"], cells))
        return sorted(rows, key=lambda row: (*self.order(row.sr, row.classifier), row.seeds))

    @cached_property
    def classifiers(self) -> tuple[str, ...]:
        """Classifiers that have metrics, in the order of RUN.yaml."""
        return tuple(dict.fromkeys(row.classifier for row in self.metrics))

    def branches(self, classifier: str) -> list[str]:
        """SR models that a classifier has metrics of, in the order of RUN.yaml, the ceiling last."""
        return [row.sr for row in self.metrics if row.classifier == classifier]

    @cached_property
    def _comparisons(self) -> pa.Table:
        table = self._of_run("comparisons", COMPARISONS)
        return table.filter(pc.equal(table["split"], pa.scalar(self.split, pa.string())))

    def differences(self, reference: str) -> Mapping[Subject, Mapping[str, Difference]]:
        """Differences to a reference on the shown split, over all patches and of each country and season."""
        return differences(self._comparisons, reference)

    def label_rows(self, metric: str, classifier: str) -> list[LabelRow]:
        """Return the means over seeds of one metric of each label, in the order of the labels."""
        branches = self.branches(classifier)
        known = [subject.label for subject in self.means if subject.label is not None]
        lines = []
        for label in [*self.labels, *sorted(set(known) - set(self.labels))]:
            of_label = {sr: self.means.get(Subject(sr, classifier, self.split or "", label), {}) for sr in branches}
            supports = [means["support"].value or 0.0 for means in of_label.values() if "support" in means]
            if not supports:
                continue
            support = round(max(supports))
            cells = {
                sr: Cell(value, number(value, 3))
                for sr, means in of_label.items()
                if support and metric in means and (value := means[metric].value) is not None
            }
            lines.append(LabelRow(label, support, with_best_of_line(cells)))
        return lines

    @cached_property
    def calibration(self) -> list[dict[str, Any]]:
        """Rows of tables/calibration of the shown split."""
        table = self._of_run("calibration", CALIBRATION)
        rows = table.filter(pc.equal(table["split"], pa.scalar(self.split, pa.string()))).to_pylist()
        return sorted(rows, key=lambda r: (*self.order(r["sr"], r["classifier"]), r["seed"], r["bin"]))

    @cached_property
    def quality_rows(self) -> pa.Table:
        """Rows of tables/sr_quality."""
        pixels = {p for config in self.run.configs if (p := self.pixels(config))}
        return self._of_run("sr_quality", SR_QUALITY, pixels)

    @cached_property
    def quality(self) -> list[ModelQuality]:
        """What tables/sr_quality says of each SR model, in the order of RUN.yaml."""
        models = summarise(self.quality_rows, self.patches)
        return sorted(models, key=lambda model: self.order(model.sr, ""))

    @cached_property
    def training(self) -> list[dict[str, Any]]:
        """Rows of tables/training."""
        rows = self._of_run("training", TRAINING).to_pylist()
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

    def _of_run(self, name: str, schema: pa.Schema, further: Iterable[str] = ()) -> pa.Table:
        return of_configs(read_table(self.paths.table(name)), schema, self.run.configs | set(further))
