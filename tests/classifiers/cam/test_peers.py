"""Oracles: pytorch-grad-cam, torch-cam and captum on small networks and on ResNet-50, every method that they have.

What they do otherwise than we is transcribed here. pytorch-grad-cam scales every map, enlarges it and scales it again;
adds constants to denominators; centres the activations of EigenCAM; divides the weights of Ablation-CAM by y; and in
Score-CAM has the softmax over channels and aligned corners. torch-cam adds constants too; does not rectify CAM; in
Grad-CAM++ divides a copy, so that its alpha is g^2; in SmoothGrad-CAM++ has sum(A g^3) for sum(A) g^3, and the gradient
and activations of the last noisy input for the mean and for those of the clean one; and in Score-CAM has the softmax,
and scales a channel before it enlarges it. captum's maps are as defined.
"""

import copy
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from classifiers.cam.eigen_cam import eigen_cam
from classifiers.cam.explain import explain
from classifiers.cam.target import Target
from classifiers.network import Classifier, pool
from classifiers.registry import build
from tests.classifiers.cam.small_networks import convolutional, masks_shown, random_images

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")


@dataclass(frozen=True)
class Case:
    """A network, two images, and what is explained."""

    model: Classifier
    x: Tensor
    labels: tuple[int, ...]
    earlier: str
    """A layer before the last stage, which has few channels."""

    def layer(self, which: str) -> str:
        return self.model.target_layer if which == "last" else self.earlier

    @property
    def tolerance(self) -> float:
        """Of a map whose largest value is 1."""
        return 1e-9 if self.x.dtype == torch.float64 else 1e-4


LIVING = 24
"""Channels of the last stage that are not 0 everywhere: Score-CAM and its like make a pass for each."""


def resnet50(living: int = 2048) -> Classifier:
    """A ResNet-50 of random weights.

    As built, its residual branches are scaled by 0; here they are not, and the statistics are those of some images, so
    that activations are in size those of a trained network.
    """
    torch.manual_seed(0)
    model = build("resnet50", 4)
    for module in model.backbone.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.3, 1.0)
            nn.init.normal_(module.bias, std=0.2)
            module.momentum = None  # statistics of all images seen, not decaying ones
    with torch.no_grad():
        model(torch.randn(8, 3, 64, 64))
        model.head.get_parameter("weight").mul_(4)  # probabilities that differ
        model.backbone.get_submodule("layer4.2.bn3").get_parameter("bias")[living:] = -1e3
    return model.eval()


@pytest.fixture(scope="module", autouse=True)
def _forget() -> Iterator[None]:
    yield
    case.cache_clear()


@cache
def case(name: str) -> Case:
    if name == "resnet50":
        return Case(resnet50(), random_images(2, 3, 64, 64).float(), (3, 1), "act1")
    if name == "resnet50, one image":
        return replace(case("resnet50"), x=case("resnet50").x[:1], labels=(3,))
    if name == "resnet50, 24 channels":
        return Case(resnet50(LIVING), case("resnet50").x[:1], (3,), "act1")
    if name == "small, of one size":  # where all channels live
        return Case(convolutional(dead=False), random_images(2, 2, 8, 7), (2, 1), "deep")
    head = {"small": "linear", "small, mlp": "mlp"}[name]
    return Case(convolutional(head, stride=2), random_images(2, 2, 12, 10), (2, 1), "deep")


every_network = pytest.mark.parametrize("name", ["small", "small, mlp", "resnet50"])
both_layers = pytest.mark.parametrize("which", ["last", "earlier"])


def close(found: Tensor, expected: Tensor, tolerance: float) -> None:
    """Equal within a share of the largest value."""
    scale = float(expected.abs().max())
    assert scale > 0
    torch.testing.assert_close(found, expected, rtol=0, atol=tolerance * scale)


def gradients(model: Classifier, x: Tensor, layer: str, label: int) -> tuple[Tensor, Tensor]:
    """A and dy/dA, (N, K, h, w), of one graph through the whole network."""
    kept: list[Tensor] = []
    handle = model.backbone.get_submodule(layer).register_forward_hook(lambda _m, _i, out: kept.append(out))
    logits = model(x)
    handle.remove()
    (g,) = torch.autograd.grad(logits[:, label].sum(), kept[0])
    return kept[0].detach(), g


