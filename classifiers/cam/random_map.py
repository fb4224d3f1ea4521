"""Random maps: the floor that every method has to rise above."""

import torch
from torch import Tensor

from classifiers.cam.options import RandomOptions
from classifiers.cam.target import Target


def random_map(target: Target, options: RandomOptions) -> Tensor:
    """Return uniform noise in [0, 1) at the layer's resolution, (N, 1, h, w), the same for a patch in any batch."""
    a = target.activations
    rows = [torch.rand(1, *a.shape[2:], generator=target.generator(n, options.seed)) for n in range(len(a))]
    return torch.stack(rows).to(a)
