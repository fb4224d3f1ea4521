"""Activations of a layer and their gradients by autograd, leaving the model as it was."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from classifiers.network import Classifier
from infra.errors import ShapeError, UnknownNameError


@contextmanager
def evaluation_mode(model: nn.Module) -> Iterator[None]:
    """Put every module into evaluation mode, and each back into its own mode afterwards."""
    training = [module for module in model.modules() if module.training]
    model.eval()
    try:
        yield
    finally:
        for module in training:
            module.training = True


def label_gradients(
    model: Classifier, x: Tensor, target_layer: str, labels: tuple[int, ...] | None
) -> tuple[Tensor, list[Tensor]]:
    """Return the activations of a layer and the gradient of each label's logit with respect to them.

    Args:
        model: A classifier in evaluation mode; no parameter gets a gradient, no hook stays.
        x: Standardised input, (N, C, H, W).
        target_layer: Name of a module of the backbone, such as `layer3`.
        labels: Label indices; None: all.

    Returns:
        A, (N, K, h, w), and dy/dA of each label, of the same shape; detached.

    Raises:
        UnknownNameError: The backbone has no such layer.
        ShapeError: The layer's output is not 4-D, or no logit depends on it.
    """
    modules = dict(model.backbone.named_modules())
    if not target_layer or target_layer not in modules:
        children = ", ".join(name for name, _ in model.backbone.named_children())
        raise UnknownNameError(f"the backbone has no layer {target_layer!r}: choose one of {children}, or one inside")
    leaves: list[Tensor] = []

    def keep(_module: nn.Module, _inputs: object, output: object) -> Tensor:
        if not isinstance(output, Tensor) or output.ndim != 4:
            shape = tuple(output.shape) if isinstance(output, Tensor) else type(output).__name__
            raise ShapeError(f"layer {target_layer!r} must give one (N, K, h, w) tensor, got {shape}")
        leaves.append(output.detach().clone().requires_grad_())
        return leaves[-1].clone()  # in-place layers that follow must not write into the leaf

    handle = modules[target_layer].register_forward_hook(keep)
    try:
        with torch.inference_mode(mode=False), torch.enable_grad():
            # An inference tensor cannot be saved for the backward pass; its clone can.
            logits = model(x.clone() if x.is_inference() else x)
            chosen = labels if labels is not None else tuple(range(logits.shape[1]))
            gradients = [_gradient(logits[:, label].sum(), leaves, target_layer) for label in chosen]
    finally:
        handle.remove()
    return leaves[0].detach(), gradients


def _gradient(logit: Tensor, leaves: list[Tensor], target_layer: str) -> Tensor:
    if len(leaves) != 1:
        raise ShapeError(f"layer {target_layer!r} must run once in a forward pass, it ran {len(leaves)} times")
    gradient: Tensor | None = None
    if logit.requires_grad:
        (gradient,) = torch.autograd.grad(logit, leaves, retain_graph=True, allow_unused=True)
    if gradient is None:
        raise ShapeError(f"no logit depends on layer {target_layer!r}: choose a layer on the way to the head")
    return gradient.detach()
