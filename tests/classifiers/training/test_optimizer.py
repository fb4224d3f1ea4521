"""Oracles: closed forms of the schedule, and the rates of a network of three depths by hand."""

import math
from typing import get_args

import pytest
import torch
from torch import nn

from classifiers.training.optimizer import build_optimizer, learning_rate, set_learning_rate
from classifiers.training.settings import Optimizer, TrainSettings
from infra.errors import ConfigError, TrainingError


def test_learning_rate_rises_then_falls_as_half_a_cosine() -> None:
    settings = TrainSettings(lr=1.0, warmup=0.2)
    rates = [learning_rate(step, 10, settings) for step in range(10)]
    assert rates[:3] == pytest.approx([1 / 3, 2 / 3, 1.0])
    assert rates[6] == pytest.approx(0.5)  # half of the eight falling steps
    assert rates[9] == pytest.approx(0.5 * (1 + math.cos(math.pi * 7 / 8)))
    assert learning_rate(0, 1, settings) == 1.0


def network() -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.Linear(4, 2))


DEPTHS = {"0.weight": 0, "0.bias": 0, "1.weight": 1, "1.bias": 1, "2.weight": 3, "2.bias": 3}


def test_deep_parameters_learn_faster_and_vectors_do_not_decay() -> None:
    """Depths 0, 1 and 3, factor 1/2: rates 1/8, 1/4 and 1 of the step's, in the first step and after `set`."""
    trained = network()
    settings = TrainSettings(lr=0.8, layer_decay=0.5, weight_decay=0.3)
    optimizer = build_optimizer(trained, settings, DEPTHS)
    names = {id(parameter): name for name, parameter in trained.named_parameters()}

    def found(key: str) -> dict[str, float]:
        return {names[id(p)]: group[key] for group in optimizer.param_groups for p in group["params"]}

    share = {0: 1 / 8, 1: 1 / 4, 3: 1.0}
    assert found("lr") == pytest.approx({name: 0.8 * share[depth] for name, depth in DEPTHS.items()})
    set_learning_rate(optimizer, 0.4)
    assert found("lr") == pytest.approx({name: 0.4 * share[depth] for name, depth in DEPTHS.items()})
    assert found("weight_decay") == {name: 0.3 if name in {"0.weight", "2.weight"} else 0.0 for name in DEPTHS}


def test_one_rate_where_depth_does_not_matter() -> None:
    optimizer = build_optimizer(network(), TrainSettings(lr=0.8))
    assert [group["lr"] for group in optimizer.param_groups] == [0.8, 0.8]


def test_the_settings_choose_the_optimizer() -> None:
    found = {
        name: build_optimizer(network(), TrainSettings(optimizer=name, adam_eps=1e-3)) for name in get_args(Optimizer)
    }
    assert [type(optimizer) for optimizer in found.values()] == [torch.optim.AdamW, torch.optim.Adam, torch.optim.SGD]
    assert found["adamw"].defaults["eps"] == found["adam"].defaults["eps"] == 1e-3
    assert found["sgd"].defaults["momentum"] == 0.9


def test_refuses() -> None:
    with pytest.raises(TrainingError, match="all are frozen"):
        build_optimizer(network().requires_grad_(requires_grad=False), TrainSettings())
    with pytest.raises(ConfigError, match=r"depth of the parameter 0\.weight"):
        build_optimizer(network(), TrainSettings(layer_decay=0.9))
    depths = {name: depth for name, depth in DEPTHS.items() if name != "2.bias"}
    with pytest.raises(ConfigError, match=r"depth of the parameter 2\.bias"):
        build_optimizer(network(), TrainSettings(layer_decay=0.9), depths)
