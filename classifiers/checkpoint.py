"""A trained classifier as one file: weights, label order, bands and their statistics, thresholds, provenance."""

import contextlib
import copy
import hashlib
import json
import math
import os
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal, get_args

import numpy as np
import safetensors
import safetensors.torch
import torch
from numpy.typing import NDArray
from torch import Tensor

from classifiers.heads import output_layer
from classifiers.network import Classifier
from classifiers.registry import build
from classifiers.standardise import Standardiser
from classifiers.weights import key_mismatch
from infra.errors import ConfigError, PipelineError, ShapeError, WeightsError

Activation = Literal["sigmoid", "softmax"]
"""What turns logits into probabilities: sigmoid for several labels a patch, softmax for one."""

FORMAT = 2
"""Version of the metadata. 1, which did not name the activation (always sigmoid), is read too; others are refused."""

_METADATA_KEY = "superscene"
# What metadata of any kind lead to; JSON may be nested a thousand times, or say Infinity where a seed belongs.
_CONTRADICTIONS = (AttributeError, LookupError, OverflowError, RecursionError, TypeError, ValueError)


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
    activation: Activation = "sigmoid"
    """What turns the logits into probabilities."""

    def __post_init__(self) -> None:
        if not self.thresholds:
            object.__setattr__(self, "thresholds", (0.5,) * len(self.labels))
        if not self.labels or len(set(self.labels)) != len(self.labels):
            raise ShapeError(f"a classifier needs label names, each once, got {self.labels}")
        if len(self.thresholds) != len(self.labels) or not all(math.isfinite(value) for value in self.thresholds):
            raise ShapeError(f"{len(self.labels)} labels need as many finite thresholds, got {self.thresholds}")
        if self.activation not in get_args(Activation):
            raise ConfigError(
                f"no activation {self.activation!r} of logits: choose one of {', '.join(get_args(Activation))}"
            )
        _ = self.standardiser  # checks the bands

    @property
    def standardiser(self) -> Standardiser:
        """The standardisation the network expects its input to have had."""
        return Standardiser(self.bands, self.mean, self.std)

    def probabilities(self, logits: Tensor) -> Tensor:
        """Return the probabilities of logits, (N, L) to (N, L), 0 to 1."""
        return logits.softmax(dim=1) if self.activation == "softmax" else logits.sigmoid()

    def decisions(self, probs: NDArray[np.float32]) -> NDArray[np.bool_]:
        """Return which labels are predicted: those at their threshold or above, or with softmax the likeliest.

        Args:
            probs: (N, L), of `probabilities`; thresholds are compared in float32.
        """
        if self.activation == "softmax":
            return np.asarray(np.arange(len(self.labels)) == probs.argmax(axis=1)[:, None])
        return np.asarray(probs >= np.array(self.thresholds, np.float32))

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
            "activation": self.activation,
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


def is_checkpoint(path: str | Path) -> bool:
    """Return whether a file is a checkpoint of this project, told by its header alone.

    Raises:
        WeightsError: There is no such file.
    """
    if not Path(path).is_file():
        raise WeightsError(f"no checkpoint at {path}")
    try:
        with safetensors.safe_open(path, framework="pt", device="cpu") as file:
            return _METADATA_KEY in (file.metadata() or {})
    except (safetensors.SafetensorError, OSError):
        return False


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
    except (PipelineError, *_CONTRADICTIONS) as error:
        reason = f"no {error} in its metadata" if type(error) is KeyError else str(error)
        raise WeightsError(f"{source} cannot be used: {reason}") from error


def _assemble(metadata: Mapping[str, object], tensors: Mapping[str, Tensor]) -> TrainedClassifier:
    if not isinstance(metadata, dict):
        raise WeightsError("its metadata is not a JSON object")
    if metadata["format"] not in {1, FORMAT}:
        raise WeightsError(f"its format is {metadata['format']}, this version reads 1 and {FORMAT}")
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
        activation="sigmoid" if metadata["format"] == 1 else metadata["activation"],
    )


def reorder_labels(trained: TrainedClassifier, labels: Sequence[str]) -> TrainedClassifier:
    """Return a classifier with the same labels in another order; its logits and thresholds move with their labels.

    Args:
        trained: The classifier; it stays as it is.
        labels: The names of its labels, each once, in the order wanted.

    Returns:
        A copy, on the same device and in the same mode.

    Raises:
        WeightsError: The classifier has other labels.
        ConfigError: Its head does not end with a linear layer.
    """
    if sorted(labels) != sorted(trained.labels):
        lacking = [label for label in labels if label not in trained.labels]
        beyond = [label for label in trained.labels if label not in labels]
        raise WeightsError(
            f"a classifier of {len(trained.labels)} labels cannot be brought into the order of {len(labels)} others: "
            f"it lacks {', '.join(lacking) or 'none'}; it alone has {', '.join(beyond) or 'none'}"
        )
    order = [trained.labels.index(label) for label in labels]
    network = copy.deepcopy(trained.network)
    layer = output_layer(network.head)
    with torch.no_grad():
        layer.weight.copy_(layer.weight[order])
        if layer.bias is not None:
            layer.bias.copy_(layer.bias[order])
    thresholds = tuple(trained.thresholds[index] for index in order)
    return replace(trained, labels=tuple(labels), thresholds=thresholds, network=network)


def sha256(path: str | Path) -> str:
    """Return the SHA-256 of a file, 64 hex digits."""
    with Path(path).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
