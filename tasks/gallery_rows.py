"""What the tables say of the patches that the gallery shows: rows of each branch, and labels with their verdicts."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as ds

from infra.parquet_files import parquet_dataset
from tasks.labels import is_clean
from tasks.report.numbers import HiveFolder, Numbers


@dataclass(frozen=True, slots=True)
class Label:
    """A label of one patch on one branch."""

    name: str
    prob: float | None
    """None: the classifier does not know the label."""
    verdict: str
    """right, wrong, missed, absent (rightly not predicted), untaught (the classifier does not know the label, which the
    patch has) or unknown (nobody labelled the patch)."""
    colour: str
    reliability: float | None = None
    """Of the decision; None: the run has no such score of it."""

    @property
    def predicted(self) -> bool:
        """Whether the classifier gave it."""
        return self.verdict in {"right", "wrong", "unknown"}


@dataclass(frozen=True, slots=True)
class BranchRows:
    """Predictions of some patches on one branch."""

    sr: str
    config: str
    """Of the predictions."""
    predictions: Mapping[str, Mapping[str, Any]]
    """By patch_id."""
    reliability: Mapping[tuple[str, str], float] = MappingProxyType({})
    """By patch_id and label, where the run has such a score."""

    def labels(self, patch: Mapping[str, Any], tints: Mapping[str, str]) -> dict[str, Label]:
        """Return every label of a patch with its verdict, by name.

        Args:
            patch: Its row of tables/patches.
            tints: Colours, in the order of the labels.
        """
        row, truth = self.predictions[patch["patch_id"]], patch["labels"]
        given = set(row["predicted"])
        labels = {}
        for (name, tint), prob in zip(tints.items(), row["probs"], strict=True):
            if prob is None:
                verdict = "untaught" if name in (truth or ()) else "absent"
            elif truth is None:
                verdict = "unknown" if name in given else "absent"
            else:
                verdict = {(True, True): "right", (True, False): "wrong", (False, True): "missed"}.get(
                    (name in given, name in truth), "absent"
                )
            labels[name] = Label(name, prob, verdict, tint, self.reliability.get((patch["patch_id"], name)))
        return labels


def branch_rows(numbers: Numbers, folder: HiveFolder, seed: int, ids: Sequence[str]) -> BranchRows:
    """Return one seed's predictions of some patches from a folder of tables/predictions, and how reliable they are."""
    rows = read_folder(folder, ids=ids).to_pylist()
    by_patch = {row["patch_id"]: row for row in rows if row["seed"] == seed}
    sr, classifier = folder.keys["sr"], folder.keys["classifier"]
    scores = {
        (row["patch_id"], row["label"]): row["reliability"]
        for scored in numbers.hive("reliability")
        if (scored.keys["sr"], scored.keys["classifier"]) == (sr, classifier)
        for row in read_folder(scored, ["patch_id", "label", "seed", "reliability"], ids).to_pylist()
        if row["seed"] == seed and row["reliability"] is not None
    }
    return BranchRows(sr, folder.keys["config"], by_patch, scores)


def splits_and_first_seed(numbers: Numbers, folder: HiveFolder) -> tuple[list[str], int] | None:
    """Return the splits of the predictions to choose from and the least of their seeds; None where there are none."""
    found = _clean_or_all(numbers, folder_dataset(folder).to_table(columns=["patch_id", "split", "seed"]))
    return (found["split"].unique().to_pylist(), pc.min(found["seed"]).as_py()) if found.num_rows else None


def predicted_labels(numbers: Numbers, folder: HiveFolder, split: str, seed: int) -> list[dict[str, Any]]:
    """Return patch_id, predicted and labels of a split's patches without snow or cloud, or else of all of them.

    Args:
        numbers: Of the run.
        folder: A folder of tables/predictions.
        split: Whose patches; rows of others are not read.
        seed: Training seed, likewise.

    Returns:
        Rows, sorted by patch_id.
    """
    wanted = (ds.field("split") == split) & (ds.field("seed") == seed)
    table = folder_dataset(folder).to_table(columns=["patch_id", "predicted", "labels"], filter=wanted)
    rows: list[dict[str, Any]] = _clean_or_all(numbers, table).sort_by("patch_id").to_pylist()
    return rows


def _clean_or_all(numbers: Numbers, rows: pa.Table) -> pa.Table:
    """Return the rows of patches without snow or cloud; all where none is left."""
    scored = numbers.patches.filter(is_clean(numbers.patches))["patch_id"].combine_chunks()
    clean = rows.filter(pc.is_in(rows["patch_id"], value_set=scored))
    return clean if clean.num_rows else rows


def patch_rows(numbers: Numbers, ids: Sequence[str]) -> dict[str, Mapping[str, Any]]:
    """Return rows of tables/patches by patch_id."""
    chosen = numbers.patches.filter(pc.is_in(numbers.patches["patch_id"], value_set=pa.array(ids, pa.string())))
    return {row["patch_id"]: row for row in chosen.to_pylist()}


def explained_folders(numbers: Numbers, classifier: str) -> list[HiveFolder]:
    """Return the folders of tables/explanations that hold a classifier's maps."""
    return [folder for folder in numbers.hive("explanations") if folder.keys["classifier"] == classifier]


def explained_seed(folders: Sequence[HiveFolder], default: int) -> int:
    """Return the seed of the network that the maps are of; the default where no row tells."""
    for folder in folders:
        for row in folder_dataset(folder).head(1, columns=["seed"]).to_pylist():
            return int(row["seed"])
    return default


def sampled_patches(numbers: Numbers, folders: Sequence[HiveFolder]) -> frozenset[str]:
    """Return the patches with maps in the sample of `explain.sample`; none where the run has no sample."""
    if numbers.run.settings.get("explain", {}).get("sample") is None:
        return frozenset()
    names = (folder_dataset(f).to_table(columns=["patch_id"], filter=ds.field("sampled"))["patch_id"] for f in folders)
    return frozenset(name for column in names for name in column.to_pylist())


def read_folder(folder: HiveFolder, columns: list[str] | None = None, ids: Sequence[str] | None = None) -> pa.Table:
    """Return columns of the rows of some patches, or of all."""
    chosen = None if ids is None else ds.field("patch_id").isin(list(ids))
    return folder_dataset(folder).to_table(columns=columns, filter=chosen)


def folder_dataset(folder: HiveFolder) -> ds.Dataset:
    """Return a folder's files as one table; names of folders are no columns."""
    return parquet_dataset(sorted(folder.path.glob("*.parquet")))
