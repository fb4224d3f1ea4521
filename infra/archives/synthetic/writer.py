"""Writes the synthetic archive: the v2 folders, GeoTIFFs and metadata, and the true 2.5 m images beside them."""

import json
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import rasterio
from numpy.typing import NDArray
from rasterio.crs import CRS
from rasterio.transform import from_origin

from infra.archives.bigearthnet_v2 import PROVENANCE
from infra.archives.synthetic.places import CAPACITY, Place, plan
from infra.archives.synthetic.render import SyntheticPatch, render
from infra.bigearthnet.bands import PATCH_METRES, RGB
from infra.errors import ConfigError

VERSION = 1
"""Version of the synthetic pixels: raised whenever the same seed gives other bytes."""

CLEAN_TABLE = "metadata.parquet"
FLAGGED_TABLE = "metadata_for_patches_with_snow_cloud_or_shadow.parquet"

METADATA_SCHEMA = pa.schema(
    [
        ("patch_id", pa.string()),
        ("labels", pa.list_(pa.field("element", pa.string()))),
        ("split", pa.string()),
        ("country", pa.string()),
        ("s1_name", pa.string()),
        ("s2v1_name", pa.string()),
        ("contains_seasonal_snow", pa.bool_()),
        ("contains_cloud_or_shadow", pa.bool_()),
    ]
)
"""Columns of the two tables that v2 is distributed with."""


def write_synthetic_archive(
    root: Path, patches: int = 256, seed: int = 0, progress: Callable[[int], None] | None = None
) -> None:
    """Write an archive in BigEarthNet-v2 layout; the same seed gives the same bytes.

    One patch in 24 is flagged (snow or cloud). From 128 patches up every split holds all 19 classes among its clean
    patches; fewer are allowed and may lack some. A second call with more patches grows the archive: patches that the
    metadata already names are left as they are, and get the bytes they would have had in one call.

    Args:
        root: Folder to write; absent, empty, or a synthetic archive of the same seed.
        patches: Patches in all, the flagged ones included.
        seed: >= 0.
        progress: Called after each patch with the number of patches done so far.

    Raises:
        ConfigError: `patches` or `seed` is out of range, or the root holds anything else.
    """
    if not 1 <= patches <= CAPACITY:
        raise ConfigError(f"a synthetic archive holds 1 to {CAPACITY} patches, asked for {patches}")
    if seed < 0:
        raise ConfigError(f"the seed of a synthetic archive must be 0 or more, got {seed}")
    rows = _existing_rows(root, patches, seed)
    root.mkdir(parents=True, exist_ok=True)
    _replace(root / PROVENANCE, json.dumps({"patches": patches, "seed": seed, "version": VERSION}, indent=2) + "\n")
    for done, place in enumerate(plan(patches, seed), start=1):
        if place.patch_id not in rows:
            patch = render(place, seed)
            _write_patch(root, place, patch)
            rows[place.patch_id] = _metadata(place, patch.labels)
        if progress is not None:
            progress(done)
    ordered = [rows[patch_id] for patch_id in sorted(rows)]
    flagged = [row["contains_seasonal_snow"] or row["contains_cloud_or_shadow"] for row in ordered]
    _write_table(root / CLEAN_TABLE, [row for row, flag in zip(ordered, flagged, strict=True) if not flag])
    _write_table(root / FLAGGED_TABLE, [row for row, flag in zip(ordered, flagged, strict=True) if flag])


type _Row = dict[str, str | bool | list[str]]


