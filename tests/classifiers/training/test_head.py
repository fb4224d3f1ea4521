"""Oracles: scikit-learn's optimum, repeated and resumed runs, and perturbed inputs."""

from dataclasses import asdict, replace
from pathlib import Path
from typing import Literal

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import log_loss
from torch import Tensor, nn

from classifiers.training.head import HEAD_EPS, HeadTrainer, fit_head
from classifiers.training.losses import probabilities
from classifiers.training.settings import TrainSettings
from classifiers.training.standardise_features import standardise_features
from classifiers.training.trainer import FitResult, Trainer, run_to_end
from infra.errors import ConfigError, ShapeError, TrainingError, WeightsError
from tests.classifiers.training.toy_features import toy


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


def test_softmax_head_finds_the_optimum_of_multinomial_regression() -> None:
    features, scores = toy(300, 10, 3)
    index = (scores.int() @ torch.tensor([1, 2, 4], dtype=torch.int32)) % 3
    truth = torch.eye(3)[index]
    head = nn.Linear(10, 3)
    settings = TrainSettings(epochs=60, batch_size=60, lr=0.1, weight_decay=0, loss="softmax")
    result = fit_head(head, (features, truth), (features, truth), settings)
    scaled = standardise_features(features)(features).numpy()
    exact = LogisticRegression(C=np.inf, max_iter=1000).fit(scaled, index.numpy())
    optimum = log_loss(index.numpy(), exact.predict_proba(scaled))
    assert optimum - 1e-6 <= result.rows[-1].validation_loss < 1.01 * optimum
    with torch.no_grad():
        probs = probabilities(head(features), "softmax")
    by_hand = (probs.argmax(dim=1) == index).double().mean()
    assert result.rows[result.best_epoch].validation_accuracy == pytest.approx(float(by_hand), abs=1e-9)


def mlp(channels: int, labels: int) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(channels, 16), nn.ReLU(), nn.Linear(16, labels))


SETTINGS = TrainSettings(
    epochs=5, batch_size=32, lr=1e-2, ema=0.9, mixup=0.2, loss="asymmetric", class_weights=True, thresholds="tuned"
)


def mlp_trainer(settings: TrainSettings = SETTINGS) -> tuple[nn.Module, HeadTrainer]:
    features, truth = toy(200, 12, 3)
    views = torch.stack([features, features + 0.1, features * 1.1], dim=1)
    head = mlp(12, 3)
    return head, HeadTrainer(head, (views[:150], truth[:150]), (features[150:], truth[150:]), settings)


def same(first: FitResult, second: FitResult) -> bool:
    rows = [
        [{k: v for k, v in asdict(row).items() if k not in {"seconds", "wait_share"}} for row in result.rows]
        for result in (first, second)
    ]
    return rows[0] == rows[1] and first.thresholds == second.thresholds


def test_a_head_of_two_layers_resumes_and_ends_equal() -> None:
    """Views, mixup and the mean of the weights draw nothing that a new process cannot draw again."""
    whole, trainer = mlp_trainer()
    expected = run_to_end(trainer)
    _, stopped = mlp_trainer()
    for _ in range(2):
        stopped.advance()
    resumed, again = mlp_trainer()
    nn.init.zeros_(resumed[0].weight)  # type: ignore[index]
    again.restore(stopped.state())
    assert (again.epoch, again.done) == (2, False)
    found = run_to_end(again)
    assert same(found, expected)
    for key, value in whole.state_dict().items():
        assert value.dtype == torch.float32
        assert torch.equal(resumed.state_dict()[key], value)
    assert again.finish() is found  # and is folded once


def test_a_head_of_two_layers_learns_and_gives_on_plain_features_what_was_validated() -> None:
    features, truth = toy(200, 12, 3)
    head, trainer = mlp_trainer(replace(SETTINGS, epochs=15, mixup=0))
    result = run_to_end(trainer)
    best = result.rows[result.best_epoch]
    assert best.validation_ap_macro > result.rows[0].validation_ap_macro
    with torch.no_grad():
        right = (head(features[150:]) >= 0) == truth[150:]
    assert float(right.double().mean()) == pytest.approx(best.validation_accuracy, abs=1e-9)


def test_several_views_train_as_their_mixture_would() -> None:
    """Views of opposite sign carry nothing: a head on them ends at the prevalence, one on a single view does not."""
    rng = np.random.default_rng(0)
    truth = torch.from_numpy(rng.integers(0, 2, (256, 1)))
    x = (2.0 * truth - 1).float()
    both = torch.stack([x, -x], dim=1)
    settings = TrainSettings(epochs=40, batch_size=64, lr=0.05)
    losses = []
    for views in (both, both[:, :1]):
        trainer: Trainer = HeadTrainer(nn.Linear(1, 1), (views, truth), (x, truth), settings)
        losses.append(run_to_end(trainer).rows[-1].train_loss)
    assert losses[0] == pytest.approx(np.log(2), abs=0.02)
    assert losses[1] < 0.3


def test_labels_that_never_occur_are_told() -> None:
    features, truth = toy(60, 8, 4)
    truth[:40, [1, 3]] = False
    truth[0, [0, 2]] = True
    fits = [
        HeadTrainer(nn.Linear(8, 4), (features[:40], truth[:40]), (features[40:], truth[40:]), TrainSettings(epochs=1))
        for _ in range(2)
    ]
    fits[0].advance()
    fits[1].restore(fits[0].state())
    assert [fit.finish().absent_labels for fit in fits] == [(1, 3)] * 2


@pytest.mark.parametrize(("asked", "used"), [(1e-8, HEAD_EPS), (1e-3, 1e-3)])
def test_adam_does_not_scale_rounding_up(asked: float, used: float) -> None:
    features, truth = toy(40, 8, 2)
    trainer = HeadTrainer(nn.Linear(8, 2), (features, truth), (features, truth), TrainSettings(adam_eps=asked))
    assert {group["eps"] for group in trainer._trainer._optimizer.param_groups} == {used}


def test_refuses(tmp_path: Path) -> None:
    some, none = (torch.rand(4, 3), torch.ones(4, 2)), (torch.ones(0, 3), torch.ones(0, 2))
    with pytest.raises(TrainingError, match="0 validation"):
        fit_head(nn.Linear(3, 2), some, none, TrainSettings())
    with pytest.raises(ShapeError, match=r"\(N, 5\)"):
        fit_head(nn.Linear(5, 2), some, some, TrainSettings())
    with pytest.raises(ShapeError, match=r"\(4, 2, 3\)"):
        fit_head(nn.Linear(3, 2), some, (some[0][:, None].repeat(1, 2, 1), some[1]), TrainSettings())
    with pytest.raises(ConfigError, match="linear"):
        fit_head(nn.ReLU(), some, some, TrainSettings())
    odd = some[0].clone()
    odd[2, 1] = torch.inf
    with pytest.raises(TrainingError, match=r"features of c are not finite"):
        HeadTrainer(nn.Linear(3, 2), (odd, some[1]), some, TrainSettings(), ids=("abcd", "efgh"))
    trainer = HeadTrainer(nn.Linear(3, 2), some, some, TrainSettings(epochs=2))
    with pytest.raises(TrainingError, match="epoch 0 of 2"):
        trainer.finish()
    trainer.advance()
    with pytest.raises(WeightsError, match="of another network"):
        HeadTrainer(
            nn.Linear(3, 1), (some[0], some[1][:, :1]), (some[0], some[1][:, :1]), TrainSettings(epochs=2)
        ).restore(trainer.state())
