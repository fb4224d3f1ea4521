"""LoRA: the change of a weight, block by block, as its authors define it."""

import pytest
import torch
from torch.nn import functional as F  # noqa: N812

from sr_models.seesr.lora import RANK, LoraLinear
from tests.sr_models.seesr.shaken import shaken


@pytest.mark.parametrize("tuned", [(True,), (True, False, True), (False, True), (True, True)])
def test_the_low_rank_path_beside_the_layer(tuned: tuple[bool, ...]) -> None:
    """y = W x + b + (1/8) B_i A_i x in each tuned block of rows, with each block's own eight rows of A."""
    rows, inner, rank = 5, 7, 8
    layer = shaken(LoraLinear(inner, rows * len(tuned), tuned))
    x = torch.randn((2, 3, inner), generator=torch.Generator().manual_seed(1))
    expected = F.linear(x, layer.weight, layer.bias)
    used = 0
    for block, on in enumerate(tuned):
        if on:
            a, b = layer.lora_A[used * rank : (used + 1) * rank], layer.lora_B[used * rows : (used + 1) * rows]
            expected[..., block * rows : (block + 1) * rows] += (x @ a.T) @ b.T / rank
            used += 1
    assert layer.lora_A.shape == (used * rank, inner)
    assert layer.lora_B.shape == (used * rows, rank)
    assert rank == RANK
    torch.testing.assert_close(layer(x), expected, atol=1e-5, rtol=1e-5)


def test_it_begins_as_the_plain_layer() -> None:
    layer = LoraLinear(6, 9, (True, False, True))
    x = torch.randn((4, 6), generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(layer(x), F.linear(x, layer.weight, layer.bias))
    assert float(layer.lora_A.detach().abs().sum()) > 0  # else nothing could be learnt
