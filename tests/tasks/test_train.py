import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest
import torch

from classifiers import checkpoint
from classifiers.training import HeadTrainer, TrainSettings
from infra.bigearthnet.bands import RGB, STATISTICS
from infra.bigearthnet.classes import NAMES
from infra.errors import ConfigError, TrainingError
from infra.parts import StageParts
from infra.tables import TRAINING
from tasks import train
from tasks.backbone import Backbone
from tasks.branch import Branch, BranchReader
from tasks.features import ShardFeatures, features_parts
from tasks.plan import Plan
from tasks.shard_batches import clean_labelled
from tasks.train import (
    HeadFitter,
    TrainingSet,
    TrainJob,
    labels_to_learn,
    load_features,
    train_job,
    training_set,
)
from tests.tasks.small_store import MAX_DN, branch_of, copied, ingest, metadata, untrained, v2
from tests.tasks.test_branch import CPU
from tests.tasks.training_samples import archive_of, usable

SETTINGS = TrainSettings(epochs=2, batch_size=4, lr=1e-3)


@pytest.fixture
def plan(store: Plan, tmp_path: Path) -> Plan:
    return copied(store, tmp_path / "store")


@pytest.fixture(scope="module")
def other_size(store: Plan, tmp_path_factory: pytest.TempPathFactory) -> Plan:
    """The same archive in shards of three."""
    return ingest(v2(archive_of(store)), tmp_path_factory.mktemp("other") / "store", 3)


def data_of(plan: Plan, labels: Sequence[str] = NAMES) -> TrainingSet:
    train_shards, validation_shards = plan.ingested("train"), plan.ingested("validation")
    return training_set(branch_of(plan).inputs, train_shards, validation_shards, labels, exactly_one=False)


def set_of(plan: Plan, train_shards: list[int], validation_shards: list[int]) -> TrainingSet:
    return training_set(branch_of(plan).inputs, train_shards, validation_shards, NAMES, exactly_one=False)


def job_of(
    plan: Plan,
    backbone: Backbone,
    settings: TrainSettings = SETTINGS,
    features: StageParts | None = None,
    branch: Branch | None = None,
    labels: tuple[str, ...] = NAMES,
    head: str = "linear",
) -> TrainJob:
    fitted: train.Fitted = "network" if features is None else "head"
    data = data_of(plan, labels)
    branch = branch or branch_of(plan)
    return train_job(branch, "resnet18", backbone, fitted, head, labels, settings, data, features=features)


def test_the_store_has_what_is_left_out(store: Plan) -> None:
    """What the other tests rely on: of 12 train patches two are holes, one is flagged and one has no labels."""
    assert (len(usable(store, "train")), len(usable(store, "validation"))) == (8, 6)


def test_clean_labelled_patches_alone(store: Plan) -> None:
    for split in ("train", "validation", "test"):
        found = [
            patch
            for shard in store.ingested(split)
            for patch in clean_labelled(branch_of(store).inputs, shard)["patch_id"]
        ]
        assert sorted(map(str, found)) == list(usable(store, split))
    rows = clean_labelled(branch_of(store).inputs, 0)["row"].to_pylist()
    assert rows == sorted(rows)


def test_samples_have_one_digest_whatever_the_shards(store: Plan, other_size: Plan, plan: Plan) -> None:
    data = data_of(store)
    assert (data.train, data.validation) == ((0, 1), (2,))
    assert data_of(other_size).digest == data.digest
    assert set_of(store, [1, 0], [2]).digest == data.digest
    others = [set_of(store, [0], [2]), set_of(store, [0, 1], [3])]
    others.append(set_of(store, [2], [0, 1]))
    part = plan.parts.read(1)
    changed = [*part["labels"].to_pylist()[:-1], ["Pastures", "Mixed forest"]]
    assert changed != part["labels"].to_pylist()
    at = part.schema.get_field_index("labels")
    plan.parts.write(1, part.set_column(at, part.schema.field(at), [changed]))
    others.append(data_of(plan))
    assert len({data.digest, *(other.digest for other in others)}) == 5


