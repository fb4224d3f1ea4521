"""Which epoch of a fit is the best, and what is kept of it."""

import math

from torch import Tensor, nn

from classifiers.training.settings import Thresholds
from classifiers.training.state import BestState
from classifiers.training.thresholds import HALF, best_f1_thresholds
from classifiers.training.validation import Validation

MIN_GAIN = 1e-4
"""Gain in validation AP (or relative fall of the loss) by which an epoch must beat the best so far to replace it.

Equal networks trained on inputs that differ by rounding have APs that differ by a few swapped ranks, ~1e-6. Between
epochs of a plateau such a difference would decide; a gain above 1e-4 it hardly ever does.
"""


class BestEpoch:
    """The best epoch so far, with a copy of its weights on the CPU.

    Attributes:
        epoch: From 0; -1 before the first.
        weights: State dict of the network after it.
        thresholds: Probability from which each label is predicted, (L,).
    """

    def __init__(self) -> None:
        self.epoch = -1
        self.weights: dict[str, Tensor] = {}
        self.thresholds: tuple[float, ...] = ()
        self._score = -math.inf

    def offer(self, epoch: int, found: Validation, network: nn.Module, thresholds: Thresholds) -> bool:
        """Return whether an epoch is the new best, and if so keep its weights and thresholds.

        The highest macro AP is best, or the lowest loss where AP is null, by a gain of `MIN_GAIN`.
        """
        # Whether AP is null depends on the validation truth alone, so all epochs are judged by the same number.
        by_loss = math.isnan(found.ap_macro)
        score, margin = (-found.loss, MIN_GAIN * found.loss) if by_loss else (found.ap_macro, MIN_GAIN)
        if score <= self._score + margin:
            return False
        self.epoch, self._score = epoch, score
        self.weights = {key: value.detach().to("cpu", copy=True) for key, value in network.state_dict().items()}
        self.thresholds = (
            tuple(best_f1_thresholds(found.probs, found.truth).tolist())
            if thresholds == "tuned"
            else (HALF,) * found.truth.shape[1]
        )
        return True

    def state(self) -> BestState:
        """Return all of it for a file."""
        return BestState(epoch=self.epoch, score=self._score, weights=self.weights, thresholds=list(self.thresholds))

    def restore(self, state: BestState) -> None:
        """Take up what `state` returned."""
        self.epoch, self._score = state["epoch"], state["score"]
        self.weights, self.thresholds = state["weights"], tuple(state["thresholds"])
