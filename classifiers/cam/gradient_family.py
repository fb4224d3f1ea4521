"""Maps that weight activations by gradients: from any layer by definition, and in closed form from pooled features.

Where the head sees nothing but the spatial mean of the activations, dy/dA is the same at every place of a channel,
gamma_k = dy/d(pooled_k) / (hw). Then one forward pass, and no pass back through the backbone, gives the maps of all
labels. Symbols: A the activations, K channels at h x w places; g = dy/dA; S_k the sum of A^k.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F  # noqa: N812  # as everyone writes it
from torch import Tensor

from classifiers.cam.target import Target, require_linear_head
from infra.errors import ShapeError

Definition = Callable[[Tensor, Tensor], Tensor]
"""From A and g, both (N, K, h, w), to the map (N, h, w)."""


def cam(target: Target) -> Tensor:
    """Return the class-activation maps ReLU(sum_k w_k A_k), (N, L, h, w).

    Raises:
        ConfigError: The head is not one linear layer on the pooled activations.

    Source: Zhou et al. 2016, arXiv:1512.04150, eq. 2; the ReLU is Grad-CAM's.
    """
    require_linear_head(target, "cam")
    return weighted_sum(target.activations, target.pooled_gradients)


def grad_cam(target: Target) -> Tensor:
    """Return the Grad-CAM maps ReLU(sum_k mean(g_k) A_k), (N, L, h, w).

    Source: Selvaraju et al. 2017, arXiv:1610.02391, eq. 1 and 2.
    """
    return _maps(target, grad_cam_map, lambda gamma: gamma)


def hires_cam(target: Target) -> Tensor:
    """Return the HiResCAM maps ReLU(sum_k g_k * A_k), (N, L, h, w).

    Source: Draelos and Carin 2020, arXiv:2011.08891, section 3.2.
    """
    return _maps(target, hires_cam_map, lambda gamma: gamma)


def x_grad_cam(target: Target) -> Tensor:
    """Return the XGrad-CAM maps ReLU(sum_k (sum(g_k A_k) / S_k) A_k), (N, L, h, w).

    Source: Fu et al. 2020, arXiv:2008.02312, eq. 8.
    """
    return _maps(target, x_grad_cam_map, lambda gamma: gamma)


def grad_cam_pp(target: Target) -> Tensor:
    """Return the Grad-CAM++ maps ReLU(sum_k (sum(alpha_k ReLU(g_k))) A_k), (N, L, h, w).

    alpha = g^2 / (2 g^2 + sum(A g^3)), on the logit itself, without the exponential of the original.

    Source: Chattopadhay et al. 2018, arXiv:1710.11063, eq. 10 to 19.
    """
    return (
        weighted_sum(target.activations, grad_cam_pp_weights(target))
        if target.is_pooled
        else _by_layer(target, grad_cam_pp_map)
    )


def layer_cam(target: Target) -> Tensor:
    """Return the LayerCAM maps ReLU(sum_k ReLU(g_k) * A_k), (N, L, h, w).

    Source: Jiang et al. 2021, doi:10.1109/TIP.2021.3089943, eq. 8 and 9.
    """
    return _maps(target, layer_cam_map, F.relu)


def grad_cam_map(activations: Tensor, gradients: Tensor) -> Tensor:
    """Return the Grad-CAM map of one label, ReLU(sum_k mean(g_k) A_k).

    Args:
        activations: A, output of the target layer, (N, K, h, w).
        gradients: g = dy/dA, same shape; y is the label's logit, before the sigmoid.

    Returns:
        (N, h, w), >= 0, in the unit of y; not rescaled, so maps stay comparable.

    Raises:
        ShapeError: The inputs are not 4-D, or their shapes differ.

    Source: Selvaraju et al. 2017, arXiv:1610.02391, eq. 1 and 2.
    """
    _check(activations, gradients)
    return _map(activations, gradients.mean(dim=(2, 3)))


def hires_cam_map(activations: Tensor, gradients: Tensor) -> Tensor:
    """Return the HiResCAM map of one label, ReLU(sum_k g_k * A_k); shapes, errors as `grad_cam_map`.

    Source: Draelos and Carin 2020, arXiv:2011.08891, section 3.2.
    """
    _check(activations, gradients)
    return F.relu((gradients * activations).sum(dim=1))


def x_grad_cam_map(activations: Tensor, gradients: Tensor) -> Tensor:
    """Return the XGrad-CAM map of one label, ReLU(sum_k (sum(g_k A_k) / S_k) A_k); shapes, errors as `grad_cam_map`.

    A channel whose activations add up to 0 has the mean gradient as its weight, the limit for constant gradients.

    Source: Fu et al. 2020, arXiv:2008.02312, eq. 8.
    """
    _check(activations, gradients)
    total = activations.sum(dim=(2, 3))
    share = (gradients * activations).sum(dim=(2, 3)) / total
    return _map(activations, torch.where(total == 0, gradients.mean(dim=(2, 3)), share))


def grad_cam_pp_map(activations: Tensor, gradients: Tensor) -> Tensor:
    """Return the Grad-CAM++ map of one label; shapes, errors as `grad_cam_map`, formula as `grad_cam_pp`."""
    return _map(activations, grad_cam_pp_layer_weights(activations, gradients))


def grad_cam_pp_layer_weights(activations: Tensor, gradients: Tensor) -> Tensor:
    """Return sum(alpha_k ReLU(g_k)) of one label, (N, K); errors as `grad_cam_map`, formula as `grad_cam_pp`."""
    _check(activations, gradients)
    return alpha_weights(activations, gradients, gradients.square(), gradients.pow(3))


def alpha_weights(activations: Tensor, first: Tensor, second: Tensor, third: Tensor) -> Tensor:
    """Return sum(alpha_k ReLU(g_k)), alpha = g2 / (2 g2 + sum(A) g3), (N, K).

    Args:
        activations: A, (N, K, h, w).
        first: g, same shape.
        second: g^2, or its mean over noisy inputs.
        third: g^3, or its mean over noisy inputs.

    Returns:
        (N, K); a place whose denominator is 0 counts as alpha = 0.

    Source: Chattopadhay et al. 2018, arXiv:1710.11063, eq. 19.
    """
    denominator = 2 * second + activations.sum(dim=(2, 3), keepdim=True) * third
    alpha = second / denominator.masked_fill(denominator == 0, torch.inf)
    return (alpha * F.relu(first)).sum(dim=(2, 3))


def layer_cam_map(activations: Tensor, gradients: Tensor) -> Tensor:
    """Return the LayerCAM map of one label, ReLU(sum_k ReLU(g_k) * A_k); shapes, errors as `grad_cam_map`.

    Source: Jiang et al. 2021, doi:10.1109/TIP.2021.3089943, eq. 8 and 9.
    """
    _check(activations, gradients)
    return F.relu((F.relu(gradients) * activations).sum(dim=1))


def grad_cam_pp_weights(target: Target) -> Tensor:
    """Return the weights of Grad-CAM++ in closed form, hw ReLU(gamma_k) / (2 + gamma_k S_k), (N, L, K).

    Args:
        target: Looks at the last stage.

    Returns:
        >= 0 where the activations are; a weight whose denominator is 0 is 0.

    Source: Chattopadhay et al. 2018, arXiv:1710.11063, eq. 19, for a gradient that is constant over space.
    """
    a = target.activations
    places = a.shape[2] * a.shape[3]
    gamma = target.pooled_gradients / places
    gamma = gamma if gamma.ndim == 3 else gamma[None]
    denominator = 2 + gamma * a.sum(dim=(2, 3))[:, None]
    return places * F.relu(gamma) / denominator.masked_fill(denominator == 0, torch.inf)


def weighted_sum(activations: Tensor, weights: Tensor) -> Tensor:
    """Return ReLU(sum_k weight_k A_k) of every label.

    Args:
        activations: A, (N, K, h, w).
        weights: (L, K), the same for every patch, or (N, L, K).

    Returns:
        (N, L, h, w).
    """
    equation = "nkhw,lk->nlhw" if weights.ndim == 2 else "nkhw,nlk->nlhw"
    return F.relu(torch.einsum(equation, activations, weights))


def _maps(target: Target, definition: Definition, weight: Callable[[Tensor], Tensor]) -> Tensor:
    """Return the maps by the closed form, whose weights are a function of gamma, or by the definition."""
    if not target.is_pooled:
        return _by_layer(target, definition)
    a = target.activations
    gamma = target.pooled_gradients / (a.shape[2] * a.shape[3])
    return weighted_sum(a, weight(gamma))


def _by_layer(target: Target, definition: Definition) -> Tensor:
    activations, gradients = target.gradients()
    return torch.stack([definition(activations, gradient) for gradient in gradients], dim=1)


def _map(activations: Tensor, weights: Tensor) -> Tensor:
    return F.relu(torch.einsum("nkhw,nk->nhw", activations, weights))


def _check(activations: Tensor, gradients: Tensor) -> None:
    if activations.ndim != 4 or activations.shape != gradients.shape:
        raise ShapeError(
            "activation maps need two (N, K, h, w) tensors of one shape, "
            f"got {tuple(activations.shape)} and {tuple(gradients.shape)}"
        )
