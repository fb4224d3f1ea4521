from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from itertools import product
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from infra.parts import StageParts
from infra.ray_pool import Done, Failed, Resources
from infra.storage import StorePaths
from infra.tables import EXPLANATION_METRICS, EXPLANATIONS, PATCHES, publish, read_table
from tasks import stage
from tasks.explain import Explained
from tasks.explanation_metrics import (
    EXCESS,
    MAP_METRICS,
    UNIFORM,
    ZERO,
    ExplainedBranch,
    ExplanationJudge,
    JudgeJob,
    judge_jobs,
    publish_explanation_metrics,
)
from tasks.stage import PartsOfItems, ShardCount, StageReport

LABELS = ("forest", "sand", "water")
IOUS = ("iou_95", "iou_90", "iou_85", "iou_80", "iou_75")
FAITHFUL = ("average_drop", "average_increase", "deletion_auc", "insertion_auc")
COMPARED = ("judd_auc", EXCESS, ZERO, "insertion_auc")
VALUES = ("value", "low", "high", "n")
SHARDS = (0, 1, 2)
N = 60
FLAGGED = {"p03", "p04", "p06", "p09"}
"""Patches with snow or cloud, where a test has any."""

type Row = dict[str, Any]
type Outcome = Done[ShardCount] | Failed


def rows_of(seed: int) -> list[Row]:
    """Rows of 60 patches, some labels each: a fifth without a reference map, some zero maps, a sample of a third."""
    rng = np.random.default_rng(seed)
    rows = []
    for patch in range(N):
        for label in LABELS:
            if rng.random() < 0.3:
                continue
            row: Row = dict.fromkeys(EXPLANATIONS.names)
            row |= {"patch_id": f"p{patch:02d}", "split": "train" if patch < 40 else "test", "label": label, "seed": 3}
            row |= {"prob": 0.5, "sampled": patch % 3 == 0, "map_store": "m", "map_index": patch, "map_label": 0}
            is_zero, has_area = rng.random() < 0.1, rng.random() < 0.8
            if has_area:
                row["area_share"] = float(np.float32(rng.choice([0.25, 0.5, 1.0, rng.random()])))
            if not is_zero:
                row |= {name: float(np.float32(rng.random())) for name in ("coverage", "entropy")}
                if has_area:
                    row |= {name: float(np.float32(rng.random())) for name in ("pointing", *IOUS, "similarity")}
                    if row["area_share"] < 1:
                        row |= {name: float(np.float32(rng.random())) for name in ("judd_auc", "correlation")}
                if row["sampled"]:
                    row |= {name: float(np.float32(100 * rng.random())) for name in FAITHFUL}
            rows.append(row)
    return rows


def branch_of(
    paths: StorePaths, rows: Sequence[Row], sr: str = "bicubic", shards: Sequence[int] = SHARDS, **changes: Any
) -> ExplainedBranch:
    """A branch whose parts hold the rows of one patch in one shard."""
    method = changes.pop("method", "grad_cam")
    parts = StageParts(paths, "explanations", changes.pop("config", f"{sr}-{method}"))
    for shard in shards:
        of_shard = [row for row in rows if int(row["patch_id"][1:]) % len(SHARDS) == shard]
        parts.write(shard, pa.Table.from_pylist(of_shard, EXPLANATIONS))
    item = Explained(method, {}, "predicted", sampled=changes.pop("sampled", False), parts=parts)
    return ExplainedBranch(sr, changes.pop("classifier", "resnet18"), changes.pop("seed", 3), item, SHARDS)


def tile_of(patch: int) -> str:
    return f"T{patch % 7}"


@pytest.fixture
def paths(tmp_path: Path) -> StorePaths:
    found = StorePaths(tmp_path / "store")
    patches(found, [tile_of(patch) for patch in range(N)])
    return found


def patches(paths: StorePaths, tiles: Sequence[str | None], flags: Mapping[int, Row] = MappingProxyType({})) -> None:
    common = {"shard": 0, "row": 0, "split": "all", "has_s1": False, "has_map": True, "nodata_share": 0.0}
    rows = [
        {"patch_id": f"p{patch:02d}", "tile": tile, "source_version": "x", **common, **flags.get(patch, {})}
        for patch, tile in enumerate(tiles)
    ]
    publish(paths.table("patches"), pa.Table.from_pylist(rows, PATCHES), PATCHES, ["patch_id"])


