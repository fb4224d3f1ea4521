"""SmoothGrad-CAM++: Grad-CAM++ with derivatives averaged over noisy copies of the input."""

from collections.abc import Iterator
from dataclasses import dataclass
from math import inf

import torch
from torch import Tensor

from classifiers.cam.gradient_family import alpha_weights, grad_cam_pp, weighted_sum
from classifiers.cam.target import Target, check_seed
from infra.errors import ConfigError


@dataclass(frozen=True, slots=True)
class SmoothOptions:
    """Options of SmoothGrad-CAM++."""

    samples: int = 8
    """Noisy copies of each input."""
    noise: float = 0.3
    """Standard deviation of the noise, in standardised units."""
    seed: int = 0
    """Seed of the noise, beside each patch's own."""

    def __post_init__(self) -> None:
        if self.samples < 1 or not 0 <= self.noise < inf:
            raise ConfigError(
                f"smooth_grad_cam_pp needs samples >= 1 and noise >= 0, got {self.samples} and {self.noise}"
            )
        check_seed("smooth_grad_cam_pp", self.seed)


def smooth_grad_cam_pp(target: Target, options: SmoothOptions) -> Tensor:
    """Return the SmoothGrad-CAM++ maps, (N, L, h, w).

    g, g^2 and g^3 of Grad-CAM++ are means over noisy inputs, A is that of the clean one. With a linear head on the
    last stage g does not depend on the input, so the map is that of Grad-CAM++ and is computed as such.

    Source: Omeiza et al. 2019, arXiv:1908.01224, section 3.
    """
    if target.linear_head is not None:
        return grad_cam_pp(target)
    means = _mean_powers(target, options)
    a = target.activations
    weights = [alpha_weights(a, *(mean[:, label] for mean in means)) for label in range(len(target.labels))]
    return weighted_sum(a, torch.stack(weights, dim=1))


def _mean_powers(target: Target, options: SmoothOptions) -> list[Tensor]:
    """Return the means of g, g^2 and g^3 over the noisy inputs, (N, L, K, h, w) each."""
    a = target.activations
    rows = []
    for row, image in enumerate(target.x):
        noise = torch.randn(
            options.samples, *image.shape, generator=target.generator(row, options.seed), dtype=torch.float32
        )
        noisy = image + options.noise * noise.to(image)
        sums = [a.new_zeros(len(target.labels), *a.shape[1:]) for _ in range(3)]
        for sample in noisy:
            seen = Target(target.model, sample[None], target.labels, target.layer, target.activation)
            for label, gradient in enumerate(_gradients(seen)):
                for power, total in enumerate(sums, start=1):
                    total[label] += gradient**power
        rows.append([total / options.samples for total in sums])
    return [torch.stack(of_power) for of_power in zip(*rows, strict=True)]


def _gradients(target: Target) -> Iterator[Tensor]:
    """Yield dy/dA of one input and label after label, (K, h, w)."""
    if target.is_pooled:
        shape = target.activations.shape[1:]
        of_pooled = target.pooled_gradients.expand(1, -1, -1) / (shape[1] * shape[2])
        yield from of_pooled[0, :, :, None, None].expand(-1, *shape)
    else:
        yield from (gradient[0] for gradient in target.gradients()[1])
