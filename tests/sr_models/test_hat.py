"""HAT: the same numbers as another implementation, the official files' names, any size of image."""

from copy import deepcopy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import spandrel
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

import sr_models
from infra.errors import ConfigError, WeightsError
from sr_models.hat import hat, pad_to_multiple
from sr_models.weights import load_into
from tests.sr_models.stand_ins import informative, picture, spandrels

pytestmark = pytest.mark.filterwarnings("ignore:torch.meshgrid")  # spandrel's

SMALL = {"embed_dim": 24, "num_groups": 2, "num_blocks": 2, "compress_ratio": 3, "squeeze_factor": 6}
SIZES = [(64, 64), (120, 120), (7, 13)]
INDICES = ["relative_position_index_SA", "relative_position_index_OCA"]


@pytest.fixture(scope="module")
def network() -> nn.Module:
    return informative(hat(**SMALL)).eval().requires_grad_(requires_grad=False)


def difference(network: nn.Module, size: tuple[int, int], n: int = 1) -> float:
    """Return the largest difference from spandrel's result, both clamped to [0, 1] as spandrel does."""
    x = picture(n, size)
    expected = spandrels(network.state_dict())(x)
    with torch.no_grad():
        ours = deepcopy(network).to(memory_format=torch.channels_last)(x)
    assert ours.shape == (n, 3, 4 * size[0], 4 * size[1])
    assert 0.02 < float(expected.std()) < 1
    return float((ours.clamp(0, 1) - expected).abs().max())


class TestAgainstSpandrel:
    def test_a_patch(self) -> None:
        assert difference(informative(hat(**{**SMALL, "num_groups": 1})).eval(), (120, 120)) < 1e-5

    @pytest.mark.parametrize("size", [(64, 64), (7, 13), (16, 16), (17, 40), (1, 1)])
    def test_any_size(self, size: tuple[int, int], network: nn.Module) -> None:
        if size == (1, 1):  # an image of one colour has little spread
            x = picture(2, size)
            torch.testing.assert_close(network(x).clamp(0, 1), spandrels(network.state_dict())(x), atol=1e-5, rtol=0)
        else:
            assert difference(network, size) < 1e-5

    @pytest.mark.parametrize(
        "change",
        [
            {"num_heads": 3},
            {"num_heads": 2},
            {"window_size": 8},
            {"window_size": 4, "num_blocks": 1},
            {"num_blocks": 3},
        ],
    )
    def test_any_arrangement(self, change: dict[str, int]) -> None:
        arguments: dict[str, int] = {**SMALL, "num_groups": 1, **change}
        assert difference(informative(hat(**arguments)).eval(), (24, 48), n=2) < 1e-5

    def test_hat_s_in_full(self) -> None:
        assert difference(informative(sr_models.spec("hat_s").build()).eval(), (7, 25)) < 1e-5

    @pytest.mark.slow
    @pytest.mark.timeout(1800)
    @pytest.mark.parametrize("size", SIZES)
    @pytest.mark.parametrize("name", ["hat", "hat_s", "hat_l"])
    def test_in_full(self, name: str, size: tuple[int, int]) -> None:
        found = difference(informative(sr_models.spec(name).build()).eval(), size)
        print(f"{name} {size}: {found:.2e}")
        assert found < 1e-5

    def test_gradients(self) -> None:
        """Training sees the same network: the loss's gradient for every parameter, and for the image."""
        ours = informative(hat(**SMALL)).eval()
        peer = spandrel.ModelLoader(device="cpu").load_from_state_dict(dict(ours.state_dict())).model.train(mode=False)
        gradients = []
        for model in (ours, peer):
            x = picture(1, (32, 48)).requires_grad_()
            parameters = dict(model.requires_grad_().named_parameters())
            loss = (model(x) * picture(1, (128, 192), seed=1)).sum()
            gradients.append(
                dict(zip(["x", *parameters], torch.autograd.grad(loss, [x, *parameters.values()]), strict=True))
            )
        for key, expected in gradients[1].items():
            assert float(expected.abs().max()) > 0, key
            scale = float(expected.abs().max())
            torch.testing.assert_close(gradients[0][key], expected, atol=1e-4 * scale, rtol=0, msg=key)


