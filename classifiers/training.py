"""Training on one device: a plain loop, its batches, and the fit of a head alone on features computed once."""

import math
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Literal, Protocol

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812  # as everyone writes it
from numpy.typing import NDArray
from torch import Tensor, nn

from classifiers.metrics import multilabel_metrics
from classifiers.standardise_features import fold, input_layer, standardise_features
from infra.errors import ConfigError, ShapeError, TrainingError

MIN_GAIN = 1e-4
"""Gain in validation AP (or relative fall of the loss) by which an epoch must beat the best so far to replace it.

Equal networks trained on inputs that differ by rounding have APs that differ by a few swapped ranks, ~1e-6. Between
epochs of a plateau such a difference would decide; a gain above 1e-4 it hardly ever does.
"""

HEAD_EPS = 1e-5
"""Adam's epsilon when a head is fitted alone: gradients below it are rounding, and must not be scaled up to a step."""

_AUGMENTATION_STREAM = 1


class Batches(Protocol):
    """A set of samples that can be gone through once per epoch."""

    @property
    def steps_per_epoch(self) -> int:
        """Number of batches of one epoch."""

    def batches(self, epoch: int) -> Iterable[tuple[Tensor, Tensor]]:
        """Return the batches of one epoch: input, (N, C, H, W) standardised or (N, K), and multi-hot truth, (N, L)."""