def alpha_weights(first: Tensor, second: Tensor, curvature: Tensor, constant: float) -> Tensor:
    """sum(alpha ReLU(g)) of each channel, (N, K), alpha = g^2 / (2 g^2 + curvature + constant), and 0 where g is."""
    alpha = torch.where(second == 0, 0.0, second / (2 * second + curvature + constant))
    return (alpha * first.clamp(min=0)).sum(dim=(2, 3))


def weighted(weights: Tensor, a: Tensor) -> Tensor:
    """ReLU(sum_k weight_k A_k), (N, h, w)."""
    return (weights[:, :, None, None] * a).sum(dim=1).clamp(min=0)


def with_constant(method: str, a: Tensor, g: Tensor, constant: float) -> Tensor:
    """XGrad-CAM or Grad-CAM++ with a constant in the denominator."""
    total = a.sum(dim=(2, 3), keepdim=True)
    if method == "grad_cam_pp":
        return weighted(alpha_weights(g, g**2, total * g**3, constant), a)
    weights = (g * a).sum(dim=(2, 3)) / (total[:, :, 0, 0] + constant)
    return weighted(weights.nan_to_num(), a)


class Probabilities(nn.Module):
    """A network as the peers are given it: its outputs are what a channel is scored by."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: Tensor) -> Tensor:
        return self.model(x).sigmoid()  # type: ignore[no-any-return]


class LivingChannels(nn.Module):
    """A network whose layer `shown` has those channels of the last stage that live: the peers make a pass for each."""

    def __init__(self, model: Classifier, channels: Tensor) -> None:
        super().__init__()
        self.model, self.channels, self.shown = model, channels, nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        a = self.model.features(x)
        return self.model.classify(pool(a.index_copy(1, self.channels, self.shown(a[:, self.channels]))))


def as_peers_see(chosen: Case, which: str) -> tuple[nn.Module, str, Tensor]:
    """A network, the name of a layer in it, and which channels of ours that layer has."""
    model, layer = chosen.model, chosen.layer(which)
    a = Target(model, chosen.x, (0,), layer).activations
    channels = (a != 0).any(dim=3).any(dim=2).any(dim=0).nonzero().flatten()
    if which == "last" and len(channels) < a.shape[1]:
        return LivingChannels(model, channels), "shown", channels
    return model, f"backbone.{layer}", torch.arange(a.shape[1])


# pytorch-grad-cam


def by_pytorch_grad_cam(name: str, network: nn.Module, layer: str, x: Tensor, label: int) -> NDArray[np.float32]:
    """Its maps of one label, (N, H, W), in [0, 1]."""
    import pytorch_grad_cam

    copied = copy.deepcopy(network)  # it leaves gradients in the parameters
    with getattr(pytorch_grad_cam, name)(model=copied, target_layers=[copied.get_submodule(layer)]) as peer:
        maps: NDArray[np.float32] = peer(input_tensor=x, targets=[lambda output: output[label]] * len(x))
    return maps


def as_it_shows(maps: Tensor, x: Tensor) -> NDArray[np.float32]:
    """Raw maps (N, h, w) scaled, enlarged and scaled again, as it does."""
    from pytorch_grad_cam.utils.image import scale_cam_image

    scaled = scale_cam_image(maps.clamp(min=0).numpy(), (x.shape[3], x.shape[2]))
    return np.asarray(scale_cam_image(np.maximum(scaled, 0)))


@every_network
@both_layers
@pytest.mark.parametrize(
    ("method", "peer", "constant"),
    [
        ("grad_cam", "GradCAM", None),
        ("hires_cam", "HiResCAM", None),
        ("layer_cam", "LayerCAM", None),
        ("x_grad_cam", "XGradCAM", 1e-7),
        ("grad_cam_pp", "GradCAMPlusPlus", 1e-6),
    ],
)
def test_gradient_family_of_pytorch_grad_cam(
    name: str, which: str, method: str, peer: str, constant: float | None
) -> None:
    chosen = case(name)
    model, x, layer = chosen.model, chosen.x, chosen.layer(which)
    ours = explain(model, x, method, chosen.labels, layer)
    for maps, label in zip(ours.unbind(dim=1), chosen.labels, strict=True):
        expected = maps
        if constant is not None:
            a, g = gradients(model, x, layer, label)
            close(maps, with_constant(method, a, g, 0.0), chosen.tolerance)
            expected = with_constant(method, a, g, constant)
        theirs = by_pytorch_grad_cam(peer, model, f"backbone.{layer}", x, label)
        assert theirs.max() > 0.9
        np.testing.assert_allclose(theirs, as_it_shows(expected, x), atol=1e-4)


@every_network
@both_layers
def test_eigen_cam_of_pytorch_grad_cam(name: str, which: str) -> None:
    """Ours of centred activations, of either sign."""
    chosen = case(name)
    layer = chosen.layer(which)
    a = Target(chosen.model, chosen.x, (0,), layer).activations
    centred = a - a.mean(dim=(2, 3), keepdim=True)
    ours = eigen_cam(Target(chosen.model, chosen.x, (0,), layer, activations=centred))[:, 0]
    theirs = by_pytorch_grad_cam("EigenCAM", chosen.model, f"backbone.{layer}", chosen.x, 0)
    for n, found in enumerate(theirs):
        signs = [as_it_shows(sign * ours[n : n + 1], chosen.x)[0] for sign in (1, -1)]
        assert found.max() > 0.9
        assert np.abs(signs[0] - signs[1]).max() > 0.1
        assert min(np.abs(found - sign).max() for sign in signs) < 1e-3


many_passes = pytest.mark.parametrize(
    ("name", "which"),
    [
        ("small", "last"),
        ("small", "earlier"),
        ("small, mlp", "last"),
        ("resnet50, 24 channels", "last"),
        ("resnet50, one image", "earlier"),
    ],
)


@many_passes
def test_ablation_cam_of_pytorch_grad_cam(name: str, which: str) -> None:
    """Its weights times y."""
    from pytorch_grad_cam import AblationCAM

    chosen = case(name)
    network, layer, channels = as_peers_see(chosen, which)
    copied = copy.deepcopy(network).float()
    x = chosen.x.float()
    a = Target(chosen.model, chosen.x, (0,), chosen.layer(which)).activations[:, channels]
    assert (a.amin(dim=(1, 2, 3)) == 0).all()  # elsewhere it ablates by a number far below 0
    label = chosen.labels[0]
    with AblationCAM(model=copied, target_layers=[copied.get_submodule(layer)]) as peer:
        targets = [lambda output: output[label]] * len(x)
        weights = peer.get_cam_weights(x, copied.get_submodule(layer), targets, a.float().numpy(), None)
    y = chosen.model(chosen.x)[:, label].detach()
    theirs = weighted(torch.from_numpy(weights) * y[:, None], a)
    ours = explain(chosen.model, chosen.x, "ablation_cam", [label], chosen.layer(which))[:, 0]
    close(ours, theirs.to(ours.dtype), 1e-3)


@many_passes
def test_score_cam_of_pytorch_grad_cam(name: str, which: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its softmax has a share for a channel without a mask too, which scales the others, and which scaling undoes."""
    monkeypatch.setattr(
        nn, "UpsamplingBilinear2d", lambda size: nn.Upsample(size=size, mode="bilinear", align_corners=False)
    )
    chosen = case(name)
    network, layer, _ = as_peers_see(chosen, which)
    for label in chosen.labels:
        theirs = by_pytorch_grad_cam("ScoreCAM", Probabilities(network), f"model.{layer}", chosen.x, label)
        ours, others = (
            explain(chosen.model, chosen.x, "score_cam", [label], chosen.layer(which), weights=weights)[:, 0]
            for weights in ("softmax", "difference")
        )
        assert theirs.max() > 0.9
        np.testing.assert_allclose(theirs, as_it_shows(ours, chosen.x), atol=1e-4)
        assert np.abs(theirs - as_it_shows(others, chosen.x)).max() > 1e-2


