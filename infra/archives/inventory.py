"""Comparing what an archive's metadata names with what lies on disk; whole columns at a time."""

import os
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Literal, Protocol

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from infra.archives.files import bad_file, is_inside, read_file
from infra.archives.model import BIGEARTHNET, INPUT_SCHEMA, PROBLEM_SCHEMA, Reason, Scan
from infra.archives.names import is_displayable
from infra.bigearthnet.classes import NAMES
from infra.errors import ArchiveError, BadPatchError
from infra.name_lookup import is_first, places_among

Subset = Literal["all", "present"]

SPLITS: Mapping[str, str] = MappingProxyType(
    {"train": "train", "validation": "validation", "val": "validation", "test": "test", "all": "all"}
)
"""Split names as archives write them, and as the tables do."""

MISSING_FOLDER = "the metadata names it, the folder does not exist"

MAX_NAME = 255
"""Characters of a folder's name, as on a disk; a tar archive could give it 65,000, and millions of such names."""

# One folder name: no separator, no control character, no leading dot (so neither . nor ..).
_SAFE_NAME = rf"^[^./\\\x00-\x1f\x7f][^/\\\x00-\x1f\x7f]{{0,{MAX_NAME - 1}}}$"


@dataclass(frozen=True, slots=True)
class Found:
    """The folders on disk, as paths relative to the root."""

    folders: list[str]
    """Every patch folder, blocked ones included."""
    blocked: dict[str, tuple[Reason, str]] = field(default_factory=dict)
    """Patch folders that must not be opened, and why."""
    blocked_products: dict[str, tuple[Reason, str]] = field(default_factory=dict)
    """Folders of patch folders that cannot be listed, and why; keys are relative to the root."""


type Condense = Callable[[bytes, str], str]
"""Makes of a small file's bytes, and its path for messages, what is kept of it; may raise BadPatchError."""


class Inventory(Protocol):
    """What an archive holds, told without reading pixels."""

    def has(self, top: str) -> bool:
        """Return whether a modality is there."""
        ...

    def folders(self, top: str, *, by_product: bool) -> Found | None:
        """Return a modality's patch folders; None where that is not known yet. Errors are those of `find_folders`."""
        ...

    def notes(self, top: str, suffix: str, condense: Condense) -> dict[str, str | BadPatchError]:
        """Return, by patch folder of a modality without products, what the file `<folder's name><suffix>` tells."""
        ...


@dataclass(frozen=True, slots=True)
class OnDisk:
    """The inventory of an archive of folders."""

    root: str

    def has(self, top: str) -> bool:
        """Return whether a modality's folder is there."""
        return (Path(self.root) / top).is_dir()

    def folders(self, top: str, *, by_product: bool) -> Found:
        """Return a modality's patch folders."""
        return find_folders(self.root, top, by_product=by_product)

    def notes(self, top: str, suffix: str, condense: Condense) -> dict[str, str | BadPatchError]:
        """Read a small file of every patch folder."""
        found = self.folders(top, by_product=False)
        found.folders.sort()

        def note(folder: str) -> str | BadPatchError:
            if folder in found.blocked:
                return BadPatchError(folder, *found.blocked[folder])
            shown = f"{folder}/{folder.rpartition('/')[2]}{suffix}"
            try:
                return condense(read_file(f"{self.root}/{shown}", shown, whole=True), shown)
            except BadPatchError as error:
                return error
            except OSError as error:
                return bad_file(error, self.root, shown, absent="no_metadata")

        with ThreadPoolExecutor(8) as pool:  # waiting for the disk, mostly
            return dict(zip(found.folders, pool.map(note, found.folders), strict=True))


def find_folders(root: str, top: str, *, by_product: bool) -> Found:
    """Return the patch folders below `<root>/<top>`.

    Args:
        root: The archive's root.
        top: The folder of one modality.
        by_product: Patches lie in one folder per product (v2), not directly in `top` (v1).

    Raises:
        ArchiveError: `top` is missing or cannot be listed.
    """
    found = Found([])
    try:
        if not by_product:
            _list_into(found, root, top)
            return found
        products = Found([])
        _list_into(products, root, top)
    except OSError as error:
        raise ArchiveError(f"the archive {root} needs a folder {top}: {error.strerror or error}") from error
    found.blocked_products.update(products.blocked)
    for product in products.folders:
        if product in products.blocked:
            continue
        try:
            _list_into(found, root, product)
        except OSError as error:
            found.blocked_products[product] = ("unreadable", f"its folder cannot be listed: {error.strerror or error}")
    return found


