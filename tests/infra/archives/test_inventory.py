import random
import sys
from typing import Any

import pyarrow as pa
import pytest

from infra import name_lookup
from infra.archives.inventory import MAX_NAME, Found, Subset, safe_names, take_stock
from infra.archives.model import INPUT_SCHEMA
from infra.archives.names import is_displayable
from infra.bigearthnet.classes import NAMES


def test_names_of_folders_have_the_characters_that_may_be_shown() -> None:
    """Columns are judged in two ways: those of ASCII at once, all others name by name."""
    signs = [chr(i) for i in range(sys.maxunicode + 1) if not 0xD800 <= i < 0xE000]  # UTF-8 has no halves of pairs
    expected = [is_displayable(sign) and sign not in "/\\" for sign in signs]
    assert safe_names(pa.array([f"a{sign}" for sign in signs])).to_pylist() == expected
    assert safe_names(pa.array([f"a{sign}" for sign in signs[:128]])).to_pylist() == expected[:128]


def test_names_of_folders_end_somewhere_and_hide_nothing() -> None:
    names = ["a", None, "", ".", "..", ".a", "a.", "a" * MAX_NAME, "a" * (MAX_NAME + 1)]
    expected = [True, None, False, False, False, False, True, True, False]
    assert MAX_NAME == 255
    assert safe_names(pa.array(names)).to_pylist() == expected
    others = ["\u00e9" * MAX_NAME, "\u00e9" * (MAX_NAME + 1)]
    assert safe_names(pa.array([*names, *others])).to_pylist() == [*expected, True, False]


LABELS: tuple[list[str] | None, ...] = (
    ["Pastures"],
    ["Urban fabric", "Pastures"],
    ["Pastures", "Urban fabric", "Pastures"],
    ["Peat"],
    [],
    None,
)


def named_rows(rng: random.Random, rows: int) -> list[dict[str, Any]]:
    """Rows of metadata with everything that may be wrong with them, of few names, so that some come twice."""
    found = []
    for _ in range(rows):
        name = rng.choice(["", None, "..", *(f"p{i}" for i in range(12))])
        found.append(
            {
                "patch_id": name,
                "split": rng.choice(["train", "VAL", "test", "other", None]),
                "labels": rng.choice(LABELS),
                "country": rng.choice(["Finland", None]),
                "has_snow": None,
                "has_cloud": False,
                "s1_name": rng.choice(["s1", None, "a/b"]),
                "source": None if name is None else f"top/{name}",
                "listed_in": "metadata.parquet",
            }
        )
    return found


def verdict(row: dict[str, Any], before: list[str | None], folders: list[str]) -> str | None:
    """Why a row of metadata cannot be used, the gravest reason first; None: it can."""
    name = row["patch_id"]
    if not name:
        return "malformed_metadata"
    if name == "..":
        return "outside_archive"
    if name in before:
        return "duplicate_id"
    if row["source"] not in folders:
        return "missing_folder"
    if row["s1_name"] == "a/b":
        return "outside_archive"
    if row["split"] in {"other", None}:
        return "malformed_metadata"
    if row["labels"] == ["Peat"]:
        return "unknown_label"
    return "no_label" if row["labels"] == [] else None


@pytest.mark.parametrize("seed", range(12))
@pytest.mark.parametrize("at_once", [2, 1 << 17])
@pytest.mark.parametrize("subset", ["all", "present"])
def test_stock_is_what_a_plain_loop_over_the_rows_takes(
    monkeypatch: pytest.MonkeyPatch, seed: int, at_once: int, subset: Subset
) -> None:
    monkeypatch.setattr(name_lookup, "_AT_ONCE", at_once)
    rng = random.Random(seed)
    rows = named_rows(rng, 20)
    folders = [f"top/p{i}" for i in rng.sample(range(15), 9)]
    schema = pa.schema([*INPUT_SCHEMA.remove_metadata(), pa.field("listed_in", pa.string())])
    named = pa.Table.from_pylist(rows, pa.schema([field.with_nullable(True) for field in schema]))
    excluded = ["top/p13", "top/p99"]
    scan = take_stock(named, Found(folders), subset=subset, excluded=pa.array(excluded), excluded_count=len(excluded))

    inputs, problems, absent = [], [], []
    for i, row in enumerate(rows):
        why = verdict(row, [other["patch_id"] for other in rows[:i]], folders)
        if why == "missing_folder" and subset == "present":
            absent.append(row["patch_id"])
        elif why is None:
            labels = None if row["labels"] is None else sorted({*row["labels"]}, key=NAMES.index)
            split = {"VAL": "validation"}.get(row["split"], row["split"])
            inputs.append({**row, "labels": labels, "split": split})
        else:
            is_named = bool(row["patch_id"]) and row["patch_id"] != ".."
            problems.append((row["patch_id"], row["source"] if is_named else row["listed_in"], why))
    known = {row["source"] for row in rows} | set(excluded)
    problems += [(folder[4:], folder, "no_metadata") for folder in folders if folder not in known]
    assert scan.inputs.to_pylist() == [{name: row[name] for name in INPUT_SCHEMA.names} for row in inputs]
    assert scan.inputs.schema == INPUT_SCHEMA
    told = scan.problems.to_pylist()
    assert [(row["patch_id"], row["path"], row["reason"]) for row in told] == problems
    assert (scan.absent, scan.absent_ids.to_pylist(), scan.excluded) == (len(absent), absent, 2)
    assert scan.total == len(inputs) + len(problems) + len(absent)
