"""Activations of a layer and their gradients by autograd, leaving the model as it was."""

from collections.abc import Callable, Iterator
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


def layer_module(model: Classifier, layer: str) -> nn.Module:
    """Return the module of the backbone that a layer's name stands for, such as `layer3`.

    Raises:
        UnknownNameError: The backbone has no such layer.
    """
    modules: dict[str, nn.Module] = dict(model.backbone.named_modules())
    if not layer or layer not in modules:
        children = ", ".join(name for name, _ in model.backbone.named_children())
        raise UnknownNameError(f"the backbone has no layer {layer!r}: choose one of {children}, or one inside")
    return modules[layer]


def layer_activations(model: Classifier, x: Tensor, layer: str) -> Tensor:
    """Return the output of a layer, (N, K, h, w), without gradients.

    Args:
        model: A classifier in evaluation mode; no hook stays.
        x: Standardised input, (N, C, H, W).
        layer: Name of a module of the backbone, such as `layer3`.

    Raises:
        UnknownNameError: The backbone has no such layer.
        ShapeError: The layer's output is not 4-D, or it does not run once in a forward pass.
    """
    with torch.no_grad():
        return _forward_to(model, x, layer, leaf=False)[1]


def label_gradients(
    model: Classifier, x: Tensor, layer: str, labels: tuple[int, ...]
) -> tuple[Tensor, Iterator[Tensor]]:
    """Return the activations of a layer, and label by label the gradient of the logit with respect to them.

    Args:
        model: A classifier in evaluation mode; no parameter gets a gradient, no hook stays.
        x: Standardised input, (N, C, H, W).
        layer: Name of a module of the backbone, such as `layer3`.
        labels: Label indices.

    Returns:
        A, (N, K, h, w), and dy/dA of each label, of the same shape, all of one forward pass; detached.

    Raises:
        UnknownNameError: The backbone has no such layer.
        ShapeError: The layer's output is not 4-D, it does not run once, or no logit depends on it.
    """
    logits, leaf = layer_graph(model, x, layer)

    def gradients() -> Iterator[Tensor]:
        for label in labels:
            with torch.inference_mode(mode=False), torch.enable_grad():
                value = logits[:, label].sum()
            yield gradient_of(value, leaf, layer)

    return leaf.detach(), gradients()


def layer_graph(model: Classifier, x: Tensor, layer: str) -> tuple[Tensor, Tensor]:
    """Return the logits (N, all labels) and the activations of a layer, the leaf of which they are a function.

    Args:
        model: A classifier in evaluation mode; no hook stays.
        x: Standardised input, (N, C, H, W).
        layer: Name of a module of the backbone, such as `layer3`.

    Raises:
        UnknownNameError: The backbone has no such layer.
        ShapeError: The layer's output is not 4-D, or it does not run once.
    """
    with torch.inference_mode(mode=False), torch.enable_grad():
        # An inference tensor cannot be saved for the backward pass; its clone can.
        logits, leaf = _forward_to(model, x.clone() if x.is_inference() else x, layer, leaf=True)
    return logits, leaf


def gradient_of(value: Tensor, leaf: Tensor, layer: str, *, differentiable: bool = False) -> Tensor:
    """Return the gradient of a number with respect to a layer's activations; the graph stays.

    Args:
        value: A function of `layer_graph`'s logits, of no dimension.
        leaf: The activations.
        layer: Name of the layer, for messages.
        differentiable: Return a gradient that can be differentiated again.

    Returns:
        Of the activations' shape; detached, unless differentiable.

    Raises:
        ShapeError: The number does not depend on the layer.
    """
    gradient: Tensor | None = None
    if value.requires_grad:
        with torch.inference_mode(mode=False), torch.enable_grad():
            (gradient,) = torch.autograd.grad(
                value, leaf, retain_graph=True, create_graph=differentiable, allow_unused=True
            )
    if gradient is None:
        raise ShapeError(f"no logit depends on layer {layer!r}: choose a layer on the way to the head")
    return gradient if differentiable else gradient.detach()


@contextmanager
def hooked_layer(model: Classifier, layer: str, change: Callable[[Tensor], Tensor]) -> Iterator[None]:
    """Let the network go on from what a function makes of a layer's output, (N, K, h, w), until the context ends.

    Raises:
        UnknownNameError: The backbone has no such layer.
        ShapeError: On a forward pass: the layer's output is not 4-D.
    """
    module = layer_module(model, layer)

    def seen(_module: nn.Module, _inputs: object, output: object) -> Tensor:
        if not isinstance(output, Tensor) or output.ndim != 4:
            shape = tuple(output.shape) if isinstance(output, Tensor) else type(output).__name__
            raise ShapeError(f"layer {layer!r} must give one (N, K, h, w) tensor, got {shape}")
        return change(output)

    handle = module.register_forward_hook(seen)
    try:
        yield
    finally:
        handle.remove()


def _forward_to(model: Classifier, x: Tensor, layer: str, *, leaf: bool) -> tuple[Tensor, Tensor]:
    """Return logits and a layer's output; as a leaf, the rest of the network depends on it alone."""
    outputs: list[Tensor] = []

    def keep(output: Tensor) -> Tensor:
        kept = output.detach().clone()
        outputs.append(kept.requires_grad_() if leaf else kept)
        return outputs[-1].clone()  # in-place layers that follow must not write into what is kept

    with hooked_layer(model, layer, keep):
        logits = model(x)
    if len(outputs) != 1:
        raise ShapeError(f"layer {layer!r} must run once in a forward pass, it ran {len(outputs)} times")
    return logits, outputs[0]
