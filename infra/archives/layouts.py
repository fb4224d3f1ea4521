"""The archive layouts, by name."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

from infra.archives import bigearthnet_v1, bigearthnet_v2
from infra.archives.bigearthnet_v1 import BigEarthNetV1
from infra.archives.bigearthnet_v2 import BigEarthNetV2
from infra.archives.image_folder import ImageFolder
from infra.archives.image_table import ImageTable
from infra.archives.inventory import Subset
from infra.archives.modality import Modality
from infra.archives.model import Archive
from infra.archives.scene import SceneArchive
from infra.archives.streamed import StreamedArchive, find_tars
from infra.archives.tar_reader import is_tar
from infra.errors import ArchiveError, UnknownNameError, did_you_mean
from infra.fingerprint import Json
from infra.object_store import ObjectPath
from infra.storage import location


@dataclass(frozen=True, slots=True)
class ArchiveOptions:
    """What one may ask of an archive; every layout has use for some."""

    include_flagged: bool = False
    """Whether patches with snow, cloud or shadow are inputs."""
    subset: Subset = "all"
    """What a patch is that the metadata names and the disk lacks: a problem, or only counted."""
    boa_add_offset: int | None = None
    """DN to add to scenes that have no MTD_MSIL2A.xml."""
    image_size: int | None = None
    """Edge that pictures are resized to, pixels; None: they have one size."""
    label_table: str = "labels.csv"
    """Table of the pictures' labels, below the root."""
    validation_share: float = 0.2
    """Share of the pictures without a split that validates; 0: they are of the split `all`."""
    split_seed: int = 0
    """Which of them validate."""


@dataclass(frozen=True, slots=True)
class LayoutSpec:
    """One archive layout."""

    build: Callable[[str, ArchiveOptions], Archive]
    """From the root and the options."""
    options: frozenset[str]
    """Options that it has use for."""
    labelled: bool
    """Whether its patches have labels."""
    mapped: bool
    """Whether land-cover reference maps belong to it; an archive may come without."""
    source: str
    """Where the layout is described."""
    modalities: tuple[Modality, ...] = ()
    """What it consists of, where each may be a tar archive; empty: it is read from folders only."""


_BIGEARTHNET_OPTIONS = frozenset({"include_flagged", "subset"})

_DETERMINING = ("boa_add_offset", "label_table", "image_size", "validation_share", "split_seed")
"""Options that change pixels, labels or splits, and so what a store holds."""

LAYOUTS: Mapping[str, LayoutSpec] = MappingProxyType(
    {
        "bigearthnet-v2": LayoutSpec(
            build=lambda root, options: BigEarthNetV2(root, options.include_flagged, options.subset),
            options=_BIGEARTHNET_OPTIONS,
            labelled=True,
            mapped=True,
            source="Clasen et al. 2024, arXiv:2407.03653",
            modalities=bigearthnet_v2.MODALITIES,
        ),
        "bigearthnet-v1": LayoutSpec(
            build=lambda root, options: BigEarthNetV1(root, options.include_flagged, options.subset),
            options=_BIGEARTHNET_OPTIONS,
            labelled=True,
            mapped=False,
            source="Sumbul et al. 2019, arXiv:1902.06148",
            modalities=bigearthnet_v1.MODALITIES,
        ),
        "scene": LayoutSpec(
            build=lambda root, options: SceneArchive(root, options.boa_add_offset),
            options=frozenset({"boa_add_offset"}),
            labelled=False,
            mapped=False,
            source="infra/archives/scene.py",
        ),
        "image-folder": LayoutSpec(
            build=lambda root, options: ImageFolder(
                root, options.image_size, options.validation_share, options.split_seed
            ),
            options=frozenset({"image_size", "validation_share", "split_seed"}),
            labelled=True,
            mapped=False,
            source="infra/archives/image_folder.py",
        ),
        "image-table": LayoutSpec(
            build=lambda root, options: ImageTable(
                root,
                options.label_table,
                options.image_size,
                options.validation_share,
                options.split_seed,
                options.subset,
            ),
            options=frozenset({"subset", "label_table", "image_size", "validation_share", "split_seed"}),
            labelled=True,
            mapped=False,
            source="infra/archives/image_table.py",
        ),
    }
)


def open_archive(
    layout: str,
    root: str | Path,
    options: ArchiveOptions = ArchiveOptions(),  # frozen
    kept: Path | None = None,
) -> Archive:
    """Return an archive, not yet scanned.

    Args:
        layout: A name in LAYOUTS.
        root: Its folder, or the tar archive of its Sentinel-2 patches; a BigEarthNet's may be a URL.
        options: What to ask of it; a layout leaves alone what it has no use for, see `unused`.
        kept: Folder to keep the contents of tar archives in, so that they are passed over once; None: nowhere.

    Raises:
        UnknownNameError: There is no such layout.
        ArchiveError: The root is not a folder.
    """
    if layout not in LAYOUTS:
        hint = did_you_mean(layout, LAYOUTS)
        raise UnknownNameError(f"no archive layout {layout!r}: {hint}there are {', '.join(LAYOUTS)}")
    path = location(str(root)).absolute()
    if isinstance(path, ObjectPath) and not LAYOUTS[layout].modalities:
        raise ArchiveError(f"the layout {layout} reads folders of this machine, not {path}: copy them here")
    if is_tar(path) and path.is_file():
        return _streamed(layout, path, options, kept)
    if not path.is_dir():
        hint = "correct archive.root in RUN.yaml; `superscene doctor RUN.yaml` looks where it may be"
        raise ArchiveError(f"the archive's root {path} is not a folder: {hint}")
    return LAYOUTS[layout].build(str(path), options)


def _streamed(layout: str, path: Path, options: ArchiveOptions, kept: Path | None) -> StreamedArchive:
    built = LAYOUTS[layout].build(str(path.parent), options)
    if not isinstance(built, BigEarthNetV1 | BigEarthNetV2):
        raise ArchiveError(f"the archive's root {path} is a file, and the layout {layout} reads folders: unpack it")
    modalities = LAYOUTS[layout].modalities
    needs_list = options.subset == "present" or isinstance(built, BigEarthNetV1)
    return StreamedArchive(built, modalities, find_tars(path, modalities), needs_list, kept)


def determining(layout: str, options: ArchiveOptions) -> dict[str, Json]:
    """Return the options that change what a store of this layout holds, where they are not at their defaults."""
    default = ArchiveOptions()
    names = [name for name in _DETERMINING if name in LAYOUTS[layout].options]
    return {name: getattr(options, name) for name in names if getattr(options, name) != getattr(default, name)}


def unused(layout: str, given: Iterable[str]) -> list[str]:
    """Return those of the named options that a layout has no use for."""
    return [name for name in given if name not in LAYOUTS[layout].options]