def judge(paths: StorePaths, branches: Sequence[ExplainedBranch]) -> None:
    """Judge and publish all branches, in this process."""
    jobs = judge_jobs(paths, branches)
    worker = ExplanationJudge(paths, jobs)
    for item in range(len(jobs)):
        worker.run(item)
    for job in jobs:
        publish_explanation_metrics(job)


def published(paths: StorePaths) -> pd.DataFrame:
    table = read_table(paths.table("explanation_metrics"))
    assert table.schema.remove_metadata().equals(EXPLANATION_METRICS.remove_metadata())
    frame: pd.DataFrame = table.to_pandas()
    return frame


def value_of(found: pd.DataFrame, **wanted: object) -> pd.Series:
    """The one row of these names, of all patches unless said otherwise; a name that is None is null."""
    wanted.setdefault("subset", "all")
    for name in ("reference", "label", "area_quartile"):
        wanted.setdefault(name, None)
    for name, value in wanted.items():
        found = found[found[name].isna() if value is None else found[name] == value]
    assert len(found) == 1, (wanted, len(found))
    return found.iloc[0]


def with_derived(rows: Sequence[Row]) -> pd.DataFrame:
    frame = pd.DataFrame(rows)
    frame[list(MAP_METRICS)] = frame[list(MAP_METRICS)].astype(float)
    frame["area_share"] = frame["area_share"].astype(float)
    frame[EXCESS] = frame["pointing"] - frame["area_share"]
    frame[ZERO] = frame["coverage"].isna().astype(float)
    return frame


def of_subsets(frame: pd.DataFrame) -> dict[str, tuple[pd.DataFrame, list[str]]]:
    """Rows of each subset, and the metrics that it has: maps are judged by further passes in the sample alone."""
    metrics = [*MAP_METRICS, EXCESS, ZERO]
    of_all = [metric for metric in metrics if metric not in FAITHFUL]
    return {"all": (frame, of_all), "sample": (frame[frame.sampled], metrics)}


def test_values_are_the_means_that_pandas_has(paths: StorePaths) -> None:
    """Of every metric: of all labels, and of each; over all patches, and over the sample."""
    rows = rows_of(0)
    judge(paths, [branch_of(paths, rows)])
    found, frame = published(paths), with_derived(rows)
    of_method = found[(found.method == "grad_cam") & found.area_quartile.isna()]
    seen = 0
    for subset, (rows_of_subset, metrics) in of_subsets(frame).items():
        for split, of_split in rows_of_subset.groupby("split"):
            for label, of_label in [(None, of_split), *of_split.groupby("label")]:
                for metric in metrics:
                    row = value_of(of_method, subset=subset, split=split, label=label, metric=metric)
                    assert row["value"] == pytest.approx(of_label[metric].mean(), rel=1e-12)
                    assert row["n"] == of_label[metric].count()
                    seen += 1
                zero = value_of(of_method, subset=subset, split=split, label=label, metric=ZERO)
                assert zero["value"] == of_label["coverage"].isna().mean()
    assert seen == len(of_method)
    assert frame["coverage"].isna().sum() > 0


def test_intervals_are_those_of_a_loop_over_resampled_tiles(paths: StorePaths) -> None:
    rows = rows_of(0)
    judge(paths, [branch_of(paths, rows)])
    frame = with_derived(rows)
    cases = (
        ("all", "train", None, "judd_auc"),
        ("all", "test", "sand", "coverage"),
        ("all", "test", None, EXCESS),
        ("sample", "train", None, "judd_auc"),
        ("sample", "train", "water", "deletion_auc"),
    )
    for subset, split, label, metric in cases:
        of_subset = frame if subset == "all" else frame[frame.sampled]
        chosen = of_subset[(of_subset.split == split) & ((of_subset.label == label) | (label is None))]
        by_tile = {
            tile: group[metric].dropna().to_numpy()
            for tile, group in chosen.groupby(chosen.patch_id.str[1:].astype(int).map(tile_of))
        }
        tiles, rng, draws = sorted(by_tile), np.random.default_rng(0), []
        for _ in range(1000):
            drawn = rng.integers(len(tiles), size=len(tiles))
            draws.append(np.concatenate([by_tile[tiles[i]] for i in drawn]).mean())
        names = {"subset": subset, "split": split, "label": label, "metric": metric}
        row = value_of(published(paths), method="grad_cam", **names)
        np.testing.assert_allclose([row["low"], row["high"]], np.percentile(draws, [2.5, 97.5]), rtol=1e-9)


