"""One entry to every explanation method."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from types import MappingProxyType

from torch import Tensor

from classifiers.cam.grad_cam import explain_grad_cam
from classifiers.cam.gradients import evaluation_mode
from classifiers.network import Classifier
from infra.errors import ConfigError, ShapeError, UnknownNameError


@dataclass(frozen=True, slots=True)
class Options:
    """What a caller may choose beside the labels; a method refuses those it does not take."""

    target_layer: str | None = None
    """Module of the backbone to look at; None: the last convolutional stage."""


@dataclass(frozen=True, slots=True)
class ExplainMethod:
    """One explanation method."""

    run: Callable[[Classifier, Tensor, tuple[int, ...] | None, Options], Tensor]
    """From (model in evaluation mode, x, label indices, options) to maps (N, L, h, w)."""
    options: frozenset[str]
    """Names of the fields of `Options` that it takes."""
    source: str
    """Where it is described."""


METHODS: Mapping[str, ExplainMethod] = MappingProxyType(
    {
        "grad_cam": ExplainMethod(
            lambda model, x, labels, options: explain_grad_cam(model, x, labels, options.target_layer),
            options=frozenset({"target_layer"}),
            source="Selvaraju et al. 2017, arXiv:1610.02391",
        ),
    }
)


def explain_methods() -> tuple[str, ...]:
    """Return the names of the explanation methods."""
    return tuple(METHODS)


def explain(
    model: Classifier, x: Tensor, method: str, labels: Sequence[int] | None = None, **options: str | None
) -> Tensor:
    """Return raw maps of labels, at the target layer's own resolution.

    Args:
        model: A classifier, in any mode; it, its modes, gradients and hooks are the same afterwards.
        x: Standardised input, (N, C, H, W), N >= 1, on the model's device.
        method: A name in `explain_methods()`.
        labels: Label indices, L of them, in the order wanted; None: all.
        **options: Fields of `Options`.

    Returns:
        (N, L, h, w), in the unit of the method, at least float32; neither normalised nor enlarged.

    Raises:
        UnknownNameError: There is no such method, or no such layer.
        ConfigError: An option or a label that the method or the model does not have.
        ShapeError: x is not 4-D.
    """
    if method not in METHODS:
        raise UnknownNameError(f"no explanation method {method!r}: choose one of {', '.join(METHODS)}")
    entry = METHODS[method]
    if unknown := sorted(options.keys() - entry.options):
        raise ConfigError(
            f"{method} does not take {', '.join(unknown)}: its options are {', '.join(sorted(entry.options))}"
        )
    if x.ndim != 4 or not len(x):
        raise ShapeError(f"explain needs a standardised batch (N, C, H, W), got {tuple(x.shape)}")
    chosen = None if labels is None else tuple(int(label) for label in labels)
    if chosen is not None and (not chosen or min(chosen) < 0 or max(chosen) >= model.num_labels):
        raise ConfigError(f"the model has labels 0 to {model.num_labels - 1}, asked were {list(chosen)}")
    with evaluation_mode(model):
        return entry.run(model, x, chosen, _options(options))


def _options(options: Mapping[str, str | None]) -> Options:
    return Options(**{field.name: options[field.name] for field in fields(Options) if field.name in options})
