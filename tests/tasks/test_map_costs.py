"""What maps cost, by hand, against what is stored and against passes that are counted."""

from dataclasses import replace

import pytest
import torch

import classifiers
from classifiers.network import Classifier
from infra.errors import ShapeError
from tasks.map_costs import judging_passes, method_costs


def network(head: str = "linear") -> Classifier:
    with torch.device("meta"):
        return classifiers.build("resnet18", 19, 3, head).eval()


def test_values_are_those_of_the_maps_at_the_resolution_they_are_stored_at() -> None:
    """ResNet-18 has 4 x 4 places at 120 pixels and 15 x 15 at 480; nothing is stored finer than the archive."""
    methods = ("grad_cam", "eigen_cam", "rise", "lime")
    values = {
        edge: [cost.values for cost in method_costs(methods, network(), (3, edge, edge), 120, 19)]
        for edge in (120, 480)
    }
    assert values[120] == [4 * 4 * 19, 4 * 4, 120 * 120 * 19, 8 * 8 * 19]
    assert values[480] == [15 * 15 * 19, 15 * 15, 120 * 120 * 19, 8 * 8 * 19]


@pytest.mark.parametrize(("edge", "windows"), [(120, 3136), (480, 55696), (11, 1), (12, 4)])
def test_occlusion_has_a_pass_for_each_window(edge: int, windows: int) -> None:
    """Starts 0, 2, 4, ... until a window of 11 pixels reaches the far edge."""
    starts, last = 0, -11
    while last + 11 < edge:
        last = 2 * starts
        starts += 1
    assert starts**2 == windows
    model = network()
    model.min_size = 1
    (cost,) = method_costs(["occlusion"], model, (3, edge, edge), 120, 19)
    assert (cost.costly, cost.passes) == (True, windows)


def test_passes_follow_the_options_and_the_head() -> None:
    """Grad++ScoreCAM shares the passes of Score-CAM; SmoothGrad-CAM++ has some only where the head is not linear."""
    options = {"rise": {"masks": 300}, "lime": {"samples": 70}}
    methods = ("grad_cam", "smooth_grad_cam_pp", "rise", "lime", "grad_plus_plus_score_cam")
    shape = (3, 120, 120)
    linear = method_costs(methods, network(), shape, 120, 19, options)
    assert [cost.passes for cost in linear] == [0, 0, 300, 70, 512]
    assert [cost.costly for cost in linear] == [False, False, True, True, True]
    mlp = method_costs(methods[:2], network("mlp"), shape, 120, 19)
    assert [(cost.costly, cost.passes) for cost in mlp] == [(False, 0), (True, 8)]
    both = ("score_cam", "grad_plus_plus_score_cam")
    assert [cost.passes for cost in method_costs(both, network(), shape, 120, 19)] == [512, 0]
    reduced = method_costs(both, network(), shape, 120, 19, {"grad_plus_plus_score_cam": {"reduce_input": True}})
    assert [cost.passes for cost in reduced] == [512, 512]
    assert replace(linear[0], method="cam") in method_costs(["cam"], network(), shape, 120, 19)


def test_judging_takes_71_passes_a_map_and_labels_share_a_map_of_the_patch() -> None:
    assert judging_passes(["grad_cam", "layer_cam"], 3) == 71 * 6
    assert judging_passes(["grad_cam", "random"], 3) == 71 * 4
    assert judging_passes(["grad_cam"], 2.5) == 71 * 2.5


def test_a_patch_that_the_network_cannot_see_is_refused() -> None:
    with pytest.raises(ShapeError, match="resnet18 needs images of at least"):
        method_costs(["grad_cam"], network(), (3, 8, 8), 8, 19)