def test_patches_without_tiles_are_resampled_themselves(paths: StorePaths) -> None:
    """Even where one alone has none: as many clusters as patches."""
    patches(paths, [None if patch == 5 else tile_of(patch) for patch in range(N)])
    rows = rows_of(1)
    judge(paths, [branch_of(paths, rows)])
    frame = with_derived(rows)
    chosen = frame[frame.split == "train"]
    by_patch = {str(name): group["entropy"].dropna().to_numpy() for name, group in chosen.groupby("patch_id")}
    names, rng, draws = sorted(by_patch), np.random.default_rng(0), []
    for _ in range(1000):
        drawn = rng.integers(len(names), size=len(names))
        draws.append(np.concatenate([by_patch[names[i]] for i in drawn]).mean())
    row = value_of(published(paths), method="grad_cam", split="train", metric="entropy")
    np.testing.assert_allclose([row["low"], row["high"]], np.percentile(draws, [2.5, 97.5]), rtol=1e-9)


def test_patches_with_snow_or_cloud_are_not_scored(paths: StorePaths, tmp_path: Path) -> None:
    """As if they had no rows: in no mean, floor, quarter or difference, and their tiles are not drawn."""
    tiles: list[str | None] = [tile_of(patch) for patch in range(N)]
    tiles[6] = "flagged"
    tiles[9] = None
    flags = {3: {"has_snow": True}, 4: {"has_snow": False, "has_cloud": True}, 5: {"has_snow": False}}
    flags |= {6: {"has_snow": True, "has_cloud": False}, 9: {"has_snow": True, "has_cloud": True}}
    patches(paths, tiles, flags)
    branches = {"none": rows_of(1), "bicubic": rows_of(0)}
    judge(paths, [branch_of(paths, rows, sr) for sr, rows in branches.items()])
    other = StorePaths(tmp_path / "other")
    patches(other, [tile_of(patch) for patch in range(N)])
    clean = {sr: [row for row in rows if row["patch_id"] not in FLAGGED] for sr, rows in branches.items()}
    judge(other, [branch_of(other, rows, sr) for sr, rows in clean.items()])
    pd.testing.assert_frame_equal(published(paths), published(other), check_exact=True)
    row = value_of(published(paths), sr="none", method="grad_cam", split="train", metric=ZERO)
    assert row["n"] == sum(row["split"] == "train" for row in clean["none"])
    assert {row["patch_id"] for row in branches["none"]} >= FLAGGED


def test_one_tile_has_no_interval(paths: StorePaths) -> None:
    patches(paths, ["T0"] * N)
    judge(paths, [branch_of(paths, rows_of(0))])
    found = published(paths)
    assert found.low.isna().all()
    assert found.high.isna().all()
    assert found.value.notna().all()


