"""Losses of classifiers, and what they make of logits: probabilities and decisions.

Every loss is linear in the truth, so that a loss of mixed labels is the mix of the losses.
"""

from collections.abc import Sequence
from typing import Literal, get_args

import torch
import torch.nn.functional as F  # noqa: N812  # as everyone writes it
from torch import Tensor

from classifiers.training.batches import named
from infra.errors import ShapeError, UnknownNameError

Loss = Literal["bce", "asymmetric", "softmax"]
"""`bce` and `asymmetric`: each label for itself, sigmoid. `softmax`: exactly one label a sample, cross-entropy."""

GAMMA_NEG, GAMMA_POS, CLIP = 4.0, 1.0, 0.05
"""Focusing of absent and present labels and probability margin of the asymmetric loss: its authors' defaults."""

MAX_LABEL_WEIGHT = 100.0
"""Class weights stay in [1/100, 100]: a label of three samples would otherwise outweigh all others."""


def sample_losses(logits: Tensor, truth: Tensor, loss: Loss, weights: Tensor | None = None) -> Tensor:
    """Return the loss of each sample: a mean over labels for `bce` and `asymmetric`, cross-entropy for `softmax`.

    Asymmetric, with p = sigmoid(logit) and p_m = max(p - m, 0): -(1 - p)^g+ log p where the label is present and
    -p_m^g- log(1 - p_m) where it is absent. The paper sums over labels; the mean keeps the scale of `bce`.

    Args:
        logits: (N, L), float32 or float64.
        truth: Multi-hot, (N, L), of the same dtype; mixed samples have values between 0 and 1.
        loss: Which.
        weights: (L,), > 0: of the present label (`bce` and `asymmetric`: of the term of presence); None: 1.

    Returns:
        (N,), >= 0.

    Raises:
        ShapeError: The two are not of one shape (N, L), or there is not one weight a label.

    Source: Ridnik et al. 2021, arXiv:2009.14119, eq. 1, 4 and 7.
    """
    if logits.ndim != 2 or logits.shape != truth.shape:
        raise ShapeError(f"the network gives logits {tuple(logits.shape)}, the truth is {tuple(truth.shape)}")
    if weights is not None and weights.shape != logits.shape[1:]:
        raise ShapeError(f"{logits.shape[1]} labels need as many weights, got {tuple(weights.shape)}")
    factor = torch.ones_like(logits[0:1]) if weights is None else weights.to(logits.dtype)
    match loss:
        case "bce":
            return F.binary_cross_entropy_with_logits(logits, truth, pos_weight=factor, reduction="none").mean(dim=1)
        case "asymmetric":
            probs = logits.sigmoid()
            present = (1 - probs) ** GAMMA_POS * F.logsigmoid(logits)
            shifted = (probs - CLIP).clamp(min=0)
            absent = shifted**GAMMA_NEG * torch.log1p(-shifted)
            return -(factor * truth * present + (1 - truth) * absent).mean(dim=1)
        case "softmax":
            return -(factor * truth * F.log_softmax(logits, dim=1)).sum(dim=1)


def one_label_message(odd: Sequence[tuple[str, float]]) -> str:
    """Return what is wrong with samples for softmax: their ids and the numbers of their labels, none of which is 1."""
    listed = named([f"{patch} has {labels:g}" for patch, labels in odd])
    return f"softmax needs exactly one label a patch, but {listed}: take bce, or other patches"


def label_weights(counts: Tensor, samples: int, loss: Loss) -> Tensor:
    """Return the weight of each label that makes rare labels count as much as frequent ones.

    `bce` and `asymmetric`: absent / present samples of the label. `softmax`: N / (L n_c), whose mean over samples is
    1. Both are kept within 1 / `MAX_LABEL_WEIGHT` and `MAX_LABEL_WEIGHT`; a label that never occurs has weight 1.

    Args:
        counts: Samples with the label, n_c, (L,), 0 to N.
        samples: N, >= 1.
        loss: Which.

    Returns:
        (L,), float64, CPU.

    Raises:
        ShapeError: The counts are not (L,), or not between 0 and N.
    """
    present = counts.detach().double().cpu()
    if present.ndim != 1 or (present < 0).any() or (present > samples).any():
        raise ShapeError(f"label counts need to be (L,) and between 0 and {samples}, got {counts}")
    weights = samples / (len(present) * present) if loss == "softmax" else (samples - present) / present
    return torch.where(present > 0, weights.clamp(1 / MAX_LABEL_WEIGHT, MAX_LABEL_WEIGHT), 1.0)


def probabilities(logits: Tensor, loss: Loss) -> Tensor:
    """Return the probabilities that a loss gives logits: (N, L) to (N, L), 0 to 1.

    Raises:
        UnknownNameError: There is no such loss.
    """
    if loss not in get_args(Loss):
        raise UnknownNameError(f"no loss {loss!r}: choose one of {', '.join(get_args(Loss))}")
    return logits.softmax(dim=1) if loss == "softmax" else logits.sigmoid()


def right_decisions(logits: Tensor, truth: Tensor, loss: Loss) -> Tensor:
    """Return how right the decisions on each sample are.

    Args:
        logits: (N, L).
        truth: Multi-hot, (N, L), of 0 and 1.
        loss: `bce`, `asymmetric`: a label is predicted from a probability of 0.5 on; `softmax`: the likeliest is.

    Returns:
        (N,), float64, 0 to 1: the share of labels decided rightly, or whether the likeliest label is true.
    """
    if loss == "softmax":
        return truth.gather(1, logits.argmax(dim=1, keepdim=True)).squeeze(1).double()
    return ((logits >= 0) == (truth > 0.5)).double().mean(dim=1)
