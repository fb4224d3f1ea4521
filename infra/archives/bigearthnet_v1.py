"""BigEarthNet v1.0, with or without its Sentinel-1 pairs (BigEarthNet-MM): one folder and one JSON per patch.

Layout: `BigEarthNet-v1.0/<patch>/<patch>_<band>.tif` and `<patch>_labels_metadata.json`, with 43 CORINE labels;
`BigEarthNet-S1-v1.0/<s1>/`, whose JSON names the `corresponding_s2_patch`; and beside them, each as .csv or .csv.bz2
and each optional, the lists `train`, `val`, `test` and `patches_with_{seasonal_snow, cloud_and_shadow,
no_19_class_targets}`, one patch name a line. A patch in none of the three split lists has the split `all`; without the
exclusion lists, snow and cloud are not known. JSONs of Sentinel-2 patches are read with the patch, not in the scan.

Source: Sumbul et al. 2019, arXiv:1902.06148, and 2021, arXiv:2105.07921.
"""

import bz2
import json
import re
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import date
from functools import partial
from typing import Any, ClassVar, NoReturn

import pyarrow as pa
import pyarrow.compute as pc

from infra.archives.bigearthnet_v2 import open_patch, read_pair
from infra.archives.inventory import MAX_NAME, Found, Inventory, Subset, take_stock
from infra.archives.modality import S1_BYTES, S1_SUFFIXES, S2_BYTES, S2_SUFFIXES, Modality, OpenFolder
from infra.archives.model import Patch, PatchInput, Scan
from infra.archives.names import day_of, tile_of
from infra.archives.patch_folder import read_s2
from infra.archives.places import file_below, inventory_of, read_below
from infra.bigearthnet.bands import S1, S2_GROUPS
from infra.bigearthnet.classes import NAMES, UNMAPPED_V1_LABELS, V1_LABEL_TO_CLASS
from infra.errors import ArchiveError, BadPatchError
from infra.storage import location

S2_FOLDER = "BigEarthNet-v1.0"
S1_FOLDER = "BigEarthNet-S1-v1.0"
SPLIT_LISTS = {"train": "train", "val": "validation", "test": "test"}
SNOW_LIST = "patches_with_seasonal_snow"
CLOUD_LIST = "patches_with_cloud_and_shadow"
NO_LABEL_LIST = "patches_with_no_19_class_targets"

METADATA_SUFFIX = "_labels_metadata.json"

_JSON_BYTES = 1 << 20
_LIST_BYTES = 1 << 28  # the archive's longest has 28 MB
_HEADERS = frozenset({"patch", "patch_id", "patch_name", "name", "id"})
_LINE = re.compile(r"[\r\n]+")


