from dataclasses import asdict
from typing import Any

import pytest

from classifiers.training.settings import TrainSettings
from infra.errors import ConfigError


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"epochs": 0}, "epochs"),
        ({"lr": 0.0}, "lr > 0"),
        ({"lr": float("inf")}, "finite lr"),
        ({"weight_decay": float("inf")}, "finite weight_decay"),
        ({"mixup": float("inf")}, "finite mixup"),
        ({"warmup": 1.0}, "warmup < 1"),
        ({"mixup": -0.1}, "mixup >= 0"),
        ({"mixup": float("nan")}, "mixup >= 0"),
        ({"ema": 1.0}, "ema < 1"),
        ({"layer_decay": 0.0}, "layer_decay"),
        ({"seed": -1}, "seed >= 0"),
        ({"patience": 0}, "patience is 0"),
        ({"optimizer": "lion"}, "no optimizer 'lion': choose one of adamw, adam, sgd"),
        ({"loss": "hinge"}, "no loss 'hinge'"),
        ({"thresholds": "best"}, "no thresholds 'best'"),
        ({"dtype": "float16"}, "no dtype 'float16'"),
        ({"loss": "softmax", "thresholds": "tuned"}, "likeliest"),
    ],
)
def test_refuses(change: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        TrainSettings(**change)


def test_takes_every_option_at_once() -> None:
    chosen: dict[str, Any] = {
        "epochs": 2,
        "batch_size": 4,
        "lr": 0.1,
        "weight_decay": 0.0,
        "optimizer": "sgd",
        "seed": 3,
        "warmup": 0.0,
        "augment": False,
        "adam_eps": 1e-6,
        "mixup": 0.2,
        "ema": 0.99,
        "layer_decay": 0.8,
        "loss": "asymmetric",
        "class_weights": True,
        "patience": 3,
        "thresholds": "tuned",
        "dtype": "bfloat16",
        "freeze_norm": True,
    }
    assert asdict(TrainSettings(**chosen)) == chosen
