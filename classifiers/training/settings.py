"""How a classifier is trained."""

from dataclasses import dataclass
from math import inf
from typing import Literal, get_args

from classifiers.training.losses import Loss
from infra.errors import ConfigError

Optimizer = Literal["adamw", "adam", "sgd"]
Thresholds = Literal["half", "tuned"]
Precision = Literal["auto", "float32", "bfloat16"]


@dataclass(frozen=True, slots=True)
class TrainSettings:
    """How a network is trained."""

    epochs: int = 30
    """Passes over the training samples."""
    batch_size: int = 256
    """Samples of a step, over all workers; for whoever makes the batches."""
    lr: float = 1e-3
    """Highest learning rate, reached after the warm-up."""
    weight_decay: float = 0.01
    """Of matrices and kernels; vectors (biases, normalisation) are not decayed. For `adam` and `sgd` an L2 penalty."""
    optimizer: Optimizer = "adamw"
    """`sgd` has momentum 0.9."""
    seed: int = 0
    """Of the augmentation and of layers that draw; shuffling is the batches' and initialisation the caller's."""
    warmup: float = 0.05
    """Share of all steps in which the learning rate rises linearly, in [0, 1)."""
    augment: bool = True
    """Whether inputs (N, C, H, W) are flipped and turned by multiples of 90 degrees at random."""
    adam_eps: float = 1e-8
    """Epsilon of `adamw` and `adam`."""
    mixup: float = 0.0
    """Parameter of the Beta distribution of mixup's share; 0: none."""
    ema: float = 0.0
    """Decay of the mean of the weights that is validated and kept, in [0, 1); 0: the weights themselves."""
    layer_decay: float = 1.0
    """The rate of a parameter of depth d is lr * layer_decay^(D - d), D the greatest depth, in (0, 1]; 1: none."""
    loss: Loss = "bce"
    """See `Loss`."""
    class_weights: bool = False
    """Whether rare labels weigh more, see `label_weights`."""
    patience: int | None = None
    """Stop when the validation has not become better for so many epochs; None: never."""
    thresholds: Thresholds = "half"
    """`half`: 0.5; `tuned`: what gives each label its highest F1 on the validation samples."""
    dtype: Precision = "auto"
    """Precision inside the network; parameters and loss are float32. `auto`: bfloat16 on CUDA, float32 on the CPU."""
    freeze_norm: bool = False
    """Whether batch normalisations keep their statistics; their scale and shift train."""

    def __post_init__(self) -> None:
        if self.epochs < 1 or self.batch_size < 1:
            raise ConfigError(f"training needs epochs and batch_size >= 1, got {self.epochs} and {self.batch_size}")
        if not (0 < self.lr < inf and 0 <= self.weight_decay < inf and 0 <= self.warmup < 1 and self.adam_eps > 0):
            raise ConfigError(
                "training needs finite lr > 0, finite weight_decay >= 0, 0 <= warmup < 1 and adam_eps > 0, got "
                f"{self.lr}, {self.weight_decay}, {self.warmup} and {self.adam_eps}"
            )
        if not (0 <= self.mixup < inf and 0 <= self.ema < 1 and 0 < self.layer_decay <= 1 and self.seed >= 0):
            raise ConfigError(
                "training needs finite mixup >= 0, 0 <= ema < 1, 0 < layer_decay <= 1 and seed >= 0, got "
                f"{self.mixup}, {self.ema}, {self.layer_decay} and {self.seed}"
            )
        if self.patience is not None and self.patience < 1:
            raise ConfigError(f"patience is {self.patience}: give at least one epoch, or none to never stop early")
        for what, value, choices in (
            ("optimizer", self.optimizer, get_args(Optimizer)),
            ("loss", self.loss, get_args(Loss)),
            ("thresholds", self.thresholds, get_args(Thresholds)),
            ("dtype", self.dtype, get_args(Precision)),
        ):
            if value not in choices:
                raise ConfigError(f"no {what} {value!r}: choose one of {', '.join(choices)}")
        if self.loss == "softmax" and self.thresholds == "tuned":
            raise ConfigError("softmax predicts the likeliest label and has no thresholds: give thresholds: half")
