"""Random weights with which every parameter of a network matters."""

import torch
from torch import nn


def shaken[Network: nn.Module](network: Network, seed: int = 0) -> Network:
    """Add noise to every parameter, LoRA's zeros and the biases among them, so that none can be left out unnoticed."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, value in network.named_parameters():
            spread = 1.0 if name.endswith(("relative_position_bias_table", "lora_B")) else 0.2
            value.add_(spread * torch.randn(value.shape, generator=generator))
    return network.eval().requires_grad_(requires_grad=False)
