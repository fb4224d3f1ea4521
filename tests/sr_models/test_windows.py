"""Windows against the image in one go, which is what they stand for."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import sr_models
from infra.errors import ConfigError, ShapeError
from sr_models import SR_MODELS, SrSpec, SuperResolver
from sr_models.windows import (
    SMALLEST_WINDOW,
    WindowRule,
    enlarge_in_windows,
    plan_windows,
    super_resolve_image,
    window_rule,
)

EXACT = 1e-5
"""Seam error allowed for a convolutional model."""

NARROW: dict[str, dict[str, int]] = {
    "none": {},
    "bicubic": {},
    "srresnet": {"num_feat": 4},
    "realesrgan": {"num_feat": 4, "num_grow_ch": 2},
    "realesrgan_general": {"num_feat": 4},
}
"""Channels do not change how far a network sees, and few of them make it fast; depth is the registry's."""


def narrow(name: str) -> SuperResolver:
    """A model as deep as the registry's, with few channels and random weights that hide little in the clamp."""
    model = SR_MODELS[name]
    torch.manual_seed(0)
    network = model.architecture(**{**model.parameters, **NARROW[name]}).eval().requires_grad_(requires_grad=False)
    convolutions = [module for module in network.modules() if isinstance(module, nn.Conv2d)]
    for module in convolutions:
        nn.init.normal_(module.weight, std=(1.0 / module.weight[0].numel()) ** 0.5)
    if convolutions:
        y = network(picture(24, 24)[None])
        convolutions[-1].weight.mul_(0.2 / y.std())
        assert convolutions[-1].bias is not None
        convolutions[-1].bias.add_(0.5 - network(picture(24, 24)[None]).mean())
    return SuperResolver(name, model.scale, network, torch.device("cpu"))


def picture(height: int, width: int, seed: int = 0) -> Tensor:
    return torch.rand((3, height, width), generator=torch.Generator().manual_seed(seed))


def whole(resolver: SuperResolver, x: Tensor) -> Tensor:
    return resolver(x[None])[0]


@pytest.mark.parametrize("name", NARROW)
def test_receptive_radius_is_how_far_a_nan_spreads(name: str) -> None:
    """A NaN reaches all that depends on its pixel, however small its part in it, and nothing else."""
    model = SR_MODELS[name]
    radius = model.receptive_radius
    assert radius is not None
    centre, width = radius + 4, 2 * radius + 9
    x = picture(1, width)[None].double()  # float64 convolutions are plain sums: no transform that mixes pixels
    x[..., centre] = torch.nan
    with torch.inference_mode():
        y = model.architecture(**{**model.parameters, **NARROW[name]}).double().eval()(x)
    reached = y.isnan().any(dim=1)[0, 0].reshape(width, model.scale).any(dim=1).nonzero().flatten()
    assert (int(reached.min()) - centre, int(reached.max()) - centre) == (-radius, radius)


@pytest.mark.parametrize("name", NARROW)
def test_windows_with_the_receptive_radius_as_margin_equal_the_whole(name: str) -> None:
    resolver = narrow(name)
    radius = SR_MODELS[name].receptive_radius
    assert radius is not None
    height, width = (6, 2 * radius + 150) if radius > 100 else (2 * radius + 33, 2 * radius + 75)
    x = picture(height, width)
    expected = whole(resolver, x)
    assert ((expected > 0) & (expected < 1)).float().mean() > 0.7  # else the clamp would hide errors
    rule = WindowRule(2 * radius + 24, radius)
    plan = plan_windows(height, width, rule)
    assert len(plan.columns) > 3
    for batch_size in (1, 3):
        got = super_resolve_image(resolver, x, rule=rule, batch_size=batch_size)
        assert float((got - expected).abs().max()) <= EXACT


