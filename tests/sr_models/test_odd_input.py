"""Odd input to every model of the table: any size, black, too bright, not a number."""

import pytest
import torch
from torch import Tensor

import sr_models
from sr_models import SuperResolver
from tests.sr_models.stand_ins import oracle, picture, stand_in

pytestmark = pytest.mark.filterwarnings("ignore:torch.meshgrid")  # spandrel's

ODD = {
    "one pixel": picture(2, (1, 1)),
    "7x13": picture(2, (7, 13)),
    "a row": picture(1, (1, 40)),
    "a patch": picture(1, 120),
    "black": torch.zeros(1, 3, 20, 20),
    "above 1": picture(1, 20) * 3,
    "below 0": picture(1, 20) - 2,
}
KINDS = ("none", "bicubic", "srresnet", "realesrgan", "realesrgan_general", "hat")


@pytest.fixture(scope="module", params=KINDS)
def resolver(request: pytest.FixtureRequest) -> SuperResolver:
    return stand_in(request.param)


def test_every_architecture_is_among_the_kinds() -> None:
    architectures = {sr_models.spec(name).architecture for name in KINDS}
    others = {spec.architecture for spec in sr_models.SR_MODELS.values() if spec.conditioned}
    assert architectures == {spec.architecture for spec in sr_models.SR_MODELS.values()} - others
    assert others == {
        sr_models.spec("seesr").architecture,
        sr_models.spec("seesr_tiny").architecture,
    }  # tests/.../seesr


@pytest.mark.parametrize("what", ODD)
def test_is_what_others_make_of_it(resolver: SuperResolver, what: str) -> None:
    """Sizes come back times the scale, and neither black nor values outside [0, 1] are special to a network."""
    x = ODD[what]
    y = resolver(x)
    assert y.shape == (x.shape[0], 3, resolver.scale * x.shape[2], resolver.scale * x.shape[3])
    torch.testing.assert_close(y, oracle(resolver.name, resolver.network)(x), atol=1e-5, rtol=0)
    assert 0 <= float(y.min()) <= float(y.max()) <= 1


def test_black_stays_black_where_nothing_is_learned() -> None:
    for name in ("none", "bicubic"):
        assert not sr_models.load(name)(ODD["black"]).any()


def test_too_bright_is_white_where_nothing_is_learned() -> None:
    for name in ("none", "bicubic"):
        assert bool((sr_models.load(name)(ODD["black"] + 2) == 1).all())


def test_nan_stays_within_the_receptive_field(resolver: SuperResolver) -> None:
    """One NaN in one band: NaN in all bands of the square around it, of the whole image for HAT, of no other image."""
    x = picture(2, (40, 48))
    x[1, 1, 20, 24] = torch.nan
    y = resolver(x)
    torch.testing.assert_close(y[:1], resolver(x[:1]), atol=1e-5, rtol=0)
    gone = y[1].isnan()
    scale = resolver.scale
    radius = {"none": 0, "bicubic": 2, "srresnet": 7, "realesrgan": 19, "realesrgan_general": 4, "hat": 48}[
        resolver.name
    ]
    place = torch.zeros((40, 48), dtype=torch.bool)
    place[max(0, 20 - radius) : 21 + radius, max(0, 24 - radius) : 25 + radius] = True
    outer = place.repeat_interleave(scale, 0).repeat_interleave(scale, 1)
    assert not bool((gone & ~outer).any())  # nothing beyond it
    cells = gone.view(3, 40, scale, 48, scale).any(dim=4).any(dim=2)
    bands: Tensor = cells[1:2] if resolver.name in {"none", "bicubic"} else cells
    assert bool((bands == place).all())  # every pixel within it
    if resolver.name in {"none", "bicubic"}:
        assert not bool(gone[[0, 2]].any())  # bands do not meet there


@pytest.mark.parametrize("name", ["none", "bicubic", "realesrgan_general"])
def test_a_whole_scene(name: str) -> None:
    """1068 x 1068 at once is what windows of it are, each with a margin as wide as the receptive field."""
    resolver = stand_in(name)
    scale, margin = resolver.scale, {"none": 0, "bicubic": 2, "realesrgan_general": 4}[name]
    x = picture(1, 1068)
    whole = resolver(x)
    assert whole.shape == (1, 3, 1068 * scale, 1068 * scale)
    for top, left in ((0, 0), (500, 333), (1068 - 64, 1068 - 64)):
        up, before = min(top, margin), min(left, margin)
        window = resolver(x[:, :, top - up : top + 64 + margin, left - before : left + 64 + margin])
        kept = window[:, :, scale * up :, scale * before :][:, :, : scale * 64, : scale * 64]
        expected = whole[:, :, scale * top : scale * (top + 64), scale * left : scale * (left + 64)]
        torch.testing.assert_close(kept, expected, atol=1e-6, rtol=0)
