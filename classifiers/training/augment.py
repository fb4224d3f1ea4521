"""Augmentation of batches on their device: the symmetries of the square, and mixup."""

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from classifiers.training.random_streams import Stream, generator
from infra.errors import ShapeError

SYMMETRIES = 8
"""Ways to turn and mirror a square: the codes of `turn`."""


def draw_turns(seed: int, epoch: int, step: int, n_total: int) -> NDArray[np.int64]:
    """Return the codes of `turn` for each place of the whole batch of a step, (n_total,), alike on all workers."""
    return generator(Stream.TURNS, seed, epoch, step).integers(SYMMETRIES, size=n_total)


def turn(x: Tensor, codes: NDArray[np.int64]) -> Tensor:
    """Return each image flipped and turned, one of the 8 symmetries of the square.

    Args:
        x: (N, C, H, W), H = W.
        codes: (N,), 0 to 7: quarter turns are `code % 4`, and from 4 on the image is mirrored left to right first.

    Returns:
        Same shape, dtype, device and memory format.

    Raises:
        ShapeError: The images are not square.
    """
    if x.shape[2] != x.shape[3]:
        raise ShapeError(f"only square images can be turned by 90 degrees, got {tuple(x.shape)}: switch augment off")
    turned = torch.empty_like(x)
    for code in range(SYMMETRIES):
        index = torch.from_numpy(np.flatnonzero(codes == code)).to(x.device)
        images = x[index]
        turned[index] = torch.rot90(images.flip(3) if code >= 4 else images, code % 4, dims=(2, 3))
    return turned


@dataclass(frozen=True, slots=True)
class Mix:
    """How the samples of a batch are mixed, each with another one of the same worker's."""

    share: float
    """Of the sample itself, 0 to 1; the rest is its partner's."""
    partners: NDArray[np.int64]
    """Index of each sample's partner, (n,)."""

    def __call__(self, values: Tensor) -> Tensor:
        """Return share * values + (1 - share) * partners' values, (n, ...), of the same dtype."""
        return self.share * values + (1 - self.share) * self.partners_of(values)

    def partners_of(self, values: Tensor) -> Tensor:
        """Return the values of the partners, (n, ...)."""
        return values[torch.from_numpy(self.partners).to(values.device)]


def draw_mix(alpha: float, seed: int, epoch: int, step: int, rank: int, n: int) -> Mix:
    """Return the mix of a step: one share for all workers, and partners among the samples of this one.

    Args:
        alpha: Both parameters of the Beta distribution of the share, > 0; small: hardly mixed, 1: uniform.
        seed: Of the run.
        epoch: From 0.
        step: Of the epoch, from 0.
        rank: This worker's number.
        n: This worker's samples.

    Source: Zhang et al. 2018, arXiv:1710.09412, section 2 and figure 1.
    """
    share = float(generator(Stream.MIX_SHARE, seed, epoch, step).beta(alpha, alpha))
    return Mix(share, generator(Stream.MIX_PARTNERS, seed, epoch, step, rank).permutation(n))
