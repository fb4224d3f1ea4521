"""Oracles: hand numbers, separable toys, repeated and resumed runs."""

import math
import time
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.multiprocessing.spawn import spawn

from classifiers.registry import build
from classifiers.training import (
    ClassifierTrainer,
    EpochRow,
    FitResult,
    TensorBatches,
    Trainer,
    TrainingBatch,
    TrainSettings,
    run_to_end,
)
from classifiers.training.augment import draw_mix, draw_turns, turn
from classifiers.training.mean_weights import ema_decay
from infra.errors import ConfigError, ShapeError, TrainingError, WeightsError
from infra.tables import TRAINING
from tests.classifiers.training.training_workers import RESUMED, images, outcome, resumable, resume, small_network


class Recorder(nn.Module):
    """One weight per label whose value is the number of training steps so far."""

    def __init__(self, labels: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(labels))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.weight


class Scripted:
    """Validation samples whose macro AP in each epoch is chosen by the test: 1 or 1/2."""

    samples = 2
    steps_per_epoch = 1

    def __init__(self, good: list[bool]) -> None:
        self.good = good

    def batches(self, epoch: int) -> Iterator[TrainingBatch]:
        truth = torch.tensor([[1.0], [0.0]])
        yield TrainingBatch(truth if self.good[epoch] else 1 - truth, truth, np.arange(2), 2)

    def patch_ids(self, epoch: int, step: int) -> list[str]:
        return ["present", "absent"]


def ones(n: int = 4) -> TensorBatches:
    return TensorBatches(torch.ones(n, 1), torch.ones(n, 1), n)


def test_keeps_the_first_of_equal_best_epochs_and_its_weights() -> None:
    """AP is 1 in epochs 1 and 3 and 1/2 in the others: epoch 1 is kept."""
    network, seen, weights = Recorder(1), list[EpochRow](), list[float]()

    def on_epoch(row: EpochRow) -> None:
        seen.append(row)
        weights.append(float(network.weight.detach()))

    settings = TrainSettings(epochs=5, lr=0.1, warmup=0)
    trainer = ClassifierTrainer(network, ones(), Scripted([False, True, False, True, False]), settings)
    result = run_to_end(trainer, on_epoch)
    assert [row.validation_ap_macro for row in result.rows] == [0.5, 1, 0.5, 1, 0.5]
    assert result.best_epoch == 1
    assert [row.best for row in result.rows] == [False, True, False, False, False]
    assert [row.best for row in seen] == [True, True, False, False, False]
    assert float(network.weight.detach()) == weights[1]
    assert weights == sorted(weights)
    assert len(set(weights)) == 5
    assert result.thresholds == (0.5,)


@pytest.mark.parametrize(("patience", "epochs"), [(1, 3), (2, 4), (None, 7)])
def test_stops_when_nothing_has_become_better_for_long_enough(patience: int | None, epochs: int) -> None:
    """AP rises in epoch 1 and never again."""
    good = [False, True, False, False, False, False, False]
    settings = TrainSettings(epochs=7, lr=0.1, patience=patience)
    result = run_to_end(ClassifierTrainer(Recorder(1), ones(), Scripted(good), settings))
    assert len(result.rows) == epochs
    assert result.best_epoch == 1


def test_lowest_loss_decides_where_validation_has_no_label() -> None:
    """All truths are 0, so AP is null; the weight is pushed up, the loss of ones grows, and epoch 0 is best."""
    validation = TensorBatches(torch.ones(4, 1), torch.zeros(4, 1), 4)
    settings = TrainSettings(epochs=5, lr=0.1, patience=2)
    result = run_to_end(ClassifierTrainer(Recorder(1), ones(), validation, settings))
    assert result.best_epoch == 0
    assert len(result.rows) == 3
    assert all(math.isnan(row.validation_ap_macro) for row in result.rows)
    losses = [row.validation_loss for row in result.rows]
    assert losses == sorted(losses)


def test_first_step_losses_and_accuracies_by_hand() -> None:
    """SGD on w with x = 1, y = 1: loss ln 2 at w = 0, dL/dw = sigmoid(w) - y = -1/2, so w = lr / 2."""
    network = Recorder(1)
    settings = TrainSettings(epochs=1, lr=0.5, optimizer="sgd", warmup=0)
    validation = TensorBatches(torch.tensor([[1.0], [1.0], [-1.0], [1.0]]), torch.tensor([[1.0], [1], [1], [1]]), 4)
    (row,) = run_to_end(ClassifierTrainer(network, ones(2), validation, settings)).rows
    assert row.train_loss == pytest.approx(math.log(2))
    assert float(network.weight.detach()) == pytest.approx(0.25)
    assert row.validation_loss == pytest.approx((3 * math.log(1 + math.exp(-0.25)) + math.log(1 + math.exp(0.25))) / 4)
    assert row.lr == 0.5
    assert row.train_accuracy == 1  # a probability of 0.5 predicts
    assert row.validation_accuracy == 0.75
    assert 0 <= row.wait_share <= 1
    assert row.seconds > 0


