"""The demo: a synthetic archive and a run small enough for a laptop."""

from pathlib import Path

from flows.config import RunConfig, validated
from flows.progress import terminal_progress
from infra.archives.synthetic import write_synthetic_archive

_SETTINGS = {
    "shard_size": 32,
    "sr": ["none", "bicubic", "srresnet"],
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


def demo_config(folder: Path, store: Path | None = None) -> RunConfig:
    """Return the demo's run: resnet18 trained once on the patches as they are, then a head for each branch."""
    archive = {"layout": "bigearthnet-v2", "root": str(folder / "archive")}
    enough = len(list((folder / "archive" / "BigEarthNet-S2").glob("*/*"))) >= _RELIABLE_FROM
    reliability = _RELIABILITY if enough else None
    return validated(
        {**_SETTINGS, "archive": archive, "store": str(store or folder / "store"), "reliability": reliability}, "demo"
    )
