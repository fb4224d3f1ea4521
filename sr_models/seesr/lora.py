"""A linear layer tuned by low-rank matrices, LoRA.

Source: Hu et al. 2021, arXiv:2106.09685; names of parameters, order of blocks and scale as in the authors' release,
loralib, with its default alpha of 1.
"""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812 - torch's own abbreviation

RANK = 8
"""Rank of the change of a weight."""

SCALE = 1 / RANK
"""Factor of B A in the change of a weight, alpha / rank."""


class LoraLinear(nn.Linear):
    """x -> x W'^T + b, where W' is W with SCALE * B A added to some of its blocks of rows.

    W' is made anew in every call: next to the product with x that costs nothing, and it is never out of date. With
    B = 0, as it begins, W' = W.
    """

    def __init__(self, inner: int, outer: int, tuned: tuple[bool, ...] = (True,)) -> None:
        """Make the layer.

        Args:
            inner: Channels of x.
            outer: Channels of the output, a multiple of the number of blocks.
            tuned: For each block of rows of W, all of one height, whether it has a B A; (True, False, True) tunes
                query and value of the three.
        """
        super().__init__(inner, outer)
        self.tuned = tuned
        blocks = sum(tuned)
        self.lora_A = nn.Parameter(torch.empty(blocks * RANK, inner))
        self.lora_B = nn.Parameter(torch.zeros(outer // len(tuned) * blocks, RANK))
        nn.init.kaiming_uniform_(self.lora_A, a=math.sqrt(5))

    def forward(self, x: Tensor) -> Tensor:
        """Return (..., outer) of x, (..., inner)."""
        return F.linear(x, self.tuned_weight(), self.bias)

    def tuned_weight(self) -> Tensor:
        """Return W', (outer, inner)."""
        blocks = sum(self.tuned)
        changes = self.lora_B.view(blocks, -1, RANK) @ self.lora_A.view(blocks, RANK, -1)  # (blocks, rows, inner)
        change = iter(changes)
        weights = self.weight.chunk(len(self.tuned))
        return torch.cat(
            [weight + SCALE * next(change) if on else weight for weight, on in zip(weights, self.tuned, strict=True)]
        )
