"""Export: every patch as a STAC item, in one Parquet file (stac-geoparquet).

Source: STAC 1.1.0; stac-geoparquet 1.1.0; extensions projection 2.0.0, eo 2.0.0, grid 1.1.0 and zarr 1.1.0.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as ds
import pyarrow.parquet as pq
import shapely
import zarr
from numpy.typing import NDArray

from infra.bigearthnet.spectral import SPECTRA
from infra.errors import StoreError
from infra.fingerprint import Json
from infra.geo import bounds_in
from infra.object_store import ObjectPath
from infra.storage import StorePaths, write_atomically
from infra.tables import PATCHES, open_table
from infra.zarr_store import ShardedStore
from tasks.export import Exported, check_output

STAC_VERSION = "1.1.0"
COLLECTION = "superscene"
"""Id of the collection that all items are of; the file's metadata hold it."""

_EXTENSION = "https://stac-extensions.github.io/{}/schema.json"
_ZARR_TYPE = "application/vnd.zarr; version=3"
_PARQUET_TYPE = "application/vnd.apache.parquet"
_BATCH = 1 << 15
"""Rows in memory, and in a row group."""

_INSTANT = r"(?:^|_)(?P<instant>\d{8}T\d{6})(?:_|\.|$)"
"""The time stamp in the name of a Sentinel-2 product: start of its data take, UTC."""

_MS = pa.timestamp("ms", tz="UTC")
_BOX = ("xmin", "ymin", "xmax", "ymax")
_AS_THEY_ARE = ("labels", "split", "country", "season", "has_snow", "has_cloud", "nodata_share", "source_version")
"""Columns of tables/patches that become properties superscene:<name>."""


@dataclass(frozen=True, slots=True)
class _Asset:
    """One array of archive.zarr."""

    name: str
    size: tuple[int, int]
    """Rows and columns of a patch."""
    fields: Mapping[str, Any]
    """What is the same for all items."""


@dataclass(frozen=True, slots=True)
class _Survey:
    """What is known of all items before the first is written."""

    n_items: int
    n_patches: int
    all_have_tiles: bool
    box: tuple[float, float, float, float]
    """West, south, east, north."""
    days: tuple[str, str]
    """First and last day of acquisition."""


def export_stac(store: Path, out: Path, *, overwrite: bool = False) -> Exported:
    """Write one STAC item for each patch that has a place and a day of acquisition.

    Assets are the arrays of archive.zarr: the patch is at superscene:patch_index along their first axis.

    Args:
        store: The store.
        out: The Parquet file to write; it appears when it is whole.
        overwrite: Whether a file of that name may be replaced.

    Raises:
        ConfigError: The file is there, or lies where it must not.
        StoreError: No patch has a place and a day, the store cannot be read, or the file not be written.
    """
    check_output(store, out, overwrite=overwrite)
    paths = StorePaths(store)
    patches = open_table(paths.table("patches"), PATCHES)
    survey = _survey(patches)
    if not survey.n_items:
        raise StoreError(
            f"none of the {survey.n_patches} patches of {store} has a place and a day of acquisition: "
            "there is nothing that STAC could list"
        )
    archive = ShardedStore(paths.archive)
    items = _Items(archive, survey, location_url(paths.archive), location_url(out))
    metadata = {"geo": json.dumps(_geo(survey)), "stac-geoparquet": json.dumps(items.collection())}

    def write(path: Path) -> None:
        schema = items.of(pa.RecordBatch.from_pylist([], PATCHES)).schema.with_metadata(metadata)
        with pq.ParquetWriter(path, schema, compression="zstd", write_page_checksum=True) as writer:
            for batch in _batches(patches, PATCHES.names):
                writer.write_table(items.of(batch).cast(schema))

    write_atomically(out, write)
    return Exported(survey.n_items, survey.n_patches - survey.n_items)


def location_url(path: Path) -> str:
    """Return a place as a URL: s3://… and gs://… as they are, of this machine file:///…."""
    return str(path) if isinstance(path, ObjectPath) else path.resolve().as_uri()


def _batches(patches: ds.Dataset, columns: Sequence[str]) -> Iterator[pa.RecordBatch]:
    """Yield the patches that can be items."""
    there = ds.field("geometry").is_valid() & ds.field("acquired").is_valid() & ds.field("crs").is_valid()
    reading = {"batch_size": _BATCH, "batch_readahead": 1, "fragment_readahead": 1}
    for batch in patches.to_batches(columns=[*columns], filter=there, **reading):
        if batch.num_rows:
            yield batch


