"""The fit of a head alone, on features of a frozen backbone that were computed once."""

from collections.abc import Callable, Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn

from classifiers.training.batches import TensorBatches, named
from classifiers.training.loop import ClassifierTrainer
from classifiers.training.settings import TrainSettings
from classifiers.training.standardise_features import fold, input_layer, standardise_features
from classifiers.training.trainer import EpochRow, FitResult, run_to_end
from infra.errors import ShapeError, TrainingError

HEAD_EPS = 1e-5
"""Adam's epsilon when a head is fitted alone: gradients below it are rounding, and must not be scaled up to a step."""

type Features = tuple[Tensor, Tensor]
"""Features (N, K), or of V views of each sample (N, V, K), and multi-hot truth (N, L), in canonical order."""


class HeadTrainer:
    """One fit of a head, in place, on features of a frozen backbone; `ClassifierTrainer`'s rules hold.

    Made so that features that differ by rounding, as those of another batch size do, give the same probabilities within
    1e-5 where the head is linear and the settings are the defaults but for size, rate and optimiser: the fit is in
    float64, on standardised features, with an epsilon of Adam that rounding does not reach, and in an order drawn from
    (seed, epoch). The standardisation is folded into the head's first layer at the end, so the head takes plain
    features and has its own dtype again. The one exception is a gain of validation AP that is `MIN_GAIN` to within
    rounding: there another epoch may be kept.

    Args:
        head: A linear layer, or a sequence that starts with one, from features (N, K) to logits (N, L).
        train: Training features and truth, in canonical order, as the order decides the batches; of several views
            each epoch takes one of each sample, drawn from (seed, epoch).
        validation: Likewise, one view each.
        settings: How to train; `adam_eps` is raised to `HEAD_EPS`.
        device: Where to train.
        ids: Patch ids of the training and of the validation samples, for messages; None: numbers.

    Raises:
        TrainingError: There is no training or no validation sample, or a feature is not finite.
        ShapeError: The features do not fit the head or the truth.
        ConfigError: The head does not start with a linear layer.
    """

    def __init__(
        self,
        head: nn.Module,
        train: Features,
        validation: Features,
        settings: TrainSettings,
        device: str | torch.device = "cpu",
        ids: tuple[Sequence[str], Sequence[str]] | None = None,
    ) -> None:
        self._first = input_layer(head)
        if not len(train[0]) or not len(validation[0]):
            raise TrainingError(
                f"training needs samples of both kinds, got {len(train[0])} training and {len(validation[0])} "
                "validation samples: check the splits of the archive"
            )
        for features, ranks in ((train[0], (2, 3)), (validation[0], (2,))):
            if features.ndim not in ranks or features.shape[-1] != self._first.in_features:
                raise ShapeError(f"the head needs features (N, {self._first.in_features}), got {tuple(features.shape)}")
        for (features, _), names in zip((train, validation), ids or (None, None), strict=True):
            _check_finite(features, names)
        self._head, self._dtype = head, self._first.weight.dtype
        self._scaling = standardise_features(train[0].flatten(0, -2))
        self._result: FitResult | None = None
        train_ids, validation_ids = ids or (None, None)
        size, seed = settings.batch_size, settings.seed
        self._trainer = ClassifierTrainer(
            head.double(),
            TensorBatches(*train, size, shuffle_seed=seed, transform=self._scaling, ids=train_ids),
            TensorBatches(*validation, size, transform=self._scaling, ids=validation_ids),
            replace(settings, adam_eps=max(settings.adam_eps, HEAD_EPS)),
            device,
            label_counts=(train[1] > 0).sum(dim=0),
        )

    @property
    def epoch(self) -> int:
        """The next epoch, from 0."""
        return self._trainer.epoch

    @property
    def done(self) -> bool:
        """Whether all epochs are done, or `patience` of them without one that was better."""
        return self._trainer.done

    def advance(self) -> EpochRow:
        """Train for one epoch and validate; return its row.

        Raises:
            TrainingError: No epoch is left, or a loss is not finite.
            ShapeError: The truth does not fit the head.
        """
        return self._trainer.advance()

    def state(self) -> bytes:
        """Return everything a stopped run needs, as a file's content."""
        return self._trainer.state()

    def restore(self, state: bytes) -> None:
        """Go on from a saved state, in a fit that has not finished.

        Raises:
            WeightsError: It is damaged, or of a run with other settings, samples or another head.
        """
        self._trainer.restore(state)

    def finish(self) -> FitResult:
        """Leave the head with the weights of its best epoch, for plain features, in its own dtype; return the result.

        Raises:
            TrainingError: Epochs are left.
        """
        if self._result is None:
            self._result = self._trainer.finish()
            fold(self._first, self._scaling)
            self._head.to(self._dtype)
        return self._result


def _check_finite(features: Tensor, ids: Sequence[str] | None) -> None:
    low, high = torch.aminmax(features.flatten(1), dim=1)
    odd = torch.nonzero(~(torch.isfinite(low) & torch.isfinite(high))).flatten().tolist()
    if odd:
        names = [f"sample {i}" if ids is None else ids[i] for i in odd]
        raise TrainingError(f"the features of {named(names)} are not finite: look at their pixels")


def fit_head(
    head: nn.Module,
    train: Features,
    validation: Features,
    settings: TrainSettings,
    device: str | torch.device = "cpu",
    on_epoch: Callable[[EpochRow], None] | None = None,
) -> FitResult:
    """Fit a head in one go; see `HeadTrainer`.

    Returns:
        The curve, the best epoch and the thresholds.
    """
    return run_to_end(HeadTrainer(head, train, validation, settings, device), on_epoch)