def test_waiting_for_batches_is_told() -> None:
    class Slow(TensorBatches):
        def batches(self, epoch: int) -> Iterator[TrainingBatch]:
            for batch in super().batches(epoch):
                time.sleep(0.3)
                yield batch

    trainer = ClassifierTrainer(Recorder(1), Slow(torch.ones(4, 1), torch.ones(4, 1), 2), ones(), TrainSettings())
    row = trainer.advance()
    assert row.seconds > 0.6
    assert 0.6 / row.seconds <= row.wait_share <= 1

    class Working(Recorder):
        def forward(self, x: Tensor) -> Tensor:
            time.sleep(0.05)
            return super().forward(x)

    assert ClassifierTrainer(Working(1), ones(), ones(), TrainSettings()).advance().wait_share < 0.5


def test_rows_have_the_columns_of_the_table() -> None:
    names = [field.name for field in TRAINING if field.name not in {"sr", "classifier", "config", "seed", "fitted"}]
    row = EpochRow(0, 0.1, 0.1, 0.1, 0.1, 0.1, 0.1, best=True, seconds=1.0, wait_share=0.0)
    assert list(asdict(row)) == names


def test_class_weights_weigh_the_gradient_by_hand() -> None:
    """1 of 4 samples has the label: weight 3, dL/dw at 0 is (-3/2 + 3 * 1/2) / 4 = 0; unweighted (-1/2 + 3/2) / 4."""
    y = torch.tensor([[1.0], [0.0], [0.0], [0.0]])
    samples = TensorBatches(torch.ones(4, 1), y, 4)
    weights = []
    for weighted in (True, False):
        network = Recorder(1)
        settings = TrainSettings(epochs=1, lr=1.0, optimizer="sgd", warmup=0, class_weights=weighted)
        run_to_end(ClassifierTrainer(network, samples, samples, settings, label_counts=y.sum(dim=0)))
        weights.append(float(network.weight.detach()))
    assert weights == pytest.approx([0, -0.25])


def test_one_step_of_mixup_turns_and_mean_by_hand() -> None:
    """The step that the loop must take, written out on the drawn codes, share and partners."""
    x, y = images(6, 3)
    settings = TrainSettings(
        epochs=1, batch_size=6, lr=0.1, optimizer="sgd", warmup=0, mixup=0.5, ema=0.9, weight_decay=0, seed=4
    )
    by_hand = small_network().train()
    start = {key: value.clone() for key, value in by_hand.state_dict().items()}
    mix = draw_mix(0.5, 4, 0, 0, 0, 6)
    turned = turn(x, draw_turns(4, 0, 0, 6))
    partners = torch.from_numpy(mix.partners)
    logits = by_hand(mix.share * turned + (1 - mix.share) * turned[partners])
    loss = mix.share * nn.functional.binary_cross_entropy_with_logits(logits, y) + (
        1 - mix.share
    ) * nn.functional.binary_cross_entropy_with_logits(logits, y[partners])
    loss.backward()  # type: ignore[no-untyped-call]
    network = small_network()
    trainer = ClassifierTrainer(network, TensorBatches(x, y, 6), TensorBatches(x, y, 6), settings)
    (row,) = run_to_end(trainer).rows
    assert row.train_loss == pytest.approx(loss.item(), rel=1e-6)
    right = [((logits.detach() >= 0) == (truth > 0)).double().mean().item() for truth in (y, y[partners])]
    assert row.train_accuracy == pytest.approx(mix.share * right[0] + (1 - mix.share) * right[1])
    keep = ema_decay(0, 0.9)
    for name, parameter in by_hand.named_parameters():
        assert parameter.grad is not None
        stepped = start[name] - 0.1 * parameter.grad
        torch.testing.assert_close(network.state_dict()[name], keep * start[name] + (1 - keep) * stepped)
    torch.testing.assert_close(network.norm.running_mean, by_hand.norm.running_mean)


