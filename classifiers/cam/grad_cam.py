"""Grad-CAM: by definition from any layer's gradients, and in closed form for heads that see only pooled features."""

import torch
import torch.nn.functional as F  # noqa: N812  # as everyone writes it
from torch import Tensor, nn

from classifiers.cam.gradients import label_gradients
from classifiers.network import Classifier, pool
from infra.errors import ShapeError


def grad_cam(activations: Tensor, gradients: Tensor) -> Tensor:
    """Return the Grad-CAM map of one class, ReLU(sum_k a_k A_k).

    Args:
        activations: A, output of the target layer, (N, K, h, w).
        gradients: dy/dA, same shape; y is the class logit, before the sigmoid.

    Returns:
        (N, h, w), >= 0, in the unit of y; not rescaled, so maps stay comparable.

    Raises:
        ShapeError: The inputs are not 4-D, or their shapes differ.

    Source: Selvaraju et al. 2017, arXiv:1610.02391, eq. 1 (a_k) and 2.
    """
    if activations.ndim != 4 or activations.shape != gradients.shape:
        raise ShapeError(
            "grad_cam needs two (N, K, h, w) tensors of one shape, "
            f"got {tuple(activations.shape)} and {tuple(gradients.shape)}"
        )
    weights = gradients.mean(dim=(2, 3))  # a_k, (N, K)
    return F.relu(torch.einsum("nkhw,nk->nhw", activations, weights))


def pooled_gradients(activations: Tensor, head: nn.Module, labels: tuple[int, ...]) -> Tensor:
    """Return dy/d(pooled feature) of each label, hw times the gradient that every place of a channel shares.

    Args:
        activations: A, (N, K, h, w), whose spatial mean is all that the head sees.
        head: From (N, K) to logits (N, all labels); in evaluation mode.
        labels: Label indices, L of them.

    Returns:
        (L, K) for a linear head, where it is the same for every patch; (N, L, K) otherwise.
    """
    if isinstance(head, nn.Linear):
        return head.weight.detach()[list(labels)]
    with torch.inference_mode(mode=False), torch.enable_grad():
        pooled = pool(activations.detach().clone()).requires_grad_()
        logits = head(pooled.to(next(head.parameters()).dtype))
        return torch.stack(
            [torch.autograd.grad(logits[:, label].sum(), pooled, retain_graph=True)[0] for label in labels], dim=1
        )


def grad_cam_from_features(activations: Tensor, head: nn.Module, labels: tuple[int, ...] | None = None) -> Tensor:
    """Return the Grad-CAM maps of many labels from activations at hand, without a pass through the backbone.

    A head that sees only the pooled features makes dy/dA constant over space, gamma_k = dy/d(pooled_k) / (hw), so the
    map is ReLU(sum_k gamma_k A_k).

    Args:
        activations: A, output of the last convolutional stage, (N, K, h, w); half precision is raised to float32.
        head: From pooled features (N, K) to logits (N, all labels).
        labels: Label indices, L of them; None: all.

    Returns:
        (N, L, h, w), >= 0, in the unit of the logits; detached.

    Raises:
        ShapeError: The activations are not 4-D.

    Source: Selvaraju et al. 2017, arXiv:1610.02391, section 3.1 and appendix A.
    """
    if activations.ndim != 4:
        raise ShapeError(f"grad_cam_from_features needs activations (N, K, h, w), got {tuple(activations.shape)}")
    dtype = torch.promote_types(activations.dtype, torch.float32)
    with torch.autocast(activations.device.type, enabled=False):
        a = activations.detach().to(dtype)
        gradients = pooled_gradients(a, head, labels if labels is not None else all_labels(head, a))
        equation = "nkhw,lk->nlhw" if gradients.ndim == 2 else "nkhw,nlk->nlhw"
        places = a.shape[2] * a.shape[3]
        return F.relu(torch.einsum(equation, a, gradients.to(dtype) / places))


def all_labels(head: nn.Module, activations: Tensor) -> tuple[int, ...]:
    """Return 0 … L-1 for a head's L labels."""
    if isinstance(head, nn.Linear):
        return tuple(range(head.out_features))
    with torch.no_grad():
        pooled = pool(activations[:1]).to(next(head.parameters()).dtype)
        return tuple(range(head(pooled).shape[1]))


def explain_grad_cam(model: Classifier, x: Tensor, labels: tuple[int, ...] | None, target_layer: str | None) -> Tensor:
    """Return the Grad-CAM maps (N, L, h, w) of a model in evaluation mode; see `explain.explain`.

    The last convolutional stage takes the closed form: one forward pass, no backward pass. Other layers take one
    forward pass and one backward pass per label.
    """
    if target_layer in {None, model.target_layer}:
        with torch.no_grad():
            activations = model.features(x)
        return grad_cam_from_features(activations, model.head, labels)
    activations, gradients = label_gradients(model, x, str(target_layer), labels)
    return torch.stack([grad_cam(activations, g) for g in gradients], dim=1)