def test_differences_are_of_the_patches_and_labels_that_both_have(paths: StorePaths) -> None:
    ours, theirs = rows_of(0), rows_of(1)
    branches = [
        branch_of(paths, theirs, "bicubic"),
        branch_of(paths, ours, "swinir_m"),
        branch_of(paths, rows_of(2), "none"),
        branch_of(paths, rows_of(3), "bicubic", classifier="other", config="other-classifier"),
        branch_of(paths, rows_of(4), "bicubic", method="cam"),
        branch_of(paths, rows_of(5), "bicubic", seed=4, config="another-seed"),
    ]
    judge(paths, branches)
    found = published(paths)
    pairs = {(str(row.sr), str(row.reference)) for row in found[found.reference.notna()].itertuples() if row.seed == 3}
    assert pairs == {("swinir_m", "none"), ("swinir_m", "bicubic"), ("bicubic", "none")}
    assert set(found[found.reference.notna()].classifier) == {"resnet18"}
    assert not (found.method.eq(UNIFORM) & found.reference.notna()).any()
    keys = ["patch_id", "label"]
    both = with_derived(ours).merge(with_derived(theirs), on=[*keys, "split"], suffixes=("", "_theirs"))
    assert 0 < len(both) < min(len(ours), len(theirs))
    seen = 0
    for metric in COMPARED:
        both["difference"] = both[metric] - both[f"{metric}_theirs"]
        for subset, (of_subset, metrics) in of_subsets(both).items():
            if metric not in metrics:
                assert not (found.metric.eq(metric) & found.subset.eq(subset)).any()
                continue
            for split, of_split in of_subset.groupby("split"):
                for label, rows in [(None, of_split), *of_split.groupby("label")]:
                    names = {"sr": "swinir_m", "reference": "bicubic", "method": "grad_cam", "subset": subset}
                    if not rows["difference"].count():  # of so few, none may have the metric in both
                        assert subset == "sample"
                        continue
                    seen += 1
                    row = value_of(found, split=split, label=label, metric=metric, **names)
                    assert row["value"] == pytest.approx(rows["difference"].mean(), rel=1e-9)
                    assert row["n"] == rows["difference"].count()
    assert seen == found[(found.sr == "swinir_m") & (found.reference == "bicubic")].metric.isin(COMPARED).sum()


def test_a_uniform_map_scores_what_chance_gives_on_the_same_rows(paths: StorePaths) -> None:
    """Against noise: the pixels of a uniform map in a random order, drawn anew for each mask."""
    rows = rows_of(0)
    judge(paths, [branch_of(paths, rows)])
    found, frame = published(paths), with_derived(rows)
    of_split = frame[frame.split == "train"]
    rng, pixels = np.random.default_rng(0), 120**2
    counted = of_split[of_split.iou_90.notna()]
    ious = []
    for area in counted.area_share:
        inside = np.zeros(pixels, bool)
        inside[: round(area * pixels)] = True
        taken = rng.permutation(pixels)[: round(0.9 * pixels)]
        ious.append(inside[taken].sum() / (inside.sum() + (~inside)[taken].sum()))
    for metric, expected, tolerance in (
        ("judd_auc", 0.5, 0),
        ("pointing", counted.area_share.mean(), 1e-12),
        (EXCESS, 0, 0),
        ("similarity", counted.area_share.mean(), 1e-12),
        ("iou_90", np.mean(ious), 1e-3),
    ):
        row = value_of(found, method=UNIFORM, split="train", metric=metric)
        ours = value_of(found, method="grad_cam", split="train", metric=metric)
        assert row["value"] == pytest.approx(expected, abs=tolerance)
        assert row["n"] == ours["n"] == of_split[metric].count()
    assert of_split.judd_auc.count() < counted.area_share.count() < of_split.area_share.count()
    assert set(found[found.method == UNIFORM].metric) == {"judd_auc", "pointing", EXCESS, "similarity", *IOUS}


