"""The demo: a synthetic archive and a run small enough for a laptop."""

from collections.abc import Sequence
from pathlib import Path

from flows.config import RunConfig, validated
from flows.progress import terminal_progress
from infra.archives.synthetic import write_synthetic_archive

_SETTINGS = {
    "shard_size": 32,
    "classifiers": ["resnet18"],
    "train": {
        "epochs": 25,
        "batch_size": 32,
        "lr": 2e-3,
        "backbone": "archive",
        "freeze_backbone": True,
    },
    "explain": {"methods": ["grad_cam", "grad_cam_pp", "eigen_cam", "hessian_ciam"]},
    "resources": {"batch_size": 8},
}
_SR = ("none", "bicubic", "srresnet")
_FEW_STEPS = {"steps": 4}
_RELIABILITY = {"pooled": True, "kernel_scale": 0.5}
_RELIABLE_FROM = 48
"""Patches from which on the validation split has enough samples for clusters."""


def write_demo_archive(folder: Path, patches: int) -> None:
    """Write the demo's archive; one that is there already is only completed."""
    write_archive(folder / "archive", patches, seed=0)


def write_archive(folder: Path, patches: int, seed: int) -> None:
    """Write a synthetic archive, with a bar.

    Raises:
        ConfigError: The folder holds something else.
        StoreError: It cannot be written.
    """
    tell = terminal_progress()
    tell("write archive", 0, patches, 0)
    write_synthetic_archive(folder, patches, seed, lambda done: tell("write archive", done, patches, done))


def demo_config(folder: Path, store: Path | None = None, further_sr: Sequence[str] = ()) -> RunConfig:
    """Return the demo's run: resnet18 trained once on the patches as they are, then a head for each branch.

    Args:
        folder: Where its archive is.
        store: Where its tables go; None: beside the archive.
        further_sr: SR models besides those that it has anyway; of SeeSR few steps.

    Raises:
        ConfigError: There is no such model, or it has no weights.
    """
    archive = {"layout": "bigearthnet-v2", "root": str(folder / "archive")}
    enough = len(list((folder / "archive" / "BigEarthNet-S2").glob("*/*"))) >= _RELIABLE_FROM
    reliability = _RELIABILITY if enough else None
    return validated(
        {
            **_SETTINGS,
            "archive": archive,
            "store": str(store or folder / "store"),
            "reliability": reliability,
            "sr": list(dict.fromkeys([*_SR, *further_sr])),
            "sr_options": {name: _FEW_STEPS for name in further_sr if name.startswith("seesr")},
        },
        "demo",
    )
