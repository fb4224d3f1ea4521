"""Oracles: the paper's finite difference of gradients in float64, and the formulas transcribed with full matrices."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F  # noqa: N812  # as everyone writes it
from torch import Tensor, nn

from classifiers.cam.explain import explain
from classifiers.cam.hessian_ciam import hessian_ciam
from classifiers.cam.target import Activation, Target
from classifiers.network import Classifier, pool
from tests.classifiers.cam.small_networks import images, network


def energy(logits: Tensor, activation: Activation) -> Tensor:
    return torch.log(torch.exp(logits).sum()) if activation == "softmax" else torch.log1p(torch.exp(logits)).sum()


def transcribed(model: Classifier, image: Tensor, layer: str, activation: Activation) -> Tensor:
    """Eq. 2 and 3 of the paper: the gradient at A + r, less that at A, over r; r both ways, which errs less."""
    a = Target(model, image[None], (0,), layer).activations.detach()

    def gradient(shift: float) -> Tensor:
        leaf = (a + shift).requires_grad_()
        handle = model.backbone.get_submodule(layer).register_forward_hook(lambda _m, _i, _o: leaf)
        value = energy(model(image[None])[0], activation)
        handle.remove()
        return torch.autograd.grad(value, leaf)[0]

    r = 1e-4
    hv = ((gradient(r) - gradient(-r)) / (2 * r))[0]
    return map_of(hv, a[0])


def map_of(hv: Tensor, a: Tensor) -> Tensor:
    """The map of one patch from Hv and A, (K, h, w) both."""
    weights = hv.abs() / hv.square().sum().sqrt()
    a_h = (weights * a).clamp(min=0)
    total = a_h.sum(dim=0)
    matrix = a_h.flatten(1).T.numpy()
    _, _, vt = np.linalg.svd(matrix)
    smooth = matrix @ vt[0]
    if np.corrcoef(smooth, total.flatten().numpy())[0, 1] <= 0:
        smooth = -smooth
    return torch.from_numpy(smooth.clip(min=0)).reshape(total.shape)


@pytest.mark.parametrize("activation", ["sigmoid", "softmax"])
@pytest.mark.parametrize(("head", "layer"), [("linear", "last"), ("mlp", "last"), ("mlp", "deep"), ("linear", "deep")])
def test_equals_the_finite_difference_of_the_paper(head: str, layer: str, activation: Activation) -> None:
    model, x = network(head), images()
    maps = explain(model, x, "hessian_ciam", target_layer=layer, activation=activation)
    assert maps.shape == (2, 1, 7, 6)
    expected = torch.stack([transcribed(model, image, layer, activation) for image in x])
    assert expected.amax(dim=(1, 2)).min() > 0.01
    torch.testing.assert_close(maps[:, 0], expected, rtol=1e-4, atol=1e-6)


def test_closed_form_equals_the_full_hessian() -> None:
    """H of E with respect to every activation, 5 x 7 x 6 of them, times ones."""
    model, x = network(), images(1)
    a = Target(model, x, (0,)).activations.detach()
    leaf = a.requires_grad_()
    (gradient,) = torch.autograd.grad(F.softplus(model.classify(pool(leaf))).sum(), leaf, create_graph=True)
    rows = [torch.autograd.grad(value, leaf, retain_graph=True)[0].sum() for value in gradient.flatten()]
    hv = torch.stack(rows).reshape(a.shape[1:])
    probs = model.classify(pool(a)).sigmoid()[0].detach()
    w = model.head.state_dict()["weight"]
    terms = [probs[c] * (1 - probs[c]) * w[c].sum() * w[c] for c in range(3)]
    by_formula = torch.stack(terms).sum(dim=0) / 42
    torch.testing.assert_close(hv, by_formula[:, None, None].expand_as(hv))


def piecewise_linear(head: str) -> Classifier:
    """A network without curvature of its own, as those with ReLU are: Hv = J' H J 1, J the logits' derivatives."""
    model = network()
    if head == "mlp":
        torch.manual_seed(1)
        model.head = nn.Sequential(nn.Linear(5, 8), nn.ReLU(), nn.Linear(8, 3)).double()
    return model


def by_full_matrices(model: Classifier, image: Tensor, layer: str, activation: Activation) -> Tensor:
    """The map of one patch in float64, the Hessian of E with respect to the logits as a matrix, of e^-|y| alone."""
    a = Target(model, image[None], (0,), layer).activations.detach()
    leaf = a.clone().requires_grad_()
    handle = model.backbone.get_submodule(layer).register_forward_hook(lambda _m, _i, _o: leaf)
    logits = model(image[None])[0]
    handle.remove()
    jacobian = torch.stack([torch.autograd.grad(y, leaf, retain_graph=True)[0].flatten() for y in logits])
    y = logits.detach()
    if activation == "softmax":
        probs = (y - y.max()).exp() / (y - y.max()).exp().sum()
        hessian = torch.diag(probs) - probs[:, None] * probs
    else:
        small = (-y.abs()).exp()
        hessian = torch.diag(small / (1 + small) ** 2)
    return map_of((jacobian.T @ (hessian @ jacobian.sum(dim=1))).reshape(a.shape[1:]), a[0])


@pytest.mark.parametrize(
    ("activation", "bias"),
    [
        ("sigmoid", (0.0, 0.5, -1.0)),
        ("sigmoid", (13.0, 15.0, 17.0)),
        ("sigmoid", (18.0, 25.0, 19.0)),
        ("sigmoid", (-20.0, 21.0, -30.0)),
        ("sigmoid", (60.0, 60.0, 60.0)),
        ("softmax", (0.0, 0.5, -1.0)),
        ("softmax", (15.0, 0.0, 0.5)),
        ("softmax", (0.0, 18.0, 1.0)),
        ("softmax", (1.0, 0.0, 25.0)),
    ],
)
@pytest.mark.parametrize("layer", ["last", "deep"])
@pytest.mark.parametrize("head", ["linear", "mlp"])
def test_saturated_probabilities_keep_their_curvature(
    head: str, layer: str, activation: Activation, bias: tuple[float, ...]
) -> None:
    """p (1 - p) of a logit of 60 is 9e-27: its factor cancels, so the map must be there still, in float32 too."""
    model, x = piecewise_linear(head), images()
    last = model.head if isinstance(model.head, nn.Linear) else model.head.get_submodule("2")
    last.get_parameter("bias").data = torch.tensor(bias, dtype=torch.float64)
    expected = torch.stack([by_full_matrices(model, image, layer, activation) for image in x])
    assert expected.amax(dim=(1, 2)).min() > 0.01
    found = explain(model.float(), x.float(), "hessian_ciam", target_layer=layer, activation=activation)
    torch.testing.assert_close(found[:, 0].double(), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("layer", ["last", "deep"])
def test_no_curvature_is_an_error_value(layer: str) -> None:
    """Logits that do not depend on the activations: Hv = 0, and the map is NaN, not zeros."""
    model = network()
    nn.init.zeros_(model.head.weight)  # type: ignore[arg-type]
    maps = explain(model, images(), "hessian_ciam", target_layer=layer)
    assert maps.shape == (2, 1, 7, 6)
    assert maps.isnan().all()


def test_a_patch_without_activations_gives_zeros_and_leaves_the_others_alone() -> None:
    model, x = network(), images()
    a = Target(model, x, (0,)).activations.detach().clone()
    a[0] = 0.0
    with torch.no_grad():
        found = hessian_ciam(Target(model, x, (0,), activations=a))
    assert not found[0].any()
    assert found[1].any()
    torch.testing.assert_close(found[1:], explain(model, x[1:], "hessian_ciam"))
