from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from infra.parts import StageParts
from infra.storage import StorePaths
from infra.tables import EXPLANATION_METRICS, EXPLANATIONS, PATCHES, publish, read_table
from tasks.explain import Explained
from tasks.explanation_metrics import EXCESS, MAP_METRICS, UNIFORM, ZERO, ExplainedBranch, publish_explanation_metrics

LABELS = ("forest", "sand", "water")
IOUS = ("iou_95", "iou_90", "iou_85", "iou_80", "iou_75")
FAITHFUL = ("average_drop", "average_increase", "deletion_auc", "insertion_auc")
SHARDS = (0, 1, 2)
N = 60

type Row = dict[str, Any]


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
    item = Explained(method, {}, "predicted", sampled=True, parts=parts)
    return ExplainedBranch(sr, changes.pop("classifier", "resnet18"), changes.pop("seed", 3), item, SHARDS)


def tile_of(patch: int) -> str:
    return f"T{patch % 7}"


@pytest.fixture
def paths(tmp_path: Path) -> StorePaths:
    found = StorePaths(tmp_path / "store")
    patches(found, [tile_of(patch) for patch in range(N)])
    return found


def patches(paths: StorePaths, tiles: Sequence[str | None]) -> None:
    common = {"shard": 0, "row": 0, "split": "all", "has_s1": False, "has_map": True, "nodata_share": 0.0}
    rows = [
        {"patch_id": f"p{patch:02d}", "tile": tile, "source_version": "x", **common} for patch, tile in enumerate(tiles)
    ]
    publish(paths.table("patches"), pa.Table.from_pylist(rows, PATCHES), PATCHES, ["patch_id"])


def published(paths: StorePaths) -> pd.DataFrame:
    table = read_table(paths.table("explanation_metrics"))
    assert table.schema.remove_metadata().equals(EXPLANATION_METRICS.remove_metadata())
    frame: pd.DataFrame = table.to_pandas()
    return frame


def value_of(found: pd.DataFrame, **wanted: object) -> pd.Series:
    """The one row of these names; a name that is None is null."""
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


def test_values_are_the_means_that_pandas_has(paths: StorePaths) -> None:
    """Of every metric: of all labels, and of each."""
    rows = rows_of(0)
    publish_explanation_metrics(paths, [branch_of(paths, rows)])
    found, frame = published(paths), with_derived(rows)
    of_method = found[(found.method == "grad_cam") & found.area_quartile.isna()]
    metrics = [*MAP_METRICS, EXCESS, ZERO]
    seen = 0
    for split, of_split in frame.groupby("split"):
        for label, of_label in [(None, of_split), *of_split.groupby("label")]:
            for metric in metrics:
                row = value_of(of_method, split=split, label=label, metric=metric)
                assert row["value"] == pytest.approx(of_label[metric].mean(), rel=1e-12)
                assert row["n"] == of_label[metric].count()
                seen += 1
            zero = value_of(of_method, split=split, label=label, metric=ZERO)
            assert zero["value"] == of_label["coverage"].isna().mean()
    assert seen == len(of_method)
    assert frame["coverage"].isna().sum() > 0


def test_intervals_are_those_of_a_loop_over_resampled_tiles(paths: StorePaths) -> None:
    rows = rows_of(0)
    publish_explanation_metrics(paths, [branch_of(paths, rows)])
    frame = with_derived(rows)
    for split, label, metric in (("train", None, "judd_auc"), ("test", "sand", "coverage"), ("test", None, EXCESS)):
        chosen = frame[(frame.split == split) & ((frame.label == label) | (label is None))]
        by_tile = {
            tile: group[metric].dropna().to_numpy()
            for tile, group in chosen.groupby(chosen.patch_id.str[1:].astype(int).map(tile_of))
        }
        tiles, rng, draws = sorted(by_tile), np.random.default_rng(0), []
        for _ in range(1000):
            drawn = rng.integers(len(tiles), size=len(tiles))
            draws.append(np.concatenate([by_tile[tiles[i]] for i in drawn]).mean())
        row = value_of(published(paths), method="grad_cam", split=split, label=label, metric=metric)
        np.testing.assert_allclose([row["low"], row["high"]], np.percentile(draws, [2.5, 97.5]), rtol=1e-9)


def test_patches_without_tiles_are_resampled_themselves(paths: StorePaths) -> None:
    """Even where one alone has none: as many clusters as patches."""
    patches(paths, [None if patch == 5 else tile_of(patch) for patch in range(N)])
    rows = rows_of(1)
    publish_explanation_metrics(paths, [branch_of(paths, rows)])
    frame = with_derived(rows)
    chosen = frame[frame.split == "train"]
    by_patch = {str(name): group["entropy"].dropna().to_numpy() for name, group in chosen.groupby("patch_id")}
    names, rng, draws = sorted(by_patch), np.random.default_rng(0), []
    for _ in range(1000):
        drawn = rng.integers(len(names), size=len(names))
        draws.append(np.concatenate([by_patch[names[i]] for i in drawn]).mean())
    row = value_of(published(paths), method="grad_cam", split="train", metric="entropy")
    np.testing.assert_allclose([row["low"], row["high"]], np.percentile(draws, [2.5, 97.5]), rtol=1e-9)


