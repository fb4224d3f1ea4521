"""Ingest: one shard of the archive's files becomes one shard of archive.zarr and one part of patches."""

import json
from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from infra import metrics
from infra.archives.modality import REFERENCE_MAP
from infra.archives.model import PROBLEM_SCHEMA, Archive, Patch, PatchFormat, PatchInput, Pixels, Scan
from infra.bigearthnet.bands import S1
from infra.bigearthnet.classes import CLASSES
from infra.bigearthnet.seasons import season
from infra.errors import BadPatchError, ConfigError, PipelineError
from infra.geo import footprints
from infra.logs import events, fields
from infra.parts import StageParts, read_parts
from infra.storage import write_text
from infra.tables import CLASSES as CLASSES_SCHEMA
from infra.tables import PATCHES, QUARANTINE, publish
from infra.zarr_rows import PackedRow
from infra.zarr_store import LABELS, VALID, ShardedStore, ShardWriter, archive_arrays
from tasks.plan import Plan, last_places, quarantined_pixels, shard_inputs
from tasks.stage import ShardCount


class ShardIngester:
    """Reads the patches of one shard and writes their pixels and rows. Writing a shard again writes the same."""

    def __init__(self, archive: Archive, patch_format: PatchFormat, parts: StageParts) -> None:
        self._archive = archive
        self._parts = parts
        self._labels = patch_format.labels
        self._store = ShardedStore(parts.paths.archive, writable=True)
        pixels = [spec.name for spec in archive_arrays(patch_format) if spec.name != LABELS]
        self._codecs = {name: self._store.row_codec(name) for name in pixels}

    def run(self, shard: int) -> ShardCount:
        """Ingest one shard; a bad patch becomes a quarantine row, and its row in the store stays invalid."""
        inputs = dict(shard_inputs(self._parts, shard))
        version = self._archive.version
        lost: list[dict[str, str]] = []
        while True:
            with closing(self._store.writer(shard)) as arrays:
                placed, problems = self._read(inputs, arrays)
                footprints = _footprints(placed)
                nowhere = [item for item, found in zip(placed, footprints, strict=True) if item.is_nowhere(found)]
                if not nowhere:
                    arrays.commit()
                    break
            for item in nowhere:  # hardly ever: so all are asked for at once, which is far faster than one by one
                del inputs[item.row]
                lost.append(_problem(item.source, item.source.source, "grid_mismatch", item.where))
        rows = [item.table_row(shard, footprint, version) for item, footprint in zip(placed, footprints, strict=True)]
        quarantine = pa.Table.from_pylist(problems + lost, schema=PROBLEM_SCHEMA)
        self._parts.write(shard, pa.Table.from_pylist(rows, schema=PATCHES), {"quarantine": quarantine})
        return ShardCount(len(rows))

    def _read(
        self, inputs: Mapping[int, PatchInput], arrays: ShardWriter
    ) -> tuple[list["_Placed"], list[dict[str, str]]]:
        """Read patches, by row of the shard, write its arrays, and return those that were read and what failed."""
        placed: list[_Placed] = []
        problems: list[dict[str, str]] = []
        size = self._store.shard_size
        labels, valid = np.zeros((size, len(self._labels)), np.bool_), np.zeros(size, np.bool_)
        for row in range(size):
            packed: Mapping[str, PackedRow] = {}
            if row in inputs:
                source = inputs[row]
                try:
                    patch = self._archive.read(source)
                    packed = self._packed(source, patch)
                except BadPatchError as bad:
                    problems.append(_problem(source, bad.path, bad.reason, bad.detail))
                else:
                    placed.append(_Placed(row, source, patch))
                    labels[row] = [name in (patch.labels or ()) for name in self._labels]
                    valid[row] = True
            for name, codec in self._codecs.items():
                arrays.append_row(name, codec, packed.get(name))
        arrays.append(LABELS, labels)
        arrays.append(VALID.name, valid)
        return placed, problems

    def _packed(self, source: PatchInput, patch: Patch) -> dict[str, PackedRow]:
        """Return a patch's rows of the arrays of pixels, compressed.

        Raises:
            BadPatchError: wrong_size: a picture was replaced since the archive was scanned.
        """
        arrays: dict[str, Pixels] = dict(patch.arrays)
        if patch.reference_map is not None:
            arrays[REFERENCE_MAP.array] = patch.reference_map
        packed = {}
        for name, values in arrays.items():
            codec = self._codecs[name]
            if isinstance(values, PackedRow):
                packed[name] = values
            elif values.shape == codec.shape:
                packed[name] = codec.pack(values)
            else:
                detail = f"{name} is {values.shape}, the store holds {codec.shape}"
                raise BadPatchError(source.source, "wrong_size", detail)
        return packed


