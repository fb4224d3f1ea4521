"""The published BigEarthNet v2 classifiers of BIFOLD, release v0.2.0, in this project's order of bands and labels.

Facts of the release, and where they are stated:

- Parameters are those of the timm network with 19 classes behind the prefix `model.vision_encoder.`: a LightningModule
  holds ConfigILM in `model`, and that holds the network (reben-training-scripts,
  `reben_publication/BigEarthNetv2_0_ImageClassifier.py`; ConfigILM 0.7, `configilm/ConfigILM.py`).
- Bands follow from their number, `BANDS` (ConfigILM 0.7, `extra/DataSets/BENv2_DataSet.py`). ConfigILM 0.6, with which
  release v0.1.1 was trained, had another order; nothing in a file tells the two apart.
- Labels are in alphabetical order (`extra/BENv2_utils.py`, NEW_LABELS), a sigmoid each.
- The input is (x - mean) / std of the train split, of unclipped DN (dB for Sentinel-1), coarser bands enlarged to
  120 x 120 by nearest neighbour (`extra/DataModules/BENv2_DataModule.py`, statistics `120_nearest`, which
  `infra.bigearthnet.bands.STATISTICS` has, rounded).
- Files and terms (MIT): https://huggingface.co/BIFOLD-BigEarthNetv2-0
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

import torch
from torch import Tensor

from classifiers.checkpoint import TrainedClassifier, reorder_labels
from classifiers.registry import build, names, spec
from classifiers.standardise import from_archive_statistics
from classifiers.weights import VISION_ENCODER, key_mismatch, read_tensors
from infra.bigearthnet.classes import NAMES
from infra.errors import WeightsError
from infra.weights_store import OfficialFile

_S2 = ("B02", "B03", "B04", "B05", "B06", "B07", "B08", "B8A", "B11", "B12")
_S1 = ("VV", "VH")

BANDS: Mapping[int, tuple[str, ...]] = MappingProxyType({2: _S1, 10: _S2, 12: _S1 + _S2})
"""Number of input channels to the bands in the order of those channels: the files named s1, s2 and all."""

LABELS: tuple[str, ...] = tuple(sorted(NAMES))
"""Labels in the order of the published logits."""


@dataclass(frozen=True, slots=True)
class PublishedSpec:
    """One of the published files."""

    network: str
    """A name in `registry.CLASSIFIERS`."""
    bands: tuple[str, ...]
    """Bands in the order of its input channels."""
    official_file: OfficialFile
    """Where it is."""


def _resnet50(sensors: str, bands: tuple[str, ...], revision: str) -> PublishedSpec:
    hub = f"https://huggingface.co/BIFOLD-BigEarthNetv2-0/resnet50-{sensors}-v0.2.0"
    file = OfficialFile("model.safetensors", f"{hub}/resolve/{revision}/model.safetensors", None)
    return PublishedSpec("resnet50", bands, file)


PUBLISHED: Mapping[str, PublishedSpec] = MappingProxyType(
    {
        "resnet50-s1-v0.2.0": _resnet50("s1", _S1, "d417b3c32f2172cbceb14e5b106dd9aa7b77c647"),
        "resnet50-s2-v0.2.0": _resnet50("s2", _S2, "f5a590cd5876845f62702260ff62ea5a325433bb"),
        "resnet50-all-v0.2.0": _resnet50("all", _S1 + _S2, "762acdc186cce6b31ecbc896ddab1721847d4c5e"),
    }
)
"""Published files that the weights store knows, by their name at the hub. Others of the layout can be loaded too."""

LICENCE = "MIT (BIFOLD), trained on BigEarthNet v2"
"""Terms of the published files."""


@dataclass(frozen=True, slots=True)
class _Published:
    """The tensors of a published file, taken for those of one network."""

    name: str
    """Network, a name in `registry.CLASSIFIERS`."""
    backbone: dict[str, Tensor]
    """Parameters of the backbone by timm's names."""
    head: dict[str, Tensor]
    """`weight` and `bias` of the classification layer."""

    @property
    def channels(self) -> int:
        """Number of input channels; 3 where the first convolution is missing."""
        first = self.backbone.get(spec(self.name).first_conv)
        return int(first.shape[1]) if first is not None and first.ndim == 4 and first.shape[1] else 3

    @property
    def bands(self) -> tuple[str, ...]:
        """Bands in the order of the input channels."""
        return BANDS[self.channels]

    def expected(self) -> dict[str, Tensor]:
        """Return the tensors that the network's backbone has for as many channels, without data."""
        with torch.device("meta"):
            return build(self.name, len(LABELS), in_channels=self.channels).backbone.state_dict()

    def backbone_for(self, bands: Sequence[str]) -> dict[str, Tensor]:
        """Return the backbone with the first convolution's channels as bands are; 0 for bands that are not its own."""
        first = spec(self.name).first_conv
        kernels = self.backbone[first]
        unseen = torch.zeros_like(kernels[:, 0])
        channels = [kernels[:, self.bands.index(band)] if band in self.bands else unseen for band in bands]
        return self.backbone | {first: torch.stack(channels, dim=1)}


def is_published(path: str | Path) -> bool:
    """Return whether a weight file has the layout of the published checkpoints, told by the names of its tensors.

    Raises:
        WeightsError: There is no such file, or it cannot be read as weights.
    """
    return _has_layout(read_tensors(path))


