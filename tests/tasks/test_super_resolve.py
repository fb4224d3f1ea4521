from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch

import sr_models
from infra.bigearthnet.bands import BAND_SETS
from infra.storage import StorePaths
from infra.tables import SR_QUALITY
from infra.zarr_store import ShardedStore, create_store
from tasks import branch as branch_module
from tasks.branch import Branch
from tasks.ingest import ShardIngester
from tasks.plan import Plan, make_plan
from tasks.super_resolve import ShardSuperResolver
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
