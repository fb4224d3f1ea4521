"""One entry to every explanation method."""

from collections.abc import Sequence
from typing import Literal, SupportsIndex

import torch
from torch import Tensor

from classifiers.cam.gradients import evaluation_mode, layer_module
from classifiers.cam.methods import method_and_options
from classifiers.cam.options import OptionValue
from classifiers.cam.target import Activation, Target
from classifiers.network import Classifier
from infra.errors import ConfigError, ShapeError

Labels = Literal["all", "predicted", "true"] | Sequence[int] | Sequence[Sequence[int]]
"""Which labels get a map: a named choice, the same indices for every patch, or a list of indices per patch."""


def explain(
    model: Classifier,
    x: Tensor,
    method: str,
    labels: Labels | None = None,
    target_layer: str | None = None,
    *,
    activation: Activation = "sigmoid",
    thresholds: Sequence[float] | float = 0.5,
    truth: Tensor | None = None,
    seeds: Sequence[int] | None = None,
    **options: OptionValue,
) -> Tensor:
    """Return raw maps of labels, at the target layer's own resolution.

    Args:
        model: A classifier, in any mode; it, its modes, gradients and hooks are the same afterwards.
        x: Standardised input, (N, C, H, W), N >= 1, on the model's device; 0 is the training mean of a band.
        method: A name in `explain_methods()`.
        labels: Label indices, L of them, in the order wanted; a list of indices for each patch; `predicted`: those
            whose probability reaches its threshold; `true`: those of `truth`; None or `all`: all.
        target_layer: Module of the backbone to look at; None: the last convolutional stage.
        activation: What turns the model's logits into probabilities.
        thresholds: Probability from which a label is predicted: one, or one for each label. With softmax the
            likeliest label is predicted, whatever they are.
        truth: Multi-hot labels, (N, all labels), for `labels="true"`.
        seeds: A number of each patch's own, N of them, for methods that draw noise for a patch, so that it is the same
            in any batch; None: its place in the batch.
        **options: Of the method: see its entry's `options`.

    Returns:
        (N, L, h, w), in the unit of the method, at least float32, detached; neither normalised nor enlarged. Labels
        that differ between patches give all labels, NaN where a patch's map was not asked for. A method without
        labels gives (N, 1, h, w).

    Raises:
        UnknownNameError: There is no such method, or the backbone has no such layer.
        ConfigError: An option or a label that the method or the model does not have, one that does not fit x, an
            activation that there is not, not as many seeds as patches, a layer where the method looks at the input, or
            a head it is not defined for.
        ShapeError: x is not 4-D, or too small for the network; the layer's output is not 4-D, it does not run once, or
            no logit depends on it.
    """
    entry, chosen = method_and_options(method, options)
    if x.ndim != 4 or not len(x):
        raise ShapeError(f"explain needs a standardised batch (N, C, H, W), got {tuple(x.shape)}")
    if target_layer is not None and entry.resolution != "layer":
        raise ConfigError(f"{method} looks at the input, not at a layer: leave target_layer out")
    if target_layer is not None:
        layer_module(model, target_layer)  # an unknown one is refused by every method, and before any work
    with evaluation_mode(model), torch.no_grad(), torch.autocast(x.device.type, enabled=False):
        every = Target(model, x, tuple(range(model.num_labels)), target_layer, activation, seeds=seeds)
        wanted = _wanted_labels(every, "all" if labels is None else labels, thresholds, truth)
        if not entry.per_label:
            return entry.run(every, chosen)
        if isinstance(wanted, tuple):
            return entry.run(every.of_labels(wanted), chosen)
        columns = wanted.any(dim=0).nonzero().flatten().tolist() or [0]
        maps = entry.run(every.of_labels(tuple(columns)), chosen)
        spread = maps.new_full((len(x), model.num_labels, *maps.shape[2:]), torch.nan)
        spread[:, columns] = torch.where(wanted[:, columns, None, None], maps, torch.nan)
        return spread


def _wanted_labels(
    target: Target, labels: Labels, thresholds: Sequence[float] | float, truth: Tensor | None
) -> tuple[int, ...] | Tensor:
    """Return the same label indices for every patch, or which labels each patch wants, (N, all labels), bool."""
    n, num_labels = len(target.x), len(target.labels)
    if isinstance(labels, str):
        if labels == "all":
            return target.labels
        if labels == "predicted":
            return _predicted(target, thresholds)
        if labels != "true":
            raise ConfigError(f"labels: {labels!r} is none of all, predicted, true, or indices")
        if truth is None or truth.shape != (n, num_labels):
            found = "none" if truth is None else tuple(truth.shape)
            raise ConfigError(f"labels='true' needs truth, multi-hot ({n}, {num_labels}), got {found}")
        return truth.to(target.x.device, torch.bool)
    lists = [list(item) if isinstance(item, Sequence) else [item] for item in labels]
    per_patch = any(isinstance(item, Sequence) for item in labels)
    if per_patch and not all(isinstance(item, Sequence) for item in labels):
        raise ConfigError(f"labels are indices or a list of indices for each patch, not both; got {list(labels)}")
    given = [label for item in lists for label in item]
    if not all(isinstance(label, SupportsIndex) and not isinstance(label, bool) for label in given):
        raise ConfigError(f"labels are indices, not truth values, names or fractions; got {list(labels)}")
    asked = [int(label) for label in given]
    if min(asked, default=0) < 0 or max(asked, default=0) >= num_labels or not lists:
        raise ConfigError(f"the model has labels 0 to {num_labels - 1}, asked were {list(labels)}")
    if not per_patch:
        return tuple(asked)
    if len(lists) != n:
        raise ConfigError(f"{n} patches need as many lists of labels, got {len(lists)}")
    wanted = torch.zeros(n, num_labels, dtype=torch.bool, device=target.x.device)
    for row, item in enumerate(lists):
        wanted[row, item] = True
    return wanted


def _predicted(target: Target, thresholds: Sequence[float] | float) -> Tensor:
    probs = target.probabilities
    if target.activation == "softmax":
        return torch.arange(probs.shape[1], device=probs.device) == probs.argmax(dim=1, keepdim=True)
    limits = torch.as_tensor(thresholds, dtype=probs.dtype, device=probs.device)
    if limits.ndim and limits.shape != probs.shape[1:]:
        raise ConfigError(f"{probs.shape[1]} labels need one threshold or as many, got {limits.numel()}")
    return probs >= limits
