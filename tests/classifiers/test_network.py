"""Layer groups and maps, against the networks' own structure by hand."""

import pytest
import torch
from torch import nn

from classifiers.cam.explain import explain
from classifiers.network import Classifier, layer_depths
from classifiers.registry import build, names
from infra.errors import ConfigError, ShapeError


def without_data(name: str, head: str = "linear") -> Classifier:
    with torch.device("meta"):
        return build(name, 3, head=head)


def test_groups_of_resnet18_by_hand() -> None:
    depths = layer_depths(without_data("resnet18"))
    by_hand = {
        "backbone.conv1.weight": 0,
        "backbone.bn1.bias": 0,
        "backbone.layer1.0.bn1.weight": 1,
        "backbone.layer1.1.conv2.weight": 2,
        "backbone.layer2.0.downsample.0.weight": 3,
        "backbone.layer2.1.conv1.weight": 4,
        "backbone.layer3.0.conv1.weight": 5,
        "backbone.layer3.1.bn2.bias": 6,
        "backbone.layer4.0.downsample.1.weight": 7,
        "backbone.layer4.1.conv1.weight": 8,
        "head.weight": 9,
        "head.bias": 9,
    }
    assert {key: depths[key] for key in by_hand} == by_hand


def test_groups_of_inception_v4_by_hand() -> None:
    depths = layer_depths(without_data("inception_v4", head="mlp"))
    by_hand = {f"backbone.features.{i}": max(0, i - 2) for i in range(22)} | {"head.0": 20, "head.2": 20}
    for key, depth in depths.items():
        parts = key.split(".")
        assert depth == by_hand[".".join(parts[: 2 if parts[0] == "head" else 3])], key
    assert len(set(by_hand.values())) == 21


@pytest.mark.parametrize(
    ("name", "blocks"), [("resnet18", 8), ("resnet50", 16), ("resnet101", 33), ("resnet152", 50), ("inception_v4", 19)]
)
def test_every_parameter_is_in_one_group_and_groups_deepen_towards_the_head(name: str, blocks: int) -> None:
    """The numbers of blocks are the papers'; parameters are listed in the order of the forward pass."""
    assert name in names()
    classifier = without_data(name)
    depths = layer_depths(classifier)
    in_order = [depths[key] for key, _ in classifier.named_parameters()]
    assert len(in_order) == len(depths)
    assert in_order == sorted(in_order)
    assert set(in_order) == set(range(blocks + 2))
    assert [key for key, depth in depths.items() if depth == blocks + 1] == ["head.weight", "head.bias"]


def test_a_backbone_of_another_library_has_no_groups() -> None:
    with pytest.raises(ConfigError, match="no layer groups"):
        layer_depths(Classifier(nn.Conv2d(3, 4, 1), nn.Linear(4, 2), "conv", 2))


@pytest.mark.parametrize(
    ("name", "size"),
    [("resnet18", (32, 33)), ("resnet18", (120, 64)), ("resnet50", (65, 97)), ("inception_v4", (75, 120))],
)
def test_the_size_of_a_map_is_known_without_a_pass(name: str, size: tuple[int, int]) -> None:
    model = build(name, 3, in_channels=2).eval()
    with torch.no_grad():
        assert model.map_size((2, *size)) == model.features(torch.zeros(1, 2, *size)).shape[2:]
    assert without_data(name).eval().map_size((3, *size)) == model.map_size((2, *size))
    assert not any(tensor.is_meta for tensor in model.state_dict().values())
    with pytest.raises(
        ShapeError, match=f"needs images of at least {model.min_size} x {model.min_size} pixels, got 120"
    ):
        model.map_size((2, 120, model.min_size - 1))


def test_maps_of_inception_v4_equal_autograd_at_its_target_layer() -> None:
    """`features.21` is the last module of `features` and has its output, but takes the path of hooks and gradients."""
    torch.manual_seed(0)
    model = build("inception_v4", 3, in_channels=4, head="mlp").double().eval()
    x = torch.randn(2, 4, 120, 139, dtype=torch.float64)
    closed = explain(model, x, "grad_cam")
    assert closed.shape == (2, 3, 2, 3)
    assert closed.amax(dim=(2, 3)).min() > 0
    torch.testing.assert_close(explain(model, x, "grad_cam", target_layer="features.21"), closed, rtol=1e-9, atol=0)
