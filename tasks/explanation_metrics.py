"""How well maps point, per method, SR model, classifier and label: means with intervals, and differences in pairs."""

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import chain

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from infra.fingerprint import Json
from infra.parts import StageParts, stage_parts
from infra.storage import StorePaths
from infra.tables import EXPLANATION_METRICS, EXPLANATIONS, publish, read_table
from tasks.comparisons import REFERENCES, is_compared
from tasks.explain import Explained
from tasks.explanation_means import Column, Ranks, Rows, Values, mean_rows
from tasks.labels import is_clean
from tasks.stage import ShardCount

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

EXCESS = "pointing_minus_area"
"""Pointing less the share of the patch that the label covers, which is what noise hits."""

ZERO = "zero_share"
"""Share of maps that are nowhere above 0."""

_READ = ("patch_id", "split", "label", "sampled", "area_share", *MAP_METRICS)


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
    def done(self) -> list[int]:
        """Shards of the run that have their part."""
        return sorted(set(self.shards) & self.parts.done())

    @property
    def complete(self) -> bool:
        """Whether every shard has its part."""
        return len(self.done) == len(set(self.shards))


@dataclass(frozen=True, slots=True)
class JudgeJob:
    """A branch whose maps are judged, and those that it is compared with. Cheap to pickle."""

    branch: ExplainedBranch
    references: tuple[ExplainedBranch, ...]
    """Of the same method and network."""
    parts: StageParts
    """Part 0 holds the job's rows of EXPLANATION_METRICS."""


def judge_jobs(paths: StorePaths, branches: Sequence[ExplainedBranch]) -> list[JudgeJob]:
    """Return one job for each branch, under the config that determines its rows; those of a network lie together.

    Call it when the maps are made: the shards that have any, of the branch and of its references, are part of the
    config, so maps of more shards are judged anew.

    Args:
        paths: The store.
        branches: All maps of a run.
    """
    jobs = []
    for branch in sorted(branches, key=_network):
        references = tuple(
            other
            for other in branches
            if _network(other) == _network(branch) and other.sr in REFERENCES and is_compared(branch.sr, other.sr)
        )
        determines: dict[str, Json] = {
            "explanations": _origin(branch),
            "references": [_origin(reference) for reference in sorted(references, key=lambda one: one.sr)],
            "schema": 1,
        }
        jobs.append(JudgeJob(branch, references, stage_parts(paths, "explanation_metrics", determines)))
    return jobs


def _network(branch: ExplainedBranch) -> tuple[str, str, int]:
    return branch.classifier, branch.item.method, branch.seed


def _origin(branch: ExplainedBranch) -> Json:
    shards = hashlib.sha256(json.dumps(branch.done).encode()).hexdigest()
    return {"config": branch.parts.config, "shards": shards}


def publish_explanation_metrics(job: JudgeJob) -> None:
    """Write one job's rows of tables/explanation_metrics."""
    done = job.parts.is_done(0)
    complete = done and all(branch.complete for branch in (job.branch, *job.references))
    branch = job.branch
    publish(
        job.parts.paths.table("explanation_metrics"),
        job.parts.read(0) if done else EXPLANATION_METRICS.empty_table(),
        EXPLANATION_METRICS,
        ["method", "reference", "split", "subset", "metric", "label", "area_quartile"],
        complete=complete,
        file_stem=f"{branch.sr}-{branch.classifier}-{branch.item.method}-{branch.parts.config}",
    )


class ExplanationJudge:
    """Judges one of several jobs after the other; it needs no GPU.

    Its rows are every method's means, and its branch's differences to none and bicubic. Beside the method stands
    `uniform`, what a map without any contrast scores on the same rows. Where there is a sample, the means over its
    patches alone stand beside those over all: costly methods have no others. Patches with snow or cloud are not scored.
    """

    def __init__(self, paths: StorePaths, jobs: Sequence[JudgeJob]) -> None:
        self._jobs = jobs
        self._patches = _Patches.of(paths)
        self._held: dict[str, dict[str, Rows]] = {}

    def run(self, item: int) -> ShardCount:
        """Judge one job; in memory are its branch and its references, which the next job may have too."""
        job = self._jobs[item]
        branch = job.branch
        wanted = {one.parts.config for one in (branch, *job.references)}
        self._held = {config: subsets for config, subsets in self._held.items() if config in wanted}
        ours = self._subsets(branch)
        table: list[dict[str, object]] = []
        for subset, rows in ours.items():
            columns = chain(_columns(rows, branch.item.method), _uniform(rows))
            table += mean_rows(_names(branch, None, subset), rows, columns, by_quartile=True)
        for reference in job.references:
            theirs = self._subsets(reference)
            for subset in [name for name in ours if name in theirs]:
                first, second = _pairs(ours[subset], theirs[subset])
                both, others = ours[subset].take(first), theirs[subset].take(second)
                differences = _differences(both, others, branch.item.method)
                table += mean_rows(_names(branch, reference.sr, subset), both, differences, by_quartile=False)
        job.parts.write(0, pa.Table.from_pylist(table, EXPLANATION_METRICS))
        return ShardCount(max((len(np.unique(rows.patch)) for rows in ours.values()), default=0))

    def _subsets(self, branch: ExplainedBranch) -> dict[str, Rows]:
        config = branch.parts.config
        if config not in self._held:
            self._held[config] = _subsets(branch, self._patches)
        return self._held[config]


