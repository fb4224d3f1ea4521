"""Ablation-CAM: the weight of a channel is what the logit loses without it."""

from functools import partial

import torch
from torch import Tensor

from classifiers.cam.gradient_family import weighted_sum
from classifiers.cam.gradients import hooked_layer
from classifiers.cam.target import Target, images_at_once
from classifiers.network import pool

_NUMBERS_AT_ONCE = 1 << 24
"""Ablated pooled vectors held at once, in numbers: 64 MB."""


def ablation_cam(target: Target) -> Tensor:
    """Return the Ablation-CAM maps ReLU(sum_k (y - y without channel k) A_k), (N, L, h, w).

    The drop is not divided by y, whose sign varies. With the last stage as target, a channel is ablated in the pooled
    vector: with a linear head the drop is w_k mean(A_k), and with others the head alone runs once a channel. At any
    other layer the network runs once for each channel that is not zero anyway.

    Raises:
        UnknownNameError: The backbone has no such layer.
        ShapeError: The layer's output is not 4-D, or it does not run once.

    Source: Ramaswamy et al. 2020, doi:10.1109/WACV45572.2020.9093360, eq. 3 and 4, without the division of eq. 3.
    """
    if not target.is_pooled:
        return weighted_sum(target.activations, _drops_at_layer(target))
    pooled = pool(target.activations)
    if target.linear_head is not None:
        return weighted_sum(target.activations, target.pooled_gradients * pooled[:, None])
    return weighted_sum(target.activations, _drops_of_head(target, pooled))


def _drops_of_head(target: Target, pooled: Tensor) -> Tensor:
    """Return the drops (N, L, K) by ablating one pooled feature after the other."""
    channels = pooled.shape[1]
    whole = target.model.classify(pooled)[:, list(target.labels)]
    at_once = max(1, _NUMBERS_AT_ONCE // channels)
    drops = []
    for vector, logits in zip(pooled, whole, strict=True):
        ablated = []
        for part in torch.split(torch.arange(channels, device=pooled.device), at_once):
            without = vector.repeat(len(part), 1)
            without[torch.arange(len(part), device=pooled.device), part] = 0
            ablated.append(target.model.classify(without)[:, list(target.labels)])
        drops.append((logits - torch.cat(ablated)).T.to(pooled.dtype))
    return torch.stack(drops)


def _drops_at_layer(target: Target) -> Tensor:
    """Return the drops (N, L, K) by passes through the network, a channel of the layer's output set to 0 in each."""
    a = target.activations
    drops = a.new_zeros(len(a), len(target.labels), a.shape[1])
    for row, image in enumerate(target.x):
        alive = (a[row] != 0).flatten(1).any(dim=1).nonzero().flatten()
        logits = target.model(image[None])[:, list(target.labels)]
        for part in torch.split(alive, images_at_once(target.x)):
            with hooked_layer(target.model, target.layer_name, partial(_without, channels=part)):
                ablated = target.model(image.expand(len(part), -1, -1, -1))
            drops[row, :, part] = (logits - ablated[:, list(target.labels)]).T.to(a.dtype)
    return drops


def _without(output: Tensor, channels: Tensor) -> Tensor:
    ablated = output.clone()
    ablated[torch.arange(len(output), device=output.device), channels] = 0
    return ablated