@dataclass(frozen=True, slots=True)
class BigEarthNetV1:
    """The archive at `root`."""

    root: str
    """Folder that holds `BigEarthNet-v1.0`, or its URL."""
    include_flagged: bool = False
    """Whether patches with snow, cloud or shadow are inputs."""
    subset: Subset = "all"
    """What a patch is that a list names and the disk lacks: a problem, or only counted."""

    version: ClassVar[str] = "bigearthnet-v1"

    def scan(self) -> Scan:
        """Return every patch that a list names or that has a folder.

        Raises:
            ArchiveError: No root or no patch folder.
        """
        if not location(self.root).is_dir():
            raise ArchiveError(f"the archive's root {self.root} is not a folder")
        return self.scan_of(inventory_of(self.root))

    def scan_of(self, inventory: Inventory) -> Scan:
        """Return every patch that a list or the inventory names.

        Raises:
            ArchiveError: As `scan` does.
        """
        found = inventory.folders(S2_FOLDER, by_product=False)
        assert found is not None  # the lists alone do not tell which patches there are
        named = self._named(found)
        flag = pc.or_(
            pc.fill_null(named["has_snow"], fill_value=False), pc.fill_null(named["has_cloud"], fill_value=False)
        )
        excluded = named.slice(0, 0) if self.include_flagged else named.filter(flag)
        kept = named if self.include_flagged else named.filter(pc.invert(flag))
        s1_names, problems = _join_s1(inventory)
        partner = pc.index_in(kept["patch_id"], value_set=pa.array(list(s1_names), pa.string()))
        kept = kept.append_column("s1_name", pa.array(list(s1_names.values()), pa.string()).take(partner))
        return take_stock(
            kept,
            found,
            subset=self.subset,
            excluded=excluded["source"].combine_chunks(),
            excluded_count=excluded.num_rows,
            other_problems=problems,
        )

    def read(self, patch: PatchInput) -> Patch:
        """Return one patch's pixels, and what its JSON tells.

        Raises:
            BadPatchError: The patch, its JSON or its Sentinel-1 pair cannot be used, or it has no label.
        """
        return read_below(self.root, S2_FOLDER, partial(self.read_from, patch=patch))

    def read_from(self, open_folder: OpenFolder, patch: PatchInput) -> Patch:
        """Return one patch's pixels and what its JSON tells, from folders wherever they are.

        Raises:
            BadPatchError: As `read` does.
        """
        with open_patch(open_folder, patch) as folder:
            file = f"{patch.patch_id}{METADATA_SUFFIX}"
            shown = f"{patch.source}/{file}"
            metadata = strict_json(bytes(folder.read(file, absent="no_metadata", whole=True)), shown)
            labels = classes_of(metadata.get("labels"), shown)
            s2 = read_s2(folder, patch.patch_id)
        pair = _s1_folder(patch.patch_id, patch.s1_name)
        s1 = None if pair is None else read_pair(open_folder, pair, s2.ground)
        return Patch(
            arrays=s2.arrays if s1 is None else {**s2.arrays, S1.array: s1},
            reference_map=None,
            labels=labels,
            epsg=s2.ground.epsg,
            bounds=s2.ground.bounds,
            acquired=_day(metadata.get("acquisition_date")) or day_of(patch.patch_id),
            tile=tile_of(str(metadata.get("tile_source", ""))),
            nodata_share=s2.nodata_share,
        )

    def _named(self, found: Found) -> pa.Table:
        """Return one row per line of the split lists, and per other patch that a list or a folder names."""
        names, splits, listed_in = _Column(), _Column(), _Column()
        for name, split in SPLIT_LISTS.items():
            listed = self._list(name)
            if listed is not None:
                names.extend(listed)
                splits.repeat(split, len(listed))
                listed_in.repeat(f"{name}.csv", len(listed))
        snow, cloud, no_label = (self._list(name) for name in (SNOW_LIST, CLOUD_LIST, NO_LABEL_LIST))
        on_disk = [folder.partition("/")[2] for folder in found.folders]
        seen = set(names.values)
        for others, source in ((snow, SNOW_LIST), (cloud, CLOUD_LIST), (no_label, NO_LABEL_LIST), (on_disk, S2_FOLDER)):
            new = [name for name in dict.fromkeys(others or ()) if name not in seen]
            seen.update(new)
            names.extend(new)
            splits.repeat("all", len(new))
            listed_in.repeat(source, len(new))
        ids = pa.array(names.values, pa.string())
        empty = _is_in(ids, no_label or [])
        return pa.table(
            {
                "patch_id": ids,
                "split": pa.array(splits.values, pa.string()),
                "labels": pa.nulls(len(ids), pa.list_(pa.string())),
                "has_snow": pa.nulls(len(ids), pa.bool_()) if snow is None else _is_in(ids, snow),
                "has_cloud": pa.nulls(len(ids), pa.bool_()) if cloud is None else _is_in(ids, cloud),
                "source": pc.binary_join_element_wise(S2_FOLDER, ids, "/"),
                "listed_in": pa.array(listed_in.values, pa.string()),
                "reason": pc.if_else(empty, "no_label", pa.scalar(None, pa.string())),
                "detail": pc.if_else(
                    empty, f"{NO_LABEL_LIST}: none of its labels has a class among the 19", pa.scalar(None, pa.string())
                ),
            }
        )

    def _list(self, name: str) -> list[str] | None:
        """Return the patch names in a list, or None where the archive has no such list."""
        for suffix in (".csv", ".csv.bz2"):
            path = file_below(self.root, f"{name}{suffix}")
            if not path.is_file():
                continue
            try:
                with path.open("rb") as raw, bz2.open(raw) if suffix.endswith(".bz2") else raw as file:
                    text = file.read(_LIST_BYTES).decode("utf-8-sig")
                    more = file.read(1)
            except (OSError, ValueError, EOFError) as error:
                raise ArchiveError(f"the list {path} cannot be read: {error}") from error
            if more:
                raise ArchiveError(f"the list {path} has more than {_LIST_BYTES} bytes: no list of patches has")
            lines = [line.partition(",")[0].strip(' "') for line in _LINE.split(text)]
            if lines and lines[0].lower() in _HEADERS:
                del lines[0]
            return [line for line in lines if line]
        return None


class _Column:
    """A column under construction."""

    def __init__(self) -> None:
        self.values: list[str] = []

    def extend(self, values: Iterable[str]) -> None:
        self.values.extend(values)

    def repeat(self, value: str, times: int) -> None:
        self.values.extend([value] * times)


