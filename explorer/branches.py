"""What each network on each SR model decided, as columns beside the patches: read when first asked for, then kept."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from threading import Lock
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as ds
from numpy.typing import NDArray

from explorer.columns import label_bits, mask_of
from explorer.snapshot import Snapshot
from infra.parquet_files import parquet_dataset, read_coded, read_parquet, read_rows
from infra.parts import StageParts
from infra.storage import StorePaths
from infra.tables import read_table
from tasks.report.numbers import HiveFolder, Numbers

_OF_FIT = "fit"  # rows of tables/reliability_clusters that tell of the samples that clusters were fitted on


@dataclass(frozen=True, slots=True)
class Decisions:
    """One branch's labels of every patch."""

    predicted: NDArray[np.uint8]
    """(N, B) bits."""
    made: NDArray[np.bool_]
    """(N,), whether the branch saw the patch."""
    known: NDArray[np.uint8]
    """(B,) bits of the labels that the classifier knows: one against the rest knows one."""


class Branch:
    """A network on the pixels of one SR model: one folder of tables/predictions."""

    def __init__(
        self, paths: StorePaths, folder: HiveFolder, reliability: HiveFolder | None, seeds: Sequence[int]
    ) -> None:
        """Name a branch; nothing is read yet.

        Args:
            paths: The store.
            folder: Of tables/predictions.
            reliability: Of tables/reliability; None where the run has none.
            seeds: Training seeds of the run, the first one first; the first that the table has is shown.
        """
        self.sr, self.classifier, self.config = (folder.keys[key] for key in ("sr", "classifier", "config"))
        self.name = f"{self.sr}/{self.classifier}/{self.config}"
        self._files = sorted(folder.path.glob("*.parquet"))
        self.reliability_config = None if reliability is None else reliability.keys["config"]
        self._reliability_files = [] if reliability is None else sorted(reliability.path.glob("*.parquet"))
        self._paths, self._seeds = paths, seeds
        self._lock = Lock()
        self._decisions: Decisions | None = None
        self._least: NDArray[np.float32] | None = None

    @cached_property
    def seed(self) -> int:
        """The training seed shown: the run's first that the table has, else its least."""
        columns = [read_parquet(file, ["seed"])["seed"].unique() for file in self._files]
        there = {int(seed) for column in columns for seed in column.to_pylist()}
        return next((seed for seed in self._seeds if seed in there), min(there, default=0))

    def decisions(self, patches: Snapshot) -> Decisions:
        """Return the branch's decisions on all patches."""
        with self._lock:
            if self._decisions is None:
                predicted, made = np.zeros_like(patches.truth), np.zeros(len(patches), np.bool_)
                for rows, table in self._rows(self._files, ["predicted"], patches):
                    predicted[rows] = label_bits(table["predicted"], patches.labels)
                    made[rows] = True
                self._decisions = Decisions(predicted, made, self._known(patches.labels))
            return self._decisions

    def least_reliability(self, patches: Snapshot) -> NDArray[np.float32]:
        """Return the reliability of each patch's least reliable decision, (N,); NaN where none has a score."""
        with self._lock:
            if self._least is None:
                least = np.full(len(patches), np.nan, np.float32)
                for rows, table in self._rows(self._reliability_files, ["reliability"], patches):
                    np.fmin.at(least, rows, pc.fill_null(table["reliability"], np.nan).to_numpy().astype(np.float32))
                self._least = least
            return self._least

    def prediction(self, patch_id: str, shard: int) -> dict[str, Any] | None:
        """Return the row of tables/predictions of a patch; None where the branch did not see it."""
        part = StageParts(self._paths, "predictions", self.config).path(shard)
        return next(iter(self._of_patch(part, self._files, patch_id)), None)

    def reliability(self, patch_id: str, shard: int) -> dict[str, dict[str, Any]]:
        """Return the rows of tables/reliability of a patch, by label."""
        if self.reliability_config is None:
            return {}
        part = StageParts(self._paths, "reliability", self.reliability_config).path(shard)
        return {row["label"]: row for row in self._of_patch(part, self._reliability_files, patch_id)}

    @property
    def has_reliability(self) -> bool:
        """Whether the run scored how reliable the decisions are."""
        return bool(self._reliability_files)

    @property
    def is_read(self) -> bool:
        """Whether the branch's columns are in memory."""
        return self._decisions is not None and (self._least is not None or not self.has_reliability)

    @property
    def nbytes(self) -> int:
        """Bytes of the columns that are held by now."""
        decisions, least = self._decisions, self._least
        held = 0 if decisions is None else decisions.predicted.nbytes + decisions.made.nbytes + decisions.known.nbytes
        return held + (0 if least is None else least.nbytes)

    def _known(self, labels: Sequence[str]) -> NDArray[np.uint8]:
        """Return the labels with a probability in any row of the seed shown, (B,) bits.

        Files are read no farther than until all labels are found: mostly a few batches.
        """
        found = np.zeros(len(labels), np.bool_)
        of_seed = ds.field("seed") == self.seed
        batches = parquet_dataset(self._files).to_batches(columns=["probs"], filter=of_seed) if self._files else ()
        for batch in batches:
            is_there = batch["probs"].flatten().is_valid().to_numpy(zero_copy_only=False)
            found |= is_there.reshape(-1, len(labels)).any(axis=0)
            if found.all():
                break
        return mask_of([label for label, is_known in zip(labels, found, strict=True) if is_known], labels)

    def _rows(
        self, files: Sequence[Path], columns: Sequence[str], patches: Snapshot
    ) -> Iterator[tuple[NDArray[np.int64], pa.Table]]:
        """Give the rows of the seed shown, file by file, with their places among the patches."""
        for file in files:
            table = read_coded(file, ["patch_id", "seed", *columns])
            table = table.filter(pc.equal(table["seed"], self.seed)).unify_dictionaries().combine_chunks()
            for chunk in table.to_batches():
                names = chunk["patch_id"]
                rows = patches.rows_of(names.dictionary)[names.indices.to_numpy()]
                known = rows >= 0  # a run that publishes meanwhile may know of patches that came after the start
                yield rows[known], pa.Table.from_batches([chunk]).filter(pa.array(known))

    def _of_patch(self, part: Path, published: Sequence[Path], patch_id: str) -> list[dict[str, Any]]:
        """Return a patch's rows of the seed shown.

        Args:
            part: What the table was made of for the patch's shard: the same rows, in a file a thousandth as large. A
                store whose `work` folder was not copied with it has none.
            published: The table's files.
            patch_id: The patch.
        """
        files = [part] if part.exists() else published
        return [
            row
            for file in files
            for row in read_rows(file, "patch_id", patch_id).to_pylist()
            if row["seed"] == self.seed
        ]


