"""A small archive and a store made of an odd version of it; both are read only."""

import os
import shutil
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from infra.archives.synthetic import write_synthetic_archive
from infra.storage import StorePaths
from tasks.ingest import publish_archive
from tasks.plan import Plan, make_plan
from tests.tasks.small_store import SHARD_SIZE, band_file, ingest, metadata, v2


@pytest.fixture(scope="session")
def archive_root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """24 patches, one of them flagged: 12 train, 6 validation, 6 test."""
    root = tmp_path_factory.mktemp("synthetic") / "archive"
    write_synthetic_archive(root, 24)
    shutil.rmtree(root / "HighRes")
    return root


@pytest.fixture
def archive_copy(archive_root: Path, tmp_path: Path) -> Path:
    return shutil.copytree(archive_root, tmp_path / "archive")


@pytest.fixture(scope="session")
def store(archive_root: Path, tmp_path_factory: pytest.TempPathFactory) -> Plan:
    """Shards 0 and 1 train, 2 validation, 3 test; one clean patch has no labels, and two rows of shard 0 are holes."""
    folder = tmp_path_factory.mktemp("store")
    root = shutil.copytree(archive_root, folder / "archive")
    clean = pq.ParquetFile(root / "metadata.parquet").read()
    rows = clean.to_pylist()
    next(row for row in rows if row["split"] == "train")["labels"] = None
    pq.write_table(pa.Table.from_pylist(rows, clean.schema), root / "metadata.parquet")
    sound = {row["patch_id"] for row in rows if row["labels"] is not None}
    trial = make_plan(v2(root), StorePaths(folder / "trial"), "bigearthnet-v2", SHARD_SIZE)
    (planned,) = (trial.paths.work / "plan").rglob("*.parquet")
    first = pq.ParquetFile(planned).read().slice(0, SHARD_SIZE).to_pylist()
    for row in [row for row in first if row["patch_id"] in sound][:4:3]:
        os.truncate(band_file(root, row["patch_id"]), 1000)
    plan = ingest(v2(root), folder / "store")
    counts = publish_archive(plan)
    assert (counts.patches, counts.quarantined) == (22, 2)
    assert sum(row["labels"] is None for row in metadata(root)) == 1
    return plan
