"""The weight file of a fitted network: half precision, with where it comes from written inside."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from infra.errors import WeightsError

METADATA_KEY = "superscene"
"""Key of the JSON text in the file's metadata."""


def to_bytes(state: Mapping[str, Tensor], provenance: Mapping[str, Any]) -> bytes:
    """Return the content of a weight file; equal weights and provenance give equal bytes.

    Args:
        state: Parameters by name; floating-point ones are rounded to float16.
        provenance: Where they come from: any JSON object.

    Raises:
        WeightsError: A parameter has no finite float16 value.
    """
    tensors = {}
    for name, value in sorted(state.items()):
        tensors[name] = (value.half() if value.is_floating_point() else value).contiguous()
        if not torch.isfinite(tensors[name]).all():
            raise WeightsError(f"{name} of the fitted network has values that float16 cannot hold: train it anew")
    # one metadata key only: the format leaves the order of several to chance
    return save(tensors, {METADATA_KEY: json.dumps(provenance, sort_keys=True, allow_nan=False)})


def provenance(path: str | Path) -> dict[str, Any]:
    """Return where the weights of a file come from; empty for a file that does not say.

    Raises:
        WeightsError: There is no such file, or it is no safetensors file.
    """
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
        found = json.loads(metadata.get(METADATA_KEY, "{}"))
    except (OSError, SafetensorError, ValueError, RecursionError) as error:
        raise WeightsError(f"{path} cannot be read as a safetensors file: {error}") from error
    if not isinstance(found, dict):
        raise WeightsError(f"{path}: its provenance is {type(found).__name__}, where a JSON object is needed")
    return found
