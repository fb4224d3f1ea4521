"""SeeSR's networks: the official names, diffusers' numbers without image attention, a composition by hand with it."""

import json
from collections.abc import Mapping
from copy import deepcopy
from pathlib import Path
from typing import Any, NamedTuple, cast

import pytest
import torch
from diffusers.models.attention_processor import AttnProcessor2_0
from diffusers.models.controlnets.controlnet import ControlNetModel
from diffusers.models.embeddings import get_timestep_embedding
from diffusers.models.transformers.transformer_2d import Transformer2DModel
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812 - torch's own abbreviation

from infra.errors import ShapeError, WeightsError
from sr_models.seesr.conditioned import FULL_SIZE, ImageConditionedControlNet, ImageConditionedUNet

PLAIN: dict[str, Any] = {
    "down_block_types": ["CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"],
    "block_out_channels": [16, 16, 32],
    "norm_num_groups": 8,
    "attention_head_dim": [2, 4, 8],
    "cross_attention_dim": 24,
    "use_linear_projection": True,
}
"""Three levels, two layers each: settings of diffusers' own models."""

PLAIN_UNET = {**PLAIN, "up_block_types": ["UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D"]}
TINY = {**PLAIN, "use_image_cross_attention": True}
TINY_UNET = {**PLAIN_UNET, "use_image_cross_attention": True}

TRANSFORMERS = {"unet": 2 * 2 + 1 + 2 * 3, "controlnet": 2 * 2 + 1}
"""Text transformers by hand: two down blocks of 2 layers, the middle, and two up blocks of 3."""

Residuals = tuple[tuple[Tensor, ...], Tensor]


class Inputs(NamedTuple):
    latents: Tensor
    timestep: Tensor
    text: Tensor
    image: Tensor
    picture: Tensor


def inputs(n: int = 2, height: int = 8, width: int = 8) -> Inputs:
    g = torch.Generator().manual_seed(1)
    return Inputs(
        torch.randn(n, 4, height, width, generator=g),
        torch.randint(0, 1000, (n,), generator=g),
        torch.randn(n, 7, 24, generator=g),
        torch.randn(n, 5, 512, generator=g),
        torch.rand(n, 3, 8 * height, 8 * width, generator=g),
    )


def filled[Network: nn.Module](network: Network, seed: int) -> Network:
    """Give a network the numbers of a seed, also where it has zeros at first, as the ControlNet's last convolutions."""
    g = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in network.named_parameters():
            matrix = parameter.ndim > 1
            mean = 1.0 if name.endswith("weight") and not matrix else 0.0  # a norm's
            spread = 0.6 / parameter[0].numel() ** 0.5 if matrix else 0.1
            parameter.copy_(mean + spread * torch.randn(parameter.shape, generator=g))
    return network.eval().requires_grad_(requires_grad=False)


@pytest.fixture(scope="module")
def unet() -> ImageConditionedUNet:
    return filled(ImageConditionedUNet(TINY_UNET), 2)


@pytest.fixture(scope="module")
def controlnet() -> ImageConditionedControlNet:
    return filled(ImageConditionedControlNet(TINY), 3)


def predicted(unet: nn.Module, controlnet: nn.Module, x: Inputs, scale: float = 1.0) -> Tensor:
    noise = unet(x.latents, x.timestep, x.text, x.image, *controlnet(*x, scale))
    assert isinstance(noise, Tensor)
    return noise


def plain(network: nn.Module) -> UNet2DConditionModel | ControlNetModel:
    """Return diffusers' own model with the weights of ours, less those of image attention."""
    model: UNet2DConditionModel | ControlNetModel = (
        UNet2DConditionModel(**PLAIN_UNET) if isinstance(network, UNet2DConditionModel) else ControlNetModel(**PLAIN)
    )
    state = network.state_dict()
    model.load_state_dict({name: value for name, value in state.items() if ".image_attentions." not in name})
    model.eval().requires_grad_(requires_grad=False)
    return model


