"""A model of a few hundred parameters in the table of SR models, with files as the real ones have them."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

import sr_models
from infra.weights_store import OfficialFile, sha256
from sr_models import ShippedWeights, SrSpec
from sr_models.basicsr_archs import srvgg_compact

NAME = "small"


def small_spec(official: OfficialFile, shipped: ShippedWeights | None = None) -> SrSpec:
    """Return the model's entry."""
    return SrSpec(
        title="a small SRVGGNetCompact",
        scale=4,
        architecture=srvgg_compact,
        parameters={"num_feat": 4, "num_conv": 1},
        paper="none",
        licence="CC0-1.0",
        dtypes=("float32",),
        needs_weights=True,
        official_file=official,
        shipped=shipped,
    )


def put_in_table(patch: pytest.MonkeyPatch, spec: SrSpec) -> None:
    """Add the model to the table while a test runs."""
    table = {**sr_models.SR_MODELS, NAME: spec}
    patch.setattr("sr_models.registry.SR_MODELS", table)
    patch.setattr("sr_models.SR_MODELS", table)


def small_file(path: Path, seed: int, features: int = 4) -> Path:
    """Write a weight file, `.pth` or `.safetensors`, half precision as shipped files are; other features do not fit."""
    torch.manual_seed(seed)
    state = {key: value.half() for key, value in srvgg_compact(num_feat=features, num_conv=1).state_dict().items()}
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".safetensors":
        save_file(state, path)
    else:
        torch.save({"params_ema": state}, path)
    return path


def shipped_with(path: Path) -> ShippedWeights:
    """Return an entry for a file that ships with the package; path may lie anywhere."""
    return ShippedWeights(str(path), sha256(path), "CC-BY-4.0", "trained by a test")
