"""The explanation methods by name, and what is known of each without torch."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Literal

from classifiers.cam.options import (
    Explainable,
    GradPlusPlusScoreCamOptions,
    LimeOptions,
    NoOptions,
    OcclusionOptions,
    OptionValue,
    RandomOptions,
    RiseOptions,
    ScoreCamOptions,
    SmoothOptions,
)
from infra.errors import ConfigError, UnknownNameError, did_you_mean
from infra.on_demand import called_later

if TYPE_CHECKING:
    from torch import Tensor

    from classifiers.cam.target import Target

FLOOR = "random"
"""The method that all others have to rise above."""

STEPS = 36
"""Steps of deletion and of insertion: 400 pixels of a patch each, under half of a cell of a 4 x 4 map.

RISE's are one row of 224 x 224 pixels. Passes through the network are all that the judgement costs, and the area under
a curve by trapezoids of 36 steps is off by no more than 1/72 of the curve's total variation.
"""

Check = Callable[[Any, Explainable, tuple[int, int, int]], None]
"""Refuses, by ConfigError, options that do not fit a network and the shape (C, H, W) of its input."""


def _fits(_options: object, _model: Explainable, _shape: tuple[int, int, int]) -> None:
    """Refuse nothing."""


def _fits_input(
    options: RiseOptions | OcclusionOptions | LimeOptions, _model: Explainable, shape: tuple[int, int, int]
) -> None:
    options.check_input(*shape[1:])


def _fits_map(options: GradPlusPlusScoreCamOptions, model: Explainable, shape: tuple[int, int, int]) -> None:
    if options.reduce_input:
        options.check_map(model, *model.map_size(shape))


@dataclass(frozen=True, slots=True)
class ExplainMethod:
    """One explanation method."""

    run: "Callable[[Target, Any], Tensor]"
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

    def is_cheap(self, model: Explainable) -> bool:
        """Return whether the activations of the pass that predicts are all it needs, at the last stage."""
        return self.forwards == "none" or (self.forwards != "many" and model.has_linear_head)

    def map_size(self, options: Any, model: Explainable, shape: tuple[int, int, int]) -> tuple[int, int]:  # noqa: ANN401  # the method's own
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
    run: "Callable[[Target], Tensor]", source: str, *, per_label: bool = True, linear_head_only: bool = False
) -> ExplainMethod:
    return ExplainMethod(lambda target, _: run(target), source, per_label=per_label, linear_head_only=linear_head_only)


def _later(name: str, module: str = "") -> "Callable[..., Tensor]":
    """Return a method by its function's name, and its module's where that is another: torch comes when it is called."""
    return called_later(f"classifiers.cam.{module or name}", name)


METHODS: Mapping[str, ExplainMethod] = MappingProxyType(
    {
        "cam": _plain(_later("cam", "gradient_family"), "Zhou et al. 2016, arXiv:1512.04150", linear_head_only=True),
        "grad_cam": _plain(_later("grad_cam", "gradient_family"), "Selvaraju et al. 2017, arXiv:1610.02391"),
        "hires_cam": _plain(_later("hires_cam", "gradient_family"), "Draelos and Carin 2020, arXiv:2011.08891"),
        "x_grad_cam": _plain(_later("x_grad_cam", "gradient_family"), "Fu et al. 2020, arXiv:2008.02312"),
        "grad_cam_pp": _plain(_later("grad_cam_pp", "gradient_family"), "Chattopadhay et al. 2018, arXiv:1710.11063"),
        "layer_cam": _plain(_later("layer_cam", "gradient_family"), "Jiang et al. 2021, doi:10.1109/TIP.2021.3089943"),
        "ablation_cam": _plain(_later("ablation_cam"), "Ramaswamy et al. 2020, doi:10.1109/WACV45572.2020.9093360"),
        "smooth_grad_cam_pp": ExplainMethod(
            _later("smooth_grad_cam_pp"),
            "Omeiza et al. 2019, arXiv:1908.01224",
            SmoothOptions,
            forwards="linear head: none",
        ),
        "eigen_cam": _plain(_later("eigen_cam"), "Muhammad and Yeasin 2020, arXiv:2008.00299", per_label=False),
        "hessian_ciam": _plain(
            _later("hessian_ciam"), "Qian et al. 2023, doi:10.1007/978-3-031-43895-0_17", per_label=False
        ),
        FLOOR: ExplainMethod(_later("random_map"), "Uniform noise, the floor", RandomOptions, per_label=False),
        "score_cam": ExplainMethod(
            _later("score_cam"), "Wang et al. 2020, arXiv:1910.01279", options=ScoreCamOptions, forwards="many"
        ),
        "grad_plus_plus_score_cam": ExplainMethod(
            _later("grad_plus_plus_score_cam", "score_cam"),
            "Soomro et al., Grad++ScoreCAM",
            options=GradPlusPlusScoreCamOptions,
            forwards="many",
            check=_fits_map,
        ),
        "rise": ExplainMethod(
            _later("rise"),
            "Petsiuk et al. 2018, arXiv:1806.07421",
            options=RiseOptions,
            forwards="many",
            resolution="input",
            check=_fits_input,
        ),
        "occlusion": ExplainMethod(
            _later("occlusion"),
            "Zeiler and Fergus 2014, arXiv:1311.2901",
            options=OcclusionOptions,
            forwards="many",
            resolution="input",
            check=_fits_input,
        ),
        "lime": ExplainMethod(
            _later("lime"),
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
