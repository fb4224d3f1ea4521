"""Oracles: closed forms of the schedule, separable toys, repeated runs, and perturbed inputs."""

import math
from collections.abc import Iterator
from typing import Literal

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import log_loss
from torch import Tensor, nn

from classifiers.registry import build
from classifiers.standardise_features import fold, standardise_features
from classifiers.training import (
    EpochRow,
    TensorBatches,
    TrainSettings,
    fit,
    fit_head,
    learning_rate,
    permutation,
    turn,
)
from infra.errors import ConfigError, ShapeError, TrainingError


def toy(n: int, channels: int, labels: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Non-negative features, as after ReLU and pooling, with some dead and some nearly constant channels."""
    rng = np.random.default_rng(seed)
    features = np.maximum(rng.normal(0.2, 0.5, (n, channels)), 0) * rng.gamma(1.0, 1.0, channels)
    features[:, 0], features[:, 1] = 0.0, 3.0
    features[:, 2] = 2.0 + 1e-6 * rng.normal(size=n)
    weights = np.random.default_rng(99).normal(size=(channels, labels)) / math.sqrt(channels)
    truth = features @ weights + 0.3 * rng.normal(size=(n, labels)) > np.linspace(0.2, 1.0, labels)
    return torch.from_numpy(features.astype(np.float32)), torch.from_numpy(truth)


def head_probs(features: Tensor, truth: Tensor, settings: TrainSettings) -> tuple[Tensor, list[int]]:
    torch.manual_seed(0)
    head = nn.Linear(features.shape[1], truth.shape[1])
    half = len(features) // 2
    result = fit_head(head, (features[:half], truth[:half]), (features[half:], truth[half:]), settings)
    with torch.no_grad():
        return head(features).sigmoid(), [result.best_epoch, *(row.best for row in result.rows)]


@pytest.mark.parametrize("optimizer", ["adamw", "adam", "sgd"])
def test_head_fit_forgives_rounding_of_its_features(optimizer: Literal["adamw", "adam", "sgd"]) -> None:
    """Relative changes of 1e-6 (another batch size) change no probability by more than 1e-5, nor the epoch kept."""
    features, truth = toy(400, 96, 5)
    settings = TrainSettings(epochs=10, batch_size=32, lr=1e-2, optimizer=optimizer)
    probs, best = head_probs(features, truth, settings)
    noise = 1e-6 * (2 * torch.rand(features.shape, generator=torch.Generator().manual_seed(1)) - 1)
    other, other_best = head_probs(features * (1 + noise), truth, settings)
    assert not torch.equal(other, probs)
    torch.testing.assert_close(other, probs, rtol=0, atol=1e-5)
    assert other_best == best


def test_head_fit_is_deterministic() -> None:
    features, truth = toy(200, 24, 4)
    settings = TrainSettings(epochs=3, batch_size=32, lr=1e-2)
    probs, best = head_probs(features, truth, settings)
    again, again_best = head_probs(features, truth, settings)
    assert torch.equal(probs, again)
    assert best == again_best


def test_head_fit_finds_the_optimum_of_logistic_regression() -> None:
    """scikit-learn minimises the same loss exactly; without decay the loop must come within 1 % of it."""
    features, truth = toy(300, 10, 1)
    head = nn.Linear(10, 1)
    settings = TrainSettings(epochs=60, batch_size=60, lr=0.1, weight_decay=0)
    result = fit_head(head, (features, truth), (features, truth), settings)
    scaled = standardise_features(features)(features).numpy()
    exact = LogisticRegression(C=np.inf, max_iter=1000).fit(scaled, truth[:, 0].numpy())
    optimum = log_loss(truth[:, 0].numpy(), exact.predict_proba(scaled)[:, 1])
    assert optimum - 1e-6 <= result.rows[-1].validation_loss < 1.01 * optimum
    assert head.weight.dtype == torch.float32
    assert not head.training


def test_folded_head_gives_on_plain_features_what_it_gave_on_scaled_ones() -> None:
    features, _ = toy(50, 8, 3)
    scaling = standardise_features(features)
    layer = nn.Linear(8, 3).double()
    with torch.no_grad():
        expected = layer(scaling(features))
        fold(layer, scaling)
        torch.testing.assert_close(layer(features.double()), expected, rtol=0, atol=1e-12)
    assert not layer.weight[:, :2].any()  # dead and constant channels carry nothing


def test_scaling_is_standardisation_but_for_channels_of_rounding() -> None:
    features, _ = toy(400, 12, 3)
    scaled = standardise_features(features)(features)
    torch.testing.assert_close(scaled.mean(dim=0), torch.zeros(12).double(), rtol=0, atol=1e-9)
    np.testing.assert_allclose(scaled[:, 3:].std(dim=0, correction=0), 1, atol=0.05)
    assert scaled[:, 2].abs().max() < 1e-6  # deviation 1e-6 about 2: rounding, not signal


class Recorder(nn.Module):
    """One weight per label whose value is the number of training steps so far."""

    def __init__(self, labels: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(labels))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.weight


class Scripted:
    """Validation samples whose macro AP in each epoch is chosen by the test; training samples move weights a little."""

    steps_per_epoch = 1

    def __init__(self, good: list[bool]) -> None:
        self.good = good

    def batches(self, epoch: int) -> Iterator[tuple[Tensor, Tensor]]:
        truth = torch.tensor([[1.0], [0.0]])
        yield (truth if self.good[epoch] else 1 - truth), truth


def test_keeps_the_first_of_equal_best_epochs_and_its_weights() -> None:
    """AP is 1 in epochs 1 and 3 and 1/2 in the others: epoch 1 is kept."""
    train = TensorBatches(torch.ones(4, 1), torch.ones(4, 1), 4)
    network, seen, weights = Recorder(1), list[EpochRow](), list[float]()

    def on_epoch(row: EpochRow) -> None:
        seen.append(row)
        weights.append(float(network.weight.detach()))

    settings = TrainSettings(epochs=5, lr=0.1, warmup=0)
    result = fit(network, train, Scripted([False, True, False, True, False]), settings, on_epoch=on_epoch)
    assert [row.validation_ap_macro for row in result.rows] == [0.5, 1, 0.5, 1, 0.5]
    assert result.best_epoch == 1
    assert [row.best for row in result.rows] == [False, True, False, False, False]
    assert [row.best for row in seen] == [True, True, False, False, False]
    assert float(network.weight.detach()) == weights[1]
    assert weights == sorted(weights)
    assert len(set(weights)) == 5


def test_lowest_loss_decides_where_validation_has_no_label() -> None:
    """All truths are 0, so AP is null; the weight is pushed up, the loss of ones grows, and epoch 0 is best."""
    train = TensorBatches(torch.ones(4, 1), torch.ones(4, 1), 4)
    validation = TensorBatches(torch.ones(4, 1), torch.zeros(4, 1), 4)
    result = fit(Recorder(1), train, validation, TrainSettings(epochs=3, lr=0.1))
    assert result.best_epoch == 0
    assert all(math.isnan(row.validation_ap_macro) for row in result.rows)
    losses = [row.validation_loss for row in result.rows]
    assert losses == sorted(losses)


def test_first_step_and_losses_by_hand() -> None:
    """SGD on w with x = 1, y = 1: loss ln 2 at w = 0, dL/dw = sigmoid(w) - y = -1/2, so w = lr / 2."""
    network = Recorder(1)
    samples = TensorBatches(torch.ones(2, 1), torch.ones(2, 1), 2)
    settings = TrainSettings(epochs=1, lr=0.5, optimizer="sgd", warmup=0)
    (row,) = fit(network, samples, samples, settings).rows
    assert row.train_loss == pytest.approx(math.log(2))
    assert float(network.weight.detach()) == pytest.approx(0.25)
    assert row.validation_loss == pytest.approx(math.log(1 + math.exp(-0.25)))
    assert row.lr == 0.5


def test_image_network_trains_on_the_cpu_and_repeats_exactly() -> None:
    rng = np.random.default_rng(0)
    truth = torch.from_numpy(rng.integers(0, 2, (24, 2))).float()
    x = torch.from_numpy(rng.normal(size=(24, 3, 32, 32)).astype(np.float32)) * 0.3 + truth.mean(1)[:, None, None, None]
    results = []
    for _ in range(2):
        torch.manual_seed(1)
        network = build("resnet18", 2)
        train, validation = TensorBatches(x, truth, 8, shuffle_seed=2), TensorBatches(x[:7], truth[:7], 3)
        torch.manual_seed(int(rng.integers(1000)))  # the caller's stream must not matter
        result = fit(network, train, validation, TrainSettings(epochs=2, batch_size=8, seed=2))
        results.append((network.state_dict(), [(r.train_loss, r.validation_loss) for r in result.rows]))
        assert not any(module.training for module in network.modules())
    assert results[0][1] == results[1][1]
    assert all(torch.equal(value, results[1][0][key]) for key, value in results[0][0].items())


def test_frozen_normalisation_keeps_its_statistics() -> None:
    class Frozen(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm, self.head = nn.BatchNorm1d(3), nn.Linear(3, 1)
            self.norm.requires_grad_(requires_grad=False)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.norm(x))  # type: ignore[no-any-return]

    network = Frozen()
    samples = TensorBatches(torch.randn(8, 3) + 5, torch.ones(8, 1), 4)
    fit(network, samples, samples, TrainSettings(epochs=1))
    assert torch.equal(network.norm.running_mean, torch.zeros(3))  # type: ignore[arg-type]


def test_learning_rate_rises_then_falls_as_half_a_cosine() -> None:
    settings = TrainSettings(lr=1.0, warmup=0.2)
    rates = [learning_rate(step, 10, settings) for step in range(10)]
    assert rates[:3] == pytest.approx([1 / 3, 2 / 3, 1.0])
    assert rates[6] == pytest.approx(0.5)  # half of the eight falling steps
    assert rates[9] == pytest.approx(0.5 * (1 + math.cos(math.pi * 7 / 8)))
    assert learning_rate(0, 1, settings) == 1.0


def test_batches_hold_every_sample_once_in_an_order_of_seed_and_epoch() -> None:
    x, y = torch.arange(9)[:, None].float(), torch.zeros(9, 1)
    batches = TensorBatches(x, y, 4, shuffle_seed=7)
    order = [[int(v) for v in b[:, 0]] for b, _ in batches.batches(3)]
    assert [len(b) for b in order] == [3, 3, 3]  # near-equal, not 4, 4, 1
    flat = [value for batch in order for value in batch]
    assert flat == list(permutation(9, 7, 3))
    assert sorted(flat) == list(range(9))
    assert list(permutation(9, 7, 3)) != list(permutation(9, 7, 4))
    plain = [int(v) for b, _ in TensorBatches(x, y, 4).batches(3) for v in b[:, 0]]
    assert plain == list(range(9))


def test_turn_gives_the_eight_symmetries_of_the_square() -> None:
    image = torch.tensor([[1.0, 2.0], [3.0, 4.0]])[None, None]
    turned = turn(image.repeat(8, 1, 1, 1), np.arange(8))
    assert len({tuple(t.flatten().tolist()) for t in turned}) == 8
    assert turned[0].flatten().tolist() == [1, 2, 3, 4]
    assert turned[1].flatten().tolist() == [2, 4, 1, 3]  # counter-clockwise
    assert turned[4].flatten().tolist() == [2, 1, 4, 3]  # left to right


def test_loss_that_is_not_finite_names_the_step() -> None:
    x = torch.ones(6, 1)
    x[4] = math.inf
    samples = TensorBatches(x, torch.zeros(6, 1), 2)
    with pytest.raises(TrainingError, match=r"nan at step 2 \(epoch 0\)|inf at step 2 \(epoch 0\)"):
        fit(nn.Linear(1, 1), samples, TensorBatches(torch.ones(2, 1), torch.ones(2, 1), 2), TrainSettings(epochs=1))


def test_refuses() -> None:
    some, none = (torch.ones(4, 3), torch.ones(4, 2)), (torch.ones(0, 3), torch.ones(0, 2))
    with pytest.raises(TrainingError, match="0 validation"):
        fit_head(nn.Linear(3, 2), some, none, TrainSettings())
    with pytest.raises(TrainingError, match="0 training"):
        fit(nn.Linear(3, 2), TensorBatches(*none, 2), TensorBatches(*some, 2), TrainSettings())
    frozen = nn.Linear(3, 2).requires_grad_(requires_grad=False)
    with pytest.raises(TrainingError, match="all are frozen"):
        fit(frozen, TensorBatches(*some, 2), TensorBatches(*some, 2), TrainSettings())
    with pytest.raises(ShapeError, match=r"\(N, 5\)"):
        fit_head(nn.Linear(5, 2), some, some, TrainSettings())
    with pytest.raises(ShapeError, match="logits"):
        fit(nn.Linear(3, 1), TensorBatches(*some, 2), TensorBatches(*some, 2), TrainSettings())
    with pytest.raises(ConfigError, match="linear"):
        fit_head(nn.ReLU(), some, some, TrainSettings())
    with pytest.raises(ConfigError, match="optimizer"):
        TrainSettings(optimizer="lion")  # type: ignore[arg-type]
    with pytest.raises(ShapeError, match="square"):
        turn(torch.zeros(1, 1, 2, 3), np.zeros(1, np.int64))
