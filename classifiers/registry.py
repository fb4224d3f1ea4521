"""The classifiers one may name in a run, how each is built, and where its pretrained weights come from."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Self

from infra.errors import ConfigError, UnknownNameError, WeightsError, did_you_mean
from infra.installed import ModelTable
from infra.weights_store import OfficialFile, WeightsStore

if TYPE_CHECKING:  # who asks for names and facts alone does not pay for torch
    from torch import nn

    from classifiers.network import Classifier


@dataclass(frozen=True, slots=True)
class ClassifierSpec:
    """What a caller must know of one network."""

    timm_name: str | None
    """Name of the architecture in timm; None: it is built by `backbone`."""
    feature_channels: int
    """K, channels of the last convolutional stage."""
    target_layer: str
    """Module of the backbone that activation maps look at by default: the last convolutional stage."""
    first_conv: str
    """Parameter of the convolution that sees the bands."""
    classifier: str
    """Prefix of the parameters of the published classification layer, which are dropped."""
    min_size: int
    """Smallest edge of an input, pixels."""
    licence: str
    """Licence of the architecture's code, in timm where it is from there."""
    paper: str
    """Where the network is described."""
    official_file: OfficialFile | None = None
    """The published ImageNet weights; None: there are none, and RUN.yaml names a file where one is wanted."""
    weights_licence: str = "none"
    """Terms of the published weights."""
    backbone: "Callable[[int], nn.Module] | None" = None
    """Builds the network, without pooling and classification layer, from the number of bands; None: timm does."""
    map_edge: Callable[[int], int] | None = None
    """Edge of the activations of `target_layer` from an image's, for those who plan without building the network; None:
    it is built to know."""
    distribution: str | None = None
    """Name and version of the distribution that brings the network, None for this package's own. It is part of the
    identity of what is trained, since another version may be another network."""

    def from_distribution(self, distribution: str) -> Self:
        """Return the entry as another distribution's, given its name and version."""
        return replace(self, distribution=distribution)

    def build_backbone(self, in_channels: int) -> "nn.Module":
        """Return the convolutional stages, from (N, in_channels, H, W) to (N, feature_channels, h, w).

        Raises:
            ConfigError: The entry says neither a name in timm nor how to build the network, or both.
        """
        if (self.timm_name is None) == (self.backbone is None):
            raise ConfigError("a ClassifierSpec has either a timm_name or a backbone, and not both")
        if self.backbone is not None:
            return self.backbone(in_channels)
        import timm  # 2 s that the driver and half of the workers need not spend

        network: nn.Module = timm.create_model(
            self.timm_name, pretrained=False, in_chans=in_channels, num_classes=0, global_pool=""
        )
        return network


