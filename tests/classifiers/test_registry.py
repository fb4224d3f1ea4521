"""Oracles: timm and torchvision's own networks, layouts of the papers, and hand-adapted weights."""

from pathlib import Path

import pytest
import safetensors.torch
import timm
import torch
from torch import Tensor

import classifiers
from classifiers.network import pool
from classifiers.registry import CLASSIFIERS, build, names
from infra.errors import ConfigError, UnknownNameError, WeightsError


def image(channels: int = 3) -> Tensor:
    return torch.randn(2, channels, 64, 64, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("name", names())
def test_entry_is_true_of_the_network(name: str) -> None:
    entry = CLASSIFIERS[name]
    model = build(name, 19).eval()
    with torch.no_grad():
        logits, activations = model.forward_with_features(image())
    assert logits.shape == (2, 19)
    assert activations.shape == (2, entry.feature_channels, 2, 2)  # stride 32
    assert entry.target_layer in dict(model.backbone.named_children())
    assert entry.first_conv in model.backbone.state_dict()


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


@pytest.mark.parametrize("channels", [1, 10])
def test_first_convolution_is_adapted_as_timm_does(tmp_path: Path, channels: int) -> None:
    torch.manual_seed(6)
    state = timm.create_model("resnet18").state_dict()
    safetensors.torch.save_file(state, tmp_path / "w.safetensors")
    adapted = build("resnet18", 2, in_channels=channels, weights=tmp_path / "w.safetensors").backbone.state_dict()
    first = state["conv1.weight"]
    by_hand = first.sum(dim=1, keepdim=True) if channels == 1 else first.repeat(1, 4, 1, 1)[:, :10] * 3 / 10
    torch.testing.assert_close(adapted["conv1.weight"], by_hand)
    assert torch.equal(adapted["layer4.1.conv2.weight"], state["layer4.1.conv2.weight"])


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
    assert classifiers.names() == ("resnet18", "resnet50")
    with pytest.raises(UnknownNameError, match="choose one of resnet18, resnet50"):
        build("vgg", 2)
    with pytest.raises(UnknownNameError, match="linear"):
        build("resnet18", 2, head="deep")
    for labels, channels in ((0, 3), (2, 0)):
        with pytest.raises(ConfigError):
            build("resnet18", labels, in_channels=channels)


def test_refuses_weights_of_another_network_and_broken_files(tmp_path: Path) -> None:
    path = tmp_path / "w.pth"
    with pytest.raises(WeightsError, match="no weight file"):
        build("resnet18", 2, weights=path)
    path.write_bytes(b"not a zip")
    with pytest.raises(WeightsError, match="cannot be read"):
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
    torch.save(state | {"bn1.weight": torch.zeros(3)}, path)
    with pytest.raises(WeightsError, match=r"bn1.weight is \(3,\), not \(64,\)"):
        build("resnet18", 2, weights=path)
