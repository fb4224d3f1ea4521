"""How well maps point, per method, SR model, classifier and label: means with intervals, and differences in pairs."""

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from classifiers.metrics import Interval, bootstrap_means
from infra.parts import StageParts, read_parts
from infra.storage import StorePaths
from infra.tables import EXPLANATION_METRICS, EXPLANATIONS, publish, read_table
from tasks.comparisons import REFERENCES, is_compared
from tasks.explain import Explained
from tasks.labels import is_clean

UNIFORM = "uniform"
"""What stands in the column `method` for a map without any contrast."""

ALL, SAMPLE = "all", "sample"
"""What stands in the column `subset`: means over every patch, or over those in the sample alone."""

FAITHFULNESS = ("average_drop", "average_increase", "deletion_auc", "insertion_auc")
"""Columns of EXPLANATIONS that only patches in the sample have."""

MAP_METRICS = (
    "judd_auc",
    "pointing",
    "iou_95",
    "iou_90",
    "iou_85",
    "iou_80",
    "iou_75",
    "similarity",
    "correlation",
    *FAITHFULNESS,
    "coverage",
    "entropy",
)
"""Columns of EXPLANATIONS of which means are taken."""

FLOOR = "random"
"""The method that all others have to rise above."""

EXCESS = "pointing_minus_area"
"""Pointing less the share of the patch that the label covers, which is what noise hits."""

ZERO = "zero_share"
"""Share of maps that are nowhere above 0."""

QUARTILES = 4

type Columns = dict[str, NDArray[np.float64]]


@dataclass(frozen=True, slots=True)
class ExplainedBranch:
    """The maps of one method, classifier and branch, as a run made them."""

    sr: str
    classifier: str
    seed: int
    item: Explained
    shards: tuple[int, ...]
    """Shards of the run."""

    @property
    def parts(self) -> StageParts:
        """Parts of the rows."""
        return self.item.parts

    @property
    def complete(self) -> bool:
        """Whether every shard has its part."""
        return set(self.shards) <= self.parts.done()


@dataclass(frozen=True, slots=True)
class _Judged:
    """Rows of one branch: who they are, and their numbers."""

    keys: pa.Table
    """patch_id, split, label, and the tile of the patch."""
    values: Columns
    """By metric, (M,), NaN where null."""
    area: NDArray[np.float64]
    """Share of the patch that the label covers, (M,), NaN where nobody knows."""

    def take(self, rows: NDArray[np.intp]) -> "_Judged":
        return _Judged(
            self.keys.take(pa.array(rows)), {name: v[rows] for name, v in self.values.items()}, self.area[rows]
        )

    def without(self, metrics: Collection[str]) -> "_Judged":
        return _Judged(self.keys, {name: v for name, v in self.values.items() if name not in metrics}, self.area)


def publish_explanation_metrics(paths: StorePaths, branches: Sequence[ExplainedBranch]) -> None:
    """Write tables/explanation_metrics: every method's means, and each branch's differences to none and bicubic.

    Beside every method stands `uniform`, what a map without any contrast scores on the same rows. Where there is a
    sample, the means over its patches alone stand beside those over all: costly methods have no others. Patches with
    snow or cloud are not scored.

    Args:
        paths: The store.
        branches: All maps of a run.
    """
    patches = read_table(paths.table("patches"))
    patches = patches.filter(is_clean(patches)).select(["patch_id", "tile"])
    of_network: dict[tuple[str, str, int], list[ExplainedBranch]] = {}
    for branch in branches:
        of_network.setdefault((branch.classifier, branch.item.method, branch.seed), []).append(branch)
    for compared in of_network.values():  # all that is in memory at once
        _publish(paths, compared, patches)


def _publish(paths: StorePaths, branches: Sequence[ExplainedBranch], patches: pa.Table) -> None:
    """Write the rows of one method and classifier on several branches."""
    judged = [_judged(branch, patches) for branch in branches]
    for branch, subsets in zip(branches, judged, strict=True):
        table: list[dict[str, object]] = []
        complete = branch.complete
        for subset, rows in subsets.items():
            table += _mean_rows(_names(branch, branch.item.method, None, subset), rows)
            table += _mean_rows(_names(branch, UNIFORM, None, subset), _uniform(rows))
        for other, references in zip(branches, judged, strict=True):
            if other.sr in REFERENCES and is_compared(branch.sr, other.sr):
                for subset in subsets.keys() & references.keys():
                    differences = _differences(subsets[subset], references[subset])
                    names = _names(branch, branch.item.method, other.sr, subset)
                    table += _mean_rows(names, differences, by_quartile=False)
                complete = complete and other.complete
        publish(
            paths.table("explanation_metrics"),
            pa.Table.from_pylist(table, schema=EXPLANATION_METRICS),
            EXPLANATION_METRICS,
            ["method", "reference", "split", "subset", "metric", "label", "area_quartile"],
            complete=complete,
            file_stem=f"{branch.sr}-{branch.classifier}-{branch.item.method}-{branch.parts.config}",
        )


def _names(branch: ExplainedBranch, method: str, reference: str | None, subset: str) -> dict[str, object]:
    return {
        "sr": branch.sr,
        "classifier": branch.classifier,
        "method": method,
        "config": branch.parts.config,
        "seed": branch.seed,
        "reference": reference,
        "subset": subset,
    }


