"""What a BigEarthNet consists of: one folder a modality, and in each one folder a patch, with a few files."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import TracebackType
from typing import Protocol, Self

from infra.archives.model import Pixels
from infra.bigearthnet.bands import PATCH_METRES, PATCH_SIZE, S1, S2_BANDS, S2_GROUPS, BandGroup

S2_SUFFIXES = tuple(f"_{band}.tif" for band in S2_BANDS)
S1_SUFFIXES = tuple(f"_{band}.tif" for band in S1.bands)
S2_BYTES = sum(2 * len(group.bands) * group.size**2 for group in S2_GROUPS)
S1_BYTES = 4 * len(S1.bands) * S1.size**2

REFERENCE_MAP = BandGroup("reference_map", ("reference_map",), gsd=10, size=PATCH_SIZE)
MAP_BYTES = 2 * PATCH_SIZE**2


@dataclass(frozen=True, slots=True)
class Ground:
    """The ground that a patch covers."""

    epsg: int
    left: float
    top: float

    @property
    def bounds(self) -> tuple[float, float, float, float]:
        """left, bottom, right, top, m."""
        return self.left, self.top - PATCH_METRES, self.left + PATCH_METRES, self.top


@dataclass(frozen=True, slots=True)
class FolderPixels:
    """What the bands in one folder show."""

    arrays: Mapping[str, Pixels]
    """By array of the band groups, (bands, size, size) DN or dB; the reference map, (size, size) codes."""
    ground: Ground
    nodata_share: float
    """Share of 10 m pixels where any 10 m band is nodata; 0 for all but Sentinel-2."""


class PatchFolder(Protocol):
    """An open folder of one patch's files."""

    @property
    def relative(self) -> str:
        """Its path below the archive's root."""
        ...

    @property
    def packed(self) -> FolderPixels | None:
        """What its bands show, where they were read and packed while they came by; None: they are to be read."""
        ...

    def __enter__(self) -> Self: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...

    def read(self, name: str, absent: str = "missing_band", *, whole: bool = False) -> bytes | memoryview:
        """Return the bytes of one file; raises BadPatchError, of the reason `absent` where it does not exist."""
        ...

    def has_any(self, names: set[str]) -> bool:
        """Return whether one of the names is in the folder."""
        ...


type OpenFolder = Callable[[str], PatchFolder | None]
"""Opens the folder at a path below the archive's root; None where there is none."""


@dataclass(frozen=True, slots=True)
class Modality:
    """One modality of a layout."""

    top: str
    """Its folder below the root, and the name, without its ending, of the tar archive that unpacks to that."""
    suffixes: tuple[str, ...]
    """What the files of a patch have after the name of its folder."""
    groups: tuple[BandGroup, ...]
    """Of which grids its bands are."""
    pixel_bytes: int
    """Of a patch, uncompressed."""
    by_product: bool
    """Whether patches lie in one folder a product, not directly in `top`."""
    folder: Callable[[str, str | None], str | None] | None = None
    """The path of a patch's folder, from its id and s1_name, None where it has none; None: the input's `source`."""
