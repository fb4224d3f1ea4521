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

from classifiers.reliability.clusters import DEFAULTS, ClusterSettings, MapClusters
from classifiers.reliability.model import OUTCOMES, Reliability
from infra.errors import WeightsError

FORMAT = 1
"""Version of the metadata; others are refused."""

_METADATA_KEY = "superscene"
_ARRAYS = ("mean", "components", "landmarks", "of_landmarks", "counts", "prototypes")


def to_bytes(fitted: Mapping[str, Reliability]) -> bytes:
    """Return the content of a file of several fits: arrays and JSON; equal fits give equal bytes.

    Args:
        fitted: By label; one that is pooled over all labels is called "".
    """
    tensors: dict[str, NDArray[np.generic]] = {}
    entries: list[dict[str, object]] = []
    for i, (label, item) in enumerate(sorted(fitted.items())):
        c = item.clusters
        arrays = (c.mean, c.components, c.landmarks, c.of_landmarks, item.counts, item.prototypes)
        for name, values in zip(_ARRAYS, arrays, strict=True):
            tensors[f"{i}.{name}"] = np.ascontiguousarray(values)
        entries.append(
            {
                "label": label,
                "settings": asdict(item.settings),
                "threshold": item.threshold,
                "maps_of": dict(item.maps_of),
            }
        )
    about = {"format": FORMAT, "fitted": entries, "sha256": _digest(entries, tensors)}
    # One metadata key only: the format leaves the order of several to chance.
    return bytes(safetensors.numpy.save(tensors, {_METADATA_KEY: _json(about)}))


def from_bytes(content: bytes) -> dict[str, Reliability]:
    """Return the fits of a file by label; one that is pooled over all labels is called "".

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


def _digest(entries: object, tensors: Mapping[str, NDArray[Any]]) -> str:
    found = hashlib.sha256(_json(entries).encode())
    for name in sorted(tensors):
        found.update(np.ascontiguousarray(tensors[name]).data)
    return found.hexdigest()


def _about(content: bytes) -> dict[str, Any]:
    length = int.from_bytes(content[:8], "little")
    about: dict[str, Any] = json.loads(json.loads(content[8 : 8 + length])["__metadata__"][_METADATA_KEY])
    if about["format"] != FORMAT:
        raise WeightsError(f"a reliability file of format {about['format']}, this version reads {FORMAT}: fit it anew")
    return about


def _restored(about: Mapping[str, Any], tensors: Mapping[str, NDArray[Any]]) -> dict[str, Reliability]:
    """Return what a file's JSON and arrays say; any built-in error where they are not what `to_bytes` writes."""
    entries: list[dict[str, Any]] = about["fitted"]
    if about["sha256"] != _digest(entries, tensors):
        raise ValueError("its hash is another")
    expected = {f"{i}.{name}" for i in range(len(entries)) for name in _ARRAYS}
    if tensors.keys() != expected:
        raise KeyError(f"arrays {sorted(tensors.keys() ^ expected)} are missing, or too many")
    fitted: dict[str, Reliability] = {}
    for i, entry in enumerate(entries):
        label, maps_of = entry["label"], entry["maps_of"]
        if not isinstance(label, str) or label in fitted or not isinstance(maps_of, dict):
            raise TypeError(f"the fit of label {label!r} has no name of its own, or no maps")
        settings = _settings(entry["settings"])
        arrays = {name: tensors[f"{i}.{name}"] for name in _ARRAYS}
        _check_arrays(arrays)
        counts, prototypes = arrays.pop("counts"), arrays.pop("prototypes")
        clusters = MapClusters(size=prototypes.shape[1:], neighbours=settings.neighbours, **arrays)
        fitted[label] = Reliability(clusters, counts, prototypes, settings, float(entry["threshold"]), maps_of)
    return fitted


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