class ByHand:
    """SeeSR put together from single blocks of diffusers, in the order of the authors' release."""

    def __init__(self, network: nn.Module, x: Inputs) -> None:
        self.state = network.state_dict()
        self.model: Any = plain(network)
        self.text, self.image = x.text, x.image
        time = get_timestep_embedding(x.timestep, 16, flip_sin_to_cos=True, downscale_freq_shift=0)
        self.time = self.model.time_embedding(time)

    def image_attention(self, prefix: str, channels: int, heads: int, hidden: Tensor) -> Tensor:
        transformer = Transformer2DModel(
            num_attention_heads=heads,
            attention_head_dim=channels // heads,
            in_channels=channels,
            cross_attention_dim=512,
            norm_num_groups=8,
            use_linear_projection=True,
        )
        transformer.load_state_dict(
            {name.removeprefix(prefix): value for name, value in self.state.items() if name.startswith(prefix)}
        )
        (attended,) = transformer(hidden, encoder_hidden_states=self.image, return_dict=False)
        assert isinstance(attended, Tensor)
        return attended

    def attended(self, block: str, layer: int, channels: int, heads: int, hidden: Tensor) -> Tensor:
        text_attention = self.model.get_submodule(f"{block}.attentions.{layer}")
        (hidden,) = text_attention(hidden, encoder_hidden_states=self.text, return_dict=False)
        return self.image_attention(f"{block}.image_attentions.{layer}.", channels, heads, hidden)

    def contracted(self, hidden: Tensor) -> list[Tensor]:
        """The layers of the contracting path, their input first."""
        layers = [hidden]
        for b, (channels, heads) in enumerate([(16, 2), (16, 4), (32, None)]):
            block = self.model.down_blocks[b]
            for layer in range(2):
                hidden = block.resnets[layer](hidden, self.time)
                if heads:
                    hidden = self.attended(f"down_blocks.{b}", layer, channels, heads, hidden)
                layers.append(hidden)
            if b < 2:
                hidden = block.downsamplers[0](hidden)
                layers.append(hidden)
        return layers

    def middle(self, hidden: Tensor) -> Tensor:
        first, second = self.model.mid_block.resnets
        attended = self.attended("mid_block", 0, 32, 8, first(hidden, self.time))
        return cast("Tensor", second(attended, self.time))

    def expanded(self, hidden: Tensor, layers: list[Tensor]) -> Tensor:
        for b, (channels, heads) in enumerate([(32, None), (16, 4), (16, 2)]):
            block = self.model.up_blocks[b]
            for layer in range(3):
                hidden = block.resnets[layer](torch.cat([hidden, layers.pop()], dim=1), self.time)
                if heads:
                    hidden = self.attended(f"up_blocks.{b}", layer, channels, heads, hidden)
            if b < 2:
                hidden = block.upsamplers[0](hidden)
        assert not layers
        return hidden


def residuals_by_hand(controlnet: nn.Module, x: Inputs, scale: float) -> Residuals:
    hand = ByHand(controlnet, x)
    model = hand.model
    layers = hand.contracted(model.conv_in(x.latents) + model.controlnet_cond_embedding(x.picture))
    middle = hand.middle(layers[-1])
    down = [scale * zero(layer) for zero, layer in zip(model.controlnet_down_blocks, layers, strict=True)]
    return tuple(down), scale * model.controlnet_mid_block(middle)


def noise_by_hand(unet: nn.Module, x: Inputs, residuals: Residuals) -> Tensor:
    hand = ByHand(unet, x)
    down, mid = residuals
    layers = hand.contracted(hand.model.conv_in(x.latents))
    middle = hand.middle(layers[-1]) + mid
    hidden = hand.expanded(middle, [layer + residual for layer, residual in zip(layers, down, strict=True)])
    norm = hand.model.conv_norm_out
    hidden = F.silu(F.group_norm(hidden, 8, norm.weight, norm.bias, eps=1e-5))
    return F.conv2d(hidden, hand.model.conv_out.weight, hand.model.conv_out.bias, padding=1)


