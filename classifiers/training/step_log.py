"""Loss and accuracy of an epoch's steps, read from the device a few steps at a time."""

from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from classifiers.training.batches import Batches, TrainingBatch, named
from classifiers.training.losses import one_label_message
from classifiers.training.workers import Workers
from infra.errors import TrainingError

READ_EVERY = 50
"""Steps between two readings: each makes the device wait for the processor, and the workers for one another."""


class _Share(NamedTuple):
    """What is kept of this worker's share of a batch; its pixels would fill the memory."""

    labels: Tensor | None
    """Number of labels of each sample, (n,), where it must be one."""
    places: NDArray[np.int64]
    n_total: int


class StepLog:
    """What the steps of one epoch gave, over all workers; checked at every reading, on all workers alike.

    Args:
        train: The training batches, for the names of patches.
        epoch: From 0.
        workers: Who shares the batches.
        one_label: Whether each sample must have exactly one label.
    """

    def __init__(self, train: Batches, epoch: int, workers: Workers, *, one_label: bool) -> None:
        self._train, self._epoch, self._workers, self._one_label = train, epoch, workers, one_label
        self._sums: list[Tensor] = []
        self._shares: list[_Share] = []
        self._loss = self._right = 0.0
        self._samples = self._steps = 0

    @property
    def steps(self) -> int:
        """Steps so far."""
        return self._steps + len(self._sums)

    def add(self, batch: TrainingBatch, losses: Tensor, right: Tensor) -> None:
        """Take in a step.

        Args:
            batch: This worker's share.
            losses: Loss of each of its samples, (n,).
            right: How right the decisions on each are, (n,), 0 to 1.

        Raises:
            TrainingError: At a reading, a loss is not finite, or a sample has not one label where it must.
        """
        labels = batch.y.sum(dim=1).to(losses.device) if self._one_label else None
        odd = losses.new_zeros(()) if labels is None else (labels != 1).sum()
        self._sums.append(torch.stack([value.double() for value in (losses.detach().sum(), right.sum(), odd)]))
        self._shares.append(_Share(labels, batch.places, batch.n_total))
        if len(self._sums) == READ_EVERY:
            self._read()

    def means(self) -> tuple[float, float]:
        """Return the mean loss and accuracy over all samples of the epoch so far.

        Raises:
            TrainingError: As for `add`, or there was no step.
        """
        self._read()
        if not self._samples:
            raise TrainingError(f"no training batch came in epoch {self._epoch}, though some were promised")
        return self._loss / self._samples, self._right / self._samples

    def _read(self) -> None:
        if not self._sums:
            return
        sums = self._workers.sum(torch.stack(self._sums)).cpu()
        for at, (loss, right, odd) in enumerate(sums.tolist()):
            n = self._shares[at].n_total
            if odd:
                self._refuse_labels(at)
            if not torch.isfinite(sums[at, 0]):
                self._refuse_loss(at, loss / n)
            self._loss += loss
            self._right += right
            self._samples += n
        self._steps += len(self._sums)
        self._sums, self._shares = [], []

    def _refuse_loss(self, at: int, loss: float) -> None:
        step = self._steps + at
        last = f"the last good state is of epoch {self._epoch - 1}" if self._epoch else "no epoch had ended"
        raise TrainingError(
            f"the training loss is {loss} at step {self._epoch * self._train.steps_per_epoch + step} "
            f"(epoch {self._epoch}), whose patches are {named(self._train.patch_ids(self._epoch, step))}: lower the "
            f"learning rate, or look for inputs that are not finite; {last}"
        )

    def _refuse_labels(self, at: int) -> None:
        """Name the samples at fault, which only the workers that have them know."""
        labels, places, n = self._shares[at]
        assert labels is not None
        counts = labels.new_zeros(n, dtype=torch.float64)
        counts[torch.from_numpy(places).to(counts.device)] = labels.double()
        found = self._workers.sum(counts).tolist()
        ids = self._train.patch_ids(self._epoch, self._steps + at)
        odd = [(patch, count) for patch, count in zip(ids, found, strict=True) if count != 1]
        raise TrainingError(one_label_message(odd))