@pytest.mark.parametrize(("shards", "split"), [(([], [2]), "train"), (([0, 1], []), "validation")])
def test_a_split_without_samples_is_refused(store: Plan, shards: tuple[list[int], list[int]], split: str) -> None:
    with pytest.raises(TrainingError, match=f"in the split {split}"):
        set_of(store, *shards)


def test_a_split_of_flagged_and_unlabelled_patches_alone_is_refused(plan: Plan) -> None:
    part = plan.parts.read(2)
    at = part.schema.get_field_index("has_cloud")
    plan.parts.write(2, part.set_column(at, part.schema.field(at), [[True] * part.num_rows]))
    with pytest.raises(TrainingError, match="in the split validation"):
        data_of(plan)


@pytest.fixture(scope="module")
def backbone(store: Plan, tmp_path_factory: pytest.TempPathFactory) -> Backbone:
    path = untrained(branch_of(store), tmp_path_factory.mktemp("backbone") / "0.safetensors")
    return Backbone("resnet18", "archive", path)


def features_of(plan: Plan, backbone: Backbone, batch_size: int = 5, *, augment: bool = False) -> StageParts:
    branch = branch_of(plan, batch_size=batch_size)
    parts = features_parts(branch, backbone, augment=augment)
    worker = ShardFeatures(branch, backbone, parts, augment=augment)
    for shard in plan.ingested("train", "validation"):
        worker.run(shard)
    return parts


def test_features_come_with_their_labels_by_patch(store: Plan, plan: Plan, backbone: Backbone) -> None:
    parts = features_of(plan, backbone)
    names, features, truth = load_features(job_of(plan, backbone, features=parts), plan.ingested("train"))
    assert features.shape == (8, 1, 512)
    assert names == list(usable(store, "train"))
    features = features[:, 0]
    tables = [parts.read(shard).to_pylist() for shard in (0, 1)]
    by_patch: dict[str, Any] = {row["patch_id"]: row["features"] for table in tables for row in table}
    labels = usable(store, "train")
    np.testing.assert_array_equal(features.numpy(), np.array([by_patch[patch] for patch in labels], np.float32))
    assert [{NAMES[i] for i in np.flatnonzero(row)} for row in truth.numpy()] == [set(x) for x in labels.values()]


def test_a_head_is_fitted_on_features_and_saved_with_its_network(store: Plan, plan: Plan, backbone: Backbone) -> None:
    """The checkpoint gives on images what its head gives on features: standardisation was folded in."""
    features = features_of(plan, backbone)
    job = job_of(plan, backbone, replace(SETTINGS, epochs=20, lr=0.01), features)
    assert HeadFitter(job).run(3).patches == 8 * 20
    trained = checkpoint.load(job.checkpoint(3))
    assert (trained.name, trained.head, trained.labels, trained.bands, trained.seed) == (
        "resnet18", "linear", NAMES, RGB, 3
    )  # fmt: skip
    assert trained.mean == tuple(STATISTICS[band].mean / MAX_DN for band in RGB)
    assert trained.std == tuple(STATISTICS[band].std / MAX_DN for band in RGB)
    assert dict(trained.sr) == dict(branch_of(plan).identity)
    table = features.read(0)
    pooled = torch.tensor(np.array(table["features"].to_pylist(), np.float32))
    with torch.no_grad():
        expected = trained.network.head(pooled).sigmoid().numpy()
        x = torch.cat([batch.x for batch in reader_batches(plan, 0)])
        found = trained.network(trained.standardiser(x)).sigmoid().numpy()
    np.testing.assert_allclose(found, expected, atol=1e-5)
    start = checkpoint.load(backbone.file or Path()).network
    for key, value in trained.network.backbone.state_dict().items():
        torch.testing.assert_close(value, start.backbone.state_dict()[key], rtol=0, atol=0)
    curve = job.parts.read(3)
    assert curve.schema.equals(TRAINING)
    rows = curve.to_pylist()
    assert [row["epoch"] for row in rows] == list(range(20))
    assert sum(row["best"] for row in rows) == 1
    assert rows[-1]["train_loss"] < rows[0]["train_loss"]
    assert {(r["sr"], r["classifier"], r["config"], r["seed"], r["fitted"]) for r in rows} == {
        ("none", "resnet18", job.parts.config, 3, "head")
    }
    best = next(row for row in rows if row["best"])
    _, of_validation, truth = load_features(job, plan.ingested("validation"))
    loss = binary_cross_entropy(trained.network.head, of_validation[:, 0], truth)
    assert not job.state(3).exists()
    assert best["validation_loss"] == pytest.approx(loss, abs=1e-5)


