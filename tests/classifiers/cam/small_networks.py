"""Small networks in float64, whose maps tests can compute by brute force, and a record of what they are shown."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from classifiers.cam.explain import explain
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


def convolutional(head: str = "linear", *, stride: int = 1, min_size: int = 1, dead: bool = True) -> Classifier:
    """Two convolutions, `deep` and `last`, of 6 and 5 channels, 3 labels; channel 4 of both may be 0 everywhere."""
    torch.manual_seed(36)  # maps of every method that are not 0 everywhere
    backbone = nn.Sequential()
    backbone.add_module("deep", nn.Sequential(nn.Conv2d(2, 6, 3, stride=stride, padding=1), nn.ReLU()))
    backbone.add_module("last", nn.Sequential(nn.Conv2d(6, 5, 3, padding=1), nn.ReLU()))
    with torch.no_grad():
        for name in ("deep", "last"):
            bias = backbone.get_submodule(name + ".0").get_parameter("bias")
            bias[4] = -100.0 if dead else bias[4]
            bias[0] = 0.5
    heads = {"linear": nn.Linear(5, 3), "mlp": nn.Sequential(nn.Linear(5, 8), nn.Tanh(), nn.Linear(8, 3))}
    for parameter in heads[head].parameters():
        parameter.data *= 4  # probabilities that differ
    return Classifier(backbone, heads[head], "last", 3, min_size=min_size).double().eval()


class _PixelWeights(nn.Module):
    def __init__(self, weights: Tensor) -> None:
        super().__init__()
        self.weights = weights

    def forward(self, x: Tensor) -> Tensor:
        return x * self.weights


class _Logit(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.logit()


def linear_in_pixels(weights: Tensor) -> Classifier:
    """A network whose probability of label l is the mean over pixels of weights_l * x, for inputs (N, 1, H, W)."""
    labels = len(weights)
    head = nn.Linear(labels, labels, bias=False)
    head.weight.data = torch.eye(labels)
    network = Classifier(_PixelWeights(weights), nn.Sequential(head, _Logit()), "backbone", labels)
    return network.double().eval()


@contextmanager
def recorded(model: Classifier) -> Iterator[list[Tensor]]:
    """Collect the batches that go through a network."""
    batches: list[Tensor] = []
    handle = model.backbone.register_forward_pre_hook(lambda _module, inputs: batches.append(inputs[0].clone()))
    try:
        yield batches
    finally:
        handle.remove()


def random_images(*shape: int, seed: int = 3) -> Tensor:
    """Standard normal numbers in float64."""
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def masks_shown(method: str, size: tuple[int, int], **options: Any) -> Tensor:
    """The masks of RISE or LIME, (M, H, W): an input of ones shows them to the network."""
    model = linear_in_pixels(torch.ones(1, *size, dtype=torch.float64))
    with recorded(model) as batches:
        explain(model, torch.ones(1, 1, *size, dtype=torch.float64), method, **options)
    return torch.cat(batches)[:, 0]
