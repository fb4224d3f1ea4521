from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from classifiers.standardise import from_archive_statistics
from infra.bigearthnet.bands import BAND_SETS, RGB, STATISTICS, stretch_max_dn
from infra.bigearthnet.classes import NAMES
from infra.errors import ConfigError
from infra.zarr_store import create_store
from tasks import shard_batches
from tasks.branch import Branch, BranchReader, make_branch
from tasks.plan import Plan
from tasks.shard_batches import LANES, ShardBatches, clean_labelled, epoch_groups, samples_of
from tasks.super_resolve import ShardSuperResolver
from tests.tasks.small_store import MAX_DN, branch_of, copied, ingest, v2
from tests.tasks.test_branch import CPU
from tests.tasks.training_samples import archive_of, unit_pixels, usable


@pytest.fixture(scope="module")
def other_size(store: Plan, tmp_path_factory: pytest.TempPathFactory) -> Plan:
    """The same archive in shards of three."""
    return ingest(v2(archive_of(store)), tmp_path_factory.mktemp("other") / "store", 3)


def batches_of(
    plan: Plan,
    batch_size: int,
    seed: int | None,
    shards: Sequence[int] | None = None,
    branch: Branch | None = None,
    rank: int = 0,
    workers: int = 1,
) -> ShardBatches:
    branch = branch or branch_of(plan)
    samples = samples_of(branch.inputs, plan.ingested("train") if shards is None else shards, NAMES)
    standardiser = from_archive_statistics(branch.bands, branch.max_dn)
    reader = BranchReader(branch, CPU)
    return ShardBatches(reader, samples, batch_size, standardiser, seed, rank=rank, workers=workers)


def epoch_of(images: ShardBatches, patches: dict[bytes, str], epoch: int) -> list[list[tuple[str, list[str]]]]:
    """Patches and labels of each batch by place, recognised by their pixels."""
    mean, std = (np.array([[[getattr(STATISTICS[band], k)]] for band in RGB]) for k in ("mean", "std"))
    found = []
    for step, batch in enumerate(images.batches(epoch)):
        dn = np.rint(batch.x.double().numpy() * std + mean).astype(np.uint16)
        labels = [[name for name, hot in zip(NAMES, row, strict=True) if hot] for row in batch.y.tolist()]
        named = [(patches[d.tobytes()], names) for d, names in zip(dn, labels, strict=True)]
        assert batch.n_total == len(named)
        assert batch.places.tolist() == list(range(len(named)))
        assert images.patch_ids(epoch, step) == [name for name, _ in named]
        found.append(named)
    assert len(found) == images.steps_per_epoch
    return found