# torch-cam


def by_torch_cam(name: str, network: nn.Module, layer: str, x: Tensor, label: int, **options: Any) -> Tensor:
    """Its maps of one label, (N, h, w), not scaled."""
    import torchcam.methods

    noise = options.pop("noise", None)
    shape = tuple(x.shape[1:])
    with getattr(torchcam.methods, name)(network, target_layer=layer, input_shape=shape, **options) as peer:
        if noise is not None:
            samples = iter(noise)
            peer._distrib = type("Noise", (), {"sample": lambda *_: next(samples)})()
        (maps,) = peer(class_idx=label, scores=network(x), normalized=False)
    return maps.detach()  # type: ignore[no-any-return]


@pytest.mark.parametrize("name", ["small", "resnet50"])
def test_cam_of_torch_cam(name: str) -> None:
    chosen = case(name)
    ours = explain(chosen.model, chosen.x, "cam", chosen.labels)
    layer = f"backbone.{chosen.model.target_layer}"
    for maps, label in zip(ours.unbind(dim=1), chosen.labels, strict=True):
        theirs = by_torch_cam("CAM", chosen.model, layer, chosen.x, label, fc_layer="head")
        close(maps, theirs.clamp(min=0), chosen.tolerance)


@every_network
@both_layers
@pytest.mark.parametrize(
    ("method", "peer"),
    [("grad_cam", "GradCAM"), ("layer_cam", "LayerCAM"), ("x_grad_cam", "XGradCAM"), ("grad_cam_pp", "GradCAMpp")],
)
def test_gradient_family_of_torch_cam(name: str, which: str, method: str, peer: str) -> None:
    chosen = case(name)
    model, x, layer = chosen.model, chosen.x, chosen.layer(which)
    ours = explain(model, x, method, chosen.labels, layer)
    for maps, label in zip(ours.unbind(dim=1), chosen.labels, strict=True):
        expected = maps
        if method in {"x_grad_cam", "grad_cam_pp"}:
            a, g = gradients(model, x, layer, label)
            close(maps, with_constant(method, a, g, 0.0), chosen.tolerance)
            squares = (g**2 * g.clamp(min=0)).sum(dim=(2, 3))
            expected = weighted(squares, a) if method == "grad_cam_pp" else with_constant(method, a, g, 1e-8)
        close(by_torch_cam(peer, model, f"backbone.{layer}", x, label), expected, chosen.tolerance)


