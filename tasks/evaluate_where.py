"""Evaluate where: the metrics and comparisons of the patches that meet a condition, from the published predictions."""

import math
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import pyarrow as pa
import pyarrow.compute as pc

from classifiers.metrics import Interval
from infra.errors import ConfigError, StoreError
from infra.query import check_expression, query
from infra.storage import StorePaths
from infra.tables import COMPARISONS, METRICS, predictions_schema, read_table
from tasks.comparisons import REFERENCES, Key, Resampled, comparison_rows, is_compared, keyed, over_seeds, paired
from tasks.evaluate import metrics_table, resamples_table
from tasks.last_run import last_run
from tasks.metric_rows import PLACES, Bootstrap, metric_rows, scored_patches
from tasks.run_record import scored_configs

SHOWN: Mapping[str, str] = {
    "acc": "ACC",
    "hl": "HL",
    "oe": "OE",
    "precision": "P",
    "recall": "R",
    "f1": "F1",
    "f2_macro": "F2 macro",
    "ap_macro": "AP macro",
}
"""Metrics of the tables for people, with their titles: the paper's table 1, and two means over labels."""

_SPLITS = ("test", "all", "validation", "train")
_OF_PATCH = ("patch_id", "split", "labels")  # columns that predictions and patches share


@dataclass(frozen=True, slots=True)
class Predicted:
    """A classifier on a branch, of the last run."""

    sr: str
    classifier: str
    config: str


@dataclass(frozen=True, slots=True)
class TextTable:
    """A table for people."""

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]


@dataclass(frozen=True, slots=True)
class Selection:
    """What was found."""

    n: int
    """Patches that meet the condition."""
    metrics: pa.Table
    """Rows of METRICS."""
    comparisons: pa.Table
    """Rows of COMPARISONS."""
    means: Mapping[tuple[str, str, str], Mapping[str, Interval]]
    """By split, classifier and SR model: means over seeds of the metrics in `SHOWN`, patches and seeds resampled."""

    def tables(self) -> list[TextTable]:
        """Return the paper's table 1 of every split, then the differences, as far as there are any."""
        splits = sorted({split for split, _, _ in self.means}, key=_place_in(_SPLITS))
        tables = [*(self._metrics(split) for split in splits), *(self._differences(split) for split in splits)]
        return [table for table in tables if table.rows]

    def _metrics(self, split: str) -> TextTable:
        rows = tuple(
            (classifier, sr, *(_cell(found[metric], "") for metric in SHOWN))
            for (of_split, classifier, sr), found in self.means.items()
            if of_split == split
        )
        ns = set(self.metrics.filter(pc.equal(self.metrics["split"], split))["n"].to_pylist())
        return TextTable(f"{split}: {_range(ns)} scored", ("classifier", "sr", *SHOWN.values()), rows)

    def _differences(self, split: str) -> TextTable:
        lines: dict[tuple[str, str, str], dict[str, str]] = defaultdict(dict)
        for row in self.comparisons.to_pylist():
            if row["split"] == split and row["label"] is None and row["metric"] in SHOWN:
                interval = Interval(*(float("nan") if row[k] is None else row[k] for k in Interval._fields))
                text = _cell(interval, "+", "*" if row["significant"] else "")
                lines[row["classifier"], row["sr"], row["reference"]][row["metric"]] = text
        rows = tuple(
            (classifier, f"{sr} - {reference}", *(cells[metric] for metric in SHOWN))
            for (classifier, sr, reference), cells in lines.items()
        )
        title = f"{split}: differences; * significant, which takes three seeds"
        return TextTable(title, ("classifier", "difference", *SHOWN.values()), rows)


