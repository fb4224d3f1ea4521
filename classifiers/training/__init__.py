"""Training of classifiers: whole networks by one worker or several, heads on features; a stopped fit goes on."""

from classifiers.training.batches import Batches, TensorBatches, TrainingBatch
from classifiers.training.best_epoch import MIN_GAIN
from classifiers.training.head import HeadTrainer
from classifiers.training.loop import ClassifierTrainer
from classifiers.training.settings import TrainSettings
from classifiers.training.trainer import EpochRow, FitResult, Trainer, run_to_end

__all__ = [
    "MIN_GAIN",
    "Batches",
    "ClassifierTrainer",
    "EpochRow",
    "FitResult",
    "HeadTrainer",
    "TensorBatches",
    "TrainSettings",
    "Trainer",
    "TrainingBatch",
    "run_to_end",
]
