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
import rasterio
import torch

from classifiers import checkpoint
from classifiers.standardise import from_archive_statistics
from classifiers.training import TrainSettings
from infra.bigearthnet.bands import RGB, STATISTICS
from infra.bigearthnet.classes import NAMES
from infra.errors import TrainingError
from infra.parts import StageParts
from infra.tables import TRAINING
from tasks import train
from tasks.backbone import Backbone
from tasks.branch import Branch, BranchReader
from tasks.features import ShardFeatures, features_parts
from tasks.plan import Plan
from tasks.train import (
    ImageBatches,
    Trainer,
    TrainingSet,
    TrainJob,
    clean_labelled,
    load_features,
    train_job,
    training_set,
)
from tests.tasks.small_store import MAX_DN, band_file, branch_of, copied, ingest, metadata, untrained, v2
from tests.tasks.test_branch import CPU

SETTINGS = TrainSettings(epochs=2, batch_size=4, lr=1e-3)


@pytest.fixture
def plan(store: Plan, tmp_path: Path) -> Plan:
    return copied(store, tmp_path / "store")


@pytest.fixture(scope="module")
def other_size(store: Plan, tmp_path_factory: pytest.TempPathFactory) -> Plan:
    """The same archive in shards of three."""
    return ingest(v2(archive_of(store)), tmp_path_factory.mktemp("other") / "store", 3)


def archive_of(store: Plan) -> Path:
    return store.paths.root.parent / "archive"


def usable(store: Plan, split: str) -> dict[str, list[str]]:
    """Labels of a split's stored, clean, labelled patches, from the archive's own metadata, sorted by patch."""
    stored = {patch for shard in store.shards for patch in store.parts.read(shard)["patch_id"].to_pylist()}
    rows = {row["patch_id"]: row for row in metadata(archive_of(store))}
    return {
        patch: rows[patch]["labels"]
        for patch in sorted(rows)
        if rows[patch]["split"] == split
        and patch in stored
        and rows[patch]["labels"] is not None
        and not rows[patch]["contains_seasonal_snow"]
        and not rows[patch]["contains_cloud_or_shadow"]
    }


def data_of(plan: Plan) -> TrainingSet:
    return training_set(plan.parts, plan.ingested("train"), plan.ingested("validation"))


def job_of(
    plan: Plan,
    backbone: Backbone,
    settings: TrainSettings = SETTINGS,
    features: StageParts | None = None,
    branch: Branch | None = None,
) -> TrainJob:
    fitted: train.Fitted = "network" if features is None else "head"
    return train_job(branch or branch_of(plan), backbone, fitted, "linear", settings, data_of(plan), features)


def test_the_store_has_what_is_left_out(store: Plan) -> None:
    """What the other tests rely on: of 12 train patches two are holes, one is flagged and one has no labels."""
    assert (len(usable(store, "train")), len(usable(store, "validation"))) == (8, 6)


def test_clean_labelled_patches_alone(store: Plan) -> None:
    for split in ("train", "validation", "test"):
        found = [patch for shard in store.ingested(split) for patch in clean_labelled(store.parts, shard)["patch_id"]]
        assert sorted(map(str, found)) == list(usable(store, split))
    rows = clean_labelled(store.parts, 0)["row"].to_pylist()
    assert rows == sorted(rows)


def test_samples_have_one_digest_whatever_the_shards(store: Plan, other_size: Plan, plan: Plan) -> None:
    data = data_of(store)
    assert (data.train, data.validation) == ((0, 1), (2,))
    assert data_of(other_size).digest == data.digest
    assert training_set(store.parts, [1, 0], [2]).digest == data.digest
    others = [training_set(store.parts, [0], [2]), training_set(store.parts, [0, 1], [3])]
    others.append(training_set(store.parts, [2], [0, 1]))
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
        training_set(store.parts, *shards)


def test_a_split_of_flagged_and_unlabelled_patches_alone_is_refused(plan: Plan) -> None:
    part = plan.parts.read(2)
    at = part.schema.get_field_index("has_cloud")
    plan.parts.write(2, part.set_column(at, part.schema.field(at), [[True] * part.num_rows]))
    with pytest.raises(TrainingError, match="in the split validation"):
        data_of(plan)


