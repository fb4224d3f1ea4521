import pytest
import torch
from torch import Tensor, nn

from classifiers.training.forward import logits_of, training_mode
from infra.errors import ShapeError


class Spy(nn.Module):
    """Tells what its layer was given and gave."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Conv2d(2, 3, 1)
        self.seen: list[Tensor] = []

    def forward(self, x: Tensor) -> Tensor:
        self.seen = [x, self.layer(x)]
        return self.seen[1].mean(dim=(2, 3))


def test_precision_inside_and_out() -> None:
    spy, x = Spy(), torch.rand(2, 2, 4, 4)
    assert logits_of(spy, x, "auto").dtype == torch.float32
    assert spy.seen[1].dtype == torch.float32  # on the CPU
    assert logits_of(spy, x, "bfloat16").dtype == torch.float32
    assert spy.seen[1].dtype == torch.bfloat16
    assert logits_of(spy.double(), x, "bfloat16").dtype == torch.float64
    assert spy.seen[1].dtype == torch.float64


def test_images_are_channels_last() -> None:
    spy = Spy()
    logits_of(spy, torch.rand(2, 2, 4, 4), "float32")
    assert spy.seen[0].is_contiguous(memory_format=torch.channels_last)


def modes(network: nn.Module, *, freeze_norm: bool) -> list[bool]:
    training_mode(network, freeze_norm=freeze_norm)
    return [module.training for module in network.children()]


def test_frozen_normalisations_keep_their_statistics() -> None:
    """Dropout, then batch normalisations: trained, frozen, without parameters."""
    frozen = nn.BatchNorm2d(3).requires_grad_(requires_grad=False)
    network = nn.Sequential(nn.Dropout(), nn.BatchNorm2d(3), frozen, nn.BatchNorm1d(3, affine=False))
    network.eval()
    assert modes(network, freeze_norm=False) == [True, True, False, True]
    assert modes(network, freeze_norm=True) == [True, False, False, False]
    assert modes(network, freeze_norm=False) == [True, True, False, True]


def test_refuses_what_are_no_logits() -> None:
    with pytest.raises(ShapeError, match=r"\(2, 3, 4, 4\) for inputs \(2, 2, 4, 4\)"):
        logits_of(nn.Conv2d(2, 3, 1), torch.rand(2, 2, 4, 4), "auto")
