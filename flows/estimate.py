"""The size of a run before it starts."""

from collections import Counter

import sr_models
from flows.config import RunConfig
from infra.archives.layouts import open_archive
from infra.bigearthnet.bands import BAND_SETS
from infra.errors import ConfigError

_BYTES_PER_PATCH = 4 * 120 * 120 * 2 + 6 * 60 * 60 * 2 + 2 * 20 * 20 * 2 + 2 * 120 * 120 * 4 + 120 * 120 * 2
"""Sentinel-2, Sentinel-1 and reference map, uncompressed."""


def estimate(config: RunConfig) -> list[tuple[str, str]]:
    """Return what a run would read and write, as rows for a person.

    Raises:
        ConfigError: The configuration names no archive.
        ArchiveError: The archive cannot be read.
    """
    chosen = config.archive
    if chosen.root is None:
        raise ConfigError("plan needs archive.root: it counts what the archive holds")
    scan = open_archive(
        chosen.layout,
        chosen.root,
        include_flagged=chosen.include_flagged,
        subset=chosen.subset,
        boa_add_offset=chosen.boa_add_offset,
    ).scan()
    patches = scan.inputs.num_rows
    splits = Counter(scan.inputs["split"].to_pylist())
    shards = sum(-(-n // config.shard_size) for n in splits.values())
    rows = [
        ("inputs", f"{scan.total:,}"),
        ("patches", f"{patches:,} ({', '.join(f'{split} {n:,}' for split, n in sorted(splits.items()))})"),
        ("quarantined before reading", f"{scan.problems.num_rows:,}"),
        ("absent", f"{scan.absent:,}"),
        ("shards", f"{shards:,} of {config.shard_size}"),
        ("archive.zarr, at most", _size(patches * _BYTES_PER_PATCH)),
    ]
    channels = len(BAND_SETS[config.bands])
    sizes = {name: channels * (120 * sr_models.SR_MODELS[name].scale) ** 2 * 2 for name in config.sr}
    rows += [(f"sr/{name}, at most", _size(patches * sizes[name])) for name in config.sr if config.stores_pixels(name)]
    return rows


def _size(n_bytes: float) -> str:
    for unit in ("B", "kB", "MB", "GB"):
        if n_bytes < 1000:
            return f"{n_bytes:.3g} {unit}"
        n_bytes /= 1000
    return f"{n_bytes:,.1f} TB"