def shapes(network: nn.Module) -> dict[str, list[int]]:
    return {name: list(value.shape) for name, value in network.state_dict().items()}


@pytest.fixture(scope="module")
def full_size() -> Mapping[str, nn.Module]:
    with torch.device("meta"):
        return {"unet": ImageConditionedUNet(FULL_SIZE), "controlnet": ImageConditionedControlNet(FULL_SIZE)}


@pytest.mark.parametrize("name", ["unet", "controlnet"])
def test_parameters_are_those_of_the_official_files(
    full_size: Mapping[str, nn.Module], shared_data: Path, name: str
) -> None:
    assert shapes(full_size[name]) == json.loads((shared_data / "seesr" / f"{name}_keys.json").read_text())


def test_full_size_is_stable_diffusion_2_and_image_attention(full_size: Mapping[str, nn.Module]) -> None:
    """A transformer of C channels has 26 tensors, 20 C^2 + (21 + 2 * 512) C numbers; 16 of them stand in the UNet."""
    image_attention = sum(count * (20 * c * c + 1045 * c) for c, count in [(320, 5), (640, 5), (1280, 6)])
    parameters = list(full_size["unet"].parameters())
    assert len(parameters) == 686 + 16 * 26
    assert sum(parameter.numel() for parameter in parameters) == 865_910_724 + image_attention
    assert len(list(full_size["controlnet"].parameters())) == 340 + 7 * 26
    names = shapes(full_size["unet"])
    assert names["up_blocks.3.image_attentions.2.transformer_blocks.0.attn2.to_v.weight"] == [320, 512]
    assert names["up_blocks.3.attentions.2.transformer_blocks.0.attn2.to_v.weight"] == [320, 1024]
    assert names["mid_block.image_attentions.0.proj_out.bias"] == [1280]
    blocks = {name.split(".image_attentions.")[0] for name in names if ".image_attentions." in name}
    assert blocks == {"mid_block", *(f"down_blocks.{i}" for i in (0, 1, 2)), *(f"up_blocks.{i}" for i in (1, 2, 3))}


@pytest.mark.parametrize("scale", [1.0, 0.6])
def test_equals_a_composition_by_hand(
    unet: ImageConditionedUNet, controlnet: ImageConditionedControlNet, scale: float
) -> None:
    x = inputs()
    expected = residuals_by_hand(controlnet, x, scale)
    residuals = controlnet(*x, scale)
    torch.testing.assert_close(residuals, expected)
    noise = unet(x.latents, x.timestep, x.text, x.image, *residuals)
    torch.testing.assert_close(noise, noise_by_hand(unet, x, expected))
    assert 0.1 < float(noise.std()) < 10


@pytest.mark.parametrize("size", [(8, 8), (6, 10)])  # the second is not a multiple of the UNet's reduction, 4
def test_equals_diffusers_where_image_attention_gives_nothing(
    unet: ImageConditionedUNet, controlnet: ImageConditionedControlNet, size: tuple[int, int]
) -> None:
    x = inputs(2, *size)
    silent: list[Any] = [ImageConditionedUNet(TINY_UNET), ImageConditionedControlNet(TINY)]
    for network, loud in zip(silent, (unet, controlnet), strict=True):
        state = loud.state_dict()
        for name, value in state.items():
            if ".image_attentions." in name and ".proj_out." in name:
                state[name] = torch.zeros_like(value)
        network.load_state_dict(state)
        network.eval().requires_grad_(requires_grad=False)
    down, mid = silent[1](*x, 0.6)
    own: Any = plain(controlnet)(x.latents, x.timestep, x.text, x.picture, conditioning_scale=0.6)
    assert len(down) == len(own.down_block_res_samples)
    assert all(torch.equal(ours, theirs) for ours, theirs in zip(down, own.down_block_res_samples, strict=True))
    assert torch.equal(mid, own.mid_block_res_sample)
    noise = silent[0](x.latents, x.timestep, x.text, x.image, down, mid)
    expected = plain(unet)(
        x.latents, x.timestep, x.text, down_block_additional_residuals=down, mid_block_additional_residual=mid
    )
    assert torch.equal(noise, expected.sample)
    assert float((predicted(unet, controlnet, x, 0.6) - noise).abs().mean()) > 0.05  # the loud ones do attend


