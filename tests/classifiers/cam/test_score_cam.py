"""Oracle: the formulas, literally, one pass for each channel and label; `test_peers.py` has other libraries."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

from classifiers.cam import target as target_module
from classifiers.cam.explain import explain
from classifiers.cam.gradients import layer_activations
from classifiers.cam.options import GradPlusPlusScoreCamOptions, ScoreCamOptions
from classifiers.cam.score_cam import grad_plus_plus_score_cam, score_cam
from classifiers.cam.target import Activation, Target
from classifiers.network import Classifier
from infra.errors import ConfigError
from tests.classifiers.cam.small_networks import convolutional, random_images, recorded

LABELS = (0, 1, 2)


def probability(model: Classifier, image: Tensor, label: int, activation: Activation = "sigmoid") -> float:
    with torch.no_grad():
        logits = model(image[None])[0]
    probs = logits.softmax(dim=0) if activation == "softmax" else logits.sigmoid()
    return float(probs[label])


def scaled(channel: Tensor) -> Tensor | None:
    low, high = channel.min(), channel.max()
    return None if low == high else (channel - low) / (high - low)


def transcribed_score_cam(
    model: Classifier, image: Tensor, label: int, layer: str, activation: Activation = "sigmoid"
) -> Tensor:
    a = layer_activations(model, image[None], layer)[0]
    total = torch.zeros_like(a[0])
    for channel in a:
        up = F.interpolate(channel[None, None], size=image.shape[1:], mode="bilinear", align_corners=False)[0, 0]
        mask = scaled(up)
        if mask is not None:
            gain = probability(model, image * mask, label, activation) - probability(
                model, torch.zeros_like(image), label, activation
            )
            total += gain * channel
    return total.clamp(min=0)


def transcribed_grad_plus_plus_score_cam(
    model: Classifier,
    image: Tensor,
    label: int,
    layer: str,
    reduce_input: bool = False,
    activation: Activation = "sigmoid",
) -> Tensor:
    """Masks of w A, not of A; w from autograd through the whole network."""
    kept: list[Tensor] = []
    handle = model.backbone.get_submodule(layer).register_forward_hook(lambda _m, _i, out: kept.append(out))
    logit = model(image[None])[0, label]
    handle.remove()
    (g,) = torch.autograd.grad(logit, kept[0])
    a, g = kept[0][0].detach(), g[0]
    seen = F.adaptive_avg_pool2d(image, (a.shape[1], a.shape[2])) if reduce_input else image
    total = torch.zeros_like(a[0])
    for k in range(len(a)):
        weight = 0.0
        for value in g[k].flatten().tolist():
            if value > 0:
                weight += value**2 / (2 * value**2 + float(a[k].sum()) * value**3) * value
        if weight > 0:
            up = F.interpolate((weight * a[k])[None, None], size=seen.shape[1:], mode="bilinear")[0, 0]
            mask = scaled(up)
            if mask is not None:
                gain = probability(model, seen * mask, label, activation) - probability(
                    model, torch.zeros_like(seen), label, activation
                )
                total += gain * a[k]
    return total.clamp(min=0)


@pytest.mark.parametrize("activation", ["sigmoid", "softmax"])
@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("layer", ["last", "deep"])
def test_score_cam_equals_its_formula(layer: str, stride: int, activation: Activation) -> None:
    model = convolutional(stride=stride)
    x = random_images(2, 2, 9, 8)
    expected = torch.stack(
        [torch.stack([transcribed_score_cam(model, image, c, layer, activation) for c in LABELS]) for image in x]
    )
    found = explain(model, x, "score_cam", target_layer=layer, activation=activation)
    assert (expected > 0).float().mean() > 0.2
    torch.testing.assert_close(found, expected)
    chosen = explain(model, x, "score_cam", labels=[2, 0], target_layer=layer, activation=activation)
    torch.testing.assert_close(chosen, expected[:, [2, 0]])


@pytest.mark.parametrize("activation", ["sigmoid", "softmax"])
@pytest.mark.parametrize("head", ["linear", "mlp"])
@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("layer", ["last", "deep"])
def test_grad_plus_plus_score_cam_equals_its_formula(
    layer: str, stride: int, head: str, activation: Activation
) -> None:
    model = convolutional(head, stride=stride)
    x = random_images(2, 2, 9, 8)
    score_cams = explain(model, x, "score_cam", target_layer=layer, activation=activation)
    for reduce_input in (False, True):
        expected = torch.stack(
            [
                torch.stack(
                    [
                        transcribed_grad_plus_plus_score_cam(model, image, c, layer, reduce_input, activation)
                        for c in LABELS
                    ]
                )
                for image in x
            ]
        )
        found = explain(
            model, x, "grad_plus_plus_score_cam", None, layer, activation=activation, reduce_input=reduce_input
        )
        assert (expected > 0).flatten(2).any(dim=2).float().mean() >= 1 / 3
        assert not torch.equal(expected, score_cams)
        torch.testing.assert_close(found, expected)


def test_softmax_weights_are_shares_of_the_channels_that_have_a_mask() -> None:
    """Weights of one label add up to 1 over the living channels, and are in the ratio of exp(f_c)."""
    model = convolutional()
    x = random_images(1, 2, 6, 6)
    a = model.features(x).detach()[0]
    living = [k for k in range(5) if scaled(a[k]) is not None]
    assert 4 not in living
    for label in LABELS:
        masks = [scaled(a[k]) for k in living]
        scores = torch.tensor([probability(model, x[0] * mask, label) for mask in masks], dtype=torch.float64)  # type: ignore[operator]
        weights = scores.exp() / scores.exp().sum()
        expected = (weights[:, None, None] * a[living]).sum(dim=0)
        found = explain(model, x, "score_cam", labels=[label], weights="softmax")[0, 0]
        torch.testing.assert_close(found, expected)


def test_does_not_depend_on_chunks_or_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    model = convolutional(stride=2)
    x = random_images(3, 2, 9, 8)
    for method in ("score_cam", "grad_plus_plus_score_cam"):
        whole = explain(model, x, method)
        torch.testing.assert_close(torch.cat([explain(model, image[None], method) for image in x]), whole)
        with monkeypatch.context() as patch:
            patch.setattr(target_module, "_CPU_BYTES_AT_ONCE", 2 * 800 * 9 * 8)
            with recorded(model) as batches:
                torch.testing.assert_close(explain(model, x, method), whole)
            assert [len(batch) for batch in batches[1:3]] == [2, 2]


def living_channels(model: Classifier, x: Tensor) -> int:
    a = model.features(x)
    return int((a.amax(dim=(2, 3)) > a.amin(dim=(2, 3))).sum())


def supporting_channels(model: Classifier, x: Tensor, labels: tuple[int, ...]) -> int:
    """Those that live, with a positive weight in the linear head for one of the labels."""
    a = model.features(x)
    weights = model.head.get_parameter("weight")[list(labels)]
    return int(((a.amax(dim=(2, 3)) > a.amin(dim=(2, 3))) & (weights > 0).any(dim=0)).sum())


def test_passes_are_made_once_for_both_methods_and_all_labels() -> None:
    """One to see the layer, one for the blank input, one for each channel that lives."""
    model = convolutional()
    x = random_images(3, 2, 9, 8)
    living, supporting = living_channels(model, x), supporting_channels(model, x, LABELS)
    assert 0 < supporting < living <= 3 * 4
    run: dict[str, Callable[[Target], Tensor]] = {
        "score_cam": lambda target: score_cam(target, ScoreCamOptions()),
        "grad_plus_plus_score_cam": lambda target: grad_plus_plus_score_cam(target, GradPlusPlusScoreCamOptions()),
    }
    alone = {}
    for name, method in run.items():
        with recorded(model) as batches:
            alone[name] = method(Target(model, x, LABELS))
        passes = {"score_cam": living, "grad_plus_plus_score_cam": supporting}[name]
        assert sum(len(batch) for batch in batches) == len(x) + 1 + passes
    for order in (list(run), list(run)[::-1]):
        target = Target(model, x, LABELS)
        with recorded(model) as batches:
            for name in order:
                torch.testing.assert_close(run[name](target), alone[name])
        assert sum(len(batch) for batch in batches) == len(x) + 1 + living
        with recorded(model) as batches:
            torch.testing.assert_close(run["score_cam"](target.of_labels((1,))), alone["score_cam"][:, [1]])
        assert sum(len(batch) for batch in batches) == 1  # the blank input


def test_grad_plus_plus_passes_are_those_of_channels_that_support_a_label() -> None:
    model = convolutional()
    x = random_images(3, 2, 9, 8)
    living, supporting = living_channels(model, x), supporting_channels(model, x, (1,))
    assert 0 < supporting < living
    target = Target(model, x, (1,))
    with recorded(model) as batches:
        grad_plus_plus_score_cam(target, GradPlusPlusScoreCamOptions())
    assert sum(len(batch) for batch in batches) == len(x) + 1 + supporting
    with recorded(model) as batches:
        score_cam(target, ScoreCamOptions())
    assert sum(len(batch) for batch in batches) == living - supporting


@pytest.mark.parametrize("method", ["score_cam", "grad_plus_plus_score_cam"])
def test_a_patch_whose_channels_are_all_constant_has_a_zero_map(method: str) -> None:
    """Of 1 x 1 convolutions a blank patch has constant channels, which enlarging must not turn into noise."""
    torch.manual_seed(1)
    backbone = nn.Sequential()
    backbone.add_module("last", nn.Sequential(nn.Conv2d(2, 4, 1, stride=3), nn.ReLU()))
    model = Classifier(backbone, nn.Linear(4, 2), "last", 2).eval()
    x = torch.zeros(2, 2, 11, 13)
    x[1] = torch.randn(2, 11, 13)
    assert model.features(x)[0].any()
    asked: list[dict[str, Any]] = [{}, {"weights": "softmax"}] if method == "score_cam" else [{}]
    for options in asked:
        maps = explain(model, x, method, **options)
        assert not maps[0].any()
        assert maps[1].any()
        assert maps.isfinite().all()


def test_what_is_not_finite_shows() -> None:
    x = random_images(2, 2, 6, 6)
    x[1, 0, 2, 2] = torch.nan
    for method in ("score_cam", "grad_plus_plus_score_cam"):
        maps = explain(convolutional(), x, method)
        assert maps[1].isnan().any()
        assert maps[0].isfinite().all()


def test_refuses_what_it_cannot_do() -> None:
    model = convolutional(stride=2, min_size=8)
    x = random_images(1, 2, 10, 12)
    with pytest.raises(
        ConfigError, match="an input of 5 x 6 pixels, the size of the map, classifier needs at least 8 x"
    ):
        explain(model, x, "grad_plus_plus_score_cam", reduce_input=True)
    with pytest.raises(ConfigError, match="weights is difference or softmax, got 'logits'"):
        explain(model, x, "score_cam", weights="logits")
    with pytest.raises(ConfigError, match="reduce_input is a bool"):
        explain(model, x, "grad_plus_plus_score_cam", reduce_input=1)
