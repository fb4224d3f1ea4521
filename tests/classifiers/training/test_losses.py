"""Oracles: the papers' formulas written out in float64, torch's own losses, hand numbers."""

import math
from typing import cast

import numpy as np
import pytest
import torch
import torch.nn.functional as F  # noqa: N812  # as everyone writes it
from torch import Tensor

from classifiers.training.losses import Loss, label_weights, probabilities, right_decisions, sample_losses
from infra.errors import ShapeError, UnknownNameError


def some(n: int = 40, labels: int = 5) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    logits = 6 * torch.randn(n, labels, generator=generator, dtype=torch.float64)
    return logits, (torch.rand(n, labels, generator=generator) < 0.4).double()


def asymmetric_by_the_paper(z: float, y: int) -> float:
    """Ridnik et al. 2021, eq. 4 and 7 with g- = 4, g+ = 1, m = 0.05; the loss is minus L+ or L-."""
    p = 1 / (1 + math.exp(-z))
    if y:
        return -((1 - p) ** 1) * math.log(p)
    p_m = max(p - 0.05, 0)
    return -(p_m**4) * math.log(1 - p_m)


def test_asymmetric_loss_is_that_of_the_paper() -> None:
    logits, truth = some()
    weights = torch.tensor([0.5, 1.0, 2.0, 3.0, 4.0]).double()
    by_hand = np.array(
        [
            [asymmetric_by_the_paper(float(z), int(y)) for z, y in zip(*pair, strict=True)]
            for pair in zip(logits, truth, strict=True)
        ]
    )
    found = sample_losses(logits, truth, "asymmetric")
    np.testing.assert_allclose(found, by_hand.mean(axis=1), rtol=1e-12, atol=1e-15)
    weighted = np.where(truth.numpy() == 1, by_hand * weights.numpy(), by_hand).mean(axis=1)
    np.testing.assert_allclose(sample_losses(logits, truth, "asymmetric", weights), weighted, rtol=1e-12, atol=1e-15)


def test_asymmetric_loss_has_no_gradient_for_easy_negatives_and_a_finite_one_everywhere() -> None:
    logits = torch.tensor([[-4.0, -90.0, 90.0, 0.0]], requires_grad=True)  # p = 0.018 < m in the first two
    truth = torch.tensor([[0.0, 1.0, 0.0, 1.0]])
    sample_losses(logits, truth, "asymmetric").sum().backward()  # type: ignore[no-untyped-call]
    assert logits.grad is not None
    assert logits.grad[0, 0] == 0
    assert torch.isfinite(logits.grad).all()
    # Far wrong, L+ is |z|: slope -1, over 4 labels.
    assert float(logits.grad[0, 1]) == pytest.approx(-1 / 4, abs=1e-6)


def test_bce_is_torchs() -> None:
    logits, truth = some()
    weights = torch.linspace(0.5, 3, 5).double()
    plain = F.binary_cross_entropy_with_logits(logits, truth)
    torch.testing.assert_close(sample_losses(logits, truth, "bce").mean(), plain, rtol=1e-12, atol=0)
    weighted = F.binary_cross_entropy_with_logits(logits, truth, pos_weight=weights)
    torch.testing.assert_close(sample_losses(logits, truth, "bce", weights).mean(), weighted, rtol=1e-12, atol=0)


def test_softmax_is_torchs_cross_entropy() -> None:
    logits, _ = some()
    index = torch.arange(40) % 5
    truth = F.one_hot(index, 5).double()
    weights = torch.linspace(0.5, 3, 5).double()
    torch.testing.assert_close(
        sample_losses(logits, truth, "softmax", weights),
        F.cross_entropy(logits, index, weight=weights, reduction="none"),
        rtol=1e-12,
        atol=0,
    )


@pytest.mark.parametrize("loss", ["bce", "asymmetric", "softmax"])
def test_the_loss_of_mixed_labels_is_the_mix_of_the_losses(loss: Loss) -> None:
    logits, truth = some()
    other = truth.flip(0)
    weights = torch.linspace(0.5, 3, 5).double()
    mixed = sample_losses(logits, 0.3 * truth + 0.7 * other, loss, weights)
    apart = [sample_losses(logits, labels, loss, weights) for labels in (truth, other)]
    torch.testing.assert_close(mixed, 0.3 * apart[0] + 0.7 * apart[1], rtol=1e-10, atol=1e-12)


def test_label_weights_by_hand() -> None:
    """Of 1000 samples: 100, 500, 999 (1/999), 1 (999) and none."""
    counts = torch.tensor([100, 500, 999, 1, 0])
    assert label_weights(counts, 1000, "bce").tolist() == pytest.approx([9, 1, 1 / 100, 100, 1])
    assert torch.equal(label_weights(counts, 1000, "asymmetric"), label_weights(counts, 1000, "bce"))
    assert label_weights(counts, 1000, "softmax").tolist() == pytest.approx([2, 0.4, 1000 / (5 * 999), 100, 1])


def test_softmax_weights_have_a_mean_of_one_over_the_samples() -> None:
    counts = torch.tensor([10, 30, 60])
    assert float((counts * label_weights(counts, 100, "softmax")).sum() / 100) == pytest.approx(1)


def test_probabilities_and_decisions_by_hand() -> None:
    logits = torch.tensor([[0.0, math.log(3), -1.0], [math.log(2), 0.0, 0.0]])
    torch.testing.assert_close(
        probabilities(logits, "bce"), torch.tensor([[0.5, 0.75, 1 / (1 + math.e)], [2 / 3, 0.5, 0.5]])
    )
    torch.testing.assert_close(probabilities(logits, "softmax")[1], torch.tensor([0.5, 0.25, 0.25]))
    truth = torch.tensor([[1.0, 0.0, 0.0], [1.0, 1.0, 0.0]])
    # A probability of 0.5 predicts: {0, 1} against {0}, {0, 1, 2} against {0, 1}.
    assert right_decisions(logits, truth, "bce").tolist() == pytest.approx([2 / 3, 2 / 3])
    assert right_decisions(logits, truth, "softmax").tolist() == [0, 1]
    assert right_decisions(logits[:0], truth[:0], "softmax").shape == (0,)


def test_refuses() -> None:
    logits, truth = some()
    with pytest.raises(ShapeError, match=r"logits \(40, 5\), the truth is \(40, 4\)"):
        sample_losses(logits, truth[:, :4], "bce")
    with pytest.raises(ShapeError, match="5 labels need as many weights"):
        sample_losses(logits, truth, "bce", torch.ones(4))
    with pytest.raises(ShapeError, match="between 0 and 7"):
        label_weights(torch.tensor([1, 8]), 7, "bce")
    with pytest.raises(UnknownNameError, match="hinge"):
        probabilities(logits, cast("Loss", "hinge"))