def reader_batches(plan: Plan, shard: int) -> Sequence[Any]:
    return list(BranchReader(branch_of(plan), CPU).batches(shard, plan.parts.read(shard)))


def binary_cross_entropy(head: torch.nn.Module, features: torch.Tensor, truth: torch.Tensor) -> float:
    with torch.no_grad():
        p = head(features).double().sigmoid().clamp(1e-300, 1 - 1e-16)
    return float(-(truth.double() * p.log() + (~truth).double() * (1 - p).log()).mean())


def test_a_head_does_not_depend_on_shards_or_batches(
    plan: Plan, other_size: Plan, backbone: Backbone, tmp_path: Path
) -> None:
    other = copied(other_size, tmp_path / "other")
    probs, configs = [], set()
    for where, batch_size in ((plan, 5), (other, 1)):
        features = features_of(where, backbone, batch_size)
        job = job_of(where, backbone, replace(SETTINGS, epochs=5), features)
        HeadFitter(job).run(0)
        configs.add(job.parts.config)
        _, pooled, _ = load_features(job, where.ingested("train", "validation"))
        with torch.no_grad():
            probs.append(checkpoint.load(job.checkpoint(0)).network.head(pooled[:, 0]).sigmoid())
    assert len(configs) == 1
    torch.testing.assert_close(*probs, rtol=0, atol=1e-5)


class Stopped(Exception):  # noqa: N818  # not an error
    """What stops a fit in the tests."""


