"""What the small store's training samples are, by the archive's own files."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import rasterio

from infra.bigearthnet.bands import RGB
from tasks.plan import Plan
from tests.tasks.small_store import MAX_DN, band_file, metadata


def archive_of(store: Plan) -> Path:
    return store.paths.root.parent / "archive"


def usable(store: Plan, split: str) -> dict[str, list[str]]:
    """Labels of a split's stored, clean, labelled patches, from the archive's own metadata, sorted by patch."""
    stored = {patch for shard in store.shards for patch in store.parts.read(shard)["patch_id"].to_pylist()}
    rows = {row["patch_id"]: row for row in metadata(archive_of(store))}
    return {
        patch: rows[patch]["labels"]
        for patch in sorted(rows)
        if rows[patch]["split"] == split
        and patch in stored
        and rows[patch]["labels"] is not None
        and not rows[patch]["contains_seasonal_snow"]
        and not rows[patch]["contains_cloud_or_shadow"]
    }


def unit_pixels(store: Plan, patches: Sequence[str]) -> dict[bytes, str]:
    """Patches by their clipped DN."""
    found = {}
    for patch in patches:
        bands = []
        for band in RGB:
            with rasterio.open(band_file(archive_of(store), patch, band)) as source:
                bands.append(np.minimum(source.read(1), MAX_DN))
        found[np.stack(bands).astype(np.uint16).tobytes()] = patch
    return found
