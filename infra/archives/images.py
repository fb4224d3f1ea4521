"""Archives of pictures: what lies below a root, of which size and depth, and how it parts into splits."""

import hashlib
import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from infra.archives.files import is_inside
from infra.archives.image_file import SUFFIXES, Kind, kind_of, read_picture
from infra.archives.inventory import printable
from infra.archives.model import INPUT_SCHEMA, PROBLEM_SCHEMA, Patch, PatchFormat, PatchInput, Reason, Scan
from infra.archives.names import is_displayable
from infra.bigearthnet.bands import IMAGE_RGB, BandGroup
from infra.errors import ArchiveError, BadPatchError

RGB_ARRAY = "rgb"
"""The array of the store that holds pictures."""


@dataclass(frozen=True, slots=True)
class Labelled:
    """A picture that is to be an input."""

    patch_id: str
    source: str
    """Its file, relative to the root."""
    labels: tuple[str, ...]
    split: str | None
    """None: drawn by the patch's name."""


@dataclass(slots=True)
class Problems:
    """Inputs that cannot be used."""

    rows: list[dict[str, str | None]] = field(default_factory=list)

    def add(self, patch_id: str | None, path: str, reason: Reason | str, detail: str) -> None:
        """Note one input; a path that is not UTF-8 becomes one."""
        self.rows.append({"patch_id": patch_id, "path": printable(path), "reason": reason, "detail": detail})


def find_pictures(root: str, problems: Problems) -> list[str]:
    """Return the pictures below a root, relative to it, sorted; all other files are problems.

    Names that begin with a dot are left alone. A folder directly in the root may be a link to another disk; any other
    link has to end within the root or such a folder, and one to a folder is not followed.

    Raises:
        ArchiveError: The root cannot be listed.
    """
    found: list[str] = []
    folders = [""]
    while folders:
        folder = folders.pop()
        try:
            with os.scandir(f"{root}/{folder}") as entries:
                here = sorted((entry for entry in entries if entry.name[0] != "."), key=lambda entry: entry.name)
        except OSError as error:
            if not folder:
                raise ArchiveError(f"the archive {root} cannot be listed: {error.strerror or error}") from error
            problems.add(None, folder, "unreadable", f"its folder cannot be listed: {error.strerror or error}")
            continue
        for entry in here:
            path = f"{folder}/{entry.name}" if folder else entry.name
            try:
                fault = _fault(root, path, entry)
                is_folder = entry.is_dir()
            except OSError as error:
                fault, is_folder = ("unreadable", error.strerror or str(error)), False
            if fault is not None:
                problems.add(None, path, *fault)
            elif is_folder:
                folders.append(path)
            else:
                found.append(path)
    return sorted(found)


def _fault(root: str, path: str, entry: "os.DirEntry[str]") -> tuple[Reason, str] | None:
    """Return what is wrong with a file or folder, without opening it.

    Raises:
        OSError: It is a link to itself, or cannot be looked at.
    """
    is_link = entry.is_symlink()
    if is_link and not is_inside(root, path):
        return "outside_archive", "a symbolic link that leads out of the archive"
    is_folder = entry.is_dir()
    if is_link and is_folder:
        target, top = (os.path.realpath(place).rstrip("/") + "/" for place in (f"{root}/{path}", root))
        if "/" in path or target.startswith(top) or top.startswith(target):
            return "duplicate_id", "a symbolic link to a folder, whose pictures are looked for where they lie"
    if is_folder:
        return None
    if os.path.splitext(entry.name)[1].lower() not in SUFFIXES:  # noqa: PTH122 - a string
        return "not_an_image", f"it is none of {', '.join(sorted(SUFFIXES))}"
    if not entry.is_file():
        return "unreadable", "it is not a regular file"
    if printable(path) != path:
        return "unreadable", "its name is not UTF-8"
    return None if is_displayable(path) else ("unreadable", "its name has characters that cannot be seen")


