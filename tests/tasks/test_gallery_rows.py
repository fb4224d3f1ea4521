"""Which predictions the gallery reads, against rows written by hand."""

from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.dataset as ds
import pytest

from infra.bigearthnet.classes import NAMES
from infra.tables import PATCHES, predictions_schema, publish, read_table
from tasks.gallery_rows import folder_dataset, predicted_labels, splits_and_first_seed
from tasks.report.numbers import HiveFolder, Numbers
from tests.tasks.report.report_store import PATCH_IDS, Wanted, make_store

SPLITS = ("test", "validation", "test", "train")
"""Of the store's patches, in their order."""


def store(folder: Path, cloudy: tuple[int, ...]) -> tuple[Numbers, HiveFolder]:
    """Predictions of the seeds 3 and 7; a seed gives each patch a label of its own."""
    paths = make_store(folder, Wanted(sr=("none",))).paths
    patches = [
        {**row, "has_cloud": PATCH_IDS.index(row["patch_id"]) in cloudy}
        for row in read_table(paths.table("patches")).to_pylist()
    ]
    publish(paths.table("patches"), pa.Table.from_pylist(patches, PATCHES), PATCHES, ["patch_id"])
    numbers = Numbers(paths)
    found = numbers.hive("predictions")[0]
    rows: list[dict[str, Any]] = [
        {
            "patch_id": patch_id,
            "split": split,
            "seed": seed,
            "probs": [0.5] * len(NAMES),
            "predicted": [NAMES[i + seed]],
            "labels": [NAMES[i]],
        }
        for i, (patch_id, split) in enumerate(zip(PATCH_IDS, SPLITS, strict=True))
        for seed in (3, 7)
    ]
    schema = predictions_schema(len(NAMES))
    publish(found.path, pa.Table.from_pylist(rows, schema), schema, ["patch_id", "seed"])
    return numbers, found


def row(i: int, seed: int) -> dict[str, Any]:
    return {"patch_id": PATCH_IDS[i], "predicted": [NAMES[i + seed]], "labels": [NAMES[i]]}


@pytest.mark.parametrize(
    ("cloudy", "splits", "of_test"),
    [
        ((), {"train", "validation", "test"}, [0, 2]),
        ((2, 3), {"validation", "test"}, [0]),
        ((0, 1, 2, 3), {"train", "validation", "test"}, [0, 2]),
    ],
)
def test_one_split_and_seed_are_read_without_snow_and_cloud(
    tmp_path: Path, cloudy: tuple[int, ...], splits: set[str], of_test: list[int]
) -> None:
    """Where every patch has clouds, all are taken."""
    numbers, folder = store(tmp_path, cloudy)
    there = splits_and_first_seed(numbers, folder)
    assert there is not None
    assert (set(there[0]), there[1]) == (splits, 3)
    for seed in (3, 7):
        expected = sorted((row(i, seed) for i in of_test), key=lambda found: str(found["patch_id"]))
        assert predicted_labels(numbers, folder, "test", seed) == expected
    assert predicted_labels(numbers, folder, "test", 5) == []


def test_rows_of_other_splits_and_seeds_never_leave_the_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An archive of half a million patches has few that are shown."""
    numbers, folder = store(tmp_path, ())
    read: list[int] = []

    class Counted:
        def to_table(self, columns: list[str], filter: ds.Expression) -> pa.Table:  # noqa: A002  # as pyarrow calls it
            found = folder_dataset(folder).to_table(columns=columns, filter=filter)
            read.append(found.num_rows)
            return found

    monkeypatch.setattr("tasks.gallery_rows.folder_dataset", lambda _: Counted())
    assert len(predicted_labels(numbers, folder, "validation", 7)) == 1
    assert read == [1]


def test_no_predictions_have_no_split(tmp_path: Path) -> None:
    numbers, folder = store(tmp_path, ())
    schema = predictions_schema(len(NAMES))
    publish(folder.path, schema.empty_table(), schema, ["patch_id", "seed"])
    assert splits_and_first_seed(numbers, folder) is None
