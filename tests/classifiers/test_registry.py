"""Oracles: timm and torchvision's own networks, layouts of the papers, and hand-adapted weights."""

import hashlib
from dataclasses import replace
from pathlib import Path

import pytest
import safetensors.torch
import timm
import torch
from torch import Tensor

import classifiers
from classifiers.network import pool
from classifiers.registry import CLASSIFIERS, build, names, weights_file
from infra.errors import ConfigError, ShapeError, UnknownNameError, WeightsError
from infra.weights_store import WeightsStore


def image(channels: int = 3) -> Tensor:
    return torch.randn(2, channels, 64, 64, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("name", names())
def test_entry_is_true_of_the_network(name: str) -> None:
    """Without data: shapes are all that is asked. The places are the arithmetic of the papers' strides and paddings."""
    entry = CLASSIFIERS[name]
    with torch.device("meta"):
        model = build(name, 19, in_channels=5).eval()
        places = {edge: model.features(torch.empty(2, 5, edge, edge)).shape for edge in (entry.min_size, 120, 480)}
    at_120, at_480 = (2, 13) if name == "inception_v4" else (4, 15)
    for edge, places_a_side in ((entry.min_size, 1), (120, at_120), (480, at_480)):
        assert places[edge] == (2, entry.feature_channels, places_a_side, places_a_side)
    assert entry.target_layer in dict(model.backbone.named_children())
    assert entry.first_conv in model.backbone.state_dict()


@pytest.mark.parametrize(("name", "least"), [("resnet18", 32), ("inception_v4", 75)])
def test_refuses_images_smaller_than_the_network_can_see(name: str, least: int) -> None:
    with torch.device("meta"):
        model = build(name, 2).eval()
        model.features(torch.empty(1, 3, least, least))
        with pytest.raises(
            ShapeError, match=rf"{name} needs images of at least {least} x {least} .*got 80 x {least - 1}"
        ):
            model.features(torch.empty(1, 3, 80, least - 1))


def test_one_pixel_less_than_the_least_fails_inside_inception_v4() -> None:
    """The least edge is a fact about timm's network, not a choice."""
    network = timm.create_model("inception_v4", num_classes=0, global_pool="").eval()
    with pytest.raises(RuntimeError, match="Kernel size"), torch.no_grad():
        network(torch.zeros(1, 3, 74, 74))


def test_torchvision_weights_give_timm_s_activations_and_logits(tmp_path: Path) -> None:
    """A whole torchvision ResNet is saved as .pth; its own forward pass up to the pooling is the oracle."""
    torchvision = pytest.importorskip("torchvision")
    torch.manual_seed(5)
    oracle = torchvision.models.resnet18(weights=None).eval()
    torch.save(oracle.state_dict(), tmp_path / "resnet18.pth")
    model = build("resnet18", 4, weights=tmp_path / "resnet18.pth").eval()
    torch.nn.Module.__setattr__(oracle, "fc", torch.nn.Identity())
    with torch.no_grad():
        logits, activations = model.forward_with_features(image())
        pooled = oracle(image())
        torch.testing.assert_close(pool(activations), pooled)
        torch.testing.assert_close(logits, model.head(pooled))
        torch.testing.assert_close(model(image()), logits)


@pytest.mark.parametrize("name", ["resnet101", "resnet152"])
def test_torchvision_names_of_the_deeper_networks_load_from_a_file(tmp_path: Path, name: str) -> None:
    """Each tensor is one number repeated, so that the file stays small and every tensor is told from the others."""
    torchvision = pytest.importorskip("torchvision")
    with torch.device("meta"):
        shapes = {key: value.shape for key, value in torchvision.models.get_model(name).state_dict().items()}
    state = {key: torch.tensor(i / 1000).expand(shape) for i, (key, shape) in enumerate(shapes.items())}
    torch.save(state, tmp_path / "w.pth")
    found = build(name, 2, weights=tmp_path / "w.pth").backbone.state_dict()
    assert len(found) == len(state) - 2  # the classification layer is dropped
    for key, value in found.items():
        assert torch.equal(value, state[key].to(value.dtype)), key


@pytest.fixture(scope="module", params=["resnet18", "inception_v4"])
def published(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Path]:
    """A network's name, and a file of random weights for it with three input channels and a classification layer."""
    torch.manual_seed(6)
    path = tmp_path_factory.mktemp("weights") / "w.safetensors"
    safetensors.torch.save_file(timm.create_model(request.param, num_classes=11).state_dict(), path)
    return request.param, path


def test_three_channels_load_as_they_are(published: tuple[str, Path]) -> None:
    name, path = published
    state, found = safetensors.torch.load_file(path), build(name, 2, weights=path).backbone.state_dict()
    dropped = {key for key in state if key.startswith(CLASSIFIERS[name].classifier)}
    assert len(dropped) == 2
    assert found.keys() == state.keys() - dropped
    assert all(torch.equal(value, state[key]) for key, value in found.items())


@pytest.mark.parametrize("channels", [1, 2, 4, 10, 12, 14])
def test_first_convolution_is_adapted_by_hand(published: tuple[str, Path], channels: int) -> None:
    """Channel c of C is the weight of colour c mod 3, times 3 / C, so that a grey image gives what it gave."""
    name, path = published
    entry, state = CLASSIFIERS[name], safetensors.torch.load_file(path)
    first = state.pop(entry.first_conv)
    adapted = build(name, 2, in_channels=channels, weights=path).backbone.state_dict()
    by_hand = torch.stack([first[:, c % 3] for c in range(channels)], dim=1) * 3 / channels
    if channels == 1:
        by_hand = first[:, :1] + first[:, 1:2] + first[:, 2:]
    torch.testing.assert_close(adapted[entry.first_conv], by_hand)
    others = adapted.keys() - {entry.first_conv}
    assert all(torch.equal(adapted[key], state[key]) for key in others)


def test_first_convolution_is_adapted_as_timm_does(published: tuple[str, Path]) -> None:
    """timm loads the same file by its own means."""
    name, path = published
    overlay = {"file": str(path), "num_classes": 11}
    oracle = timm.create_model(
        CLASSIFIERS[name].timm_name, pretrained=True, pretrained_cfg_overlay=overlay, in_chans=12, num_classes=0
    ).state_dict()
    found = build(name, 2, in_channels=12, weights=path).backbone.state_dict()
    assert found.keys() == oracle.keys()
    assert all(torch.equal(value, oracle[key]) for key, value in found.items())


def test_the_older_file_of_inception_v4_loads(tmp_path: Path) -> None:
    """It has 1,001 classes and no counters of batches."""
    with torch.device("meta"):
        names_and_shapes = timm.create_model("inception_v4", num_classes=1001).state_dict()
    state = {
        key: torch.tensor(1 / (i + 1)).expand(value.shape)
        for i, (key, value) in enumerate(names_and_shapes.items())
        if not key.endswith("num_batches_tracked")
    }
    assert state["last_linear.weight"].shape == (1001, 1536)
    torch.save(state, tmp_path / "w.pth")
    found = build("inception_v4", 2, weights=tmp_path / "w.pth").backbone.state_dict()
    for key in ("features.0.conv.weight", "features.6.branch2.2.bn.running_var", "features.21.branch3.1.conv.weight"):
        assert torch.equal(found[key], state[key])


def test_weights_under_state_dict_and_without_counters_load(tmp_path: Path) -> None:
    state = timm.create_model("resnet18", in_chans=4).state_dict()
    old = {key: value for key, value in state.items() if not key.endswith("num_batches_tracked")}
    torch.save({"state_dict": old, "epoch": 90}, tmp_path / "w.pth")
    model = build("resnet18", 2, in_channels=4, weights=str(tmp_path / "w.pth"))
    assert torch.equal(model.backbone.state_dict()["conv1.weight"], state["conv1.weight"])


def test_random_weights_follow_the_callers_seed() -> None:
    def conv(seed: int) -> Tensor:
        torch.manual_seed(seed)
        model = build("resnet18", 2)
        return torch.cat([model.backbone.state_dict()["conv1.weight"].flatten(), model.head.state_dict()["bias"]])

    assert torch.equal(conv(1), conv(1))
    assert not torch.equal(conv(1), conv(2))


def test_logits_stay_in_full_precision_under_autocast() -> None:
    model = build("resnet18", 3).eval()
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        logits, activations = model.forward_with_features(image())
    assert activations.dtype == torch.bfloat16
    assert logits.dtype == torch.float32
    torch.testing.assert_close(logits, model.head(activations.float().mean(dim=(2, 3))).detach())


def test_refuses_names_and_counts() -> None:
    assert classifiers.names() == ("resnet18", "resnet50", "resnet101", "resnet152", "inception_v4")
    with pytest.raises(UnknownNameError, match="choose one of resnet18, resnet50"):
        build("vgg", 2)
    with pytest.raises(UnknownNameError, match="linear, mlp"):
        build("resnet18", 2, head="deep")
    for labels, channels in ((0, 3), (2, 0)):
        with pytest.raises(ConfigError):
            build("resnet18", labels, in_channels=channels)


def test_refuses_weights_of_another_network_and_broken_files(tmp_path: Path) -> None:
    path = tmp_path / "w.pth"
    with pytest.raises(WeightsError, match="no weight file"):
        build("resnet18", 2, weights=path)
    for content in (b"not a zip", b"garbage", b"PK\x03\x04cut short", b""):
        path.write_bytes(content)
        with pytest.raises(WeightsError, match=r"w\.pth cannot be read as weights: ") as caught:
            build("resnet18", 2, weights=path)
        assert "\n" not in str(caught.value)
        assert "weights_only" not in str(caught.value)
    torch.save({"conv1.weight": Path("code")}, path)
    with pytest.raises(WeightsError, match="Save the state_dict alone"):
        build("resnet18", 2, weights=path)
    (tmp_path / "w.safetensors").write_bytes(b"short")
    with pytest.raises(WeightsError, match="cannot be read"):
        build("resnet18", 2, weights=tmp_path / "w.safetensors")
    torch.save([1, 2], path)
    with pytest.raises(WeightsError, match="no table of tensors"):
        build("resnet18", 2, weights=path)
    state = timm.create_model("resnet18").state_dict()
    torch.save(state, path)
    with pytest.raises(WeightsError, match=r"does not hold the backbone of resnet50: .* missing"):
        build("resnet50", 2, weights=path)
    torch.save(state | {"conv1.weight": torch.zeros(64, 5, 7, 7)}, path)
    with pytest.raises(WeightsError, match="sees 5 bands"):
        build("resnet18", 2, weights=path)
    torch.save({f"model.vision_encoder.{key}": value for key, value in state.items()}, path)
    with pytest.raises(WeightsError, match="is a published BigEarthNet checkpoint"):
        build("resnet18", 2, weights=path)
    torch.save(state | {"bn1.weight": torch.zeros(3)}, path)
    with pytest.raises(WeightsError, match=r"bn1.weight is \(3,\), not \(64,\)"):
        build("resnet18", 2, weights=path)


@pytest.mark.parametrize("name", names())
def test_official_file_is_named_after_its_hash(name: str) -> None:
    """The convention of torch.hub, which tests the digits in the name against the file."""
    official = CLASSIFIERS[name].official_file
    assert official is not None
    stem, digits = Path(official.name).stem.split("-")
    assert stem == name.replace("_", "")
    assert official.sha256 is not None
    assert official.sha256.startswith(digits)
    assert len(official.sha256) in {8, 64}
    assert official.url.endswith(f"/{official.name}")


class TestWeightsFile:
    @pytest.fixture(autouse=True)
    def store(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> WeightsStore:
        monkeypatch.setenv("SUPERSCENE_WEIGHTS", str(tmp_path / "store"))
        return WeightsStore.default()

    def test_a_given_file_comes_first_and_becomes_absolute(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        (tmp_path / "mine.pth").write_bytes(b"any")
        monkeypatch.chdir(tmp_path)
        assert weights_file("resnet50", "mine.pth") == tmp_path / "mine.pth"

    def test_a_stored_file_must_be_the_official_one(self, store: WeightsStore) -> None:
        official = CLASSIFIERS["resnet50"].official_file
        assert official is not None
        path = store.path("resnet50", official)
        path.parent.mkdir(parents=True)
        path.write_bytes(b"another")
        with pytest.raises(WeightsError, match="changed or damaged"):
            weights_file("resnet50")

    def test_a_stored_file_is_found(self, store: WeightsStore, monkeypatch: pytest.MonkeyPatch) -> None:
        entry = CLASSIFIERS["resnet50"]
        assert entry.official_file is not None
        official = replace(entry.official_file, sha256=hashlib.sha256(b"content").hexdigest())
        table = {"resnet50": replace(entry, official_file=official)}
        monkeypatch.setattr("classifiers.registry.CLASSIFIERS", table)
        path = store.path("resnet50", official)
        path.parent.mkdir(parents=True)
        path.write_bytes(b"content")
        assert weights_file("resnet50") == path

    def test_without_a_file_the_error_says_where_to_get_one(self, tmp_path: Path) -> None:
        with pytest.raises(WeightsError) as caught:
            weights_file("inception_v4")
        for words in (
            "given or stored",
            "fetch inception_v4`",
            "inceptionv4-8e4777a0.pth",
            "weights: {inception_v4: F",
        ):
            assert words in str(caught.value)
        with pytest.raises(WeightsError, match=r"no file at .*absent.pth"):
            weights_file("resnet18", tmp_path / "absent.pth")
        with pytest.raises(UnknownNameError, match="no classifier 'vgg'"):
            weights_file("vgg")
