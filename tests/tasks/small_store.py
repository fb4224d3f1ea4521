"""Small stores, made shard by shard without Ray."""

import shutil
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import torch

from classifiers import build
from classifiers.checkpoint import TrainedClassifier
from classifiers.standardise import from_archive_statistics
from infra.archives.inventory import Subset
from infra.archives.layouts import ArchiveOptions, open_archive
from infra.archives.model import BIGEARTHNET, Archive
from infra.bigearthnet.bands import RGB, stretch_max_dn
from infra.bigearthnet.classes import NAMES
from infra.parts import StageParts
from infra.storage import StorePaths
from tasks.branch import Branch, Inputs, make_branch
from tasks.ingest import ShardIngester
from tasks.plan import Plan, make_plan

MAX_DN = 3000
SHARD_SIZE = 8


def v2(root: Path, subset: Subset = "all") -> Archive:
    return open_archive("bigearthnet-v2", root, ArchiveOptions(include_flagged=True, subset=subset))


def ingest(archive: Archive, store: Path, shard_size: int = SHARD_SIZE, layout: str = "bigearthnet-v2") -> Plan:
    """Plan an archive and ingest the shards that are missing."""
    plan = make_plan(archive, StorePaths(store), layout, shard_size)
    missing = sorted(plan.shards.keys() - plan.parts.done())
    if missing:
        worker = ShardIngester(archive, plan.format, plan.parts)
        for shard in missing:
            worker.run(shard)
    return plan


def copied(plan: Plan, store: Path) -> Plan:
    """Return the plan of a copy of its store, parts of every stage included, files with their times."""
    shutil.copytree(plan.paths.root, store)
    paths = StorePaths(store)
    return replace(plan, paths=paths, parts=replace(plan.parts, paths=paths))


def snapshot(*folders: Path, without: Iterable[str] = ()) -> dict[Path, tuple[int, bytes]]:
    """Return the time and content of every file; `without` names files to leave out."""
    files = [path for folder in folders for path in sorted(folder.rglob("*")) if path.is_file()]
    return {path: (path.stat().st_mtime_ns, path.read_bytes()) for path in files if path.name not in without}


def branch_of(
    plan: Plan, sr: str = "none", weights: Path | None = None, batch_size: int = 5, bands: tuple[str, ...] = RGB
) -> Branch:
    inputs = Inputs(plan.parts, plan.format, bands, stretch_max_dn(bands, MAX_DN))
    return make_branch(inputs, sr, weights, batch_size=batch_size)


def inputs_of(ingest: StageParts, max_dn: int = MAX_DN) -> Inputs:
    """RGB of BigEarthNet, of an ingest that need not exist."""
    return Inputs(ingest, BIGEARTHNET, RGB, (max_dn,) * 3)


def untrained(branch: Branch, path: Path, seed: int = 0, **changes: Any) -> Path:
    """Write the checkpoint of a resnet18 that was trained by nobody."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = build("resnet18", len(NAMES), len(branch.bands)).eval()
        torch.nn.init.normal_(network.head.get_parameter("weight"), std=0.5)  # so that probabilities are far from 0.5
    moments = from_archive_statistics(branch.bands, branch.max_dn)
    trained = TrainedClassifier(
        "resnet18", "linear", NAMES, branch.bands, moments.mean, moments.std, seed, network, dict(branch.identity)
    )
    replace(trained, **changes).save(path)
    return path


def patch_ids(root: Path) -> list[str]:
    """Names of an archive's patches, flagged ones included, sorted."""
    return sorted(row["patch_id"] for row in metadata(root))


def metadata(root: Path) -> list[dict[str, Any]]:
    """Rows of both metadata tables of a v2 archive."""
    return [row for path in sorted(root.glob("metadata*.parquet")) for row in pq.ParquetFile(path).read().to_pylist()]


def band_file(root: Path, patch: str, band: str = "B03") -> Path:
    """One Sentinel-2 band's file of a v2 patch."""
    return root / "BigEarthNet-S2" / patch.rsplit("_", 2)[0] / patch / f"{patch}_{band}.tif"
