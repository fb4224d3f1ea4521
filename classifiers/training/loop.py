"""Training of classifiers: a plain loop for one process, or one of several workers.

The loop knows nothing of where samples come from or who starts it. Its whole state between two epochs is one run of
bytes, so a run that was stopped ends with the weights it would have had.
"""

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, replace

import torch
from torch import Tensor, nn

from classifiers.training.augment import draw_mix, draw_turns, turn
from classifiers.training.batches import Batches, TimedBatches, TrainingBatch
from classifiers.training.best_epoch import BestEpoch
from classifiers.training.forward import logits_of, training_mode
from classifiers.training.losses import label_weights, right_decisions, sample_losses
from classifiers.training.mean_weights import MeanWeights
from classifiers.training.optimizer import build_optimizer, learning_rate, set_learning_rate
from classifiers.training.random_streams import layer_seed
from classifiers.training.settings import TrainSettings
from classifiers.training.state import TrainingState, pack, unpack
from classifiers.training.step_log import StepLog
from classifiers.training.trainer import EpochRow, FitResult
from classifiers.training.validation import Validation, validate
from classifiers.training.workers import Workers
from infra.errors import ConfigError, TrainingError, WeightsError


class ClassifierTrainer:
    """One fit of one network on one device, alone or as one of several workers.

    Linear warm-up, then a cosine to 0, per step. The best epoch has the highest validation macro AP: a later one must
    beat it by `MIN_GAIN`. Where no validation sample has a label, AP is null and the lowest validation loss decides.
    On the CPU, equal seeds, samples and thread counts give equal weights, stopped and restored or not. The batch's
    loss is the mean over the whole batch, so that workers give the weights that one worker gives, to within rounding,
    where batch normalisations are frozen, no layer draws and nothing is mixed: partners are one worker's own samples.

    Args:
        network: From x to logits (N, L); trained in place.
        train: Training batches, this worker's share.
        validation: Validation batches, likewise; never augmented.
        settings: How to train.
        device: Where to train.
        rank: This worker's number.
        workers: How many work on the same batches; of several, each has initialised torch.distributed.
        parallel: Wraps the network so that gradients are averaged over workers (DistributedDataParallel).
        compiled: Whether the forward pass of training goes through torch.compile.
        label_counts: Training samples with each label, (L,); needed for `class_weights`.
        depths: Name of each parameter to its depth; needed for `layer_decay`.

    Raises:
        TrainingError: There is no training or no validation sample, or all parameters are frozen.
        ConfigError: The counts or depths are needed and missing, or there is no such worker.
        ShapeError: The counts are not those of labels in the training samples.
    """

    def __init__(
        self,
        network: nn.Module,
        train: Batches,
        validation: Batches,
        settings: TrainSettings,
        device: str | torch.device = "cpu",
        *,
        rank: int = 0,
        workers: int = 1,
        parallel: Callable[[nn.Module], nn.Module] = lambda network: network,
        compiled: bool = False,
        label_counts: Tensor | None = None,
        depths: Mapping[str, int] | None = None,
    ) -> None:
        if not train.samples or not validation.samples:
            raise TrainingError(
                f"training needs samples of both kinds, got {train.samples} training and {validation.samples} "
                "validation samples: check the splits of the archive"
            )
        if settings.class_weights and label_counts is None:
            raise ConfigError("class_weights needs the number of training samples with each label")
        self.network = network.to(device).to(memory_format=torch.channels_last)
        self.settings = settings
        self._train, self._validation, self._device = train, validation, torch.device(device)
        self._workers = Workers(rank, workers)
        self._optimizer = build_optimizer(network, settings, depths)
        self._weights = None
        if settings.class_weights and label_counts is not None:
            self._weights = label_weights(label_counts, train.samples, settings.loss).to(device)
        wrapped = parallel(network)
        self._forward: nn.Module = torch.compile(wrapped) if compiled else wrapped  # type: ignore[assignment]
        self._mean = MeanWeights(network, settings.ema) if settings.ema else None
        self._rows: list[EpochRow] = []
        self._best = BestEpoch()
        self._occurrences: Tensor | None = None

    @property
    def epoch(self) -> int:
        """The next epoch, from 0."""
        return len(self._rows)

    @property
    def done(self) -> bool:
        """Whether all epochs are done, or `patience` of them without one that was better."""
        patience = self.settings.patience
        return self.epoch >= self.settings.epochs or (
            patience is not None and self.epoch > 0 and self.epoch - 1 - self._best.epoch >= patience
        )

    def advance(self) -> EpochRow:
        """Train for one epoch and validate; return its row.

        Raises:
            TrainingError: No epoch is left, a loss is not finite, or batches are not as promised.
            ShapeError: Batches do not fit the network's output.
        """
        if self.done:
            raise TrainingError(f"the fit ended after epoch {self.epoch - 1}: there is nothing left to train")
        epoch, start = self.epoch, time.perf_counter()
        batches = TimedBatches(self._train.batches(epoch))
        with self._seeded(epoch):
            train_loss, train_accuracy = self._train_epoch(epoch, batches)
        trained = time.perf_counter() - start
        self._workers.share_buffers(self.network)
        if self._mean is not None:
            self._mean.copy_buffers()
        found = self._validate(epoch)
        is_best = self._best.offer(epoch, found, self._judged, self.settings.thresholds)
        row = EpochRow(
            epoch,
            self._rate((epoch + 1) * self._train.steps_per_epoch - 1),
            train_loss,
            found.loss,
            train_accuracy,
            found.accuracy,
            found.ap_macro,
            is_best,
            time.perf_counter() - start,
            batches.waited / trained,
        )
        self._rows.append(row)
        return row

    def finish(self) -> FitResult:
        """Leave the network with the weights of its best epoch, in evaluation mode, and return the result.

        Raises:
            TrainingError: Epochs are left.
        """
        if not self.done:
            raise TrainingError(f"the fit is at epoch {self.epoch} of {self.settings.epochs}: train on first")
        self.network.load_state_dict(self._best.weights)
        self.network.eval()
        counts = torch.zeros(0) if self._occurrences is None else self._occurrences
        return FitResult(
            tuple(replace(row, best=row.epoch == self._best.epoch) for row in self._rows),
            self._best.epoch,
            self._best.thresholds,
            tuple(torch.nonzero(counts == 0).flatten().tolist()),
        )

    def state(self) -> bytes:
        """Return everything a stopped run needs, as a file's content; with several workers any one's will do."""
        return pack(
            TrainingState(
                settings=asdict(self.settings),
                samples=self._samples(),
                network=self.network.state_dict(),
                mean=None if self._mean is None else self._mean.network.state_dict(),
                optimizer=self._optimizer.state_dict(),
                rows=[asdict(row) for row in self._rows],
                best=self._best.state(),
                occurrences=self._occurrences,
            )
        )

    def restore(self, state: bytes) -> None:
        """Go on from a saved state; the random numbers of an epoch depend on it alone, so none are in there.

        Raises:
            WeightsError: It is damaged, or of a run with other settings, samples or another network.
        """
        content = unpack(state)
        if content["settings"] != asdict(self.settings):
            raise WeightsError(
                f"the saved training state is of a run with {content['settings']}, this one has {asdict(self.settings)}"
            )
        if content["samples"] != self._samples():
            raise WeightsError(f"the saved training state is of {content['samples']} samples, not {self._samples()}")
        try:
            self.network.load_state_dict(content["network"])
            if self._mean is not None and content["mean"] is not None:
                self._mean.network.load_state_dict(content["mean"])
            self._optimizer.load_state_dict(content["optimizer"])
        except (RuntimeError, ValueError) as error:  # missing keys, other shapes, other groups of parameters
            raise WeightsError(f"the saved training state is of another network: {error}") from error
        self._rows = [EpochRow(**row) for row in content["rows"]]
        self._best.restore(content["best"])
        self._occurrences = content["occurrences"]

    @property
    def _judged(self) -> nn.Module:
        return self.network if self._mean is None else self._mean.network

    def _samples(self) -> dict[str, int]:
        return {
            "training": self._train.samples,
            "steps": self._train.steps_per_epoch,
            "validation": self._validation.samples,
        }

    def _rate(self, step: int) -> float:
        return learning_rate(step, self.settings.epochs * self._train.steps_per_epoch, self.settings)

    @contextmanager
    def _seeded(self, epoch: int) -> Iterator[None]:
        """Seed torch for an epoch, for layers that draw; the caller's stream is left as it was."""
        with torch.random.fork_rng(devices=[self._device] if self._device.type == "cuda" else []):
            torch.manual_seed(layer_seed(self.settings.seed, epoch, self._workers.rank))
            yield

    def _validate(self, epoch: int) -> Validation:
        settings = self.settings
        return validate(
            self._judged,
            self._validation,
            epoch,
            settings.loss,
            self._weights,
            settings.dtype,
            self._device,
            self._workers,
        )

    def _train_epoch(self, epoch: int, batches: TimedBatches) -> tuple[float, float]:
        """Return the mean loss and accuracy of an epoch over its samples."""
        training_mode(self.network, freeze_norm=self.settings.freeze_norm)
        steps = self._train.steps_per_epoch
        log = StepLog(self._train, epoch, self._workers, one_label=self.settings.loss == "softmax")
        seen: list[Tensor] = []
        for batch in batches:
            step = log.steps
            if step >= steps:
                raise TrainingError(f"more than the {steps} batches that were promised came in epoch {epoch}")
            set_learning_rate(self._optimizer, self._rate(epoch * steps + step))
            losses, right = self._step(batch, epoch, step)
            if self._mean is not None:
                self._mean.update(epoch * steps + step)
            log.add(batch, losses, right)
            if self._occurrences is None:
                seen.append((batch.y > 0).sum(dim=0))
        if log.steps < steps:
            raise TrainingError(f"{log.steps} training batches came in epoch {epoch}, {steps} were promised")
        means = log.means()
        if self._occurrences is None:
            self._occurrences = self._workers.sum(torch.stack(seen).sum(dim=0).to(self._device)).cpu()
        return means

    def _step(self, batch: TrainingBatch, epoch: int, step: int) -> tuple[Tensor, Tensor]:
        """Do one step; return the loss of each of this worker's samples and how right its decisions are, (n,)."""
        loss, losses, right = self._loss(batch, epoch, step) if len(batch.y) else self._loss_of_nothing(batch)
        self._optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        self._optimizer.step()
        return losses, right

    def _loss(self, batch: TrainingBatch, epoch: int, step: int) -> tuple[Tensor, Tensor, Tensor]:
        settings, n = self.settings, len(batch.y)
        x, truth = (values.to(self._device, non_blocking=True) for values in (batch.x, batch.y))
        if settings.augment and x.ndim == 4:
            x = turn(x, draw_turns(settings.seed, epoch, step, batch.n_total)[batch.places])
        mix = draw_mix(settings.mixup, settings.seed, epoch, step, self._workers.rank, n) if settings.mixup else None
        logits = logits_of(self._forward, x if mix is None else mix(x), settings.dtype)
        truth = truth.to(logits.dtype)
        losses = sample_losses(logits, truth if mix is None else mix(truth), settings.loss, self._weights)
        right = right_decisions(logits.detach(), truth, settings.loss)
        if mix is not None:
            right = mix.share * right + (1 - mix.share) * right_decisions(
                logits.detach(), mix.partners_of(truth), settings.loss
            )
        # Averaged over workers, this is the mean over the whole batch.
        return losses.sum() * (self._workers.count / batch.n_total), losses, right

    def _loss_of_nothing(self, batch: TrainingBatch) -> tuple[Tensor, Tensor, Tensor]:
        """Return a loss without gradient: the others wait for this worker's part in the mean of the gradients."""
        training_mode(self.network, freeze_norm=True)  # these are no samples, and no statistics
        x = batch.x.new_zeros((2, *batch.x.shape[1:])).to(self._device)
        logits = logits_of(self._forward, x, self.settings.dtype)
        training_mode(self.network, freeze_norm=self.settings.freeze_norm)
        nothing = logits.detach().new_zeros(0)
        return logits.sum() * 0, nothing, nothing.double()
