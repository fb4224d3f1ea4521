import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from infra import parts as parts_module
from infra.errors import TransientError
from infra.fingerprint import Json, fingerprint
from infra.object_store import ObjectPath
from infra.parts import StageParts, read_parts, recorded_configs, stage_parts, write_parquet
from infra.storage import StorePaths
from tests.infra.s3_server import Fault, S3Server


@pytest.fixture
def parts(tmp_path: Path) -> StageParts:
    return StageParts(StorePaths(tmp_path), "predict", "abcdef01")


def rows(*values: int) -> pa.Table:
    return pa.table({"a": pa.array(values, pa.int32()), "text": [str(value) for value in values]})


def test_a_shard_is_done_when_its_part_lies_there(parts: StageParts, tmp_path: Path) -> None:
    assert parts.done() == set()
    parts.write(3, rows(1, 2))
    parts.write(123456, rows())
    assert sorted(path.name for path in (tmp_path / "work" / "predict" / "abcdef01").iterdir()) == [
        "part-00003.parquet",
        "part-123456.parquet",
    ]
    assert parts.done() == {3, 123456}
    assert [parts.is_done(shard) for shard in (3, 4, 123456)] == [True, False, True]
    assert StageParts(parts.paths, "predict", "abcdef02").done() == set()
    assert StageParts(parts.paths, "explain", "abcdef01").done() == set()
    parts.path(3).unlink()
    assert parts.done() == {123456}


def test_rows_come_back_and_other_libraries_read_them(parts: StageParts) -> None:
    parts.write(0, rows(1, 2), {"quarantine": pa.table({"path": ["x"]})})
    parts.write(1, rows(3))
    assert parts.read(0).to_pylist() == [{"a": 1, "text": "1"}, {"a": 2, "text": "2"}]
    assert parts.read_side("quarantine", 0).to_pylist() == [{"path": "x"}]
    assert read_parts(parts, [1, 0])["a"].to_pylist() == [3, 1, 2]
    pd.testing.assert_frame_equal(
        pd.read_parquet(parts.path(0)), pd.DataFrame({"a": np.array([1, 2], "int32"), "text": ["1", "2"]})
    )


def test_columns_do_not_come_out_of_folder_names(tmp_path: Path) -> None:
    parts = StageParts(StorePaths(tmp_path / "sr=hat"), "predict", "abcdef01")
    parts.write(0, rows(1))
    assert parts.read(0).column_names == ["a", "text"]


@pytest.mark.parametrize("killed_at", ["side/part", "predict/abcdef01/part"])
def test_a_shard_whose_writer_dies_half_way_is_not_done(
    parts: StageParts, monkeypatch: pytest.MonkeyPatch, killed_at: str
) -> None:
    written: list[str] = []

    def until_killed(path: Path, table: pa.Table) -> None:
        if killed_at in str(path):
            raise KeyboardInterrupt
        write_parquet(path, table)
        written.append(str(path.relative_to(parts.folder)))

    monkeypatch.setattr(parts_module, "write_parquet", until_killed)
    with pytest.raises(KeyboardInterrupt):
        parts.write(7, rows(1), {"before": rows(2), "side": rows(3)})
    assert parts.done() == set()
    assert written == [f"{table}/part-00007.parquet" for table in ("before", "side")][: 1 if "side" in killed_at else 2]
    monkeypatch.undo()
    parts.write(7, rows(1), {"before": rows(2), "side": rows(3)})
    assert parts.done() == {7}


def test_the_part_is_the_last_to_appear(parts: StageParts, monkeypatch: pytest.MonkeyPatch) -> None:
    order: list[str] = []

    def note(path: Path, table: pa.Table) -> None:
        write_parquet(path, table)
        order.append(path.parent.name)

    monkeypatch.setattr(parts_module, "write_parquet", note)
    parts.write(0, rows(1), {"z": rows(2), "a": rows(3)})
    assert order == ["z", "a", "abcdef01"]