class _Placed:
    """What the tables keep of a patch that was read; its pixels are let go."""

    def __init__(self, row: int, source: PatchInput, patch: Patch) -> None:
        self.row, self.source = row, source
        self.epsg, self.bounds = patch.epsg, patch.bounds
        self._of_patch = {
            "labels": patch.labels,
            "season": None if patch.acquired is None else season(patch.acquired),
            "acquired": patch.acquired,
            "tile": patch.tile,
            "has_s1": S1.array in patch.arrays,
            "has_map": patch.reference_map is not None,
            "nodata_share": patch.nodata_share,
            "crs": None if patch.epsg is None else f"EPSG:{patch.epsg}",
        }

    @property
    def where(self) -> str:
        """What is wrong with a place that is nowhere."""
        return f"EPSG:{self.epsg} {self.bounds} lies nowhere on Earth"

    def is_nowhere(self, footprint: bytes | None) -> bool:
        """Return whether the patch has a place, but no footprint."""
        return footprint is None and self.epsg is not None

    def table_row(self, shard: int, footprint: bytes | None, version: str) -> dict[str, Any]:
        """Return the patch's row of tables/patches."""
        return {
            **self._of_patch,
            "patch_id": self.source.patch_id,
            "shard": shard,
            "row": self.row,
            "split": self.source.split,
            "country": self.source.country,
            "has_snow": self.source.has_snow,
            "has_cloud": self.source.has_cloud,
            "geometry": footprint,
            "source_version": version,
        }


def _footprints(placed: Sequence[_Placed]) -> list[bytes | None]:
    """Return the footprint of each patch; None for one that has no place, or lies nowhere on Earth."""
    located = [(item.epsg, item.bounds) for item in placed if item.epsg is not None and item.bounds is not None]
    found = iter(footprints([epsg for epsg, _ in located], [bounds for _, bounds in located]) if located else ())
    return [None if item.epsg is None else next(found) for item in placed]


def _problem(source: PatchInput, path: str, reason: str, detail: str) -> dict[str, str]:
    return {"patch_id": source.patch_id, "path": path, "reason": reason, "detail": detail}


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
        ConfigError: The counts are asked of a store alone whose ingest never ended.
        PipelineError: The counts do not add up: an input was lost, which must never happen.
    """
    counts_file = plan.parts.folder / "counts.json"
    if plan.scan is None:
        if not counts_file.exists():
            raise ConfigError(f"{plan.paths.root} holds an ingest that never ended: give archive.root to go on with it")
        return IngestCounts(**json.loads(counts_file.read_text(encoding="utf-8")))
    shards = plan.ingested()
    complete = len(shards) == len(plan.shards)
    patches = read_parts(plan.parts, shards) if shards else PATCHES.empty_table()
    quarantine = quarantined_pixels(plan.parts)
    places = last_places(plan.parts)
    problems = _without_place(plan.scan, pa.array(list(places), pa.string()))
    missing = plan.shards.keys() - set(shards)
    pending = sum(shard in missing for shard in places.values())
    if patches.num_rows + quarantine.num_rows + pending != len(places):
        found = f"{patches.num_rows} stored, {quarantine.num_rows} in quarantine, {pending} pending"
        raise PipelineError(f"{plan.parts.folder}: {len(places)} inputs have a place, but {found}")
    absent_now = set(plan.scan.absent_ids.to_pylist())
    named = absent_now.union(plan.scan.inputs["patch_id"].to_pylist(), plan.scan.problems["patch_id"].to_pylist())
    counts = IngestCounts(
        patches=patches.num_rows,
        quarantined=quarantine.num_rows + problems.num_rows,
        absent=plan.scan.absent - sum(patch in absent_now for patch in places),  # stored before they went
        pending=pending,
    )
    known_here_alone = sum(patch not in named for patch in places)
    if counts.inputs != plan.scan.total + known_here_alone:
        raise PipelineError(
            f"the archive names {plan.scan.total} inputs and the store {known_here_alone} more, but {counts} makes "
            f"{counts.inputs}"
        )
    quarantine = pa.concat_tables([quarantine, problems])
    table = plan.paths.table
    publish(table("patches"), patches, PATCHES, ["patch_id"], complete=complete)
    publish(table("quarantine"), quarantine, QUARANTINE, ["path", "reason", "detail"], complete=complete)
    publish(table("classes"), _classes(plan.format.labels), CLASSES_SCHEMA, ["label_index"])
    write_text(counts_file, json.dumps(asdict(counts)))
    events.info(
        "ingested: %d patches; %d inputs in quarantine, %d absent, %d pending",
        *(counts.patches, counts.quarantined, counts.absent, counts.pending),
        extra=fields(**asdict(counts)),
    )
    metrics.count(metrics.QUARANTINED, counts.quarantined)
    return counts


def _without_place(scan: Scan, placed: pa.Array) -> pa.Table:
    """Return the problems of inputs that have no place in a plan; the others are counted there.

    A patch whose files have gone since it was planned is now a problem too. A second row of the metadata and a stray
    folder that bear the name of such a patch are inputs of their own.
    """
    ids = scan.problems["patch_id"].combine_chunks()
    gone = pc.and_(pc.is_in(ids, placed), pc.invert(pc.is_in(ids, scan.inputs["patch_id"].combine_chunks())))
    own = pc.and_(gone, pc.not_equal(scan.problems["reason"], "duplicate_id")).to_numpy()
    _, first = np.unique(ids.filter(pa.array(own)).to_numpy(zero_copy_only=False).astype(str), return_index=True)
    keep = np.ones(len(ids), np.bool_)
    keep[np.flatnonzero(own)[first]] = False
    return scan.problems.filter(pa.array(keep))


def _classes(labels: Sequence[str]) -> pa.Table:
    codes = {c.name: sorted(c.clc) for c in CLASSES}
    rows = [{"label_index": i, "label": label, "clc_codes": codes.get(label)} for i, label in enumerate(labels)]
    return pa.Table.from_pylist(rows, schema=CLASSES_SCHEMA)
