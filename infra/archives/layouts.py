"""The archive layouts, by name."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Protocol

from infra.archives.bigearthnet_v1 import BigEarthNetV1
from infra.archives.bigearthnet_v2 import BigEarthNetV2
from infra.archives.inventory import Subset
from infra.archives.model import Archive
from infra.archives.scene import SceneArchive
from infra.errors import ArchiveError, UnknownNameError


class _Build(Protocol):
    def __call__(self, root: str, *, include_flagged: bool, subset: Subset, boa_add_offset: int | None) -> Archive: ...


@dataclass(frozen=True, slots=True)
class LayoutSpec:
    """One archive layout."""

    build: _Build
    """Options it has no use for are ignored."""
    labelled: bool
    """Whether its patches have labels."""
    source: str
    """Where the layout is described."""


LAYOUTS: Mapping[str, LayoutSpec] = MappingProxyType(
    {
        "bigearthnet-v2": LayoutSpec(
            build=lambda root, *, include_flagged, subset, boa_add_offset: BigEarthNetV2(  # noqa: ARG005
                root, include_flagged, subset
            ),
            labelled=True,
            source="Clasen et al. 2024, arXiv:2407.03653",
        ),
        "bigearthnet-v1": LayoutSpec(
            build=lambda root, *, include_flagged, subset, boa_add_offset: BigEarthNetV1(  # noqa: ARG005
                root, include_flagged, subset
            ),
            labelled=True,
            source="Sumbul et al. 2019, arXiv:1902.06148",
        ),
        "scene": LayoutSpec(
            build=lambda root, *, include_flagged, subset, boa_add_offset: SceneArchive(  # noqa: ARG005
                root, boa_add_offset
            ),
            labelled=False,
            source="infra/archives/scene.py",
        ),
    }
)


def open_archive(
    layout: str,
    root: str | Path,
    *,
    include_flagged: bool = False,
    subset: Subset = "all",
    boa_add_offset: int | None = None,
) -> Archive:
    """Return an archive, not yet scanned.

    Args:
        layout: A name in LAYOUTS.
        root: Its folder.
        include_flagged: BigEarthNet: whether patches with snow, cloud or shadow are inputs.
        subset: BigEarthNet: what a patch is that the metadata names and the disk lacks: a problem, or only counted.
        boa_add_offset: scene: DN to add to scenes that have no MTD_MSIL2A.xml.

    Raises:
        UnknownNameError: There is no such layout.
        ArchiveError: The root is not a folder.
    """
    if layout not in LAYOUTS:
        raise UnknownNameError(f"no archive layout {layout!r}; there are {', '.join(LAYOUTS)}")
    path = Path(root).absolute()
    if not path.is_dir():
        raise ArchiveError(f"the archive's root {path} is not a folder")
    return LAYOUTS[layout].build(
        str(path), include_flagged=include_flagged, subset=subset, boa_add_offset=boa_add_offset
    )
