"""SmoothGrad-CAM++: Grad-CAM++ with derivatives averaged over noisy copies of the input."""

from collections.abc import Iterator

import torch
import torch.nn.functional as F  # noqa: N812  # as everyone writes it
from torch import Tensor

from classifiers.cam.gradient_family import alpha_weights, grad_cam_pp, weighted_sum
from classifiers.cam.options import SmoothOptions
from classifiers.cam.target import Target


def smooth_grad_cam_pp(target: Target, options: SmoothOptions) -> Tensor:
    """Return the SmoothGrad-CAM++ maps, (N, L, h, w).

    g, g^2 and g^3 of Grad-CAM++ are means over noisy inputs, A is that of the clean one. With a linear head on the
    last stage g does not depend on the input, so the map is that of Grad-CAM++ and is computed as such.

    Source: Omeiza et al. 2019, arXiv:1908.01224, section 3.
    """
    if target.linear_head is not None:
        return grad_cam_pp(target)
    # Gradients are as large as the activations, for every label: no more than those of one patch are held.
    weights = [_weights(target, row, options) for row in range(len(target.x))]
    return weighted_sum(target.activations, torch.stack(weights))


def _weights(target: Target, row: int, options: SmoothOptions) -> Tensor:
    """Return the weights of Grad-CAM++ of one patch, from the means of g, g^2 and g^3 over noisy inputs, (L, K)."""
    image, a = target.x[row], target.activations[row]
    noise = torch.randn(
        options.samples, *image.shape, generator=target.generator(row, options.seed), dtype=torch.float32
    )
    noisy = image + options.noise * noise.to(image)
    # Gradients that are constant over space are kept once.
    sums = [a.new_zeros(len(target.labels), *(a.shape[:1] if target.is_pooled else a.shape)) for _ in range(3)]
    for sample in noisy:
        seen = Target(target.model, sample[None], target.labels, target.layer, target.activation)
        for label, gradient in enumerate(_gradients(seen)):
            for power, total in enumerate(sums, start=1):
                total[label] += gradient**power
    first, second, third = (total / options.samples for total in sums)
    if target.is_pooled:
        # alpha is constant over space too: its sum over hw places is hw times itself.
        denominator = 2 * second + a.sum(dim=(1, 2)) * third
        alpha = second / denominator.masked_fill(denominator == 0, torch.inf)
        return a.shape[1] * a.shape[2] * alpha * F.relu(first)
    return alpha_weights(a[None].expand_as(first), first, second, third)


def _gradients(target: Target) -> Iterator[Tensor]:
    """Yield dy/dA of one input and label after label, (K, h, w), or (K,) where it is constant over space."""
    if target.is_pooled:
        places = target.activations.shape[2] * target.activations.shape[3]
        yield from target.pooled_gradients.expand(1, -1, -1)[0] / places
    else:
        yield from (gradient[0] for gradient in target.gradients()[1])