def test_the_same_rows_give_the_same_bytes(parts: StageParts, tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    table = pa.table({"a": pa.array(random.random(10_000)), "b": random.integers(0, 9, 10_000).astype(str).tolist()})
    parts.write(0, table)
    first = parts.path(0).read_bytes()
    parts.write(0, table)
    assert parts.path(0).read_bytes() == first
    in_pieces = pa.concat_tables([table.slice(0, 1), table.slice(1, 7000), table.slice(7001)])
    parts.write(1, in_pieces.combine_chunks())
    assert parts.path(1).read_bytes() == first


def test_files_are_zstd_with_checksums_that_find_damage(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    values = np.random.default_rng(0).random(1000)
    write_parquet(path, pa.table({"a": pa.array(values)}), row_group_size=400)
    metadata = pq.ParquetFile(path).metadata
    assert [metadata.row_group(i).num_rows for i in range(metadata.num_row_groups)] == [400, 400, 200]
    assert metadata.row_group(0).column(0).compression == "ZSTD"
    damaged = bytearray(path.read_bytes())
    damaged[1000] ^= 1
    path.write_bytes(damaged)
    with pytest.raises(OSError, match="CRC"):
        pq.read_table(path, page_checksum_verification=True)


def test_a_failure_is_noted_until_the_shard_succeeds(parts: StageParts) -> None:
    assert parts.failures() == {}
    parts.write_failure(4, 3, "the process died: exit code 3\nwith “quotes”")
    parts.write_failure(2, 1, "ValueError: x")
    parts.write_failure(2, 1, "ValueError: y")
    assert parts.failures() == {2: "ValueError: y", 4: "the process died: exit code 3\nwith “quotes”"}
    assert parts.done() == set()
    parts.write(4, rows(1))
    assert parts.failures() == {2: "ValueError: y"}
    assert parts.done() == {4}
    assert [path.name for path in parts.folder.glob("failed*")] == ["failed-00002.json"]


def test_a_config_is_written_down_once(tmp_path: Path) -> None:
    paths = StorePaths(tmp_path)
    determines: dict[str, Json] = {"weights": "ab", "labels": ["b", "a"]}
    parts = stage_parts(paths, "predict", determines)
    whole: dict[str, Json] = {"stage": "predict", "weights": "ab", "labels": ["b", "a"]}
    assert parts == StageParts(paths, "predict", fingerprint(whole))
    stamp = (tmp_path / "work" / "configs" / f"{parts.config}.json").stat().st_mtime_ns
    assert stage_parts(paths, "predict", dict(reversed(determines.items()))) == parts
    assert (tmp_path / "work" / "configs" / f"{parts.config}.json").stat().st_mtime_ns == stamp
    others: list[tuple[str, dict[str, Any]]] = [
        ("explain", determines),
        ("predict", {**determines, "weights": "cd"}),
        ("predict", {**determines, "labels": ["a", "b"]}),
    ]
    configs = {parts.config} | {stage_parts(paths, stage, values).config for stage, values in others}
    assert len(configs) == 4
    recorded = {row["config"]: row for row in recorded_configs(paths)}
    assert recorded.keys() == configs
    assert recorded[parts.config]["stage"] == "predict"
    assert json.loads(recorded[parts.config]["json"]) == whole


def test_a_store_without_a_config_has_no_record(tmp_path: Path) -> None:
    assert recorded_configs(StorePaths(tmp_path)) == []


def test_on_object_storage_a_shard_is_done_by_its_last_request(s3: S3Server, s3_folder: ObjectPath) -> None:
    parts = stage_parts(StorePaths(s3_folder), "predict", {"a": 1})
    assert [record["config"] for record in recorded_configs(parts.paths)] == [parts.config]
    assert parts.done() == set()
    parts.write_failure(3, 2, "it broke")
    assert parts.failures() == {3: "it broke"}
    s3.requests.clear()
    parts.write(3, rows(1, 2), {"before": rows(2), "side": rows(3)})
    written = [line.rpartition("/")[0].rpartition("/")[2] for line in s3.requests if line.startswith("PUT")]
    assert written == ["before", "side", parts.config]
    assert parts.failures() == {}
    parts.write(4, rows(3))
    assert parts.done() == {3, 4}
    assert parts.is_done(3)
    assert not parts.is_done(5)
    assert parts.read_side("side", 3).equals(rows(3))
    s3.faults.append(Fault("status", 503, times=3))
    assert read_parts(parts, [4, 3])["a"].to_pylist() == [3, 1, 2]


def test_a_part_that_could_not_be_put_is_not_done(s3: S3Server, s3_folder: ObjectPath) -> None:
    parts = StageParts(StorePaths(s3_folder), "predict", "abcdef01")
    s3.faults.append(Fault("status", 503, method="PUT", key="abcdef01/part-", times=1000))
    with pytest.raises(TransientError):
        parts.write(0, rows(1), {"side": rows(2)})
    assert parts.done() == set()
    assert parts.read_side("side", 0).equals(rows(2))
