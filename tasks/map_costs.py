"""What activation maps cost before any is made: values to store, and passes through the network."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from math import ceil
from types import MappingProxyType

from classifiers.cam.methods import METHODS, STEPS, method_and_options
from classifiers.cam.options import Explainable, OptionValue
from classifiers.registry import spec

BYTES_PER_VALUE = 2
"""Of a map in its store, before compression."""

PASSES_PER_JUDGED_MAP = 2 * STEPS - 1
"""Passes that say how far the network depends on what a map shows."""


@dataclass(frozen=True, slots=True)
class MethodCost:
    """What one method costs on one classifier and branch."""

    method: str
    costly: bool
    """Whether it needs passes of its own, and so sees the sample alone where there is one."""
    values: int
    """Values of a patch's maps, as they are stored."""
    passes: int
    """Passes of a patch through the network, beside the one that predicts, at most."""


def method_costs(
    methods: Sequence[str],
    network: Explainable,
    shape: tuple[int, int, int],
    grid: int,
    labels: int,
    options: Mapping[str, Mapping[str, OptionValue]] = MappingProxyType({}),
) -> list[MethodCost]:
    """Return what methods cost for a patch, in their order.

    Args:
        methods: Names of methods.
        network: The network to be explained, or what is known of it.
        shape: Of what it sees of a patch, (C, H, W), H = W.
        grid: Edge of the archive's own patches, pixels, the finest that maps are stored at.
        labels: Labels that it knows.
        options: Options of methods, by method.

    Raises:
        UnknownNameError, ConfigError: There is no such method or option.
        ShapeError: The patch is too small for the network.
    """
    found = []
    for method in methods:
        entry, chosen = method_and_options(method, options.get(method, {}))
        values: dict[str, OptionValue] = asdict(chosen)
        height, width = entry.map_size(chosen, network, shape)
        places = min(height, grid) * min(width, grid)
        costly = not entry.is_cheap(network)
        passes = _passes(method, values, methods, network, shape[1]) if costly else 0
        found.append(MethodCost(method, costly, places * (labels if entry.per_label else 1), passes))
    return found


def judging_passes(methods: Sequence[str], labels: float) -> float:
    """Return the passes that judge a patch's maps; the labels of a patch share one map of a method without labels.

    Args:
        methods: Names of methods.
        labels: Labels whose maps are judged, of one patch or the mean over several.
    """
    maps = sum(labels if METHODS[method].per_label else min(1, labels) for method in methods)
    return PASSES_PER_JUDGED_MAP * maps


def _passes(
    method: str, options: Mapping[str, OptionValue], methods: Sequence[str], network: Explainable, edge: int
) -> int:
    if method in {"score_cam", "grad_plus_plus_score_cam"}:
        shared = method != "score_cam" and "score_cam" in methods and not options["reduce_input"]
        return 0 if shared else spec(network.name).feature_channels
    if method == "occlusion":
        return (ceil((edge - int(options["window"])) / int(options["stride"])) + 1) ** 2
    return int(options["masks" if method == "rise" else "samples"])
