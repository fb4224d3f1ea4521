"""What a BigEarthNet consists of: one folder a modality, and in each one folder a patch, with a few files."""

from collections.abc import Callable
from dataclasses import dataclass
from types import TracebackType
from typing import Protocol, Self

from infra.bigearthnet.bands import S1, S2_BANDS, S2_GROUPS

S2_SUFFIXES = tuple(f"_{band}.tif" for band in S2_BANDS)
S1_SUFFIXES = tuple(f"_{band}.tif" for band in S1.bands)
S2_BYTES = sum(2 * len(group.bands) * group.size**2 for group in S2_GROUPS)
S1_BYTES = 4 * len(S1.bands) * S1.size**2


class PatchFolder(Protocol):
    """An open folder of one patch's files."""

    @property
    def relative(self) -> str:
        """Its path below the archive's root."""
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
    pixel_bytes: int
    """Of a patch, uncompressed."""
    by_product: bool
    """Whether patches lie in one folder a product, not directly in `top`."""
    folder: Callable[[str, str | None], str | None] | None = None
    """The path of a patch's folder, from its id and s1_name, None where it has none; None: the input's `source`."""
