import math

import numpy as np
import torch
from torch import nn

from classifiers.training.best_epoch import MIN_GAIN, BestEpoch
from classifiers.training.validation import Validation

PROBS, TRUTH = np.array([[0.9, 0.3], [0.4, 0.2]]), np.array([[1.0, 1.0], [0.0, 0.0]])


def found(ap: float, loss: float = 1.0) -> Validation:
    return Validation(loss, 0.5, ap, PROBS, TRUTH)


def test_a_gain_below_the_margin_is_none() -> None:
    best, network = BestEpoch(), nn.Linear(1, 1)
    scores = [0.5, 0.5 + 0.9 * MIN_GAIN, 0.5 + 1.1 * MIN_GAIN, 0.4, 0.6]
    assert [best.offer(i, found(ap), network, "half") for i, ap in enumerate(scores)] == [
        True,
        False,
        True,
        False,
        True,
    ]
    assert (best.epoch, best.thresholds) == (4, (0.5, 0.5))


def test_where_ap_is_null_the_loss_decides_by_a_share_of_it() -> None:
    best, network = BestEpoch(), nn.Linear(1, 1)
    losses = [10.0, 10 * (1 - 0.9 * MIN_GAIN), 10 * (1 - 1.1 * MIN_GAIN), 11.0]
    offers = [best.offer(i, found(math.nan, loss), network, "half") for i, loss in enumerate(losses)]
    assert offers == [True, False, True, False]


def test_keeps_a_copy_and_the_thresholds_of_its_epoch() -> None:
    """0.5 splits label 0 rightly; label 1 needs what lies between 0.2 and 0.3."""
    best, network = BestEpoch(), nn.Linear(1, 1)
    with torch.no_grad():
        network.weight.fill_(2.0)
        best.offer(0, found(0.7), network, "tuned")
        network.weight.fill_(3.0)
    assert float(best.weights["weight"]) == 2.0
    np.testing.assert_allclose(best.thresholds, [0.5, 0.25])
    again = BestEpoch()
    again.restore(best.state())
    assert (again.epoch, again.thresholds) == (0, best.thresholds)
    assert not again.offer(1, found(0.7), network, "tuned")
    assert again.offer(1, found(0.8), network, "tuned")
