"""Networks against other implementations, and what SuperResolver promises."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import spandrel
import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn.functional import conv2d, interpolate, relu

import sr_models
from infra.errors import ConfigError, ShapeError, UnknownNameError, WeightsError
from infra.weights_store import sha256
from sr_models import SuperResolver
from sr_models.basicsr_archs import srvgg_compact
from sr_models.weights import load_state

NETWORKS = ("srresnet", "realesrgan", "realesrgan_general")


def informative(network: nn.Module) -> nn.Module:
    """Give random weights that put the output near 0.5 +- 0.2, so that the clamp to [0, 1] hides little."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for key, value in network.state_dict().items():
            if value.ndim == 4:
                value.copy_(torch.randn(value.shape, generator=generator) * (0.5 / value[0].numel()) ** 0.5)
            elif key.endswith("bias"):
                value.copy_(torch.randn(value.shape, generator=generator) * 0.02)
        last = [module for module in network.modules() if isinstance(module, nn.Conv2d)][-1]
        assert last.bias is not None
        last.weight.mul_(0.2 / network(picture(2, 12)).std())
        last.bias.add_(0.5 - network(picture(2, 12)).mean())
    return network


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


def picture(n: int = 1, size: int = 16, seed: int = 0) -> Tensor:
    return torch.rand((n, 3, size, size), generator=torch.Generator().manual_seed(seed))


def msrresnet_by_hand(x: Tensor, p: dict[str, Tensor]) -> Tensor:
    """The network's definition, from its parameters: Ledig et al. 2017, without batch normalisation."""

    def conv(y: Tensor, key: str) -> Tensor:
        return conv2d(y, p[f"{key}.weight"], p[f"{key}.bias"], padding=1)

    def lrelu(y: Tensor) -> Tensor:
        return torch.where(y > 0, y, 0.1 * y)

    y = lrelu(conv(x, "conv_first"))
    for block in range(16):
        y = y + conv(relu(conv(y, f"body.{block}.conv1")), f"body.{block}.conv2")
    for step in ("upconv1", "upconv2"):
        n, c, h, w = y.shape
        y = conv(y, step).reshape(n, c, 2, 2, h, w).permute(0, 1, 4, 2, 5, 3).reshape(n, c, 2 * h, 2 * w)
        y = lrelu(y)
    return conv(lrelu(conv(y, "conv_hr")), "conv_last") + interpolate(x, scale_factor=4, mode="bilinear")


def keys_by_hand(row: np.ndarray, scale: int) -> np.ndarray:
    """Cubic convolution of a 1-D signal, a = -0.75, pixel centres aligned, edges repeated."""

    def kernel(t: float) -> float:
        t, a = abs(t), -0.75
        if t <= 1:
            return (a + 2) * t**3 - (a + 3) * t**2 + 1
        return a * t**3 - 5 * a * t**2 + 8 * a * t - 4 * a if t < 2 else 0.0

    out = []
    for i in range(scale * len(row)):
        centre = (i + 0.5) / scale - 0.5
        base = int(np.floor(centre))
        taps = range(base - 1, base + 3)
        out.append(sum(kernel(centre - tap) * row[min(max(tap, 0), len(row) - 1)] for tap in taps))
    return np.array(out)


class TestAgainstOthers:
    def test_bicubic_is_keys_with_a_of_minus_three_quarters_clamped(self) -> None:
        x = picture(2, 6)
        expected = np.apply_along_axis(keys_by_hand, 3, np.apply_along_axis(keys_by_hand, 2, x.double().numpy(), 4), 4)
        assert expected.min() < 0  # the clamp has something to do
        np.testing.assert_allclose(sr_models.load("bicubic")(x).numpy(), expected.clip(0, 1), atol=1e-6)

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
        peer = spandrel.ModelLoader(device="cpu").load_from_file(official(name))
        assert isinstance(peer, spandrel.ImageModelDescriptor)
        x = picture(1, 16)
        with torch.no_grad():
            expected = peer(x)
        assert float(expected.std()) > 0.02
        torch.testing.assert_close(sr_models.load(name, official(name))(x), expected, atol=1e-5, rtol=0)

    def test_real_weights_give_real_esrgans_picture_within_one_grey_level(self, shared_data: Path) -> None:
        network = srvgg_compact(num_feat=64, num_conv=32)  # imports basicsr, which RealESRGANer needs
        from realesrgan import RealESRGANer

        weights = shared_data / "weights" / "realesr-general-x4v3-fp16.pth"
        image = min((shared_data / "ucmerced_multilabel" / "images").iterdir())
        rgb = np.asarray(Image.open(image).convert("RGB"))[:160, :128]
        peer = RealESRGANer(4, str(weights), model=network, tile=0, pre_pad=0, half=False, device="cpu")
        expected, _ = peer.enhance(rgb[:, :, ::-1])
        x = torch.from_numpy(rgb.copy()).permute(2, 0, 1)[None] / 255
        ours = sr_models.load("realesrgan_general", weights)(x)[0].permute(1, 2, 0).mul(255).round().numpy()
        difference = np.abs(ours - expected[:, :, ::-1].astype(np.float32))
        assert difference.max() <= 1
        bicubic = sr_models.load("bicubic")(x)[0].permute(1, 2, 0).mul(255).numpy()
        assert np.abs(ours - bicubic).mean() > 1  # and is not just an enlargement
        assert np.abs(ours - bicubic).mean() < 20


class TestBatches:
    @pytest.mark.parametrize("name", sr_models.names())
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
        with pytest.raises(UnknownNameError, match=r"did you mean 'srresnet'.*none, bicubic"):
            sr_models.load("srresnett")

    def test_precision_the_model_does_not_run_in(self) -> None:
        for refuse in (sr_models.load, sr_models.fingerprint):
            with pytest.raises(ConfigError, match="bicubic does not run in float16: choose float32"):
                refuse("bicubic", dtype="float16")

    def test_device_that_is_not_there(self) -> None:
        for device in ("nonsense", "cuda:99"):
            with pytest.raises(ConfigError, match=f"cannot be put on the device {device}"):
                sr_models.load("bicubic", device=device)

    def test_weights_for_a_model_without(self, tmp_path: Path) -> None:
        with pytest.raises(WeightsError, match="bicubic has no weights"):
            sr_models.load("bicubic", tmp_path / "x.pth")

    @pytest.mark.parametrize("name", NETWORKS)
    @pytest.mark.parametrize("given", [None, "absent.pth"])
    def test_missing_weights_are_explained(self, name: str, given: str | None, tmp_path: Path) -> None:
        file = sr_models.SR_MODELS[name].official_file
        assert file is not None
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


def test_every_entry_of_the_table_is_sound() -> None:
    for name, spec in sr_models.SR_MODELS.items():
        assert name == name.lower()
        assert spec.bands == ("B04", "B03", "B02")
        assert spec.dtypes[0] == torch.float32
        assert spec.needs_weights == (spec.official_file is not None)
        assert spec.recompute_is_cheap == (name in {"none", "bicubic"})
        if spec.official_file and spec.official_file.sha256:
            assert len(bytes.fromhex(spec.official_file.sha256)) == 32


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