def test_quarters_are_by_area_the_smallest_first(paths: StorePaths) -> None:
    rows = rows_of(0)
    judge(paths, [branch_of(paths, rows)])
    found, frame = published(paths), with_derived(rows)
    for (subset, (of_subset, _)), split in product(of_subsets(frame).items(), ("train", "test")):
        of_split = of_subset[of_subset.split == split]
        known = of_split[of_split.area_share.notna()].sort_values(["area_share", "patch_id", "label"])
        sizes = [len(known) // 4 + (quarter < len(known) % 4) for quarter in range(4)]
        for quarter in range(4):
            start = sum(sizes[:quarter])
            of_quarter = known.iloc[start : start + sizes[quarter]]
            for metric in ("pointing", "coverage", ZERO):
                names = {"subset": subset, "split": split, "metric": metric, "area_quartile": quarter + 1}
                row = value_of(found, method="grad_cam", **names)
                assert row["value"] == pytest.approx(of_quarter[metric].mean(), rel=1e-12)
                assert row["n"] == of_quarter[metric].count()
    assert found[found.reference.notna()].area_quartile.isna().all()


def scored(patch: int, judd_auc: float, area: float, pointing: float, **changes: Any) -> Row:
    """A row of one patch's only label, of the split test."""
    row: Row = dict.fromkeys(EXPLANATIONS.names)
    row |= {"patch_id": f"p{patch:02d}", "split": "test", "label": "sand", "seed": 3, "prob": 0.5, "sampled": False}
    row |= {"map_store": "m", "map_index": patch, "map_label": 0, "coverage": 0.5}
    return row | {"judd_auc": judd_auc, "area_share": area, "pointing": pointing} | changes


def test_a_costly_method_stands_beside_cheap_ones_and_floors_on_the_sample(paths: StorePaths) -> None:
    """By hand: Grad-CAM has 0.25 less than Score-CAM on the sample of p0 and p2, and more on all patches."""
    cheap = [
        scored(0, 0.5, 0.25, 1, sampled=True, average_drop=20.0),
        scored(1, 1.0, 0.5, 0),
        scored(2, 0.25, 0.75, 0, sampled=True, average_drop=40.0),
        scored(3, 1.0, 0.125, 1),
    ]
    costly = [
        scored(0, 0.75, 0.25, 0, sampled=True, average_drop=10.0),
        scored(2, 0.5, 0.75, 1, sampled=True, average_drop=60.0),
    ]
    branches = [
        branch_of(paths, cheap),
        branch_of(paths, costly, method="score_cam", sampled=True),
        branch_of(
            paths,
            [row | {"judd_auc": row["judd_auc"] - 0.125} for row in costly],
            "none",
            method="score_cam",
            sampled=True,
        ),
    ]
    judge(paths, branches)
    found = published(paths)
    of_bicubic = found[(found.sr == "bicubic") & found.label.isna() & found.area_quartile.isna()]

    def numbers(subset: str, metric: str, reference: str | None = None) -> dict[tuple[str, str], tuple[float, int]]:
        rows = of_bicubic[(of_bicubic.subset == subset) & (of_bicubic.metric == metric)]
        rows = rows[rows.reference.isna() if reference is None else rows.reference == reference]
        keys = zip(rows.config.str.removeprefix("bicubic-"), rows.method, strict=True)
        return dict(zip(keys, zip(rows.value, rows.n, strict=True), strict=True))

    assert numbers("all", "judd_auc") == {("grad_cam", "grad_cam"): (0.6875, 4), ("grad_cam", UNIFORM): (0.5, 4)}
    assert numbers("sample", "judd_auc") == {
        ("grad_cam", "grad_cam"): (0.375, 2),
        ("grad_cam", UNIFORM): (0.5, 2),
        ("score_cam", "score_cam"): (0.625, 2),
        ("score_cam", UNIFORM): (0.5, 2),
    }
    assert numbers("all", EXCESS) == {("grad_cam", "grad_cam"): (0.09375, 4), ("grad_cam", UNIFORM): (0.0, 4)}
    assert numbers("sample", EXCESS)["grad_cam", "grad_cam"] == (0.0, 2)
    assert numbers("sample", EXCESS)["score_cam", "score_cam"] == (0.0, 2)
    for config in ("grad_cam", "score_cam"):
        assert numbers("sample", "pointing")[config, UNIFORM] == (0.5, 2)
    assert numbers("all", "pointing")["grad_cam", UNIFORM] == (0.40625, 4)
    assert numbers("all", "average_drop") == {}
    assert numbers("sample", "average_drop") == {
        ("grad_cam", "grad_cam"): (30.0, 2),
        ("score_cam", "score_cam"): (35.0, 2),
    }
    assert numbers("all", "judd_auc", "none") == {}
    assert numbers("sample", "judd_auc", "none") == {("score_cam", "score_cam"): (0.125, 2)}


def test_without_a_sample_there_is_one_row_of_each_name(paths: StorePaths, tmp_path: Path) -> None:
    """A costly method saw every patch then; a sample only adds to it."""
    rows = rows_of(0)
    judge(paths, [branch_of(paths, rows)])
    other = StorePaths(tmp_path / "other")
    patches(other, [tile_of(patch) for patch in range(N)])
    unjudged = [row | dict.fromkeys(FAITHFUL) | {"sampled": False} for row in rows]
    judge(other, [branch_of(other, unjudged)])
    with_sample, without = published(paths), published(other)
    assert set(without.subset) == {"all"}
    pd.testing.assert_frame_equal(
        with_sample[with_sample.subset == "all"].reset_index(drop=True), without, check_exact=True
    )
    assert not without.duplicated([name for name in EXPLANATION_METRICS.names if name not in VALUES]).any()
    assert not with_sample.duplicated([name for name in EXPLANATION_METRICS.names if name not in VALUES]).any()


def test_shards_and_the_order_of_their_rows_change_nothing(paths: StorePaths, tmp_path: Path) -> None:
    rows = rows_of(0)
    judge(paths, [branch_of(paths, rows), branch_of(paths, rows_of(1), "none")])
    other = StorePaths(tmp_path / "other")
    patches(other, [tile_of(patch) for patch in range(N)])
    branches: list[ExplainedBranch] = []
    for sr, mixed in (("none", rows_of(1)[::-1]), ("bicubic", rows[::-1])):
        branch = branch_of(other, [], sr)
        for shard in SHARDS:
            of_shard = mixed[shard :: len(SHARDS)]
            branch.parts.write(shard, pa.Table.from_pylist(of_shard, EXPLANATIONS))
        branches.append(branch)
    judge(other, branches)
    keys = [name for name in EXPLANATION_METRICS.names if name not in VALUES]
    first, second = (published(p).sort_values(keys, ignore_index=True) for p in (paths, other))
    pd.testing.assert_frame_equal(first, second, check_exact=True)


def test_a_branch_without_any_part_has_no_rows_and_says_so(paths: StorePaths) -> None:
    branches = [branch_of(paths, rows_of(0), "bicubic", shards=()), branch_of(paths, rows_of(1), "none")]
    judge(paths, branches)
    found = published(paths)
    assert set(found.sr) == {"none"}
    assert completeness(paths) == {"bicubic": b"false", "none": b"true"}


def test_a_missing_shard_of_the_reference_makes_a_comparison_incomplete(paths: StorePaths) -> None:
    branches = [branch_of(paths, rows_of(0), "bicubic"), branch_of(paths, rows_of(1), "none", shards=(0, 1))]
    judge(paths, branches)
    assert completeness(paths) == {"bicubic": b"false", "none": b"false"}
    branches[1] = branch_of(paths, rows_of(1), "none")
    judge(paths, branches)
    assert completeness(paths) == {"bicubic": b"true", "none": b"true"}


def completeness(paths: StorePaths) -> Mapping[str, bytes]:
    return {
        path.name.split("-")[0]: pq.ParquetFile(path).schema_arrow.metadata[b"superscene.complete"]
        for path in paths.table("explanation_metrics").glob("*.parquet")
    }


def part_times(jobs: Sequence[JudgeJob]) -> list[int]:
    return [job.parts.path(0).stat().st_mtime_ns for job in jobs]


def run_judge(paths: StorePaths, branches: Sequence[ExplainedBranch], failing: str = "") -> StageReport:
    """The stage as a run has it, its pool in this process; the items of one SR model may fail."""
    jobs = judge_jobs(paths, branches)
    work = PartsOfItems([(job.parts, 0) for job in jobs])

    def pool(build: Callable[[], ExplanationJudge], items: Sequence[int], _: Resources) -> Iterator[Outcome]:
        for item in items:
            if jobs[item].branch.sr == failing:
                yield Failed(item, 1, "killed")
            else:
                yield Done(item, build().run(item))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(stage, "run_pool", pool)
        report = stage.run_stage(
            "judge maps", partial(ExplanationJudge, paths, jobs), [work], list(range(len(jobs))), Resources()
        )
    for job in jobs:
        publish_explanation_metrics(job)
    return report


def test_a_second_run_judges_nothing_and_one_with_more_shards_what_they_change(paths: StorePaths) -> None:
    """Of three branches: swinir_m is compared with bicubic and none, bicubic with none, and none with nothing."""
    seeds = {"none": 0, "bicubic": 1, "swinir_m": 2}
    branches = [branch_of(paths, rows_of(seed), sr, shards=(0, 1)) for sr, seed in seeds.items()]
    first = run_judge(paths, branches)
    assert (first.done, first.skipped) == (3, 0)
    assert first.patches == sum(
        len({row["patch_id"] for row in rows_of(seed) if int(row["patch_id"][1:]) % 3 < 2}) for seed in seeds.values()
    )
    before, times = published(paths), part_times(judge_jobs(paths, branches))
    again = run_judge(paths, branches)
    assert (again.done, again.skipped) == (0, 3)
    assert run_judge(paths, branches[::-1]).skipped == 3  # whichever order the run names them in
    assert part_times(judge_jobs(paths, branches)) == times
    pd.testing.assert_frame_equal(published(paths), before, check_exact=True)
    for sr, n_done in (("swinir_m", 1), ("bicubic", 2), ("none", 3)):
        whole = branch_of(paths, rows_of(seeds[sr]), sr)
        branches = [whole if branch.sr == sr else branch for branch in branches]
        more = run_judge(paths, branches)
        assert (more.done, more.skipped) == (n_done, 3 - n_done)
    assert completeness(paths) == dict.fromkeys(seeds, b"true")
    assert published(paths).n.max() > before.n.max()


def test_what_was_judged_before_a_run_died_is_kept(paths: StorePaths) -> None:
    branches = [branch_of(paths, rows_of(seed), sr) for seed, sr in enumerate(("none", "bicubic"))]
    died = run_judge(paths, branches, failing="bicubic")
    assert (died.done, [failure.shard for failure in died.failures]) == (1, [1])
    assert set(published(paths).sr) == {"none"}
    assert completeness(paths) == {"none": b"true", "bicubic": b"false"}
    resumed = run_judge(paths, branches)
    assert (resumed.done, resumed.skipped, resumed.complete) == (1, 1, True)
    assert completeness(paths) == {"none": b"true", "bicubic": b"true"}


def test_patches_come_in_any_order_and_labels_differ_between_branches(paths: StorePaths) -> None:
    """By hand: of two branches' maps only those of p2 and water are of one patch and label."""
    ours = [scored(2, 0.75, 0.5, 1, label="water"), scored(1, 0.5, 0.5, 1, label="forest")]
    theirs = [scored(2, 0.5, 0.5, 0, label="sand"), scored(2, 0.25, 0.5, 0, label="water"), scored(1, 1.0, 0.5, 0)]
    judge(paths, [branch_of(paths, ours), branch_of(paths, theirs, "none")])
    found = published(paths)
    of_pairs = found[found.reference.notna() & (found.metric == "judd_auc")]
    assert of_pairs.label.dropna().tolist() == ["water"]
    assert of_pairs[["value", "n"]].to_numpy().tolist() == [[0.5, 1], [0.5, 1]]
    assert set(found[found.sr == "none"].label.dropna()) == {"sand", "water"}


def test_what_branches_are_compared_with_is_read_once(paths: StorePaths, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of two methods, whose branches come in turn; after the second there is nothing left of the first."""
    methods, sr_models = ("grad_cam", "cam"), ("none", "bicubic", "swinir_m")
    branches = [branch_of(paths, rows_of(0), sr, method=method) for sr in sr_models for method in methods]
    read: list[tuple[str, int]] = []
    as_it_was = StageParts.read

    def counted(parts: StageParts, shard: int) -> pa.Table:
        read.append((parts.config, shard))
        return as_it_was(parts, shard)

    monkeypatch.setattr(StageParts, "read", counted)
    jobs = judge_jobs(paths, branches)
    worker = ExplanationJudge(paths, jobs)
    for item in range(len(jobs)):
        worker.run(item)
        last = {branch.parts.config for branch in (jobs[item].branch, *jobs[item].references)}
        assert worker._held.keys() == last
    assert sorted(read) == sorted(product((branch.parts.config for branch in branches), SHARDS))
