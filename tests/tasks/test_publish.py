import json
from pathlib import Path

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from classifiers.training import TrainSettings
from infra.archives.model import BIGEARTHNET
from infra.bigearthnet.classes import NAMES
from infra.parts import StageParts, stage_parts
from infra.storage import StorePaths
from infra.tables import EXPLANATIONS, QUARANTINED_MAPS, SR_QUALITY, TRAINING, predictions_schema, read_table
from tasks.backbone import Backbone
from tasks.branch import Branch, make_branch
from tasks.explain import QUARANTINED, Explained
from tasks.plan import Plan
from tasks.publish import publish_configs, publish_quality, publish_scores, publish_training
from tasks.score import ScoredClassifier
from tasks.train import TrainingSet, TrainJob, train_job
from tests.tasks.small_store import inputs_of


@pytest.fixture
def plan(tmp_path: Path) -> Plan:
    """Three shards of which nothing is stored but rows of parts."""
    paths = StorePaths(tmp_path / "store")
    parts = stage_parts(paths, "ingest", {"layout": "bigearthnet-v2"})
    return Plan(paths, parts, {0: "train", 1: "validation", 2: "test"}, 4, BIGEARTHNET, None)


def branch_of(plan: Plan, sr: str) -> Branch:
    return make_branch(inputs_of(plan.parts), sr, None)


def completeness(folder: Path) -> set[bytes]:
    return {pq.ParquetFile(path).schema_arrow.metadata[b"superscene.complete"] for path in folder.glob("*.parquet")}


def prediction(patch: str, seed: int, prob: float) -> dict[str, object]:
    predicted = list(NAMES) if prob >= 0.5 else []
    common = {"split": "test", "labels": ["Pastures"], "predicted": predicted}
    return {"patch_id": patch, "seed": seed, "probs": [prob] * 19, **common}


def explanation(patch: str, label: int) -> dict[str, object]:
    where = {"map_store": "maps/m.zarr", "map_index": 3, "map_label": label}
    sampled = {"split": "test", "sampled": False}
    return {"patch_id": patch, "label": NAMES[label], "seed": 0, "prob": 0.75, **sampled, **where}


def fault(patch: str) -> dict[str, object]:
    return {"patch_id": patch, "label": NAMES[0], "seed": 0, "reason": "not finite", "detail": "a map is not finite"}


def write_scores(scored: ScoredClassifier, shard: int, patches: list[str]) -> None:
    rows = [prediction(patch, seed, 0.25 * shard) for patch in patches for seed in (1, 0)]
    scored.predictions.write(shard, pa.Table.from_pylist(rows, predictions_schema(19)))
    for item in scored.explanations.values():
        maps = [explanation(patch, label) for patch in patches for label in (7, 2)]
        faults = pa.Table.from_pylist([fault(patch) for patch in patches], QUARANTINED_MAPS)
        item.parts.write(shard, pa.Table.from_pylist(maps, EXPLANATIONS), {QUARANTINED: faults})


def test_scores_are_published_sorted_and_marked_while_a_shard_is_missing(plan: Plan) -> None:
    branch = branch_of(plan, "bicubic")
    predictions = StageParts(plan.paths, "predictions", "a1b2c3d4")
    parts = StageParts(plan.paths, "explanations", "12345678")  # digits, which Hive would parse
    explanations = {"grad_cam": Explained("grad_cam", {}, "true", sampled=False, parts=parts)}
    scored = ScoredClassifier("resnet18", "resnet18", NAMES, "sigmoid", {}, predictions, explanations)
    folder = plan.paths.table("predictions") / "sr=bicubic" / "classifier=resnet18" / "config=a1b2c3d4"
    maps = plan.paths.table("explanations").joinpath(
        "sr=bicubic", "classifier=resnet18", "method=grad_cam", "config=12345678"
    )

    assert publish_scores(plan, branch, scored) == 0
    assert completeness(folder) == completeness(maps) == {b"false"}

    write_scores(scored, 2, ["b", "a"])
    write_scores(scored, 0, ["c"])
    assert publish_scores(plan, branch, scored) == 3
    assert completeness(folder) == completeness(maps) == {b"false"}

    write_scores(scored, 1, [])
    assert publish_scores(plan, branch, scored) == 3
    assert completeness(folder) == completeness(maps) == {b"true"}
    table = read_table(folder)
    expected = [
        prediction(patch, seed, prob) for patch, prob in (("a", 0.5), ("b", 0.5), ("c", 0.0)) for seed in (0, 1)
    ]
    assert table.to_pylist() == [{name: row[name] for name in table.schema.names} for row in expected]
    assert [(row["patch_id"], row["map_label"]) for row in read_table(maps).to_pylist()] == [
        (patch, label) for patch in "abc" for label in sorted((2, 7), key=NAMES.__getitem__)
    ]
    quarantined = read_table(plan.paths.table(QUARANTINED) / maps.relative_to(plan.paths.table("explanations")))
    assert quarantined.to_pylist() == [fault(patch) for patch in "abc"]
    files = f"'{plan.paths.tables}/explanations/**/*.parquet', hive_partitioning=true, hive_types_autocast=0"
    found = (
        duckdb.connect()
        .execute(f"SELECT DISTINCT sr, classifier, method, config FROM read_parquet({files})")
        .fetchall()
    )
    assert found == [("bicubic", "resnet18", "grad_cam", "12345678")]


