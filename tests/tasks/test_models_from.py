from datetime import UTC, datetime, timedelta
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from infra.errors import ConfigError
from infra.parts import StageParts
from infra.storage import StorePaths
from tasks.branch import Branch, make_branch
from tasks.models_from import borrowed_checkpoints
from tasks.run_record import RunRecord
from tests.tasks.small_store import inputs_of, untrained

START = datetime(2026, 11, 1, tzinfo=UTC)


@pytest.fixture
def source(tmp_path: Path) -> StorePaths:
    return StorePaths(tmp_path / "source")


@pytest.fixture
def branch(tmp_path: Path) -> Branch:
    return make_branch(inputs_of(StageParts(StorePaths(tmp_path / "own"), "ingest", "a1b2c3d4")), "none", None)


def publish_run(source: StorePaths, hours: int, *configs: str) -> None:
    RunRecord(source, "{}", START + timedelta(hours=hours), configs=list(configs)).publish()


def write(source: StorePaths, branch: Branch, sr: str, config: str, seed: int) -> Path:
    return untrained(branch, source.checkpoint(sr, "resnet18", config, seed), seed)


def test_the_checkpoints_of_the_last_run_that_has_them(source: StorePaths, branch: Branch) -> None:
    write(source, branch, "none", "a0000001", 0)
    wanted = {seed: write(source, branch, "none", "a0000002", seed) for seed in (10, 2)}
    write(source, branch, "none", "a0000003", 0)  # of a run that was never published
    write(source, branch, "bicubic", "a0000004", 0)
    write(source, branch, "backbone", "a0000005", 0)
    publish_run(source, 1, "a0000001", "b0000000")
    publish_run(source, 3, "a0000002", "a0000004", "a0000005")
    publish_run(source, 2, "a0000001")
    publish_run(source, 4, "b0000000")
    found = borrowed_checkpoints(source, branch, "resnet18")
    assert found == wanted
    assert list(found) == [2, 10]


def test_what_is_not_there_is_named(source: StorePaths, branch: Branch) -> None:
    with pytest.raises(ConfigError, match=r"source has no resnet18 for the none branch; it has no trained classifier"):
        borrowed_checkpoints(source, branch, "resnet18")
    write(source, branch, "bicubic", "a0000004", 0)
    write(source, branch, "none", "a0000001", 0)
    publish_run(source, 1, "a0000004")
    with pytest.raises(ConfigError, match="no resnet50 for the none branch; it has bicubic-resnet18, none-resnet18"):
        borrowed_checkpoints(source, branch, "resnet50")
    with pytest.raises(ConfigError, match="no resnet18 for the none branch"):  # never published
        borrowed_checkpoints(source, branch, "resnet18")


def test_a_damaged_store_of_others_is_one_sentence(source: StorePaths, branch: Branch) -> None:
    write(source, branch, "none", "a0000001", 0)
    publish_run(source, 1, "a0000001")
    (run,) = source.table("runs").glob("run-*.parquet")
    whole = run.read_bytes()
    for content in (b"", whole[:100], whole[:-30] + bytes(30)):
        run.write_bytes(content)
        with pytest.raises(ConfigError, match=r"runs of .*source cannot be read"):
            borrowed_checkpoints(source, branch, "resnet18")
    for columns in ({"configs": [None]}, {"other": [1]}, {"configs": pa.array([], pa.list_(pa.string()))}):
        pq.write_table(pa.table(columns), run)
        with pytest.raises(ConfigError, match=r"models_from: "):
            borrowed_checkpoints(source, branch, "resnet18")


def test_what_another_store_says_becomes_no_path(source: StorePaths, branch: Branch, tmp_path: Path) -> None:
    untrained(branch, tmp_path / "outside" / "seed-0.safetensors", 0)
    (source.root / "checkpoints").mkdir(parents=True)
    publish_run(source, 1, "../outside", str(tmp_path / "outside"), "..", "*")
    with pytest.raises(ConfigError, match="it has no trained classifier"):
        borrowed_checkpoints(source, branch, "resnet18")