def test_layers_learn_at_the_rate_of_their_depth() -> None:
    """With SGD and momentum 0 at the first step, halving a layer's rate halves its step."""
    x, y = images(6, 3)
    steps = []
    for decay in (1.0, 0.5):
        network = small_network()
        start = {name: value.detach().clone() for name, value in network.named_parameters()}
        depths = {name: {"conv": 0, "norm": 1, "head": 2}[name.split(".")[0]] for name in start}
        settings = TrainSettings(
            epochs=1, batch_size=6, optimizer="sgd", lr=0.1, warmup=0, weight_decay=0, layer_decay=decay
        )
        samples = TensorBatches(x, y, 6)
        run_to_end(ClassifierTrainer(network, samples, samples, settings, depths=depths))
        steps.append({name: value.detach() - start[name] for name, value in network.named_parameters()})
    for name, share in (("conv.weight", 0.25), ("norm.bias", 0.5), ("head.weight", 1.0)):
        torch.testing.assert_close(steps[1][name], share * steps[0][name], rtol=1e-3, atol=1e-7)


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
        trainer = ClassifierTrainer(network, train, validation, TrainSettings(epochs=2, batch_size=8, seed=2))
        result = run_to_end(trainer)
        results.append((network.state_dict(), [(r.train_loss, r.validation_loss) for r in result.rows]))
        assert not any(module.training for module in network.modules())
    assert results[0][1] == results[1][1]
    assert all(torch.equal(value, results[1][0][key]) for key, value in results[0][0].items())


def test_the_callers_random_numbers_are_left_alone() -> None:
    trainer = resumable()
    torch.manual_seed(3)
    expected = torch.rand(4)
    torch.manual_seed(3)
    trainer.advance()
    assert torch.equal(torch.rand(4), expected)


def test_dropout_differs_between_epochs_and_seeds() -> None:
    """One sample of ones through dropout: its training loss tells which weights were dropped."""
    network = nn.Sequential(nn.Dropout(0.5), nn.Linear(64, 1))
    samples = TensorBatches(torch.ones(1, 64), torch.ones(1, 1), 1)
    losses = set()
    for seed in range(3):
        settings = TrainSettings(epochs=3, lr=1e-12, seed=seed)
        losses |= {row.train_loss for row in run_to_end(ClassifierTrainer(network, samples, samples, settings)).rows}
    assert len(losses) == 9


def test_a_run_resumed_in_a_new_process_ends_equal(tmp_path: Path) -> None:
    """Dropout, batch normalisation, the mean of the weights, mixup, turns: all as if it had not stopped."""
    whole = resumable()
    expected = outcome(run_to_end(whole), whole.network)
    stopped: Trainer = resumable()
    stopped.advance()
    stopped.advance()
    (tmp_path / "state").write_bytes(stopped.state())
    spawn(resume, (tmp_path, torch.get_num_threads()), nprocs=1)  # type: ignore[no-untyped-call]
    found: dict[str, Any] = torch.load(tmp_path / "resumed.pt", weights_only=True)
    assert found["rows"] == expected["rows"]
    assert len(found["rows"]) == RESUMED.epochs
    assert found["thresholds"] == expected["thresholds"]
    weights: dict[str, Tensor] = expected["weights"]  # type: ignore[assignment]
    assert all(torch.equal(found["weights"][key], value) for key, value in weights.items())
    started = small_network(0.3).state_dict()
    assert not torch.equal(weights["conv.weight"], started["conv.weight"])


def test_a_finished_run_resumes_as_finished() -> None:
    first = resumable()
    expected = run_to_end(first)
    again = resumable(seed=9)
    again.restore(first.state())
    assert again.done
    assert again.finish() == expected
    assert torch.equal(again.network.state_dict()["conv.weight"], first.network.state_dict()["conv.weight"])
    with pytest.raises(TrainingError, match="nothing left to train"):
        again.advance()


def test_refuses_the_state_of_another_run() -> None:
    trainer = resumable()
    state = trainer.state()
    x, y = images(29, 1)
    counts = y.sum(dim=0)

    def other(network: nn.Module, settings: TrainSettings, n: int = 13) -> ClassifierTrainer:
        train = TensorBatches(x, y, settings.batch_size, shuffle_seed=0)
        validation = TensorBatches(*images(n, 2), settings.batch_size)
        return ClassifierTrainer(network, train, validation, settings, label_counts=counts)

    with pytest.raises(WeightsError, match="'epochs': 4"):
        other(small_network(0.3), replace(RESUMED, epochs=5)).restore(state)
    with pytest.raises(WeightsError, match="'validation': 13"):
        other(small_network(0.3), RESUMED, 12).restore(state)
    with pytest.raises(WeightsError, match="of another network"):
        other(nn.Sequential(nn.Flatten(), nn.Linear(72, 3)), RESUMED).restore(state)
    with pytest.raises(WeightsError, match="damaged"):
        trainer.restore(state[:-1])


