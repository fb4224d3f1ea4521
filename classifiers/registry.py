"""The classifiers one may name in a run, and how each is built."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

import safetensors
import safetensors.torch
import torch
from torch import Tensor, nn

from classifiers.heads import build_head
from classifiers.network import Classifier
from infra.errors import ConfigError, UnknownNameError, WeightsError


@dataclass(frozen=True, slots=True)
class ClassifierSpec:
    """What a caller must know of one network."""

    timm_name: str
    """Name of the architecture in timm."""
    feature_channels: int
    """K, channels of the last convolutional stage."""
    target_layer: str
    """Module of the backbone that activation maps look at by default: the last convolutional stage."""
    first_conv: str
    """Parameter of the convolution that sees the bands."""
    classifier: str
    """Prefix of the parameters of the published classification layer, which are dropped."""
    licence: str
    """Licence of the architecture's code in timm; weights have their own."""
    paper: str
    """Where the network is described."""


_RESNET_PAPER = "He et al. 2016, Deep residual learning for image recognition, arXiv:1512.03385"

CLASSIFIERS: Mapping[str, ClassifierSpec] = MappingProxyType(
    {
        "resnet18": ClassifierSpec(
            "resnet18", 512, "layer4", "conv1.weight", "fc.", licence="Apache-2.0", paper=_RESNET_PAPER
        ),
        "resnet50": ClassifierSpec(
            "resnet50", 2048, "layer4", "conv1.weight", "fc.", licence="Apache-2.0", paper=_RESNET_PAPER
        ),
    }
)


def names() -> tuple[str, ...]:
    """Return the classifiers' names."""
    return tuple(CLASSIFIERS)


def spec(name: str) -> ClassifierSpec:
    """Return the entry of one classifier.

    Raises:
        UnknownNameError: There is none of that name.
    """
    if name not in CLASSIFIERS:
        raise UnknownNameError(f"no classifier {name!r}: choose one of {', '.join(CLASSIFIERS)}")
    return CLASSIFIERS[name]


def build(
    name: str, num_labels: int, in_channels: int = 3, head: str = "linear", weights: str | Path | None = None
) -> Classifier:
    """Return a new classifier, on the CPU and in training mode.

    Args:
        name: A name in `CLASSIFIERS`.
        num_labels: L, at least 1.
        in_channels: C, number of bands, at least 1.
        head: A name in `heads.HEADS`; always initialised from torch's seed.
        weights: Local file of backbone weights (.safetensors or .pth) with the keys of torchvision and timm; its
            classification layer is dropped, and a first convolution of three channels is repeated over C and scaled by
            3 / C. None: random, from torch's seed.

    Returns:
        A module from the standardised input (N, C, H, W) to logits (N, L).

    Raises:
        UnknownNameError: There is no such classifier or head.
        ConfigError: A count is below 1.
        WeightsError: The file is missing, unreadable or of another network.
    """
    entry = spec(name)
    if num_labels < 1 or in_channels < 1:
        raise ConfigError(
            f"{name} needs at least one label and one input channel, got {num_labels} label(s) and "
            f"{in_channels} channel(s)"
        )
    import timm  # 2 s that the driver and half of the workers need not spend

    backbone: nn.Module = timm.create_model(
        entry.timm_name, pretrained=False, in_chans=in_channels, num_classes=0, global_pool=""
    )
    classifier = Classifier(
        backbone, build_head(head, entry.feature_channels, num_labels), entry.target_layer, num_labels
    )
    if weights is not None:
        _load_backbone(backbone, Path(weights), name, entry, in_channels)
    return classifier


def _load_backbone(backbone: nn.Module, path: Path, name: str, entry: ClassifierSpec, in_channels: int) -> None:
    state = {key: value for key, value in _read_tensors(path).items() if not key.startswith(entry.classifier)}
    first = state.get(entry.first_conv)
    if first is not None and first.ndim == 4 and first.shape[1] != in_channels:
        if first.shape[1] != 3:
            raise WeightsError(
                f"{path}: {entry.first_conv} sees {first.shape[1]} bands, {name} is built for {in_channels}: only "
                "three channels can be adapted to another number"
            )
        from timm.models import adapt_input_conv

        state[entry.first_conv] = adapt_input_conv(in_channels, first)
    expected = backbone.state_dict()
    if state and not any(key.endswith("num_batches_tracked") for key in state):
        # Older files lack this counter, which only a BatchNorm without momentum reads.
        state |= {key: value for key, value in expected.items() if key.endswith("num_batches_tracked")}
    if problem := key_mismatch(expected, state):
        raise WeightsError(f"{path} does not hold the backbone of {name}: {problem}")
    backbone.load_state_dict(state, strict=True)


def key_mismatch(expected: Mapping[str, Tensor], found: Mapping[str, Tensor]) -> str | None:
    """Return one sentence on how the names or shapes of two sets of tensors differ, or None when they agree."""
    missing = [key for key in expected if key not in found]
    unexpected = [key for key in found if key not in expected]
    if missing or unexpected:
        return (
            f"{len(missing)} tensors missing ({', '.join(missing[:3]) or 'none'}), "
            f"{len(unexpected)} unexpected ({', '.join(unexpected[:3]) or 'none'})"
        )
    for key, value in expected.items():
        if value.shape != found[key].shape:
            return f"{key} is {tuple(found[key].shape)}, not {tuple(value.shape)}"
    return None


def _read_tensors(path: Path) -> dict[str, Tensor]:
    if not path.is_file():
        raise WeightsError(f"no weight file at {path}")
    try:
        if path.suffix == ".safetensors":
            return safetensors.torch.load_file(path)
        loaded = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # unpicklers raise whatever the bytes lead them to
        raise WeightsError(f"{path} cannot be read as weights: {error}") from error
    if isinstance(loaded, dict) and isinstance(loaded.get("state_dict"), dict):
        loaded = loaded["state_dict"]
    if not isinstance(loaded, dict) or not all(isinstance(value, Tensor) for value in loaded.values()):
        raise WeightsError(f"{path} holds no table of tensors, at its top or under 'state_dict'")
    return {str(key): value for key, value in loaded.items()}