def test_each_image_of_a_batch_is_alone(unet: ImageConditionedUNet, controlnet: ImageConditionedControlNet) -> None:
    x = inputs(3)
    single = [predicted(unet, controlnet, Inputs(*(value[i : i + 1] for value in x))) for i in range(3)]
    torch.testing.assert_close(predicted(unet, controlnet, x), torch.cat(single), rtol=0, atol=1e-5)


def test_one_timestep_serves_the_batch(unet: ImageConditionedUNet, controlnet: ImageConditionedControlNet) -> None:
    x = inputs(2)._replace(timestep=torch.tensor(321))
    each = x._replace(timestep=torch.tensor([321, 321]))
    assert torch.equal(predicted(unet, controlnet, x), predicted(unet, controlnet, each))


def test_half_precision(unet: ImageConditionedUNet, controlnet: ImageConditionedControlNet) -> None:
    """bfloat16 has 8 bits, so a hundred or so operations leave a few per cent."""
    x = inputs()
    halved: list[nn.Module] = [nn.Module.to(deepcopy(network), torch.bfloat16) for network in (unet, controlnet)]
    half = predicted(
        halved[0],
        halved[1],
        Inputs(*(value if value.dtype == torch.int64 else value.to(torch.bfloat16) for value in x)),
    )
    full = predicted(unet, controlnet, x)
    assert half.dtype == torch.bfloat16
    assert float((half.float() - full).std() / full.std()) < 0.05


