"""Publish: parts of finished stages become the analysts' tables, each in one place."""

from collections.abc import Sequence
from pathlib import Path

import pyarrow as pa

from infra.parts import StageParts, recorded_configs
from infra.storage import StorePaths
from infra.tables import (
    CONFIGS,
    EXPLANATIONS,
    QUARANTINED_MAPS,
    SR_QUALITY,
    TRAINING,
    hive_folder,
    predictions_schema,
    publish,
)
from tasks.branch import Branch
from tasks.explain import QUARANTINED
from tasks.plan import Plan
from tasks.score import ScoredClassifier
from tasks.train import TrainJob


def publish_scores(plan: Plan, branch: Branch, scored: ScoredClassifier) -> int:
    """Write tables/predictions, tables/explanations and tables/quarantined_maps of one classifier.

    Returns how many maps are quarantined.

    A table that lacks a shard says so in its files' metadata.
    """
    paths, shards = plan.paths, sorted(plan.shards)
    names = {"sr": branch.sr, "classifier": scored.classifier}
    faults = 0
    for method, item in scored.explanations.items():
        keys = {**names, "method": method, "config": item.parts.config}
        folder = hive_folder(paths.table("explanations"), **keys)
        _publish(item.parts, shards, EXPLANATIONS, folder, ["patch_id", "label"])
        folder = hive_folder(paths.table(QUARANTINED), **keys)
        rows = _publish(item.parts, shards, QUARANTINED_MAPS, folder, ["patch_id", "label"], side=QUARANTINED)
        faults += rows.num_rows
    parts = scored.predictions
    folder = hive_folder(paths.table("predictions"), **names, config=parts.config)
    _publish(parts, shards, predictions_schema(len(branch.inputs.format.labels)), folder, ["patch_id", "seed"])
    return faults


def publish_quality(plan: Plan, branch: Branch) -> None:
    """Write one branch's rows of tables/sr_quality; a branch that does not enlarge has none."""
    for parts in branch.quality_outputs:
        folder, stem = plan.paths.table("sr_quality"), f"{branch.sr}-{branch.pixels.config}"
        _publish(parts, sorted(plan.shards), SR_QUALITY, folder, ["patch_id"], stem)


def publish_training(job: TrainJob, seeds: Sequence[int]) -> None:
    """Write one job's curves to tables/training; seeds that an earlier run fitted stay."""
    folder = job.branch.paths.table("training")
    _publish(job.parts, sorted({*seeds, *job.parts.done()}), TRAINING, folder, ["seed", "epoch"], job.parts.config)


def publish_configs(paths: StorePaths) -> None:
    """Write tables/configs: what every config of the store stands for."""
    rows = pa.Table.from_pylist(list(recorded_configs(paths)), schema=CONFIGS)
    publish(paths.table("configs"), rows, CONFIGS, ["config"])


def _publish(
    parts: StageParts,
    shards: Sequence[int],
    schema: pa.Schema,
    folder: Path,
    sort_by: Sequence[str],
    stem: str = "data",
    side: str | None = None,
) -> pa.Table:
    done = parts.done()
    present = [shard for shard in shards if shard in done]
    rows = pa.concat_tables([schema.empty_table(), *parts.read_all(present, side)])
    publish(folder, rows, schema, sort_by, complete=len(present) == len(shards), file_stem=stem)
    return rows