def _existing_rows(root: Path, patches: int, seed: int) -> dict[str, _Row]:
    """Return the metadata rows that an earlier call has completed, by patch id."""
    if not root.exists():
        return {}
    if not root.is_dir():
        raise ConfigError(f"{root} is not a folder: choose another place for the synthetic archive")
    marker = root / PROVENANCE
    if not marker.exists():
        if any(root.iterdir()):
            raise ConfigError(
                f"{root} is not empty and has no {PROVENANCE}: it is no synthetic archive, choose an empty folder"
            )
        return {}
    try:
        made = json.loads(marker.read_text())
        found = (made["seed"], made["version"])
    except (ValueError, KeyError, TypeError) as error:
        raise ConfigError(f"{marker} cannot be read: delete {root} or choose another folder") from error
    if found != (seed, VERSION):
        raise ConfigError(
            f"{root} holds a synthetic archive of seed {found[0]}, version {found[1]}; asked for seed {seed}, "
            f"version {VERSION}: delete it or choose another folder"
        )
    rows: dict[str, _Row] = {}
    for name in (CLEAN_TABLE, FLAGGED_TABLE):
        if not (root / name).exists():
            continue
        try:
            table = pq.read_table(root / name, schema=METADATA_SCHEMA)
        except (OSError, pa.ArrowException) as error:
            raise ConfigError(f"{root / name} cannot be read: delete {root} or choose another folder") from error
        rows |= {row["patch_id"]: row for row in table.to_pylist()}
    if len(rows) > patches:
        raise ConfigError(f"{root} already holds {len(rows)} patches, asked for {patches}: it can only grow")
    return rows


def _metadata(place: Place, labels: Sequence[str]) -> _Row:
    return {
        "patch_id": place.patch_id,
        "labels": list(labels),
        "split": place.split,
        "country": place.country,
        "s1_name": place.s1_name,
        "s2v1_name": place.s2v1_name,
        "contains_seasonal_snow": place.flag == "snow",
        "contains_cloud_or_shadow": place.flag == "cloud",
    }


def _write_table(path: Path, rows: list[_Row]) -> None:
    partial = path.with_name(f"{path.name}.partial")
    table = pa.Table.from_pylist(rows, schema=METADATA_SCHEMA)
    pq.write_table(table, partial, compression="zstd", store_schema=False)
    partial.replace(path)


def _replace(path: Path, text: str) -> None:
    partial = path.with_name(f"{path.name}.partial")
    partial.write_text(text)
    partial.replace(path)


def _write_patch(root: Path, place: Place, patch: SyntheticPatch) -> None:
    name = place.patch_id
    s2 = _folder(root / "BigEarthNet-S2" / place.product / name)
    for band, dn in patch.bands.items():
        _write_tiff(s2 / f"{name}_{band}.tif", dn, place, {"nodata": 0})
    s1 = _folder(root / "BigEarthNet-S1" / place.s1_scene / place.s1_name)
    for channel, db in patch.s1.items():
        _write_tiff(s1 / f"{place.s1_name}_{channel}.tif", db, place, {})
    deflate: dict[str, str | int] = {"nodata": 0, "compress": "deflate", "predictor": 2}
    maps = _folder(root / "Reference_Maps" / place.product / name)
    _write_tiff(maps / f"{name}_reference_map.tif", patch.reference_map, place, deflate)
    truth = _folder(root / "HighRes" / place.product / name)
    _write_tiff(truth / f"{name}_RGB.tif", patch.high_res, place, {**deflate, "zlevel": 1}, names=RGB)


def _folder(path: Path) -> Path:
    path.mkdir(parents=True, exist_ok=True)
    return path


def _write_tiff(
    path: Path,
    values: NDArray[np.uint16] | NDArray[np.float32],
    place: Place,
    options: Mapping[str, str | int],
    names: Sequence[str] = (),
) -> None:
    """Write (n, n) or (bands, n, n) values in GDAL's own strips of up to 8 KiB, as the real files have them."""
    planes = values[None] if values.ndim == 2 else values
    size = planes.shape[-1]
    gsd = PATCH_METRES / size
    with rasterio.open(
        path,
        "w",
        driver="GTiff",
        width=size,
        height=size,
        count=len(planes),
        dtype=planes.dtype,
        crs=_crs(place.epsg),
        transform=from_origin(place.left, place.top, gsd, gsd),
        endianness="LITTLE",
        **options,
    ) as target:
        target.write(planes)
        for number, name in enumerate(names, start=1):
            target.set_band_description(number, name)


@cache
def _crs(epsg: int) -> CRS:
    return CRS.from_epsg(epsg)
