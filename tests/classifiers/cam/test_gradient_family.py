"""Oracles: hand numbers, and definitions on autograd's gradients in float64; `test_peers.py` has other libraries."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from classifiers.cam import gradient_family
from classifiers.cam.explain import explain
from classifiers.cam.target import Target
from classifiers.network import Classifier, pool
from infra.errors import ShapeError
from tests.classifiers.cam.small_networks import images, network


def transcribed_grad_cam(a: Tensor, g: Tensor) -> Tensor:
    return sum(g[k].mean() * a[k] for k in range(len(a)))  # type: ignore[return-value]


def transcribed_hires_cam(a: Tensor, g: Tensor) -> Tensor:
    return sum(g[k] * a[k] for k in range(len(a)))  # type: ignore[return-value]


def transcribed_x_grad_cam(a: Tensor, g: Tensor) -> Tensor:
    return sum((g[k] * a[k]).sum() / a[k].sum() * a[k] for k in range(len(a)) if a[k].sum() != 0)  # type: ignore[return-value]


def transcribed_grad_cam_pp(a: Tensor, g: Tensor) -> Tensor:
    total = torch.zeros_like(a[0])
    for k in range(len(a)):
        weight = 0.0
        for value in g[k].flatten().tolist():
            if value > 0:
                weight += value**2 / (2 * value**2 + float(a[k].sum()) * value**3) * value
        total += weight * a[k]
    return total


def transcribed_layer_cam(a: Tensor, g: Tensor) -> Tensor:
    return sum(g[k].clamp(min=0) * a[k] for k in range(len(a)))  # type: ignore[return-value]


DEFINITIONS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "grad_cam": transcribed_grad_cam,
    "hires_cam": transcribed_hires_cam,
    "x_grad_cam": transcribed_x_grad_cam,
    "grad_cam_pp": transcribed_grad_cam_pp,
    "layer_cam": transcribed_layer_cam,
}


def by_definition(model: Classifier, x: Tensor, layer: str, method: str) -> Tensor:
    """Each patch and label alone, from a graph through the whole network."""
    kept: list[Tensor] = []
    handle = model.backbone.get_submodule(layer).register_forward_hook(lambda _m, _i, out: kept.append(out))
    rows = []
    for image in x:
        kept.clear()
        logits = model(image[None])[0]
        maps = []
        for logit in logits:
            (g,) = torch.autograd.grad(logit, kept[0], retain_graph=True)
            maps.append(DEFINITIONS[method](kept[0][0].detach(), g[0]).clamp(min=0))
        rows.append(torch.stack(maps))
    handle.remove()
    return torch.stack(rows)


@pytest.mark.parametrize("head", ["linear", "mlp"])
@pytest.mark.parametrize("layer", ["last", "deep"])
@pytest.mark.parametrize("method", list(DEFINITIONS))
def test_equals_the_definition_on_gradients_of_autograd(method: str, layer: str, head: str) -> None:
    model, x = network(head), images()
    maps = explain(model, x, method, target_layer=layer)
    expected = by_definition(model, x, layer, method)
    assert expected.amax(dim=(0, 2, 3)).min() > 0
    assert maps.shape == (2, 3, 7, 6)
    assert not maps.requires_grad
    torch.testing.assert_close(maps, expected, rtol=1e-9, atol=1e-12)


def test_equals_cam_for_a_pooled_linear_head() -> None:
    """y = sum_k w_k mean(A_k) gives dy/dA_k = w_k / hw, so Grad-CAM is CAM / hw."""
    a = torch.tensor([[[[1.0, 2.0], [3.0, 4.0]], [[4.0, 0.0], [0.0, 1.0]]]]).requires_grad_()
    (gradients,) = torch.autograd.grad((a.mean(dim=(2, 3)) @ torch.tensor([1.0, -1.0])).sum(), a)
    by_hand = torch.tensor([[[0.0, 2.0], [3.0, 3.0]]]) / 4  # ReLU(A_0 - A_1) / hw
    torch.testing.assert_close(gradient_family.grad_cam_map(a.detach(), gradients), by_hand)
    head = nn.Linear(2, 1)
    head.weight.data = torch.tensor([[1.0, -1.0]])
    target = Target(Classifier(nn.Identity(), head, "", 1), torch.zeros(1, 1, 2, 2), (0,), activations=a.detach())
    torch.testing.assert_close(gradient_family.grad_cam(target)[:, 0], by_hand)
    torch.testing.assert_close(gradient_family.cam(target)[:, 0], by_hand * 4)
    # Grad-CAM++: weight 4 * 0.25 / (2 + 0.25 * 10) of channel 0, none of channel 1, whose gradient is negative
    torch.testing.assert_close(gradient_family.grad_cam_pp(target)[0, 0], a[0, 0].detach() / 4.5)


def test_hooked_layer_equals_the_closed_form(model: Classifier, x: Tensor) -> None:
    """`layer4.1` is the last block of `layer4` and has its output, but takes the path of hooks and gradients."""
    for method in DEFINITIONS:
        hooked = explain(model, x, method, target_layer="layer4.1")
        torch.testing.assert_close(hooked, explain(model, x, method), rtol=1e-4, atol=1e-7)
    assert torch.equal(explain(model, x, "grad_cam", target_layer="layer4"), explain(model, x, "grad_cam"))


def test_channels_without_a_sum_keep_their_gradient_in_x_grad_cam() -> None:
    a = torch.tensor([[[[1.0, -1.0]]]])
    torch.testing.assert_close(gradient_family.x_grad_cam_map(a, torch.full_like(a, 3.0)), torch.tensor([[[3.0, 0.0]]]))


def test_half_precision_activations_give_float32_maps(model: Classifier) -> None:
    a = torch.rand(2, 512, 3, 3).bfloat16()
    half, full = (Target(model, torch.zeros(2, 3, 96, 96), (0, 1), activations=values) for values in (a, a.float()))
    with torch.no_grad():
        maps = gradient_family.grad_cam(half)
        assert maps.dtype == torch.float32
        torch.testing.assert_close(maps, gradient_family.grad_cam(full))


def test_checks_shapes() -> None:
    with pytest.raises(ShapeError, match="one shape"):
        gradient_family.grad_cam_map(torch.zeros(1, 2, 3, 3), torch.zeros(1, 2, 3, 2))


def test_pooled_gradients_of_a_head_that_is_not_linear_leave_no_trace() -> None:
    model = network("mlp")
    target = Target(model, torch.ones(2, 2, 7, 6, dtype=torch.float64), (2, 0))
    with torch.no_grad():
        found = target.pooled_gradients
    pooled = pool(target.activations).requires_grad_()
    (expected,) = torch.autograd.grad(model.classify(pooled)[:, 2].sum(), pooled)
    torch.testing.assert_close(found[:, 0], expected)
    assert all(parameter.grad is None for parameter in model.parameters())