class TestFiles:
    @pytest.mark.parametrize(
        ("name", "millions"), [("hat", 20.8), ("hat_s", 9.6), ("hat_l", 40.8), ("real_hat_gan", 20.8)]
    )
    def test_the_number_of_parameters_is_the_published_one(self, name: str, millions: float) -> None:
        with torch.device("meta"):
            network = sr_models.spec(name).build()
        assert sum(p.numel() for p in network.parameters()) / 1e6 == pytest.approx(millions, abs=0.05)

    def test_names_shapes_and_constants_are_the_official_ones(self, network: nn.Module) -> None:
        ours = network.state_dict()
        peer = spandrel.ModelLoader(device="cpu").load_from_state_dict(dict(ours)).model.state_dict()
        assert list(ours) == list(peer)
        assert {key: value.shape for key, value in ours.items()} == {key: value.shape for key, value in peer.items()}
        rebuilt = spandrel.architectures.HAT.HAT(window_size=16, depths=(1,), num_heads=(6,)).state_dict()
        for key in INDICES:
            assert torch.equal(hat(**SMALL).state_dict()[key], rebuilt[key])

    @pytest.mark.parametrize("left_out", [[], INDICES, INDICES[:1]])
    @pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
    def test_the_constants_may_be_left_out(
        self, left_out: list[str], suffix: str, network: nn.Module, tmp_path: Path
    ) -> None:
        state = {key: value for key, value in network.state_dict().items() if key not in left_out}
        path = tmp_path / f"w{suffix}"
        if suffix == ".pth":
            torch.save({"params": {}, "params_ema": state}, path)
        else:
            save_file(state, path)
        target = hat(**SMALL).eval()
        load_into(target, path, "hat")
        torch.testing.assert_close(target.state_dict(), network.state_dict(), atol=0, rtol=0)

    def test_half_precision_constants_are_the_same_numbers(self, network: nn.Module, tmp_path: Path) -> None:
        torch.save({"params_ema": {key: value.half() for key, value in network.state_dict().items()}}, tmp_path / "w")
        target = hat(**SMALL)
        load_into(target, tmp_path / "w", "hat")
        for key in INDICES:
            assert torch.equal(target.state_dict()[key], network.state_dict()[key])

    def test_other_constants_are_refused(self, network: nn.Module, tmp_path: Path) -> None:
        """Another order of the table's rows would load, and give another picture."""
        state = dict(network.state_dict())
        state[INDICES[0]] = state[INDICES[0]].T.contiguous()
        torch.save({"params_ema": state}, tmp_path / "w.pth")
        with pytest.raises(WeightsError, match="1 of another value: relative_position_index_SA"):
            load_into(hat(**SMALL), tmp_path / "w.pth", "hat")

    def test_another_window_is_refused_by_its_shapes(self, tmp_path: Path) -> None:
        torch.save({"params_ema": hat(**SMALL, window_size=8).state_dict()}, tmp_path / "w.pth")
        with pytest.raises(WeightsError, match=r"of another shape: relative_position_index_SA is \(64, 64\)"):
            load_into(hat(**SMALL), tmp_path / "w.pth", "hat")

    def test_a_hat_of_another_size_is_named(self, tmp_path: Path) -> None:
        torch.save({"params_ema": hat(**SMALL).state_dict()}, tmp_path / "w.pth")
        with pytest.raises(WeightsError) as caught:
            sr_models.load("hat_s", tmp_path / "w.pth")
        for words in (
            "does not fit hat_s (HAT with 144 channels and 6 groups of 6 blocks)",
            "looks like HAT with 24 channels and 2 groups of 2 blocks",
            "HAT-S_SRx4.pth",
        ):
            assert words in str(caught.value)


