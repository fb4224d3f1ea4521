"""Small archives, written with rasterio."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import rasterio
from rasterio.transform import from_origin

from infra.archives.model import Patch, PatchInput, Scan
from infra.bigearthnet.bands import PATCH_METRES, S2_GROUPS

PRODUCT = "S2A_MSIL2A_20170613T101031_N9999_R022_T33UUP"
Corner = tuple[float, float]


def write_tiff(
    path: Path, pixels: np.ndarray[Any, Any], gsd: float, corner: Corner = (399960.0, 5300040.0), **options: Any
) -> None:
    options = {"crs": "EPSG:32633", **options}
    with rasterio.open(
        path,
        "w",
        driver=options.pop("driver", "GTiff"),
        height=pixels.shape[0],
        width=pixels.shape[1],
        count=1,
        dtype=pixels.dtype,
        transform=from_origin(*corner, gsd, gsd),
        **options,
    ) as dataset:
        dataset.write(pixels, 1)


def array_of(patch: Patch, name: str) -> np.ndarray[Any, Any]:
    """Return one of a patch's arrays, which is none that was packed."""
    values = patch.arrays[name]
    assert isinstance(values, np.ndarray)
    return values


class SmallArchive:
    """Writes patches and keeps what it wrote."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.pixels: dict[tuple[str, str], np.ndarray[Any, Any]] = {}
        self._random = np.random.default_rng(7)

    def corner(self, name: str) -> Corner:
        row, column = (int(part) for part in name.split("_")[-2:])
        return 300000.0 + 1200 * column, 5400000.0 - 1200 * row

    def s2(self, folder: Path, name: str) -> Path:
        folder.mkdir(parents=True, exist_ok=True)
        for group in S2_GROUPS:
            for band in group.bands:
                pixels = self._random.integers(1, 12000, (group.size, group.size)).astype(np.uint16)
                write_tiff(
                    folder / f"{name}_{band}.tif", pixels, PATCH_METRES // group.size, self.corner(name), nodata=0
                )
                self.pixels[name, band] = pixels
        return folder

    def s1(self, folder: Path, name: str, corner: Corner) -> Path:
        folder.mkdir(parents=True, exist_ok=True)
        for band in ("VV", "VH"):
            pixels = self._random.normal(-15, 5, (120, 120)).astype(np.float32)
            write_tiff(folder / f"{name}_{band}.tif", pixels, 10, corner)
            self.pixels[name, band] = pixels
        return folder

    def v2(self, name: str) -> Path:
        """Write a whole v2 patch with its pair and map; return the Sentinel-2 folder."""
        s1 = s1_name(name)
        self.s1(self.root / "BigEarthNet-S1" / "S1A_IW_GRDH_1SDV_20170613T165043" / s1, s1, self.corner(name))
        product = name.rsplit("_", 2)[0]
        maps = self.root / "Reference_Maps" / product / name
        maps.mkdir(parents=True)
        codes = self._random.choice(np.array([0, 112, 211, 312, 523], np.uint16), (120, 120))
        write_tiff(
            maps / f"{name}_reference_map.tif", codes, 10, self.corner(name), compress="deflate", predictor=2, nodata=0
        )
        self.pixels[name, "reference_map"] = codes
        return self.s2(self.root / "BigEarthNet-S2" / product / name, name)

    def v1(self, name: str, metadata: Mapping[str, Any] | str | None = None, s1: str | None = None) -> Path:
        folder = self.s2(self.root / "BigEarthNet-v1.0" / name, name)
        if metadata is None:
            metadata = {
                "labels": ["Water bodies", "Airports", "Pastures"],
                "tile_source": "S2A_MSIL1C_20170613T101031_N0205_R022_T33UUP_20170613T101608.SAFE",
                "acquisition_date": "2017-06-13 10:10:31",
            }
        text = metadata if isinstance(metadata, str) else json.dumps(metadata)
        (folder / f"{name}_labels_metadata.json").write_text(text)
        if s1 is not None:
            pair = self.s1(self.root / "BigEarthNet-S1-v1.0" / s1, s1, self.corner(name))
            (pair / f"{s1}_labels_metadata.json").write_text(json.dumps({"corresponding_s2_patch": name}))
        return folder

    def metadata(self, rows: list[dict[str, Any]], *, flagged: bool = False) -> None:
        defaults = {
            "labels": ["Pastures", "Arable land"],
            "split": "train",
            "country": "Austria",
            "contains_seasonal_snow": flagged,
            "contains_cloud_or_shadow": False,
        }
        full = [{**defaults, "s1_name": s1_name(row["patch_id"]) if row["patch_id"] else None, **row} for row in rows]
        name = "metadata_for_patches_with_snow_cloud_or_shadow.parquet" if flagged else "metadata.parquet"
        schema = pa.schema(
            [
                ("patch_id", pa.string()),
                ("labels", pa.list_(pa.string())),
                ("split", pa.string()),
                ("country", pa.string()),
                ("s1_name", pa.string()),
                ("contains_seasonal_snow", pa.bool_()),
                ("contains_cloud_or_shadow", pa.bool_()),
            ]
        )
        pq.write_table(pa.Table.from_pylist(full, schema), self.root / name)


def s1_name(patch_id: str) -> str:
    return f"S1A_IW_GRDH_1SDV_20170613T165043_33UUP_{'_'.join(patch_id.split('_')[-2:])}"


def patch_id(row: int, column: int) -> str:
    return f"{PRODUCT}_{row:02d}_{column:02d}"


def rows_of(scan: Scan) -> list[PatchInput]:
    """Return the scan's inputs as the reader takes them."""
    return [
        PatchInput(**{**row, "labels": None if row["labels"] is None else tuple(row["labels"])})
        for row in scan.inputs.to_pylist()
    ]


def reasons_of(scan: Scan) -> dict[str, str]:
    """Return path: reason of each problem, and check that every input is accounted for once."""
    assert scan.inputs.num_rows + scan.problems.num_rows + scan.absent == scan.total
    assert len(set(scan.inputs["patch_id"].to_pylist())) == scan.inputs.num_rows
    return {row["path"]: row["reason"] for row in scan.problems.to_pylist()}