@pytest.mark.parametrize("batch_size", [1, 3, 100])
@pytest.mark.parametrize("room", [1, 3, 1000])
def test_an_epoch_has_every_sample_once(
    store: Plan, other_size: Plan, batch_size: int, room: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where the memory has room for few samples, so that batches straddle groups of shards."""
    monkeypatch.setattr(shard_batches, "_GROUP_BYTES", room * 3 * 120 * 120 * 2)
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


def test_validation_comes_in_the_order_of_shards_and_rows(store: Plan) -> None:
    patches = unit_pixels(store, list(usable(store, "validation")))
    shards = store.ingested("validation")
    images = batches_of(store, 4, None, shards)
    in_order = [name for s in shards for name in clean_labelled(branch_of(store).inputs, s)["patch_id"].to_pylist()]
    for epoch in (0, 1):
        assert [name for batch in epoch_of(images, patches, epoch) for name, _ in batch] == in_order


def test_shards_without_samples_are_passed_over(store: Plan, tmp_path: Path) -> None:
    plan = copied(store, tmp_path / "store")
    plan.parts.write(1, plan.parts.read(1).slice(0, 0))
    images = batches_of(plan, 4, seed=0)
    assert images.samples == clean_labelled(branch_of(store).inputs, 0).num_rows
    assert sum(len(batch.x) for batch in images.batches(0)) == images.samples


@pytest.mark.parametrize("workers", [2, 4, 32])
def test_workers_share_the_batches_that_one_has(
    store: Plan, other_size: Plan, workers: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shard_batches, "_GROUP_BYTES", 5 * 3 * 120 * 120 * 2)
    for plan in (store, other_size):
        alone = list(batches_of(plan, 3, seed=1).batches(2))
        shares = [list(batches_of(plan, 3, seed=1, rank=rank, workers=workers).batches(2)) for rank in range(workers)]
        for step, whole in enumerate(alone):
            parts = [share[step] for share in shares]
            assert {part.n_total for part in parts} == {whole.n_total}
            places = np.concatenate([part.places for part in parts])
            order = np.argsort(places)
            np.testing.assert_array_equal(places[order], whole.places)
            assert all(part.x.shape[1:] == whole.x.shape[1:] for part in parts)  # empty shares too
            torch.testing.assert_close(torch.cat([part.x for part in parts])[order], whole.x, rtol=0, atol=0)
            assert torch.equal(torch.cat([part.y for part in parts])[order], whole.y)
    with pytest.raises(ConfigError, match="3 workers cannot share a shard"):
        batches_of(store, 3, seed=1, workers=3)


@pytest.mark.parametrize("room", [8, 1000])
def test_stored_pixels_and_those_made_on_the_way_are_alike(
    store: Plan, tmp_path: Path, room: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In one order too, where the memory has room for all of the archive's pixels, but not for all SR pixels."""
    monkeypatch.setattr(shard_batches, "_GROUP_BYTES", room * 3 * 120 * 120 * 2)
    plan = copied(store, tmp_path / "store")
    branch = branch_of(plan, "bicubic")
    on_the_way = list(batches_of(plan, 3, seed=0, branch=branch).batches(0))
    create_store(branch.store, branch.arrays(), plan.shard_size, max(plan.shards) + 1, {"sr": branch.sr})
    for shard in plan.ingested("train"):  # after the first, a batch holds shards of both kinds
        ShardSuperResolver(branch).run(shard)
        stored = list(batches_of(plan, 3, seed=0, branch=branch).batches(0))
        assert stored[0].x.shape[1:] == (3, 480, 480)
        for a, b in zip(on_the_way, stored, strict=True):
            torch.testing.assert_close(a.x, b.x, rtol=0, atol=0)


@pytest.mark.parametrize("bands", ["s2", "s1s2"])
def test_batches_of_several_grids_are_what_prediction_sees(store: Plan, bands: str) -> None:
    names = BAND_SETS[bands]
    inputs = replace(branch_of(store).inputs, bands=names, max_dn=stretch_max_dn(names, MAX_DN))
    branch = make_branch(inputs, "none", None)
    standardise = from_archive_statistics(names, inputs.max_dn)
    shard = store.ingested("validation")[0]
    patches = clean_labelled(inputs, shard)
    expected = torch.cat([standardise(batch.x) for batch in BranchReader(branch, CPU).batches(shard, patches)])
    found = torch.cat([batch.x for batch in batches_of(store, 4, None, [shard], branch).batches(0)])
    assert found.shape[1:] == (len(names), 120, 120)
    torch.testing.assert_close(found, expected, rtol=0, atol=0)


def test_under_degrade_all_but_the_ceiling_are_reduced(store: Plan) -> None:
    inputs = replace(branch_of(store).inputs, degrade=4)
    shapes = {
        sr: next(iter(batches_of(store, 2, None, branch=make_branch(inputs, sr, None)).batches(0))).x.shape[2]
        for sr in ("none", "bicubic", "hr")
    }
    assert shapes == {"none": 30, "bicubic": 120, "hr": 120}


def test_groups_hold_whole_shards_within_the_room() -> None:
    shards = np.repeat(np.arange(7), [3, 0, 2, 4, 9, 1, 4])
    groups = epoch_groups(shards, np.zeros(len(shards), np.int64), 5, None, 0)
    assert [group.shards for group in groups] == [(0, 2), (3,), (4,), (5, 6)]
    np.testing.assert_array_equal(np.concatenate([group.order for group in groups]), np.arange(len(shards)))


def test_every_lane_is_spread_evenly_and_every_order_comes() -> None:
    rng = np.random.default_rng(0)
    lanes = np.sort(rng.integers(LANES, size=400))
    shards = np.zeros(400, np.int64)
    (group,) = epoch_groups(shards, lanes, 1000, 3, 1)
    assert sorted(group.order) == list(range(400))
    for lane in range(LANES):
        places = np.flatnonzero(lanes[group.order] == lane)
        share = np.arange(len(places)) / len(places) * 400
        assert np.abs(places - share).max() <= 2 * 400 / len(places) + LANES  # each in its own stretch, jittered
    (again,) = epoch_groups(shards, lanes, 1000, 3, 1)
    np.testing.assert_array_equal(again.order, group.order)
    means = np.mean([np.argsort(epoch_groups(shards[:6], lanes[:6], 9, 0, e)[0].order) for e in range(2000)], axis=0)
    np.testing.assert_allclose(means, 2.5, atol=0.15)  # no sample of a small archive is always early
