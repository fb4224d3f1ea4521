"""Small networks in the place of real ones, and what other libraries, or definitions, say they return."""

from collections.abc import Callable, Mapping
from typing import cast

import numpy as np
import spandrel
import torch
from torch import Tensor, nn
from torch.nn.functional import conv2d, interpolate, relu

import sr_models
from sr_models import SuperResolver
from sr_models.registry import Scalar

SMALL_HAT: Mapping[str, Scalar] = {
    "embed_dim": 12,
    "num_groups": 1,
    "num_blocks": 2,
    "compress_ratio": 3,
    "squeeze_factor": 6,
    "num_heads": 3,
}

SMALL: Mapping[str, Mapping[str, Scalar]] = {
    "none": {},
    "bicubic": {"scale": 4},
    "srresnet": {"num_feat": 8, "num_block": 2},
    "realesrgan": {"num_feat": 8, "num_block": 1, "num_grow_ch": 32},  # spandrel knows no other growth
    "realesrgan_general": {"num_feat": 8, "num_conv": 2},
    **dict.fromkeys(("hat", "hat_s", "hat_l", "real_hat_gan"), SMALL_HAT),
}
"""Arguments of a network of each kind with a few thousand parameters."""


def picture(n: int = 1, size: int | tuple[int, int] = 16, seed: int = 0) -> Tensor:
    height, width = (size, size) if isinstance(size, int) else size
    return torch.rand((n, 3, height, width), generator=torch.Generator().manual_seed(seed))


def informative(network: nn.Module) -> nn.Module:
    """Give random weights that put the output near 0.5 +- 0.2, so that the clamp to [0, 1] hides little."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for key, value in network.state_dict().items():
            if key.endswith("relative_position_bias_table"):
                value.copy_(torch.randn(value.shape, generator=generator))  # windows that attend unevenly
            elif value.ndim >= 2 and value.is_floating_point():
                value.copy_(torch.randn(value.shape, generator=generator) * (0.5 / value[0].numel()) ** 0.5)
            elif key.endswith("attention.1.bias"):
                value.copy_(
                    torch.rand(value.shape, generator=generator) + 0.5
                )  # before a ReLU that would hide the rest
            elif key.endswith("bias"):
                value.copy_(torch.randn(value.shape, generator=generator) * 0.02)
        convolutions = [module for module in network.modules() if isinstance(module, nn.Conv2d)]
        if convolutions:
            last = convolutions[-1]
            assert last.bias is not None
            last.weight.mul_(0.2 / network(picture(2, 12)).std())
            last.bias.add_(0.5 - network(picture(2, 12)).mean())
    return network


def stand_in(name: str) -> SuperResolver:
    """Return a model of a kind with a small network, on the CPU."""
    network = informative(sr_models.spec(name).architecture(**SMALL[name])).eval().requires_grad_(requires_grad=False)
    return SuperResolver(name, sr_models.spec(name).scale, network, torch.device("cpu"))


def oracle(name: str, network: nn.Module) -> Callable[[Tensor], Tensor]:
    """Return what a network's output, clamped to [0, 1], is by other means than the network."""
    if name == "none":
        return lambda x: x.clamp(0, 1)
    if name == "bicubic":
        return bicubic_by_hand
    state = dict(network.state_dict())
    if name == "srresnet":
        return lambda x: msrresnet_by_hand(x, state).clamp(0, 1)
    return spandrels(state)


def spandrels(state: Mapping[str, Tensor]) -> Callable[[Tensor], Tensor]:
    """Return spandrel's model for a set of parameters, clamped; it finds the network's kind and size by itself."""
    peer = spandrel.ModelLoader(device="cpu").load_from_state_dict(dict(state))
    assert isinstance(peer, spandrel.ImageModelDescriptor)
    # its padding of small images is wanted for HAT's windows, not the one of single rows, for other scales' sake
    network = peer if peer.architecture.id == "HAT" else peer.model

    @torch.no_grad()
    def clamped(x: Tensor) -> Tensor:
        return cast("Tensor", network(x)).clamp(0, 1)

    return clamped


def msrresnet_by_hand(x: Tensor, p: Mapping[str, Tensor]) -> Tensor:
    """The network's definition, from its parameters: Ledig et al. 2017, without batch normalisation."""

    def conv(y: Tensor, key: str) -> Tensor:
        return conv2d(y, p[f"{key}.weight"], p[f"{key}.bias"], padding=1)

    def lrelu(y: Tensor) -> Tensor:
        return torch.where(y > 0, y, 0.1 * y)

    y = lrelu(conv(x, "conv_first"))
    for block in range(sum(key.startswith("body.") and key.endswith("conv1.weight") for key in p)):
        y = y + conv(relu(conv(y, f"body.{block}.conv1")), f"body.{block}.conv2")
    for step in ("upconv1", "upconv2"):
        n, c, h, w = y.shape
        y = conv(y, step).reshape(n, c, 2, 2, h, w).permute(0, 1, 4, 2, 5, 3).reshape(n, c, 2 * h, 2 * w)
        y = lrelu(y)
    return conv(lrelu(conv(y, "conv_hr")), "conv_last") + interpolate(x, scale_factor=4, mode="bilinear")


def bicubic_by_hand(x: Tensor) -> Tensor:
    """Keys' cubic convolution by four, along columns, then rows; in float64."""
    columns, rows = (torch.from_numpy(_keys(edge, 4)) for edge in x.shape[2:])
    return (columns @ x.double() @ rows.T).clamp(0, 1).float()


def _keys(edge: int, scale: int) -> np.ndarray:
    """Return cubic convolution of a 1-D signal as a matrix: a = -0.75, pixel centres aligned, edges repeated."""

    def kernel(t: float) -> float:
        t, a = abs(t), -0.75
        if t <= 1:
            return (a + 2) * t**3 - (a + 3) * t**2 + 1
        return a * t**3 - 5 * a * t**2 + 8 * a * t - 4 * a if t < 2 else 0.0

    out = np.zeros((scale * edge, edge))
    for i in range(scale * edge):
        centre = (i + 0.5) / scale - 0.5
        base = int(np.floor(centre))
        for tap in range(base - 1, base + 3):
            out[i, min(max(tap, 0), edge - 1)] += kernel(centre - tap)
    return out
