"""What every fit of a classifier offers: epochs one by one, a state between them, and a result."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol


@dataclass(frozen=True, slots=True)
class EpochRow:
    """One row of `tables/training`."""

    epoch: int
    """From 0."""
    lr: float
    """Learning rate of the epoch's last step, of the parameters that learn fastest."""
    train_loss: float
    """Mean over training samples, as the weights changed."""
    validation_loss: float
    """Mean over validation samples, after the epoch."""
    train_accuracy: float
    """Share of right decisions as the weights changed, mixed as the truth is: labels at 0.5, or samples (softmax)."""
    validation_accuracy: float
    """Share of right decisions after the epoch, likewise."""
    validation_ap_macro: float
    """Macro AP of the validation samples, NaN where none has a label."""
    best: bool
    """Whether it was the best so far, when the epoch ends; in the result, whether its weights were kept."""
    seconds: float
    """Training and validation, wall clock."""
    wait_share: float
    """Share of the seconds of training in which this worker waited for its next batch."""


@dataclass(frozen=True, slots=True)
class FitResult:
    """What a fit leaves beside the network."""

    rows: tuple[EpochRow, ...]
    """One per epoch; `best` is true for one."""
    best_epoch: int
    """The epoch whose weights the network has."""
    thresholds: tuple[float, ...]
    """Probability from which each label is predicted, (L,); with softmax, where the likeliest label is, 0.5."""
    absent_labels: tuple[int, ...]
    """Labels that no training sample has."""


class Trainer(Protocol):
    """A fit that goes on epoch by epoch, and from where it stopped."""

    @property
    def epoch(self) -> int:
        """The next epoch, from 0."""

    @property
    def done(self) -> bool:
        """Whether no epoch is left, or the validation has not become better for long enough."""

    def advance(self) -> EpochRow:
        """Train for one epoch and validate; return its row."""

    def state(self) -> bytes:
        """Return everything a stopped run needs, as a file's content."""

    def restore(self, state: bytes) -> None:
        """Go on from a saved state."""

    def finish(self) -> FitResult:
        """Leave the network with the weights of its best epoch, in evaluation mode; once the fit is done."""


def run_to_end(trainer: Trainer, on_epoch: Callable[[EpochRow], None] | None = None) -> FitResult:
    """Train to the last epoch and return the result; `on_epoch` is called with each row as its epoch ends."""
    while not trainer.done:
        row = trainer.advance()
        if on_epoch is not None:
            on_epoch(row)
    return trainer.finish()
