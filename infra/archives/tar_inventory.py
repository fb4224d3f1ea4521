"""What a tar archive of one modality holds, found by passing over it once, and kept so that it need not be again."""

import logging
from collections.abc import Iterable, Mapping
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path

import pyarrow as pa

from infra import object_store
from infra.archives.inventory import MAX_NAME, Condense, Found
from infra.archives.names import is_displayable
from infra.archives.tar_reader import TarMember, read_tar
from infra.errors import ArchiveError, BadPatchError, PipelineError
from infra.fingerprint import Json, fingerprint
from infra.object_store import ObjectPath
from infra.parquet_files import read_parquet
from infra.parts import write_parquet
from infra.storage import location

MAX_FOLDERS = 2_000_000
"""Patch folders in one archive: three times what any BigEarthNet has."""

_SCHEMA = pa.schema(
    [
        pa.field("folder", pa.string(), nullable=False),
        pa.field("note", pa.string()),
        pa.field("path", pa.string()),  # of the file that gives none
        pa.field("reason", pa.string()),
        pa.field("detail", pa.string()),
    ]
)

logger = logging.getLogger(__name__)


class FolderList:
    """The patch folders that a pass comes by."""

    def __init__(self, top: str, *, by_product: bool) -> None:
        self._top, self._parts = top, 3 if by_product else 2
        self._found: dict[str, None] = {}

    def meet(self, path: str) -> str | None:
        """Note the patch folder that a folder is or lies in, and return it; None where it is or lies in none.

        Raises:
            ArchiveError: There are more than any archive has.
        """
        names = path.split("/", self._parts)
        if len(names) < self._parts or names[0] != self._top or any(_is_odd(name) for name in names):
            return None
        folder = "/".join(names[: self._parts])
        if folder not in self._found:
            if len(self._found) == MAX_FOLDERS:
                raise ArchiveError(f"there are more than {MAX_FOLDERS} folders of patches in {self._top}")
            self._found[folder] = None
        return folder

    @property
    def folders(self) -> list[str]:
        """All of them, in the order of the archive."""
        return list(self._found)


def _is_odd(name: str) -> bool:
    """Return whether a name is no folder's: empty, endless, hidden, "." or "..", or of characters that no name has."""
    return not 0 < len(name) <= MAX_NAME or name[0] == "." or "\\" in name or not is_displayable(name)


def folder_of(member: TarMember) -> str:
    """Return the path of a member that is a folder, else of the folder that it lies in."""
    return member.name.rstrip("/") if member.is_folder else member.name.rpartition("/")[0]


@dataclass(frozen=True, slots=True)
class TarContents:
    """What is kept of a pass."""

    folders: list[str]
    """Patch folders, in the archive's order."""
    notes: dict[str, str | BadPatchError] = field(default_factory=dict)
    """By patch folder, what a small file in it tells; empty where none was asked for."""