def _names(branch: ExplainedBranch, reference: str | None, subset: str) -> dict[str, object]:
    return {
        "sr": branch.sr,
        "classifier": branch.classifier,
        "config": branch.parts.config,
        "seed": branch.seed,
        "reference": reference,
        "subset": subset,
    }


@dataclass(frozen=True, slots=True)
class _Patches:
    """Patches that are scored, in the order of their names."""

    ids: pa.Array
    tile: Ranks
    """Of each one's tile among all tiles, -1 where it has none."""

    @classmethod
    def of(cls, paths: StorePaths) -> "_Patches":
        table = read_table(paths.table("patches"))
        table = table.filter(is_clean(table)).select(["patch_id", "tile"]).sort_by("patch_id")
        tile, _ = _ranks(table["tile"])
        return cls(table["patch_id"].combine_chunks(), tile)


def _subsets(branch: ExplainedBranch, patches: _Patches) -> dict[str, Rows]:
    """Return the rows of one branch by subset; those that a method or a run does not have are left out."""
    empty = EXPLANATIONS.empty_table().select(_READ)
    table = pa.concat_tables([empty, *(branch.parts.read(shard).select(_READ) for shard in branch.done)])
    patch = _places(table["patch_id"], patches.ids)
    (label, labels), (split, splits) = _ranks(table["label"]), _ranks(table["split"])
    scored = np.flatnonzero(patch >= 0)
    # Sums are rounded, and ties between quarters broken, alike however the patches are spread over shards.
    order = scored[np.lexsort((label[scored], patch[scored]))]
    area = _floats(table["area_share"])[order].astype(np.float64)
    values: dict[str, Values] = {name: _floats(table[name])[order] for name in MAP_METRICS}
    values[EXCESS] = values["pointing"] - area
    values[ZERO] = np.isnan(values["coverage"]).astype(np.float32)
    patch = patch[order]
    tile = patches.tile[patch]
    cluster = patch if (tile < 0).any() else tile  # as metrics do: patches resample themselves
    rows = Rows(patch, cluster, split[order], label[order], splits, labels, area, values)
    subsets = {} if branch.item.sampled else {ALL: rows.without(FAITHFULNESS)}
    sample = np.flatnonzero(table["sampled"].to_numpy()[order])
    return {**subsets, SAMPLE: rows.take(sample)} if len(sample) else subsets


def _ranks(column: pa.ChunkedArray) -> tuple[Ranks, tuple[str, ...]]:
    """Return the place of each value among the sorted different ones, -1 for null, and those."""
    names = pc.drop_null(pc.unique(column))
    names = names.take(pc.sort_indices(names))
    return _places(column, names), tuple(names.to_pylist())


def _places(column: pa.ChunkedArray, among: pa.Array) -> Ranks:
    """Return the place of each value among others, -1 where it is none of them."""
    places = pc.index_in(column, value_set=among, skip_nulls=True)
    return np.asarray(pc.fill_null(places, -1).to_numpy(), np.intp)


def _floats(column: pa.ChunkedArray) -> NDArray[np.float32]:
    return np.asarray(pc.fill_null(column, np.float32(np.nan)).to_numpy(), np.float32)


def _columns(rows: Rows, method: str) -> Iterator[Column]:
    for metric, values in rows.values.items():
        yield Column(method, metric, values)


def _uniform(rows: Rows) -> Iterator[Column]:
    """Yield what a uniform map scores: of its ties a random one is taken, so values are expectations.

    It is judged by the rows that have a value, so that both means are over the same ones.
    """
    area = rows.area
    scores: dict[str, Values] = {
        "judd_auc": np.full(len(area), 0.5),
        "pointing": area,
        EXCESS: area - area,
        "similarity": area,
    }
    for percent in (95, 90, 85, 80, 75):
        share = percent / 100
        scores[f"iou_{percent}"] = share * area / (share + area - share * area)
    for metric, values in scores.items():
        yield Column(UNIFORM, metric, np.where(np.isnan(rows.values[metric]), np.nan, values))


def _pairs(ours: Rows, theirs: Rows) -> tuple[Ranks, Ranks]:
    """Return which of our rows and which of theirs are of one patch and label, pair by pair."""
    place = {name: i for i, name in enumerate(sorted({*ours.labels, *theirs.labels}))}
    keys = [
        rows.patch * len(place) + np.array([place[name] for name in rows.labels], np.intp)[rows.label]
        for rows in (ours, theirs)
    ]  # sorted, as the rows are
    at = np.searchsorted(keys[1], keys[0])
    found = np.flatnonzero(at < len(keys[1]))
    found = found[keys[1][at[found]] == keys[0][found]]
    return found, at[found]


def _differences(ours: Rows, theirs: Rows, method: str) -> Iterator[Column]:
    """Yield our values less theirs, of rows in pairs."""
    for metric, values in ours.values.items():
        yield Column(method, metric, values.astype(np.float64) - theirs.values[metric])