def unit_pixels(store: Plan, patches: Sequence[str]) -> dict[bytes, str]:
    """Patches by their clipped DN."""
    found = {}
    for patch in patches:
        bands = []
        for band in RGB:
            with rasterio.open(band_file(archive_of(store), patch, band)) as source:
                bands.append(np.minimum(source.read(1), MAX_DN))
        found[np.stack(bands).astype(np.uint16).tobytes()] = patch
    return found


def batches_of(plan: Plan, batch_size: int, seed: int | None, shards: Sequence[int] | None = None) -> ImageBatches:
    reader = BranchReader(branch_of(plan), CPU)
    standardiser = from_archive_statistics(RGB, MAX_DN)
    return ImageBatches(reader, shards or plan.ingested("train"), batch_size, standardiser, seed)


def epoch_of(images: ImageBatches, patches: dict[bytes, str], epoch: int) -> list[list[tuple[str, list[str]]]]:
    """Patches and labels of each batch, recognised by their pixels."""
    mean, std = (np.array([[[getattr(STATISTICS[band], k)]] for band in RGB]) for k in ("mean", "std"))
    found = []
    for x, truth in images.batches(epoch):
        dn = np.rint(x.double().numpy() * std + mean).astype(np.uint16)
        labels = [[name for name, hot in zip(NAMES, row, strict=True) if hot] for row in truth.tolist()]
        found.append([(patches[d.tobytes()], names) for d, names in zip(dn, labels, strict=True)])
    assert len(found) == images.steps_per_epoch
    return found


