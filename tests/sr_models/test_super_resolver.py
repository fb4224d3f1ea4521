"""Networks against other implementations, and what SuperResolver promises."""

from collections.abc import Callable
from copy import deepcopy
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

import sr_models
from infra.errors import ConfigError, ShapeError, UnknownNameError, WeightsError
from infra.weights_store import sha256
from sr_models import SuperResolver
from sr_models.basicsr_archs import srvgg_compact
from sr_models.weights import load_state
from tests.sr_models.stand_ins import bicubic_by_hand, informative, msrresnet_by_hand, picture, spandrels, stand_in

NETWORKS = ("srresnet", "realesrgan", "realesrgan_general")
HATS = ("hat", "hat_s", "hat_l", "real_hat_gan")


@pytest.fixture(scope="session")
def official(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Return the path of a file with random weights in the official format, as large as the real one."""
    folder = tmp_path_factory.mktemp("weights")

    def write(name: str) -> Path:
        path = folder / f"{name}.pth"
        if not path.exists():
            state = informative(sr_models.spec(name).build()).state_dict()
            torch.save({"params_ema": state}, path)
        return path

    return write


@pytest.fixture(scope="session")
def tiny() -> SuperResolver:
    """A convolutional x4 model of a few thousand parameters."""
    network = informative(srvgg_compact(num_feat=8, num_conv=2)).eval()
    return SuperResolver("tiny", 4, network, torch.device("cpu"))


class TestAgainstOthers:
    def test_bicubic_is_keys_with_a_of_minus_three_quarters_clamped(self) -> None:
        x = picture(2, 6)
        expected = bicubic_by_hand(x)
        assert expected.min() == 0  # the clamp has something to do
        torch.testing.assert_close(sr_models.load("bicubic")(x), expected, atol=1e-6, rtol=0)

    def test_none_is_the_identity(self) -> None:
        x = picture(2)
        resolver = sr_models.load("none")
        assert resolver.scale == 1
        assert torch.equal(resolver(x), x)

    def test_srresnet_is_its_definition(self, official: Callable[[str], Path]) -> None:
        path, x = official("srresnet"), picture(2, 12)
        expected = msrresnet_by_hand(x, load_state(path))
        assert 0.1 < expected.clamp(0, 1).std() < 1
        torch.testing.assert_close(sr_models.load("srresnet", path)(x), expected.clamp(0, 1), atol=1e-5, rtol=0)

    @pytest.mark.parametrize("name", ["realesrgan", "realesrgan_general"])
    def test_real_esrgan_is_spandrels(self, name: str, official: Callable[[str], Path]) -> None:
        x = picture(1, 16)
        expected = spandrels(load_state(official(name)))(x)
        assert float(expected.std()) > 0.02
        torch.testing.assert_close(sr_models.load(name, official(name))(x), expected, atol=1e-5, rtol=0)

    def test_srvgg_is_that_of_the_realesrgan_package(self, official: Callable[[str], Path]) -> None:
        """The package brings a network of its own; RRDBNet it takes from basicsr, as this project does."""
        resolver = sr_models.load("realesrgan_general", official("realesrgan_general"))  # imports basicsr first
        from realesrgan.archs.srvgg_arch import SRVGGNetCompact

        peer = SRVGGNetCompact(num_in_ch=3, num_out_ch=3, num_feat=64, num_conv=32, upscale=4, act_type="prelu")
        peer.load_state_dict(load_state(official("realesrgan_general")), strict=True)
        x = picture(2, (16, 24))
        with torch.no_grad():
            torch.testing.assert_close(resolver(x), peer(x).clamp(0, 1), atol=1e-5, rtol=0)

    @pytest.mark.parametrize("name", ["realesrgan", "realesrgan_general"])
    def test_pictures_are_real_esrgans_within_one_grey_level(self, name: str, tmp_path: Path) -> None:
        """RealESRGANer as its command line calls it: whole, without a margin, 8-bit in and out."""
        resolver = stand_in(name)
        torch.save({"params_ema": resolver.network.state_dict()}, tmp_path / "w.pth")
        rgb = (picture(1, (20, 33))[0].permute(1, 2, 0) * 255).round().to(torch.uint8).numpy()
        ours, expected = grey_levels(resolver, rgb), real_esrgans(tmp_path / "w.pth", deepcopy(resolver.network), rgb)
        assert expected.std() > 10
        assert np.abs(ours - expected).max() <= 1

    @pytest.mark.parametrize("index", range(0, 20, 5))
    def test_real_weights_give_real_esrgans_picture_within_one_grey_level(self, index: int, shared_data: Path) -> None:
        weights = shared_data / "weights" / "realesr-general-x4v3-fp16.pth"
        truth = sorted((shared_data / "ucmerced_multilabel" / "images").iterdir())[index]
        with Image.open(truth) as image:
            rgb = np.asarray(image.convert("RGB").resize((64, 64), Image.Resampling.BICUBIC))
        ours = grey_levels(sr_models.load("realesrgan_general", weights), rgb)
        assert ours.shape == (256, 256, 3)
        assert np.abs(ours - real_esrgans(weights, srvgg_compact(num_feat=64, num_conv=32), rgb)).max() <= 1
        bicubic = grey_levels(sr_models.load("bicubic"), rgb)
        assert 1 < np.abs(ours - bicubic).mean() < 40  # and is not just an enlargement


def grey_levels(resolver: SuperResolver, rgb: np.ndarray) -> np.ndarray:
    """Return the enlarged picture, (4H, 4W, 3), rounded to 0..255, of one in uint8."""
    x = torch.from_numpy(rgb.copy()).permute(2, 0, 1)[None] / 255
    return resolver(x)[0].permute(1, 2, 0).mul(255).round().numpy()


def real_esrgans(weights: Path, network: nn.Module, rgb: np.ndarray) -> np.ndarray:
    """Return what Real-ESRGAN makes of a picture, without tiles; it thinks in BGR."""
    from realesrgan import RealESRGANer

    peer = RealESRGANer(4, str(weights), model=network, tile=0, pre_pad=0, half=False, device="cpu")
    output, _ = peer.enhance(rgb[:, :, ::-1])
    return np.asarray(output[:, :, ::-1], dtype=np.float32)


class TestBatches:
    @pytest.mark.parametrize("name", ["none", "bicubic", *NETWORKS])
    def test_the_batch_size_does_not_matter(self, name: str, official: Callable[[str], Path]) -> None:
        resolver = sr_models.load(name, official(name) if sr_models.spec(name).needs_weights else None)
        x = picture(5, 24)
        together = resolver(x)
        alone = torch.cat([resolver(image[None]) for image in x])
        torch.testing.assert_close(together, alone, atol=1e-6, rtol=0)

    def test_an_empty_batch_is_an_empty_batch(self, tiny: SuperResolver) -> None:
        assert tiny(torch.empty(0, 3, 7, 9)).shape == (0, 3, 28, 36)

    def test_output_is_float32_in_the_unit_range_and_fit_for_autograd(self, tiny: SuperResolver) -> None:
        y = tiny(picture().double() * 3 - 1)
        assert y.dtype == torch.float32
        assert not y.is_inference()
        assert y.min() == 0
        assert y.max() == 1

    def test_input_is_not_changed(self, tiny: SuperResolver) -> None:
        x = picture()
        before = x.clone()
        tiny(x)
        sr_models.load("none")(x).add_(1)
        assert torch.equal(x, before)

    def test_layout_does_not_matter(self, official: Callable[[str], Path]) -> None:
        resolver = sr_models.load("realesrgan_general", official("realesrgan_general"))
        assert resolver.memory_format == torch.channels_last
        x = picture(2, 16)
        plain = SuperResolver("plain", 4, resolver.network.to(memory_format=torch.contiguous_format), resolver.device)
        torch.testing.assert_close(plain(x), resolver(x), atol=1e-6, rtol=0)

    def test_float32_is_float32_whatever_the_process_has_set(self) -> None:
        """ "medium" turns products of matrices into bfloat16 or TensorFloat-32, on CPUs and GPUs that can."""
        resolver, x = stand_in("hat"), picture(1, 20)
        expected = resolver(x)
        torch.set_float32_matmul_precision("medium")
        try:
            assert torch.equal(resolver(x), expected)
            assert torch.get_float32_matmul_precision() == "medium"
        finally:
            torch.set_float32_matmul_precision("highest")

    @pytest.mark.parametrize("dtype", ["bfloat16", torch.float16])
    def test_half_precision_stays_close(self, dtype: str | torch.dtype, official: Callable[[str], Path]) -> None:
        path, x = official("realesrgan_general"), picture(1, 16)
        exact, half = (sr_models.load("realesrgan_general", path, dtype=d) for d in (None, dtype))
        assert half(x).dtype == torch.float32
        difference = (half(x) - exact(x)).abs()
        assert difference.max() > 0
        assert difference.square().mean() < 1e-5  # 50 dB


class TestRefusals:
    @pytest.mark.parametrize("shape", [(3, 8, 8), (1, 4, 8, 8), (1, 1, 8, 8), (1, 3, 0, 8)])
    def test_wrong_shape(self, shape: tuple[int, ...], tiny: SuperResolver) -> None:
        with pytest.raises(ShapeError, match=r"needs floating point \(N, 3, H, W\)"):
            tiny(torch.zeros(shape))

    def test_dn_instead_of_the_unit_range(self, tiny: SuperResolver) -> None:
        with pytest.raises(ShapeError, match="to_unit"):
            tiny(torch.zeros((1, 3, 8, 8), dtype=torch.int32))

    def test_unknown_name(self) -> None:
        with pytest.raises(UnknownNameError, match=r"did you mean 'srresnet'.*none, hr, bicubic"):
            sr_models.load("srresnett")

    def test_precision_the_model_does_not_run_in(self) -> None:
        for refuse in (sr_models.load, sr_models.fingerprint):
            with pytest.raises(ConfigError, match="bicubic does not run in float16: choose float32"):
                refuse("bicubic", dtype="float16")
        for name in HATS:
            with pytest.raises(ConfigError, match=f"{name} does not run in float16: choose float32 or bfloat16"):
                sr_models.fingerprint(name, dtype="float16")

    def test_device_that_is_not_there(self) -> None:
        for device in ("nonsense", "cuda:99"):
            with pytest.raises(ConfigError, match=f"cannot be put on the device {device}"):
                sr_models.load("bicubic", device=device)

    def test_weights_for_a_model_without(self, tmp_path: Path) -> None:
        with pytest.raises(WeightsError, match="bicubic has no weights"):
            sr_models.load("bicubic", tmp_path / "x.pth")

    @pytest.mark.parametrize("name", [*NETWORKS, *HATS])
    @pytest.mark.parametrize("given", [None, "absent.pth"])
    def test_missing_weights_are_explained(self, name: str, given: str | None, tmp_path: Path) -> None:
        file = sr_models.SR_MODELS[name].official_file
        assert file is not None
        if given is None and sr_models.SR_MODELS[name].shipped:
            pytest.skip("its own weights are shipped")
        path = tmp_path / given if given else None
        for refuse in (sr_models.load, sr_models.fingerprint):
            with pytest.raises(WeightsError) as caught:
                refuse(name, path)
            for word in (
                name,
                file.name,
                file.url,
                "`weights` argument",
                f"weights: {{{name}: FILE}}",
                given or "given",
            ):
                assert word in str(caught.value)


class TestIdentity:
    def test_fingerprint_is_the_identity_of_the_loaded_model(self, official: Callable[[str], Path]) -> None:
        path = official("realesrgan_general")
        loaded = sr_models.load("realesrgan_general", path, dtype="bfloat16")
        assert loaded.weights_sha256 == sha256(path)
        assert loaded.identity() == sr_models.fingerprint("realesrgan_general", str(path), torch.bfloat16)
        assert loaded.identity() == {
            "sr": "realesrgan_general",
            "scale": 4,
            "num_feat": 64,
            "num_conv": 32,
            "dtype": "bfloat16",
            "weights_sha256": sha256(path),
        }
        assert sr_models.load("none").identity() == sr_models.fingerprint("none")

    def test_whatever_changes_the_output_changes_it(self, official: Callable[[str], Path]) -> None:
        path = official("realesrgan_general")
        prints = [
            sr_models.fingerprint("none"),
            sr_models.fingerprint("bicubic"),
            sr_models.fingerprint("realesrgan_general", path),
            sr_models.fingerprint("realesrgan_general", path, "float16"),
            sr_models.fingerprint("realesrgan_general", official("srresnet")),
        ]
        assert len({tuple(sorted(p.items(), key=str)) for p in prints}) == len(prints)


def test_importing_the_package_imports_neither_basicsr_nor_torchvision() -> None:
    import subprocess
    import sys

    code = "import sys, sr_models; print([m for m in ('basicsr', 'torchvision', 'ray', 'zarr') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, check=False)
    assert (done.stdout.strip(), done.stderr) == ("[]", "")


def test_the_work_round_leaves_nothing_behind() -> None:
    import subprocess
    import sys

    code = (
        "import sys; from sr_models.basicsr_archs import srvgg_compact; srvgg_compact(num_feat=4, num_conv=1);"
        "print('basicsr' in sys.modules, 'torchvision.transforms.functional_tensor' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, check=False)
    assert (done.stdout.strip(), done.stderr) == ("True False", "")