@dataclass(frozen=True, slots=True)
class TarInventory:
    """The inventory of an archive whose modalities are tar archives, each passed over at most once."""

    root: str
    """Folder that the modalities would be unpacked in."""
    tars: Mapping[str, str]
    """Tar archive of each modality that is one."""
    kept: Path | None
    """Folder where the inventories are kept; None: nowhere."""
    may_pass: bool
    """Whether folders that are not known yet are worth a pass."""

    def has(self, top: str) -> bool:
        """Return whether a modality is there."""
        return top in self.tars or (location(self.root) / top).is_dir()

    def folders(self, top: str, *, by_product: bool) -> Found | None:
        """Return a modality's patch folders; None where they are not known yet and no pass may be made."""
        known = self._load(top)
        if known is None and not self.may_pass:
            return None
        if known is None:
            listed = FolderList(top, by_product=by_product)
            with closing(read_tar(self.tars[top])) as members:
                for member in members:
                    listed.meet(folder_of(member))
            known = TarContents(listed.folders)
            self.save(top, known)
        return Found(known.folders)

    def notes(self, top: str, suffix: str, condense: Condense) -> dict[str, str | BadPatchError]:
        """Return what the file `<folder's name><suffix>` of every patch folder tells."""
        known = self._load(top)
        if known is None:
            with closing(read_tar(self.tars[top])) as members:
                known = _read_notes(members, top, suffix, condense)
            self.save(top, known)
        return known.notes

    def save(self, top: str, contents: TarContents) -> None:
        """Keep what a pass over a modality found."""
        path = self._path(top)
        if path is None:
            return
        columns: dict[str, list[str | None]] = {name: [] for name in _SCHEMA.names}
        for folder in contents.folders:
            note = contents.notes.get(folder)
            row: tuple[str | None, ...] = (folder, None, None, None, None)
            if isinstance(note, BadPatchError):
                row = (folder, None, note.path, note.reason, note.detail)
            elif note is not None:
                row = (folder, note, None, None, None)
            for name, value in zip(columns, row, strict=True):
                columns[name].append(value)
        write_parquet(path, pa.table(columns, _SCHEMA))

    def knows(self, top: str) -> bool:
        """Return whether a pass over a modality's archive, as it is now, was made to its end."""
        path = self._path(top)
        return path is not None and path.is_file()

    def _load(self, top: str) -> TarContents | None:
        path = self._path(top)
        if path is None or not path.is_file():
            return None
        rows = read_parquet(path)
        notes: dict[str, str | BadPatchError] = {}
        for row in rows.filter(pa.compute.is_valid(rows["note"])).to_pylist():
            notes[row["folder"]] = row["note"]
        for row in rows.filter(pa.compute.is_valid(rows["reason"])).to_pylist():
            notes[row["folder"]] = BadPatchError(row["path"], row["reason"], row["detail"])
        return TarContents(rows["folder"].to_pylist(), notes)

    def _path(self, top: str) -> Path | None:
        return None if self.kept is None else self.kept / f"{top}-{self.identity(top)}.parquet"

    def identity(self, *tops: str) -> str:
        """Return a hash over archives' names, sizes, and times or versions: another, wherever one was replaced.

        Raises:
            ArchiveError: One is missing.
            StoreError, TransientError: Object storage does not tell.
        """
        found: list[Json] = []
        for top in tops:
            path = location(self.tars[top])
            try:
                if isinstance(path, ObjectPath):
                    size, version = object_store.size_and_version(path)
                    found.append([path.name, size, str(sorted(version.items()))])
                else:
                    state = path.stat()
                    found.append([path.name, state.st_size, state.st_mtime_ns])
            except PipelineError:
                raise
            except OSError as error:
                raise ArchiveError(f"the archive {path} cannot be read: {error.strerror or error}") from error
        return fingerprint({"archives": found})


def _read_notes(members: Iterable[TarMember], top: str, suffix: str, condense: Condense) -> TarContents:
    """Go through an archive without products and condense one small file of each patch folder; the first counts."""
    listed = FolderList(top, by_product=False)
    notes: dict[str, str | BadPatchError] = {}
    for member in members:
        folder = listed.meet(folder_of(member))
        if folder is None or folder in notes or member.name != f"{folder}/{folder.rpartition('/')[2]}{suffix}":
            continue
        if member.data is None:
            notes[folder] = BadPatchError(member.name, *fault_of(member))
            continue
        try:
            notes[folder] = condense(bytes(member.data), member.name)
        except BadPatchError as error:
            notes[folder] = error
    for folder in listed.folders:
        if folder not in notes:
            shown = f"{folder}/{folder.rpartition('/')[2]}{suffix}"
            notes[folder] = BadPatchError(shown, "no_metadata", "it does not exist")
    return TarContents(listed.folders, notes)


def fault_of(member: TarMember) -> tuple[str, str]:
    """Return the reason and detail of a member that should be a file and is none."""
    what = "a folder" if member.is_folder else member.fault
    return "unreadable", f"the archive has {what} in its place"