class TensorBatches:
    """Samples in memory, in near-equal batches, so that none is a left-over of one.

    Args:
        x: Inputs, (N, ...), in canonical order.
        y: Multi-hot truth, (N, L), of any dtype.
        batch_size: Most samples of a batch.
        shuffle_seed: Each epoch's order is a permutation drawn from (shuffle_seed, epoch); None: as they are.
        transform: Applied to the inputs of each batch.
    """

    def __init__(
        self,
        x: Tensor,
        y: Tensor,
        batch_size: int,
        shuffle_seed: int | None = None,
        transform: Callable[[Tensor], Tensor] | None = None,
    ) -> None:
        if len(x) != len(y) or y.ndim != 2:
            raise ShapeError(f"samples need x (N, ...) and y (N, L), got {tuple(x.shape)} and {tuple(y.shape)}")
        if batch_size < 1:
            raise ConfigError(f"batch_size must be at least 1, got {batch_size}")
        self._x, self._y, self._batch_size, self._seed, self._transform = x, y, batch_size, shuffle_seed, transform

    @property
    def steps_per_epoch(self) -> int:
        """Number of batches of one epoch."""
        return math.ceil(len(self._x) / self._batch_size)

    def batches(self, epoch: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield the batches of one epoch."""
        if not len(self._x):
            return
        order = np.arange(len(self._x)) if self._seed is None else permutation(len(self._x), self._seed, epoch)
        for part in np.array_split(order, self.steps_per_epoch):
            index = torch.from_numpy(part)
            x = self._x[index]
            yield x if self._transform is None else self._transform(x), self._y[index]


def permutation(n: int, seed: int, epoch: int) -> NDArray[np.int64]:
    """Return the order of n samples in an epoch; it depends on nothing else."""
    return np.random.default_rng([seed, epoch]).permutation(n)


@dataclass(frozen=True, slots=True)
class TrainSettings:
    """How a network is trained."""

    epochs: int = 30
    """Passes over the training samples."""
    batch_size: int = 256
    """Samples of a step; for whoever makes the batches."""
    lr: float = 1e-3
    """Highest learning rate, reached after the warm-up."""
    weight_decay: float = 0.01
    """Of matrices and kernels; vectors (biases, normalisation) are not decayed. For `adam` and `sgd` an L2 penalty."""
    optimizer: Literal["adamw", "adam", "sgd"] = "adamw"
    """`sgd` has momentum 0.9."""
    seed: int = 0
    """Of the augmentation and of layers that draw; shuffling is the batches' and initialisation the caller's."""
    warmup: float = 0.05
    """Share of all steps in which the learning rate rises linearly, in [0, 1)."""
    augment: bool = True
    """Whether inputs (N, C, H, W) are flipped and turned by multiples of 90 degrees at random."""
    adam_eps: float = 1e-8
    """Epsilon of `adamw` and `adam`."""

    def __post_init__(self) -> None:
        if self.epochs < 1 or self.batch_size < 1:
            raise ConfigError(f"training needs epochs and batch_size >= 1, got {self.epochs} and {self.batch_size}")
        if not (self.lr > 0 and self.weight_decay >= 0 and 0 <= self.warmup < 1 and self.adam_eps > 0):
            raise ConfigError(
                "training needs lr > 0, weight_decay >= 0, 0 <= warmup < 1 and adam_eps > 0, got "
                f"{self.lr}, {self.weight_decay}, {self.warmup} and {self.adam_eps}"
            )
        if self.optimizer not in {"adamw", "adam", "sgd"}:
            raise ConfigError(f"no optimizer {self.optimizer!r}: choose adamw, adam or sgd")


@dataclass(frozen=True, slots=True)
class EpochRow:
    """One row of `tables/training`."""

    epoch: int
    """From 0."""
    lr: float
    """Learning rate of the epoch's last step."""
    train_loss: float
    """Mean binary cross-entropy over training samples and labels, as the weights changed."""
    validation_loss: float
    """Mean binary cross-entropy over validation samples and labels, after the epoch."""
    validation_ap_macro: float
    """Macro AP of the validation samples, NaN where none has a label."""
    best: bool
    """Whether it was the best so far, when the epoch ends; in the result, whether its weights were kept."""
    seconds: float
    """Training and validation, wall clock."""


@dataclass(frozen=True, slots=True)
class FitResult:
    """What a fit leaves beside the network."""

    rows: tuple[EpochRow, ...]
    """One per epoch; `best` is true for one."""
    best_epoch: int
    """The epoch whose weights the network has."""


def fit(
    network: nn.Module,
    train: Batches,
    validation: Batches,
    settings: TrainSettings,
    device: str | torch.device = "cpu",
    on_epoch: Callable[[EpochRow], None] | None = None,
) -> FitResult:
    """Train a network in place and leave it with the weights of its best epoch, in evaluation mode, on the device.

    Binary cross-entropy on the logits; linear warm-up, then a cosine to 0, per step; on CUDA the forward pass runs in
    bfloat16 (float64 networks excepted). The best epoch has the highest validation macro AP: a later one must beat it
    by `MIN_GAIN`. Where no validation sample has a label, AP is null and the lowest validation loss decides.
    On the CPU, equal seeds, samples and thread counts give equal weights.

    Args:
        network: From x to logits (N, L).
        train: Training batches.
        validation: Validation batches; never augmented.
        settings: How to train.
        device: Where to train.
        on_epoch: Called with each row as its epoch ends.

    Returns:
        The curve and the best epoch.

    Raises:
        TrainingError: There is no training or no validation sample, or a loss is not finite.
        ShapeError: Batches do not fit the network's output.
    """
    where = torch.device(device)
    steps = train.steps_per_epoch
    if steps < 1 or validation.steps_per_epoch < 1:
        raise TrainingError(
            f"training needs samples of both kinds, got {steps} training and {validation.steps_per_epoch} validation "
            "batches: check the splits of the archive"
        )
    network.to(where)
    optimizer = _optimizer(network, settings)
    rows: list[EpochRow] = []
    best = _Best()
    with torch.random.fork_rng(devices=[where] if where.type == "cuda" else []):
        torch.manual_seed(settings.seed)
        for epoch in range(settings.epochs):
            start = time.perf_counter()
            train_loss = _train_epoch(network, train, optimizer, settings, epoch, where)
            loss, ap = evaluate(network, validation, epoch, where)
            is_best = best.offer(epoch, loss, ap, network)
            lr = float(optimizer.param_groups[0]["lr"])
            rows.append(EpochRow(epoch, lr, train_loss, loss, ap, is_best, time.perf_counter() - start))
            if on_epoch is not None:
                on_epoch(rows[-1])
    network.load_state_dict(best.state)
    network.eval()
    return FitResult(tuple(replace(row, best=row.epoch == best.epoch) for row in rows), best.epoch)


def fit_head(
    head: nn.Module,
    train: tuple[Tensor, Tensor],
    validation: tuple[Tensor, Tensor],
    settings: TrainSettings,
    device: str | torch.device = "cpu",
    on_epoch: Callable[[EpochRow], None] | None = None,
) -> FitResult:
    """Train a head in place on features of a frozen backbone; `fit`'s rules hold.

    Made so that features that differ by rounding, as those of another batch size do, give the same probabilities within
    1e-5: the fit is in float64, on standardised features, with an epsilon of Adam that rounding does not reach, and in
    an order drawn from (seed, epoch). The standardisation is folded into the head's first layer afterwards, so the head
    takes plain features and has its own dtype again. The one exception is a gain of validation AP that is `MIN_GAIN`
    to within rounding: there another epoch may be kept.

    Args:
        head: A linear layer, or a sequence that starts with one, from features (N, K) to logits (N, L).
        train: Features (N, K) and multi-hot truth (N, L), in canonical order, as the order decides the batches.
        validation: Likewise.
        settings: How to train; `adam_eps` is raised to `HEAD_EPS`.
        device: Where to train.
        on_epoch: Called with each row as its epoch ends.

    Returns:
        The curve and the best epoch.

    Raises:
        TrainingError: As for `fit`.
        ShapeError: The features do not fit the head.
        ConfigError: The head does not start with a linear layer.
    """
    first = input_layer(head)
    if not len(train[0]) or not len(validation[0]):
        raise TrainingError(
            f"training needs samples of both kinds, got {len(train[0])} training and {len(validation[0])} validation "
            "samples: check the splits of the archive"
        )
    for features in (train[0], validation[0]):
        if features.ndim != 2 or features.shape[1] != first.in_features:
            raise ShapeError(f"the head needs features (N, {first.in_features}), got {tuple(features.shape)}")
    dtype = first.weight.dtype
    scaling = standardise_features(train[0])
    head.double()
    result = fit(
        head,
        TensorBatches(*train, settings.batch_size, shuffle_seed=settings.seed, transform=scaling),
        TensorBatches(*validation, settings.batch_size, transform=scaling),
        replace(settings, adam_eps=max(settings.adam_eps, HEAD_EPS)),
        device,
        on_epoch,
    )
    fold(first, scaling)
    head.to(dtype)
    return result


def evaluate(network: nn.Module, samples: Batches, epoch: int, device: torch.device) -> tuple[float, float]:
    """Return the mean loss and the macro AP (NaN where null) of a network, which is left in evaluation mode.

    Raises:
        TrainingError: The loss is not finite, or there was no sample.
    """
    network.eval()
    logits, truths = [], []
    with torch.no_grad():
        for x, y in samples.batches(epoch):
            logits.append(_forward(network, _to(x, device)).cpu())
            truths.append(y.cpu())
    if not logits:
        raise TrainingError(f"no validation batch came in epoch {epoch}, though some were promised")
    all_logits, truth = torch.cat(logits).double(), torch.cat(truths).double()
    loss = float(F.binary_cross_entropy_with_logits(all_logits, truth))
    if not math.isfinite(loss):
        raise TrainingError(f"the validation loss after epoch {epoch} is {loss}: lower the learning rate")
    return loss, multilabel_metrics(all_logits.sigmoid().numpy(), truth.numpy())["ap_macro"]


class _Best:
    """The best epoch so far, with a copy of its weights on the CPU."""

    def __init__(self) -> None:
        self.epoch = -1
        self.state: dict[str, Tensor] = {}
        self._score = -math.inf

    def offer(self, epoch: int, loss: float, ap: float, network: nn.Module) -> bool:
        """Return whether an epoch is the new best, and if so keep its weights."""
        # Whether AP is null depends on the validation truth alone, so all epochs are judged by the same number.
        score, margin = (-loss, MIN_GAIN * loss) if math.isnan(ap) else (ap, MIN_GAIN)
        if score <= self._score + margin:
            return False
        self.epoch, self._score = epoch, score
        self.state = {key: value.detach().to("cpu", copy=True) for key, value in network.state_dict().items()}
        return True


def _train_epoch(
    network: nn.Module,
    train: Batches,
    optimizer: torch.optim.Optimizer,
    settings: TrainSettings,
    epoch: int,
    device: torch.device,
) -> float:
    """Return the mean loss of an epoch over its samples."""
    _training_mode(network)
    rng = np.random.default_rng([settings.seed, epoch, _AUGMENTATION_STREAM])
    first_step = epoch * train.steps_per_epoch
    losses, sizes = [], []
    for step, (x, y) in enumerate(train.batches(epoch), start=first_step):
        batch = _to(x, device)
        if settings.augment and batch.ndim == 4:
            batch = turn(batch, rng.integers(8, size=len(batch)))
        _set_lr(optimizer, learning_rate(step, train.steps_per_epoch * settings.epochs, settings))
        logits = _forward(network, batch)
        if logits.shape != y.shape:
            raise ShapeError(f"the network gives logits {tuple(logits.shape)}, the truth is {tuple(y.shape)}")
        loss = F.binary_cross_entropy_with_logits(logits, y.to(device, logits.dtype))
        optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        losses.append(loss.detach())
        sizes.append(len(batch))
    if not losses:
        raise TrainingError(f"no training batch came in epoch {epoch}, though some were promised")
    # Read once per epoch: reading each loss would make the GPU wait for the CPU at every step.
    values = torch.stack(losses).double().cpu().numpy()
    if not np.isfinite(values).all():
        at = int(np.flatnonzero(~np.isfinite(values))[0])
        raise TrainingError(
            f"the training loss is {values[at]} at step {first_step + at} (epoch {epoch}): lower the learning rate, or "
            "look for inputs that are not finite"
        )
    return float(np.average(values, weights=sizes))


def _training_mode(network: nn.Module) -> None:
    """Put a network into training mode, except normalisations that are frozen: their statistics stay too."""
    network.train()
    for module in network.modules():
        own = list(module.parameters(recurse=False))
        if (
            isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d | nn.SyncBatchNorm)
            and own
            and not any(p.requires_grad for p in own)
        ):
            module.eval()