@pytest.mark.parametrize("batch_size", [1, 3, 100])
@pytest.mark.parametrize("room", [1, 3, 1000])
def test_an_epoch_has_every_sample_once(
    store: Plan, other_size: Plan, batch_size: int, room: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where the memory has room for few samples, so that shards are streamed in groups."""
    monkeypatch.setattr(train, "_MEMORY_BYTES", room * 3 * 120 * 120 * 2)
    truth = usable(store, "train")
    patches = unit_pixels(store, list(truth))
    for plan in (store, other_size):
        images = batches_of(plan, batch_size, seed=0)
        assert images.samples == len(truth) == 8
        orders = []
        for epoch in range(4):
            batches = epoch_of(images, patches, epoch)
            assert max(map(len, batches)) <= batch_size
            samples = [sample for batch in batches for sample in batch]
            assert sorted(name for name, _ in samples) == list(truth)
            assert all(set(labels) == set(truth[name]) for name, labels in samples)
            orders.append([name for name, _ in samples])
        assert [name for batch in epoch_of(images, patches, 0) for name, _ in batch] == orders[0]  # an epoch repeats
        assert any(order != orders[0] for order in orders)


def test_the_order_depends_on_the_seed_alone_not_on_the_shards(store: Plan, other_size: Plan) -> None:
    patches = unit_pixels(store, list(usable(store, "train")))
    one, other = (epoch_of(batches_of(plan, 3, seed=4), patches, 2) for plan in (store, other_size))
    assert one == other
    assert [len(batch) for batch in one] == [3, 3, 2]
    assert epoch_of(batches_of(store, 3, seed=5), patches, 2) != one
    order = np.random.default_rng([4, 2]).permutation(8)
    assert [name for batch in one for name, _ in batch] == [list(usable(store, "train"))[i] for i in order]


def test_validation_comes_in_the_order_of_the_patches(store: Plan) -> None:
    patches = unit_pixels(store, list(usable(store, "validation")))
    images = batches_of(store, 4, None, store.ingested("validation"))
    for epoch in (0, 1):
        found = epoch_of(images, patches, epoch)
        assert [name for batch in found for name, _ in batch] == list(usable(store, "validation"))


def test_groups_fit_the_memory_where_shards_do() -> None:
    groups = train._grouped({0: 3, 1: 0, 2: 2, 3: 4, 4: 9, 5: 1, 6: 4}, room=5)
    assert groups == [[0, 2], [3], [4], [5, 6]]


def test_shards_without_samples_are_passed_over(store: Plan, plan: Plan) -> None:
    part = plan.parts.read(1)
    plan.parts.write(1, part.slice(0, 0))
    images = batches_of(plan, 4, seed=0)
    assert images.samples == clean_labelled(store.parts, 0).num_rows
    assert sum(len(x) for x, _ in images.batches(0)) == images.samples


@pytest.fixture(scope="module")
def backbone(store: Plan, tmp_path_factory: pytest.TempPathFactory) -> Backbone:
    path = untrained(branch_of(store), tmp_path_factory.mktemp("backbone") / "0.safetensors")
    return Backbone("resnet18", "archive", path)


def features_of(plan: Plan, backbone: Backbone, batch_size: int = 5) -> StageParts:
    branch = branch_of(plan, batch_size=batch_size)
    parts = features_parts(branch, backbone)
    worker = ShardFeatures(branch, backbone, parts)
    for shard in plan.ingested("train", "validation"):
        worker.run(shard)
    return parts


def test_features_come_with_their_labels_by_patch(store: Plan, plan: Plan, backbone: Backbone) -> None:
    parts = features_of(plan, backbone)
    features, truth = load_features(parts, plan.parts, plan.ingested("train"))
    tables = [parts.read(shard).to_pylist() for shard in (0, 1)]
    by_patch: dict[str, Any] = {row["patch_id"]: row["features"] for table in tables for row in table}
    labels = usable(store, "train")
    np.testing.assert_array_equal(features.numpy(), np.array([by_patch[patch] for patch in labels], np.float32))
    assert [{NAMES[i] for i in np.flatnonzero(row)} for row in truth.numpy()] == [set(x) for x in labels.values()]


def test_a_head_is_fitted_on_features_and_saved_with_its_network(store: Plan, plan: Plan, backbone: Backbone) -> None:
    """The checkpoint gives on images what its head gives on features: standardisation was folded in."""
    features = features_of(plan, backbone)
    job = job_of(plan, backbone, replace(SETTINGS, epochs=20, lr=0.01), features)
    assert Trainer(job).run(3).patches == 8
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
        x = torch.from_numpy(np.concatenate([b.dn.numpy() for b in reader_batches(plan, 0)]).astype(np.float32))
        found = trained.network(trained.standardiser(x / MAX_DN)).sigmoid().numpy()
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
    loss = binary_cross_entropy(trained.network.head, *load_features(features, plan.parts, plan.ingested("validation")))
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
        Trainer(job).run(0)
        configs.add(job.parts.config)
        pooled, _ = load_features(features, where.parts, where.ingested("train", "validation"))
        with torch.no_grad():
            probs.append(checkpoint.load(job.checkpoint(0)).network.head(pooled).sigmoid())
    assert len(configs) == 1
    torch.testing.assert_close(*probs, rtol=0, atol=1e-5)


def test_equal_seeds_give_equal_bytes(plan: Plan, other_size: Plan, tmp_path: Path) -> None:
    """A network trained from chance on images, in two stores with other shards, another process state before."""
    other = copied(other_size, tmp_path / "other")
    files, curves = [], []
    for where in (plan, other):
        job = job_of(where, Backbone("resnet18", "random"), replace(SETTINGS, batch_size=8))
        torch.rand(7)
        assert Trainer(job).run(1).patches == 8
        files.append(job.checkpoint(1).read_bytes())
        curves.append(job.parts.read(1).drop("seconds"))
    assert files[0] == files[1]
    assert curves[0].equals(curves[1])
    assert curves[0]["fitted"].to_pylist() == ["network"] * 2
    job = job_of(plan, Backbone("resnet18", "random"), replace(SETTINGS, batch_size=8))
    Trainer(job).run(2)
    assert job.checkpoint(2).read_bytes() != files[0]
    assert job.parts.done() == {1, 2}
    network = checkpoint.load(job.checkpoint(1)).network
    batches = batches_of(plan, 8, None, plan.ingested("validation")).batches(0)
    (x, truth), *rest = list(batches)
    assert not rest
    with torch.no_grad():
        p = network(x).double().sigmoid()
    loss = float(-(truth.double() * p.log() + (~truth).double() * (1 - p).log()).mean())
    best = next(row for row in job.parts.read(1).to_pylist() if row["best"])
    assert best["validation_loss"] == pytest.approx(loss, rel=1e-4)


def test_config_is_that_of_what_determines_the_checkpoint(store: Plan, backbone: Backbone, tmp_path: Path) -> None:
    data, branch = data_of(store), branch_of(store)

    def config(**changes: Any) -> str:
        values: dict[str, Any] = {"fitted": "network", "head": "linear", "settings": SETTINGS} | changes
        return train_job(
            changes.get("branch", branch),
            changes.get("backbone", backbone),
            values["fitted"],
            values["head"],
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
        config(head="two_layers"),
    ]
    assert len({first, *others}) == 1 + 8 + 5


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
    Trainer(job).run(0)
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