def test_quality_of_each_branch_has_its_own_files(plan: Plan) -> None:
    none, bicubic = branch_of(plan, "none"), branch_of(plan, "bicubic")
    for shard, patches in ((0, ["b", "a"]), (1, ["c"]), (2, [])):
        rows = [
            {"patch_id": patch, "sr": "bicubic", "config": bicubic.pixels.config, "clipped_share": 0.5}
            for patch in patches
        ]
        bicubic.quality.write(shard, pa.Table.from_pylist(rows, SR_QUALITY))
    publish_quality(plan, none)
    assert not plan.paths.table("sr_quality").exists()
    publish_quality(plan, bicubic)
    (file,) = plan.paths.table("sr_quality").iterdir()
    assert file.name == f"bicubic-{bicubic.pixels.config}-00000.parquet"
    assert pq.ParquetFile(file).read()["patch_id"].to_pylist() == ["a", "b", "c"]
    assert completeness(file.parent) == {b"true"}


def curve(job: TrainJob, seed: int) -> pa.Table:
    common = {"sr": "none", "classifier": "resnet18", "config": job.parts.config, "seed": seed, "fitted": "network"}
    losses = {"lr": 0.1, "train_loss": 1.0, "validation_loss": 1.0, "best": False, "seconds": 0.0, "wait_share": 0.0}
    losses |= {"train_accuracy": 1.0, "validation_accuracy": 1.0}
    return pa.Table.from_pylist([{**common, **losses, "epoch": epoch} for epoch in (1, 0)], TRAINING)


def test_curves_of_earlier_seeds_stay(plan: Plan) -> None:
    data = TrainingSet((0,), (1,), "digest", ())
    backbone = Backbone("resnet18", "random")
    branch = branch_of(plan, "none")
    job = train_job(branch, "resnet18", backbone, "network", "linear", NAMES, TrainSettings(), data)
    folder = plan.paths.table("training")

    def seeds_and_epochs() -> list[tuple[int, int]]:
        return [(row["seed"], row["epoch"]) for row in read_table(folder).to_pylist()]

    for seed in (1, 0):
        job.parts.write(seed, curve(job, seed))
    publish_training(job, (1, 0))
    assert seeds_and_epochs() == [(0, 0), (0, 1), (1, 0), (1, 1)]
    publish_training(job, (2,))  # which failed
    assert seeds_and_epochs() == [(0, 0), (0, 1), (1, 0), (1, 1)]
    assert completeness(folder) == {b"false"}
    job.parts.write(2, curve(job, 2))
    publish_training(job, (2,))
    assert seeds_and_epochs() == [(seed, epoch) for seed in (0, 1, 2) for epoch in (0, 1)]
    assert completeness(folder) == {b"true"}


def test_configs_spell_out_what_they_stand_for(plan: Plan) -> None:
    branch = branch_of(plan, "bicubic")
    publish_configs(plan.paths)
    rows = {row["config"]: row for row in read_table(plan.paths.table("configs")).to_pylist()}
    assert list(rows) == sorted(rows)
    assert {(row["stage"], config) for config, row in rows.items()} == {
        ("ingest", plan.parts.config),
        ("super_resolve", branch.pixels.config),
        ("sr_quality", branch.quality.config),
    }
    assert json.loads(rows[branch.pixels.config]["json"]) == {
        "stage": "super_resolve",
        "sr": "bicubic",
        "scale": 4,
        "weights_sha256": None,
        "dtype": "float32",
        "max_dn": [3000, 3000, 3000],
        "bands": ["B04", "B03", "B02"],
        "input": plan.parts.config,
        "schema": 1,
    }
