"""Small networks in float64, whose maps tests can compute by brute force."""

import torch
from torch import Tensor, nn

from classifiers.network import Classifier

LABELS = 3


def network(head: str = "linear", seed: int = 0, channels: int = 5) -> Classifier:
    """Return a network of two convolutions; the module `deep` is not its last stage, `last` is."""
    torch.manual_seed(seed)
    backbone = nn.Sequential()
    backbone.add_module("deep", nn.Sequential(nn.Conv2d(2, 6, 3, padding=1), nn.ReLU()))
    backbone.add_module("last", nn.Sequential(nn.Conv2d(6, channels, 3, padding=1), nn.ReLU()))
    if head == "linear":
        module: nn.Module = nn.Linear(channels, LABELS)
    else:
        module = nn.Sequential(nn.Linear(channels, 8), nn.Tanh(), nn.Linear(8, LABELS))
    return Classifier(backbone, module, "last", LABELS).double().eval()


def images(n: int = 2, seed: int = 3) -> Tensor:
    """Return inputs (n, 2, 7, 6), standard normal, float64."""
    return torch.randn(n, 2, 7, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
