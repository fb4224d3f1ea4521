"""Oracles: hand numbers, autograd, CAM, and pytorch-grad-cam."""

import copy

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from classifiers.cam.explain import explain, explain_methods
from classifiers.cam.grad_cam import grad_cam, grad_cam_from_features
from classifiers.network import Classifier, pool
from classifiers.registry import build
from infra.errors import ConfigError, ShapeError, UnknownNameError


@pytest.fixture(scope="module")
def model() -> Classifier:
    torch.manual_seed(0)
    return build("resnet18", 5).eval()


@pytest.fixture
def x() -> Tensor:
    return torch.randn(3, 3, 64, 96, generator=torch.Generator().manual_seed(1))


def by_autograd(model: Classifier, x: Tensor) -> Tensor:
    """Every label's map by definition, through a graph that starts at the activations."""
    activations = model.features(x).detach().requires_grad_()
    logits = model.classify(pool(activations))
    maps = []
    for label in range(logits.shape[1]):
        (gradient,) = torch.autograd.grad(logits[:, label].sum(), activations, retain_graph=True)
        weights = gradient.sum(dim=(2, 3), keepdim=True) / gradient[0, 0].numel()
        maps.append((weights * activations).sum(dim=1).clamp(min=0).detach())
    return torch.stack(maps, dim=1)


def test_equals_cam_for_a_pooled_linear_head() -> None:
    """y = sum_k w_k mean(A_k) gives dy/dA_k = w_k / hw, so Grad-CAM is CAM / hw."""
    a = torch.tensor([[[[1.0, 2.0], [3.0, 4.0]], [[4.0, 0.0], [0.0, 1.0]]]]).requires_grad_()
    (gradients,) = torch.autograd.grad((a.mean(dim=(2, 3)) @ torch.tensor([1.0, -1.0])).sum(), a)
    by_hand = torch.tensor([[[0.0, 2.0], [3.0, 3.0]]]) / 4  # ReLU(A_0 - A_1) / hw
    torch.testing.assert_close(grad_cam(a.detach(), gradients), by_hand)
    head = nn.Linear(2, 1)
    head.weight.data = torch.tensor([[1.0, -1.0]])
    torch.testing.assert_close(grad_cam_from_features(a.detach(), head)[:, 0], by_hand)


def test_closed_form_equals_autograd(model: Classifier, x: Tensor) -> None:
    maps = explain(model, x, "grad_cam")
    assert maps.shape == (3, 5, 2, 3)
    assert not maps.requires_grad
    assert maps.max() > 0
    torch.testing.assert_close(maps, by_autograd(model, x), rtol=1e-4, atol=1e-7)


def test_closed_form_of_a_head_that_is_not_linear_equals_autograd(model: Classifier, x: Tensor) -> None:
    torch.manual_seed(2)
    head = nn.Sequential(nn.Linear(512, 16), nn.ReLU(), nn.Linear(16, 4))
    other = Classifier(model.backbone, head, "layer4", 4).eval()
    torch.testing.assert_close(explain(other, x, "grad_cam"), by_autograd(other, x), rtol=1e-4, atol=1e-7)
    assert all(parameter.grad is None for parameter in head.parameters())


def test_hooked_layer_equals_the_closed_form(model: Classifier, x: Tensor) -> None:
    """`layer4.1` is the last block of `layer4` and has its output, but takes the path of hooks and gradients."""
    hooked = explain(model, x, "grad_cam", target_layer="layer4.1")
    torch.testing.assert_close(hooked, explain(model, x, "grad_cam"), rtol=1e-4, atol=1e-7)
    assert torch.equal(explain(model, x, "grad_cam", target_layer="layer4"), explain(model, x, "grad_cam"))


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
@pytest.mark.parametrize("layer", ["layer4", "layer3"])
def test_equals_pytorch_grad_cam(model: Classifier, x: Tensor, layer: str) -> None:
    """Its raw map before ReLU, and its result: the map min-max scaled, enlarged, clipped and scaled again."""
    from pytorch_grad_cam import GradCAM
    from pytorch_grad_cam.utils.image import scale_cam_image
    from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget

    maps = explain(model, x, "grad_cam", target_layer=layer)
    copied = copy.deepcopy(model)  # the peer leaves gradients in the parameters
    with GradCAM(model=copied, target_layers=[copied.backbone.get_submodule(layer)]) as peer:
        for label in range(5):
            theirs = peer(input_tensor=x, targets=[ClassifierOutputTarget(label)] * len(x))
            ours = maps[:, label].numpy()
            scaled = scale_cam_image(ours, (x.shape[3], x.shape[2]))
            scaled = scale_cam_image(np.maximum(scaled, 0))
            if label == 0:
                assert scaled.max() > 0.9
            np.testing.assert_allclose(scaled, theirs, atol=2e-3)  # its 1e-7 in the denominator is felt


