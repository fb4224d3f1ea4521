"""BigEarthNet v2.0 (reBEN) as distributed: three folders of products, two metadata tables.

Layout: `BigEarthNet-S2/<product>/<patch>/<patch>_<band>.tif`, `BigEarthNet-S1/<product>/<s1>/<s1>_<VV|VH>.tif`,
`Reference_Maps/<product>/<patch>/<patch>_reference_map.tif`, `metadata.parquet` and, with the patches flagged for snow,
cloud or shadow, `metadata_for_patches_with_snow_cloud_or_shadow.parquet`. Sentinel-1 and the maps may be absent.

Source: Clasen et al. 2024, arXiv:2407.03653.
"""

import os
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from infra.archives.inventory import MISSING_FOLDER, Found, Inventory, Subset, take_stock
from infra.archives.modality import (
    MAP_BYTES,
    REFERENCE_MAP,
    S1_BYTES,
    S1_SUFFIXES,
    S2_BYTES,
    S2_SUFFIXES,
    Ground,
    Modality,
    OpenFolder,
    PatchFolder,
)
from infra.archives.model import Patch, PatchInput, Pixels, Scan
from infra.archives.names import day_of, product_of, s1_product_of, tile_of
from infra.archives.patch_folder import read_reference_map, read_s1, read_s2
from infra.archives.places import file_below, inventory_of, read_below
from infra.bigearthnet.bands import S1, S2_GROUPS
from infra.errors import ArchiveError, BadPatchError
from infra.storage import location

S2_FOLDER = "BigEarthNet-S2"
S1_FOLDER = "BigEarthNet-S1"
MAP_FOLDER = "Reference_Maps"
METADATA = "metadata.parquet"
PROVENANCE = "synthetic.json"  # what `superscene synth` leaves in the archives it writes
FLAGGED_METADATA = "metadata_for_patches_with_snow_cloud_or_shadow.parquet"

MAX_ROWS = 10_000_000
"""Rows of metadata that are read: twenty times what the archive has. Equal rows cost a file next to nothing."""

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
    """Folder that holds the metadata, or its URL."""
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
        return self.scan_of(inventory_of(self.root))

    def scan_of(self, inventory: Inventory) -> Scan:
        """Return every input of both metadata tables; where no inventory is known yet, as if all of them were there.

        Raises:
            ArchiveError: As `scan` does.
        """
        named = self._metadata(METADATA)
        flagged = self._metadata(FLAGGED_METADATA) if self._path(FLAGGED_METADATA).is_file() else named.slice(0, 0)
        if self.include_flagged:
            excluded = _with_source(named.schema.empty_table())  # a slice would keep half a million rows
            named = pa.concat_tables([named, flagged]).combine_chunks()
        else:
            flag = pc.or_(
                pc.fill_null(named["has_snow"], fill_value=False), pc.fill_null(named["has_cloud"], fill_value=False)
            )
            excluded = _with_source(pa.concat_tables([flagged, named.filter(flag)]))
            named = named.filter(pc.invert(flag))
        named = _with_source(named)  # only now, as it is a third of all
        found = inventory.folders(S2_FOLDER, by_product=True)
        if found is None:
            found = Found(pc.drop_null(pa.concat_tables([named, excluded])["source"]).to_pylist())
        return take_stock(
            named,
            found,
            subset=self.subset,
            excluded=pc.drop_null(excluded["source"]).combine_chunks(),
            excluded_count=excluded.num_rows,
        )

    def read(self, patch: PatchInput) -> Patch:
        """Return one patch's pixels.

        Raises:
            BadPatchError: The patch, its Sentinel-1 pair or its map cannot be used.
        """
        return read_below(self.root, S2_FOLDER, partial(self.read_from, patch=patch))

    def read_from(self, open_folder: OpenFolder, patch: PatchInput) -> Patch:
        """Return one patch's pixels, from folders wherever they are.

        Raises:
            BadPatchError: The patch, its Sentinel-1 pair or its map cannot be used.
        """
        with open_patch(open_folder, patch) as folder:
            s2 = read_s2(folder, patch.patch_id)
        pair = _s1_folder(patch.patch_id, patch.s1_name)
        s1 = None if pair is None else read_pair(open_folder, pair, s2.ground)
        return Patch(
            arrays=s2.arrays if s1 is None else {**s2.arrays, S1.array: s1},
            reference_map=_reference_map(open_folder, patch.patch_id, s2.ground),
            labels=patch.labels,
            epsg=s2.ground.epsg,
            bounds=s2.ground.bounds,
            acquired=day_of(patch.patch_id),
            tile=tile_of(patch.patch_id),
            nodata_share=s2.nodata_share,
        )

    def _path(self, name: str) -> Path:
        return file_below(self.root, name)

    def _metadata(self, name: str) -> pa.Table:
        """Return a metadata table with the inputs' column names and `listed_in`; `_with_source` adds the rest."""
        path = self._path(name)
        if not location(self.root).is_dir():
            raise ArchiveError(f"the archive's root {self.root} is not a folder")
        if not path.is_file():
            raise ArchiveError(f"the archive {self.root} has no {name}: is this its root?")
        try:
            with path.open("rb") as opened, pq.ParquetFile(opened, pre_buffer=True) as file:
                names = file.schema_arrow.names
                there = set(names)
                if "patch_id" not in there:
                    raise ArchiveError(f"{path} has no column patch_id; it has {', '.join(sorted(there))}")
                twice = sorted(column for column in there & _COLUMNS.keys() if names.count(column) > 1)
                if twice:
                    raise ArchiveError(f"{path} has more than one column {', '.join(twice)}")
                if file.metadata.num_rows > MAX_ROWS:
                    raise ArchiveError(f"{path} claims {file.metadata.num_rows} rows, more than any archive has")
                # Threads are no faster here, and each keeps memory of its own.
                table = file.read([column for column in _COLUMNS if column in there], use_threads=False)
            pa.default_memory_pool().release_unused()  # what reading took is as much as what it made
            table.validate(full=True)  # that texts are UTF-8, above all
            rows = table.num_rows
            columns: dict[str, pa.Array | pa.ChunkedArray] = {
                to: table[column].cast(kind) if column in there else pa.nulls(rows, kind)
                for column, (to, kind) in _COLUMNS.items()
            }
        except (pa.ArrowException, OSError, ValueError) as error:  # ValueError: a column's name is not in UTF-8
            if isinstance(error, ArchiveError):
                raise
            raise ArchiveError(f"{path} cannot be read as BigEarthNet v2 metadata: {error}") from error
        if "split" not in there:
            columns["split"] = pa.array(["all"]).take(pa.array(np.zeros(rows, np.int64)))
        columns["listed_in"] = pa.DictionaryArray.from_arrays(pa.array(np.zeros(rows, np.int8)), pa.array([name]))
        return pa.table(columns)


