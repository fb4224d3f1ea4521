"""The table of super-resolution models: sound entries, and receptive fields as the networks have them."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import sr_models
from infra.errors import ConfigError
from tests.sr_models.stand_ins import SMALL

HATS = ("hat", "hat_s", "hat_l", "real_hat_gan")


def test_every_entry_of_the_table_is_sound() -> None:
    for name, spec in sr_models.SR_MODELS.items():
        assert name == name.lower()
        assert spec.bands == ("B04", "B03", "B02")
        assert spec.dtypes[0] == "float32"
        assert spec.needs_weights == (spec.official_file is not None or spec.folder is not None)
        assert spec.recompute_is_cheap == (name in {"none", "hr", "bicubic"})
        if spec.official_file and spec.official_file.sha256:
            assert len(bytes.fromhex(spec.official_file.sha256)) == 32


@pytest.mark.parametrize("dtypes", [(), (torch.float32,), ("float32", "float64")])
def test_a_precision_that_is_none_is_refused_at_once(dtypes: tuple[Any, ...]) -> None:
    with pytest.raises(ConfigError, match="dtypes of an SrSpec are names, of float32, bfloat16, float16: got"):
        replace(sr_models.SR_MODELS["srresnet"], dtypes=dtypes)


def test_window_multiples_are_the_networks() -> None:
    for name, spec in sr_models.SR_MODELS.items():
        assert spec.multiple == (16 if name in HATS else 1)
        if name in HATS:
            assert spec.architecture(**{**spec.parameters, "num_groups": 1, "num_blocks": 1}).window_size == 16
            assert "float16" not in spec.dtypes


def positive(network: nn.Module, weight: float) -> nn.Module:
    """Give every kernel one positive weight: nothing cancels, no activation cuts, each path counts."""
    for parameter in network.parameters():
        if parameter.ndim == 4:
            nn.init.constant_(parameter, weight)
        elif parameter.ndim == 1 and parameter.shape[0] > 0:
            parameter.data.clamp_(min=0)
    return network.double()


def seen(network: nn.Module, radius: int, scale: int) -> list[int]:
    """Return the offsets of the input pixels that the output in a pixel's place depends on, along a row."""
    x = torch.ones((1, 3, 1, 2 * radius + 5), dtype=torch.float64, requires_grad=True)
    centre = radius + 2
    (gradient,) = torch.autograd.grad(network(x)[..., scale * centre : scale * (centre + 1)].sum(), x)
    columns: Tensor = gradient.abs().amax(dim=(0, 1, 2))
    assert bool(columns.isfinite().all())
    return [column - centre for column in columns.nonzero()[:, 0].tolist()]


@pytest.mark.parametrize(
    ("name", "depth", "radius"),
    [
        ("none", {}, 0),
        ("bicubic", {}, 2),
        *(("srresnet", {"num_block": n}, 3 + 2 * n) for n in (1, 2, 16)),
        *(("realesrgan", {"num_block": n}, 4 + 15 * n) for n in (1, 2, 23)),
        *(("realesrgan_general", {"num_conv": n}, 2 + n) for n in (0, 1, 32)),
    ],
)
def test_receptive_radius(name: str, depth: dict[str, int], radius: int) -> None:
    """In float64: exactly zero beyond the radius, and not zero up to its rim, on both sides."""
    spec = sr_models.spec(name)
    growth = {"num_grow_ch": 4} if name == "realesrgan" else {}  # few paths, so that their sums stay finite
    network = positive(spec.architecture(**{**SMALL[name], **growth, **depth}), 0.15)
    assert seen(network, radius, spec.scale) == list(range(-radius, radius + 1))
    if all(spec.parameters[key] == value for key, value in depth.items()):
        assert spec.receptive_radius == radius
