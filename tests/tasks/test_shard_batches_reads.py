"""What a worker reads and keeps while it goes through an epoch."""

import threading
import time
import weakref
from collections import Counter

import numpy as np
import pytest
from numpy.typing import NDArray

from classifiers.standardise import from_archive_statistics
from infra.bigearthnet.classes import NAMES
from tasks import shard_batches
from tasks.branch import BranchReader, Stored
from tasks.plan import Plan
from tasks.shard_batches import ShardBatches, samples_of
from tests.tasks.small_store import branch_of, ingest, v2
from tests.tasks.test_branch import CPU
from tests.tasks.training_samples import archive_of

PATCH_BYTES = 3 * 120 * 120 * 2


@pytest.fixture(scope="module")
def plan(store: Plan, tmp_path_factory: pytest.TempPathFactory) -> Plan:
    """The small archive in shards of two: six of them train."""
    return ingest(v2(archive_of(store)), tmp_path_factory.mktemp("two") / "store", 2)


class Watched(BranchReader):
    """Notes the rows that are read, and how many arrays of pixels are alive."""

    read_rows: Counter[tuple[int, int]]
    made: list[weakref.ref[NDArray[np.generic]]]
    most = 0

    def read(self, shard: int, first_row: int, rows: int, *, super_resolved: bool = True) -> Stored:
        stored = super().read(shard, first_row, rows, super_resolved=super_resolved)
        self.read_rows.update((shard, row) for row in range(first_row, first_row + rows))
        self.made += [weakref.ref(values) for values in stored.values()]
        self.most = max(self.most, sum(made() is not None for made in self.made))
        return stored


def watched(plan: Plan, batch_size: int, rank: int = 0, workers: int = 1) -> tuple[Watched, ShardBatches]:
    branch = branch_of(plan)
    reader = Watched(branch, CPU)
    reader.read_rows, reader.made = Counter(), []
    samples = samples_of(branch.inputs, plan.ingested("train"), NAMES)
    standardiser = from_archive_statistics(branch.bands, branch.max_dn)
    return reader, ShardBatches(reader, samples, batch_size, standardiser, 0, rank=rank, workers=workers)


@pytest.mark.parametrize("workers", [1, 2])
@pytest.mark.parametrize("room", [1, 1000])
def test_each_sample_is_read_once_an_epoch_by_one_worker(
    plan: Plan, room: int, workers: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All that fits the memory at once is read once and for all."""
    monkeypatch.setattr(shard_batches, "_GROUP_BYTES", room * PATCH_BYTES)
    samples = samples_of(branch_of(plan).inputs, plan.ingested("train"), NAMES)
    wanted = set(zip(samples.shards.tolist(), samples.rows.tolist(), strict=True))
    readers = []
    for rank in range(workers):
        reader, batches = watched(plan, 3, rank, workers)
        for epoch in (0, 1):
            assert sum(batch.n_total for batch in batches.batches(epoch)) == len(wanted)
        readers.append(reader)
    expected = 1 if room == 1000 else 2
    assert sum((reader.read_rows for reader in readers), Counter()) == Counter(dict.fromkeys(wanted, expected))


def test_no_more_than_three_groups_are_held(plan: Plan, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shard_batches, "_GROUP_BYTES", PATCH_BYTES)
    reader, batches = watched(plan, 3)  # batches straddle groups
    for _ in batches.batches(0):
        time.sleep(0.02)
    assert len({shard for shard, _ in reader.read_rows}) >= 5
    assert 2 <= reader.most <= 3


def test_an_epoch_that_is_left_ends_its_threads(plan: Plan, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shard_batches, "_GROUP_BYTES", PATCH_BYTES)
    _, batches = watched(plan, 1)
    epoch = batches.batches(0)
    next(epoch)
    assert any(thread.name == "prefetch" for thread in threading.enumerate())
    epoch.close()
    assert not any(thread.name == "prefetch" for thread in threading.enumerate())
    assert sum(len(batch.x) for batch in batches.batches(0)) == batches.samples