class TestPadding:
    @pytest.mark.parametrize("size", [(16, 32), (17, 31), (9, 120), (120, 120)])
    def test_reflects_as_numpy_does(self, size: tuple[int, int]) -> None:
        x = picture(2, size)
        down, right = (-edge % 16 for edge in size)
        expected = np.pad(x.numpy(), ((0, 0), (0, 0), (0, down), (0, right)), mode="reflect")
        np.testing.assert_array_equal(pad_to_multiple(x, 16).numpy(), expected)

    @pytest.mark.parametrize(
        ("row", "expected"),
        [
            ([1.0], [1, 1, 1, 1, 1, 1, 1, 1]),
            ([1.0, 2.0], [1, 2, 1, 1, 1, 1, 1, 1]),
            ([1.0, 2.0, 3.0], [1, 2, 3, 2, 1, 1, 1, 1]),
            ([1.0, 2.0, 3.0, 4.0, 5.0], [1, 2, 3, 4, 5, 4, 3, 2]),
            ([1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0], [1, 2, 3, 4, 5, 6, 7, 8]),
        ],
    )
    def test_what_reflection_does_not_reach_repeats_its_last_pixel(self, row: list[float], expected: list[int]) -> None:
        x = torch.tensor(row)
        for axis, shape in ((3, (1, 1, 8, -1)), (2, (1, 1, -1, 8))):
            image = x.view(1, 1, 1, -1).expand(1, 1, 8, -1) if axis == 3 else x.view(1, 1, -1, 1).expand(1, 1, -1, 8)
            wanted = torch.tensor(expected, dtype=torch.float32)
            wanted = wanted.expand(1, 1, 8, 8) if axis == 3 else wanted.view(8, 1).expand(1, 1, 8, 8)
            assert torch.equal(pad_to_multiple(image.reshape(shape), 8), wanted)

    @pytest.mark.parametrize("size", [(1, 1), (7, 13), (16, 17)])
    def test_is_cropped_back_exactly(self, size: tuple[int, int], network: nn.Module) -> None:
        x = picture(1, size)
        whole = network(pad_to_multiple(x, 16))
        torch.testing.assert_close(network(x), whole[:, :, : 4 * size[0], : 4 * size[1]], atol=1e-6, rtol=0)


class TestRuns:
    def test_each_image_by_itself(self, network: nn.Module) -> None:
        x = picture(3, (20, 36))
        together = network(x)
        torch.testing.assert_close(together, torch.cat([network(one[None]) for one in x]), atol=1e-6, rtol=0)

    def test_bfloat16_stays_close(self) -> None:
        """On a smooth image, in full depth: better than 40 dB, a root mean square error of 1 %."""
        exact = informative(sr_models.spec("hat_s").build()).eval()
        y, x = torch.meshgrid(torch.linspace(0, 3, 24), torch.linspace(0, 4, 24), indexing="ij")
        smooth = torch.stack((y.sin(), (x + y).cos(), (2 * x).sin()))[None] / 4 + 0.5
        with torch.no_grad():
            expected = exact(smooth)
            found = exact.bfloat16()(smooth.bfloat16())
        assert found.dtype == torch.bfloat16
        mse = float((found.float().clamp(0, 1) - expected.clamp(0, 1)).square().mean())
        assert 0 < mse < 1e-4

    @pytest.mark.parametrize(
        "change", [{"window_size": 6}, {"num_heads": 5}, {"squeeze_factor": 25}, {"compress_ratio": 25}]
    )
    def test_what_cannot_be_built_is_refused(self, change: dict[str, Any]) -> None:
        with pytest.raises(ConfigError, match=rf"HAT with 24 channels.*{next(iter(change.values()))}.*cannot be built"):
            hat(**{**SMALL, **change})


def test_every_pixel_counts_for_every_other(network: nn.Module) -> None:
    """Channel attention averages over the image: a HAT's receptive field is the whole of it."""
    assert all(sr_models.spec(name).receptive_radius is None for name in ("hat", "hat_s", "hat_l", "real_hat_gan"))
    x = picture(1, (16, 96)).double().requires_grad_()
    model = informative(hat(**{**SMALL, "num_groups": 1})).double()
    seen: Tensor = torch.autograd.grad(model(x)[:, :, :4, :4].sum(), x)[0].abs().amax(dim=(0, 1))
    assert bool((seen > 0).all())
