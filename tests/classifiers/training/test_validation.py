"""Oracles: scikit-learn, and torch's losses over all samples at once."""

from collections.abc import Iterator

import numpy as np
import pytest
import torch
import torch.nn.functional as F  # noqa: N812  # as everyone writes it
from sklearn.metrics import average_precision_score
from torch import nn

from classifiers.training.batches import TensorBatches, TrainingBatch
from classifiers.training.validation import Validation, validate
from classifiers.training.workers import Workers
from infra.errors import ShapeError, TrainingError

CPU, ALONE = torch.device("cpu"), Workers(0, 1)


def found(network: nn.Module, samples: TensorBatches, epoch: int = 0) -> Validation:
    return validate(network, samples, epoch, "bce", None, "auto", CPU, ALONE)


def test_no_batch_size_or_order_changes_what_is_found() -> None:
    rng = np.random.default_rng(0)
    x = torch.from_numpy(rng.normal(size=(23, 4))).float()
    y = torch.from_numpy(rng.integers(0, 2, (23, 3))).float()
    network = nn.Linear(4, 3)
    with torch.no_grad():
        logits = network(x).double()
    ap = average_precision_score(y, logits.sigmoid(), average="macro")
    for batch_size, seed in ((23, None), (5, None), (1, None), (5, 3)):
        result = found(network.train(), TensorBatches(x, y, batch_size, shuffle_seed=seed))
        assert result.loss == pytest.approx(float(F.binary_cross_entropy_with_logits(logits, y.double())), abs=1e-7)
        assert result.ap_macro == pytest.approx(ap, abs=1e-12)
        assert result.accuracy == pytest.approx(float(((logits.sigmoid() >= 0.5) == (y == 1)).double().mean()))
        if seed is None:
            np.testing.assert_allclose(result.probs, logits.sigmoid(), atol=1e-7)
            np.testing.assert_array_equal(result.truth, y)
    assert not network.training


def test_names_the_patches_whose_logits_are_not_finite() -> None:
    x = torch.ones(7, 2)
    x[[2, 5, 6]] = torch.nan
    samples = TensorBatches(x, torch.ones(7, 1), 3, ids=list("abcdefg"))
    with pytest.raises(TrainingError, match=r"after epoch 4 is nan, with .* for c, f, g: .* state is of epoch 3$"):
        found(nn.Linear(2, 1), samples, epoch=4)
    with pytest.raises(TrainingError, match=r"state is of no epoch$"):
        found(nn.Linear(2, 1), samples)


def test_refuses_another_number_of_labels() -> None:
    with pytest.raises(ShapeError, match=r"\(3, 2\), the truth is \(3, 1\)"):
        found(nn.Linear(2, 2), TensorBatches(torch.ones(3, 2), torch.ones(3, 1), 3))


def test_a_sample_that_comes_twice_is_told() -> None:
    class Twice(TensorBatches):
        def batches(self, epoch: int) -> Iterator[TrainingBatch]:
            for batch in super().batches(epoch):
                batch.places[:] = 0
                yield batch

    with pytest.raises(TrainingError, match="of 4 validation samples 4 did not come exactly once"):
        found(nn.Linear(2, 1), Twice(torch.ones(4, 2), torch.ones(4, 1), 2))
