"""Temperature scaling: logits divided by one number, so that validation probabilities mean what they say."""

from collections.abc import Callable
from functools import partial

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.optimize import minimize_scalar
from scipy.special import expit, log_expit, log_softmax, logit, softmax

from classifiers.cam.target import Activation
from infra.errors import ConfigError, ShapeError

type Floats = NDArray[np.float64]

_LOG_RANGE = (-4.0, 4.0)
"""Natural logarithms of the temperatures that are tried: 0.02 to 55."""

_LEAST, _MOST = 1e-38, 1 - 2**-25
"""What a float32 probability of 0 or 1 counts as: about what is rounded to it."""


def fit_temperatures(probs: ArrayLike, truth: ArrayLike, activation: Activation = "sigmoid") -> Floats:
    """Return the temperature of each label that minimises the log loss on a validation split, (L,).

    Labels of a sigmoid have one each; a label that is always or never there keeps 1, as nothing calibrates it. With
    softmax all labels share one. Temperatures from 0.02 to 55 are tried: where no decision is wrong, the loss falls
    towards the lower end.

    Args:
        probs: Probabilities, (N, L), N >= 1.
        truth: Multi-hot labels, (N, L); with softmax one a row.
        activation: What made probabilities of logits.

    Raises:
        ShapeError: The two are not of one shape (N, L), or empty.
        ConfigError: Probabilities are not from 0 to 1; or with softmax, a row has no label, or several.

    Source: Guo et al. 2017, arXiv:1706.04599, section 4.2.
    """
    p, t = np.asarray(probs, np.float64), np.asarray(truth, np.bool_)
    if p.ndim != 2 or p.shape != t.shape or not p.size:
        raise ShapeError(f"temperatures need probs and truth of one shape (N, L), got {p.shape} and {t.shape}")
    if not ((p >= 0) & (p <= 1)).all():
        raise ConfigError(f"{(~((p >= 0) & (p <= 1))).sum()} of {p.size} probabilities are not from 0 to 1")
    if activation == "softmax":
        if (t.sum(axis=1) != 1).any():
            raise ConfigError(
                f"softmax needs one label a row, {(t.sum(axis=1) != 1).sum()} of {len(t)} have another number"
            )
        logs = _log(p)
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
        return np.asarray(softmax(_log(p) / t, axis=1))
    return np.asarray(expit(_logits(p) / t))


def _log_loss(agreement: Floats, temperature: float) -> float:
    """Return the mean log loss of logits whose sign is that of the truth, (N,)."""
    return -float(log_expit(agreement / temperature).mean())


def _log(probs: Floats) -> Floats:
    return np.asarray(np.log(np.maximum(probs, _LEAST)))


def _logits(probs: Floats) -> Floats:
    return np.asarray(logit(np.clip(probs, _LEAST, _MOST)))


def _best(loss: Callable[[float], float]) -> float:
    """Return the temperature of least loss, which has one minimum in it."""
    return float(np.exp(minimize_scalar(lambda log: loss(float(np.exp(log))), bounds=_LOG_RANGE, method="bounded").x))
