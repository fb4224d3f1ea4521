"""One entry to every explanation method."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from types import MappingProxyType
from typing import Any, Literal, SupportsIndex

import torch
from torch import Tensor

from classifiers.cam import gradient_family
from classifiers.cam.ablation_cam import ablation_cam
from classifiers.cam.eigen_cam import eigen_cam
from classifiers.cam.gradients import evaluation_mode, layer_module
from classifiers.cam.hessian_ciam import hessian_ciam
from classifiers.cam.lime import LimeOptions, lime
from classifiers.cam.occlusion import OcclusionOptions, occlusion
from classifiers.cam.random_map import RandomOptions, random_map
from classifiers.cam.rise import RiseOptions, rise
from classifiers.cam.score_cam import (
    GradPlusPlusScoreCamOptions,
    ScoreCamOptions,
    grad_plus_plus_score_cam,
    score_cam,
)
from classifiers.cam.smooth_grad_cam_pp import SmoothOptions, smooth_grad_cam_pp
from classifiers.cam.target import Activation, Target
from classifiers.network import Classifier
from infra.errors import ConfigError, ShapeError, UnknownNameError, did_you_mean

OptionValue = bool | int | float | str
"""What an option of a method may be."""

Labels = Literal["all", "predicted", "true"] | Sequence[int] | Sequence[Sequence[int]]
"""Which labels get a map: a named choice, the same indices for every patch, or a list of indices per patch."""


Check = Callable[[Any, Classifier, tuple[int, int, int]], None]
"""Refuses, by ConfigError, options that do not fit a network and the shape (C, H, W) of its input."""


def _fits(_options: object, _model: Classifier, _shape: tuple[int, int, int]) -> None:
    """Refuse nothing."""


def _fits_input(
    options: RiseOptions | OcclusionOptions | LimeOptions, _model: Classifier, shape: tuple[int, int, int]
) -> None:
    options.check_input(*shape[1:])


def _fits_map(options: GradPlusPlusScoreCamOptions, model: Classifier, shape: tuple[int, int, int]) -> None:
    if options.reduce_input:
        options.check_map(model, *model.map_size(shape))


@dataclass(frozen=True, slots=True)
class NoOptions:
    """The options of a method that has none."""


@dataclass(frozen=True, slots=True)
class ExplainMethod:
    """One explanation method."""

    run: Callable[[Target, Any], Tensor]
    """From a batch at a layer, and the method's options, to maps (N, L, h, w), or (N, 1, h, w) without labels."""
    source: str
    """Where it is described."""
    options: type[Any] = NoOptions
    """Frozen dataclass of its options, each with a default."""
    per_label: bool = True
    """Whether it has a map for each label, or one for the patch."""
    forwards: Literal["none", "linear head: none", "many"] = "none"
    """Passes through the network, beside the one that predicts, at the last stage."""
    resolution: Literal["layer", "input", "cells"] = "layer"
    """Resolution of its maps: the layer's, the input's, or its option `cells`; only the first looks at a layer."""
    linear_head_only: bool = False
    """Whether it is defined for a head of one linear layer alone."""
    check: Check = _fits
    """What refuses its options, at the last stage, before any work; what fits no network is refused when it is made."""

    def is_cheap(self, model: Classifier) -> bool:
        """Return whether the activations of the pass that predicts are all it needs, at the last stage."""
        return self.forwards == "none" or (self.forwards != "many" and isinstance(model.head, torch.nn.Linear))

    def map_size(self, options: Any, model: Classifier, shape: tuple[int, int, int]) -> tuple[int, int]:  # noqa: ANN401  # the method's own
        """Return height and width of its raw maps at the last stage, without making any.

        Args:
            options: The method's.
            model: The network explained, on any device, torch's `meta` among them.
            shape: Of an image, (C, H, W).

        Raises:
            ShapeError: The image is smaller than the network can see.
        """
        if self.resolution == "layer":
            return model.map_size(shape)
        return (options.cells, options.cells) if self.resolution == "cells" else shape[1:]


def _plain(
    run: Callable[[Target], Tensor], source: str, *, per_label: bool = True, linear_head_only: bool = False
) -> ExplainMethod:
    return ExplainMethod(lambda target, _: run(target), source, per_label=per_label, linear_head_only=linear_head_only)