@pytest.mark.parametrize("name", ["small", "small, mlp", "resnet50, one image"])
@both_layers
def test_smooth_grad_cam_pp_of_torch_cam(name: str, which: str) -> None:
    """Of the same noise, and in float64: where the mean of g^3 is below 0, a denominator may nearly vanish."""
    chosen = case(name)
    chosen = replace(chosen, model=copy.deepcopy(chosen.model).double(), x=chosen.x.double())
    model, x, layer = chosen.model, chosen.x, chosen.layer(which)
    label, samples, seed = chosen.labels[0], 2, 5
    target = Target(model, x, (label,))
    noise = 0.5 * torch.stack(
        [torch.randn(samples, *x.shape[1:], generator=target.generator(n, seed)) for n in range(len(x))], dim=1
    ).to(x)
    a, _ = gradients(model, x, layer, label)
    noisy = [gradients(model, x + sample, layer, label) for sample in noise]
    g = torch.stack([gradient for _, gradient in noisy])
    second, third, total = (g**2).mean(dim=0), (g**3).mean(dim=0), a.sum(dim=(2, 3), keepdim=True)
    ours = explain(model, x, "smooth_grad_cam_pp", [label], layer, samples=samples, noise=0.5, seed=seed)[:, 0]
    close(ours, weighted(alpha_weights(g.mean(dim=0), second, total * third, 0.0), a), chosen.tolerance)
    products = (a * third).sum(dim=(2, 3), keepdim=True)
    expected = weighted(alpha_weights(g[-1], second, products, 1e-8), noisy[-1][0])
    theirs = by_torch_cam(
        "SmoothGradCAMpp", model, f"backbone.{layer}", x, label, num_samples=samples, noise=list(noise)
    )
    close(theirs, expected, chosen.tolerance)


@pytest.mark.parametrize(
    ("name", "which"),
    [
        ("small, of one size", "last"),
        ("small, of one size", "earlier"),
        ("resnet50, 24 channels", "last"),
    ],
)
def test_score_cam_of_torch_cam(name: str, which: str) -> None:
    """Of maps whose extremes enlarging keeps: those of the input's size, and 2 x 2, whose corners are held."""
    chosen = case(name)
    network, layer, _ = as_peers_see(chosen, which)
    for label in chosen.labels:
        theirs = by_torch_cam("ScoreCAM", Probabilities(network), f"model.{layer}", chosen.x, label)
        ours = explain(chosen.model, chosen.x, "score_cam", [label], chosen.layer(which), weights="softmax")[:, 0]
        if name.startswith("resnet50"):  # a channel without a mask has a share in its softmax, which scales the others
            ours, theirs = (maps / maps.sum(dim=(1, 2), keepdim=True) for maps in (ours, theirs))
        close(ours, theirs, max(chosen.tolerance, 1e-6))  # it adds 1e-8 to the range of a channel