def test_frozen_normalisation_keeps_its_statistics() -> None:
    for settings, affine in ((TrainSettings(epochs=1), False), (TrainSettings(epochs=1, freeze_norm=True), True)):
        network = nn.Sequential(nn.BatchNorm1d(3), nn.Linear(3, 1))
        network[0].requires_grad_(requires_grad=affine)
        samples = TensorBatches(torch.randn(8, 3) + 5, torch.ones(8, 1), 4)
        run_to_end(ClassifierTrainer(network, samples, samples, settings))
        assert torch.equal(network[0].running_mean, torch.zeros(3))  # type: ignore[arg-type]
        assert torch.equal(network.state_dict()["0.weight"], torch.ones(3)) != affine


def test_a_step_without_a_sample_of_this_worker_changes_nothing() -> None:
    """Momentum may go on where a step had samples, so weights are compared where none had; statistics in both."""
    x, y = images(4, 1)
    empty = TrainingBatch(x[:0], y[:0], np.arange(0), 4)
    full = TrainingBatch(x, y, np.arange(4), 4)
    settings = TrainSettings(epochs=1, lr=0.1, optimizer="sgd", weight_decay=0, warmup=0)
    found = []
    for steps in ([empty], [empty, full, empty]):
        network = small_network()
        train = Steps(steps)
        (row,) = run_to_end(ClassifierTrainer(network, train, TensorBatches(x, y, 4), settings)).rows
        found.append((network.state_dict(), row))
    start = small_network().state_dict()
    assert all(torch.equal(value, start[key]) for key, value in found[0][0].items())
    assert found[0][1].train_loss == 0
    state = found[1][0]
    assert int(state["norm.num_batches_tracked"]) == 1
    assert not torch.equal(state["conv.weight"], start["conv.weight"])


class Steps:
    """Batches as they are given."""

    def __init__(self, steps: list[TrainingBatch]) -> None:
        self.steps = steps

    @property
    def samples(self) -> int:
        return sum(batch.n_total for batch in self.steps)

    @property
    def steps_per_epoch(self) -> int:
        return len(self.steps)

    def batches(self, epoch: int) -> list[TrainingBatch]:
        return self.steps

    def patch_ids(self, epoch: int, step: int) -> list[str]:
        return [f"P{i}" for i in range(self.steps[step].n_total)]


def test_bfloat16_inside_trains_and_is_not_float32() -> None:
    x, y = images(24, 1)
    train, validation = TensorBatches(x, y, 8), TensorBatches(*images(13, 2), 8)
    found: dict[str, FitResult] = {}
    for dtype in ("auto", "float32", "bfloat16"):
        settings = TrainSettings(epochs=2, lr=0.01, dtype=dtype)
        network = small_network()
        found[dtype] = run_to_end(ClassifierTrainer(network, train, validation, settings))
        assert network.conv.weight.dtype == torch.float32
    losses = {dtype: [row.train_loss for row in result.rows] for dtype, result in found.items()}
    assert losses["auto"] == losses["float32"] != losses["bfloat16"]
    assert losses["bfloat16"] == pytest.approx(losses["float32"], abs=0.01)