def evaluate_where(paths: StorePaths, condition: str, bootstrap: Bootstrap = Bootstrap()) -> Selection:  # noqa: B008  # frozen
    """Return the metrics of the last run's predictions, of the patches that meet a condition.

    Args:
        paths: The store.
        condition: A condition of DuckDB over the columns of tables/patches and tables/predictions.
        bootstrap: How intervals are made.

    Raises:
        ConfigError: The condition is none, no patch meets it, or none of those is labelled, without snow and cloud.
        StoreError: No run has predicted anything in the store, or a table that is needed is gone.
    """
    _check(condition)
    source = _Source(paths, condition)
    ids: set[str] = set()
    rows = [METRICS.empty_table()]
    found: dict[Predicted, dict[int, pa.Table]] = {}
    for predicted in source.predicted:
        predictions = source.read(predicted)
        ids.update(predictions["patch_id"].to_pylist())
        found[predicted] = {}
        for seed, scored in source.scored(predictions).items():
            of_seed = list(metric_rows(scored, source.labels, bootstrap, by_place=False))
            names = {"sr": predicted.sr, "classifier": predicted.classifier, "config": predicted.config}
            rows.append(metrics_table({**names, "seed": seed}, of_seed))
            found[predicted][seed] = resamples_table(of_seed)
    if not ids:
        raise ConfigError(f"no patch meets the condition {condition}")
    metrics = pa.concat_tables(rows)
    if not metrics.num_rows:
        raise ConfigError(f"none of the {len(ids)} patches with {condition} has labels and neither snow nor cloud")
    comparisons = [
        _compared(source, ours, theirs, found, bootstrap)
        for ours in found
        for theirs in found
        if ours.classifier == theirs.classifier and is_compared(ours.sr, theirs.sr)
    ]
    means = {
        key: value for predicted, of_seeds in found.items() for key, value in _means(predicted, of_seeds, bootstrap)
    }
    return Selection(len(ids), metrics, pa.concat_tables([COMPARISONS.empty_table(), *comparisons]), means)


class _Source:
    """The published predictions of the last run that meet a condition."""

    def __init__(self, paths: StorePaths, condition: str) -> None:
        self._paths, self._condition = paths, condition
        run = last_run(paths)
        self._configs = scored_configs(paths)
        for table in ("predictions", "patches", "classes"):
            if not paths.table(table).exists():
                raise StoreError(f"{paths.root} has no tables/{table}: run the flow first")
        classes = read_table(paths.table("classes")).sort_by("label_index")
        self.labels: tuple[str, ...] = tuple(classes["label"].to_pylist())
        self._patches = read_table(paths.table("patches")).select(
            ["patch_id", "tile", *PLACES, "has_snow", "has_cloud"]
        )
        names = "SELECT DISTINCT sr, classifier, config FROM predictions"
        found = [Predicted(*row) for row in query(paths.tables, self._configs, names).fetchall()]
        place, order = _place_in(run.classifiers), _place_in((*REFERENCES[:1], *run.sr))
        self.predicted = sorted(found, key=lambda p: (place(p.classifier), order(p.sr), p.config))

    def read(self, predicted: Predicted) -> pa.Table:
        """Return the rows of tables/predictions of one classifier that meet the condition."""
        wanted = {"sr": predicted.sr, "classifier": predicted.classifier, "config": predicted.config}
        schema = predictions_schema(len(self.labels))
        statement = (
            f"SELECT {', '.join(schema.names)} FROM (SELECT predictions.*, patches.* EXCLUDE ({', '.join(_OF_PATCH)}) "  # noqa: S608  # the connection can only read
            "FROM predictions JOIN patches USING (patch_id)) WHERE "
            + " AND ".join(f"{name} = {_quoted(value)}" for name, value in wanted.items())
            + f" AND (\n{self._condition}\n)"  # lines of its own: a comment in it must not swallow the bracket
        )
        try:
            return query(self._paths.tables, self._configs, statement).to_arrow_table().cast(schema)
        except ConfigError as error:
            raise ConfigError(f"--where {self._condition}: {_one_sentence(error)}") from error

    def scored(self, predictions: pa.Table) -> dict[int, pa.Table]:
        """Return the rows that count, by seed; see `scored_patches`."""
        scored = scored_patches(predictions, self._patches)
        seeds = sorted(pc.unique(scored["seed"]).to_pylist())
        return {seed: scored.filter(pc.equal(scored["seed"], seed)) for seed in seeds}


