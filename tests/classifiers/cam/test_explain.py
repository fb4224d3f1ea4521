"""Oracles: identities between ways to ask, autograd by hand for chosen labels, and the state of the model before."""

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from classifiers.cam.explain import explain
from classifiers.cam.methods import METHODS, explain_methods, method_and_options
from classifiers.network import Classifier
from infra.errors import ConfigError, ShapeError, UnknownNameError
from tests.classifiers.cam.small_networks import convolutional, random_images, recorded


def test_labels_are_chosen_in_the_order_asked(model: Classifier, x: Tensor) -> None:
    every = explain(model, x, "grad_cam")
    assert torch.equal(explain(model, x, "grad_cam", labels="all"), every)
    torch.testing.assert_close(explain(model, x, "grad_cam", labels=[3, 0]), every[:, [3, 0]])
    hooked = explain(model, x, "grad_cam", labels=[3, 0], target_layer="layer3")
    torch.testing.assert_close(hooked, explain(model, x, "grad_cam", target_layer="layer3")[:, [3, 0]])


@pytest.mark.parametrize("layer", [None, "layer3"])
def test_labels_may_differ_between_patches(model: Classifier, x: Tensor, layer: str | None) -> None:
    """What a patch did not ask for is NaN, what it did is what all labels give."""
    every = explain(model, x, "grad_cam", target_layer=layer)
    probs = model(x).sigmoid().detach()
    limits = probs.median(dim=0).values.tolist()  # a third of the patches lies below, so patches differ
    truth = torch.tensor([[1, 0, 0, 0, 1], [0, 0, 0, 0, 0], [0, 1, 0, 0, 0]])
    wanted = {
        "lists": (explain(model, x, "grad_cam", [[0, 4], [], [1]], layer), truth == 1),
        "true": (explain(model, x, "grad_cam", "true", layer, truth=truth), truth == 1),
        "predicted": (
            explain(model, x, "grad_cam", "predicted", layer, thresholds=limits),
            probs >= torch.tensor(limits),
        ),
        "softmax": (
            explain(model, x, "grad_cam", "predicted", layer, activation="softmax"),
            nn.functional.one_hot(model(x).argmax(dim=1), 5) == 1,
        ),
    }
    for name, (maps, mask) in wanted.items():
        assert maps.shape == every.shape, name
        assert mask.any(), name
        assert not mask.all(), name
        torch.testing.assert_close(maps[mask], every[mask], msg=name)
        assert maps[~mask].isnan().all(), name


def test_no_patch_with_a_label_gives_no_map(model: Classifier, x: Tensor) -> None:
    assert explain(model, x, "grad_cam", "predicted", thresholds=1.1).isnan().all()


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
    assert "grad_cam" in explain_methods()
    with pytest.raises(UnknownNameError, match="grad_cam"):
        explain(model, x, "cam9")
    with pytest.raises(ConfigError, match="does not take samples: it has no options"):
        explain(model, x, "grad_cam", samples=3)
    with pytest.raises(ConfigError, match="3 patches need as many lists"):
        explain(model, x, "grad_cam", labels=[[0], [1]])
    with pytest.raises(ConfigError, match=r"multi-hot \(3, 5\), got none"):
        explain(model, x, "grad_cam", labels="true")
    with pytest.raises(ConfigError, match="'some' is none of"):
        explain(model, x, "grad_cam", labels="some")  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="5 labels need one threshold or as many, got 2"):
        explain(model, x, "grad_cam", labels="predicted", thresholds=[0.5, 0.5])
    with pytest.raises(ShapeError):
        explain(model, x[0], "grad_cam")


def test_an_unknown_activation_is_refused_before_any_pass(model: Classifier, x: Tensor) -> None:
    with recorded(model) as batches, pytest.raises(ConfigError, match="one of sigmoid, softmax, got 'soft_max'"):
        explain(model, x, "occlusion", activation="soft_max")  # type: ignore[arg-type]
    assert not batches


@pytest.mark.parametrize("method", ["grad_cam", "random"])
def test_seeds_are_as_many_as_patches(model: Classifier, x: Tensor, method: str) -> None:
    for seeds in ([1], [1, 2, 3, 4], []):
        with (
            recorded(model) as batches,
            pytest.raises(ConfigError, match=f"3 patches need as many seeds, got {len(seeds)}"),
        ):
            explain(model, x, method, seeds=seeds)
        assert not batches


def test_labels_are_of_one_kind(model: Classifier, x: Tensor) -> None:
    for labels in ([0, [1], [2]], [[1], 0, 2]):
        with pytest.raises(ConfigError, match="indices or a list of indices for each patch, not both"):
            explain(model, x, "grad_cam", labels=labels)  # type: ignore[arg-type]


