"""The contract of classifiers: this package's keep it, and each way to break it is named."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

import classifiers
from classifiers import CLASSIFIERS, ClassifierSpec, check_classifier
from infra.errors import ConfigError, UnknownNameError, WeightsError


class Stages(nn.Sequential):
    """Two convolutions, with a fault."""

    def __init__(self, channels: int, fault: str = "") -> None:
        super().__init__(nn.Conv2d(channels, 8, 3, 2, 1), nn.ReLU(), nn.Conv2d(8, 16, 3, 2, 1), nn.ReLU())
        self.fault = fault

    def forward(self, x: Tensor) -> Tensor:
        y = x
        for module in self:
            y = module(y)
        if self.fault == "pooled":
            return y.mean(dim=(2, 3))
        if self.fault == "batch":
            return y - y.mean(dim=0, keepdim=True) / 2
        if self.fault == "chance":
            return y + torch.rand(1)
        if self.fault == "after":
            return y * 2
        return y


def spec(fault: str = "", **changes: object) -> ClassifierSpec:
    entry = ClassifierSpec(
        timm_name=None,
        backbone=lambda channels: Stages(3 if fault == "three" else channels, fault),
        feature_channels=16,
        target_layer="3",
        first_conv="0.weight",
        classifier="fc.",
        min_size=4,
        licence="none",
        paper="none",
    )
    return replace(entry, **changes)  # type: ignore[arg-type]  # any field


def offer(monkeypatch: pytest.MonkeyPatch, entry: ClassifierSpec) -> None:
    monkeypatch.setattr("classifiers.registry.CLASSIFIERS", {**CLASSIFIERS, "mine": entry})


def test_this_package_s_smallest_keeps_it() -> None:
    check_classifier("resnet18")


def test_another_network_of_timm_keeps_it(monkeypatch: pytest.MonkeyPatch) -> None:
    entry = spec(timm_name="regnetx_002", backbone=None, feature_channels=368, target_layer="s4", min_size=32)
    offer(monkeypatch, replace(entry, first_conv="stem.conv.weight", classifier="head.fc."))
    check_classifier("mine")


def test_a_network_of_one_s_own_keeps_it_and_is_explained(monkeypatch: pytest.MonkeyPatch) -> None:
    offer(monkeypatch, spec())
    check_classifier("mine")
    model = classifiers.build("mine", num_labels=2)
    assert classifiers.explain(model, torch.randn(1, 3, 32, 32), "grad_cam").shape == (1, 2, 8, 8)


@pytest.mark.parametrize(
    ("entry", "said"),
    [
        (spec("pooled"), r"4 pixels become \(2, 16\), where \(2, 16, h, w\) is needed"),
        (spec(feature_channels=17), r"\(2, 17, h, w\) is needed"),
        (spec("batch"), "depends on chance, or on those beside it"),
        (spec("chance"), "depends on chance, or on those beside it"),
        (spec("after"), "the output of target_layer, 3, is not what the head pools"),
        (spec(target_layer="conv"), "with 3 bands it fails .UnknownNameError.*no layer 'conv'"),
        (spec("three"), "with 5 bands it fails"),
        (spec(first_conv="2.weight"), "first_conv, 2.weight, is not the convolution that sees the three bands"),
        (spec(first_conv="conv1.weight"), "first_conv, conv1.weight, is not the convolution"),
        (spec(map_edge=lambda edge: edge // 4 + 1), "at 4 pixels map_edge is 2, and its activations 1"),
        (spec(timm_name="resnet18"), "either a timm_name or a backbone"),
        (spec(backbone=None), "either a timm_name or a backbone"),
    ],
    ids=[
        "pooled",
        "channels",
        "batch",
        "chance",
        "after",
        "layer",
        "bands",
        "conv",
        "no conv",
        "map",
        "both",
        "neither",
    ],
)
def test_each_fault_is_named(monkeypatch: pytest.MonkeyPatch, entry: ClassifierSpec, said: str) -> None:
    offer(monkeypatch, entry)
    with pytest.raises(ConfigError, match=rf"mine does not keep the contract of a classifier: .*{said}"):
        check_classifier("mine")


def test_without_an_official_file_the_error_says_to_name_one(monkeypatch: pytest.MonkeyPatch) -> None:
    offer(monkeypatch, spec())
    with pytest.raises(WeightsError, match=r"no weight file was given.*`weights: {mine: FILE}`"):
        classifiers.weights_file("mine")


def test_a_name_that_there_is_not() -> None:
    with pytest.raises(UnknownNameError, match="mine"):
        check_classifier("mine")
