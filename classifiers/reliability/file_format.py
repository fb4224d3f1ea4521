"""The file of fitted reliability scores: arrays and JSON in the safetensors format, with a hash of both."""

import hashlib
import json
import operator
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

import numpy as np
import safetensors
import safetensors.numpy
from numpy.typing import NDArray

from classifiers.cluster_settings import ClusterSettings
from classifiers.reliability.clusters import DEFAULTS, MapClusters
from classifiers.reliability.model import OUTCOMES, FittedReliability, Reliability
from infra.errors import WeightsError

FORMAT = 2
"""Version of the metadata; others are refused."""

_METADATA_KEY = "superscene"
_KEYS = frozenset(
    {"format", "settings", "threshold", "pooled", "maps_of", "labels", "why_not", "sha256"}
)  # of the metadata
_ARRAYS = ("mean", "components", "landmarks", "of_landmarks", "counts", "prototypes")


def to_bytes(fitted: FittedReliability) -> bytes:
    """Return the content of a file of fits: arrays and JSON; equal fits give equal bytes."""
    tensors: dict[str, NDArray[np.generic]] = {}
    for i, (_, item) in enumerate(sorted(fitted.by_label.items())):
        c = item.clusters
        arrays = (c.mean, c.components, c.landmarks, c.of_landmarks, item.counts, item.prototypes)
        for name, values in zip(_ARRAYS, arrays, strict=True):
            tensors[f"{i}.{name}"] = np.ascontiguousarray(values)
    about: dict[str, object] = {
        "format": FORMAT,
        "settings": asdict(fitted.settings),
        "threshold": fitted.threshold,
        "pooled": fitted.pooled,
        "maps_of": dict(fitted.maps_of),
        "labels": sorted(fitted.by_label),
        "why_not": dict(fitted.why_not),
    }
    # One metadata key only: the format leaves the order of several to chance.
    text = _json({**about, "sha256": _digest(about, tensors)})
    return bytes(safetensors.numpy.save(tensors, {_METADATA_KEY: text}))


def from_bytes(content: bytes) -> FittedReliability:
    """Return the fits of a file.

    Raises:
        WeightsError: The content is damaged, something else, or of another format.
    """
    try:
        about = _about(content)  # before the arrays: those of a newer format may be of kinds unknown here
        return _restored(about, safetensors.numpy.load(content))
    except WeightsError:
        raise
    except (
        safetensors.SafetensorError,
        AttributeError,
        LookupError,
        OverflowError,
        RecursionError,  # JSON, nested a thousand times
        TypeError,
        ValueError,
    ) as error:
        raise WeightsError(f"this file holds no reliability: it is damaged, or something else ({error!r})") from error


def _json(value: object) -> str:
    return json.dumps(value, sort_keys=True, allow_nan=False, separators=(",", ":"))


def _digest(about: Mapping[str, object], tensors: Mapping[str, NDArray[Any]]) -> str:
    """Return the hash of a file's JSON, but for the hash itself, and of its arrays."""
    found = hashlib.sha256(_json({name: value for name, value in about.items() if name != "sha256"}).encode())
    for name in sorted(tensors):
        found.update(np.ascontiguousarray(tensors[name]).data)
    return found.hexdigest()


def _about(content: bytes) -> dict[str, Any]:
    length = int.from_bytes(content[:8], "little")
    about: dict[str, Any] = json.loads(json.loads(content[8 : 8 + length])["__metadata__"][_METADATA_KEY])
    if about["format"] != FORMAT:
        raise WeightsError(f"a reliability file of format {about['format']}, this version reads {FORMAT}: fit it anew")
    return about


def _restored(about: Mapping[str, Any], tensors: Mapping[str, NDArray[Any]]) -> FittedReliability:
    """Return what a file's JSON and arrays say; any built-in error where they are not what `to_bytes` writes."""
    if about.keys() != _KEYS:
        raise KeyError(f"{sorted(about.keys() ^ _KEYS)} are missing, or too many")
    if about["sha256"] != _digest(about, tensors):
        raise ValueError("its hash is another")
    labels, why_not = about["labels"], about["why_not"]
    if not isinstance(labels, list) or not isinstance(why_not, dict) or not isinstance(about["maps_of"], dict):
        raise TypeError("labels, reasons or maps are of another kind")
    if not all(isinstance(text, str) for text in (*labels, *why_not.values())) or len(set(labels)) < len(labels):
        raise TypeError(f"the fits of labels {labels!r} have no names of their own, or reasons are no words")
    if not isinstance(about["pooled"], bool):
        raise TypeError(f"pooled is {about['pooled']!r}")
    expected = {f"{i}.{name}" for i in range(len(labels)) for name in _ARRAYS}
    if tensors.keys() != expected:
        raise KeyError(f"arrays {sorted(tensors.keys() ^ expected)} are missing, or too many")
    settings, threshold = _settings(about["settings"]), float(about["threshold"])
    fitted: dict[str, Reliability] = {}
    for i, label in enumerate(labels):
        arrays = {name: tensors[f"{i}.{name}"] for name in _ARRAYS}
        _check_arrays(arrays)
        counts, prototypes = arrays.pop("counts"), arrays.pop("prototypes")
        clusters = MapClusters(size=prototypes.shape[1:], neighbours=settings.neighbours, **arrays)
        fitted[label] = Reliability(clusters, counts, prototypes, threshold)
    return FittedReliability(settings, threshold, about["pooled"], about["maps_of"], fitted, why_not)


def _settings(fields: Mapping[str, Any]) -> ClusterSettings:
    if fields.keys() != asdict(DEFAULTS).keys():
        raise KeyError(f"settings {sorted(fields.keys() ^ asdict(DEFAULTS).keys())} are missing, or too many")
    numbers = {name: operator.index(value) for name, value in fields.items() if name != "kernel_scale"}
    return ClusterSettings(kernel_scale=float(fields["kernel_scale"]), **numbers)


def _check_arrays(arrays: Mapping[str, NDArray[Any]]) -> None:
    q, height, width = arrays["prototypes"].shape
    m, p = arrays["landmarks"].shape
    for name, kind, shape in (
        ("mean", np.float32, (height * width,)),
        ("components", np.float32, (p, height * width)),
        ("landmarks", np.float32, (m, p)),
        ("of_landmarks", np.int32, (m,)),
        ("counts", np.int64, (q, len(OUTCOMES))),
        ("prototypes", np.float32, (q, height, width)),
    ):
        values = arrays[name]
        if values.dtype != kind or values.shape != shape:
            raise TypeError(f"{name} is {values.dtype} {values.shape}, not {np.dtype(kind)} {shape}")
        if name != "prototypes" and not np.isfinite(values).all():  # those of empty clusters are NaN
            raise ValueError(f"{name} is not finite")
    if arrays["of_landmarks"].min() < 0 or arrays["of_landmarks"].max() != q - 1 or arrays["counts"].min() < 0:
        raise ValueError(f"the landmarks are not of {q} clusters, or counts are below 0")