METHODS: Mapping[str, ExplainMethod] = MappingProxyType(
    {
        "cam": _plain(gradient_family.cam, "Zhou et al. 2016, arXiv:1512.04150", linear_head_only=True),
        "grad_cam": _plain(gradient_family.grad_cam, "Selvaraju et al. 2017, arXiv:1610.02391"),
        "hires_cam": _plain(gradient_family.hires_cam, "Draelos and Carin 2020, arXiv:2011.08891"),
        "x_grad_cam": _plain(gradient_family.x_grad_cam, "Fu et al. 2020, arXiv:2008.02312"),
        "grad_cam_pp": _plain(gradient_family.grad_cam_pp, "Chattopadhay et al. 2018, arXiv:1710.11063"),
        "layer_cam": _plain(gradient_family.layer_cam, "Jiang et al. 2021, doi:10.1109/TIP.2021.3089943"),
        "ablation_cam": _plain(ablation_cam, "Ramaswamy et al. 2020, doi:10.1109/WACV45572.2020.9093360"),
        "smooth_grad_cam_pp": ExplainMethod(
            smooth_grad_cam_pp,
            "Omeiza et al. 2019, arXiv:1908.01224",
            SmoothOptions,
            forwards="linear head: none",
        ),
        "eigen_cam": _plain(eigen_cam, "Muhammad and Yeasin 2020, arXiv:2008.00299", per_label=False),
        "hessian_ciam": _plain(hessian_ciam, "Qian et al. 2023, doi:10.1007/978-3-031-43895-0_17", per_label=False),
        "random": ExplainMethod(random_map, "Uniform noise, the floor", RandomOptions, per_label=False),
        "score_cam": ExplainMethod(
            score_cam, "Wang et al. 2020, arXiv:1910.01279", options=ScoreCamOptions, forwards="many"
        ),
        "grad_plus_plus_score_cam": ExplainMethod(
            grad_plus_plus_score_cam,
            "Soomro et al., Grad++ScoreCAM",
            options=GradPlusPlusScoreCamOptions,
            forwards="many",
            check=_fits_map,
        ),
        "rise": ExplainMethod(
            rise,
            "Petsiuk et al. 2018, arXiv:1806.07421",
            options=RiseOptions,
            forwards="many",
            resolution="input",
            check=_fits_input,
        ),
        "occlusion": ExplainMethod(
            occlusion,
            "Zeiler and Fergus 2014, arXiv:1311.2901",
            options=OcclusionOptions,
            forwards="many",
            resolution="input",
            check=_fits_input,
        ),
        "lime": ExplainMethod(
            lime,
            "Ribeiro et al. 2016, arXiv:1602.04938",
            options=LimeOptions,
            forwards="many",
            resolution="cells",
            check=_fits_input,
        ),
    }
)


def explain_methods() -> tuple[str, ...]:
    """Return the names of the explanation methods."""
    return tuple(METHODS)


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


def method_and_options(method: str, given: Mapping[str, OptionValue]) -> tuple[ExplainMethod, Any]:
    """Return a method's entry and its options, with defaults for those that are not given.

    Raises:
        UnknownNameError: There is no such method.
        ConfigError: The method does not take an option, not of that type, or not that value.
    """
    if method not in METHODS:
        hint = did_you_mean(method, METHODS)
        raise UnknownNameError(f"no explanation method {method!r}: {hint}choose one of {', '.join(METHODS)}")
    entry = METHODS[method]
    known = {option.name: option.default for option in fields(entry.options)}
    if unknown := sorted(given.keys() - known.keys()):
        takes = f"its options are {', '.join(known)}" if known else "it has no options"
        raise ConfigError(f"{method} does not take {', '.join(unknown)}: {takes}")
    values = dict(given)
    for name, value in given.items():
        kind = type(known[name])
        if kind is float and type(value) is int:
            values[name] = float(value)  # so that 1 and 1.0 are one option, with one config
        elif type(value) is not kind:
            raise ConfigError(f"{method}: {name} is a {kind.__name__}, such as {known[name]!r}; got {value!r}")
    return entry, entry.options(**values)


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
