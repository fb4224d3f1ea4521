"""Temperature scaling: logits divided by one number, so that validation probabilities mean what they say."""

from collections.abc import Callable
from functools import partial

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.optimize import minimize_scalar
from scipy.special import expit, log_expit, log_softmax, logit, softmax

from classifiers.cam.target import Activation
from infra.errors import ShapeError

type Floats = NDArray[np.float64]

_LOG_RANGE = (-4.0, 4.0)
"""Natural logarithms of the temperatures that are tried: 0.02 to 55."""

_SURE = 1e-7
"""A float32 probability of 0 or 1 counts as this far from it."""


def fit_temperatures(probs: ArrayLike, truth: ArrayLike, activation: Activation = "sigmoid") -> Floats:
    """Return the temperature of each label that minimises the log loss on a validation split, (L,).

    Labels of a sigmoid have one each; a label that is always or never there keeps 1, as nothing calibrates it. With
    softmax all labels share one.

    Args:
        probs: Probabilities, (N, L), N >= 1.
        truth: Multi-hot labels, (N, L).
        activation: What made probabilities of logits.

    Raises:
        ShapeError: The two are not of one shape (N, L), or empty.

    Source: Guo et al. 2017, arXiv:1706.04599, section 4.2.
    """
    p, t = np.asarray(probs, np.float64), np.asarray(truth, np.bool_)
    if p.ndim != 2 or p.shape != t.shape or not p.size:
        raise ShapeError(f"temperatures need probs and truth of one shape (N, L), got {p.shape} and {t.shape}")
    if activation == "softmax":
        logs = np.log(np.clip(p, _SURE, None))
        return np.full(p.shape[1], _best(lambda value: -float(log_softmax(logs / value, axis=1)[t].mean())))
    found = np.ones(p.shape[1])
    for i, (column, there) in enumerate(zip(_logits(p).T, t.T, strict=True)):
        if 0 < there.sum() < len(there):
            found[i] = _best(partial(_log_loss, np.where(there, column, -column)))
    return found


def scale_by_temperature(probs: ArrayLike, temperatures: ArrayLike, activation: Activation = "sigmoid") -> Floats:
    """Return probabilities whose logits were divided by their label's temperature, (N, L)."""
    p, t = np.asarray(probs, np.float64), np.asarray(temperatures, np.float64)
    if activation == "softmax":
        return np.asarray(softmax(np.log(np.clip(p, _SURE, None)) / t, axis=1))
    return np.asarray(expit(_logits(p) / t))


def _log_loss(agreement: Floats, temperature: float) -> float:
    """Return the mean log loss of logits whose sign is that of the truth, (N,)."""
    return -float(log_expit(agreement / temperature).mean())


def _logits(probs: Floats) -> Floats:
    return np.asarray(logit(np.clip(probs, _SURE, 1 - _SURE)))


def _best(loss: Callable[[float], float]) -> float:
    """Return the temperature of least loss, which has one minimum in it."""
    return float(np.exp(minimize_scalar(lambda log: loss(float(np.exp(log))), bounds=_LOG_RANGE, method="bounded").x))