def _with_source(named: pa.Table) -> pa.Table:
    """Return metadata with the column `source`: where each patch lies, relative to the root."""
    ids = named["patch_id"]
    product = pc.replace_substring_regex(ids, "_[^_]*_[^_]*$", "")
    return named.append_column("source", pc.binary_join_element_wise(S2_FOLDER, product, ids, "/"))


def open_patch(open_folder: OpenFolder, patch: PatchInput) -> PatchFolder:
    """Return the open folder of a patch's Sentinel-2 files.

    Raises:
        BadPatchError: missing_folder, or as `open_folder` does.
    """
    folder = open_folder(patch.source)
    if folder is None:
        raise BadPatchError(patch.source, "missing_folder", MISSING_FOLDER)
    return folder


def read_pair(open_folder: OpenFolder, relative: str, ground: Ground) -> Pixels | None:
    """Return the Sentinel-1 pair in a folder, (2, 120, 120) dB, or None where there is none.

    Args:
        open_folder: Opens the archive's folders.
        relative: The folder of the pair, which also starts the names of its files.
        ground: Where the Sentinel-2 patch lies.

    Raises:
        BadPatchError: One of the two files is missing, or one cannot be used.
    """
    folder = open_folder(relative)
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


def _reference_map(open_folder: OpenFolder, patch_id: str, ground: Ground) -> Pixels | None:
    folder = open_folder(_map_folder(patch_id, None))
    if folder is None:
        return None
    with folder:
        try:
            return read_reference_map(folder, patch_id, ground)
        except BadPatchError as error:
            if error.reason == "missing_band":
                return None
            raise


def _s1_folder(_: str, s1_name: str | None) -> str | None:
    return None if s1_name is None else f"{S1_FOLDER}/{s1_product_of(s1_name)}/{s1_name}"


def _map_folder(patch_id: str, _: str | None) -> str:
    return f"{MAP_FOLDER}/{product_of(patch_id)}/{patch_id}"


MODALITIES = (
    Modality(S1_FOLDER, S1_SUFFIXES, (S1,), S1_BYTES, by_product=True, folder=_s1_folder),
    Modality(MAP_FOLDER, ("_reference_map.tif",), (REFERENCE_MAP,), MAP_BYTES, by_product=True, folder=_map_folder),
    Modality(S2_FOLDER, S2_SUFFIXES, S2_GROUPS, S2_BYTES, by_product=True),
)
"""What the archive consists of; a patch is there if the last has it."""
