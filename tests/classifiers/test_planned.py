"""What the registry says of a network is what the network itself says."""

from dataclasses import replace

import pytest
import torch

import classifiers
from classifiers.planned import PlannedNetwork, planned
from classifiers.registry import CLASSIFIERS
from infra.errors import ConfigError, ShapeError, UnknownNameError

EDGES = (32, 64, 65, 75, 76, 91, 120, 299)


@pytest.mark.parametrize(("name", "head"), [("resnet18", "mlp"), *((name, "linear") for name in classifiers.names())])
def test_planned_networks_are_as_the_built_ones(name: str, head: str) -> None:
    with torch.device("meta"):
        built = classifiers.build(name, 5, 3, head).eval()
    known = planned(name, 5, 3, head)
    assert isinstance(known, PlannedNetwork)
    for fact in ("name", "min_size", "num_labels", "has_linear_head"):
        assert getattr(known, fact) == getattr(built, fact)
    for edge in EDGES:
        shape = (3, edge, edge + 7)
        if edge < built.min_size:
            with pytest.raises(ShapeError) as told:
                built.map_size(shape)
            with pytest.raises(ShapeError, match=f"{name} needs images of at least {built.min_size}") as found:
                known.map_size(shape)
            assert str(found.value) == str(told.value)
        else:
            assert known.map_size(shape) == built.map_size(shape)


def test_a_network_that_does_not_tell_is_built(monkeypatch: pytest.MonkeyPatch) -> None:
    entry = replace(CLASSIFIERS["resnet18"], map_edge=None)
    monkeypatch.setattr("classifiers.registry.CLASSIFIERS", {"mine": entry})
    network = planned("mine", 4, 2, "mlp")
    assert network.map_size((2, 120, 64)) == (4, 2)
    assert (network.num_labels, network.has_linear_head) == (4, False)
    with pytest.raises(UnknownNameError):
        planned("other", 4, 2)


def test_no_labels_and_no_channels_are_refused_before_anything_is_built() -> None:
    for labels, channels in ((0, 3), (3, 0)):
        with pytest.raises(ConfigError, match=rf"got {labels} label\(s\) and {channels} channel"):
            planned("resnet18", labels, channels)
