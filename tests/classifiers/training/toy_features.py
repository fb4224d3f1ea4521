"""Features like those of a backbone, for tests."""

import math

import numpy as np
import torch
from torch import Tensor


def toy(n: int, channels: int, labels: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Non-negative features, as after ReLU and pooling, with some dead and some nearly constant channels."""
    rng = np.random.default_rng(seed)
    features = np.maximum(rng.normal(0.2, 0.5, (n, channels)), 0) * rng.gamma(1.0, 1.0, channels)
    features[:, 0], features[:, 1] = 0.0, 3.0
    features[:, 2] = 2.0 + 1e-6 * rng.normal(size=n)
    weights = np.random.default_rng(99).normal(size=(channels, labels)) / math.sqrt(channels)
    truth = features @ weights + 0.3 * rng.normal(size=(n, labels)) > np.linspace(0.2, 1.0, labels)
    return torch.from_numpy(features.astype(np.float32)), torch.from_numpy(truth)