@pytest.mark.parametrize("backend", ["aot_eager", pytest.param("inductor", marks=pytest.mark.slow)])
def test_compiled_gives_the_same_under_the_same_names(backend: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The backend that is in use, inductor, needs a C++ compiler and half a minute."""
    used: list[nn.Module] = []

    def compiler(network: nn.Module) -> Any:
        used.append(network)
        return compile_network(network, backend=backend)

    compile_network = torch.compile
    monkeypatch.setattr(torch, "compile", compiler)
    x, y = images(8, 1)
    states = []
    for compiled in (False, True):
        network = small_network()
        samples = TensorBatches(x, y, 8)
        settings = TrainSettings(epochs=2, lr=0.01, optimizer="sgd")
        run_to_end(ClassifierTrainer(network, samples, samples, settings, compiled=compiled))
        states.append(network.state_dict())
    assert used == [network]
    assert list(states[0]) == list(states[1])
    for key, value in states[0].items():
        torch.testing.assert_close(states[1][key], value, rtol=1e-4, atol=1e-5)


def test_loss_that_is_not_finite_names_the_step_and_its_patches() -> None:
    x = torch.ones(6, 1)
    x[4] = math.inf
    samples = TensorBatches(x, torch.zeros(6, 1), 2, ids=[f"P{i}" for i in range(6)])
    trainer = ClassifierTrainer(nn.Linear(1, 1), samples, ones(), TrainSettings(epochs=1))
    with pytest.raises(TrainingError, match=r"(nan|inf) at step 2 \(epoch 0\), whose patches are P4, P5:.*no epoch"):
        trainer.advance()


def test_a_loss_that_is_not_finite_later_names_the_last_good_state() -> None:
    class Spoilt(TensorBatches):
        def batches(self, epoch: int) -> Iterator[TrainingBatch]:
            for batch in super().batches(epoch):
                yield replace(batch, x=batch.x * math.nan) if epoch == 2 else batch

    trainer = ClassifierTrainer(
        nn.Linear(1, 1), Spoilt(torch.ones(6, 1), torch.ones(6, 1), 2), ones(), TrainSettings(epochs=4)
    )
    trainer.advance()
    trainer.advance()
    with pytest.raises(TrainingError, match=r"at step 6 \(epoch 2\).*last good state is of epoch 1$"):
        trainer.advance()
    assert trainer.epoch == 2


def test_softmax_needs_one_label() -> None:
    y = torch.eye(3).repeat(4, 1)
    x = y + 0.1
    settings = TrainSettings(epochs=3, lr=0.1, loss="softmax")
    result = run_to_end(ClassifierTrainer(nn.Linear(3, 3), TensorBatches(x, y, 6), TensorBatches(x, y, 5), settings))
    assert result.rows[-1].train_accuracy > 0.5
    assert result.thresholds == (0.5,) * 3
    y[4] = 0
    y[9] = torch.tensor([1.0, 1, 0])
    for bad, good in ((True, False), (False, True)):
        train, validation = (TensorBatches(x, y if odd else torch.eye(3).repeat(4, 1), 12) for odd in (bad, good))
        trainer = ClassifierTrainer(nn.Linear(3, 3), train, validation, settings)
        with pytest.raises(TrainingError, match="exactly one label a patch, but sample 4 has 0, sample 9 has 2"):
            trainer.advance()


def test_batches_must_be_as_many_as_promised() -> None:
    class Broken(TensorBatches):
        taken = 0

        def batches(self, epoch: int) -> Iterator[TrainingBatch]:
            batches = list(super().batches(epoch))
            yield from (batches + batches)[: self.taken]

    broken = Broken(torch.ones(6, 1), torch.ones(6, 1), 2)
    for taken, words in ((0, "0 training batches came"), (2, "2 training batches came"), (4, "more than the 3")):
        broken.taken = taken
        with pytest.raises(TrainingError, match=words):
            ClassifierTrainer(nn.Linear(1, 1), broken, ones(), TrainSettings()).advance()
        if taken:
            with pytest.raises(TrainingError, match="validation samples"):
                ClassifierTrainer(nn.Linear(1, 1), ones(), broken, TrainSettings()).advance()


def test_refuses() -> None:
    some, none = (torch.ones(4, 3), torch.ones(4, 2)), (torch.ones(0, 3), torch.ones(0, 2))
    batches = TensorBatches(*some, 2)
    with pytest.raises(TrainingError, match="0 training"):
        ClassifierTrainer(nn.Linear(3, 2), TensorBatches(*none, 2), batches, TrainSettings())
    with pytest.raises(TrainingError, match="0 validation"):
        ClassifierTrainer(nn.Linear(3, 2), batches, TensorBatches(*none, 2), TrainSettings())
    frozen = nn.Linear(3, 2).requires_grad_(requires_grad=False)
    with pytest.raises(TrainingError, match="all are frozen"):
        ClassifierTrainer(frozen, batches, batches, TrainSettings())
    with pytest.raises(ShapeError, match="logits"):
        ClassifierTrainer(nn.Linear(3, 1), batches, batches, TrainSettings()).advance()
    with pytest.raises(ConfigError, match="class_weights needs the number"):
        ClassifierTrainer(nn.Linear(3, 2), batches, batches, TrainSettings(class_weights=True))
    with pytest.raises(TrainingError, match="epoch 0 of 30"):
        ClassifierTrainer(nn.Linear(3, 2), batches, batches, TrainSettings()).finish()
