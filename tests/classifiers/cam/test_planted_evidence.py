"""Oracle: a network built by hand, whose label is a red square in the image, and images of which we know where it is.

Every method must point into the square, and the numbers that judge maps must say so; noise must score what chance does.
"""

from collections.abc import Mapping
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from classifiers.cam.explain import explain
from classifiers.cam.faithfulness import Faithfulness, judge_faithfulness
from classifiers.cam.localisation import localise
from classifiers.cam.methods import METHODS, explain_methods
from classifiers.cam.target import Target
from classifiers.network import Classifier

SIZE, SQUARE = 48, 13
RED, GREEN = 0, 1
CORNERS = ((3, 5), (30, 2), (17, 20), (5, 33), (34, 34), (22, 9))
"""Top left corners of the red squares; the green ones lie opposite."""

QUICK: Mapping[str, dict[str, Any]] = {
    "rise": {"masks": 600},
    "lime": {"samples": 400},
    "smooth_grad_cam_pp": {"samples": 4},
    "occlusion": {"window": 9, "stride": 4},
}
"""Options that save time; other methods run with their own."""

FLOOR = "random"

CASES = [
    (method, head)
    for method in explain_methods()
    for head in ("linear", "mlp")
    if method != FLOOR and (head == "linear" or not METHODS[method].linear_head_only)
]


def colour_seer(head: str) -> Classifier:
    """A network whose three channels see one colour each, and whose three labels are these colours."""
    conv = nn.Conv2d(3, 3, 3, padding=1)
    nn.init.zeros_(conv.weight)
    nn.init.constant_(conv.bias, -0.1)  # type: ignore[arg-type]  # there is one
    for colour in range(3):
        conv.weight.data[colour, colour] = 1 / 9
    backbone = nn.Sequential()
    backbone.add_module("colours", nn.Sequential(conv, nn.ReLU(), nn.AvgPool2d(4)))
    last = nn.Linear(3, 3)
    last.weight.data = 20 * torch.eye(3) - 2
    nn.init.constant_(last.bias, -2.0)
    if head == "linear":
        return Classifier(backbone, last, "colours", 3).eval()
    first = nn.Linear(3, 3)
    first.weight.data = torch.eye(3)
    nn.init.zeros_(first.bias)
    return Classifier(backbone, nn.Sequential(first, nn.Tanh(), last), "colours", 3).eval()


def planted(corners: tuple[tuple[int, int], ...], seed: int = 0) -> tuple[Tensor, Tensor]:
    """Return noisy images with a red square and a paler green one, (N, 3, 48, 48), and the red squares' masks."""
    x = 0.3 * torch.randn(len(corners), 3, SIZE, SIZE, generator=torch.Generator().manual_seed(seed))
    masks = torch.zeros(len(corners), SIZE, SIZE, dtype=torch.bool)
    for row, (top, left) in enumerate(corners):
        masks[row, top : top + SQUARE, left : left + SQUARE] = True
    x[:, RED] += 2.0 * masks
    x[:, GREEN] += 1.0 * masks.flip((1, 2))
    return x, masks


def red_maps(model: Classifier, x: Tensor, method: str) -> Tensor:
    """Return the maps of the red label, or of a method without labels, (N, h, w)."""
    return explain(model, x, method, [RED] if METHODS[method].per_label else None, **QUICK.get(method, {}))[:, 0]


def faithfulness(model: Classifier, x: Tensor, maps: Tensor) -> Faithfulness:
    rows = torch.arange(len(x))
    return judge_faithfulness(Target(model, x, (RED,)), maps, rows, torch.zeros_like(rows))


@pytest.mark.parametrize("head", ["linear", "mlp"])
def test_the_label_depends_on_the_square(head: str) -> None:
    model = colour_seer(head)
    x, masks = planted(CORNERS)
    seen, without = (model(image).sigmoid()[:, RED] for image in (x, x * ~masks[:, None]))
    assert (seen > 0.5).all()
    assert (without < 0.2).all()


@pytest.mark.parametrize(("method", "head"), CASES)
def test_every_method_points_at_the_evidence(method: str, head: str) -> None:
    model = colour_seer(head)
    x, masks = planted(CORNERS)
    maps = red_maps(model, x, method)
    found = localise(maps, masks)
    assert found.pointing.tolist() == [1.0] * len(x)
    assert found.judd_auc.min() > 0.8
    assert found.correlation.min() > 0.3
    ours, noise = faithfulness(model, x, maps), faithfulness(model, x, red_maps(model, x, FLOOR))
    assert (ours.insertion_auc > noise.insertion_auc).all()
    assert (ours.deletion_auc < noise.deletion_auc).all()
    assert (ours.average_drop < noise.average_drop).all()


@pytest.mark.parametrize("method", [name for name in explain_methods() if METHODS[name].per_label])
def test_maps_of_the_other_label_point_at_its_own_square(method: str) -> None:
    model = colour_seer("linear")
    x, masks = planted(CORNERS[:2])
    maps = explain(model, x, method, [GREEN], **QUICK.get(method, {}))[:, 0]
    assert localise(maps, masks.flip((1, 2))).pointing.tolist() == [1.0, 1.0]
    assert localise(maps, masks).judd_auc.max() < 0.6


def test_noise_scores_what_chance_does() -> None:
    """Means over 300 maps lie within four standard errors of 1/2, and of the square's share of the image."""
    count = 300
    x, masks = planted(CORNERS[2:3] * count)
    found = localise(red_maps(colour_seer("linear"), x, FLOOR), masks)
    assert abs(float(found.judd_auc.mean()) - 0.5) < 4 * float(found.judd_auc.std()) / count**0.5
    assert 0.02 < float(found.judd_auc.std()) < 0.2
    share = SQUARE**2 / SIZE**2
    assert abs(float(found.pointing.mean()) - share) < 4 * (share * (1 - share) / count) ** 0.5
    assert float(found.area_share[0]) == pytest.approx(share)
