"""The plan: every patch gets its shard and row before a pixel is read, and keeps them for ever."""

import hashlib
import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from infra.archives.model import BIGEARTHNET, INPUT_SCHEMA, PROBLEM_SCHEMA, Archive, PatchFormat, PatchInput, Scan
from infra.archives.streamed import StreamedArchive
from infra.errors import ArchiveError, BadPatchError, ConfigError
from infra.fingerprint import Json
from infra.geo import footprints
from infra.name_lookup import places_among
from infra.parquet_files import read_parquet, read_rows
from infra.parts import StageParts, stage_config, stage_parts, write_parquet
from infra.storage import StorePaths, write_text
from infra.zarr_store import archive_arrays, create_store

PLAN_SCHEMA = INPUT_SCHEMA.append(pa.field("shard", pa.int32(), nullable=False)).append(
    pa.field("row", pa.int32(), nullable=False)
)
"""An archive's input and its place."""

ORDER_SEED = 0
"""Seed of the order within a split."""

_FORMAT_FILE = "format.json"
_SPLIT_ORDER = ("train", "validation", "test", "all")
_AT_ONCE = 1 << 16  # rows that are Python's objects, or copied, at a time
_ROWS_PER_GROUP = 8192  # a worker reads its shard's rows, not the whole plan


@dataclass(frozen=True, slots=True)
class Plan:
    """All shards of a store."""

    paths: StorePaths
    parts: StageParts
    """Parts of the ingest stage."""
    shards: Mapping[int, str]
    """Split of every planned shard."""
    shard_size: int
    format: PatchFormat
    """What all patches have in common."""
    scan: Scan | None
    """What the archive held when the plan was made; None where the store alone was asked."""

    def ingested(self, *splits: str) -> list[int]:
        """Shards whose patches are stored, of the named splits or of all."""
        done = self.parts.done()
        return [shard for shard, split in self.shards.items() if shard in done and (not splits or split in splits)]


def make_plan(
    archive: Archive | None,
    paths: StorePaths,
    layout: str,
    shard_size: int,
    options: Mapping[str, Json] = MappingProxyType({}),
) -> Plan:
    """Scan the archive, give new inputs their places, and make room for them in archive.zarr.

    Inputs that an earlier plan holds keep their places; new ones start new shards, so nothing that was written is
    written again. An input that was quarantined for its pixels gets a new place once it can be read, or, in a tar
    archive, once that was replaced.

    Args:
        archive: The archive; None: use what the store holds.
        paths: The store.
        layout: Name of the archive's layout.
        shard_size: Patches in a shard.
        options: The layout's options that change pixels, labels or splits.

    Raises:
        ArchiveError: The archive cannot be read as a whole, or holds no patch at all.
        ConfigError: The store was made for another layout, options or shard size, or there is no archive and no store;
            or the archive has changed a stored patch's split or labels.
        StoreError: The store cannot be written.
    """
    scan = None
    if archive is not None:
        scan = archive.scan()
        if scan.total == scan.absent:
            raise ArchiveError(f"the archive holds no patch: {scan.total} are named, {scan.absent} of them absent")
    patch_format = _stored_format(paths) if scan is None else scan.format
    determines: dict[str, Json] = {"layout": layout, **options, "labels": list(patch_format.labels), "schema": 1}
    if patch_format != BIGEARTHNET:
        determines["format"] = patch_format.to_json()
    _refuse_foreign_plans(paths, stage_config("ingest", determines))
    parts = stage_parts(paths, "ingest", determines)
    shards = _planned_shards(parts)
    if scan is not None and archive is not None:
        quarantined = quarantined_pixels(parts)["patch_id"].combine_chunks()
        _refuse_changes(scan, parts, quarantined)
        fresh = _without_place(scan, archive, parts, quarantined)
        if fresh.num_rows:
            first = max(shards, default=-1) + 1
            plan = assign(fresh, shard_size, first)
            n_shards = 1 + pc.max(plan["shard"]).as_py()
            create_store(paths.archive, archive_arrays(patch_format), shard_size, n_shards, {"layout": layout})
            if not (_plan_folder(parts) / _FORMAT_FILE).exists():
                write_text(_plan_folder(parts) / _FORMAT_FILE, json.dumps(patch_format.to_json()))
            path = _plan_folder(parts) / f"plan-{len(_plan_files(parts)):04d}.parquet"
            write_parquet(path, plan, row_group_size=_ROWS_PER_GROUP)
            shards = _planned_shards(parts)
    if shards:
        create_store(paths.archive, archive_arrays(patch_format), shard_size, 0, {})  # refuses another shard_size
    return Plan(paths, parts, shards, shard_size, patch_format, scan)