def test_labels_are_indices(model: Classifier, x: Tensor) -> None:
    """A mask of truth values is not taken for the indices 0 and 1."""
    wrong: list[Any] = [[True, False], [[True], [], []], [1.5], ["0"], [[0], ["a"], []], list(np.array([True]))]
    for labels in wrong:
        with pytest.raises(ConfigError, match="labels are indices, not truth values, names or fractions"):
            explain(model, x, "grad_cam", labels=labels)
    numpys = explain(model, x, "grad_cam", labels=list(np.array([3, 0])))
    assert torch.equal(numpys, explain(model, x, "grad_cam", labels=[3, 0]))


def test_an_integer_for_a_float_is_that_float() -> None:
    """Or it would be another option value where values are written down."""
    for method, given in (("smooth_grad_cam_pp", {"noise": 1}), ("lime", {"kernel_width": 2, "ridge": 3})):
        _, options = method_and_options(method, given)
        for name, value in given.items():
            assert (getattr(options, name), type(getattr(options, name))) == (value, float)
    with pytest.raises(ConfigError, match=r"samples is a int, such as 8; got 2\.0"):
        method_and_options("smooth_grad_cam_pp", {"samples": 2.0})
    with pytest.raises(ConfigError, match=r"noise is a float, such as 0\.3; got True"):
        method_and_options("smooth_grad_cam_pp", {"noise": True})


@pytest.mark.parametrize("method", [name for name, entry in METHODS.items() if hasattr(entry.options(), "seed")])
def test_seeds_are_those_that_generators_take(model: Classifier, x: Tensor, method: str) -> None:
    for seed in (-1, 1 << 63, 10**30):
        with pytest.raises(ConfigError, match=f"{method} needs a seed from 0 to 2.63 - 1, got {seed}"):
            method_and_options(method, {"seed": seed})
    quick: dict[str, Any] = {"rise": {"masks": 2}, "lime": {"samples": 2}}.get(method, {})
    assert explain(model, x, method, seed=(1 << 63) - 1, **quick).isfinite().all()


@pytest.mark.parametrize(
    ("method", "options", "words"),
    [
        ("occlusion", {"window": 65}, "a window of 65 x 65 pixels does not fit an input of 64 x 96"),
        ("rise", {"cells": 65}, "rise: 65 cells do not fit an edge of an input of 64 x 96"),
        ("lime", {"cells": 65}, "lime: 65 cells do not fit an edge of an input of 64 x 96"),
        ("grad_plus_plus_score_cam", {"reduce_input": True}, "an input of 2 x 3 pixels, the size of the map, resnet18"),
    ],
)
def test_options_that_do_not_fit_are_refused_before_any_pass_and_when_they_are_used(
    model: Classifier, x: Tensor, method: str, options: dict[str, Any], words: str
) -> None:
    entry, chosen = method_and_options(method, options)
    with pytest.raises(ConfigError, match=words):
        explain(model, x, method, **options)
    with recorded(model) as batches, pytest.raises(ConfigError, match=words):
        entry.check(chosen, model, (3, 64, 96))
    assert all(batch.is_meta for batch in batches)  # of which only the shape is known
    entry.check(entry.options(), model, (3, 64, 96))
    entry.check(chosen, model, (3, 1024, 1025))  # a map of 32 x 33


def test_other_methods_fit_any_input(model: Classifier) -> None:
    for entry in METHODS.values():
        if entry.resolution == "layer":
            entry.check(entry.options(), model, (3, 32, 32))


@pytest.mark.parametrize(
    ("method", "options"),
    [
        ("grad_cam", {}),
        ("eigen_cam", {}),
        ("random", {}),
        ("score_cam", {}),
        ("occlusion", {"window": 4, "stride": 3}),
        ("rise", {"masks": 2, "cells": 3}),
        ("lime", {"cells": 4, "samples": 3}),
    ],
)
@pytest.mark.parametrize("stride", [1, 3])
def test_the_size_of_maps_is_known_without_making_any(method: str, options: dict[str, Any], stride: int) -> None:
    """Of layers, inputs and cells; by shapes alone, so also for a network that has no numbers."""
    entry, chosen = method_and_options(method, options)
    network = convolutional(stride=stride)
    maps = explain(network, random_images(1, 2, 13, 8), method, **options)
    resolutions = {"layer": (-(-13 // stride), -(-8 // stride)), "input": (13, 8), "cells": (4, 4)}
    assert maps.shape[2:] == resolutions[entry.resolution]
    with recorded(network) as batches:
        assert entry.map_size(chosen, network, (2, 13, 8)) == maps.shape[2:]
    assert all(batch.is_meta for batch in batches)
    assert entry.map_size(chosen, convolutional(stride=stride).to("meta"), (2, 13, 8)) == maps.shape[2:]


def test_the_size_of_maps_of_too_small_an_image_is_refused_where_a_layer_makes_them() -> None:
    network = convolutional(min_size=8)
    with pytest.raises(ShapeError, match="at least 8 x 8 pixels, got 8 x 7"):
        METHODS["grad_cam"].map_size(METHODS["grad_cam"].options(), network, (2, 8, 7))
