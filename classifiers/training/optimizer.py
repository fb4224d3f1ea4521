"""The optimiser of a fit and its learning rates: by step, and by the depth of a parameter."""

import math
from collections.abc import Mapping

import torch
from torch import nn

from classifiers.training.settings import TrainSettings
from infra.errors import ConfigError, TrainingError

_SCALE = "lr_scale"


def learning_rate(step: int, total_steps: int, settings: TrainSettings) -> float:
    """Return the learning rate of a step, 0 <= step < total_steps: a linear rise to `lr`, then half a cosine to 0."""
    rising = math.floor(settings.warmup * total_steps)
    if step < rising:
        return settings.lr * (step + 1) / (rising + 1)
    return settings.lr * 0.5 * (1 + math.cos(math.pi * (step - rising) / (total_steps - rising)))


def set_learning_rate(optimizer: torch.optim.Optimizer, lr: float) -> None:
    """Set the learning rate of all parameters, each group's scaled by its depth."""
    for group in optimizer.param_groups:
        group["lr"] = lr * group[_SCALE]


def build_optimizer(
    network: nn.Module, settings: TrainSettings, depths: Mapping[str, int] | None = None
) -> torch.optim.Optimizer:
    """Return the optimiser of a network's parameters that are not frozen.

    Args:
        network: What is trained.
        settings: How.
        depths: Name of each parameter to its depth, >= 0, greatest at the head; needed for `layer_decay`.

    Raises:
        TrainingError: All parameters are frozen.
        ConfigError: The depths are needed and one is missing.
    """
    trained = [(name, parameter) for name, parameter in network.named_parameters() if parameter.requires_grad]
    if not trained:
        raise TrainingError("the network has no parameter to train: all are frozen")
    groups: dict[tuple[float, bool], list[nn.Parameter]] = {}
    for name, parameter in trained:
        groups.setdefault((_scale(name, settings, depths), parameter.ndim > 1), []).append(parameter)
    parameters = [
        {
            "params": members,
            _SCALE: scale,
            "lr": settings.lr * scale,
            "weight_decay": settings.weight_decay if decayed else 0.0,
        }
        for (scale, decayed), members in sorted(groups.items(), reverse=True)
    ]
    match settings.optimizer:
        case "adamw":
            return torch.optim.AdamW(parameters, lr=settings.lr, eps=settings.adam_eps)
        case "adam":
            return torch.optim.Adam(parameters, lr=settings.lr, eps=settings.adam_eps)
        case "sgd":
            return torch.optim.SGD(parameters, lr=settings.lr, momentum=0.9)


def _scale(name: str, settings: TrainSettings, depths: Mapping[str, int] | None) -> float:
    if settings.layer_decay == 1:
        return 1.0
    if depths is None or name not in depths:
        raise ConfigError(f"layer_decay is {settings.layer_decay}, but the depth of the parameter {name} is not told")
    return float(settings.layer_decay ** (max(depths.values()) - depths[name]))
