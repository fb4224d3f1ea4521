"""BigEarthNet v2.0 (reBEN) as distributed: three folders of products, two metadata tables.

Layout: `BigEarthNet-S2/<product>/<patch>/<patch>_<band>.tif`, `BigEarthNet-S1/<product>/<s1>/<s1>_<VV|VH>.tif`,
`Reference_Maps/<product>/<patch>/<patch>_reference_map.tif`, `metadata.parquet` and, with the patches flagged for snow,
cloud or shadow, `metadata_for_patches_with_snow_cloud_or_shadow.parquet`. Sentinel-1 and the maps may be absent.

Source: Clasen et al. 2024, arXiv:2407.03653.
"""

import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from infra.archives.files import Folder
from infra.archives.inventory import Subset, find_folders, still_there, take_stock
from infra.archives.model import Patch, PatchInput, Scan
from infra.archives.names import day_of, product_of, s1_product_of, tile_of
from infra.archives.patch_folder import Ground, read_reference_map, read_s1, read_s2
from infra.bigearthnet.bands import S1
from infra.errors import ArchiveError, BadPatchError

S2_FOLDER = "BigEarthNet-S2"
S1_FOLDER = "BigEarthNet-S1"
MAP_FOLDER = "Reference_Maps"
METADATA = "metadata.parquet"
PROVENANCE = "synthetic.json"  # what `superscene synth` leaves in the archives it writes
FLAGGED_METADATA = "metadata_for_patches_with_snow_cloud_or_shadow.parquet"

# Column of the metadata: column of the inputs and its type; any but patch_id may be missing.
_COLUMNS = {
    "patch_id": ("patch_id", pa.string()),
    "split": ("split", pa.string()),
    "labels": ("labels", pa.list_(pa.string())),
    "country": ("country", pa.string()),
    "contains_seasonal_snow": ("has_snow", pa.bool_()),
    "contains_cloud_or_shadow": ("has_cloud", pa.bool_()),
    "s1_name": ("s1_name", pa.string()),
}


@dataclass(frozen=True, slots=True)
class BigEarthNetV2:
    """The archive at `root`."""

    root: str
    """Folder that holds the metadata."""
    include_flagged: bool = False
    """Whether patches with snow, cloud or shadow are inputs."""
    subset: Subset = "all"
    """What a patch is that the metadata names and the disk lacks: a problem, or only counted."""

    @property
    def version(self) -> str:
        """Source version; a synthetic archive says so, in every row that comes of it."""
        return "bigearthnet-v2-synthetic" if self._path(PROVENANCE).exists() else "bigearthnet-v2"

    def scan(self) -> Scan:
        """Return every input of both metadata tables.

        Raises:
            ArchiveError: No root, no metadata or no patch folder.
        """
        named = self._metadata(METADATA)
        flagged = self._metadata(FLAGGED_METADATA) if self._path(FLAGGED_METADATA).is_file() else named.slice(0, 0)
        if self.include_flagged:
            excluded = named.schema.empty_table()  # a slice would keep half a million rows
            named = pa.concat_tables([named, flagged]).combine_chunks()
        else:
            flag = pc.or_(
                pc.fill_null(named["has_snow"], fill_value=False), pc.fill_null(named["has_cloud"], fill_value=False)
            )
            excluded = pa.concat_tables([flagged, named.filter(flag)])
            named = named.filter(pc.invert(flag))
        return take_stock(
            named,
            find_folders(self.root, S2_FOLDER, by_product=True),
            subset=self.subset,
            excluded=pc.drop_null(excluded["source"]).combine_chunks(),
            excluded_count=excluded.num_rows,
        )

    def read(self, patch: PatchInput) -> Patch:
        """Return one patch's pixels.

        Raises:
            BadPatchError: The patch, its Sentinel-1 pair or its map cannot be used.
        """
        folder = Folder.open(self.root, patch.source)
        if folder is None:
            still_there(self.root, S2_FOLDER)
            raise BadPatchError(patch.source, "missing_folder", "the folder was there when the archive was scanned")
        with folder:
            s2 = read_s2(folder, patch.patch_id)
        s1 = None if patch.s1_name is None else read_pair(self.root, self._s1(patch.s1_name), s2.ground)
        return Patch(
            arrays=s2.arrays if s1 is None else {**s2.arrays, S1.array: s1},
            reference_map=self._map(patch.patch_id, s2.ground),
            labels=patch.labels,
            epsg=s2.ground.epsg,
            bounds=s2.ground.bounds,
            acquired=day_of(patch.patch_id),
            tile=tile_of(patch.patch_id),
            nodata_share=s2.nodata_share,
        )

    def _path(self, name: str) -> Path:
        return Path(self.root) / name

    @staticmethod
    def _s1(s1_name: str) -> str:
        return f"{S1_FOLDER}/{s1_product_of(s1_name)}/{s1_name}"

    def _map(self, patch_id: str, ground: Ground) -> NDArray[np.uint16] | None:
        folder = Folder.open(self.root, f"{MAP_FOLDER}/{product_of(patch_id)}/{patch_id}")
        if folder is None:
            return None
        with folder:
            try:
                return read_reference_map(folder, patch_id, ground)
            except BadPatchError as error:
                if error.reason == "missing_band":
                    return None
                raise

    def _metadata(self, name: str) -> pa.Table:
        """Return a metadata table with the inputs' column names, `source` and `listed_in`."""
        path = self._path(name)
        if not Path(self.root).is_dir():
            raise ArchiveError(f"the archive's root {self.root} is not a folder")
        if not path.is_file():
            raise ArchiveError(f"the archive {self.root} has no {name}: is this its root?")
        try:
            with pq.ParquetFile(path) as file:
                there = set(file.schema_arrow.names)
                if "patch_id" not in there:
                    raise ArchiveError(f"{path} has no column patch_id; it has {', '.join(sorted(there))}")
                table = file.read([column for column in _COLUMNS if column in there])
            rows = table.num_rows
            columns: dict[str, pa.Array | pa.ChunkedArray] = {
                to: table[column].cast(kind) if column in there else pa.nulls(rows, kind)
                for column, (to, kind) in _COLUMNS.items()
            }
        except (pa.ArrowException, OSError) as error:
            if isinstance(error, ArchiveError):
                raise
            raise ArchiveError(f"{path} cannot be read as BigEarthNet v2 metadata: {error}") from error
        if "split" not in there:
            columns["split"] = pa.array(["all"]).take(pa.array(np.zeros(rows, np.int64)))
        ids = columns["patch_id"]
        product = pc.replace_substring_regex(ids, "_[^_]*_[^_]*$", "")
        columns["source"] = pc.binary_join_element_wise(S2_FOLDER, product, ids, "/")
        columns["listed_in"] = pa.array([name]).take(pa.array(np.zeros(rows, np.int64)))
        return pa.table(columns)


def read_pair(root: str, relative: str, ground: Ground) -> NDArray[np.float32] | None:
    """Return the Sentinel-1 pair in a folder, (2, 120, 120) dB, or None where there is none.

    Args:
        root: The archive's root.
        relative: The folder of the pair, which also starts the names of its files.
        ground: Where the Sentinel-2 patch lies.

    Raises:
        BadPatchError: One of the two files is missing, or one cannot be used.
    """
    folder = Folder.open(root, relative)
    if folder is None:
        return None
    name = os.path.basename(relative)  # noqa: PTH119 - a string
    with folder:
        try:
            return read_s1(folder, name, ground)
        except BadPatchError as error:
            if error.reason == "missing_band" and not folder.has_any({f"{name}_VV.tif", f"{name}_VH.tif"}):
                return None
            raise