def take_stock_of_pictures(
    root: str,
    inputs: Sequence[Labelled],
    labels: tuple[str, ...],
    problems: Problems,
    *,
    image_size: int | None,
    validation_share: float,
    split_seed: int,
    absent: Sequence[str] = (),
) -> Scan:
    """Return the scan of an archive of pictures: every header is looked at.

    All pictures get one size: `image_size`, or else that of most of them; and one depth, that of most of them.

    Args:
        root: The archive's root.
        inputs: Pictures, each file once.
        labels: Names of the labels, in their order.
        problems: What is known to be wrong already; more is added.
        image_size: Edge that all pictures are resized to, pixels.
        validation_share: Share of the pictures without a split that validates; 0: they are all of the split `all`.
        split_seed: Seed of that draw.
        absent: Names of pictures that are missing and only counted.

    Raises:
        ArchiveError: No picture can be read, or most are not square and are not to be resized.
    """
    kinds: dict[str, Kind] = {}
    for item in inputs:
        try:
            kinds[item.patch_id] = kind_of(root, item.source)
        except BadPatchError as bad:
            problems.add(item.patch_id, bad.path, bad.reason, bad.detail)
    if not kinds:
        raise ArchiveError(f"the archive {root} has no picture that can be read: {_first(problems)}")
    bits = _commonest([kind.bits for kind in kinds.values()])
    height, width = _commonest([(kind.height, kind.width) for kind in kinds.values()])
    if image_size is None and height != width:
        raise ArchiveError(
            f"most pictures of {root} are {width} x {height}, and patches are square: set archive.image_size, and all "
            "are resized"
        )
    rows = []
    for item in inputs:
        kind = kinds.get(item.patch_id)
        if kind is None:
            continue
        if kind.bits != bits:
            problems.add(
                item.patch_id, item.source, "wrong_type", f"it has {kind.bits} bits a channel, most have {bits}"
            )
        elif image_size is None and (kind.height, kind.width) != (height, width):
            found = f"it is {kind.width} x {kind.height}, most are {width} x {height}: archive.image_size resizes all"
            problems.add(item.patch_id, item.source, "wrong_size", found)
        else:
            split = item.split or drawn_split(item.patch_id, validation_share, split_seed)
            rows.append({"patch_id": item.patch_id, "split": split, "labels": list(item.labels), "source": item.source})
    group = BandGroup(RGB_ARRAY, IMAGE_RGB, gsd=None, size=image_size or height)
    return Scan(
        format=PatchFormat(labels, (group,), has_maps=False, max_dn=2**bits - 1),
        inputs=pa.Table.from_pylist(rows, INPUT_SCHEMA),
        problems=pa.Table.from_pylist(problems.rows, PROBLEM_SCHEMA),
        absent=len(absent),
        total=len(rows) + len(problems.rows) + len(absent),
        excluded=0,
        absent_ids=pa.array(absent, pa.string()),
    )


def drawn_split(patch_id: str, validation_share: float, seed: int) -> str:
    """Return the split of a picture by its name alone, so that it stays where it is when others come."""
    if not validation_share:
        return "all"
    digest = hashlib.sha256(f"{seed}:{patch_id}".encode()).digest()
    return "validation" if int.from_bytes(digest[:8]) < validation_share * 2**64 else "train"


def read_patch(root: str, patch: PatchInput, image_size: int | None) -> Patch:
    """Return a picture as a patch.

    Raises:
        BadPatchError: It cannot be used.
    """
    pixels: NDArray[np.uint16] = read_picture(root, patch.source, image_size)
    return Patch(
        arrays={RGB_ARRAY: pixels},
        reference_map=None,
        labels=patch.labels,
        epsg=None,
        bounds=None,
        acquired=None,
        tile=None,
        nodata_share=0.0,
    )


def without_ending(path: str) -> str:
    """Return a path without the ending of its file name."""
    return os.path.splitext(path)[0]  # noqa: PTH122 - a string


def _commonest[T: (int, tuple[int, int])](values: Sequence[T]) -> T:
    """Return the value that comes most often; of several, the largest."""
    counts = Counter(values)
    return max(counts, key=lambda value: (counts[value], value))


def _first(problems: Problems) -> str:
    if not problems.rows:
        return "there is none"
    # A stray file beside the pictures says less than what is wrong with those that were asked for.
    row = next((row for row in problems.rows if row["patch_id"] is not None), problems.rows[0])
    return f"{row['path']}: {row['detail']}"
