"""Hessian-CIAM: where the curvature of the outputs meets the activations, without a label."""

import torch
import torch.nn.functional as F  # noqa: N812  # as everyone writes it
from torch import Tensor, nn

from classifiers.cam.eigen_cam import first_component, signed
from classifiers.cam.gradients import gradient_of, layer_graph
from classifiers.cam.target import Activation, Target
from classifiers.network import pool


def hessian_ciam(target: Target) -> Tensor:
    """Return the Hessian-CIAM maps, (N, 1, h, w), >= 0.

    H is the Hessian of an energy E of the logits with respect to the activations A, v a vector of ones: weights
    |Hv| / ||Hv||, the norm over all channels and places of one patch; A_H = ReLU(weights * A), smoothed by projection
    on its first right-singular vector, its sign that of the correlation with the sum of A_H over channels, rectified.
    E = sum of softplus(y_c), whose gradient is the vector of probabilities; for softmax models logsumexp(y).

    A patch whose Hv is zero gets NaN: there is no direction to weight by, and a map of zeros would be an answer.

    Source: Qian et al. 2023, doi:10.1007/978-3-031-43895-0_17, section 3, eq. 2 and 3, with exact second derivatives.
    """
    a = target.activations
    product = _hessian_product(target)
    product = product / product.abs().amax(dim=(1, 2, 3), keepdim=True)  # 0 / 0 is NaN, on purpose
    places = product.expand_as(a).square().sum(dim=(1, 2, 3), keepdim=True)
    weighted = F.relu(product.abs() / places.sqrt() * a).flatten(2).transpose(1, 2)  # A_H, (N, hw, K)
    known = weighted.isfinite().all(dim=(1, 2))
    smooth = weighted.new_full(weighted.shape[:2], torch.nan)
    if bool(known.any()):
        chosen = weighted[known]
        smooth[known] = F.relu(signed(first_component(chosen), chosen.sum(dim=2)))
    return smooth.reshape(len(a), 1, *a.shape[2:])


def _hessian_product(target: Target) -> Tensor:
    """Return Hv up to a factor of each patch's own, (N, K, h, w), or (N, K, 1, 1) where it is constant over space."""
    if not target.is_pooled:
        return _product_at_layer(target)
    pooled = pool(target.activations)
    head = target.model.head
    if isinstance(head, nn.Linear):
        logits = target.model.classify(pooled)
        weight = head.weight.to(logits.dtype)
        product = _curvature(logits, weight.sum(dim=1), target.activation) @ weight
        return product[:, :, None, None].to(target.activations.dtype)
    with torch.inference_mode(mode=False), torch.enable_grad():
        leaf = pooled.clone().requires_grad_()
        return _second_derivative(_energy(target.model.classify(leaf), target.activation), leaf)[:, :, None, None]


def _curvature(logits: Tensor, direction: Tensor, activation: Activation) -> Tensor:
    """Return the Hessian of the energy with respect to the logits times a direction, (N, L)."""
    if activation == "softmax":
        # What all logits share is no direction of the softmax's; left in, it cancels once the largest p rounds to 1.
        direction = direction - direction[logits.argmax(dim=1)][:, None]
        probs = logits.softmax(dim=1)
        along = probs * direction
        return along - probs * along.sum(dim=1, keepdim=True)
    # p (1 - p) without the difference, which is 0 already for logits of 17
    return logits.sigmoid() * (-logits).sigmoid() * direction


def _product_at_layer(target: Target) -> Tensor:
    logits, leaf = layer_graph(target.model, target.x, target.layer_name)
    with torch.inference_mode(mode=False), torch.enable_grad():
        gradient = gradient_of(_energy(logits, target.activation), leaf, target.layer_name, differentiable=True)
        return _derivative(gradient.sum(), leaf)


def _second_derivative(energy: Tensor, leaf: Tensor) -> Tensor:
    (gradient,) = torch.autograd.grad(energy, leaf, create_graph=True)
    return _derivative(gradient.sum(), leaf)


def _derivative(value: Tensor, leaf: Tensor) -> Tensor:
    """Return the gradient of a number; zeros where the network is linear, so that it does not depend on the leaf."""
    if not value.requires_grad:
        return torch.zeros_like(leaf)
    (product,) = torch.autograd.grad(value, leaf, allow_unused=True)
    return torch.zeros_like(leaf) if product is None else product.detach()


def _energy(logits: Tensor, activation: Activation) -> Tensor:
    """Return the sum of E over patches, in terms whose second derivatives keep their digits for confident patches."""
    if activation == "softmax":
        # logsumexp with the largest logit taken out: its own probability never enters as 1 - p.
        top = logits.argmax(dim=1, keepdim=True)
        peak = logits.gather(1, top)
        return (peak[:, 0] + (logits - peak).exp().scatter(1, top, 0.0).sum(dim=1).log1p()).sum()
    # softplus(y) = y + softplus(-y): the curvature of softplus itself rounds to 0 from logits of 17 on.
    return torch.where(logits > 0, logits + F.softplus(-logits), F.softplus(logits)).sum()
