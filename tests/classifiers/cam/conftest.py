"""A network of the registry, and images for it."""

import pytest
import torch
from torch import Tensor

from classifiers.network import Classifier
from classifiers.registry import build


@pytest.fixture(scope="module")
def model() -> Classifier:
    """A ResNet-18 with 5 labels, whose `layer4.1` has the output of its last stage."""
    torch.manual_seed(0)
    return build("resnet18", 5).eval()


@pytest.fixture
def x() -> Tensor:
    """Three images of 64 x 96 pixels."""
    return torch.randn(3, 3, 64, 96, generator=torch.Generator().manual_seed(1))
