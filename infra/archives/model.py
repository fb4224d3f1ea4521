"""What every archive layout gives: a scan of its inputs, and one patch's pixels."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Literal, Protocol, Self

import pyarrow as pa
from numpy.typing import NDArray

from infra.bigearthnet.bands import S1, S2_GROUPS, BandGroup
from infra.bigearthnet.classes import NAMES
from infra.fingerprint import Json
from infra.zarr_rows import PackedRow

type Pixels = NDArray[Any] | PackedRow
"""One patch's row of an array of the store, as it is or compressed already."""

Reason = Literal[
    "missing_folder",  # named in the metadata, not on disk
    "no_metadata",  # a patch folder that no metadata names
    "duplicate_id",
    "missing_band",
    "unreadable",  # permission, I/O error
    "truncated",  # zero bytes, or fewer than its header promises
    "not_a_tiff",
    "not_an_image",  # a file of an archive of pictures that is none
    "missing_file",  # a picture that the table names
    "corrupt",  # its pixels cannot be decoded
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
class PatchFormat:
    """What all patches of an archive have in common: what a store is made for."""

    labels: tuple[str, ...]
    """Names of the labels, in the one order of the store."""
    groups: tuple[BandGroup, ...]
    """Grids of bands, each an array of the store; the first is the finest, and the one that is super-resolved."""
    has_maps: bool
    """Whether there are land-cover reference maps, of the first grid."""
    max_dn: int = 65_535
    """Largest DN that a pixel of the first grid can have: 255 for pictures of 8 bits."""

    @property
    def size(self) -> int:
        """Edge of a patch on the first grid, pixels."""
        return self.groups[0].size

    def to_json(self) -> dict[str, Json]:
        """Return it as JSON has it."""
        return {
            "labels": list(self.labels),
            "groups": [{**asdict(group), "bands": list(group.bands)} for group in self.groups],
            "has_maps": self.has_maps,
            "max_dn": self.max_dn,
        }

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> Self:
        """Return what `to_json` wrote down."""
        groups = tuple(BandGroup(**{**group, "bands": tuple(group["bands"])}) for group in values["groups"])
        return cls(tuple(values["labels"]), groups, values["has_maps"], values["max_dn"])


BIGEARTHNET = PatchFormat(NAMES, (*S2_GROUPS, S1), has_maps=True)
"""Both versions, and scenes cut into patches."""


@dataclass(frozen=True, slots=True)
class Scan:
    """All inputs of an archive: `inputs.num_rows + problems.num_rows + absent = total`."""

    format: PatchFormat
    """What the patches have in common."""
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

    arrays: Mapping[str, Pixels]
    """By array of the format's groups, (bands, size, size): DN, or dB for Sentinel-1. One that is missing is absent."""
    reference_map: Pixels | None
    """(120, 120) CORINE level-3 codes, 0 = unknown; None where there is none."""
    labels: tuple[str, ...] | None
    """Labels in the format's order; None where nobody labelled it."""
    epsg: int | None
    """The patch's CRS; None for a picture without a place."""
    bounds: tuple[float, float, float, float] | None
    """left, bottom, right, top in that CRS, m; None likewise."""
    acquired: str | None
    """Day of the Sentinel-2 acquisition, YYYY-MM-DD."""
    tile: str | None
    """MGRS tile, for example 33UUP."""
    nodata_share: float
    """Share of 10 m pixels where any 10 m band is nodata (DN 0), 0 to 1; 0 for pictures, where black is black."""


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
