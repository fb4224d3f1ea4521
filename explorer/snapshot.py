"""What filters, map and samples need of tables/patches, read once and held in memory.

549,488 patches take less than 76 MB (`benchmarks/explorer.py`). Tables that a run publishes meanwhile are seen after
the next start.
"""

from collections.abc import Iterator
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import shapely
from numpy.typing import NDArray

from explorer.columns import Coded, coded, label_bits, labels_of
from infra.errors import StoreError
from infra.storage import StorePaths
from infra.tables import read_table
from infra.zarr_store import ShardedStore

UNKNOWN = -1
"""Of snow and cloud, where the archive does not tell."""

_AT_ONCE = 1 << 16  # footprints that are polygons at the same time


@dataclass(frozen=True, slots=True)
class Snapshot:
    """Columns of tables/patches, sorted by patch_id; N patches, B bytes of label bits."""

    ids: pa.StringArray
    """(N,), sorted by their UTF-8 bytes."""
    shard: NDArray[np.int32]
    row: NDArray[np.int32]
    labels: tuple[str, ...]
    """The archive's labels in their order."""
    truth: NDArray[np.uint8]
    """(N, B) bits of the labels present."""
    labelled: NDArray[np.bool_]
    """Whether anybody labelled the patch."""
    split: Coded
    country: Coded
    season: Coded
    acquired: Coded
    tile: Coded
    crs: Coded
    has_snow: NDArray[np.int8]
    """1, 0, or UNKNOWN; so has_cloud."""
    has_cloud: NDArray[np.int8]
    has_map: NDArray[np.bool_]
    has_pixels: NDArray[np.bool_]
    """Whether archive.zarr holds the patch: a shard may have been lost."""
    corners: NDArray[np.float32]
    """(N, 4, 2) longitude and latitude, degrees, of the footprint; NaN without a place."""
    centres: NDArray[np.float32]
    """(N, 2), likewise."""
    shuffled: NDArray[np.int32]
    """(N,), the rows in an order of their own, the same for the same number of patches."""

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def nbytes(self) -> int:
        """Bytes that the columns take."""
        values = [getattr(self, field.name) for field in fields(self)]
        arrays = [value.codes if isinstance(value, Coded) else value for value in values]
        return sum(int(array.nbytes) for array in arrays if not isinstance(array, tuple))

    @property
    def has_places(self) -> bool:
        """Whether any patch lies somewhere."""
        return bool(np.isfinite(self.centres).any())

    def find(self, patch_id: str) -> int | None:
        """Return the row of a patch; None where there is none of that name."""
        wanted, low, high = patch_id.encode(errors="surrogatepass"), 0, len(self.ids)
        while low < high:
            middle = (low + high) // 2
            if self.ids[middle].as_py().encode() < wanted:
                low = middle + 1
            else:
                high = middle
        return low if low < len(self.ids) and self.ids[low].as_py() == patch_id else None

    def patch_id(self, row: int) -> str:
        """Return the name of a patch."""
        return str(self.ids[row].as_py())

    def rows_of(self, ids: pa.Array) -> NDArray[np.int64]:
        """Return the rows of patches by name, -1 of those that are not here."""
        return np.asarray(
            pc.fill_null(pc.index_in(ids, value_set=self.ids), -1).to_numpy(zero_copy_only=False), np.int64
        )

    def true_labels(self, row: int) -> list[str] | None:
        """Return the labels of a patch; None where nobody labelled it."""
        return labels_of(self.truth[row], self.labels) if self.labelled[row] else None

    def table_row(self, row: int) -> dict[str, Any]:
        """Return what readers of pixels and maps ask of a row of tables/patches."""
        return {
            "patch_id": self.patch_id(row),
            "shard": int(self.shard[row]),
            "row": int(self.row[row]),
            "labels": self.true_labels(row),
            "has_map": bool(self.has_map[row]),
        }