def _join_s1(inventory: Inventory) -> tuple[dict[str, str], list[dict[str, str | None]]]:
    """Return the Sentinel-1 patch of each Sentinel-2 patch, and those that name none, as problems."""
    partners: dict[str, str] = {}
    problems: list[dict[str, str | None]] = []
    if not inventory.has(S1_FOLDER):
        return partners, problems
    for folder, partner in sorted(inventory.notes(S1_FOLDER, METADATA_SUFFIX, partner_of).items()):
        if isinstance(partner, BadPatchError):
            problems.append(_problem(partner))
        elif partner in partners:
            detail = f"{partners[partner]} is the Sentinel-1 patch of {partner} already"
            problems.append(_problem(BadPatchError(folder, "duplicate_id", detail)))
        else:
            partners[partner] = folder.partition("/")[2]
    return partners, problems


def partner_of(data: bytes, shown: str) -> str:
    """Return the Sentinel-2 patch that a Sentinel-1 patch's JSON names; raises BadPatchError: malformed_metadata."""
    partner = strict_json(data, shown).get("corresponding_s2_patch")
    if isinstance(partner, str) and 0 < len(partner) <= MAX_NAME:
        return partner
    raise BadPatchError(shown, "malformed_metadata", "corresponding_s2_patch is not the name of a patch")


def strict_json(data: bytes, shown: str) -> dict[str, Any]:
    """Return the one JSON object that a file holds.

    Args:
        data: The file's bytes.
        shown: The path for messages.

    Raises:
        BadPatchError: malformed_metadata: not UTF-8, not JSON, text after the object, NaN, or not an object.
    """
    try:
        if len(data) > _JSON_BYTES:
            _reject(f"{len(data)} bytes are more than a patch's metadata can have")
        parsed = json.loads(data.decode("utf-8"), parse_constant=_reject)
        _refuse_surrogates(data, parsed)
    except (ValueError, RecursionError) as error:
        raise BadPatchError(shown, "malformed_metadata", f"it is not one JSON object: {error}") from error
    if not isinstance(parsed, dict):
        raise BadPatchError(shown, "malformed_metadata", f"it holds a JSON {type(parsed).__name__}, not an object")
    return parsed


def _reject(text: str) -> NoReturn:
    raise ValueError(text)


def _refuse_surrogates(data: bytes, parsed: object) -> None:
    """Refuse halves of characters (U+D800 and the like), which JSON may spell and neither UTF-8 nor Parquet holds.

    Raises:
        ValueError: There is one.
    """
    if b"\\u" in data:
        json.dumps(parsed, ensure_ascii=False).encode()


def classes_of(labels: object, shown: str) -> tuple[str, ...]:
    """Return the classes, of the 19 and in their order, of a v1 patch's labels.

    Args:
        labels: What the JSON has as `labels`: some of the 43 names.
        shown: The path for messages.

    Raises:
        BadPatchError: malformed_metadata, unknown_label or, where no class is left, no_label.
    """
    if not isinstance(labels, list) or not all(isinstance(label, str) for label in labels):
        raise BadPatchError(shown, "malformed_metadata", "labels is not a list of names")
    unknown = sorted(set(labels) - V1_LABEL_TO_CLASS.keys() - UNMAPPED_V1_LABELS)
    if unknown:
        raise BadPatchError(shown, "unknown_label", f"not among the 43 labels: {', '.join(map(repr, unknown))}"[:500])
    classes = {V1_LABEL_TO_CLASS[label] for label in labels if label in V1_LABEL_TO_CLASS}
    if not classes:
        raise BadPatchError(
            shown, "no_label", f"none of its labels has a class among the 19: {', '.join(labels)}"[:500]
        )
    return tuple(name for name in NAMES if name in classes)


def _problem(error: BadPatchError) -> dict[str, str | None]:
    return {"patch_id": None, "path": error.path, "reason": error.reason, "detail": error.detail}


def _day(text: object) -> str | None:
    try:
        return date.fromisoformat(str(text)[:10]).isoformat()
    except ValueError:
        return None


def _is_in(ids: pa.Array, names: list[str]) -> pa.Array:
    return pc.is_in(ids, value_set=pa.array(names, pa.string()))


def _s1_folder(_: str, s1_name: str | None) -> str | None:
    return None if s1_name is None else f"{S1_FOLDER}/{s1_name}"


MODALITIES = (
    Modality(S1_FOLDER, S1_SUFFIXES, (S1,), S1_BYTES, by_product=False, folder=_s1_folder),
    Modality(S2_FOLDER, (*S2_SUFFIXES, METADATA_SUFFIX), S2_GROUPS, S2_BYTES, by_product=False),
)
"""What the archive consists of; a patch is there if the last has it."""
