"""Oracles: Grad-CAM++ where there is no noise or a linear head, and a transcription with autograd per noisy input."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from classifiers.cam.explain import explain
from classifiers.cam.target import Target
from classifiers.network import Classifier
from infra.errors import ConfigError
from tests.classifiers.cam.small_networks import images, network


@pytest.mark.parametrize(("head", "layer"), [("linear", "last"), ("mlp", "last"), ("linear", "deep")])
def test_without_noise_it_is_grad_cam_pp(head: str, layer: str) -> None:
    model, x = network(head), images()
    smooth = explain(model, x, "smooth_grad_cam_pp", target_layer=layer, noise=0.0, samples=3)
    torch.testing.assert_close(smooth, explain(model, x, "grad_cam_pp", target_layer=layer))


def test_with_a_linear_head_noise_changes_nothing_and_costs_nothing() -> None:
    model, x = network(), images()
    runs = 0

    def count(_module: object, _inputs: object) -> None:
        nonlocal runs
        runs += 1

    handle = model.backbone.register_forward_pre_hook(count)
    smooth = explain(model, x, "smooth_grad_cam_pp")
    handle.remove()
    assert runs == 1
    assert torch.equal(smooth, explain(model, x, "grad_cam_pp"))


def transcribed(model: Classifier, image: Tensor, layer: str, noise: Tensor) -> Tensor:
    a = Target(model, image[None], (0,), layer).activations[0].detach()
    kept: list[Tensor] = []
    handle = model.backbone.get_submodule(layer).register_forward_hook(lambda _m, _i, out: kept.append(out))
    maps = []
    for label in range(3):
        gradients = []
        for sample in noise:
            kept.clear()
            logits = model((image + sample)[None])[0]
            gradients.append(torch.autograd.grad(logits[label], kept[0])[0][0])
        g = torch.stack(gradients)
        first, second, third = g.mean(dim=0), (g**2).mean(dim=0), (g**3).mean(dim=0)
        total = torch.zeros_like(a[0])
        for k in range(len(a)):
            denominator = 2 * second[k] + a[k].sum() * third[k]
            alpha = torch.where(denominator == 0, 0.0, second[k] / denominator)
            total += (alpha * first[k].clamp(min=0)).sum() * a[k]
        maps.append(total.clamp(min=0))
    handle.remove()
    return torch.stack(maps)


@pytest.mark.parametrize(("head", "layer"), [("mlp", "last"), ("linear", "deep")])
def test_equals_the_transcription_on_the_same_noise(head: str, layer: str) -> None:
    model, x = network(head), images()
    options: dict[str, Any] = {"samples": 3, "noise": 0.5, "seed": 4}
    found = explain(model, x, "smooth_grad_cam_pp", target_layer=layer, seeds=[11, 12], **options)
    target = Target(model, x, (0,), seeds=[11, 12])
    for n in range(2):
        noise = torch.randn(3, 2, 7, 6, generator=target.generator(n, 4)).double() * 0.5
        torch.testing.assert_close(found[n], transcribed(model, x[n], layer, noise), rtol=1e-9, atol=1e-12)
    alone = explain(model, x[1:], "smooth_grad_cam_pp", target_layer=layer, seeds=[12], **options)
    torch.testing.assert_close(alone[0], found[1])
    assert not torch.allclose(found, explain(model, x, "grad_cam_pp", target_layer=layer))


class LargestTensor(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Notes how many numbers the largest tensor has that an operation makes."""

    numbers = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = func(*args, **(kwargs or {}))
        for tensor in made if isinstance(made, tuple | list) else [made]:
            if isinstance(tensor, Tensor):
                self.numbers = max(self.numbers, tensor.untyped_storage().nbytes() // tensor.element_size())
        return made


@pytest.mark.parametrize(("head", "layer", "per_patch"), [("mlp", "last", 5 * 42), ("linear", "deep", 3 * 6 * 42)])
def test_gradients_of_one_patch_at_most_are_held(head: str, layer: str, per_patch: int) -> None:
    """Of 6 x 7 places: of each label where they differ between places, and never more than the activations if not."""
    x = images(8)
    with LargestTensor() as largest:  # type: ignore[no-untyped-call]
        explain(network(head), x, "smooth_grad_cam_pp", target_layer=layer, samples=1)
    assert largest.numbers <= max(len(x) * 6 * 42, per_patch)


def test_refuses_options_without_a_meaning() -> None:
    refused: list[dict[str, Any]] = [{"samples": 0}, {"samples": -1}]
    refused += [{"noise": noise} for noise in (-1.0, math.nan, math.inf)]
    for options in refused:
        with pytest.raises(ConfigError, match="samples >= 1 and noise >= 0"):
            explain(network(), images(), "smooth_grad_cam_pp", **options)
    with pytest.raises(ConfigError, match="samples is a int, such as 8; got 'many'"):
        explain(network(), images(), "smooth_grad_cam_pp", samples="many")