def _list_into(found: Found, root: str, folder: str) -> None:
    with os.scandir(f"{root}/{folder}") as entries:
        for entry in entries:
            name = entry.name
            if name[0] == ".":
                continue
            if not name.isascii():
                name = printable(name)
            path = f"{folder}/{name}"
            if entry.is_symlink():
                if not is_inside(root, f"{folder}/{entry.name}"):
                    found.blocked[path] = ("outside_archive", "a symbolic link that leads out of the archive's folder")
                    found.folders.append(path)
                    continue
                if not entry.is_dir():
                    continue
            elif not entry.is_dir(follow_symlinks=False):
                continue
            found.folders.append(path)


def printable(name: str) -> str:
    """Return a file name as UTF-8 can write it: bytes that are none become escapes."""
    return os.fsencode(name).decode("utf-8", "backslashreplace")


def safe_names(names: pa.Array) -> pa.Array:
    """Return, for each name, whether it is one folder's name and nothing else; null for null."""
    safe = pc.match_substring_regex(names, _SAFE_NAME)
    if pc.all(pc.string_is_ascii(names)).as_py() is not False:  # as half a million names of BigEarthNet are
        return safe
    shown = pa.array([name is None or is_displayable(name) for name in names.to_pylist()], pa.bool_())
    return pc.and_(safe, shown)


def order_labels(labels: pa.Array) -> tuple[pa.Array, NDArray[np.bool_], NDArray[np.bool_]]:
    """Return lists of class names in the project's order, and which rows have an unknown name, and which none at all.

    Args:
        labels: list<string>; null rows stay null.

    Returns:
        The lists without unknown and repeated names, (rows,) bool, (rows,) bool.
    """
    rows = len(labels)
    parents = pc.list_parent_indices(labels).to_numpy(zero_copy_only=False).astype(np.int64)
    index = pc.index_in(pc.list_flatten(labels), value_set=pa.array(NAMES))
    known = _mask(index.is_valid())
    unknown = np.zeros(rows, np.bool_)
    unknown[parents[~known]] = True
    multi_hot = np.zeros((rows, len(NAMES)), np.bool_)
    multi_hot[parents[known], pc.drop_null(index).to_numpy(zero_copy_only=False)] = True
    counts = multi_hot.sum(axis=1)
    offsets = np.concatenate([[0], np.cumsum(counts)]).astype(np.int32)
    values = pa.array(NAMES).take(pa.array(np.nonzero(multi_hot)[1].astype(np.int8)))
    null = labels.is_null()
    empty = (counts == 0) & ~unknown & ~_mask(null)
    return pa.ListArray.from_arrays(pa.array(offsets), values, mask=null), unknown, empty