def _stored_format(paths: StorePaths) -> PatchFormat:
    """Return what the store's patches have in common."""
    found = sorted((paths.work / "plan").glob(f"*/{_FORMAT_FILE}"))
    if not found and any((paths.work / "plan").glob("*/plan-*.parquet")):
        return BIGEARTHNET  # stores of earlier versions hold nothing else
    if not found:
        raise ConfigError(f"archive.root is not given, and {paths.root} holds no patches yet")
    return PatchFormat.from_json(json.loads(found[0].read_text(encoding="utf-8")))


def assign(inputs: pa.Table, shard_size: int, first_shard: int) -> pa.Table:
    """Give every input its shard and row: one split a shard, in the order of a hash of the patch id.

    Args:
        inputs: INPUT_SCHEMA, unique patch ids.
        shard_size: Patches in a shard; the last shard of each split may be short.
        first_shard: Number of the first shard.

    Returns:
        PLAN_SCHEMA, sorted by shard and row. Any whole shard is a random sample of its split.
    """
    keys = _keys(inputs["patch_id"])
    splits = inputs["split"].combine_chunks().dictionary_encode()
    names, split_of = splits.dictionary.to_pylist(), splits.indices.to_numpy()
    order, shards, rows = [], [], []
    for split in sorted(names, key=_split_rank):
        members = np.flatnonzero(split_of == names.index(split))
        members = members[np.argsort(keys[members], kind="stable")]
        order.append(members)
        shards.append(first_shard + np.arange(len(members)) // shard_size)
        rows.append(np.arange(len(members)) % shard_size)
        first_shard += -(-len(members) // shard_size)
    table = inputs.take(pa.array(np.concatenate(order)))
    table = table.append_column("shard", pa.array(np.concatenate(shards), pa.int32()))
    return table.append_column("row", pa.array(np.concatenate(rows), pa.int32())).cast(PLAN_SCHEMA)


def _keys(patch_ids: pa.ChunkedArray) -> NDArray[np.uint64]:
    """Return the first eight bytes of each name's hash, as numbers in the order of the hashes."""
    keys = np.empty(len(patch_ids), np.uint64)
    for start in range(0, len(keys), _AT_ONCE):
        names = patch_ids.slice(start, _AT_ONCE).to_pylist()
        digests = b"".join(hashlib.sha256(f"{ORDER_SEED}:{name}".encode()).digest()[:8] for name in names)
        keys[start : start + len(names)] = np.frombuffer(digests, ">u8")
    return keys


def shard_inputs(parts: StageParts, shard: int) -> list[tuple[int, PatchInput]]:
    """Return (row, input) of one shard from the plan that holds it, but for inputs that a later plan has moved."""
    plans = _plan_files(parts)
    for number, path in enumerate(plans, start=1):
        rows = read_rows(path, "shard", shard)
        if rows.num_rows:
            moved = _places(plans[number:], rows["patch_id"].combine_chunks())
            return [_placed(row) for row in rows.to_pylist() if row["patch_id"] not in moved]
    raise ConfigError(f"no plan in {_plan_folder(parts)} holds shard {shard}")


def inputs_of_shards(parts: StageParts, shards: Collection[int]) -> pa.Table:
    """Return patch_id, s1_name, source and shard of the inputs whose last place is in some shards."""
    columns = ["patch_id", "s1_name", "source", "shard"]
    tables = [pa.schema([PLAN_SCHEMA.field(name) for name in columns]).empty_table()]
    settled = pa.array([], pa.string())
    for path in reversed(_plan_files(parts)):
        plan = read_parquet(path, columns)
        plan = plan.filter(pc.invert(pc.is_in(plan["patch_id"], value_set=settled)))
        settled = pa.concat_arrays([settled, plan["patch_id"].combine_chunks()])
        tables.append(plan.filter(pc.is_in(plan["shard"], value_set=pa.array(shards, pa.int32()))))
    return pa.concat_tables(tables)


def last_places(parts: StageParts, patch_ids: pa.Array | None = None) -> dict[str, int]:
    """Return the shard where each patch, or each of some, was planned last; a mended input is planned twice."""
    return _places(_plan_files(parts), patch_ids)


def _places(plans: Sequence[Path], patch_ids: pa.Array | None) -> dict[str, int]:
    places: dict[str, int] = {}
    for path in plans:
        plan = read_parquet(path, ["patch_id", "shard"])
        hit = plan if patch_ids is None else plan.filter(pc.is_in(plan["patch_id"], value_set=patch_ids))
        places.update(zip(hit["patch_id"].to_pylist(), hit["shard"].to_pylist(), strict=True))
    return places


def planned_inputs(parts: StageParts) -> pa.Table:
    """Return what was known of every planned input before its pixels were read, whatever became of it since.

    Args:
        parts: Parts of the ingest stage.

    Returns:
        patch_id, split, labels, has_snow, has_cloud and s1_name, one row for each patch; of one that was planned twice,
        since it could be read at last, the later.
    """
    columns = ["patch_id", "split", "labels", "has_snow", "has_cloud", "s1_name"]
    tables = [pa.schema([PLAN_SCHEMA.field(name) for name in columns]).empty_table()]
    settled = pa.array([], pa.string())
    for path in reversed(_plan_files(parts)):
        plan = read_parquet(path, columns)
        plan = plan.filter(pc.invert(pc.is_in(plan["patch_id"], value_set=settled)))
        settled = pa.concat_arrays([settled, plan["patch_id"].combine_chunks()])
        tables.append(plan)
    return pa.concat_tables(tables)


def quarantined_pixels(parts: StageParts) -> pa.Table:
    """Return the quarantine rows of all ingested shards, but for inputs that have been given a new place since."""
    shards = sorted(parts.done())
    tables = parts.read_all(shards, "quarantine")
    if not tables:
        return PROBLEM_SCHEMA.empty_table()
    rows = pa.concat_tables(tables)
    places = last_places(parts, rows["patch_id"].combine_chunks())
    origin = np.repeat(shards, [table.num_rows for table in tables]).tolist()
    current = [places[patch] == shard for patch, shard in zip(rows["patch_id"].to_pylist(), origin, strict=True)]
    return rows.filter(pa.array(current, pa.bool_()))


def _refuse_changes(scan: Scan, parts: StageParts, quarantined: pa.Array) -> None:
    """Raise ConfigError where the archive now says another split or other labels of a patch than its plan does."""
    settled = quarantined
    for path in reversed(_plan_files(parts)):
        plan = read_parquet(path, ["patch_id", "split", "labels"])
        if len(settled):
            plan = plan.filter(pa.array(places_among(plan["patch_id"], settled) < 0))
        settled = pa.concat_arrays([settled, *plan["patch_id"].chunks])  # earlier plans do not hold for these
        place = places_among(plan["patch_id"], _one(scan.inputs["patch_id"]))
        for column, what in (("split", "another split"), ("labels", "other labels")):
            changed = _changed(plan[column], scan.inputs[column], place)
            if len(changed):
                raise ConfigError(
                    f"the archive now has {what} for {len(changed)} patches that {parts.paths.root} holds already, "
                    f"such as {plan['patch_id'][changed[0]]}: choose another store"
                )


def _changed(planned: pa.ChunkedArray, scanned: pa.ChunkedArray, place: NDArray[np.int32]) -> NDArray[np.int64]:
    """Return the rows of a plan of which the archive now says something else.

    Args:
        planned: A column of the plan, texts or lists of texts.
        scanned: The same column of the archive.
        place: Of each row of the plan its row in the archive, -1 where that does not know the patch.
    """
    changed = []
    for start in range(0, len(place), _AT_ONCE):
        rows = start + np.flatnonzero(place[start : start + _AT_ONCE] >= 0)
        before, after = (
            _as_text(column.take(pa.array(at))) for column, at in ((planned, rows), (scanned, place[rows]))
        )
        differ = pc.fill_null(pc.not_equal(before, after), pc.xor(pc.is_null(before), pc.is_null(after)))
        changed.append(rows[differ.to_numpy()])
    return np.concatenate([np.empty(0, np.int64), *changed])


def _as_text(column: pa.ChunkedArray) -> pa.ChunkedArray:
    return pc.binary_join(column, "\n") if pa.types.is_list(column.type) else column


def _one(column: pa.ChunkedArray) -> pa.Array:
    return column.chunk(0) if column.num_chunks == 1 else column.combine_chunks()  # combining one copies it


def _without_place(scan: Scan, archive: Archive, parts: StageParts, quarantined: pa.Array) -> pa.Table:
    """Inputs that no plan holds, and those that were quarantined for their pixels and can be read now."""
    ids = scan.inputs["patch_id"]
    is_new = np.ones(len(ids), np.bool_)
    for path in _plan_files(parts):
        is_new &= places_among(ids, _one(read_parquet(path, ["patch_id"])["patch_id"])) < 0
    bad = places_among(ids, quarantined) >= 0
    if isinstance(archive, StreamedArchive):  # a look at one of its patches would be a pass over all of it
        is_new |= bad & archive.is_new()
    else:
        for i in np.flatnonzero(bad).tolist():
            is_new[i] = _can_be_read(archive, scan.inputs.slice(i, 1).to_pylist()[0])
    return scan.inputs if is_new.all() else scan.inputs.filter(pa.array(is_new))  # a copy is as large as the names


def _can_be_read(archive: Archive, row: dict[str, Any]) -> bool:
    try:
        patch = archive.read(patch_input(row))
    except BadPatchError:
        return False
    if patch.epsg is None or patch.bounds is None:
        return True
    return footprints([patch.epsg], [patch.bounds])[0] is not None


def patch_input(row: dict[str, Any]) -> PatchInput:
    """Return a row of INPUT_SCHEMA as an object."""
    labels = row["labels"]
    return PatchInput(**{**row, "labels": None if labels is None else tuple(labels)})


def _placed(row: dict[str, Any]) -> tuple[int, PatchInput]:
    place = row.pop("row")
    del row["shard"]
    return place, patch_input(row)


def _plan_folder(parts: StageParts) -> Path:
    return parts.paths.work / "plan" / parts.config


def _plan_files(parts: StageParts) -> list[Path]:
    return sorted(_plan_folder(parts).glob("plan-*.parquet"))


def _refuse_foreign_plans(paths: StorePaths, config: str) -> None:
    for folder in (paths.work / "plan").glob("*"):
        if folder.name != config:
            raise ConfigError(
                f"{paths.root} holds patches that were read with another archive layout, other options or other "
                "labels; choose another store"
            )


def _planned_shards(parts: StageParts) -> dict[int, str]:
    shards: dict[int, str] = {}
    for path in _plan_files(parts):
        plan = read_parquet(path, ["shard", "split"])
        numbers, first = np.unique(plan["shard"].to_numpy(), return_index=True)
        shards.update(zip(numbers.tolist(), plan["split"].take(pa.array(first)).to_pylist(), strict=True))
    return shards


def _split_rank(split: str) -> tuple[int, str]:
    return (_SPLIT_ORDER.index(split) if split in _SPLIT_ORDER else len(_SPLIT_ORDER), split)
