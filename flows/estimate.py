"""The size of a run before it starts."""

from collections import Counter
from math import prod

import numpy as np

import sr_models
from flows.config import RunConfig
from infra.archives.layouts import open_archive
from infra.archives.model import PatchFormat
from infra.errors import ConfigError
from infra.zarr_store import archive_arrays
from tasks.patch_pixels import band_set


def estimate(config: RunConfig) -> list[tuple[str, str]]:
    """Return what a run would read and write, as rows for a person.

    Raises:
        ConfigError: The configuration names no archive.
        ArchiveError: The archive cannot be read.
    """
    chosen = config.archive
    if chosen.root is None:
        raise ConfigError("plan needs archive.root: it counts what the archive holds")
    scan = open_archive(chosen.layout, chosen.root, chosen.options).scan()
    patches = scan.inputs.num_rows
    splits = Counter(scan.inputs["split"].to_pylist())
    shards = sum(-(-n // config.shard_size) for n in splits.values())
    rows = [
        ("inputs", f"{scan.total:,}"),
        ("patches", f"{patches:,} ({', '.join(f'{split} {n:,}' for split, n in sorted(splits.items()))})"),
        ("quarantined before reading", f"{scan.problems.num_rows:,}"),
        ("absent", f"{scan.absent:,}"),
        ("shards", f"{shards:,} of {config.shard_size}"),
        ("archive.zarr, at most", _size(patches * _bytes_per_patch(scan.format))),
    ]
    values = len(band_set(config.bands, scan.format)) * (scan.format.size // (config.degrade or 1)) ** 2
    sizes = {name: 2 * values * sr_models.SR_MODELS[name].scale ** 2 for name in config.sr}
    rows += [(f"sr/{name}, at most", _size(patches * sizes[name])) for name in config.sr if config.stores_pixels(name)]
    return rows


def _bytes_per_patch(patch_format: PatchFormat) -> int:
    """Return the bytes of a patch's arrays, uncompressed."""
    arrays = archive_arrays(patch_format)
    return sum(prod(spec.shape) * np.dtype(spec.dtype).itemsize for spec in arrays)


def _size(n_bytes: float) -> str:
    for unit in ("B", "kB", "MB", "GB"):
        if n_bytes < 1000:
            return f"{n_bytes:.3g} {unit}"
        n_bytes /= 1000
    return f"{n_bytes:,.1f} TB"
