import numpy as np
import pytest
import torch

from classifiers.training.batches import TensorBatches
from classifiers.training.step_log import READ_EVERY, StepLog
from classifiers.training.workers import Workers
from infra.errors import TrainingError


def log_of(n: int, *, one_label: bool = False) -> tuple[StepLog, TensorBatches]:
    batches = TensorBatches(torch.ones(n, 1), torch.ones(n, 2), 3)
    return StepLog(batches, 1, Workers(0, 1), one_label=one_label), batches


def test_means_are_over_samples_not_batches_and_over_all_readings() -> None:
    log, batches = log_of(400)
    rng = np.random.default_rng(0)
    losses, right = [], []
    for batch in batches.batches(1):
        losses.append(rng.random(len(batch.y)))
        right.append(rng.random(len(batch.y)))
        log.add(batch, torch.from_numpy(losses[-1]), torch.from_numpy(right[-1]))
    assert log.steps == 134 > 2 * READ_EVERY
    assert log.means() == pytest.approx((np.concatenate(losses).mean(), np.concatenate(right).mean()))
    assert log.steps == 134


def test_a_loss_that_is_not_finite_stops_at_the_next_reading() -> None:
    log, batches = log_of(400)
    steps = list(batches.batches(1))
    for done, batch in enumerate(steps[: 2 * READ_EVERY - 1]):
        log.add(batch, torch.full((3,), torch.nan if done >= 60 else 1.0), torch.ones(3))
    with pytest.raises(TrainingError, match=r"nan at step 194 \(epoch 1\), whose patches are sample 180, sample 181"):
        log.add(steps[99], torch.ones(3), torch.ones(3))


def test_samples_without_exactly_one_label_are_named() -> None:
    log, batches = log_of(4, one_label=True)
    for batch in batches.batches(1):
        log.add(batch, torch.ones(len(batch.y)), torch.ones(len(batch.y)))
    with pytest.raises(TrainingError, match="but sample 0 has 2, sample 1 has 2:"):
        log.means()


def test_no_step_is_told() -> None:
    with pytest.raises(TrainingError, match="no training batch came in epoch 1"):
        log_of(4)[0].means()
