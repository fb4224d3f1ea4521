"""What every archive layout gives: a scan of its inputs, and one patch's pixels."""

from dataclasses import dataclass, field
from typing import Literal, Protocol

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

Reason = Literal[
    "missing_folder",  # named in the metadata, not on disk
    "no_metadata",  # a patch folder that no metadata names
    "duplicate_id",
    "missing_band",
    "unreadable",  # permission, I/O error
    "truncated",  # zero bytes, or fewer than its header promises
    "not_a_tiff",
    "corrupt",  # a TIFF whose pixels cannot be decoded
    "wrong_size",
    "wrong_type",
    "not_finite",  # NaN or infinite Sentinel-1 values
    "malformed_metadata",
    "unknown_label",
    "no_label",  # all of a v1 patch's labels are among the 11 without a class
    "outside_archive",  # a symbolic link or a name that leaves the root
    "grid_mismatch",  # bands of one scene or patch that do not share a CRS and corner
]

INPUT_SCHEMA = pa.schema(
    [
        pa.field("patch_id", pa.string(), nullable=False),
        pa.field("split", pa.string(), nullable=False),  # train | validation | test | all
        pa.field("labels", pa.list_(pa.string())),  # null: not known before the patch is read, or not known at all
        pa.field("country", pa.string()),
        pa.field("has_snow", pa.bool_()),
        pa.field("has_cloud", pa.bool_()),
        pa.field("s1_name", pa.string()),
        pa.field("source", pa.string(), nullable=False),  # where `read` finds it, relative to the root
    ]
)
"""One row per usable input, known before any pixel is read."""

PROBLEM_SCHEMA = pa.schema(
    [
        pa.field("patch_id", pa.string()),  # null where the input has no usable name
        pa.field("path", pa.string(), nullable=False),
        pa.field("reason", pa.string(), nullable=False),
        pa.field("detail", pa.string(), nullable=False),
    ]
)
"""One row per unusable input: the columns of `tables/quarantine`."""


@dataclass(frozen=True, slots=True)
class Scan:
    """All inputs of an archive: `inputs.num_rows + problems.num_rows + absent = total`."""

    inputs: pa.Table
    """INPUT_SCHEMA, unique patch ids, any order."""
    problems: pa.Table
    """PROBLEM_SCHEMA: what can be seen to be wrong without reading pixels."""
    absent: int
    """Patches that the metadata names and the disk lacks, under `subset: present`."""
    total: int
    """Inputs seen."""
    excluded: int
    """Patches left out on request (`include_flagged: false`); not inputs, so not in `total`."""
    absent_ids: pa.Array = field(default_factory=lambda: pa.array([], pa.string()))
    """Names of the absent ones: a patch may be stored and its files gone since."""


@dataclass(frozen=True, slots=True)
class PatchInput:
    """One row of `Scan.inputs`."""

    patch_id: str
    split: str
    labels: tuple[str, ...] | None
    country: str | None
    has_snow: bool | None
    has_cloud: bool | None
    s1_name: str | None
    source: str


@dataclass(frozen=True, slots=True)
class Patch:
    """One patch's pixels and what only its files tell."""

    s2_10m: NDArray[np.uint16]
    """(4, 120, 120) DN, bands S2_10M."""
    s2_20m: NDArray[np.uint16]
    """(6, 60, 60) DN, bands S2_20M."""
    s2_60m: NDArray[np.uint16]
    """(2, 20, 20) DN, bands S2_60M."""
    s1: NDArray[np.float32] | None
    """(2, 120, 120) dB, bands VV, VH; None where the archive has no Sentinel-1 pair."""
    reference_map: NDArray[np.uint16] | None
    """(120, 120) CORINE level-3 codes, 0 = unknown; None where there is none."""
    labels: tuple[str, ...] | None
    """Names of the 19 classes in their one order; None where nobody labelled it."""
    epsg: int
    """The patch's CRS."""
    bounds: tuple[float, float, float, float]
    """left, bottom, right, top in that CRS, m."""
    acquired: str | None
    """Day of the Sentinel-2 acquisition, YYYY-MM-DD."""
    tile: str | None
    """MGRS tile, for example 33UUP."""
    nodata_share: float
    """Share of 10 m pixels where any 10 m band is nodata (DN 0), 0 to 1."""


class Archive(Protocol):
    """An archive layout. Cheap to construct and to pickle: it holds paths, no open files."""

    @property
    def version(self) -> str:
        """Source version for the tables, for example "bigearthnet-v2"."""
        ...

    def scan(self) -> Scan:
        """Return every input; raises ArchiveError where the archive as a whole is unusable."""
        ...

    def read(self, patch: PatchInput) -> Patch:
        """Return one patch's pixels.

        Raises:
            BadPatchError: The patch cannot be used; the run goes on.
            OSError: The disk failed as a whole (ENOSPC, EIO on the root), not this patch.
        """
        ...