def branches_of(numbers: Numbers | None) -> dict[str, Branch]:
    """Return the branches of the last run by name, in the order of RUN.yaml; none where no run has ended."""
    if numbers is None:
        return {}
    scored = {(f.keys["sr"], f.keys["classifier"]): f for f in numbers.hive("reliability")}
    seeds = (numbers.run.settings.get("train") or {}).get("seeds") or ()
    found = [
        Branch(numbers.paths, folder, scored.get((folder.keys["sr"], folder.keys["classifier"])), seeds)
        for folder in numbers.hive("predictions")
    ]
    return {branch.name: branch for branch in found}


class Clusters:
    """Clusters of maps that reliability rests on, as tables/reliability_clusters tells of their fit."""

    def __init__(self, numbers: Numbers | None) -> None:
        """Read them; there are none where no run has ended or none was asked for reliability."""
        self._found: dict[tuple[str, str | None, int], dict[str, Any]] = {}
        table = pa.table({}) if numbers is None else read_table(numbers.paths.table("reliability_clusters"))
        if not table.num_rows or numbers is None:
            return
        of_run = pc.is_in(table["config"], value_set=pa.array(sorted(numbers.run.configs), pa.string()))
        for row in table.filter(pc.and_(of_run, pc.equal(table["split"], _OF_FIT))).to_pylist():
            self._found[row["config"], row["label"], row["cluster"]] = row

    def of(self, config: str | None, label: str, cluster: int | None) -> dict[str, Any] | None:
        """Return what is known of a cluster, or nothing.

        Args:
            config: Of tables/reliability.
            label: The label; a fit of all labels pooled has none of its own.
            cluster: Number of the cluster; None: the map has none.
        """
        if config is None or cluster is None:
            return None
        row = self._found.get((config, label, cluster)) or self._found.get((config, None, cluster))
        if row is None:
            return None
        names = ("method", "n", "tp", "tn", "fp", "fn", "error_rate", "flipped", "height", "width", "prototype")
        return {name: row[name] for name in names}
