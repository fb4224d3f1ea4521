from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from infra.object_store import ObjectPath
from infra.parts import write_parquet
from infra.tables import SCHEMA_VERSION, hive_folder, optional, publish, publish_parts, publishing, read_table, required
from tests.infra.s3_server import S3Server

SMALL = pa.schema(
    [
        required("name", pa.string(), "Name", "by hand"),
        optional("value", pa.float32(), "Value", "by hand", "1"),
    ]
)


def small(*rows: tuple[str, float | None]) -> pa.Table:
    return pa.table({"name": [name for name, _ in rows], "value": pa.array([v for _, v in rows], pa.float64())})


def test_rows_are_sorted_and_cast_and_replace_what_was_there(tmp_path: Path) -> None:
    publish(tmp_path, small(("old", 1), ("older", 2)), SMALL, ["name"])
    publish(tmp_path, small(("b", 0.1), ("a", None), ("c", 2)), SMALL, ["name"])
    (path,) = tmp_path.iterdir()
    table = pq.ParquetFile(path).read()
    assert table.schema.types == [pa.string(), pa.float32()]
    assert table.to_pylist() == [
        {"name": "a", "value": None},
        {"name": "b", "value": float(np.float32(0.1))},
        {"name": "c", "value": 2.0},
    ]
    assert not table.schema.field("name").nullable


def test_the_order_of_the_rows_changes_no_byte(tmp_path: Path) -> None:
    rows = [(f"{i:03d}", i / 3) for i in range(500)]
    publish(tmp_path / "a", small(*rows), SMALL, ["name"])
    shuffled = [rows[i] for i in np.random.default_rng(0).permutation(500)]
    pieces = [small(*shuffled[:123]), small(*shuffled[123:])]
    publish(tmp_path / "b", pa.concat_tables(pieces), SMALL, ["name"])
    assert (tmp_path / "a" / "data-00000.parquet").read_bytes() == (tmp_path / "b" / "data-00000.parquet").read_bytes()


def test_several_keys_sort_in_their_order(tmp_path: Path) -> None:
    rows = [("b", 1.0), ("a", 2.0), ("b", 0.0), ("a", 1.0)]
    publish(tmp_path, small(*rows), SMALL, ["name", "value"])
    assert [tuple(row.values()) for row in read_table(tmp_path).to_pylist()] == sorted(rows)


@pytest.mark.parametrize("complete", [True, False])
def test_the_files_say_whether_a_shard_is_missing(tmp_path: Path, complete: bool) -> None:
    publish(tmp_path, small(("a", 1)), SMALL, ["name"], complete=complete)
    metadata = pq.read_metadata(tmp_path / "data-00000.parquet").metadata or {}
    assert metadata[b"superscene.complete"] == (b"true" if complete else b"false")
    assert metadata[b"superscene.schema_version"] == SCHEMA_VERSION.encode()
    assert b"geo" not in metadata


def test_a_large_table_has_several_files_and_a_smaller_one_leaves_none_behind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(publishing, "ROWS_PER_FILE", 3)
    (tmp_path / "data-of-another-00000.parquet").touch()
    (tmp_path / "notes.txt").touch()
    rows = [(f"{i}", float(i)) for i in range(8)]

    def files() -> dict[str, int]:
        return {path.name: pq.read_metadata(path).num_rows for path in sorted(tmp_path.glob("data-0*"))}

    publish(tmp_path, small(*reversed(rows)), SMALL, ["name"])
    assert files() == {"data-00000.parquet": 3, "data-00001.parquet": 3, "data-00002.parquet": 2}
    frame = pd.concat(pd.read_parquet(path) for path in sorted(tmp_path.glob("data-0*")))
    assert frame["name"].tolist() == [name for name, _ in rows]
    publish(tmp_path, small(*rows[:6]), SMALL, ["name"])
    assert files() == {"data-00000.parquet": 3, "data-00001.parquet": 3}
    publish(tmp_path, small(), SMALL, ["name"])
    assert files() == {"data-00000.parquet": 0}
    assert {path.name for path in tmp_path.iterdir()} == {
        "data-00000.parquet",
        "data-of-another-00000.parquet",
        "notes.txt",
    }


def test_stems_of_one_folder_do_not_touch_one_another(tmp_path: Path) -> None:
    for stem in ("hat-abcdef01", "hat", "hat-abcdef02", "[hat]", "hat"):
        publish(tmp_path, small((stem, 1)), SMALL, ["name"], file_stem=stem)
    assert sorted(map(str, read_table(tmp_path)["name"].to_pylist())) == [
        "[hat]",
        "hat",
        "hat-abcdef01",
        "hat-abcdef02",
    ]


LONG = pa.schema(
    [
        required("name", pa.string(), "Name", "by hand"),
        optional("label", pa.string(), "Label, null for none", "by hand"),
        required("number", pa.int32(), "Number", "by hand", "count"),
        optional("value", pa.float64(), "Value", "by hand", "1"),
    ]
)


def write_long_parts(folder: Path, cuts: tuple[int, ...]) -> list[Path]:
    """120 rows in any order, names beyond ASCII, nulls; a part ends at each cut."""
    rng = np.random.default_rng(0)
    rows = [
        {"name": f"{'Aäz'[i % 3]}{i:03d}", "label": label, "number": i, "value": None if i % 7 == 0 else i / 4}
        for i in range(40)
        for label in ("b", None, "a")
    ]
    table = pa.Table.from_pylist([rows[i] for i in rng.permutation(len(rows))], LONG)
    paths = []
    for i, (start, stop) in enumerate(zip((0, *cuts), (*cuts, len(rows)), strict=True)):
        paths.append(folder / f"part-{i:05d}.parquet")
        write_parquet(paths[-1], table.slice(start, stop - start))
    return paths


