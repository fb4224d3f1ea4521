"""Where an archive of folders lies: on a disk, or on object storage."""

import os
from collections.abc import Callable
from functools import partial
from pathlib import Path

from infra.archives.files import Folder, refuse_link_out
from infra.archives.inventory import Inventory, OnDisk
from infra.archives.modality import OpenFolder
from infra.archives.remote import RemoteFolder, RemoteInventory
from infra.errors import ArchiveError, BadPatchError
from infra.object_store import ObjectPath
from infra.storage import location


def inventory_of(root: str) -> Inventory:
    """Return what tells the folders below a root, a path or a URL."""
    place = location(root)
    return RemoteInventory(place) if isinstance(place, ObjectPath) else OnDisk(root)


def file_below(root: str, name: str) -> Path:
    """Return where a file lies that describes the whole archive.

    Raises:
        ArchiveError: It is a link out of the archive.
    """
    place = location(root)
    if not isinstance(place, ObjectPath):
        refuse_link_out(root, name)
    return place / name


def opener(root: str) -> OpenFolder:
    """Return what opens the folders below a root, a path or a URL."""
    place = location(root)
    return partial(RemoteFolder.open, place) if isinstance(place, ObjectPath) else partial(Folder.open, root)


def is_missing(root: str, top: str) -> bool:
    """Return whether a root has nothing of a name; one that is not there itself, as on a lost disk, lacks nothing."""
    place = location(root)
    if isinstance(place, ObjectPath):
        return not (place / top).is_dir()
    try:
        os.lstat(place / top)
    except FileNotFoundError:
        return place.is_dir()
    except OSError:  # whoever opens it tells
        return False
    return False


def read_below[P](root: str, top: str, read: Callable[[OpenFolder], P]) -> P:
    """Return a patch from the folders below a root.

    Args:
        root: The archive's root, a path or a URL.
        top: The folder of all patches.
        read: Reads the patch, given what opens the archive's folders.

    Raises:
        BadPatchError: As `read` does.
        ArchiveError: The folder of all patches is gone: a lost disk, not a lost patch.
    """
    try:
        return read(opener(root))
    except BadPatchError as error:
        if error.reason == "missing_folder" and not (location(root) / top).is_dir():
            raise ArchiveError(f"{root} lost its {top} while it was read: is the disk still mounted?") from error
        raise
