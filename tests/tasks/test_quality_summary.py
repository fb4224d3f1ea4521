"""Means, differences and their intervals against pandas and resamples built row by row."""

from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest

from infra.tables import PATCHES, SR_QUALITY
from tasks.quality_summary import MEASURES, ModelQuality, mean_name, summarise

TILES = ("T29SNB", "T32TQM", "T33UUP", "T34VDK", "T35ULA")
N = 40


def rows(seed: int = 0) -> list[dict[str, Any]]:
    """Three SR models: hat lacks ten patches; some angles are null; two patches of bicubic are at the cap."""
    rng = np.random.default_rng(seed)
    found = []
    for i in range(N):
        level = rng.normal()
        for sr, gain in (("bicubic", 0.0), ("hat", 1.5), ("srresnet", 0.3)):
            if sr == "hat" and i % 4 == 0:
                continue
            row: dict[str, Any] = {name: float(rng.normal()) for name in MEASURES if name in SR_QUALITY.names}
            row |= {"patch_id": f"p{i:02d}", "sr": sr, "config": f"{sr}-config", "psnr_db": 30 + 3 * level + gain}
            if sr == "bicubic" and i in {3, 5}:
                row["psnr_db"] = 100.0
            if i == 7 or (sr == "srresnet" and i == 8):
                row["sam_deg"] = None
            found.append(row)
    return found


def patches(*, tiles: bool = True) -> pa.Table:
    table = [{"patch_id": f"p{i:02d}", "tile": TILES[i % 5 if i % 3 else 0] if tiles else None} for i in range(N)]
    return pa.Table.from_pylist(table, schema=pa.schema([PATCHES.field("patch_id"), PATCHES.field("tile")]))


def quality(seed: int = 0) -> pa.Table:
    table = pa.Table.from_pylist(rows(seed), SR_QUALITY)
    return table.take(np.random.default_rng(1).permutation(table.num_rows))  # parts come in any order


def frame(table: pa.Table) -> pd.DataFrame:
    data: pd.DataFrame = table.to_pandas().merge(patches().to_pandas(), on="patch_id").sort_values("patch_id")
    data["shift_px"] = (data["shift_row_px"] ** 2 + data["shift_col_px"] ** 2) ** 0.5
    data.index = pd.Index(data["patch_id"])
    return data


def by_name(models: list[ModelQuality]) -> dict[str, ModelQuality]:
    return {model.sr: model for model in models}


def resampled(values: pd.Series, tiles: pd.Series, resamples: int) -> list[float]:
    """Percentiles of the mean over tiles drawn with replacement, every resample put together from its rows."""
    names = np.unique(tiles)
    of_tile = {name: values[tiles == name].to_numpy() for name in names}
    rng = np.random.default_rng(0)
    means = []
    for _ in range(resamples):
        chosen = names[rng.integers(len(names), size=len(names))]
        means.append(np.nanmean(np.concatenate([of_tile[name] for name in chosen])))
    return [float(v) for v in np.percentile(means, [2.5, 97.5])]


def test_means_counts_and_intervals() -> None:
    table = quality()
    found, data = by_name(summarise(table, patches(), resamples=200)), frame(table)
    assert list(found) == ["bicubic", "hat", "srresnet"]
    assert [m.n for m in found.values()] == [40, 30, 40]
    assert [m.capped for m in found.values()] == [2, 0, 0]
    assert [m.nulls["sam_deg"] for m in found.values()] == [1, 1, 2]
    assert all(m.nulls["psnr_db"] == 0 for m in found.values())
    for sr, model in found.items():
        of_sr = data[data["sr"] == sr]
        assert set(model.means) == {mean_name(measure) for measure in MEASURES}
        for measure in MEASURES:
            mean, low, high = model.means[mean_name(measure)]
            assert mean == pytest.approx(of_sr[measure].mean(), rel=1e-5)
            assert [low, high] == pytest.approx(resampled(of_sr[measure], of_sr["tile"], 200), rel=1e-5)
    assert "psnr_db_mean_over_patches" in found["hat"].means
    assert found["hat"].means["shift_px_mean_over_patches"].value > 0


def test_differences_are_paired_by_patch() -> None:
    table = quality()
    found, data = by_name(summarise(table, patches(), resamples=200)), frame(table)
    control = data[data["sr"] == "bicubic"]
    assert found["bicubic"].differences == {}
    assert [m.n_paired for m in found.values()] == [0, 30, 40]
    for sr in ("hat", "srresnet"):
        of_sr = data[data["sr"] == sr]
        for measure in ("psnr_db", "sam_deg", "shift_px"):
            pairs = of_sr[measure] - control.loc[of_sr.index, measure]
            mean, low, high = found[sr].differences[mean_name(measure)]
            assert mean == pytest.approx(pairs.mean(), rel=1e-5)
            assert [low, high] == pytest.approx(resampled(pairs, of_sr["tile"], 200), rel=1e-5)
    by_patch = found["hat"].differences["psnr_db_mean_over_patches"].value
    unpaired = found["hat"].means["psnr_db_mean_over_patches"].value
    assert by_patch != pytest.approx(unpaired - found["bicubic"].means["psnr_db_mean_over_patches"].value, abs=0.05)


def test_what_patches_differ_by_cancels_in_pairs() -> None:
    """Patches lie decibels apart, the models by exactly one."""
    level = {f"p{i:02d}": 30.0 + i % 7 for i in range(N)}
    table = pa.Table.from_pylist(
        [row | {"psnr_db": level[row["patch_id"]] + (row["sr"] == "hat")} for row in rows()], SR_QUALITY
    )
    model = by_name(summarise(table, patches()))["hat"]
    assert model.differences["psnr_db_mean_over_patches"] == (1.0, 1.0, 1.0)
    mean = model.means["psnr_db_mean_over_patches"]
    assert mean.high - mean.low > 0.5


def test_without_a_tile_patches_are_resampled() -> None:
    table = quality()
    (bicubic, *_), data = summarise(table, patches(tiles=False), resamples=100), frame(table)
    of_sr = data[data["sr"] == "bicubic"]["psnr_db"]
    every_patch = pd.Series([f"{i:02d}" for i in range(N)], index=of_sr.index)
    mean, low, high = bicubic.means["psnr_db_mean_over_patches"]
    assert [mean, low, high] == pytest.approx([of_sr.mean(), *resampled(of_sr, every_patch, 100)], rel=1e-5)


def test_without_the_control_there_is_no_difference_and_without_rows_nothing() -> None:
    table = quality()
    models = summarise(table.filter(pa.compute.not_equal(table["sr"], "bicubic")), patches(), resamples=5)
    assert [(model.n_paired, model.differences) for model in models] == [(0, {}), (0, {})]
    assert summarise(SR_QUALITY.empty_table(), patches()) == []
    assert summarise(pa.table({}), patches()) == []


def test_no_patch_in_common() -> None:
    table = pa.Table.from_pylist(
        [row for row in rows() if (row["sr"] == "hat") == (row["patch_id"] < "p20")], SR_QUALITY
    )  # fmt: skip
    found = by_name(summarise(table, patches(), resamples=5))
    assert found["hat"].n_paired == 0
    assert found["hat"].differences == {}