def test_labels_are_chosen_in_the_order_asked(model: Classifier, x: Tensor) -> None:
    every = explain(model, x, "grad_cam")
    torch.testing.assert_close(explain(model, x, "grad_cam", labels=[3, 0]), every[:, [3, 0]])
    hooked = explain(model, x, "grad_cam", labels=[3, 0], target_layer="layer3")
    torch.testing.assert_close(hooked, explain(model, x, "grad_cam", target_layer="layer3")[:, [3, 0]])


def test_maps_do_not_depend_on_the_batch(model: Classifier, x: Tensor) -> None:
    for layer in ("layer4", "layer2"):
        whole = explain(model, x, "grad_cam", target_layer=layer)
        single = torch.cat([explain(model, image[None], "grad_cam", target_layer=layer) for image in x])
        torch.testing.assert_close(single, whole, rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("layer", [None, "layer2", "layer4.1.bn2"])
def test_leaves_the_model_and_the_input_as_they_were(model: Classifier, x: Tensor, layer: str | None) -> None:
    model.train()
    model.backbone.get_submodule("layer1").eval()
    modes = [module.training for module in model.modules()]
    state = {key: value.clone() for key, value in model.state_dict().items()}
    before = x.clone()
    explain(model, x, "grad_cam", target_layer=layer)
    assert [module.training for module in model.modules()] == modes
    assert all(torch.equal(value, state[key]) for key, value in model.state_dict().items())
    assert all(parameter.grad is None and parameter.requires_grad for parameter in model.parameters())
    assert not any(module._forward_hooks or module._backward_hooks for module in model.modules())
    assert torch.equal(x, before)
    assert not x.requires_grad
    model.eval()


def test_works_inside_inference_mode_and_on_frozen_models(model: Classifier, x: Tensor) -> None:
    expected = explain(model, x, "grad_cam", target_layer="layer3")
    model.requires_grad_(requires_grad=False)
    try:
        with torch.inference_mode():
            found = explain(model, x * 1.0, "grad_cam", target_layer="layer3")
    finally:
        model.requires_grad_(requires_grad=True)
    torch.testing.assert_close(found, expected)


def test_half_precision_activations_give_float32_maps() -> None:
    head = nn.Linear(4, 2)
    activations = torch.rand(2, 4, 3, 3).bfloat16()
    maps = grad_cam_from_features(activations, head)
    assert maps.dtype == torch.float32
    torch.testing.assert_close(maps, grad_cam_from_features(activations.float(), head))


class Aside(nn.Module):
    """A backbone with a layer that leads nowhere, and one that is not a picture."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.aside, self.flat = nn.Conv2d(3, 2, 1), nn.Conv2d(3, 2, 1), nn.Flatten()

    def forward(self, x: Tensor) -> Tensor:
        self.aside(x)
        self.flat(x)
        return self.conv(x)  # type: ignore[no-any-return]


def test_refuses_layers_that_cannot_be_explained(x: Tensor) -> None:
    model = Classifier(Aside(), nn.Linear(2, 2), "conv", 2)
    with pytest.raises(ShapeError, match="no logit depends on layer 'aside'"):
        explain(model, x, "grad_cam", target_layer="aside")
    with pytest.raises(ShapeError, match="layer 'flat' must give"):
        explain(model, x, "grad_cam", target_layer="flat")
    with pytest.raises(UnknownNameError, match="no layer 'conv9': choose one of conv, aside, flat"):
        explain(model, x, "grad_cam", target_layer="conv9")
    assert model.training
    assert not any(module._forward_hooks for module in model.modules())


def test_refuses_what_is_not_there(model: Classifier, x: Tensor) -> None:
    assert explain_methods() == ("grad_cam",)
    with pytest.raises(UnknownNameError, match="grad_cam"):
        explain(model, x, "cam9")
    with pytest.raises(ConfigError, match="does not take samples"):
        explain(model, x, "grad_cam", samples="3")
    for labels in ([5], [-1], []):
        with pytest.raises(ConfigError, match="labels 0 to 4"):
            explain(model, x, "grad_cam", labels=labels)
    with pytest.raises(ShapeError):
        explain(model, x[0], "grad_cam")
    with pytest.raises(ShapeError, match="one shape"):
        grad_cam(torch.zeros(1, 2, 3, 3), torch.zeros(1, 2, 3, 2))
    with pytest.raises(ShapeError):
        grad_cam_from_features(torch.zeros(2, 3), nn.Linear(3, 1))