def test_one_tile_has_no_interval(paths: StorePaths) -> None:
    patches(paths, ["T0"] * N)
    publish_explanation_metrics(paths, [branch_of(paths, rows_of(0))])
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
    publish_explanation_metrics(paths, branches)
    found = published(paths)
    pairs = {(str(row.sr), str(row.reference)) for row in found[found.reference.notna()].itertuples() if row.seed == 3}
    assert pairs == {("swinir_m", "none"), ("swinir_m", "bicubic"), ("bicubic", "none")}
    assert set(found[found.reference.notna()].classifier) == {"resnet18"}
    assert not (found.method.eq(UNIFORM) & found.reference.notna()).any()
    keys = ["patch_id", "label"]
    both = with_derived(ours).merge(with_derived(theirs), on=[*keys, "split"], suffixes=("", "_theirs"))
    assert 0 < len(both) < min(len(ours), len(theirs))
    for metric in ("judd_auc", EXCESS, ZERO, "insertion_auc"):
        both["difference"] = both[metric] - both[f"{metric}_theirs"]
        for split, of_split in both.groupby("split"):
            for label, rows in [(None, of_split), *of_split.groupby("label")]:
                row = value_of(
                    found,
                    sr="swinir_m",
                    reference="bicubic",
                    split=split,
                    label=label,
                    metric=metric,
                    method="grad_cam",
                )
                assert row["value"] == pytest.approx(rows["difference"].mean(), rel=1e-9)
                assert row["n"] == rows["difference"].count()


def test_a_uniform_map_scores_what_chance_gives_on_the_same_rows(paths: StorePaths) -> None:
    """Against noise: the pixels of a uniform map in a random order, drawn anew for each mask."""
    rows = rows_of(0)
    publish_explanation_metrics(paths, [branch_of(paths, rows)])
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
    publish_explanation_metrics(paths, [branch_of(paths, rows)])
    found, frame = published(paths), with_derived(rows)
    for split, of_split in frame.groupby("split"):
        known = of_split[of_split.area_share.notna()].sort_values(["area_share", "patch_id", "label"])
        sizes = [len(known) // 4 + (quarter < len(known) % 4) for quarter in range(4)]
        for quarter in range(4):
            start = sum(sizes[:quarter])
            of_quarter = known.iloc[start : start + sizes[quarter]]
            for metric in ("pointing", "coverage", ZERO):
                row = value_of(found, method="grad_cam", split=split, metric=metric, area_quartile=quarter + 1)
                assert row["value"] == pytest.approx(of_quarter[metric].mean(), rel=1e-12)
                assert row["n"] == of_quarter[metric].count()
    assert found[found.reference.notna()].area_quartile.isna().all()


def test_shards_and_the_order_of_their_rows_change_nothing(paths: StorePaths, tmp_path: Path) -> None:
    rows = rows_of(0)
    publish_explanation_metrics(paths, [branch_of(paths, rows), branch_of(paths, rows_of(1), "none")])
    other = StorePaths(tmp_path / "other")
    patches(other, [tile_of(patch) for patch in range(N)])
    branches: list[ExplainedBranch] = []
    for sr, mixed in (("none", rows_of(1)[::-1]), ("bicubic", rows[::-1])):
        branch = branch_of(other, [], sr)
        for shard in SHARDS:
            of_shard = mixed[shard :: len(SHARDS)]
            branch.parts.write(shard, pa.Table.from_pylist(of_shard, EXPLANATIONS))
        branches.append(branch)
    publish_explanation_metrics(other, branches)
    keys = [name for name in EXPLANATION_METRICS.names if name not in {"value", "low", "high", "n"}]
    first, second = (published(p).sort_values(keys, ignore_index=True) for p in (paths, other))
    pd.testing.assert_frame_equal(first, second, check_exact=True)


def test_a_branch_without_any_part_has_no_rows_and_says_so(paths: StorePaths) -> None:
    branches = [branch_of(paths, rows_of(0), "bicubic", shards=()), branch_of(paths, rows_of(1), "none")]
    publish_explanation_metrics(paths, branches)
    found = published(paths)
    assert set(found.sr) == {"none"}
    assert completeness(paths) == {"bicubic": b"false", "none": b"true"}


def test_a_missing_shard_of_the_reference_makes_a_comparison_incomplete(paths: StorePaths) -> None:
    branches = [branch_of(paths, rows_of(0), "bicubic"), branch_of(paths, rows_of(1), "none", shards=(0, 1))]
    publish_explanation_metrics(paths, branches)
    assert completeness(paths) == {"bicubic": b"false", "none": b"false"}
    branches[1] = branch_of(paths, rows_of(1), "none")
    publish_explanation_metrics(paths, branches)
    assert completeness(paths) == {"bicubic": b"true", "none": b"true"}


def completeness(paths: StorePaths) -> Mapping[str, bytes]:
    return {
        path.name.split("-")[0]: pq.ParquetFile(path).schema_arrow.metadata[b"superscene.complete"]
        for path in paths.table("explanation_metrics").glob("*.parquet")
    }