def _judged(branch: ExplainedBranch, patches: pa.Table) -> dict[str, _Judged]:
    """Return the rows of one branch by subset; those that a method or a run does not have are left out.

    Args:
        branch: The branch.
        patches: patch_id and tile of the patches that are scored.
    """
    done = sorted(set(branch.shards) & branch.parts.done())
    rows = read_parts(branch.parts, done) if done else EXPLANATIONS.empty_table()
    # Sums are rounded, and ties between quarters broken, alike however the patches are spread over shards.
    rows = rows.filter(pc.is_in(rows["patch_id"], value_set=patches["patch_id"].combine_chunks()))
    rows = rows.sort_by([("patch_id", "ascending"), ("label", "ascending")])
    values = {name: _floats(rows, name) for name in MAP_METRICS}
    area = _floats(rows, "area_share")
    values[EXCESS] = values["pointing"] - area
    values[ZERO] = np.isnan(values["coverage"]).astype(np.float64)
    at = pc.index_in(rows["patch_id"], value_set=patches["patch_id"].combine_chunks())
    tiles = patches["tile"].combine_chunks().take(at.combine_chunks())
    known = (
        rows["patch_id"].combine_chunks() if tiles.null_count else tiles
    )  # as metrics do: patches resample themselves
    keys = rows.select(["patch_id", "split", "label"]).append_column("tile", known)
    judged = _Judged(keys, values, area)
    subsets = {} if branch.item.sampled else {ALL: judged.without(FAITHFULNESS)}
    sample = np.flatnonzero(rows["sampled"].to_numpy())
    return {**subsets, SAMPLE: judged.take(sample)} if len(sample) else subsets


def _floats(rows: pa.Table, name: str) -> NDArray[np.float64]:
    return np.asarray(rows[name].cast(pa.float64()).fill_null(np.nan).to_numpy(), np.float64)


def _uniform(rows: _Judged) -> _Judged:
    """Return what a uniform map scores: of its ties a random one is taken, so values are expectations.

    It is judged by the rows that have a value, so that both means are over the same ones.
    """
    area = rows.area
    values: Columns = {"judd_auc": np.full(len(area), 0.5), "pointing": area, EXCESS: area - area, "similarity": area}
    for percent in (95, 90, 85, 80, 75):
        share = percent / 100
        values[f"iou_{percent}"] = share * area / (share + area - share * area)
    return _Judged(
        rows.keys, {name: np.where(np.isnan(rows.values[name]), np.nan, v) for name, v in values.items()}, area
    )


def _differences(ours: _Judged, theirs: _Judged) -> _Judged:
    """Return our values less theirs, of the patches and labels that both have."""
    of_theirs = {key: row for row, key in enumerate(_row_keys(theirs))}
    pairs = [(row, of_theirs[key]) for row, key in enumerate(_row_keys(ours)) if key in of_theirs]
    first, second = (
        (np.array(side, np.intp) for side in zip(*pairs, strict=True)) if pairs else (np.zeros(0, np.intp),) * 2
    )
    mine, other = ours.take(first), theirs.take(second)
    return _Judged(mine.keys, {name: mine.values[name] - other.values[name] for name in mine.values}, mine.area)


def _row_keys(rows: _Judged) -> Iterator[tuple[str, str]]:
    return zip(rows.keys["patch_id"].to_pylist(), rows.keys["label"].to_pylist(), strict=True)


def _mean_rows(names: Mapping[str, object], rows: _Judged, *, by_quartile: bool = True) -> Iterator[dict[str, object]]:
    """Yield rows of EXPLANATION_METRICS: over all labels, of each label, and of each quarter by area."""
    splits, labels = (np.array(rows.keys[name].to_pylist(), object) for name in ("split", "label"))
    for split in sorted(set(splits)):
        of_split = np.flatnonzero(splits == split)
        yield from _means({**names, "split": split, "label": None, "area_quartile": None}, rows.take(of_split))
        for label in sorted(set(labels[of_split])):
            chosen = of_split[labels[of_split] == label]
            yield from _means({**names, "split": split, "label": label, "area_quartile": None}, rows.take(chosen))
        if by_quartile:
            for number, chosen in enumerate(_quartiles(rows.area[of_split]), start=1):
                of_quarter = rows.take(of_split[chosen])
                yield from _means({**names, "split": split, "label": None, "area_quartile": number}, of_quarter)


def _quartiles(area: NDArray[np.float64]) -> list[NDArray[np.intp]]:
    """Return the rows of each quarter by area, the smallest first; ties lie in the order of patches and labels."""
    known = np.flatnonzero(~np.isnan(area))
    order = known[np.argsort(area[known], kind="stable")]
    return [quarter for quarter in np.array_split(order, QUARTILES) if len(quarter)]


def _means(names: Mapping[str, object], rows: _Judged) -> Iterator[dict[str, object]]:
    if not rows.keys.num_rows:
        return
    metrics = [name for name, values in rows.values.items() if not np.isnan(values).all()]
    if not metrics:
        return
    table = np.stack([rows.values[name] for name in metrics], axis=1)
    intervals: Sequence[Interval] = bootstrap_means(table, rows.keys["tile"].to_numpy())
    for name, interval, column in zip(metrics, intervals, table.T, strict=True):
        yield {
            **names,
            "metric": name,
            "value": interval.value,
            "low": None if np.isnan(interval.low) else interval.low,
            "high": None if np.isnan(interval.high) else interval.high,
            "n": int((~np.isnan(column)).sum()),
        }
