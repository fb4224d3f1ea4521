"""The oracle is timm's network as published: its own bands, labels and statistics, fed with unclipped pixels."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import timm
import torch
from torch import Tensor, nn

from classifiers.published import BANDS, LABELS, PUBLISHED, backbone_state, is_published, load_published
from classifiers.registry import build
from infra.bigearthnet.bands import S2_BANDS
from infra.bigearthnet.classes import NAMES
from infra.errors import ConfigError, UnknownNameError, WeightsError

S1 = ("VV", "VH")
TEN = ("B04", "B03", "B02", "B08", "B05", "B06", "B07", "B8A", "B11", "B12")
MAX_DN = dict.fromkeys(TEN, 3000.0) | {"B08": 6000.0, "VV": 1.0, "VH": 1.0}

MOMENTS = {
    "B02": (438.3720703125, 607.02685546875),
    "B03": (614.0556640625, 603.2968139648438),
    "B04": (588.4096069335938, 684.56884765625),
    "B05": (942.8433227539062, 738.4326782226562),
    "B06": (1769.931640625, 1100.4560546875),
    "B07": (2049.551513671875, 1275.805419921875),
    "B08": (2193.2919921875, 1369.3717041015625),
    "B8A": (2235.556640625, 1356.5440673828125),
    "B11": (1568.226806640625, 1070.1612548828125),
    "B12": (997.7324829101562, 813.5276489257812),
    "VV": (-12.643863677978516, 5.133493900299072),
    "VH": (-19.352558135986328, 5.590505599975586),
}
"""Mean and standard deviation with which the networks were trained: ConfigILM, BENv2_utils.py, "120_nearest"."""

Write = Callable[..., tuple[Path, nn.Module]]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    def write(name: str, channels: int, labels: int = 19, file: str = "model.safetensors") -> tuple[Path, nn.Module]:
        """Write a file of the layout with random weights; return it and the network it was made from."""
        torch.manual_seed(8)
        network = timm.create_model(name, num_classes=labels, in_chans=channels, drop_rate=0.15, drop_path_rate=0.15)
        state = {f"model.vision_encoder.{key}": value for key, value in network.state_dict().items()}
        path = tmp_path / file
        if path.suffix == ".safetensors":
            safetensors.torch.save_file(state, path)
        else:
            torch.save({"state_dict": state}, path)
        return path, network.eval()

    return write


def pixels(band: str) -> np.ndarray:
    """One band of three patches, DN below the clip, or dB."""
    draw = np.random.default_rng([ord(letter) for letter in band])
    return draw.normal(-15, 5, (3, 64, 64)) if band in S1 else draw.uniform(0, 3000, (3, 64, 64))


def published_logits(network: nn.Module, bands: tuple[str, ...]) -> dict[str, Tensor]:
    """Logits by label, as the authors compute them."""
    x = np.stack([(pixels(band) - MOMENTS[band][0]) / MOMENTS[band][1] for band in bands], axis=1)
    with torch.no_grad():
        logits = network(torch.from_numpy(x).float())
    return {label: logits[:, i] for i, label in enumerate(sorted(NAMES))}


@pytest.mark.parametrize(("name", "branch"), [("resnet18", TEN), ("resnet50", (*TEN, *S1)), ("resnet18", S1[::-1])])
def test_logits_are_the_published_ones_by_name(write: Write, name: str, branch: tuple[str, ...]) -> None:
    order = tuple(band for band in (*S1, *S2_BANDS) if band in branch)  # radar, then the spectrum
    path, network = write(name, len(order))
    max_dn = [MAX_DN[band] for band in branch]
    trained = load_published(path, branch, max_dn)
    assert (trained.name, trained.head, trained.labels, trained.bands) == (name, "linear", NAMES, branch)
    assert (trained.activation, trained.thresholds) == ("sigmoid", (0.5,) * 19)
    stretched = np.stack([pixels(band) / limit for band, limit in zip(branch, max_dn, strict=True)], axis=1)
    with torch.no_grad():
        logits = trained.network(trained.standardiser(torch.from_numpy(stretched)).float())
    expected = published_logits(network, order)
    spread = torch.stack(list(expected.values())).std(dim=0).min()
    for i, label in enumerate(trained.labels):
        torch.testing.assert_close(logits[:, i], expected[label], rtol=1e-3, atol=float(spread) * 1e-3)
    assert order != branch
    assert trained.labels != tuple(expected)


def test_the_checkpoint_can_be_saved_and_used(write: Write, tmp_path: Path) -> None:
    from classifiers.checkpoint import load

    path, _ = write("resnet18", 10)
    trained = load_published(path, TEN, 3000)
    trained.save(tmp_path / "ours.safetensors")
    assert load(tmp_path / "ours.safetensors").to_bytes() == trained.to_bytes()


def test_facts_of_the_layout() -> None:
    assert {10: S2_BANDS[1:9] + S2_BANDS[10:], 2: S1}.items() <= BANDS.items()
    assert BANDS[12] == S1 + BANDS[10]
    assert (LABELS[0], LABELS[1], LABELS[-1]) == ("Agro-forestry areas", "Arable land", "Urban fabric")
    assert {name: len(spec.bands) for name, spec in PUBLISHED.items()} == {
        "resnet50-s1-v0.2.0": 2,
        "resnet50-s2-v0.2.0": 10,
        "resnet50-all-v0.2.0": 12,
    }
    for name, spec in PUBLISHED.items():
        assert f"/{name}/resolve/" in spec.official_file.url


def test_torch_s_seed_is_left_alone(write: Write) -> None:
    path, _ = write("resnet18", 2, file="model.pth")
    torch.manual_seed(1)
    load_published(path, S1, 1)
    drawn = torch.rand(1)
    torch.manual_seed(1)
    assert torch.equal(drawn, torch.rand(1))


def test_the_backbone_for_fewer_bands_acts_as_if_the_others_were_at_their_mean(write: Write) -> None:
    path, network = write("resnet18", 12)
    rgb = ("B04", "B03", "B02")
    ours = build("resnet18", 5, in_channels=3).eval()
    ours.backbone.load_state_dict(backbone_state(path, rgb, "resnet18"))
    published = nn.Sequential(*list(network.children())[:-2])  # all but the pooling and the classification layer
    x = torch.randn(2, 3, 64, 64)
    whole = torch.zeros(2, 12, 64, 64)  # VV VH B02 B03 B04 B05 ...
    whole[:, 4], whole[:, 3], whole[:, 2] = x[:, 0], x[:, 1], x[:, 2]
    with torch.no_grad():
        torch.testing.assert_close(ours.features(x), published(whole), rtol=1e-4, atol=1e-5)
    with pytest.raises(WeightsError, match=r"B02, .* asked are B01, B09"):
        backbone_state(path, ("B01", "B09"), "resnet18")


def test_bands_that_the_file_does_not_know_change_nothing(write: Write) -> None:
    path, _ = write("resnet18", 10)
    more = (*TEN, "B01", "B09")
    x = torch.rand(2, 12, 64, 64)
    with torch.no_grad():
        ours = load_published(path, more, 3000).network(x)
        expected = load_published(path, TEN, 3000).network(x[:, :10])
    torch.testing.assert_close(ours, expected, rtol=1e-4, atol=1e-5)


def test_is_published_tells_by_the_names_of_tensors(write: Write, tmp_path: Path) -> None:
    path, network = write("resnet18", 2)
    assert is_published(path)
    safetensors.torch.save_file(network.state_dict(), tmp_path / "timm.safetensors")
    assert not is_published(tmp_path / "timm.safetensors")
    with pytest.raises(WeightsError, match="no weight file"):
        is_published(tmp_path / "none.safetensors")


def test_refuses_other_bands_labels_layouts_and_networks(write: Write, tmp_path: Path) -> None:
    path, network = write("resnet18", 10)
    with pytest.raises(WeightsError, match=r"sees the bands B02, .* B12, asked are B04, B03, B02: choose"):
        load_published(path, ("B04", "B03", "B02"), 3000)
    with pytest.raises(WeightsError, match="asked are"):
        load_published(path, (*TEN, "B04"), 3000)
    with pytest.raises(WeightsError, match=r"does not hold the backbone of resnet50: \d+ tensors missing"):
        load_published(path, TEN, 3000, name="resnet50")
    with pytest.raises(WeightsError, match="does not hold the backbone of resnet152"):
        backbone_state(path, TEN, "resnet152")
    with pytest.raises(UnknownNameError, match="no classifier 'vgg'"):
        load_published(path, TEN, 3000, name="vgg")
    with pytest.raises(ConfigError, match="max_dn > 0"):
        load_published(path, TEN, 0)
    with pytest.raises(WeightsError, match=r"sees 5 bands, and which they are .*2: VV, VH; 10: B02"):
        load_published(write("resnet18", 5)[0], TEN, 3000)
    with pytest.raises(WeightsError, match=r"\(43, 512\).*19 labels of BigEarthNet need .*\(19, 512\)"):
        load_published(write("resnet18", 10, labels=43)[0], TEN, 3000)
    with pytest.raises(WeightsError, match="classification layer of no tensors"):
        load_published(write("resnet18", 10, labels=0)[0], TEN, 3000)
    safetensors.torch.save_file(network.state_dict(), tmp_path / "timm.safetensors")
    with pytest.raises(WeightsError, match="no published BigEarthNet checkpoint: none of its 122 tensors"):
        load_published(tmp_path / "timm.safetensors", TEN, 3000)


def test_refuses_a_file_that_lacks_or_adds_tensors(write: Write) -> None:
    path, _ = write("resnet18", 10)
    state = safetensors.torch.load_file(path)

    def problem(changed: dict[str, Tensor]) -> str:
        safetensors.torch.save_file(changed, path)
        with pytest.raises(WeightsError) as caught:
            load_published(path, TEN, 3000)
        return str(caught.value)

    def without(key: str) -> dict[str, Tensor]:
        return {name: value for name, value in state.items() if name != f"model.vision_encoder.{key}"}

    assert "backbone of resnet18: 1 tensors missing (layer4.1.bn2.weight)" in problem(without("layer4.1.bn2.weight"))
    assert "1 tensors missing (conv1.weight)" in problem(without("conv1.weight"))
    assert "classification layer of {'weight': (19, 512)}" in problem(without("fc.bias"))
    assert "1 tensors outside of model.vision_encoder., such as model.text" in problem(
        state | {"model.text": torch.zeros(1)}
    )
