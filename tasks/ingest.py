"""Ingest: one shard of the archive's files becomes one shard of archive.zarr and one part of patches."""

import json
from dataclasses import asdict, dataclass
from datetime import date

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from infra.archives.model import PROBLEM_SCHEMA, Archive, Patch, PatchInput, Scan
from infra.bigearthnet.bands import S1, S2_GROUPS
from infra.bigearthnet.classes import CLASSES, NAMES
from infra.errors import BadPatchError, PipelineError
from infra.geo import footprints
from infra.parts import StageParts, read_parts
from infra.storage import write_text
from infra.tables import CLASSES as CLASSES_SCHEMA
from infra.tables import PATCHES, QUARANTINE, publish
from infra.zarr_store import ShardedStore
from tasks.plan import Plan, planned_patches, quarantined_pixels, shard_inputs
from tasks.stage import ShardCount


class ShardIngester:
    """Reads the patches of one shard and writes their pixels and rows. Writing a shard again writes the same."""

    def __init__(self, archive: Archive, parts: StageParts) -> None:
        self._archive = archive
        self._parts = parts
        self._store = ShardedStore(parts.paths.archive, writable=True)

    def run(self, shard: int) -> ShardCount:
        """Ingest one shard; a bad patch becomes a quarantine row, and its row in the store stays invalid."""
        pixels = _ShardPixels(self._store.shard_size)
        stored: list[tuple[int, PatchInput, Patch]] = []
        problems = []
        for row, patch_input in shard_inputs(self._parts, shard):
            try:
                patch = self._archive.read(patch_input)
            except BadPatchError as bad:
                problems.append((patch_input.patch_id, bad.path, bad.reason, bad.detail))
                continue
            pixels.put(row, patch)
            stored.append((row, patch_input, patch))
        for name, values in pixels.arrays.items():
            self._store.write(shard, name, values)
        columns = list(zip(*problems, strict=True)) or [(), (), (), ()]
        quarantine = pa.table([pa.array(c, pa.string()) for c in columns], schema=PROBLEM_SCHEMA)
        self._parts.write(shard, _patch_rows(shard, stored, self._archive.version), {"quarantine": quarantine})
        return ShardCount(len(stored))


class _ShardPixels:
    """The arrays of one shard, filled row by row."""

    def __init__(self, size: int) -> None:
        self.arrays: dict[str, NDArray[np.generic]] = {
            **{g.array: np.zeros((size, len(g.bands), g.size, g.size), np.uint16) for g in S2_GROUPS},
            "s1": np.zeros((size, len(S1.bands), S1.size, S1.size), np.float32),
            "reference_map": np.zeros((size, 120, 120), np.uint16),
            "labels": np.zeros((size, len(NAMES)), np.bool_),
            "valid": np.zeros(size, np.bool_),
        }

    def put(self, row: int, patch: Patch) -> None:
        self.arrays["s2_10m"][row] = patch.s2_10m
        self.arrays["s2_20m"][row] = patch.s2_20m
        self.arrays["s2_60m"][row] = patch.s2_60m
        if patch.s1 is not None:
            self.arrays["s1"][row] = patch.s1
        if patch.reference_map is not None:
            self.arrays["reference_map"][row] = patch.reference_map
        for label in patch.labels or ():
            self.arrays["labels"][row, NAMES.index(label)] = True
        self.arrays["valid"][row] = True


def _patch_rows(shard: int, stored: list[tuple[int, PatchInput, Patch]], version: str) -> pa.Table:
    epsg = np.array([patch.epsg for _, _, patch in stored], np.int64)
    bounds = np.array([patch.bounds for _, _, patch in stored], np.float64).reshape(-1, 4)
    rows = [
        {
            "patch_id": source.patch_id,
            "shard": shard,
            "row": row,
            "labels": patch.labels,
            "split": source.split,
            "country": source.country,
            "season": season(patch.acquired),
            "acquired": patch.acquired,
            "tile": patch.tile,
            "has_snow": source.has_snow,
            "has_cloud": source.has_cloud,
            "has_s1": patch.s1 is not None,
            "has_map": patch.reference_map is not None,
            "nodata_share": patch.nodata_share,
            "crs": f"EPSG:{patch.epsg}",
            "geometry": footprint,
            "source_version": version,
        }
        for (row, source, patch), footprint in zip(stored, footprints(epsg, bounds), strict=True)
    ]
    return pa.Table.from_pylist(rows, schema=PATCHES)


def season(acquired: str | None) -> str | None:
    """Return the meteorological season of the northern hemisphere, winter being December to February.

    Args:
        acquired: Day, YYYY-MM-DD, or None.
    """
    if acquired is None:
        return None
    return ("winter", "spring", "summer", "autumn")[date.fromisoformat(acquired).month % 12 // 3]


@dataclass(frozen=True, slots=True)
class IngestCounts:
    """What became of the archive's inputs."""

    patches: int
    quarantined: int
    absent: int
    pending: int
    """Inputs in shards that failed and will be tried by the next run."""

    @property
    def inputs(self) -> int:
        """Everything the archive names or holds."""
        return self.patches + self.quarantined + self.absent + self.pending


def publish_archive(plan: Plan) -> IngestCounts:
    """Write tables/patches, tables/quarantine and tables/classes from the parts, and count the inputs.

    Raises:
        PipelineError: The counts do not add up: an input was lost, which must never happen.
    """
    counts_file = plan.parts.folder / "counts.json"
    if plan.scan is None:
        return IngestCounts(**json.loads(counts_file.read_text(encoding="utf-8")))
    shards = plan.ingested()
    complete = len(shards) == len(plan.shards)
    patches = read_parts(plan.parts, shards) if shards else PATCHES.empty_table()
    quarantine = quarantined_pixels(plan.parts)
    stored = patches["patch_id"].combine_chunks()
    problems = plan.scan.problems
    problems = problems.filter(pc.invert(pc.is_in(problems["patch_id"], value_set=stored)))
    counts = _count(plan.scan, patches, quarantine, problems, n_planned=planned_patches(plan.parts))
    quarantine = pa.concat_tables([quarantine, problems])
    table = plan.paths.table
    publish(table("patches"), patches, PATCHES, ["patch_id"], complete=complete)
    publish(table("quarantine"), quarantine, QUARANTINE, ["path", "reason", "detail"], complete=complete)
    publish(table("classes"), _classes(), CLASSES_SCHEMA, ["label_index"])
    write_text(counts_file, json.dumps(asdict(counts)))
    return counts


def _count(scan: Scan, patches: pa.Table, quarantine: pa.Table, problems: pa.Table, n_planned: int) -> IngestCounts:
    """Count every input once; a stored patch whose files have gone since stays a patch."""
    named = set(scan.inputs["patch_id"].to_pylist()) | set(scan.problems["patch_id"].to_pylist())
    vanished = sum(patch not in named for patch in patches["patch_id"].to_pylist())
    vanished += sum(patch not in named for patch in quarantine["patch_id"].to_pylist())
    counts = IngestCounts(
        patches=patches.num_rows,
        quarantined=quarantine.num_rows + problems.num_rows,
        absent=max(0, scan.absent - vanished),
        pending=n_planned - patches.num_rows - quarantine.num_rows,
    )
    if not vanished and counts.inputs != scan.total:
        raise PipelineError(f"the archive has {scan.total} inputs, but {counts} makes {counts.inputs}")
    return counts


def _classes() -> pa.Table:
    rows = [{"label_index": i, "label": c.name, "clc_codes": sorted(c.clc)} for i, c in enumerate(CLASSES)]
    return pa.Table.from_pylist(rows, schema=CLASSES_SCHEMA)
