"""Oracles: a loop that changes one image at a time, a network that sees one square, and hand numbers."""

from dataclasses import asdict
from itertools import pairwise

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from classifiers.cam import target as target_module
from classifiers.cam.faithfulness import Faithfulness, judge_faithfulness
from classifiers.cam.methods import STEPS
from classifiers.cam.target import Activation, Target
from classifiers.network import Classifier
from infra.errors import ConfigError, ShapeError
from tests.classifiers.cam.small_networks import LABELS, images, network, recorded

NAMES = ("average_drop", "average_increase", "deletion_auc", "insertion_auc")


def target_of(x: Tensor, activation: Activation = "sigmoid", labels: tuple[int, ...] = (0, 1, 2)) -> Target:
    return Target(network("mlp"), x, labels, activation=activation)


def slow(target: Target, raw: Tensor, patch: int, label: int, steps: int) -> list[float]:
    """Return the four numbers of one map, image by image."""
    x = target.x[patch]
    column = target.labels[label]

    def prob(image: Tensor) -> float:
        logits = target.model(image[None])[0]
        probs = logits.softmax(dim=0) if target.activation == "softmax" else logits.sigmoid()
        return float(probs[column].detach())

    relu = raw.double().clamp(min=0)
    scaled = (relu - relu.min()) / (relu.max() - relu.min())
    large = functional.interpolate(scaled[None, None], size=x.shape[1:], mode="bilinear")[0, 0]
    whole, masked = prob(x), prob(x * large)
    flat = large.flatten().tolist()
    falling = sorted(range(len(flat)), key=lambda i: (-round(flat[i], 9), i))
    curves = []
    for start, end in ((x, torch.zeros_like(x)), (torch.zeros_like(x), x)):
        shares, probs = [], []
        for step in range(steps + 1):
            count = int(step * len(flat) / steps + 0.5)
            image = start.clone()
            for i in falling[:count]:
                image[:, i // x.shape[2], i % x.shape[2]] = end[:, i // x.shape[2], i % x.shape[2]]
            shares.append(count / len(flat))
            probs.append(prob(image))
        points = list(zip(shares, probs, strict=True))
        curves.append(sum((b[0] - a[0]) * (a[1] + b[1]) / 2 for a, b in pairwise(points)))
    return [100 * max(0.0, whole - masked) / whole, 100.0 * (whole < masked), *curves]


@pytest.mark.parametrize("activation", ["sigmoid", "softmax"])
@pytest.mark.parametrize("steps", [1, 5, 42])
def test_equal_a_loop_over_images(activation: Activation, steps: int) -> None:
    """Maps coarser than the input and on its grid, with and without ties; labels in an order of their own."""
    target = target_of(images(3), activation, labels=(2, 0))
    generator = torch.Generator().manual_seed(0)
    patch, label = torch.tensor([0, 2, 2, 1, 0]), torch.tensor([1, 0, 1, 0, 0])
    for maps in (
        torch.rand(5, 3, 3, generator=generator),
        torch.randn(5, 7, 6, generator=generator),
        torch.randint(0, 3, (5, 7, 6), generator=generator).float(),
    ):
        found = judge_faithfulness(target, maps, patch, label, steps)
        expected = [slow(target, *item, steps) for item in zip(maps, patch.tolist(), label.tolist(), strict=True)]
        for name, column in zip(NAMES, np.array(expected).T, strict=True):
            np.testing.assert_allclose(getattr(found, name).numpy(), column, rtol=1e-5, atol=1e-7, err_msg=name)


def judged(target: Target, maps: Tensor) -> Faithfulness:
    """Return what is found of one map of each patch, for label 0."""
    rows = torch.arange(len(maps))
    return judge_faithfulness(target, maps, rows, torch.zeros_like(rows))


def square_seer(size: int = 20) -> tuple[Classifier, Tensor]:
    """A network whose logit is 200 times the mean of a square of 4 x 4, less 4, and where that square lies."""
    where = torch.zeros(size, size)
    where[3:7, 10:14] = 1.0

    class InSquare(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x * where

    head = nn.Linear(1, 1)
    head.weight.data.fill_(8 * size**2 / 16)
    head.bias.data.fill_(-4)
    return Classifier(InSquare(), head, "backbone", 1).eval(), where


def test_a_map_on_what_the_network_sees_is_faithful_and_its_opposite_is_not() -> None:
    """4 % of the pixels hold all that counts: deleted first the curve falls at once, last at the very end."""
    model, where = square_seer()
    found = judged(Target(model, torch.ones(2, 1, 20, 20), (0,)), torch.stack([where, 1 - where]))
    high, low = torch.tensor(4.0).sigmoid(), torch.tensor(-4.0).sigmoid()
    torch.testing.assert_close(found.average_drop, torch.stack([torch.zeros(()), 100 * (high - low) / high]))
    assert found.average_increase.tolist() == [0.0, 0.0]
    assert found.deletion_auc[0] < float(low) + 0.04
    assert found.insertion_auc[0] > float(high) - 0.04
    assert found.deletion_auc[1] > float(high) - 0.04
    assert found.insertion_auc[1] < float(low) + 0.04


def test_leaving_out_what_speaks_against_the_label_is_an_increase() -> None:
    model, where = square_seer()
    x = torch.ones(2, 1, 20, 20)
    x[:, :, 3:5, 10:14] = -1.0
    for_it = where.clone()
    for_it[3:5] = 0
    found = judged(Target(model, x, (0,)), torch.stack([for_it, where]))
    assert found.average_increase.tolist() == [100.0, 0.0]
    assert found.average_drop.tolist() == [0.0, 0.0]


def test_steps_cost_little_of_the_area() -> None:
    """No more than half a step's share of the curve's variation, against single pixels."""
    model, _ = square_seer()
    x = torch.rand(3, 1, 20, 20, generator=torch.Generator().manual_seed(0)) * 2
    maps = torch.rand(3, 4, 4, generator=torch.Generator().manual_seed(1))
    target, rows = Target(model, x, (0,)), torch.arange(3)
    some = judge_faithfulness(target, maps, rows, rows * 0)
    every = judge_faithfulness(target, maps, rows, rows * 0, steps=400)
    variation = target.probabilities_of(x)[:, 0] - target.blank_probabilities[0, 0]
    for name in ("deletion_auc", "insertion_auc"):
        difference = getattr(some, name) - getattr(every, name)
        assert (difference.abs() <= variation / (2 * STEPS) + 1e-6).all()
        assert difference.any()


@pytest.mark.parametrize("factor", [2.0**-100, 1e30])
def test_does_not_depend_on_the_scale(factor: float) -> None:
    target = target_of(images(4))
    maps = torch.randn(4, 3, 3, generator=torch.Generator().manual_seed(0))
    one, other = judged(target, maps), judged(target, maps * factor)
    for name in NAMES:
        torch.testing.assert_close(getattr(other, name), getattr(one, name))


def test_maps_that_say_nothing_are_null_and_change_no_other() -> None:
    maps = torch.rand(6, 3, 3, generator=torch.Generator().manual_seed(0))
    maps[0], maps[1], maps[2] = 0.0, -1.0, 0.3
    maps[3, 0, 0], maps[4, 0, 0] = torch.nan, -torch.inf
    target = target_of(images(6))
    found = judged(target, maps)
    alone = judge_faithfulness(target, maps[5:], torch.tensor([5]), torch.tensor([0]))
    for name in NAMES:
        assert getattr(found, name).isnan().tolist() == [True] * 5 + [False], name
        torch.testing.assert_close(getattr(found, name)[5:], getattr(alone, name))
    nothing = judge_faithfulness(target, maps[:0], torch.zeros(0), torch.zeros(0))
    assert all(values.shape == (0,) for values in asdict(nothing).values())


class BrokenBelow(nn.Module):
    """Logits that are NaN where the first pooled feature lies below a limit."""

    def __init__(self, limit: float) -> None:
        super().__init__()
        self.limit = limit
        self.scale = nn.Parameter(torch.ones(()))

    def forward(self, pooled: Tensor) -> Tensor:
        return torch.where(pooled[:, :1] < self.limit, torch.nan, self.scale * pooled[:, :1])


@pytest.mark.parametrize("limit", [2.0, 0.75])
def test_a_probability_that_is_not_a_number_is_no_perfect_score(limit: float) -> None:
    """That of the whole input, and that of the half which the map keeps."""
    x, where = torch.ones(1, 1, 4, 4), torch.zeros(1, 4, 4)
    where[0, :2] = 1.0
    found = judged(Target(Classifier(nn.Identity(), BrokenBelow(limit), "backbone", 1).eval(), x, (0,)), where)
    assert all(getattr(found, name).isnan().all() for name in NAMES)


def test_a_label_without_any_probability_cannot_drop() -> None:
    """A logit of -800 has a probability of 0; a sixteenth of the input has -50, half of it -400, which is 0 too."""
    head = nn.Linear(1, 1, bias=False)
    head.weight.data.fill_(-800.0)
    maps = torch.zeros(2, 4, 4)
    maps[0, 0, 0], maps[1, :2] = 1.0, 1.0
    found = judged(Target(Classifier(nn.Identity(), head, "backbone", 1).eval(), torch.ones(2, 1, 4, 4), (0,)), maps)
    assert (found.average_drop.tolist(), found.average_increase.tolist()) == ([0.0, 0.0], [100.0, 0.0])


def test_does_not_depend_on_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    maps = torch.randn(5, 3, 3, generator=torch.Generator().manual_seed(0))
    whole = judged(target_of(images(5)), maps)
    for images_at_once in (1, 7, 200):
        monkeypatch.setattr(
            target_module, "_CPU_BYTES_AT_ONCE", images_at_once * 2 * target_module._BYTES_PER_PIXEL * 42
        )
        target = target_of(images(5))
        with recorded(target.model) as batches:
            parts = judged(target, maps)
        assert max(len(batch) for batch in batches) == min(images_at_once, 2 * (2 * STEPS - 1))
        for name in NAMES:
            torch.testing.assert_close(getattr(parts, name), getattr(whole, name))


def test_labels_that_share_a_map_share_its_passes() -> None:
    target = target_of(images(2))
    maps = torch.rand(2, 3, 3, generator=torch.Generator().manual_seed(0))
    patch, label = torch.tensor([0, 0, 0, 1, 1, 1]), torch.arange(LABELS).repeat(2)
    with recorded(target.model) as batches:
        found = judge_faithfulness(target, maps[patch], patch, label, steps=5)
    assert sum(len(batch) for batch in batches) == 2 * 9 + 2 + 1  # of two maps, two whole patches, the blank input
    for row in range(6):
        single = judge_faithfulness(target, maps[patch[row : row + 1]], patch[row : row + 1], label[row : row + 1], 5)
        for name in NAMES:
            torch.testing.assert_close(getattr(found, name)[row : row + 1], getattr(single, name))


def test_equal_maps_of_two_patches_are_two_maps() -> None:
    target = target_of(images(2))
    maps = torch.rand(1, 3, 3, generator=torch.Generator().manual_seed(0)).expand(2, 3, 3)
    found = judged(target, maps)
    assert not torch.equal(found.deletion_auc[0], found.deletion_auc[1])


def test_refuses_what_does_not_fit() -> None:
    target = target_of(images(2))
    maps, rows = torch.rand(2, 3, 3), torch.arange(2)
    for wrong in ((maps[0], rows, rows), (maps, rows[:1], rows), (maps, rows, rows[:1])):
        with pytest.raises(ShapeError, match="M patches and labels"):
            judge_faithfulness(target, *wrong)
    with pytest.raises(ConfigError, match="at least 1 step"):
        judge_faithfulness(target, maps, rows, rows, steps=0)
    with pytest.raises(ConfigError, match=r"has 2 patches, asked were \[1, 2\]"):
        judge_faithfulness(target, maps, rows + 1, rows)
    with pytest.raises(ConfigError, match=r"has 3 labels, asked were \[-1, 0\]"):
        judge_faithfulness(target, maps, rows, rows - 1)
