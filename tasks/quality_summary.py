"""What tables/sr_quality says of each SR model: means over patches, and differences to bicubic on the same patches."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from classifiers.metrics import Interval, bootstrap_means
from infra.tables import SR_QUALITY
from sr_models.quality import PSNR_CAP_DB

CONTROL = "bicubic"
"""The branch that enlarges without a network."""

MEASURES: tuple[str, ...] = (
    *(field.name for field in SR_QUALITY if pa.types.is_floating(field.type)),
    "shift_px",
)
"""Measures of one patch: the numbers of the table, and shift_px, the length of (shift_row_px, shift_col_px)."""

RESAMPLES = 1000
"""Resamples of the bootstrap."""


@dataclass(frozen=True, slots=True)
class ModelQuality:
    """One SR model."""

    sr: str
    n: int
    """Patches."""
    n_paired: int
    """Those that the control was measured on too; 0 for the control itself."""
    capped: int
    """Patches whose PSNR is at the cap."""
    nulls: Mapping[str, int]
    """By measure: patches without a value, left out of its mean."""
    means: Mapping[str, Interval]
    """<measure>_mean_over_patches."""
    differences: Mapping[str, Interval]
    """<measure>_mean_over_patches of model minus control, patch by patch; empty without pairs."""


def summarise(quality: pa.Table, patches: pa.Table, resamples: int = RESAMPLES) -> list[ModelQuality]:
    """Return every SR model's summary, in the order of their names.

    Intervals resample MGRS tiles where every patch of the table has one, and patches otherwise; all models meet the
    same draws.

    Args:
        quality: Rows of `tables/sr_quality`, any order, one config for each SR model.
        patches: `tables/patches`: patch_id and tile.
        resamples: Resamples of the bootstrap.
    """
    if not quality.num_rows:
        return []
    quality = quality.sort_by("patch_id")
    tiles = _tiles(quality, patches)
    names = quality["sr"].to_numpy()
    ids = quality["patch_id"].to_numpy()
    values = _values(quality)
    control = names == CONTROL
    found = []
    for sr in sorted(set(pc.unique(quality["sr"]).to_pylist())):
        of_sr = names == sr
        table, clusters = values[of_sr], None if tiles is None else tiles[of_sr]
        differences: dict[str, Interval] = {}
        n_paired = 0
        if sr != CONTROL and control.any():
            _, ours, theirs = np.intersect1d(ids[of_sr], ids[control], assume_unique=True, return_indices=True)
            n_paired = len(ours)
            if n_paired:
                paired = None if clusters is None else clusters[ours]
                differences = _means(table[ours] - values[control][theirs], paired, resamples)
        psnr = table[:, MEASURES.index("psnr_db")]
        found.append(
            ModelQuality(
                str(sr),
                len(table),
                n_paired,
                int((psnr >= PSNR_CAP_DB).sum()),
                dict(zip(MEASURES, np.isnan(table).sum(axis=0).tolist(), strict=True)),
                _means(table, clusters, resamples),
                differences,
            )
        )
    return found


def mean_name(measure: str) -> str:
    """Return the name of a measure's mean."""
    return f"{measure}_mean_over_patches"


def _means(values: NDArray[np.float64], clusters: NDArray[np.generic] | None, resamples: int) -> dict[str, Interval]:
    intervals = bootstrap_means(values, clusters, resamples)
    return {mean_name(measure): interval for measure, interval in zip(MEASURES, intervals, strict=True)}


def _values(quality: pa.Table) -> NDArray[np.float64]:
    """Return the measures, (N, K), NaN for null."""
    columns = {
        name: quality[name].cast(pa.float64()).to_numpy(zero_copy_only=False)
        for name in MEASURES
        if name in SR_QUALITY.names
    }
    columns["shift_px"] = np.hypot(columns["shift_row_px"], columns["shift_col_px"])
    return np.stack([columns[measure] for measure in MEASURES], axis=1)


def _tiles(quality: pa.Table, patches: pa.Table) -> NDArray[np.generic] | None:
    """Return the tile of every row, or None where one has none."""
    if not patches.num_rows:
        return None
    place = pc.index_in(quality["patch_id"], value_set=patches["patch_id"].combine_chunks())
    tiles = patches["tile"].take(place)
    return None if tiles.null_count else np.asarray(tiles.to_numpy(zero_copy_only=False), dtype=str)
