"""A trained classifier as one file: weights, label order, bands and their statistics, thresholds, provenance."""

import contextlib
import hashlib
import json
import math
import os
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import safetensors
import safetensors.torch
import torch
from torch import Tensor

from classifiers.network import Classifier
from classifiers.registry import build, key_mismatch
from classifiers.standardise import Standardiser
from infra.errors import PipelineError, ShapeError, WeightsError

FORMAT = 1
"""Version of the metadata; a file of another version is refused."""

_METADATA_KEY = "superscene"


@dataclass(frozen=True, slots=True)
class TrainedClassifier:
    """A network and everything needed to use it on other patches without mistaking labels or bands."""

    name: str
    """Name in `registry.CLASSIFIERS`."""
    head: str
    """Name in `heads.HEADS`."""
    labels: tuple[str, ...]
    """Label names in the order of the logits."""
    bands: tuple[str, ...]
    """Band names in the order of the input's channels."""
    mean: tuple[float, ...]
    """Mean of each band after the stretch."""
    std: tuple[float, ...]
    """Standard deviation of each band after the stretch, > 0."""
    seed: int
    """Seed of the initialisation, of the shuffling and of the augmentation."""
    network: Classifier
    """The network; copied to the CPU when saved."""
    sr: Mapping[str, object] = field(default_factory=dict)
    """Identity of the SR branch the network was trained on; any JSON object of the caller's."""
    thresholds: tuple[float, ...] = ()
    """Probability from which each label is predicted; empty becomes 0.5 for all."""

    def __post_init__(self) -> None:
        if not self.thresholds:
            object.__setattr__(self, "thresholds", (0.5,) * len(self.labels))
        if not self.labels or len(set(self.labels)) != len(self.labels):
            raise ShapeError(f"a classifier needs label names, each once, got {self.labels}")
        if len(self.thresholds) != len(self.labels) or not all(math.isfinite(value) for value in self.thresholds):
            raise ShapeError(f"{len(self.labels)} labels need as many finite thresholds, got {self.thresholds}")
        _ = self.standardiser  # checks the bands

    @property
    def standardiser(self) -> Standardiser:
        """The standardisation the network expects its input to have had."""
        return Standardiser(self.bands, self.mean, self.std)

    def to_bytes(self) -> bytes:
        """Return the content of the checkpoint file; equal classifiers give equal bytes."""
        metadata = {
            "format": FORMAT,
            "name": self.name,
            "head": self.head,
            "labels": list(self.labels),
            "bands": list(self.bands),
            "mean": list(self.mean),
            "std": list(self.std),
            "thresholds": list(self.thresholds),
            "seed": self.seed,
            "sr": dict(self.sr),
        }
        # One metadata key only: the format leaves the order of several to chance.
        text = json.dumps(metadata, sort_keys=True, allow_nan=False, separators=(",", ":"))
        tensors = {
            key: value.detach().to("cpu", memory_format=torch.contiguous_format, copy=True)
            for key, value in sorted(self.network.state_dict().items())
        }
        return safetensors.torch.save(tensors, {_METADATA_KEY: text})

    def save(self, path: str | Path) -> None:
        """Write the checkpoint whole or not at all: a temporary file beside it, flushed to disk, then a rename."""
        target = Path(path)
        target.parent.mkdir(parents=True, exist_ok=True)
        content = self.to_bytes()
        handle, temporary = tempfile.mkstemp(prefix=f".{target.name}.", suffix=".partial", dir=target.parent)
        try:
            with os.fdopen(handle, "wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            Path(temporary).replace(target)
        except BaseException:
            with contextlib.suppress(FileNotFoundError):
                Path(temporary).unlink()
            raise


def load(path: str | Path) -> TrainedClassifier:
    """Return the classifier of a checkpoint file, on the CPU and in evaluation mode; torch's seed is left alone.

    Raises:
        WeightsError: The file is missing, is not such a checkpoint, or contradicts itself.
    """
    source = Path(path)
    if not source.is_file():
        raise WeightsError(f"no checkpoint at {source}")
    try:
        with safetensors.safe_open(source, framework="pt", device="cpu") as file:
            metadata = file.metadata() or {}
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118  # not a mapping
    except (safetensors.SafetensorError, OSError) as error:
        raise WeightsError(f"{source} cannot be read as a safetensors file: {error}") from error
    if _METADATA_KEY not in metadata:
        raise WeightsError(
            f"{source} has no {_METADATA_KEY!r} metadata, so its labels and bands are unknown: it was not saved by "
            "TrainedClassifier.save"
        )
    try:
        return _assemble(json.loads(metadata[_METADATA_KEY]), tensors)
    except (PipelineError, KeyError, TypeError, ValueError) as error:
        reason = f"no {error} in its metadata" if type(error) is KeyError else str(error)
        raise WeightsError(f"{source} cannot be used: {reason}") from error


def _assemble(metadata: Mapping[str, object], tensors: Mapping[str, Tensor]) -> TrainedClassifier:
    if not isinstance(metadata, dict):
        raise WeightsError("its metadata is not a JSON object")
    if metadata["format"] != FORMAT:
        raise WeightsError(f"its format is {metadata['format']}, this version reads {FORMAT}")
    labels = tuple(str(label) for label in metadata["labels"])
    bands = tuple(str(band) for band in metadata["bands"])
    name, head = str(metadata["name"]), str(metadata["head"])
    with torch.random.fork_rng(devices=[]):
        network = build(name, len(labels), in_channels=len(bands), head=head)
    if problem := key_mismatch(network.state_dict(), tensors):
        raise WeightsError(f"it does not hold {name} with {len(labels)} labels and {len(bands)} bands: {problem}")
    network.load_state_dict(tensors, strict=True)
    thresholds = tuple(float(value) for value in metadata["thresholds"])
    if len(thresholds) != len(labels):
        raise WeightsError(f"it has {len(labels)} labels but {len(thresholds)} thresholds")
    return TrainedClassifier(
        name=name,
        head=head,
        labels=labels,
        bands=bands,
        mean=tuple(float(value) for value in metadata["mean"]),
        std=tuple(float(value) for value in metadata["std"]),
        seed=int(metadata["seed"]),
        network=network.eval(),
        sr=dict(metadata["sr"]),
        thresholds=thresholds,
    )


def sha256(path: str | Path) -> str:
    """Return the SHA-256 of a file, 64 hex digits."""
    with Path(path).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