def test_attention_is_fused(
    unet: ImageConditionedUNet, controlnet: ImageConditionedControlNet, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each transformer, of text or image, attends twice: to itself and across; all through torch's own kernel."""
    widths: list[int] = []
    fused = F.scaled_dot_product_attention

    def counted(query: Tensor, key: Tensor, value: Tensor, **options: Any) -> Tensor:
        widths.append(key.shape[2])
        return fused(query, key, value, **options)

    monkeypatch.setattr(F, "scaled_dot_product_attention", counted)
    predicted(unet, controlnet, inputs())
    transformers = sum(TRANSFORMERS.values())
    assert len(widths) == 4 * transformers
    assert widths.count(7) == widths.count(5) == transformers  # 7 tokens of text, 5 of the image
    processors = [*unet.attn_processors.values(), *controlnet.attn_processors.values()]
    assert len(processors) == 4 * transformers
    assert {type(processor) for processor in processors} == {AttnProcessor2_0}


def test_compiles_into_one_graph() -> None:
    """One block of each kind, one layer each: no Python depends on what is in a tensor."""
    smaller = {
        **TINY,
        "down_block_types": ["CrossAttnDownBlock2D", "DownBlock2D"],
        "block_out_channels": [16, 32],
        "attention_head_dim": [2, 8],
        "layers_per_block": 1,
    }
    up = {"up_block_types": ["UpBlock2D", "CrossAttnUpBlock2D"]}
    unet, controlnet = (
        filled(ImageConditionedUNet({**smaller, **up}), 4),
        filled(ImageConditionedControlNet(smaller), 5),
    )
    compiled = predicted(
        cast("nn.Module", torch.compile(unet, backend="eager", fullgraph=True)),
        cast("nn.Module", torch.compile(controlnet, backend="eager", fullgraph=True)),
        inputs(),
    )
    torch.testing.assert_close(compiled, predicted(unet, controlnet, inputs()))


def test_saved_and_read_by_diffusers(
    unet: ImageConditionedUNet, controlnet: ImageConditionedControlNet, tmp_path: Path
) -> None:
    unet.save_pretrained(tmp_path / "unet")
    controlnet.save_pretrained(tmp_path / "controlnet")
    for name in ("unet", "controlnet"):
        assert json.loads((tmp_path / name / "config.json").read_text())["use_image_cross_attention"] is True
    again = ImageConditionedUNet.from_pretrained(tmp_path / "unet")
    beside = ImageConditionedControlNet.from_pretrained(tmp_path / "controlnet")
    assert torch.equal(predicted(again, beside, inputs()), predicted(unet, controlnet, inputs()))


def test_official_config_is_accepted() -> None:
    """The official files name diffusers' class and version, where they were, and settings that are plain defaults."""
    official = {
        **TINY_UNET,
        "_class_name": "UNet2DConditionModel",
        "_diffusers_version": "0.21.0",
        "_name_or_path": "stable-diffusion-2-base",
        "act_fn": "silu",
        "attention_type": "default",
        "dual_cross_attention": False,
        "encoder_hid_dim": None,
        "mid_block_type": "UNetMidBlock2DCrossAttn",
        "num_attention_heads": None,
        "resnet_out_scale_factor": 1.0,
        "sample_size": 64,
        "upcast_attention": False,
    }
    assert shapes(ImageConditionedUNet.from_config(official)) == shapes(ImageConditionedUNet(TINY_UNET))


@pytest.mark.parametrize("switch", [{}, {"use_image_cross_attention": False}])
def test_plain_stable_diffusion_is_told_from_seesr(switch: dict[str, bool]) -> None:
    with pytest.raises(WeightsError, match="use_image_cross_attention"):
        ImageConditionedUNet({**PLAIN_UNET, **switch})
    with pytest.raises(WeightsError, match="ControlNetModel has use_image_cross_attention: true"):
        ImageConditionedControlNet({**PLAIN, **switch})


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"latents": torch.zeros(2, 3, 8, 8)}, r"latents must be of shape \(N, 4, h, w\), got \(2, 3, 8, 8\)"),
        ({"latents": torch.zeros(4, 8, 8)}, r"latents .* got \(4, 8, 8\)"),
        ({"timestep": torch.zeros(3)}, r"timesteps must be of shape \(2,\), got \(3,\)"),
        ({"text": torch.zeros(2, 7, 32)}, r"text embeddings must be of shape \(2, tokens, 24\), got \(2, 7, 32\)"),
        ({"text": torch.zeros(1, 7, 24)}, r"text embeddings"),
        ({"image": torch.zeros(2, 5, 256)}, r"image embeddings must be of shape \(2, tokens, 512\), got \(2, 5, 256\)"),
        ({"image": torch.zeros(2, 512)}, r"image embeddings"),
        ({"picture": torch.zeros(2, 3, 60, 64)}, r"pictures must be of shape \(2, 3, 64, 64\), got \(2, 3, 60, 64\)"),
        ({"picture": torch.zeros(1, 3, 64, 64)}, r"pictures"),
    ],
)
def test_wrong_shapes_are_told(
    unet: ImageConditionedUNet, controlnet: ImageConditionedControlNet, wrong: dict[str, Tensor], message: str
) -> None:
    x = inputs()
    down, mid = controlnet(*x)
    bad = x._replace(**wrong)
    with pytest.raises(ShapeError, match=message):
        controlnet(*bad)
    if "picture" not in wrong:
        with pytest.raises(ShapeError, match=message):
            unet(bad.latents, bad.timestep, bad.text, bad.image, down, mid)


def test_wrong_residuals_are_told(unet: ImageConditionedUNet, controlnet: ImageConditionedControlNet) -> None:
    """diffusers would leave the last layers without residuals, and add those of one image to all."""
    x = inputs()
    down, mid = controlnet(*x)
    with pytest.raises(ShapeError, match="needs 9 residuals of its ControlNet, got 8"):
        unet(*x[:4], down[:-1], mid)
    with pytest.raises(ShapeError, match=r"residuals of the ControlNet must be of shape \(2, channels"):
        unet(*x[:4], down, mid[:1])
