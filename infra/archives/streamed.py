"""Archives as they are distributed: each modality a tar archive, which is read front to back and never unpacked.

A plan is made before pixels are read. Where metadata lies beside the archives and names every patch, that is all it
needs: the one pass over each archive is the one that fills the buckets. Otherwise, for v1, whose Sentinel-1 patches
tell their partners in their own JSONs, and for `subset: present`, a first pass lists what there is.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from infra.archives.buckets import Bucket
from infra.archives.inventory import Inventory
from infra.archives.modality import Modality, OpenFolder, PatchFolder
from infra.archives.model import Patch, PatchInput, Scan
from infra.archives.places import is_missing, opener
from infra.archives.tar_inventory import TarInventory
from infra.archives.tar_reader import SUFFIXES
from infra.errors import ArchiveError
from infra.storage import write_text


class StreamedLayout(Protocol):
    """A layout whose patches can be read from wherever their folders are."""

    @property
    def root(self) -> str:
        """Folder that holds the metadata."""
        ...

    @property
    def version(self) -> str:
        """Source version."""
        ...

    def scan_of(self, inventory: Inventory) -> Scan:
        """Return every input."""
        ...

    def read_from(self, open_folder: OpenFolder, patch: PatchInput) -> Patch:
        """Return one patch's pixels."""
        ...


@dataclass(frozen=True, slots=True)
class StreamedArchive:
    """An archive of tar archives; some of its modalities may be folders."""

    layout: StreamedLayout
    modalities: tuple[Modality, ...]
    """Of the layout."""
    tars: Mapping[str, str]
    """Path or URL of the tar archive, by the modality's `top`; the last modality has one."""
    needs_list: bool
    """Whether a plan needs the list of patch folders."""
    kept: Path | None = None
    """Folder where is kept what a pass found; None: nowhere, so every scan is a pass."""

    @property
    def version(self) -> str:
        """Source version."""
        return self.layout.version

    @property
    def passes(self) -> tuple[Modality, ...]:
        """The modalities that are tar archives, in the order in which buckets are filled from them."""
        return tuple(modality for modality in self.modalities if modality.top in self.tars)

    def scan(self) -> Scan:
        """Return every input that the metadata names, or, once the archive was passed over, that it holds.

        Raises:
            ArchiveError: There is no metadata, or an archive cannot be read to its end.
        """
        return self.layout.scan_of(self.inventory(may_pass=self.needs_list))

    def scan_through(self) -> Scan:
        """Return every input as a scan of the unpacked archive would, at the price of a pass where none was made."""
        return self.layout.scan_of(self.inventory(may_pass=True))

    def inventory(self, *, may_pass: bool = False) -> TarInventory:
        """Return what is known of the archives' contents."""
        return TarInventory(self.layout.root, self.tars, self.kept, may_pass)

    def read(self, patch: PatchInput) -> Patch:
        """Refuse to read a single patch: that would be a pass of its own."""
        raise ArchiveError(f"{patch.patch_id} lies in a tar archive, of which only whole shards can be read")

    def is_new(self) -> bool:
        """Return whether no run has begun to read these archives: another one was replaced, or there was none."""
        return self.kept is None or not self._begun(self.kept).exists()

    def begin(self) -> None:
        """Note that a run begins to read them."""
        if self.kept is not None:
            write_text(self._begun(self.kept), "")

    def _begun(self, kept: Path) -> Path:
        return kept / f"begun-{self.inventory().identity(*self.tars)}"


@dataclass(slots=True)
class BucketArchive:
    """The patches of one shard at a time, from its bucket; what is a folder is read from there."""

    archive: StreamedArchive
    bucket: Bucket | None = field(default=None)
    """The open bucket of the shard that is read."""
    _missing: frozenset[str] = field(init=False)
    """Modalities that are not there: to look for the folder of each patch in vain takes as long as to read it."""

    def __post_init__(self) -> None:
        """Look what is missing."""
        root = self.archive.layout.root
        self._missing = frozenset(item.top for item in self.archive.modalities if is_missing(root, item.top))

    @property
    def version(self) -> str:
        """Source version."""
        return self.archive.version

    def scan(self) -> Scan:
        """Return every input."""
        return self.archive.scan()

    def read(self, patch: PatchInput) -> Patch:
        """Return the pixels of one patch of the shard; raises BadPatchError as the layout does."""
        return self.archive.layout.read_from(self._open, patch)

    def _open(self, relative: str) -> PatchFolder | None:
        top = relative.partition("/")[0]
        if top in self.archive.tars:
            assert self.bucket is not None
            return self.bucket.open(relative)
        return None if top in self._missing else opener(self.archive.layout.root)(relative)


def find_tars(root: Path, modalities: Sequence[Modality]) -> dict[str, str]:
    """Return the tar archive of each modality that has one.

    Args:
        root: The tar archive of the last modality, whatever its name; the others lie beside it under their own.
        modalities: Of the layout.
    """
    beside = {modality.top: [root.with_name(modality.top + suffix) for suffix in SUFFIXES] for modality in modalities}
    found = {top: str(path) for top, paths in beside.items() for path in reversed(paths) if path.is_file()}
    return {**found, modalities[-1].top: str(root)}
