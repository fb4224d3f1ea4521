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


def fit_temperatures(probs: ArrayLike, truth: ArrayLike, activation: Activation = "sigmoid") -> Floats | None:
    """Return the temperature of each label that minimises the log loss on a validation split, (L,).

    Labels of a sigmoid have one each; a label that is always or never there keeps 1, as nothing calibrates it. With
    softmax all labels share one, of the rows with exactly one label: several, or one that the classifier does not
    know, are no class. Probabilities that are NaN are left out, with softmax the whole row. Temperatures from 0.02 to
    55 are tried: where no decision is wrong, the loss falls towards the lower end.

    Args:
        probs: Probabilities, (N, L), NaN where there is none.
        truth: Multi-hot labels, (N, L).
        activation: What made probabilities of logits.

    Returns:
        (L,); None where nothing is left to fit on.

    Raises:
        ShapeError: The two are not of one shape (N, L).
        ConfigError: Probabilities are not from 0 to 1.

    Source: Guo et al. 2017, arXiv:1706.04599, section 4.2.
    """
    p, t = np.asarray(probs), np.asarray(truth, np.bool_)
    if p.ndim != 2 or p.shape != t.shape:
        raise ShapeError(f"temperatures need probs and truth of one shape (N, L), got {p.shape} and {t.shape}")
    if outside := int(((p < 0) | (p > 1)).sum()):
        raise ConfigError(f"{outside} of {p.size} probabilities are not from 0 to 1")
    known = ~np.isnan(p)
    if activation == "softmax":
        usable = known.all(axis=1) & (t.sum(axis=1) == 1)
        if not usable.any():
            return None
        logs, classes = _log(p[usable].astype(np.float64)), t[usable]
        return np.full(p.shape[1], _best(lambda value: -float(log_softmax(logs / value, axis=1)[classes].mean())))
    if not known.any():
        return None
    found = np.ones(p.shape[1])
    for i, (column, there, of) in enumerate(zip(p.T, t.T, known.T, strict=True)):
        if 0 < there[of].sum() < of.sum():
            logits = _logits(column[of].astype(np.float64))
            found[i] = _best(partial(_log_loss, np.where(there[of], logits, -logits)))
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
