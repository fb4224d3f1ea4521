"""Layout image-table: pictures anywhere below the root, and a CSV file of their labels and, perhaps, splits.

The table's column `image` (or its first) names the picture: a path below the root or a file name, with its ending or
without. A column `split` is optional. Labels are either all other columns, of 0 and 1, or one column `labels` of names
with ; or | between them.
"""

import csv
import io
import os
import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from infra.archives.files import read_file, refuse_link_out
from infra.archives.image_file import SUFFIXES
from infra.archives.images import Labelled, Problems, find_pictures, read_patch, take_stock_of_pictures, without_ending
from infra.archives.inventory import SPLITS, Subset
from infra.archives.model import Patch, PatchInput, Scan
from infra.errors import ArchiveError, BadPatchError

_TABLE_BYTES = 1 << 28
_IMAGE, _SPLIT, _LABELS = "image", "split", "labels"
_FLAGS: Mapping[str, bool] = {"0": False, "1": True, "0.0": False, "1.0": True, "false": False, "true": True}
_SEPARATOR = re.compile(r"[;|]")


@dataclass(frozen=True, slots=True)
class ImageTable:
    """Pictures with a table of labels."""

    root: str
    label_table: str = "labels.csv"
    """The table, below the root."""
    image_size: int | None = None
    """Edge that pictures are resized to, pixels; None: they have one size."""
    validation_share: float = 0.2
    """Share that validates of the pictures whose split the table does not tell."""
    split_seed: int = 0
    """Which ones."""
    subset: Subset = "all"
    """What a picture is that the table names and the disk lacks: a problem, or only counted."""

    @property
    def version(self) -> str:
        """Source version for the tables."""
        return "image-table"

    def scan(self) -> Scan:
        """Return every picture that the table names; its id is its name there, without the ending.

        A picture whose labels are all 0 is known to have none. One that no row names is a problem.

        Raises:
            ArchiveError: The table cannot be used as a whole, or there is no picture that can.
        """
        problems, found = Problems(), Problems()
        refuse_link_out(self.root, self.label_table)
        table = _Table.read(Path(self.root, self.label_table))
        pictures = find_pictures(self.root, found)
        by_name = _by_name(pictures)
        problems.rows += [row for row in found.rows if row["path"] != os.path.normpath(self.label_table)]
        inputs: dict[str, Labelled] = {}
        taken: dict[str, str] = {}
        absent: list[str] = []
        seen: set[str] = set()
        for line, row in table.rows:
            where = f"{self.label_table}, line {line}"
            if len(row) != len(table.columns):
                found_cells = f"it has {len(row)} cells, the header {len(table.columns)}"
                problems.add(None, where, "malformed_metadata", found_cells)
                continue
            cells = dict(zip(table.columns, (cell.strip() for cell in row), strict=True))
            name = cells[table.image]
            patch_id = without_ending(name) if Path(name).suffix.lower() in SUFFIXES else name
            if not name:
                problems.add(None, where, "malformed_metadata", "it names no picture")
            elif patch_id in seen:
                problems.add(patch_id, where, "duplicate_id", "the table names it more than once; the first row counts")
            elif name.startswith("/") or ".." in name.split("/"):
                problems.add(patch_id, where, "outside_archive", "its name leads out of the archive")
            elif (fault := table.fault(cells)) is not None:
                problems.add(patch_id, where, "malformed_metadata", fault)
            elif len(by_name[name]) > 1:
                problems.add(patch_id, where, "duplicate_id", f"it may be {' or '.join(by_name[name][:3])}")
            elif not by_name[name]:
                if self.subset == "present":
                    absent.append(patch_id)
                else:
                    problems.add(patch_id, name, "missing_file", f"{where} names it, and there is no such picture")
            elif by_name[name][0] in taken:
                other = taken[by_name[name][0]]
                problems.add(patch_id, where, "duplicate_id", f"{by_name[name][0]} is the picture of {other} already")
            else:
                (source,) = by_name[name]
                taken[source] = patch_id
                inputs[patch_id] = Labelled(patch_id, source, table.labels_of(cells), table.split_of(cells))
            seen.add(patch_id)
        place = table.columns.index(table.image)
        named = {path for _, row in table.rows if len(row) > place for path in by_name[row[place].strip()]}
        for path in pictures:
            if path not in named:
                problems.add(None, path, "no_metadata", f"no row of {self.label_table} names it")
        return take_stock_of_pictures(
            self.root,
            list(inputs.values()),
            table.labels,
            problems,
            image_size=self.image_size,
            validation_share=self.validation_share,
            split_seed=self.split_seed,
            absent=absent,
        )

    def read(self, patch: PatchInput) -> Patch:
        """Return one picture's pixels; raises BadPatchError where it cannot be used."""
        return read_patch(self.root, patch, self.image_size)