def _forward(network: nn.Module, x: Tensor) -> Tensor:
    """Return logits (N, L), at least float32; in bfloat16 inside on CUDA."""
    dtype = next(network.parameters()).dtype
    if x.dtype != dtype:
        x = x.to(dtype)
    with torch.autocast(x.device.type, torch.bfloat16, enabled=x.is_cuda and dtype == torch.float32):
        logits: Tensor = network(x)
    return logits.to(torch.promote_types(logits.dtype, torch.float32))


def _to(x: Tensor, device: torch.device) -> Tensor:
    if device.type == "cuda" and x.ndim == 4:
        return x.to(device, non_blocking=True, memory_format=torch.channels_last)
    return x.to(device, non_blocking=True)


def turn(x: Tensor, codes: NDArray[np.int64]) -> Tensor:
    """Return each image flipped and turned, one of the 8 symmetries of the square.

    Args:
        x: (N, C, H, W), H = W.
        codes: (N,), 0 to 7: quarter turns are `code % 4`, and from 4 on the image is mirrored left to right first.

    Returns:
        Same shape, dtype and device.

    Raises:
        ShapeError: The images are not square.
    """
    if x.shape[2] != x.shape[3]:
        raise ShapeError(f"only square images can be turned by 90 degrees, got {tuple(x.shape)}: switch augment off")
    turned = torch.empty_like(x)
    for code in range(8):
        index = torch.from_numpy(np.flatnonzero(codes == code)).to(x.device)
        images = x[index]
        turned[index] = torch.rot90(images.flip(3) if code >= 4 else images, code % 4, dims=(2, 3))
    return turned