def _survey(patches: ds.Dataset) -> _Survey:
    n_items, all_have_tiles, days = 0, True, []
    box = np.array([np.inf, np.inf, -np.inf, -np.inf])
    for batch in _batches(patches, ["geometry", "acquired", "crs", "tile"]):
        n_items += batch.num_rows
        all_have_tiles &= batch["tile"].null_count == 0
        low, _, high, _ = np.split(shapely.total_bounds(_shapes(batch)), [2, 2, 4])
        box = np.concatenate([np.minimum(box[:2], low), np.maximum(box[2:], high)])
        first_last = pc.min_max(batch["acquired"]).as_py()
        days += [first_last["min"], first_last["max"]]
    west, south, east, north = box.tolist()
    return _Survey(
        n_items,
        patches.count_rows(),
        all_have_tiles,
        (west, south, east, north),
        (min(days, default=""), max(days, default="")),
    )


class _Items:
    """Turns rows of tables/patches into items."""

    def __init__(self, archive: ShardedStore, survey: _Survey, archive_url: str, own_url: str) -> None:
        self._shard_size, self._survey = archive.shard_size, survey
        self._assets = [
            asset for name in sorted(archive.group.array_keys()) if (asset := _asset(archive, name, archive_url))
        ]
        extensions = ["projection/v2.0.0", "zarr/v1.1.0"]
        if any("eo:common_name" in band for asset in self._assets for band in asset.fields.get("bands", ())):
            extensions.append("eo/v2.0.0")
        if survey.all_have_tiles:
            extensions.append("grid/v1.1.0")
        self._same: dict[str, Any] = {
            "type": "Feature",
            "stac_version": STAC_VERSION,
            "stac_extensions": [_EXTENSION.format(name) for name in extensions],
            "collection": COLLECTION,
            "links": [
                {"href": own_url, "rel": "collection", "type": _PARQUET_TYPE, "title": "the metadata of this file"},
                {"href": archive_url, "rel": "store", "type": _ZARR_TYPE, "title": "the Zarr group of the assets"},
            ],
        }

    def collection(self) -> dict[str, Json]:
        """Return the metadata of stac-geoparquet: the collection."""
        first, last = self._survey.days
        return {
            "version": "1.1.0",
            "collections": {
                COLLECTION: {
                    "type": "Collection",
                    "stac_version": STAC_VERSION,
                    "id": COLLECTION,
                    "description": "Patches of a superscene store; assets are Zarr arrays, see superscene:patch_index",
                    "license": "other",
                    "extent": {
                        "spatial": {"bbox": [[*self._survey.box]]},
                        "temporal": {"interval": [[f"{first}T00:00:00Z", f"{last}T23:59:59Z"]]},
                    },
                    "links": [],
                }
            },
        }

    def of(self, patches: pa.RecordBatch) -> pa.Table:
        """Return the items of some patches, properties at the top level."""
        n = patches.num_rows
        shapes = _shapes(patches)
        instant, first, last = _times(patches)
        projected = bounds_in(patches["crs"].to_pylist(), shapes)
        columns: dict[str, pa.Array] = {name: _repeated(value, n) for name, value in self._same.items()}
        columns |= {
            "id": patches["patch_id"],
            "geometry": patches["geometry"],
            "bbox": _boxes(shapely.bounds(shapes)),
            "assets": self._asset_column(patches, projected),
            "datetime": instant,
            "start_datetime": first,
            "end_datetime": last,
            "proj:code": patches["crs"],
            "proj:bbox": _lists(projected),
        }
        if self._survey.all_have_tiles:
            columns["grid:code"] = pc.binary_join_element_wise("MGRS", patches["tile"], "-")
        index = pc.add(pc.multiply(patches["shard"].cast(pa.int64()), self._shard_size), patches["row"])
        columns["superscene:patch_index"] = index
        columns |= {f"superscene:{name}": patches[name] for name in _AS_THEY_ARE}
        return pa.table(columns)

    def _asset_column(self, patches: pa.RecordBatch, projected: NDArray[np.float64]) -> pa.StructArray:
        there = {"s1": patches["has_s1"], "reference_map": patches["has_map"]}
        columns = [
            _asset_array(asset, projected, None if (has := there.get(asset.name)) is None else pc.invert(has))
            for asset in self._assets
        ]
        return pa.StructArray.from_arrays(columns, [asset.name for asset in self._assets])