def _compared(
    source: _Source,
    ours: Predicted,
    theirs: Predicted,
    found: Mapping[Predicted, Mapping[int, pa.Table]],
    bootstrap: Bootstrap,
) -> pa.Table:
    """Return rows of COMPARISONS, over all patches of the selection that both scored, with every seed."""
    names = {
        "sr": ours.sr,
        "reference": theirs.sr,
        "classifier": ours.classifier,
        "config": ours.config,
        "reference_config": theirs.config,
    }
    seeds = sorted(found[ours].keys() & found[theirs].keys())
    if _of_same_patches([found[p][seed] for p in (ours, theirs) for seed in seeds]):
        first, second = ([keyed(found[p][seed]) for seed in seeds] for p in (ours, theirs))
    else:
        a, b = (source.scored(source.read(p)) for p in (ours, theirs))
        tables = [p[seed] for p in (a, b) for seed in seeds]
        common = set.intersection(*(set(table["patch_id"].to_pylist()) for table in tables))
        ids = pa.array(sorted(common), pa.string())
        a, b = ({seed: p[seed].filter(pc.is_in(p[seed]["patch_id"], value_set=ids)) for seed in seeds} for p in (a, b))
        pairs = [paired(a[seed], b[seed], source.labels, bootstrap, by_place=False) for seed in seeds]
        first, second = [one for one, _ in pairs], [other for _, other in pairs]
    return comparison_rows(names, first, second, bootstrap)


def _means(
    predicted: Predicted, of_seeds: Mapping[int, pa.Table], bootstrap: Bootstrap
) -> list[tuple[tuple[str, str, str], dict[str, Interval]]]:
    values: list[dict[Key, Resampled]] = [keyed(table) for table in of_seeds.values()]
    if not _of_same_patches([*of_seeds.values()]):  # tiles cannot be drawn alike for all seeds: no interval
        values = [{key: replace(found, draws=found.draws[:0]) for key, found in seed.items()} for seed in values]
    means = []
    for split in sorted({split for seed in values for split, *_ in seed}):
        keys: dict[str, Key] = {metric: (split, None, None, metric, None) for metric in SHOWN}
        found = {m: over_seeds([seed[key] for seed in values if key in seed], bootstrap) for m, key in keys.items()}
        means.append(((split, predicted.classifier, predicted.sr), found))
    return means


def _of_same_patches(resamples: Sequence[pa.Table]) -> bool:
    """Return whether all rows of RESAMPLES are of the same patches; a condition on predictions may differ by seed."""
    return all(table["digest"].equals(resamples[0]["digest"]) for table in resamples)


def _check(condition: str) -> None:
    """Refuse what is no condition by itself, such as `true) OR (true`, which would reach other models' rows."""
    if not condition.strip():
        raise ConfigError("--where is empty: it takes a condition, for example country = 'Finland'")
    try:
        check_expression(condition)
    except ConfigError as error:
        raise ConfigError(f"--where {condition}: {_one_sentence(error)}") from error


def _place_in(names: Sequence[str]) -> Callable[[str], tuple[int, str]]:
    """Return a sort key: as the names stand, others behind."""
    return lambda name: (names.index(name) if name in names else len(names), name)


def _cell(interval: Interval, sign: str, mark: str = "") -> str:
    value, low, high = ("-" if math.isnan(x) else f"{x:{sign}.3f}" for x in interval)
    return f"{value}{mark}\n{low} {high}"


def _range(counts: set[int]) -> str:
    return f"{min(counts)} patches" if len(counts) == 1 else f"{min(counts)} to {max(counts)} patches"


def _quoted(text: str) -> str:
    return "'" + text.replace("'", "''") + "'"


def _one_sentence(error: Exception) -> str:
    """Return what DuckDB says, without the picture of the place."""
    return " ".join(str(error).removeprefix("sql: ").split("LINE ")[0].split())