def learning_rate(step: int, total_steps: int, settings: TrainSettings) -> float:
    """Return the learning rate of a step, 0 <= step < total_steps: a linear rise to `lr`, then half a cosine to 0."""
    rising = math.floor(settings.warmup * total_steps)
    if step < rising:
        return settings.lr * (step + 1) / (rising + 1)
    return settings.lr * 0.5 * (1 + math.cos(math.pi * (step - rising) / (total_steps - rising)))


def _set_lr(optimizer: torch.optim.Optimizer, lr: float) -> None:
    for group in optimizer.param_groups:
        group["lr"] = lr


def _optimizer(network: nn.Module, settings: TrainSettings) -> torch.optim.Optimizer:
    trained = [parameter for parameter in network.parameters() if parameter.requires_grad]
    if not trained:
        raise TrainingError("the network has no parameter to train: all are frozen")
    groups = [
        {"params": [p for p in trained if p.ndim > 1], "weight_decay": settings.weight_decay},
        {"params": [p for p in trained if p.ndim <= 1], "weight_decay": 0.0},
    ]
    match settings.optimizer:
        case "adamw":
            return torch.optim.AdamW(groups, lr=settings.lr, eps=settings.adam_eps)
        case "adam":
            return torch.optim.Adam(groups, lr=settings.lr, eps=settings.adam_eps)
        case "sgd":
            return torch.optim.SGD(groups, lr=settings.lr, momentum=0.9)