@pytest.mark.parametrize(("name", "margin"), [("bicubic", 1), ("srresnet", 3), ("realesrgan_general", 3)])
def test_a_margin_that_is_too_small_shows(name: str, margin: int) -> None:
    stride = 30 - 2 * margin
    resolver, x = narrow(name), picture(30 + stride, 30 + 3 * stride)  # windows that overlap by two margins, no more
    got = super_resolve_image(resolver, x, window=30, margin=margin)
    assert float((got - whole(resolver, x)).abs().max()) > 100 * EXACT


def test_the_official_network_on_a_real_scene(shared_data: Path) -> None:
    import rasterio

    (cell,) = (shared_data / "sentinel2_l2a_cell").iterdir()
    crop = ((400, 520), (300, 460))
    bands = []
    for band in ("B04", "B03", "B02"):
        with rasterio.open(cell / f"{band}.tif") as dataset:
            bands.append(dataset.read(1, window=crop))
    resolver = sr_models.load("realesrgan_general", shared_data / "weights" / "realesr-general-x4v3-fp16.pth")
    x = sr_models.to_unit(np.stack(bands), max_dn=3000)
    got = super_resolve_image(resolver, x, window=100)
    assert float((got - whole(resolver, x)).abs().max()) <= EXACT


class GlobalAttention(nn.Module):
    """A small network with channel attention over the whole image, weighted by 0.01 as in HAT."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.first = nn.Conv2d(3, 12, 3, padding=1)
        self.attention = nn.Conv2d(12, 12, 1)
        self.last = nn.Conv2d(12, 48, 3, padding=1)
        self.shuffle = nn.PixelShuffle(4)

    def forward(self, x: Tensor) -> Tensor:
        y = torch.relu(self.first(x))
        y = y + 0.01 * y * torch.sigmoid(4 * self.attention(y.mean(dim=(2, 3), keepdim=True)))
        residual: Tensor = self.shuffle(self.last(y))
        return residual + nn.functional.interpolate(x, scale_factor=4)


def uneven(height: int, width: int) -> Tensor:
    """Dark at the left, bright at the right: global means differ from window to window."""
    return (picture(height, width) * 0.3 + 0.6 * torch.linspace(0, 1, width)).clamp(0, 1)


def in_seams(plan_height: int, plan_width: int, rule: WindowRule, scale: int) -> Tensor:
    """Return which output pixels lie where windows are blended."""
    plan = plan_windows(plan_height, plan_width, rule)
    seam = torch.zeros((scale * plan_height, scale * plan_width), dtype=torch.bool)
    for spans, by_row in ((plan.rows, True), (plan.columns, False)):
        for span in spans[1:]:
            where = slice(scale * (span.first - rule.blend), scale * (span.first + rule.blend))
            seam[(where, slice(None)) if by_row else (slice(None), where)] = True
    return seam


def test_blended_windows_of_a_model_that_sees_the_whole_image() -> None:
    network = GlobalAttention().eval().requires_grad_(requires_grad=False)
    resolver = SuperResolver("global", 4, network, torch.device("cpu"))
    x = uneven(150, 260)
    rule = WindowRule(64, 16, blend=8, multiple=16)
    got, expected = super_resolve_image(resolver, x, rule=rule), whole(resolver, x)
    assert not torch.equal(got, expected)  # it does see the whole image
    off = (got - expected).abs().amax(dim=0)[in_seams(150, 260, rule, 4)]
    assert float((off <= 1 / 255).float().mean()) >= 0.999


@pytest.mark.filterwarnings("ignore:torch.meshgrid")  # spandrel's
def test_blended_windows_of_a_small_hat() -> None:
    """The architecture itself, four attention blocks of cells of 8 pixels with random weights."""
    from spandrel.architectures.HAT import HAT

    options: dict[str, Any] = {"embed_dim": 24, "depths": (2, 2), "num_heads": (2, 2), "window_size": 8}
    network = HAT(img_size=64, upscale=4, squeeze_factor=6, num_feat=8, **options).eval()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for value in network.parameters():
            if value.ndim > 1:
                value.copy_(torch.randn(value.shape, generator=generator) * value[0].numel() ** -0.5)
        x = uneven(64, 128)  # with a margin of 8, two windows that overlap by no more than that asks
        network.conv_last.weight.mul_(0.2 / network(x[None]).std())
        network.conv_last.bias.add_(0.5 - network(x[None]).mean())
    resolver = SuperResolver("small", 4, network, torch.device("cpu"))
    expected = whole(resolver, x)

    def share_within_one_grey_level(margin: int) -> float:
        rule = WindowRule(72, margin, margin // 2, multiple=8)
        off = (super_resolve_image(resolver, x, rule=rule) - expected).abs().amax(dim=0)
        return float((off[in_seams(64, 128, rule, 4)] <= 1 / 255).float().mean())

    assert share_within_one_grey_level(24) >= 0.999
    assert share_within_one_grey_level(8) < 0.99


def test_blending_turns_the_step_at_a_cut_into_a_slope() -> None:
    """Each window adds a constant of its own; sin^2 rises by at most pi/2 of its height over its width a unit."""

    class AddsItsMean(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return 0.5 * x + 0.2 * x.mean(dim=(1, 2, 3), keepdim=True)

    resolver, x = SuperResolver("mean", 1, AddsItsMean(), torch.device("cpu")), uneven(40, 200)

    def largest_step(blend: int) -> float:
        got = super_resolve_image(resolver, x, rule=WindowRule(64, 16, blend))
        return float((got - 0.5 * x).diff(dim=2).abs().max())

    cut = largest_step(0)
    assert cut > 0.01
    for blend in (4, 8, 16):
        assert largest_step(blend) == pytest.approx(cut * (torch.pi / 2) / (2 * blend), rel=0.05)


def test_the_grid_of_attention_windows_lies_as_in_the_whole_image() -> None:
    """A model that works in cells of 16 pixels, padded at the right and lower end, sees nothing beyond its cell."""

    class Cells(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            height, width = x.shape[2:]
            padded = nn.functional.pad(x, (0, -width % 16, 0, -height % 16), mode="reflect")
            means = nn.functional.avg_pool2d(padded, 16)
            return means.repeat_interleave(16, 2).repeat_interleave(16, 3)[:, :, :height, :width]

    resolver = SuperResolver("cells", 1, Cells(), torch.device("cpu"))
    x = picture(75, 201)
    got = super_resolve_image(resolver, x, rule=WindowRule(64, 16, blend=8, multiple=16))
    torch.testing.assert_close(got, whole(resolver, x), atol=1e-6, rtol=0)


@settings(max_examples=60, deadline=None)
@given(
    st.integers(1, 300),
    st.integers(1, 300),
    st.integers(1, 8),
    st.integers(0, 9),
    st.integers(0, 20),
    st.sampled_from([1, 4, 16]),
)
def test_windows_cover_every_pixel_once(
    height: int, width: int, edge: int, margin: int, rest: int, multiple: int
) -> None:
    window = -(-(2 * margin + edge + rest) // multiple) * multiple
    if window - 2 * margin < multiple:
        window += multiple
    for blend in (0, margin // 2):
        plan = plan_windows(height, width, WindowRule(window, margin, blend, multiple))
        for size, spans in ((height, plan.rows), (width, plan.columns)):
            counted = np.zeros(size, int)
            for span in spans:
                counted[span.first : span.last] += 1
                assert span.start % multiple == 0
                assert 0 <= span.start <= span.first < span.last <= span.stop <= size
                assert span.first - span.start >= margin or span.first == span.start == 0
                assert span.stop - span.last >= margin or span.last == span.stop == size
                if size >= window and (multiple == 1 or span is not spans[-1]):
                    assert span.stop - span.start == window
            assert (counted == 1).all()
        # the identity comes out as it is, to the rounding of weights that add up to 1
        x = picture(height, width)
        bands = list(enlarge_in_windows(lambda a, b, x=x: x[:, a:b], plan, lambda y: y, 1))  # type: ignore[misc]
        assert [band.last for band in bands[:-1]] == [band.first for band in bands[1:]]
        got = torch.cat([band.values for band in bands], dim=1)
        torch.testing.assert_close(got, x, atol=0 if blend == 0 else 1e-6, rtol=0)


@pytest.mark.parametrize(("height", "width"), [(1, 1), (7, 13), (1, 700), (1068, 1068)])
def test_images_of_any_size(height: int, width: int) -> None:
    resolver, x = narrow("none" if height > 1000 else "bicubic"), picture(height, width)
    got = super_resolve_image(resolver, x)
    assert got.shape == (3, resolver.scale * height, resolver.scale * width)
    assert float((got - whole(resolver, x)).abs().max()) <= EXACT


def test_what_is_asked_of_the_model_and_the_image_is_bounded() -> None:
    """Rows are read once for each row of windows, and the model never gets more than a window."""
    asked: list[tuple[int, int]] = []
    shapes: list[tuple[int, ...]] = []
    told: list[tuple[int, int]] = []
    x = picture(95, 130)
    plan = plan_windows(95, 130, WindowRule(40, 5))

    def read(first: int, last: int) -> Tensor:
        asked.append((first, last))
        return x[:, first:last]

    def enlarge(y: Tensor) -> Tensor:
        shapes.append(tuple(y.shape))
        return y

    bands = list(
        enlarge_in_windows(read, plan, enlarge, 1, batch_size=3, tell=lambda done, of: told.append((done, of)))
    )
    assert len(bands) == len(asked) == len(plan.rows) == 3
    assert all(last - first == 40 for first, last in asked)
    assert shapes == [(3, 3, 40, 40), (1, 3, 40, 40)] * 3  # four windows across
    assert told[-1] == (12, 12)
    assert [done for done, _ in told] == sorted({done for done, _ in told})


def test_windows_without_data_do_not_go_through_the_model() -> None:
    x, calls = picture(60, 60), []
    has_data = torch.zeros((60, 60), dtype=torch.bool)
    has_data[2, 3] = True
    plan = plan_windows(60, 60, WindowRule(30, 5))

    def enlarge(y: Tensor) -> Tensor:
        calls.append(len(y))
        return y

    bands = enlarge_in_windows(lambda a, b: x[:, a:b], plan, enlarge, 1, valid=lambda a, b: has_data[a:b], batch_size=4)
    got = torch.cat([band.values for band in bands], dim=1)
    assert plan.windows == 9
    assert calls == [1]
    assert torch.equal(got[:, :20, :20], x[:, :20, :20])
    assert not got[:, 30:].any()


def test_defaults_keep_the_cost_bounded() -> None:
    for name, model in SR_MODELS.items():
        rule = window_rule(model)
        assert rule.margin == (64 if model.receptive_radius is None else model.receptive_radius)
        assert rule.blend == (32 if model.receptive_radius is None else 0)
        cost = plan_windows(50_000, 50_000, rule).cost
        assert cost < 4.01, name
        assert rule.window >= SMALLEST_WINDOW
    hat_like = SrSpec("", 4, nn.Identity, "", "", receptive_radius=None, multiple=16)
    rule = window_rule(hat_like, window=200)
    assert (rule.window, rule.margin, rule.blend, rule.multiple) == (208, 64, 32, 16)


def test_numbers_that_cannot_be_used_are_refused() -> None:
    model = SR_MODELS["realesrgan_general"]
    with pytest.raises(ConfigError, match="choose a window of 69 or more"):
        window_rule(model, window=68)
    with pytest.raises(ConfigError, match="-1"):
        window_rule(model, margin=-1)
    with pytest.raises(ShapeError, match="no pixels"):
        plan_windows(0, 5, window_rule(model))
    with pytest.raises(ShapeError, match="needs"):
        super_resolve_image(narrow("bicubic"), torch.zeros(1, 3, 8, 8))
    plan = plan_windows(8, 8, WindowRule(8, 0))
    with pytest.raises(ShapeError, match="the model's output"):
        list(enlarge_in_windows(lambda a, b: torch.zeros(3, b - a, 8), plan, lambda y: y, 2))
