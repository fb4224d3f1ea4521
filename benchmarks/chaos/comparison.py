"""Whether two stores hold the same: every row of every table, every value of every array, every object's name."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import zarr

from infra.object_store import ObjectPath
from infra.zarr_objects import ZarrObjects

MEASURED = ("seconds", "wait_share")
"""Columns of any table that say how long something took: the only ones that are not compared."""

OF_A_RUN = ("configs", "inputs", "patches", "quarantined", "absent")
"""Columns of tables/runs that say what was done: those of the last runs are compared. The others are names and times of
runs, seconds, versions and settings, of which the store's place is one."""

NOT_COMPARED = ("tables/runs/", "report/", "work/run.json", "work/lease.json")
"""What tells of runs, not of patches. A report shows how long its run took."""


def differences(store: Path, reference: Path) -> list[str]:
    """Return in which way a store differs from another, one sentence each; none where both hold the same.

    Args:
        store: A folder, or a place on object storage.
        reference: What it is compared with.
    """
    ours, theirs = ({name for name in _names(root) if not name.startswith(NOT_COMPARED)} for root in (store, reference))
    found = [f"{name} is there, the reference has none" for name in sorted(ours - theirs)]
    found += [f"{name} is missing" for name in sorted(theirs - ours)]
    arrays: set[str] = set()
    for name in sorted(ours & theirs):
        if name.startswith("work/"):
            continue  # what tables are made from, and what shows in them
        left, right = ((root / name).read_bytes() for root in (store, reference))
        if left == right:
            continue
        if name.endswith(".parquet"):
            found += [f"{name}: {what}" for what in table_differences(_table(left), _table(right))]
        elif ".zarr/" in name and not name.endswith("zarr.json"):
            arrays.add(name.partition("/c/")[0])
        else:
            found.append(f"{name}: other bytes")
    for name in sorted(arrays):
        found += [f"{name}: {what}" for what in _array_differences(store / name, reference / name)]
    left_run, right_run = _last_run(store), _last_run(reference)
    found += [
        f"tables/runs: {column} is {left_run[column]}, not {right_run[column]}"
        for column in (*OF_A_RUN, "status")
        if left_run[column] != right_run[column]
    ]
    return found


def table_differences(ours: pa.Table, theirs: pa.Table) -> list[str]:
    """Return in which way one file's rows differ from another's: they are to be equal, bit for bit, in one order."""
    if not ours.schema.equals(theirs.schema, check_metadata=True):
        return [f"another schema: {ours.schema} instead of {theirs.schema}"]
    if ours.num_rows != theirs.num_rows:
        return [f"{ours.num_rows} rows instead of {theirs.num_rows}"]
    compared = [name for name in ours.column_names if name not in MEASURED]
    for row, (left, right) in enumerate(zip(_rows(ours, compared), _rows(theirs, compared), strict=True)):
        if repr(left) != repr(right):  # as text, so that NaN equals itself
            columns = [name for name in compared if repr(left[name]) != repr(right[name])]
            shown = ", ".join(f"{name} is {left[name]!r}, not {right[name]!r}" for name in columns)
            return [f"row {row} and perhaps others: {shown}"]
    return []


def _rows(table: pa.Table, columns: list[str]) -> Iterator[dict[str, object]]:
    for batch in table.select(columns).to_batches(max_chunksize=4096):
        yield from batch.to_pylist()


def _table(content: bytes) -> pa.Table:
    return pq.ParquetFile(pa.BufferReader(content)).read()


def _array_differences(ours: Path, theirs: Path) -> list[str]:
    left, right = _array(ours), _array(theirs)
    if (left.shape, left.dtype) != (right.shape, right.dtype):
        return [f"{left.dtype} {left.shape} instead of {right.dtype} {right.shape}"]
    step = (left.shards or left.chunks)[0]
    count, first = 0, None
    for start in range(0, left.shape[0], step):
        a, b = (np.asarray(array[start : start + step]) for array in (left, right))
        unequal = np.argwhere((a != b) & ~((a != a) & (b != b)))  # NaN equals NaN here
        count += len(unequal)
        if first is None and len(unequal):
            first = (start + int(unequal[0][0]), *map(int, unequal[0][1:]))
    return [f"{count} values differ, the first at {first}"] if count else []


def _array(path: Path) -> zarr.Array[Any]:
    place = ZarrObjects(path, read_only=True) if isinstance(path, ObjectPath) else path
    return zarr.open_array(place, mode="r")


def _last_run(store: Path) -> dict[str, object]:
    last = max(path for path in (store / "tables" / "runs").iterdir() if path.suffix == ".parquet")
    (row,) = _table(last.read_bytes()).to_pylist()
    row["configs"] = sorted(set(row["configs"]))
    return dict(row)


def _names(root: Path) -> list[str]:
    found = root.rglob("*")
    paths = found if isinstance(root, ObjectPath) else (path for path in found if path.is_file())
    return [path.relative_to(root).as_posix() for path in paths]
