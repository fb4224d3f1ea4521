"""The image encoder against timm's Swin, its windows by brute force, and the order of its tokens."""

import re
from collections.abc import Sequence

import pytest
import timm.models.swin_transformer as peer
import torch
from torch import Tensor, nn

from infra.errors import ConfigError, ShapeError
from sr_models.seesr.swin import Swin
from tests.sr_models.seesr.shaken import shaken
from tests.sr_models.stand_ins import picture

# image, depths, heads, window; shifted windows in the first stage, in two stages of three, of a window of 3, in none
ARRANGEMENTS = [
    (32, (2, 2), (2, 4), 4),
    (64, (2, 1, 3), (1, 2, 4), 4),
    (48, (2, 2), (4, 2), 3),
    (16, (2,), (2,), 4),
]


def swin(image: int, depths: Sequence[int], heads: Sequence[int], window: int) -> Swin:
    return shaken(Swin(image, 16, depths, heads, window))


def timms(network: Swin, image: int, depths: Sequence[int], heads: Sequence[int], window: int) -> nn.Module:
    """Return timm's network with our weights: LoRA merged by hand, patch merging moved to the next stage."""
    state = {}
    for name, value in network.state_dict().items():
        if ".lora_" in name or name.endswith(("relative_position_index", "attn_mask")):
            continue
        moved = re.sub(r"^layers\.(\d+)\.downsample", lambda match: f"layers.{int(match[1]) + 1}.downsample", name)
        state[moved] = value.clone()
    for name, b in network.state_dict().items():
        if name.endswith("lora_B"):
            a = network.state_dict()[name.removesuffix("B") + "A"]
            dim = a.shape[1]
            weight = state[name.removesuffix("lora_B") + "weight"]
            weight[:dim] += b[:dim] @ a[:8] / 8
            weight[2 * dim :] += b[dim:] @ a[8:] / 8
    built = peer.SwinTransformer(
        img_size=image,
        window_size=window,
        embed_dim=16,
        depths=tuple(depths),
        num_heads=tuple(heads),
        num_classes=0,
        norm_layer=nn.LayerNorm,
    )
    built.load_state_dict(state, strict=True)
    return built.eval()  # type: ignore[no-any-return]


@pytest.mark.parametrize("arrangement", ARRANGEMENTS)
def test_equals_timm(arrangement: tuple[int, tuple[int, ...], tuple[int, ...], int]) -> None:
    network = swin(*arrangement)
    x = 4 * picture(3, arrangement[0]) - 2
    found = network(x)
    with torch.no_grad():
        expected: Tensor = timms(network, *arrangement).forward_features(x).flatten(1, 2)  # type: ignore[operator]
    assert float(expected.std()) > 0.1
    assert found.shape == (3, 1 + expected.shape[1], 16 * 2 ** (len(arrangement[1]) - 1))
    torch.testing.assert_close(found[:, 1:], expected, atol=1e-5, rtol=0)
    torch.testing.assert_close(found[:, 0], expected.mean(dim=1), atol=1e-5, rtol=0)


def test_a_token_sees_its_window_and_no_other() -> None:
    """Which outputs of a block a token changes, for every token: those of its window, cut at the image's edge."""
    network = swin(48, (2,), (2,), 4)
    edge, window = 12, 4
    blocks: nn.Module = network.layers.get_submodule("0.blocks")
    generator = torch.Generator().manual_seed(1)
    x, change = torch.randn((1, edge, edge, 16), generator=generator), torch.randn(16, generator=generator)
    places = torch.arange(edge)
    for block, shift in ((blocks.get_submodule("0"), 0), (blocks.get_submodule("1"), 2)):
        moved = x.repeat(edge * edge, 1, 1, 1).view(edge, edge, edge, edge, 16)
        moved[places[:, None], places[None, :], places[:, None], places[None, :]] += change
        with torch.no_grad():
            difference = (block(moved.flatten(0, 1)) - block(x)).abs().amax(dim=-1).view(edge, edge, edge, edge)
        belongs = torch.div(places - shift, window, rounding_mode="floor")  # -1: before the first shifted window
        same = belongs[:, None] == belongs[None, :]
        assert torch.equal(difference > 1e-5, same[:, None, :, None] & same[None, :, None, :])


def test_each_image_alone() -> None:
    network = swin(*ARRANGEMENTS[1])
    x = picture(3, 64)
    torch.testing.assert_close(network(x), torch.cat([network(one) for one in x.chunk(len(x))]), atol=1e-5, rtol=0)


@pytest.mark.parametrize("shape", [(1, 3, 32, 64), (1, 3, 64, 64), (1, 1, 32, 32), (3, 32, 32)])
def test_other_shapes_are_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(ShapeError, match=r"\(N, 3, 32, 32\)"):
        swin(*ARRANGEMENTS[0])(torch.zeros(shape))


@pytest.mark.parametrize(
    "arrangement",
    [
        (32, (2, 2), (2,), 4),
        (32, (), (), 4),
        (34, (2,), (2,), 4),
        (24, (2, 2), (2, 4), 4),
        (40, (2, 2, 2, 2), (1, 1, 1, 1), 5),
        (32, (2, 2), (3, 4), 4),
    ],
)
def test_sizes_that_do_not_fit_are_refused(
    arrangement: tuple[int, tuple[int, ...], tuple[int, ...], int],
) -> None:
    with pytest.raises(ConfigError, match="Swin"):
        Swin(arrangement[0], 16, *arrangement[1:])
