"""What holds for every method of the registry, at the last stage and before it, with both kinds of heads."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from classifiers.cam.explain import explain
from classifiers.cam.methods import METHODS
from classifiers.network import Classifier
from infra.errors import ConfigError, UnknownNameError
from tests.classifiers.cam.small_networks import convolutional, random_images, recorded

OPTIONS: dict[str, dict[str, Any]] = {
    "rise": {"masks": 9, "cells": 3},
    "lime": {"samples": 9, "cells": 3},
    "occlusion": {"window": 3},
    "smooth_grad_cam_pp": {"samples": 2},
}
"""What suits inputs of 8 x 7 pixels; other methods run with their own."""

CASES = [
    (method, head, layer)
    for method, entry in METHODS.items()
    for head in ("linear", "mlp")
    for layer in (None, "deep")
    if not (layer and entry.resolution != "layer") and not (entry.linear_head_only and (layer or head != "linear"))
]

of_every_method = pytest.mark.parametrize("method", list(METHODS))
in_every_case = pytest.mark.parametrize(("method", "head", "layer"), CASES)


def network(head: str = "linear") -> Classifier:
    """With a normalisation, whose statistics training mode would change."""
    model = convolutional(head)
    deep = model.backbone.get_submodule("deep")
    assert isinstance(deep, nn.Sequential)
    deep.insert(1, nn.BatchNorm2d(6).double().eval())
    return model


def maps_of(
    model: Classifier, x: Tensor, method: str, layer: str | None = None, labels: Any = None, **more: Any
) -> Tensor:
    return explain(model, x, method, labels, layer, **OPTIONS.get(method, {}), **more)


def state_of(model: Classifier) -> list[object]:
    """Everything that a call could leave behind: modes, hooks, parameters, buffers, gradients, torch's own state."""
    found: list[object] = [torch.is_grad_enabled(), torch.get_rng_state().tolist()]
    for name, module in model.named_modules():
        hooks = [value for key, value in vars(module).items() if key.endswith("_hooks")]
        found.append((name, type(module), module.training, [list(hook) for hook in hooks if hook is not None]))
    for key, values in model.state_dict().items():
        found.append((key, values.tolist()))
    for key, parameter in model.named_parameters():
        gradient = None if parameter.grad is None else parameter.grad.tolist()
        found.append((key, id(parameter), parameter.requires_grad, gradient))
    return found


class StoppedError(RuntimeError):
    """What a network raises in a pass."""


@contextmanager
def stopping(model: Classifier, at: int) -> Iterator[list[int]]:
    """Count the passes through the last stage, and stop in one of them; below 1: in none."""
    passes: list[int] = []

    def stop(*_: object) -> None:
        passes.append(len(passes) + 1)
        if len(passes) == at:
            raise StoppedError

    handle = model.backbone.get_submodule("last").register_forward_pre_hook(stop)
    try:
        yield passes
    finally:
        handle.remove()


