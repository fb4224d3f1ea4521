"""Oracles: the paper's finite difference of gradients in float64, and the formulas transcribed with full matrices."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F  # noqa: N812  # as everyone writes it
from torch import Tensor, nn

from classifiers.cam.explain import explain
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
    weights = hv.abs() / hv.square().sum().sqrt()
    a_h = (weights * a[0]).clamp(min=0)
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


def test_saturated_probabilities_keep_their_curvature() -> None:
    """p (1 - p) of a logit of 60 is 9e-27: its factor cancels, so the map must be there still."""
    model, x = network(), images()
    usual = explain(model, x, "hessian_ciam")
    model.head.bias.data = torch.tensor([60.0, 60.0, 60.0], dtype=torch.float64)
    model, x = model.float(), x.float()
    saturated = explain(model, x, "hessian_ciam")
    assert saturated.isfinite().all()
    assert saturated.amax(dim=(1, 2, 3)).min() > 0.01
    assert usual.shape == saturated.shape


@pytest.mark.parametrize("layer", ["last", "deep"])
def test_no_curvature_is_an_error_value(layer: str) -> None:
    """Logits that do not depend on the activations: Hv = 0, and the map is NaN, not zeros."""
    model = network()
    nn.init.zeros_(model.head.weight)  # type: ignore[arg-type]
    maps = explain(model, images(), "hessian_ciam", target_layer=layer)
    assert maps.shape == (2, 1, 7, 6)
    assert maps.isnan().all()


def test_no_activation_gives_zeros_and_leaves_the_others_alone() -> None:
    model, x = network(), images()
    last = model.backbone.get_submodule("last.0")
    last.bias.data.fill_(-100.0)  # type: ignore[operator]
    assert not explain(model, x, "hessian_ciam").any()