def _asset(archive: ShardedStore, name: str, archive_url: str) -> _Asset | None:
    """Return what is to be said of an array; None where it holds no pixels."""
    array = archive.array(name)
    dims = [str(dim) for dim in getattr(array.metadata, "dimension_names", None) or ()]
    if len(dims) < 3 or not (dims[-1].startswith("x_") and dims[-2].startswith("y_")):
        return None
    attributes, axes = dict(array.attrs), ", ".join(dims)
    fields: dict[str, Any] = {
        "href": f"{archive_url}/{name}",
        "title": str(attributes.get("long_name", name)),
        "description": f"{name}[superscene:patch_index], axes {axes}; {attributes.get('units', '')}",
        "type": _ZARR_TYPE,
        "roles": ["data"],
        "data_type": str(array.dtype),
        "zarr:node_type": "array",
        "zarr:zarr_format": 3,
    }
    if attributes.get("gsd_m") is not None:
        fields["gsd"] = float(str(attributes["gsd_m"]))
    names = archive.group.get(dims[1])
    if len(dims) == 4 and isinstance(names, zarr.Array):
        fields["bands"] = [_band(str(band)) for band in np.asarray(names[:])]
    rows, columns = array.shape[-2:]
    return _Asset(name, (rows, columns), fields)


def _band(name: str) -> dict[str, Any]:
    if name not in SPECTRA:
        return {"name": name}
    spectrum = SPECTRA[name]
    return {"name": name, "eo:common_name": spectrum.common_name, "eo:center_wavelength": spectrum.centre_um}


def _asset_array(asset: _Asset, projected: NDArray[np.float64], absent: pa.Array | None) -> pa.StructArray:
    n = len(projected)
    fields = {name: _repeated(value, n) for name, value in asset.fields.items()}
    rows, columns = asset.size
    fields["proj:shape"] = _repeated([rows, columns], n)
    west, south, east, north = projected.T
    zero = np.zeros(n)
    steps = [(east - west) / columns, zero, west, zero, (south - north) / rows, north]
    fields["proj:transform"] = _lists(np.stack(steps, axis=1))
    return pa.StructArray.from_arrays([*fields.values()], [*fields], mask=absent)


def _times(patches: pa.RecordBatch) -> tuple[pa.Array, pa.Array, pa.Array]:
    """Return the instant, null where only the day is known, and the first and the last that it may be."""
    day = pc.strptime(patches["acquired"], format="%Y-%m-%d", unit="ms")
    found = pc.struct_field(pc.extract_regex(patches["patch_id"], _INSTANT), "instant")
    instant = pc.strptime(found, format="%Y%m%dT%H%M%S", unit="ms", error_is_null=True)
    of_day = pc.equal(pc.floor_temporal(instant, unit="day"), day)
    instant = pc.if_else(pc.fill_null(of_day, fill_value=False), instant, pa.scalar(None, instant.type))
    end = pc.add(day, pa.scalar(24 * 3600 * 1000 - 1, pa.duration("ms")))
    times = instant, pc.coalesce(instant, day), pc.coalesce(instant, end)
    first, second, third = (pc.assume_timezone(time, "UTC").cast(_MS) for time in times)
    return first, second, third


def _geo(survey: _Survey) -> dict[str, Json]:
    """Return GeoParquet's metadata; without "crs" a column is in OGC:CRS84, longitude first."""
    column: dict[str, Json] = {
        "encoding": "WKB",
        "geometry_types": ["Polygon"],
        "edges": "planar",
        "bbox": [*survey.box],
        "covering": {"bbox": {end: ["bbox", end] for end in _BOX}},
    }
    return {"version": "1.1.0", "primary_column": "geometry", "columns": {"geometry": column}}


def _shapes(rows: pa.RecordBatch) -> NDArray[np.object_]:
    return np.asarray(shapely.from_wkb(np.array(rows["geometry"].to_pylist(), object)), object)


def _boxes(bounds: NDArray[np.float64]) -> pa.StructArray:
    return pa.StructArray.from_arrays([pa.array(side) for side in bounds.T], [*_BOX])


def _lists(values: NDArray[np.float64]) -> pa.ListArray:
    """Return one list a row."""
    n, width = values.shape
    return pa.ListArray.from_arrays(pa.array(np.arange(0, (n + 1) * width, width, dtype=np.int32)), values.reshape(-1))


def _repeated(value: object, n: int) -> pa.Array:
    return pa.array([value]).take(pa.array(np.zeros(n, np.int64)))
