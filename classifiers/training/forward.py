"""The forward pass of training and validation: precision, memory format, and which layers keep their statistics."""

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from classifiers.training.settings import Precision
from infra.errors import ShapeError


def logits_of(network: nn.Module, x: Tensor, precision: Precision) -> Tensor:
    """Return the logits of inputs on the network's device.

    Args:
        network: From x to logits.
        x: (N, C, H, W) or (N, K); converted to the dtype of the parameters.
        precision: Inside a float32 network; one of another dtype runs in its own.

    Returns:
        (N, L), at least float32.

    Raises:
        ShapeError: The logits are not (N, L).
    """
    dtype = next(network.parameters()).dtype
    lower = precision == "bfloat16" or (precision == "auto" and x.is_cuda)
    x = x.to(dtype)
    if x.ndim == 4:
        x = x.contiguous(memory_format=torch.channels_last)
    with torch.autocast(x.device.type, torch.bfloat16, enabled=lower and dtype == torch.float32):
        logits: Tensor = network(x)
    if logits.ndim != 2 or len(logits) != len(x):
        raise ShapeError(f"the network gives logits {tuple(logits.shape)} for inputs {tuple(x.shape)}, not (N, L)")
    return logits.to(torch.promote_types(logits.dtype, torch.float32))


def training_mode(network: nn.Module, *, freeze_norm: bool) -> None:
    """Put a network into training mode, except batch normalisations that are frozen: their statistics stay too.

    Args:
        network: What is trained.
        freeze_norm: Whether the statistics of all of them stay, not only of those without a parameter to train.
    """
    network.train()
    for module in network.modules():
        if isinstance(module, _BatchNorm):
            own = list(module.parameters(recurse=False))
            if freeze_norm or (own and not any(parameter.requires_grad for parameter in own)):
                module.eval()