@pytest.mark.parametrize("rows_per_file", [2_000_000, 50, 40])
@pytest.mark.parametrize("cuts", [(), (1, 1, 60, 119)])
def test_parts_are_published_as_all_their_rows_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cuts: tuple[int, ...], rows_per_file: int
) -> None:
    monkeypatch.setattr(publishing, "ROWS_PER_FILE", rows_per_file)
    monkeypatch.setattr(publishing, "_ROWS_PER_GROUP", 16)
    parts = write_long_parts(tmp_path / "parts", cuts)
    everything = pa.concat_tables(pq.ParquetFile(path).read() for path in parts)
    publish(tmp_path / "expected", everything, LONG, ["name", "label"], complete=False)
    publish(tmp_path / "found", everything, LONG, [], file_stem="other")
    for _ in range(2):
        publish_parts(tmp_path / "found", parts, LONG, ["name", "label"], complete=False)
        names = {path.name for path in (tmp_path / "expected").iterdir()}
        assert {path.name for path in (tmp_path / "found").iterdir()} - names == {
            path.name.replace("data", "other") for path in (tmp_path / "expected").iterdir()
        }
        for name in names:
            expected, found = (pq.ParquetFile(tmp_path / folder / name) for folder in ("expected", "found"))
            assert found.read().equals(expected.read())
            assert found.schema_arrow.equals(expected.schema_arrow)
            metadata = found.schema_arrow.metadata
            assert {**expected.schema_arrow.metadata, b"superscene.parts": metadata[b"superscene.parts"]} == metadata


def test_parts_that_are_published_are_not_published_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(publishing, "ROWS_PER_FILE", 50)
    parts, folder = write_long_parts(tmp_path / "parts", (30, 60)), tmp_path / "table"

    def written(n_parts: int, *, complete: bool = True) -> bool:
        before = {path: path.stat().st_ino for path in folder.glob("*")}
        said = publish_parts(folder, parts[:n_parts], LONG, ["name", "label"], complete=complete)
        kept = {path: path.stat().st_ino for path in folder.glob("*")} == before
        assert read_table(folder).num_rows == (0, 30, 60, 120)[n_parts]
        assert said != kept
        return said

    assert [written(3), written(3)] == [True, False]
    assert [written(2), written(2), written(3)] == [True, False, True]
    assert [written(3, complete=False), written(3, complete=False), written(3)] == [True, False, True]
    (folder / "data-00001.parquet").unlink()
    assert [written(3), written(3)] == [True, False]
    pq.write_table(LONG.empty_table(), folder / "data-00000.parquet")
    pq.write_table(LONG.empty_table(), folder / "data-00003.parquet")
    assert [written(3), written(3)] == [True, False]
    write_parquet(parts[0], pq.ParquetFile(parts[0]).read().slice(0, 30).sort_by("number"))
    assert written(3), "the part is another"
    assert [written(0), written(0)] == [True, False]


def test_parts_on_object_storage_are_published_as_on_a_disk(
    s3: S3Server, s3_folder: ObjectPath, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(publishing, "ROWS_PER_FILE", 50)
    files = []
    for place in (tmp_path, s3_folder):
        parts, folder = write_long_parts(place / "parts", (1, 60)), place / "config=a" / "table"
        assert publish_parts(folder, parts, LONG, ["name", "label"], file_stem="one")
        assert publish_parts(folder, parts, LONG, ["name", "label"])
        assert publish_parts(folder, parts[:2], LONG, ["name", "label"])
        files.append({path.name: path.read_bytes() for path in folder.iterdir()})
    assert files[0] == files[1]
    assert len(files[1]) == 3 + 2
    s3.requests.clear()
    assert not publish_parts(folder, parts[:2], LONG, ["name", "label"])
    assert s3.count("PUT") == s3.count("DELETE") == 0


def test_a_null_in_a_required_column_is_refused(tmp_path: Path) -> None:
    publish(tmp_path, small(("a", 1)), SMALL, ["name"])
    rows = pa.table({"name": pa.array([None], pa.string()), "value": [1.0]})
    with pytest.raises(ValueError, match="null"):
        publish(tmp_path, rows, SMALL, ["name"])
    assert read_table(tmp_path)["name"].to_pylist() == ["a"]


def test_an_absent_table_has_no_rows(tmp_path: Path) -> None:
    assert (read_table(tmp_path / "none").num_rows, read_table(tmp_path / "none").num_columns) == (0, 0)


def test_hive_columns_are_in_the_path_and_not_in_the_rows(tmp_path: Path) -> None:
    folder = hive_folder(tmp_path / "predictions", sr="hat", config="abcdef01")
    assert folder == tmp_path / "predictions" / "sr=hat" / "config=abcdef01"
    publish(folder, small(("a", 1)), SMALL, ["name"])
    assert read_table(folder).column_names == ["name", "value"]
    assert pd.read_parquet(tmp_path / "predictions").astype(object).to_dict("records") == [
        {"name": "a", "value": 1.0, "sr": "hat", "config": "abcdef01"}
    ]
