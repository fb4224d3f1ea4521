"""Validation of a network: its logits of all validation samples, gathered from the workers, and what they say."""

import math
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from classifiers.metrics import multilabel_metrics
from classifiers.training.batches import Batches, named
from classifiers.training.forward import logits_of
from classifiers.training.losses import Loss, one_label_message, probabilities, right_decisions, sample_losses
from classifiers.training.settings import Precision
from classifiers.training.workers import Workers
from infra.errors import ShapeError, TrainingError


@dataclass(frozen=True, slots=True)
class Validation:
    """What the validation samples say of a network; the same on every worker."""

    loss: float
    """Mean over samples."""
    accuracy: float
    """Mean over samples of `right_decisions`."""
    ap_macro: float
    """Macro average precision; NaN where no sample has a label."""
    probs: NDArray[np.float64]
    """(N, L), in the order of steps and places."""
    truth: NDArray[np.float64]
    """Multi-hot, (N, L)."""


def validate(
    network: nn.Module,
    samples: Batches,
    epoch: int,
    loss: Loss,
    weights: Tensor | None,
    precision: Precision,
    device: torch.device,
    workers: Workers,
) -> Validation:
    """Return how a network does on samples; it is left in evaluation mode.

    Args:
        network: On the device.
        samples: The validation samples, shared by the workers.
        epoch: The epoch that has just ended, from 0.
        loss: What the loss is.
        weights: Weights of the labels in it, (L,), or None.
        precision: Of the forward pass.
        device: Where.
        workers: Who shares the samples.

    Raises:
        TrainingError: The loss is not finite, a sample has not one label for softmax, or not all came just once.
        ShapeError: The logits do not fit the truth.
    """
    logits, truth, sizes = _gathered(network, samples, epoch, precision, device, workers)
    labels = truth.sum(dim=1)
    if loss == "softmax" and (labels != 1).any():
        odd = np.flatnonzero(labels != 1)
        ids = _ids(odd, samples, epoch, sizes)
        raise TrainingError(one_label_message([*zip(ids, labels[odd].tolist(), strict=True)]))
    mean = float(sample_losses(logits, truth, loss, None if weights is None else weights.cpu()).mean())
    if not math.isfinite(mean):
        ids = _ids(np.flatnonzero(~torch.isfinite(logits).all(dim=1)), samples, epoch, sizes)
        where = f", with logits that are not finite for {named(ids)}" if ids else ""
        raise TrainingError(
            f"the validation loss after epoch {epoch} is {mean}{where}: lower the "
            "learning rate, or look for inputs that are not finite; the last good state is of "
            + (f"epoch {epoch - 1}" if epoch else "no epoch")
        )
    accuracy = float(right_decisions(logits, truth, loss).mean())
    probs, multi_hot = probabilities(logits, loss).numpy(), truth.numpy()
    return Validation(mean, accuracy, multilabel_metrics(probs, multi_hot)["ap_macro"], probs, multi_hot)


def _gathered(
    network: nn.Module, samples: Batches, epoch: int, precision: Precision, device: torch.device, workers: Workers
) -> tuple[Tensor, Tensor, list[int]]:
    """Return logits and truth of all samples, (N, L), float64, CPU, by step and place, and each step's samples."""
    network.eval()
    rows, values, sizes, num_labels = [], [], list[int](), 0
    with torch.no_grad():
        for batch in samples.batches(epoch):
            num_labels = batch.y.shape[1]
            if len(batch.y):
                logits = logits_of(network, batch.x.to(device, non_blocking=True), precision)
                truth = batch.y.to(device, non_blocking=True)
                if logits.shape != truth.shape:
                    raise ShapeError(
                        f"the network gives logits {tuple(logits.shape)}, the truth is {tuple(truth.shape)}"
                    )
                once = torch.ones_like(logits[:, :1])
                rows.append(torch.from_numpy(batch.places) + sum(sizes))
                values.append(torch.cat([part.double() for part in (logits, truth, once)], dim=1))
            sizes.append(batch.n_total)
    n = sum(sizes)
    if n != samples.samples or not n:
        raise TrainingError(f"{n} validation samples came in epoch {epoch}, {samples.samples} were promised")
    table = torch.zeros(n, 2 * num_labels + 1, dtype=torch.float64, device=device)
    if rows:
        table.index_add_(0, torch.cat(rows).to(device), torch.cat(values))
    table = workers.sum(table).cpu()
    if (table[:, -1] != 1).any():
        raise TrainingError(
            f"of {n} validation samples {int((table[:, -1] != 1).sum())} did not come exactly once in epoch {epoch}"
        )
    return table[:, :num_labels], table[:, num_labels:-1], sizes


def _ids(rows: NDArray[np.int64], samples: Batches, epoch: int, sizes: list[int]) -> list[str]:
    """Return the patch ids of rows of what was gathered."""
    ends = np.cumsum(sizes)
    steps = np.searchsorted(ends, rows, side="right")
    places = rows - (ends - sizes)[steps]
    return [samples.patch_ids(epoch, int(step))[place] for step, place in zip(steps, places, strict=True)]