def test_a_stopped_head_goes_on_from_its_last_epoch(
    plan: Plan, other_size: Plan, backbone: Backbone, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    features = features_of(plan, backbone)
    job = job_of(plan, backbone, replace(SETTINGS, epochs=6), features)
    HeadFitter(job).run(0)
    whole, curve = job.checkpoint(0).read_bytes(), job.parts.read(0)
    job.checkpoint(0).unlink()
    job.parts.path(0).unlink()
    advance = HeadTrainer.advance
    epochs: list[int] = []

    def advance_twice(trainer: HeadTrainer) -> Any:
        if len(epochs) == 2:
            raise Stopped
        epochs.append(trainer.epoch)
        return advance(trainer)

    with monkeypatch.context() as patch:
        patch.setattr(HeadTrainer, "advance", advance_twice)
        with pytest.raises(Stopped):
            HeadFitter(job).run(0)
    assert job.state(0).exists()
    assert not job.parts.is_done(0)
    resumed: list[int] = []

    def advance_and_tell(trainer: HeadTrainer) -> Any:
        resumed.append(trainer.epoch)
        return advance(trainer)

    monkeypatch.setattr(HeadTrainer, "advance", advance_and_tell)
    HeadFitter(job).run(0)
    assert (epochs, resumed) == ([0, 1], [2, 3, 4, 5])
    assert job.checkpoint(0).read_bytes() == whole
    assert job.parts.read(0).drop(["seconds", "wait_share"]).equals(curve.drop(["seconds", "wait_share"]))
    assert not job.state(0).exists()


def test_a_frozen_backbone_sees_the_eight_symmetries_once(plan: Plan, backbone: Backbone) -> None:
    features = features_of(plan, backbone, augment=True)
    assert features.config != features_parts(branch_of(plan), backbone, augment=False).config
    job = job_of(plan, backbone, SETTINGS, features)
    names, views, _ = load_features(job, plan.ingested("train"))
    plain = job_of(plan, backbone, SETTINGS, features_of(plan, backbone))
    _, alone, _ = load_features(plain, plan.ingested("train"))
    assert views.shape == (8, 8, 512)
    torch.testing.assert_close(views[:, :1], alone, rtol=1e-4, atol=1e-5)
    x = {n: batch.x[i] for s in (0, 1) for n, batch, i in _placed(plan, s)}
    network = checkpoint.load(backbone.file or Path())
    turned = torch.stack([torch.rot90(x[name], 1, (1, 2)) for name in names])
    with torch.no_grad():
        expected = network.network.backbone(network.standardiser(turned)).mean(dim=(2, 3))
    torch.testing.assert_close(views[:, 1], expected, rtol=1e-4, atol=1e-4)
    HeadFitter(job).run(0)
    assert job.parts.is_done(0)


def _placed(plan: Plan, shard: int) -> list[tuple[str, Any, int]]:
    names = iter(plan.parts.read(shard).sort_by("row")["patch_id"].to_pylist())
    return [(next(names), batch, i) for batch in reader_batches(plan, shard) for i in range(len(batch.x))]


def test_one_label_against_the_rest(plan: Plan, backbone: Backbone) -> None:
    label = Counter(name for names in usable_of(plan).values() for name in names).most_common()[0][0]
    labels = labels_to_learn(branch_of(plan).inputs, label)
    job = job_of(plan, backbone, SETTINGS, features_of(plan, backbone), labels=labels, head="mlp")
    HeadFitter(job).run(0)
    trained = checkpoint.load(job.checkpoint(0))
    assert (trained.labels, trained.head, trained.activation) == ((label,), "mlp", "sigmoid")
    with pytest.raises(ConfigError, match="there is no label 'Parking lots'; there are Urban fabric"):
        labels_to_learn(branch_of(plan).inputs, "Parking lots")


def test_thresholds_of_validation_are_kept(plan: Plan, backbone: Backbone) -> None:
    features = features_of(plan, backbone)
    job = job_of(plan, backbone, replace(SETTINGS, thresholds="tuned", epochs=3), features)
    HeadFitter(job).run(0)
    trained = checkpoint.load(job.checkpoint(0))
    assert any(threshold != 0.5 for threshold in trained.thresholds)


def test_softmax_needs_exactly_one_label(plan: Plan) -> None:
    several = [n for n, labels in usable_of(plan).items() if len(labels) != 1]
    assert several
    with pytest.raises(TrainingError, match=r"has \d+ labels \(.*\), and loss: softmax needs exactly one"):
        training_set(branch_of(plan).inputs, [0, 1], [2], NAMES, exactly_one=True)
    with pytest.raises(TrainingError, match=f"softmax needs several labels, this archive has {NAMES[0]}: choose"):
        training_set(branch_of(plan).inputs, [0, 1], [2], NAMES[:1], exactly_one=True)


def usable_of(plan: Plan) -> dict[str, list[str]]:
    tables = [clean_labelled(branch_of(plan).inputs, shard) for shard in plan.ingested("train")]
    return {row["patch_id"]: row["labels"] for table in tables for row in table.to_pylist()}


def test_labels_that_no_training_patch_has_are_told(plan: Plan) -> None:
    seen = {label for labels in usable_of(plan).values() for label in labels}
    assert data_of(plan).absent == tuple(name for name in NAMES if name not in seen)
    assert data_of(plan).absent
    with pytest.raises(TrainingError, match="no training patch has the label"):
        data_of(plan, data_of(plan).absent[:1])


def test_config_is_that_of_what_determines_the_checkpoint(store: Plan, backbone: Backbone, tmp_path: Path) -> None:
    data, branch = data_of(store), branch_of(store)

    def config(**changes: Any) -> str:
        values: dict[str, Any] = {"fitted": "network", "head": "linear", "settings": SETTINGS} | changes
        return train_job(
            changes.get("branch", branch),
            changes.get("classifier", "resnet18"),
            changes.get("backbone", backbone),
            values["fitted"],
            values["head"],
            changes.get("labels", NAMES),
            values["settings"],
            changes.get("data", data),
        ).parts.config

    elsewhere = tmp_path / "elsewhere"
    elsewhere.write_bytes((backbone.file or Path()).read_bytes())
    first = config()
    assert config(settings=replace(SETTINGS, seed=9)) == first  # the seed names the part
    assert config(branch=branch_of(store, batch_size=1), backbone=replace(backbone, file=elsewhere)) == first
    changed: list[dict[str, object]] = [
        {"epochs": 3},
        {"batch_size": 5},
        {"lr": 2e-3},
        {"weight_decay": 0.0},
        {"optimizer": "sgd"},
        {"warmup": 0.1},
        {"augment": False},
        {"adam_eps": 1e-7},
    ]
    others = [config(settings=replace(SETTINGS, **change)) for change in changed]  # type: ignore[arg-type]
    others += [
        config(data=replace(data, digest="other")),
        config(branch=branch_of(store, "bicubic")),
        config(backbone=Backbone("resnet18", "random")),
        config(fitted="head"),
        config(head="mlp"),
        config(labels=NAMES[:3]),
        config(classifier="variant"),  # a variant that is renamed, or twice the same, has a checkpoint of its own
    ]
    assert len({first, *others}) == 1 + 8 + 7


def test_a_checkpoint_lies_where_its_name_says(store: Plan, backbone: Backbone) -> None:
    job = job_of(store, backbone)
    config = job.parts.config
    root = store.paths.root / "checkpoints"
    assert job.checkpoint(7) == root / f"none-resnet18-{config}" / "seed-7.safetensors"
    assert replace(job, fitted="backbone").checkpoint(7) == root / f"backbone-resnet18-{config}" / "seed-7.safetensors"


def test_validation_without_a_label_has_no_ap(plan: Plan, backbone: Backbone) -> None:
    """Labels may be an empty list in other archives; AP is null then."""
    part = plan.parts.read(2)
    at = part.schema.get_field_index("labels")
    plan.parts.write(
        2, part.set_column(at, part.schema.field(at), pa.array([[]] * part.num_rows, pa.list_(pa.string())))
    )
    job = job_of(plan, backbone, features=features_of(plan, backbone))
    HeadFitter(job).run(0)
    assert job.parts.read(0)["validation_ap_macro"].null_count == 2
    assert not any(math.isnan(loss) for loss in job.parts.read(0)["validation_loss"].to_pylist())


def test_the_samples_of_the_flagged_patch_are_in_no_batch(store: Plan) -> None:
    """Stored it is: classified, but not learnt from."""
    flagged = {row["patch_id"] for row in metadata(archive_of(store)) if row["contains_seasonal_snow"]}
    flagged |= {row["patch_id"] for row in metadata(archive_of(store)) if row["contains_cloud_or_shadow"]}
    assert len(flagged) == 1
    stored = Counter(str(p) for shard in store.shards for p in store.parts.read(shard)["patch_id"])
    assert stored[flagged.pop()] == 1
    assert sum(pc.sum(pc.is_valid(store.parts.read(s)["labels"])).as_py() for s in store.shards) == 21


def test_two_classifiers_of_one_network_and_settings_have_a_checkpoint_each(plan: Plan, backbone: Backbone) -> None:
    """A part says that the checkpoint of its classifier is there."""
    job = job_of(plan, backbone, features=features_of(plan, backbone))
    others = [
        train_job(
            job.branch,
            name,
            job.backbone,
            job.fitted,
            job.head,
            job.labels,
            job.settings,
            job.data,
            features=job.features,
        )
        for name in ("one", "other")
    ]
    HeadFitter(job).run(0)
    assert len({job.parts.config, *(other.parts.config for other in others)}) == 3
    for other in others:
        assert not other.parts.is_done(0)
        HeadFitter(other).run(0)
        assert other.checkpoint(0).read_bytes() == job.checkpoint(0).read_bytes()
        assert set(other.parts.read(0)["classifier"].to_pylist()) == {other.classifier}
