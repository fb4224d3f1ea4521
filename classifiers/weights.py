"""Weight files of classifiers: read safely, and compared with the network they are meant for."""

import pickle
from collections.abc import Mapping
from pathlib import Path

import safetensors.torch
import torch
from torch import Tensor

from infra.errors import WeightsError

VISION_ENCODER = "model.vision_encoder."
"""Prefix of every parameter in the published BigEarthNet v2 checkpoints; see `classifiers.published`."""


def read_tensors(path: str | Path) -> dict[str, Tensor]:
    """Return the tensors of a weight file, on the CPU, in the file's own dtypes.

    Args:
        path: A `.safetensors` file, or a PyTorch file that holds a table of tensors at its top or under `state_dict`.

    Raises:
        WeightsError: There is no such file, it is damaged, or it holds more than tensors (and so might run code).
    """
    path = Path(path)
    if not path.is_file():
        raise WeightsError(f"no weight file at {path}")
    try:
        if path.suffix == ".safetensors":
            return safetensors.torch.load_file(path)
        loaded = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:  # whose own words recommend to load it all the same
        raise WeightsError(
            f"{path} cannot be read as weights: it is damaged, or holds Python objects beside tensors, which are not "
            "loaded because they may run code. Save the state_dict alone"
        ) from error
    except Exception as error:  # unpicklers raise whatever the bytes lead them to
        raise WeightsError(f"{path} cannot be read as weights: {' '.join(str(error).split())}") from error
    if isinstance(loaded, dict) and isinstance(loaded.get("state_dict"), dict):
        loaded = loaded["state_dict"]
    if not isinstance(loaded, dict) or not all(isinstance(value, Tensor) for value in loaded.values()):
        raise WeightsError(f"{path} holds no table of tensors, at its top or under 'state_dict'")
    return {str(key): value for key, value in loaded.items()}


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