def read_snapshot(paths: StorePaths) -> Snapshot:
    """Read a store's patches.

    Raises:
        StoreError: There are none, or a table cannot be read.
    """
    try:
        table = read_table(paths.table("patches"))
        classes = read_table(paths.table("classes"))
    except (pa.ArrowException, OSError) as error:
        raise StoreError(f"the tables of {paths.root} cannot be read: {error}") from error
    if not table.num_rows:
        raise StoreError(f"{paths.root} holds no patches yet: there is nothing to look at; run the flow first")
    table = _sorted(table)
    labels = _labels(table, classes)
    corners = _corners(table["geometry"])
    shard, row = table["shard"].to_numpy(), table["row"].to_numpy()
    return Snapshot(
        ids=_one_array(table["patch_id"]),
        shard=shard,
        row=row,
        labels=labels,
        truth=label_bits(table["labels"], labels),
        labelled=table["labels"].is_valid().to_numpy(),
        **{name: coded(table[name]) for name in ("split", "country", "season", "acquired", "tile", "crs")},
        has_snow=_flags(table["has_snow"]),
        has_cloud=_flags(table["has_cloud"]),
        has_map=table["has_map"].to_numpy(),
        has_pixels=_has_pixels(paths, shard, row),
        corners=corners,
        centres=corners.mean(axis=1),
        shuffled=np.random.default_rng(0).permutation(table.num_rows).astype(np.int32),
    )


def _sorted(table: pa.Table) -> pa.Table:
    ids = _one_array(table["patch_id"])
    in_order = pc.all(pc.less(ids[:-1], ids[1:])).as_py()
    return table if in_order is not False else table.sort_by("patch_id")


def _one_array(column: pa.ChunkedArray) -> pa.StringArray:
    return pa.concat_arrays(column.chunks)


def _labels(table: pa.Table, classes: pa.Table) -> tuple[str, ...]:
    """Return the labels in their order; as the patches have them, where tables/classes is not there yet."""
    if classes.num_rows:
        return tuple(classes.sort_by("label_index")["label"].to_pylist())
    return tuple(sorted(set(pc.list_flatten(table["labels"]).to_pylist())))


def _flags(column: pa.ChunkedArray) -> NDArray[np.int8]:
    return np.asarray(pc.fill_null(column.cast(pa.int8()), UNKNOWN).to_numpy())


def _has_pixels(paths: StorePaths, shard: NDArray[np.int32], row: NDArray[np.int32]) -> NDArray[np.bool_]:
    try:
        archive = ShardedStore(paths.archive)
        valid = np.asarray(archive.array("valid")[:])
    except StoreError:
        return np.zeros(len(shard), np.bool_)
    index = shard.astype(np.int64) * archive.shard_size + row
    return np.asarray(valid[np.minimum(index, len(valid) - 1)] & (index < len(valid)))


def _corners(column: pa.ChunkedArray) -> NDArray[np.float32]:
    """Return the four corners of each footprint, (N, 4, 2), or of the box around one of another shape."""
    parts = [_of_batch(batch) for batch in _batches(column)]
    return np.concatenate(parts)


def _batches(column: pa.ChunkedArray) -> Iterator[NDArray[np.object_]]:
    for first in range(0, len(column), _AT_ONCE):
        yield column.slice(first, _AT_ONCE).to_numpy(zero_copy_only=False)


def _of_batch(wkb: NDArray[np.object_]) -> NDArray[np.float32]:
    polygons = shapely.from_wkb(wkb, on_invalid="ignore")
    coordinates, of = shapely.get_coordinates(polygons, return_index=True)
    count = np.bincount(of, minlength=len(wkb))
    left, bottom, right, top = shapely.bounds(polygons).T
    corners = np.stack([left, bottom, right, bottom, right, top, left, top], axis=1).reshape(-1, 4, 2)
    of_four = count == 5  # the first corner is there twice
    corners[of_four] = coordinates[of_four[of]].reshape(-1, 5, 2)[:, :4]
    return corners.astype(np.float32)