def _resnet(depth: int, feature_channels: int, sha256: str) -> ClassifierSpec:
    file = f"resnet{depth}-{sha256[:8]}.pth"
    return ClassifierSpec(
        timm_name=f"resnet{depth}",
        feature_channels=feature_channels,
        target_layer="layer4",
        first_conv="conv1.weight",
        classifier="fc.",
        min_size=32,  # layer4 has one place here already
        map_edge=lambda edge: -(-edge // 32),  # five times half of it, rounded up
        official_file=OfficialFile(file, f"https://download.pytorch.org/models/{file}", sha256),
        weights_licence="BSD-3-Clause (torchvision), trained on ImageNet",
        licence="Apache-2.0",
        paper="He et al. 2016, Deep residual learning for image recognition, arXiv:1512.03385",
    )


def _inception_v4_edge(edge: int) -> int:
    """Return the edge of Inception-v4's last stage: its unpadded windows of 3 are all that makes images smaller."""
    for stride in (2, 1, 2, 1, 2, 2, 2):
        edge = (edge - 3) // stride + 1
    return edge


_OWN: Mapping[str, ClassifierSpec] = MappingProxyType(
    {
        # torchvision's IMAGENET1K_V1 for resnet18, IMAGENET1K_V2 for the others
        "resnet18": _resnet(18, 512, "f37072fd47e89c5e827621c5baffa7500819f7896bbacec160b1a16c560e07ec"),
        "resnet50": _resnet(50, 2048, "11ad3fa62ca79e40addfd354a8ec4b7c75143b3038b8d2a807fbc68deab379ca"),
        "resnet101": _resnet(101, 2048, "cd907fc2a0de2292b2ba2b27d2216bc672d84632d1cf20058d01c0c03b5e020e"),
        "resnet152": _resnet(152, 2048, "f82ba261"),
        "inception_v4": ClassifierSpec(
            timm_name="inception_v4",
            feature_channels=1536,
            target_layer="features",
            first_conv="features.0.conv.weight",
            classifier="last_linear.",
            min_size=75,
            map_edge=_inception_v4_edge,
            official_file=OfficialFile(
                "inceptionv4-8e4777a0.pth",
                "https://github.com/rwightman/pytorch-image-models/releases/download/v0.1-cadene/"
                "inceptionv4-8e4777a0.pth",
                "8e4777a0",
            ),
            weights_licence="BSD-3-Clause (pretrained-models.pytorch), converted from TensorFlow's (Apache-2.0), "
            "trained on ImageNet",
            licence="Apache-2.0",
            paper="Szegedy et al. 2017, Inception-v4, Inception-ResNet and the impact of residual connections on "
            "learning, arXiv:1602.07261",
        ),
    }
)

CLASSIFIERS: Mapping[str, ClassifierSpec] = ModelTable(_OWN, "superscene.classifiers", ClassifierSpec)
"""The networks by name: this package's, then those of other installed distributions, which offer a `ClassifierSpec` by
an entry point of the group `superscene.classifiers`."""


def names() -> tuple[str, ...]:
    """Return the classifiers' names."""
    return tuple(CLASSIFIERS)


def spec(name: str) -> ClassifierSpec:
    """Return the entry of one classifier.

    Raises:
        UnknownNameError: There is none of that name.
    """
    if name not in CLASSIFIERS:
        hint = did_you_mean(name, CLASSIFIERS)
        raise UnknownNameError(f"no classifier {name!r}: {hint}choose one of {', '.join(CLASSIFIERS)}")
    return CLASSIFIERS[name]


def weights_file(name: str, given: str | Path | None = None) -> Path:
    """Return the file a backbone's pretrained weights come from: the one given, else the stored official one.

    Args:
        name: A name in `CLASSIFIERS`.
        given: A file the user named.

    Returns:
        An absolute path.

    Raises:
        UnknownNameError: There is no such classifier.
        WeightsError: There is no file, or the stored one is not what its hash says.
    """
    entry = spec(name)
    if given is not None:
        if not Path(given).is_file():
            raise _missing(name, entry, f"there is no file at {given}")
        return Path(given).absolute()
    stored = WeightsStore.default().find(name, entry.official_file) if entry.official_file else None
    if stored is None:
        raise _missing(name, entry, "no weight file was given or stored")
    return stored


def _missing(name: str, entry: ClassifierSpec, found: str) -> WeightsError:
    official = entry.official_file
    advice = (
        f"Name a file in RUN.yaml: `weights: {{{name}: FILE}}`."
        if official is None
        else official.where_to_get(name, entry.weights_licence)
    )
    return WeightsError(f"{name} needs pretrained weights, but {found}. {advice}")


def check_counts(name: str, num_labels: int, in_channels: int) -> None:
    """Refuse a network without labels or channels.

    Raises:
        ConfigError: A count is below 1.
    """
    if num_labels < 1 or in_channels < 1:
        raise ConfigError(
            f"{name} needs at least one label and one input channel, got {num_labels} label(s) and "
            f"{in_channels} channel(s)"
        )


def build(
    name: str, num_labels: int, in_channels: int = 3, head: str = "linear", weights: str | Path | None = None
) -> "Classifier":
    """Return a new classifier, on the CPU and in training mode.

    Args:
        name: A name in `CLASSIFIERS`.
        num_labels: L, at least 1.
        in_channels: C, number of bands, at least 1.
        head: A name in `heads.HEADS`; always initialised from torch's seed.
        weights: Local file of backbone weights (.safetensors or .pth) with the keys of torchvision and timm; its
            classification layer is dropped, and a first convolution of three channels is repeated over C and scaled by
            3 / C, or summed for C = 1. None: random, from torch's seed.

    Returns:
        A module from the standardised input (N, C, H, W), H and W at least `ClassifierSpec.min_size`, to logits (N, L).

    Raises:
        UnknownNameError: There is no such classifier or head.
        ConfigError: A count is below 1.
        WeightsError: The file is missing, unreadable or of another network.
    """
    from classifiers.heads import build_head
    from classifiers.network import Classifier

    entry = spec(name)
    check_counts(name, num_labels, in_channels)
    backbone = entry.build_backbone(in_channels)
    classifier = Classifier(
        backbone,
        build_head(head, entry.feature_channels, num_labels),
        entry.target_layer,
        num_labels,
        name=name,
        min_size=entry.min_size,
    )
    if weights is not None:
        _load_backbone(backbone, Path(weights), name, entry, in_channels)
    return classifier


def _load_backbone(backbone: "nn.Module", path: Path, name: str, entry: ClassifierSpec, in_channels: int) -> None:
    from classifiers.weights import VISION_ENCODER, key_mismatch, read_tensors

    state = {key: value for key, value in read_tensors(path).items() if not key.startswith(entry.classifier)}
    if any(key.startswith(VISION_ENCODER) for key in state):
        raise WeightsError(
            f"{path} is a published BigEarthNet checkpoint, whose channels have names: take its backbone from "
            "classifiers.published.backbone_state, which is told the bands"
        )
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
