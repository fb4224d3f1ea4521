import hashlib
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
import torch
from torch import Tensor, nn

import sr_models
from infra.bigearthnet.bands import BAND_SETS
from infra.installed import ModelTable
from infra.storage import StorePaths
from infra.tables import SR_QUALITY
from infra.zarr_store import ShardedStore, create_store
from tasks import branch as branch_module
from tasks.branch import Branch, make_branch
from tasks.ingest import ShardIngester
from tasks.plan import Plan, make_plan
from tasks.super_resolve import ShardSuperResolver, SrShards, SrShardSuperResolver
from tests.tasks.small_store import branch_of, copied, snapshot, v2
from tests.tasks.test_branch import streamed


@pytest.fixture
def plan(store: Plan, tmp_path: Path) -> Plan:
    return copied(store, tmp_path / "store")


def create(branch: Branch, plan: Plan) -> None:
    create_store(branch.store, branch.arrays(), plan.shard_size, max(plan.shards) + 1, {"sr": branch.sr})


def compare_stored_with_streamed(branch: Branch, shard: int, patches: int) -> None:
    pixels, rows, quality = streamed(branch, shard)
    assert len(quality) == -(-patches // branch.batch_size)
    assert ShardSuperResolver(branch).run(shard).patches == patches
    store = ShardedStore(branch.store)
    stored, valid = store.read(shard, "sr"), store.read(shard, "valid").astype(np.bool_)
    assert stored.dtype == np.uint16
    np.testing.assert_array_equal(stored[rows], pixels)
    np.testing.assert_array_equal(np.flatnonzero(valid), rows)
    assert not stored[~valid].any()
    assert branch.quality.read(shard).equals(pa.concat_tables(quality))
    assert branch.quality.read(shard).schema.equals(SR_QUALITY)
    in_order = branch.ingest.read(shard).sort_by("row").select(["patch_id", "row"])
    assert branch.pixels.read(shard).equals(in_order)
    read_back, same_rows, no_quality = streamed(branch, shard)
    np.testing.assert_array_equal(read_back, pixels)
    assert same_rows == rows
    assert not no_quality


def test_stored_pixels_are_those_computed_on_the_fly(plan: Plan, monkeypatch: pytest.MonkeyPatch) -> None:
    """In more than one block; four patches, so that blocks and batches end at the same rows."""
    monkeypatch.setattr(branch_module, "_STORED_BLOCK", 2)
    branch = branch_of(plan, "bicubic", batch_size=2)
    create(branch, plan)
    assert ShardedStore(branch.store).block("sr") == 2
    compare_stored_with_streamed(branch, 1, 4)


def test_stored_bands_are_those_of_the_branch(plan: Plan) -> None:
    branch = branch_of(plan, "bicubic", batch_size=4, bands=BAND_SETS["10m"])
    create(branch, plan)
    assert ShardedStore(branch.store).array("sr").shape[1:] == (4, 480, 480)
    compare_stored_with_streamed(branch, 1, 4)


def test_stored_shard_with_holes(plan: Plan) -> None:
    branch = branch_of(plan, "bicubic", batch_size=5)
    create(branch, plan)
    compare_stored_with_streamed(branch, 0, 6)
    before = {path: content for path, (_, content) in snapshot(plan.paths.root).items()}
    ShardSuperResolver(branch).run(0)
    assert {path: content for path, (_, content) in snapshot(plan.paths.root).items()} == before


def test_a_shard_that_is_not_stored_is_computed(plan: Plan) -> None:
    branch = branch_of(plan, "bicubic")
    create(branch, plan)
    expected = streamed(branch, 2)
    ShardSuperResolver(branch).run(3)
    found = streamed(branch, 2)
    np.testing.assert_array_equal(found[0], expected[0])
    assert len(found[2]) == len(expected[2]) > 0


def test_a_network_s_pixels(archive_root: Path, tmp_path: Path) -> None:
    """Two patches through an untrained network of full size, which has to be loaded from a file."""
    plan = make_plan(v2(archive_root), StorePaths(tmp_path / "store"), "bigearthnet-v2", 2)
    ShardIngester(v2(archive_root), plan.format, plan.parts).run(0)
    torch.manual_seed(3)
    weights = tmp_path / "weights.pth"
    torch.save({"params": sr_models.SR_MODELS["realesrgan_general"].build().state_dict()}, weights)
    branch = branch_of(plan, "realesrgan_general", weights, batch_size=2)
    create(branch, plan)
    compare_stored_with_streamed(branch, 0, 2)


def test_stored_pixels_that_were_never_judged_are_made_again(plan: Plan) -> None:
    """As a store has them in which an earlier version measured other columns."""
    branch = branch_of(plan, "bicubic", batch_size=3)
    create(branch, plan)
    ShardSuperResolver(branch).run(1)
    judged = branch.quality.read(1)
    stored, _, nothing = streamed(branch, 1)
    assert not nothing
    branch.quality.path(1).unlink()
    pixels, _, quality = streamed(branch, 1)
    np.testing.assert_array_equal(pixels, stored)
    assert pa.concat_tables(quality).equals(judged)


TOLD = {"steps": 1, "guidance": 1}


def told_branch(plan: Plan, **changes: Any) -> Branch:
    return make_branch(branch_of(plan).inputs, "seesr_tiny", None, batch_size=3, options=TOLD, **changes)


class Told(nn.Module):
    """Nearest neighbours, brightened by as much as the patch's name says."""

    def forward(self, x: Tensor, conditions: Sequence[sr_models.Condition]) -> Tensor:
        digests = [hashlib.sha256(condition.patch_id.encode()).digest()[0] for condition in conditions]
        brighter = torch.tensor(digests)[:, None, None, None] / 2550
        return (nn.functional.interpolate(x, scale_factor=4) + brighter).clamp(0, 1)


class TestSrShards:
    """A model that declares SR shards, here of four patches in shards of eight, and is told of its patches."""

    @pytest.fixture(autouse=True)
    def _of_four(self, monkeypatch: pytest.MonkeyPatch) -> None:
        table = sr_models.SR_MODELS
        small = replace(table["seesr_tiny"], sr_shard=4, architecture=lambda options: Told())
        assert isinstance(table, ModelTable)
        monkeypatch.setattr(table, "_own", {**table._own, "seesr_tiny": small})

    def test_they_are_numbered_through(self, plan: Plan) -> None:
        shards = SrShards(told_branch(plan), plan.shard_size)
        assert shards.of([0, 3]) == [0, 1, 6, 7]
        assert [shards.place(i) for i in (0, 1, 6, 7)] == [(0, 0), (0, 4), (3, 0), (3, 4)]

    def test_one_by_one_they_make_what_a_whole_shard_is(self, plan: Plan, tmp_path: Path) -> None:
        """In another order than that of their rows; the whole shard in a store of its own."""
        other = copied(plan, tmp_path / "other")
        whole, branch = told_branch(other), told_branch(plan)
        create(whole, other)
        create(branch, plan)
        assert ShardedStore(branch.store).block("sr") == 4
        assert ShardSuperResolver(whole).run(0).patches == 6
        shards = SrShards(branch, plan.shard_size)
        worker = SrShardSuperResolver(shards)
        assert worker.run(1).patches + worker.run(0).patches == 6
        assert not branch.pixels.done()
        shards.seal([0, 1])
        assert branch.pixels.done() == branch.quality.done() == {0}
        for name in ("sr", "valid"):
            found, expected = (ShardedStore(b.store).read(0, name) for b in (branch, whole))
            np.testing.assert_array_equal(found, expected)
        assert branch.pixels.read(0).equals(whole.pixels.read(0))
        ours, theirs = (b.quality.read(0).sort_by("patch_id").to_pandas() for b in (branch, whole))
        pd.testing.assert_frame_equal(ours, theirs, rtol=1e-4)
        assert theirs["reflectance_mae"].nunique() > 1  # each told of itself

    def test_a_shard_is_sealed_when_the_last_of_them_is_there(self, plan: Plan) -> None:
        branch = told_branch(plan)
        create(branch, plan)
        shards = SrShards(branch, plan.shard_size)
        SrShardSuperResolver(shards).run(0)
        shards.seal([0])
        assert not branch.pixels.done()
        SrShardSuperResolver(shards).run(1)
        shards.seal([0])
        before = snapshot(plan.paths.root)
        shards.seal([0])
        assert snapshot(plan.paths.root) == before

    def test_an_sr_shard_of_holes_is_done_all_the_same(self, plan: Plan) -> None:
        """Shard 1 of the training split has four patches, the second half of its rows none."""
        branch = told_branch(plan)
        create(branch, plan)
        shards = SrShards(branch, plan.shard_size)
        worker = SrShardSuperResolver(shards)
        assert [worker.run(i).patches for i in shards.of([1])] == [4, 0]
        shards.seal([1])
        assert branch.quality.read(1).num_rows == branch.pixels.read(1).num_rows == 4