def take_stock(
    named: pa.Table,
    found: Found,
    *,
    subset: Subset,
    excluded: pa.Array,
    excluded_count: int,
    other_problems: Sequence[Mapping[str, str | None]] = (),
) -> Scan:
    """Return the scan of an archive: every named row and every folder ends in exactly one place.

    Args:
        named: INPUT_SCHEMA, with nulls allowed everywhere, and `listed_in`, the metadata file; optionally `reason` and
            `detail` of what the layout already knows to be wrong. The first row of an id counts.
        found: What lies on disk.
        subset: What a named patch without a folder is: a problem ("all"), or only counted ("present").
        excluded: `source` of patches left out on request: neither inputs nor orphans.
        excluded_count: How many those are.
        other_problems: Rows of PROBLEM_SCHEMA, each an input of its own.

    Raises:
        ArchiveError: There is no patch folder at all.
    """
    if not found.folders and not found.blocked_products:
        raise ArchiveError("the archive has metadata but not one patch folder: is its root right, and unpacked?")
    column = {name: _one(named, name) for name in named.column_names}
    ids, source = column["patch_id"], column["source"]
    rows = named.num_rows
    labels, unknown, empty = order_labels(column["labels"])
    split = pa.array(list(SPLITS.values())).take(
        pc.index_in(pc.utf8_lower(column["split"]), value_set=pa.array(list(SPLITS)))
    )
    folders = pa.array(found.folders, pa.string())
    place = places_among(source, folders)
    there = place >= 0
    unnamed = np.ones(len(folders), np.bool_)
    unnamed[place[there]] = False
    # Half a million paths are cut only where a product cannot be listed.
    product = pa.nulls(rows, pa.string())
    if found.blocked_products:
        product = pc.replace_substring_regex(source, r"/[^/]*$", "")
    blocked_product = _mask(pc.is_in(product, value_set=pa.array(list(found.blocked_products), pa.string())))
    blocked = _mask(pc.is_in(source, value_set=pa.array(list(found.blocked), pa.string())))
    safe = _mask(pc.fill_null(safe_names(ids), fill_value=False))
    safe_s1 = _mask(pc.fill_null(safe_names(column["s1_name"]), fill_value=True))
    nameless = _mask(pc.fill_null(pc.equal(ids, ""), fill_value=True))

    reason = np.full(rows, None, object)
    detail = np.full(rows, None, object)

    def judge(which: NDArray[np.bool_] | np.intp, why: Reason, text: str) -> None:
        reason[which], detail[which] = why, text

    # Later verdicts replace earlier ones.
    if "reason" in column:
        reason = np.array(column["reason"].to_pylist(), object)
        detail = np.array(column["detail"].to_pylist(), object)
    judge(empty, "no_label", "the metadata gives it an empty list of labels")
    for i in np.flatnonzero(unknown):
        strange = sorted({str(x) for x in column["labels"][int(i)].as_py()} - set(NAMES))
        judge(i, "unknown_label", f"not one of the 19 classes: {', '.join(map(repr, strange))}"[:500])
    judge(
        _mask(split.is_null()),
        "malformed_metadata",
        f"its split is none of {', '.join(SPLITS)}",
    )
    judge(~safe_s1, "outside_archive", "its s1_name is not the name of a folder")
    gone = ~there & ~blocked_product
    judge(gone, "missing_folder", MISSING_FOLDER)
    for i in np.flatnonzero(blocked_product):
        judge(i, *found.blocked_products[product[int(i)].as_py()])
    for i in np.flatnonzero(blocked):
        judge(i, *found.blocked[source[int(i)].as_py()])
    first = is_first(ids)
    judge(~first, "duplicate_id", "the metadata names it more than once; the first row counts")
    judge(~safe, "outside_archive", "its id is not the name of a folder")
    judge(nameless, "malformed_metadata", "a row without patch_id")
    absent = gone & first & safe if subset == "present" else np.zeros(rows, np.bool_)

    bad = _mask(pa.array(reason, pa.string()).is_valid()) & ~absent
    good = ~bad & ~absent
    column |= {"labels": labels, "split": split}
    inputs = pa.table({f.name: column.get(f.name, pa.nulls(rows, f.type)) for f in INPUT_SCHEMA})
    if not good.all():  # a copy is as large as the names
        inputs = inputs.filter(pa.array(good))
    column |= {"reason": pa.array(reason, pa.string()), "detail": pa.array(detail, pa.string()), "safe": pa.array(safe)}
    needed = ("patch_id", "source", "listed_in", "reason", "detail", "safe")
    wrong = pa.table({name: column[name] for name in needed}).filter(pa.array(bad))
    path = pc.if_else(wrong["safe"], wrong["source"], wrong["listed_in"].cast(pa.string()))
    problems = wrong.select(["patch_id", "reason", "detail"]).add_column(1, "path", path)
    orphans = _orphans(found, folders.filter(pa.array(unnamed)), (source, excluded), product)
    problems = pa.concat_tables(
        [
            problems.cast(PROBLEM_SCHEMA),
            orphans,
            pa.Table.from_pylist([dict(row) for row in other_problems], PROBLEM_SCHEMA),
        ]
    )
    return Scan(
        format=BIGEARTHNET,
        inputs=inputs.cast(INPUT_SCHEMA),
        problems=problems,
        absent=int(np.count_nonzero(absent)),
        total=rows + orphans.num_rows + len(other_problems),
        excluded=excluded_count,
        absent_ids=ids.filter(pa.array(absent)),
    )


def _orphans(found: Found, folders: pa.Array, known: Sequence[pa.Array], products: pa.Array) -> pa.Table:
    """Return the problems of those folders that none of the known names is of."""
    for names in known:
        if len(folders):
            folders = folders.filter(pa.array(places_among(folders, names.cast(pa.string()).drop_null()) < 0))
    orphans = folders.to_pylist()
    rows: list[dict[str, str | None]] = [
        {
            "patch_id": path.rpartition("/")[2],
            "path": path,
            "reason": found.blocked.get(path, ("no_metadata", ""))[0],
            "detail": found.blocked.get(path, ("", "no metadata names this folder"))[1],
        }
        for path in orphans
    ]
    with_rows = set(products.unique().to_pylist())
    rows += [
        {"patch_id": None, "path": path, "reason": why, "detail": text}
        for path, (why, text) in found.blocked_products.items()
        if path not in with_rows
    ]
    return pa.Table.from_pylist(rows, PROBLEM_SCHEMA)


def _one(table: pa.Table, name: str) -> pa.Array:
    column = table[name]
    if column.num_chunks == 1:
        return column.chunk(0)  # concatenating would copy it
    return pa.concat_arrays(column.chunks) if column.num_chunks else pa.array([], column.type)


def _mask(values: pa.Array) -> NDArray[np.bool_]:
    return np.asarray(values.to_numpy(zero_copy_only=False), np.bool_)