def _by_name(pictures: Sequence[str]) -> Mapping[str, list[str]]:
    """Return the pictures that each way to name one may mean."""
    found: dict[str, list[str]] = defaultdict(list)
    for path in pictures:
        file = path.rpartition("/")[2]
        for name in dict.fromkeys((path, without_ending(path), file, without_ending(file))):
            found[name].append(path)
    for path in pictures:  # a whole path means that file alone
        found[path] = [path]
    return found


@dataclass(frozen=True, slots=True)
class _Table:
    """The table of labels."""

    columns: tuple[str, ...]
    image: str
    """Column that names the picture."""
    labels: tuple[str, ...]
    """Names of the labels, in their order."""
    in_one_column: bool
    """Whether the column `labels` names them; otherwise each is a column."""
    rows: list[tuple[int, list[str]]]
    """Line and cells."""

    @classmethod
    def read(cls, path: Path) -> "_Table":
        lines = _lines(path)
        columns = tuple(name.strip() for name in lines[0][1])
        if len(set(columns)) != len(columns) or not all(columns):
            raise ArchiveError(f"{path} needs column names, each once; it has {', '.join(map(repr, columns))}")
        others = [name for name in columns if name not in {_SPLIT, _LABELS}]
        image = _IMAGE if _IMAGE in columns or not others else others[0]
        if image not in columns:
            raise ArchiveError(f"{path} has no column that names the picture, such as {_IMAGE}")
        rest = tuple(name for name in columns if name not in {image, _SPLIT})
        if not rest:
            raise ArchiveError(
                f"{path} has no column of labels beside {', '.join(map(repr, columns))}; commas part its cells"
            )
        if rest != (_LABELS,):
            return cls(columns, image, rest, in_one_column=False, rows=lines[1:])
        place = columns.index(_LABELS)
        names = {name for _, row in lines[1:] if len(row) == len(columns) for name in _split_names(row[place])}
        if not names:
            raise ArchiveError(f"{path} names no label in its column {_LABELS}")
        return cls(columns, image, tuple(sorted(names)), in_one_column=True, rows=lines[1:])

    def fault(self, cells: Mapping[str, str]) -> str | None:
        """Return what is wrong with a row; None where nothing is."""
        split = cells.get(_SPLIT)
        if split is not None and split.lower() not in SPLITS:
            return f"its split is {split!r}, none of {', '.join(SPLITS)}"
        if self.in_one_column:
            return None
        odd = [f"{label} is {cells[label]!r}" for label in self.labels if cells[label].lower() not in _FLAGS]
        return f"{', '.join(odd[:3])}: neither 0 nor 1" if odd else None

    def labels_of(self, cells: Mapping[str, str]) -> tuple[str, ...]:
        """Return a sound row's labels, in their order."""
        if self.in_one_column:
            names = _split_names(cells[_LABELS])
            return tuple(label for label in self.labels if label in names)
        return tuple(label for label in self.labels if _FLAGS[cells[label].lower()])

    def split_of(self, cells: Mapping[str, str]) -> str | None:
        """Return a sound row's split, as the tables name it; None where the table has none."""
        return SPLITS[cells[_SPLIT].lower()] if _SPLIT in self.columns else None


def _lines(path: Path) -> list[tuple[int, list[str]]]:
    """Return the number and the cells of each line of a table that is not blank: a header, and at least one row.

    Raises:
        ArchiveError: It is missing, is no CSV file in UTF-8, or has no rows.
    """
    try:
        data = read_file(str(path), path.name, follow=True, whole=True, limit=_TABLE_BYTES)
        reader = csv.reader(io.StringIO(data.decode("utf-8-sig"), newline=""), strict=True)
        lines = [(reader.line_num, row) for row in reader if row]
    except FileNotFoundError as error:
        raise ArchiveError(f"there is no table of labels {path}: set archive.label_table") from error
    except BadPatchError as error:
        raise ArchiveError(f"the table of labels {path} cannot be read: {error.detail}") from error
    except (OSError, UnicodeDecodeError) as error:
        raise ArchiveError(f"{path} cannot be read as a CSV file in UTF-8: {error}") from error
    except csv.Error as error:
        raise ArchiveError(f"{path}, line {reader.line_num}, cannot be read as CSV: {error}") from error
    if len(data) == _TABLE_BYTES:
        raise ArchiveError(f"the table of labels {path} has {_TABLE_BYTES} bytes or more: no table of labels has")
    if len(lines) < 2:
        raise ArchiveError(f"{path} has no rows: a header and a row a picture are needed")
    return lines


def _split_names(text: str) -> set[str]:
    return {name.strip() for name in _SEPARATOR.split(text) if name.strip()}