# captum


@every_network
@both_layers
def test_gradient_family_of_captum(name: str, which: str) -> None:
    from captum.attr import LayerGradCam, LayerGradientXActivation

    chosen = case(name)
    model, x, layer = chosen.model, chosen.x, chosen.model.backbone.get_submodule(chosen.layer(which))
    for label in chosen.labels:
        theirs = {
            "grad_cam": LayerGradCam(model, layer).attribute(x, label)[:, 0],
            "hires_cam": LayerGradientXActivation(model, layer).attribute(x, label).sum(dim=1),
        }
        for method, maps in theirs.items():
            ours = explain(model, x, method, [label], chosen.layer(which))[:, 0]
            close(ours, maps.detach().clamp(min=0), chosen.tolerance)


@many_passes
def test_ablation_cam_of_captum(name: str, which: str) -> None:
    from captum.attr import LayerFeatureAblation

    chosen = case(name)
    network, layer, channels = as_peers_see(chosen, which)
    a = Target(chosen.model, chosen.x, (0,), chosen.layer(which)).activations[:, channels]
    label, each = chosen.labels[0], torch.arange(len(channels))[None, :, None, None].expand(1, *a.shape[1:])
    peer = LayerFeatureAblation(network, network.get_submodule(layer))
    with torch.no_grad():
        drops = peer.attribute(chosen.x, target=label, layer_mask=each)[:, :, :1, :1]
    ours = explain(chosen.model, chosen.x, "ablation_cam", [label], chosen.layer(which))[:, 0]
    close(ours, weighted(drops[:, :, 0, 0], a), max(chosen.tolerance, 1e-5))


@pytest.mark.parametrize(
    ("name", "window", "stride"),
    [("small", 3, 2), ("small, mlp", 4, 3), ("small", 5, 5), ("resnet50", 30, 24)],
)
def test_occlusion_of_captum(name: str, window: int, stride: int) -> None:
    from captum.attr import Occlusion

    chosen = case(name)
    model, x = chosen.model, chosen.x
    found = explain(model, x, "occlusion", chosen.labels, window=window, stride=stride)
    peer = Occlusion(lambda images: model(images).sigmoid())
    bands = x.shape[1]
    for maps, label in zip(found.unbind(dim=1), chosen.labels, strict=True):
        theirs = peer.attribute(
            x, sliding_window_shapes=(bands, window, window), strides=(bands, stride, stride), target=label
        )
        for channel in theirs.detach().unbind(dim=1):
            close(maps.float(), channel.float(), max(chosen.tolerance, 1e-5))  # it sums in float32


@pytest.mark.parametrize(("name", "samples"), [("small", 40), ("small, mlp", 40), ("resnet50", 12)])
def test_lime_of_captum(name: str, samples: int) -> None:
    """Its samples made ours, and its distance, which is between inputs, made one between vectors of parts."""
    from captum._utils.models.linear_model import SkLearnRidge
    from captum.attr import Lime
    from captum.attr._core.lime import get_exp_kernel_similarity_function

    chosen, cells = case(name), 2
    model, x = chosen.model, chosen.x[:1]
    height, width = x.shape[2] // cells, x.shape[3] // cells
    options: dict[str, Any] = {"cells": cells, "samples": samples, "kernel_width": 0.4, "ridge": 0.5}
    z = masks_shown("lime", (x.shape[2], x.shape[3]), **options)[:, ::height, ::width].flatten(1)
    kernel = get_exp_kernel_similarity_function("cosine", kernel_width=0.4)
    parts = torch.arange(cells**2).reshape(1, 1, cells, cells)
    parts = parts.repeat_interleave(height, dim=2).repeat_interleave(width, dim=3)
    found = explain(model, x, "lime", chosen.labels, **options)
    for maps, label in zip(found[0], chosen.labels, strict=True):
        shown = iter(z)
        peer = Lime(
            lambda images: model(images).sigmoid(),
            interpretable_model=SkLearnRidge(alpha=0.5),
            similarity_func=lambda _x, _masked, sample, **_: kernel(torch.ones_like(sample), sample, sample),
            perturb_func=lambda *_, shown=shown, **__: next(shown)[None].long(),
        )
        theirs = peer.attribute(
            x, target=label, feature_mask=parts, n_samples=samples, return_input_shape=False, show_progress=False
        )
        close(maps.flatten().double(), theirs[0].double(), 1e-3)  # in float32
