"""Oracles: the samples themselves, each once, and the order written out."""

import math
from collections.abc import Iterator
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from classifiers.training import batches as module
from classifiers.training.batches import TensorBatches, TimedBatches, TrainingBatch, named
from classifiers.training.random_streams import permutation
from infra.errors import ConfigError, ShapeError


def values(batches: TensorBatches, epoch: int) -> list[list[int]]:
    return [[int(v) for v in batch.x[:, 0]] for batch in batches.batches(epoch)]


def test_batches_hold_every_sample_once_in_an_order_of_seed_and_epoch() -> None:
    x, y = torch.arange(9)[:, None].float(), torch.zeros(9, 1)
    batches = TensorBatches(x, y, 4, shuffle_seed=7)
    order = values(batches, 3)
    assert [len(batch) for batch in order] == [3, 3, 3]  # near-equal, not 4, 4, 1
    flat = [value for batch in order for value in batch]
    assert flat == list(permutation(9, 7, 3))
    assert sorted(flat) == list(range(9))
    assert list(permutation(9, 7, 3)) != list(permutation(9, 7, 4))
    assert [value for batch in values(TensorBatches(x, y, 4), 3) for value in batch] == list(range(9))
    assert (batches.samples, batches.steps_per_epoch) == (9, 3)


def test_ids_are_those_of_the_batch() -> None:
    x, y = torch.arange(9)[:, None].float(), torch.zeros(9, 1)
    named_ones = TensorBatches(x, y, 4, shuffle_seed=7, ids=[f"P{i}" for i in range(9)])
    assert [named_ones.patch_ids(3, step) for step in range(3)] == [
        [f"P{i}" for i in batch] for batch in values(named_ones, 3)
    ]
    assert TensorBatches(x, y, 4).patch_ids(0, 1) == ["sample 3", "sample 4", "sample 5"]


def test_workers_share_each_batch() -> None:
    """5 workers, batches of 3: two have none. Together they have the batch of one, each sample at its place."""
    x, y = torch.arange(9)[:, None].float(), torch.arange(18).reshape(9, 2)
    whole = list(TensorBatches(x, y, 4, shuffle_seed=7).batches(2))
    shares = [list(TensorBatches(x, y, 4, shuffle_seed=7, rank=rank, workers=5).batches(2)) for rank in range(5)]
    for step, batch in enumerate(whole):
        mine = [share[step] for share in shares]
        assert [len(part.x) for part in mine] == [1, 1, 1, 0, 0]
        assert all(part.x.shape[1:] == (1,) and part.y.shape[1:] == (2,) for part in mine)
        assert {part.n_total for part in mine} == {3}
        places = np.concatenate([part.places for part in mine])
        assert sorted(places) == [0, 1, 2]
        assert torch.equal(torch.cat([part.x for part in mine]), batch.x[places])
        assert torch.equal(torch.cat([part.y for part in mine]), batch.y[places])


def test_an_epoch_takes_one_view_of_each_sample() -> None:
    """Feature 0 names the sample, feature 1 the view; over 40 epochs each of 3 views comes for each sample."""
    x = torch.stack([torch.stack([torch.tensor([n, v]) for v in range(3)]) for n in range(6)]).float()
    batches = TensorBatches(x, torch.zeros(6, 1), 4, shuffle_seed=1)
    seen = np.zeros((6, 3), int)
    epochs = []
    for epoch in range(40):
        rows = torch.cat([batch.x for batch in batches.batches(epoch)]).int().numpy()
        assert sorted(rows[:, 0]) == list(range(6))
        seen[rows[:, 0], rows[:, 1]] += 1
        epochs.append(rows.tolist())
    assert (seen > 0).all()
    assert torch.cat([batch.x for batch in batches.batches(7)]).tolist() == epochs[7]
    plain = torch.cat([batch.x for batch in TensorBatches(x, torch.zeros(6, 1), 4).batches(3)])
    assert torch.equal(plain, x[:, 0])


def test_waiting_is_timed_and_working_is_not(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 7.0
    monkeypatch.setattr(module, "time", SimpleNamespace(perf_counter=lambda: now))

    def slow() -> Iterator[TrainingBatch]:
        nonlocal now
        for _ in range(2):
            now += 5
            yield TrainingBatch(torch.ones(1, 1), torch.ones(1, 1), np.arange(1), 1)
        now += 5

    timed = TimedBatches(slow())
    for _ in timed:
        now += 200
    assert timed.waited == 15


def test_a_few_names_stand_for_many() -> None:
    assert named(["a", "b"]) == "a, b"
    assert named([str(i) for i in range(9)]) == "0, 1, 2, 3, 4, 5, 6, 7, ... (9 in all)"


def test_refuses() -> None:
    x, y = torch.ones(4, 3), torch.ones(4, 2)
    with pytest.raises(ShapeError, match=r"\(3, 2\)"):
        TensorBatches(x, y[:3], 2)
    with pytest.raises(ShapeError, match="4 samples need as many ids, got 1"):
        TensorBatches(x, y, 2, ids=["a"])
    with pytest.raises(ShapeError, match="V >= 1"):
        TensorBatches(torch.ones(4, 0, 3), y, 2)
    with pytest.raises(ConfigError, match="batch_size"):
        TensorBatches(x, y, 0)
    with pytest.raises(ConfigError, match="no worker 2 among 2"):
        TensorBatches(x, y, 2, rank=2, workers=2)
    assert list(TensorBatches(x[:0], y[:0], 2).batches(0)) == []
    assert math.isclose(TensorBatches(x, y, 3).steps_per_epoch, 2)