@in_every_case
def test_everything_is_as_it_was(method: str, head: str, layer: str | None) -> None:
    """After a call, and after one that fails in its first pass, in the middle, or in its last."""
    model, x = network(head).train(), random_images(2, 2, 8, 7)
    model.backbone.get_submodule("deep").eval()
    first, second, *_ = model.parameters()
    first.grad, second.requires_grad = torch.ones_like(first), False
    model.backbone.get_submodule("deep").register_forward_hook(lambda *_: None)
    before, seen = state_of(model), x.clone()
    with stopping(model, 0) as passes:
        maps_of(model, x, method, layer)
    assert passes
    assert state_of(model) == before
    for at in sorted({1, len(passes) // 2 + 1, len(passes)}):
        with pytest.raises(StoppedError), stopping(model, at):
            maps_of(model, x, method, layer)
        assert state_of(model) == before
    assert torch.equal(x, seen)
    assert not x.requires_grad


@in_every_case
def test_training_mode_frozen_parameters_and_inference_mode_change_no_map(
    method: str, head: str, layer: str | None
) -> None:
    model, x = network(head), random_images(2, 2, 8, 7)
    expected = maps_of(model, x, method, layer)
    assert not expected.requires_grad
    model.train().requires_grad_(requires_grad=False)
    with torch.inference_mode():
        found = maps_of(model, x * 1.0, method, layer)
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
@in_every_case
def test_maps_are_at_least_float32(method: str, head: str, layer: str | None, dtype: torch.dtype) -> None:
    x = random_images(2, 2, 8, 7)
    maps = maps_of(network(head).to(dtype), x.to(dtype), method, layer)
    assert maps.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    assert maps.device == x.device
    if dtype == torch.float32:
        torch.testing.assert_close(maps.double(), maps_of(network(head), x, method, layer), rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@in_every_case
def test_half_precision_gives_the_maps_of_its_weights(
    method: str, head: str, layer: str | None, dtype: torch.dtype
) -> None:
    """Differences of probabilities among them, which half precision of the head would round away."""
    model, x = network(head).to(dtype), random_images(2, 2, 8, 7).to(dtype)
    found = maps_of(model, x, method, layer)
    full = maps_of(model.float(), x.float(), method, layer)
    both = torch.stack([found.double().flatten(), full.double().flatten()])
    assert float(torch.corrcoef(both)[0, 1]) > 0.99


@pytest.mark.gpu
@in_every_case
def test_maps_of_a_gpu_are_those_of_the_cpu(method: str, head: str, layer: str | None) -> None:
    model, x = network(head), random_images(2, 2, 8, 7)
    expected = maps_of(model, x, method, layer)
    found = maps_of(model.cuda(), x.cuda(), method, layer)
    assert found.is_cuda
    torch.testing.assert_close(found.cpu(), expected)


@in_every_case
def test_maps_do_not_depend_on_the_batch(method: str, head: str, layer: str | None) -> None:
    model, x = network(head), random_images(3, 2, 8, 7)
    whole = maps_of(model, x, method, layer, seeds=[4, 5, 6])
    for row, seed in ((2, 6), (0, 4)):
        torch.testing.assert_close(maps_of(model, x[[row]], method, layer, seeds=[seed]), whole[[row]])


@in_every_case
def test_labels_are_those_asked_for(method: str, head: str, layer: str | None) -> None:
    """In their order; where patches ask for different ones, NaN stands for the others."""
    model, x = network(head), random_images(3, 2, 8, 7)
    every = maps_of(model, x, method, layer)
    in_order, by_patch = (maps_of(model, x, method, layer, labels) for labels in ([2, 0], [[0, 2], [], [1]]))
    if not METHODS[method].per_label:
        assert every.shape[:2] == (3, 1)
        assert torch.equal(in_order, every)
        assert torch.equal(by_patch, every)
        return
    assert every.shape[:2] == (3, 3)
    torch.testing.assert_close(in_order, every[:, [2, 0]])
    wanted = torch.tensor([[1, 0, 1], [0, 0, 0], [0, 1, 0]]) == 1
    torch.testing.assert_close(by_patch[wanted], every[wanted])
    assert by_patch[~wanted].isnan().all()


@of_every_method
def test_labels_out_of_range_are_refused_before_any_pass(method: str) -> None:
    model, x = network(), random_images(2, 2, 8, 7)
    with recorded(model) as batches:
        for labels in ([3], [-1], [0, 3], [], [[3], []]):
            with pytest.raises(ConfigError, match="the model has labels 0 to 2, asked were"):
                maps_of(model, x, method, labels=labels)
    assert not batches


@of_every_method
def test_layers_that_do_not_exist_are_refused_before_any_pass(method: str) -> None:
    model, x = network(), random_images(2, 2, 8, 7)
    with recorded(model) as batches:
        if METHODS[method].resolution == "layer":
            for layer in ("conv9", "", "deep.7", "head"):
                with pytest.raises(UnknownNameError, match=f"no layer '{layer}': choose one of deep, last, or one in"):
                    maps_of(model, x, method, layer)
        else:
            with pytest.raises(ConfigError, match=f"{method} looks at the input, not at a layer"):
                maps_of(model, x, method, "deep")
    assert not batches


@pytest.mark.parametrize("method", [name for name, entry in METHODS.items() if entry.linear_head_only])
def test_methods_for_linear_heads_are_refused_elsewhere(method: str) -> None:
    x = random_images(2, 2, 8, 7)
    with pytest.raises(ConfigError, match=f"{method} needs a head that is one linear layer, classifier has Sequential"):
        maps_of(network("mlp"), x, method)
    with pytest.raises(ConfigError, match=f"{method} is defined for the last convolutional stage, last, not for deep"):
        maps_of(network(), x, method, "deep")


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
@in_every_case
def test_what_is_not_finite_shows_in_its_own_maps_alone(
    method: str, head: str, layer: str | None, value: float
) -> None:
    """Never as zeros. Random maps say nothing of the input."""
    x = random_images(3, 2, 8, 7)
    x[1, 0, 2, 2] = value
    maps = maps_of(network(head), x, method, layer)
    finite = maps.isfinite().flatten(2).all(dim=2)
    assert finite[[0, 2]].all()
    assert finite[1].any() == (method == "random")


class _Odds(nn.Module):
    """From logits to those of a sigmoid whose probabilities are the softmax's: y_c - ln sum of exp(y) of the others."""

    def forward(self, logits: Tensor) -> Tensor:
        others = logits[:, None].expand(-1, logits.shape[1], -1).clone()
        others.diagonal(dim1=1, dim2=2).fill_(-torch.inf)
        return logits - others.logsumexp(dim=2)


@pytest.mark.parametrize("head", ["linear", "mlp"])
@pytest.mark.parametrize("method", ["score_cam", "rise", "occlusion", "lime"])
def test_softmax_is_what_scores_are_made_of(method: str, head: str) -> None:
    """`test_score_cam.py` has Grad++ScoreCAM, and `test_hessian_ciam.py` Hessian-CIAM, by their formulas."""
    model, x = network(head), random_images(2, 2, 8, 7)
    found = maps_of(model, x, method, activation="softmax")
    sigmoid = maps_of(model, x, method)
    model.head = nn.Sequential(model.head, _Odds())
    torch.testing.assert_close(found, maps_of(model, x, method))
    assert not torch.allclose(found, sigmoid)


@pytest.mark.parametrize(
    ("method", "head", "layer"),
    [
        case
        for case in CASES
        if case[0] not in {"score_cam", "rise", "occlusion", "lime", "grad_plus_plus_score_cam", "hessian_ciam"}
    ],
)
def test_maps_of_logits_do_not_know_of_the_softmax(method: str, head: str, layer: str | None) -> None:
    model, x = network(head), random_images(2, 2, 8, 7)
    assert torch.equal(
        maps_of(model, x, method, layer, activation="softmax"), maps_of(model, x, method, layer, activation="sigmoid")
    )