def load_published(
    path: str | Path, bands: Sequence[str], max_dn: float | Sequence[float], name: str | None = None
) -> TrainedClassifier:
    """Return a published classifier that takes a branch's bands and gives logits in the order of `classes.NAMES`.

    Below the clip of the stretch its input is what the network was trained on; brighter pixels are clipped here, and
    were not there. That statistics are rounded shifts a standardised value by up to 3e-5 and scales it by up to 1e-4.

    Args:
        path: A file of the layout, `.safetensors` or a PyTorch file.
        bands: Bands of the branch in channel order: those of the file, in any order, and others, which it then does
            not look at.
        max_dn: DN that the branch's stretch maps to 1, > 0: one, or one a band. Sentinel-1 stays in dB.
        name: Network, a name in `registry.CLASSIFIERS`; None: told by the file's tensors.

    Returns:
        The classifier in evaluation mode; its seed is unknown and said to be 0, its thresholds are 0.5, and `sr` is
        empty; torch's seed is left alone.

    Raises:
        WeightsError: The file is unreadable, of another layout, of other bands, labels or another network.
        ConfigError: max_dn is not positive.
        UnknownNameError: There is no network of that name.
    """
    file = _read(path, name)
    if not set(file.bands) <= set(bands) or len(set(bands)) != len(bands):
        raise WeightsError(
            f"{path} sees the bands {', '.join(file.bands)}, asked are {', '.join(bands)}: choose a file of the bands "
            "of the branch, or take the backbone alone and train a head"
        )
    with torch.random.fork_rng(devices=[]):
        network = build(file.name, len(LABELS), in_channels=len(bands))
    network.backbone.load_state_dict(file.backbone_for(bands), strict=True)
    network.head.load_state_dict(file.head, strict=True)
    standardiser = from_archive_statistics(bands, max_dn)
    published = TrainedClassifier(
        name=file.name,
        head="linear",
        labels=LABELS,
        bands=tuple(bands),
        mean=standardiser.mean,
        std=standardiser.std,
        seed=0,
        network=network.eval(),
    )
    return reorder_labels(published, NAMES)


def backbone_state(path: str | Path, bands: Sequence[str], name: str) -> dict[str, Tensor]:
    """Return the backbone of a published checkpoint for the bands of a branch, to train on from.

    Where the branch lacks bands of the file, it acts as the published one does where those bands are at their mean.

    Args:
        path: A file of the layout.
        bands: Bands of the branch in channel order; one that the file lacks starts with kernels of 0.
        name: Network, a name in `registry.CLASSIFIERS`.

    Returns:
        The state of `registry.build(name, …, in_channels=len(bands)).backbone`.

    Raises:
        WeightsError: The file is unreadable, of another layout or network, or has none of the bands.
        UnknownNameError: There is no network of that name.
    """
    file = _read(path, name)
    if not set(bands) & set(file.bands):
        raise WeightsError(
            f"{path} sees the bands {', '.join(file.bands)}, asked are {', '.join(bands)}: choose a file of the bands "
            "of the branch"
        )
    return file.backbone_for(bands)


def _has_layout(tensors: Mapping[str, Tensor]) -> bool:
    return any(key.startswith(VISION_ENCODER) for key in tensors)


def _read(path: str | Path, name: str | None) -> _Published:
    """Take a published file apart, checked in every tensor; name is the network that it must hold, if any."""
    tensors = read_tensors(path)
    if not _has_layout(tensors):
        raise WeightsError(
            f"{path} is no published BigEarthNet checkpoint: none of its {len(tensors)} tensors begins with "
            f"{VISION_ENCODER}"
        )
    if strange := [key for key in tensors if not key.startswith(VISION_ENCODER)]:
        raise WeightsError(f"{path} has {len(strange)} tensors outside of {VISION_ENCODER}, such as {strange[0]}")
    state = {key.removeprefix(VISION_ENCODER): value for key, value in tensors.items()}
    candidates = [_take_apart(state, candidate) for candidate in (names() if name is None else (name,))]
    found = min(candidates, key=_differences)
    if problem := key_mismatch(found.expected(), found.backbone):
        raise WeightsError(f"{path} does not hold the backbone of {found.name}: {problem}")
    if found.channels not in BANDS:
        known = "; ".join(f"{count}: {', '.join(bands)}" for count, bands in BANDS.items())
        raise WeightsError(
            f"{path} sees {found.channels} bands, and which they are is known for published checkpoints alone ({known})"
        )
    shapes = {key: tuple(value.shape) for key, value in found.head.items()}
    wanted = {"weight": (len(LABELS), spec(found.name).feature_channels), "bias": (len(LABELS),)}
    if shapes != wanted:
        raise WeightsError(
            f"{path} has a classification layer of {shapes or 'no tensors'}; the {len(LABELS)} labels of BigEarthNet "
            f"need {wanted}"
        )
    return found


def _take_apart(state: Mapping[str, Tensor], name: str) -> _Published:
    head = spec(name).classifier
    return _Published(
        name,
        backbone={key: value for key, value in state.items() if not key.startswith(head)},
        head={key.removeprefix(head): value for key, value in state.items() if key.startswith(head)},
    )


def _differences(file: _Published) -> int:
    """Return the number of names and shapes of tensors that only one of file and network has."""
    expected, found = ({(key, value.shape) for key, value in t.items()} for t in (file.expected(), file.backbone))
    return len(expected ^ found)
