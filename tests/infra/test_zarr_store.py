import json
import signal
import subprocess
import sys
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import xarray as xr
import zarr
from numpy.typing import NDArray

from infra import zarr_store
from infra.archives.model import BIGEARTHNET
from infra.bigearthnet.bands import S1, S2_GROUPS
from infra.bigearthnet.classes import NAMES
from infra.errors import ConfigError, MisalignedWriteError, PipelineError, StoreError, TransientError
from infra.object_store import ObjectPath
from infra.storage import sweep_partials
from infra.zarr_store import ArraySpec, ShardedStore, archive_arrays, create_store, divisor
from tests.infra.s3_server import BUCKET, Fault, S3Server

PIXELS = ArraySpec(
    "pixels",
    ("band", "y", "x"),
    (2, 4, 4),
    "uint16",
    0,
    {"units": "DN", "gsd_m": 10},
    chunk=3,
    names=("B04", "B03"),
)
BLOCKS = ArraySpec("blocks", ("column",), (5,), "float32", -1.5, {}, zarr_shard=2)


def filled(n: int, seed: int = 0) -> NDArray[np.uint16]:
    return np.random.default_rng(seed).integers(0, 2**16, (n, 2, 4, 4), dtype=np.uint16)


@pytest.fixture
def store(tmp_path: Path) -> ShardedStore:
    create_store(tmp_path / "a.zarr", [PIXELS, BLOCKS], 6, 3, {"title": "test"})
    return ShardedStore(tmp_path / "a.zarr", writable=True)


def keys(store: ShardedStore, name: str) -> list[str]:
    folder = store.path / name / "c"
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


def test_zarr_reads_what_was_written(store: ShardedStore) -> None:
    values = [filled(6, seed) for seed in range(3)]
    for shard in (2, 0, 1):  # in any order
        store.write(shard, "pixels", values[shard])
        store.write(shard, "valid", np.array([True] * 5 + [False]))
    group: Any = zarr.open_group(store.path, mode="r")
    np.testing.assert_array_equal(group["pixels"][:], np.concatenate(values))
    assert group["valid"][:].sum() == 15
    assert dict(group.attrs) == {"title": "test", "shard_size": 6}
    np.testing.assert_array_equal(store.read(1, "pixels"), values[1])
    np.testing.assert_array_equal(store.read(1, "pixels", first_row=4), values[1][4:])
    np.testing.assert_array_equal(store.read(1, "pixels", first_row=1, rows=2), values[1][1:3])


def test_xarray_opens_it_with_names_and_units(store: ShardedStore) -> None:
    store.write(1, "pixels", filled(6))
    with xr.open_zarr(store.path, consolidated=False) as dataset:
        pixels = dataset["pixels"]
        assert pixels.dims == ("patch", "band", "y", "x")
        assert pixels.shape == (18, 2, 4, 4)
        assert pixels["band"].values.tolist() == ["B04", "B03"]
        assert pixels.attrs["units"] == "DN"
        np.testing.assert_array_equal(pixels.sel(band="B03")[6:12], filled(6)[:, 1])
        assert dataset["valid"].dims == ("patch",)
        assert not dataset["valid"].any()


def test_the_archive_opens_with_the_bands_of_bigearthnet(tmp_path: Path) -> None:
    create_store(tmp_path / "archive.zarr", archive_arrays(BIGEARTHNET), 2, 1, {})
    with xr.open_zarr(tmp_path / "archive.zarr", consolidated=False) as dataset:
        assert {name: array.shape[1:] for name, array in dataset.data_vars.items()} == {
            "s2_10m": (4, 120, 120),
            "s2_20m": (6, 60, 60),
            "s2_60m": (2, 20, 20),
            "s1": (2, 120, 120),
            "reference_map": (120, 120),
            "labels": (19,),
            "valid": (),
        }
        bands = [dataset[group.array].coords[dataset[group.array].dims[1]].values.tolist() for group in S2_GROUPS]
        assert bands == [
            ["B02", "B03", "B04", "B08"],
            ["B05", "B06", "B07", "B8A", "B11", "B12"],
            ["B01", "B09"],
        ]
        assert dataset[S1.array].coords["band_s1"].values.tolist() == ["VV", "VH"]
        assert dataset["label"].values.tolist() == list(NAMES)
        assert dataset["s1"].dtype == np.float32
        assert dataset["s1"].attrs["units"] == "dB"
        assert dataset["reference_map"].dims == ("patch", "y_10m", "x_10m")


@pytest.mark.parametrize(
    ("name", "values", "first_row"),
    [
        ("pixels", filled(5), 0),  # a part of the shard
        ("pixels", filled(7), 0),
        ("pixels", filled(12), 0),  # two shards in one call
        ("pixels", filled(6), 6),
        ("pixels", filled(6), -6),
        ("pixels", filled(0), 0),
        ("pixels", filled(6).astype(np.int16), 0),  # another dtype
        ("pixels", filled(6).astype(np.float32), 0),
        ("pixels", filled(6)[:, :1], 0),  # another shape, broadcastable too
        ("pixels", filled(6)[:, 0], 0),
        ("blocks", np.zeros((1, 5), np.float32), 0),  # half of a Zarr shard
        ("blocks", np.zeros((3, 5), np.float32), 0),
        ("blocks", np.zeros((2, 5), np.float32), 1),
        ("blocks", np.zeros((4, 5), np.float32), 4),  # past the shard's end
        ("valid", np.zeros(6, np.uint8), 0),
    ],
)
def test_only_whole_zarr_shards_are_written(
    store: ShardedStore, name: str, values: NDArray[np.generic], first_row: int
) -> None:
    with pytest.raises(MisalignedWriteError, match=rf"{store.path}/{name}.*write whole Zarr shards"):
        store.write(1, name, values, first_row)
    assert keys(store, name) == []


def files(store: ShardedStore) -> list[str]:
    """Everything that is not metadata."""
    return sorted(path.name for path in store.path.rglob("*") if path.is_file() and path.name != "zarr.json")


@pytest.mark.parametrize("lot", [1, 2, 3, 5, 6])
def test_rows_that_come_one_after_the_other_are_the_same_shard(store: ShardedStore, tmp_path: Path, lot: int) -> None:
    create_store(tmp_path / "b.zarr", [PIXELS], 6, 3, {})
    by_rows, before = ShardedStore(tmp_path / "b.zarr", writable=True), files(store)
    valid = np.array([True] * 5 + [False])
    with closing(by_rows.writer(2)) as rows:
        for first in range(0, 6, lot):
            rows.append("pixels", filled(6)[first : first + lot])
            rows.append("valid", valid[first : first + lot])
        assert keys(by_rows, "pixels") != []
        assert all(name.endswith(".partial") for name in files(by_rows) if name not in before)
        rows.commit()
    store.write(2, "pixels", filled(6))
    store.write(2, "valid", valid)
    for name, key in (("pixels", "2/0/0/0"), ("valid", "2")):
        assert keys(by_rows, name) == [key]
        assert (by_rows.path / name / "c" / key).read_bytes() == (store.path / name / "c" / key).read_bytes()


def test_rows_that_are_not_committed_leave_nothing(store: ShardedStore) -> None:
    before = files(store)
    with closing(store.writer(1)) as rows:
        rows.append("pixels", filled(6))
        rows.append("valid", np.ones(6, bool))
    assert files(store) == before
    with closing(store.writer(1)) as rows:
        rows.append("pixels", filled(3))
        rows.append("valid", np.ones(6, bool))
        with pytest.raises(MisalignedWriteError, match=r"/pixels/c/1/0/0/0 was given 3 rows, a shard has 6"):
            rows.commit()
    assert files(store) == before


def test_rows_of_another_kind_are_refused(store: ShardedStore) -> None:
    before = files(store)
    with closing(store.writer(1)) as rows:
        for values in (np.zeros((3, 2, 4, 5), np.uint16), np.zeros((3, 2, 4, 4), np.int32)):
            with pytest.raises(MisalignedWriteError, match=r"/pixels/c/1/0/0/0: .*the array holds uint16 \(2, 4, 4\)"):
                rows.append("pixels", values)
        with pytest.raises(StoreError, match=r"a\.zarr/blocks is not stored as this project stores it"):
            rows.append("blocks", np.zeros((6, 5), np.float32))
    assert files(store) == before
    with pytest.raises(StoreError, match="3 shards, none numbered 3"):
        store.writer(3)
    with pytest.raises(StoreError, match="was opened for reading"):
        ShardedStore(store.path).writer(0)


def test_blocks_are_smaller_than_shards(store: ShardedStore) -> None:
    assert (store.block("blocks"), store.block("pixels"), store.block("valid")) == (2, 6, 6)
    values = np.arange(4 * 5, dtype=np.float32).reshape(4, 5)
    store.write(1, "blocks", values, first_row=2)
    assert keys(store, "blocks") == ["4/0", "5/0"]  # rows 8 to 12, two a key
    expected = np.full((18, 5), -1.5, np.float32)
    expected[8:12] = values
    group: Any = zarr.open_group(store.path, mode="r")
    np.testing.assert_array_equal(group["blocks"][:], expected)


def test_a_shard_that_is_all_fill_is_written_all_the_same(store: ShardedStore) -> None:
    store.write(1, "pixels", np.zeros((6, 2, 4, 4), np.uint16))
    store.write(0, "blocks", np.full((6, 5), -1.5, np.float32))
    store.write(2, "valid", np.zeros(6, bool))
    assert keys(store, "pixels") == ["1/0/0/0"]
    assert keys(store, "blocks") == ["0/0", "1/0", "2/0"]
    assert keys(store, "valid") == ["2"]
    assert (store.path / "pixels" / "c" / "1" / "0" / "0" / "0").stat().st_size > 0


@pytest.mark.parametrize("dtype", ["bool", "uint8", "uint16", "float32"])
@pytest.mark.parametrize("fill", [0, 1])
def test_every_dtype_and_fill_comes_back_as_zarr_python_writes_it(tmp_path: Path, dtype: str, fill: int) -> None:
    spec = ArraySpec("a", ("x",), (7,), dtype, fill, {}, chunk=2, zarr_shard=4)
    create_store(tmp_path / "ours.zarr", [spec], 8, 2, {})
    create_store(tmp_path / "theirs.zarr", [spec], 8, 2, {})
    values = (np.random.default_rng(0).random((8, 7)) * 3).astype(dtype)
    values[2:4], values[6:] = 0, 1  # chunks of one value each, the fill's or another
    ShardedStore(tmp_path / "ours.zarr", writable=True).write(1, "a", values)
    theirs: Any = zarr.open_group(tmp_path / "theirs.zarr", mode="r+")
    theirs["a"][8:] = values
    ours: Any = zarr.open_group(tmp_path / "ours.zarr", mode="r")
    np.testing.assert_array_equal(ours["a"][:], np.concatenate([np.full_like(values, fill), values]))
    np.testing.assert_array_equal(ours["a"][:], theirs["a"][:])
    np.testing.assert_array_equal(ours["a"][11:14:2, 3], values[3:6:2, 3])


def test_a_repeated_write_gives_the_same_bytes(store: ShardedStore) -> None:
    store.write(0, "pixels", filled(6))
    (key,) = keys(store, "pixels")
    first = (store.path / "pixels" / "c" / key).read_bytes()
    store.write(0, "pixels", filled(6))
    assert (store.path / "pixels" / "c" / key).read_bytes() == first


def test_growth_keeps_the_data_and_never_shrinks(store: ShardedStore, tmp_path: Path) -> None:
    store.write(2, "pixels", filled(6))
    bytes_before = (store.path / "pixels" / "c" / "2" / "0" / "0" / "0").read_bytes()
    for n_shards, expected in ((5, 5), (4, 5), (0, 5)):
        create_store(store.path, [PIXELS, BLOCKS], 6, n_shards, {"title": "another"})
        grown = ShardedStore(store.path, writable=True)
        assert grown.n_shards == expected
    assert (store.path / "pixels" / "c" / "2" / "0" / "0" / "0").read_bytes() == bytes_before
    group: Any = zarr.open_group(store.path, mode="r")
    assert group["pixels"].shape == (30, 2, 4, 4)
    np.testing.assert_array_equal(group["pixels"][12:18], filled(6))
    grown.write(4, "pixels", filled(6, seed=1))
    np.testing.assert_array_equal(group["pixels"][24:30], filled(6, seed=1))
    assert group.attrs["title"] == "test"


@pytest.mark.parametrize("shard", [3, -1])
def test_a_shard_without_room_is_refused(store: ShardedStore, shard: int) -> None:
    with pytest.raises(StoreError, match=f"has 3 shards, none numbered {shard}"):
        store.write(shard, "pixels", filled(6))
    assert keys(store, "pixels") == []


def test_another_shard_size_is_refused(store: ShardedStore) -> None:
    with pytest.raises(ConfigError, match="made with shard_size 6, the configuration says 8"):
        create_store(store.path, [PIXELS, BLOCKS], 8, 3, {})
    assert ShardedStore(store.path).n_shards == 3


def array(path: Path) -> None:
    zarr.create_array(path, shape=(3,), dtype="u1")


def version_2(path: Path) -> None:
    zarr.open_group(path, mode="w", zarr_format=2)


def foreign(path: Path) -> None:
    zarr.open_group(path, mode="w").create_array("theirs", shape=(3,), dtype="u1")


def no_json(path: Path) -> None:
    path.mkdir()
    (path / "zarr.json").write_text("{")


def no_number(path: Path) -> None:
    zarr.open_group(path, mode="w", attributes={"shard_size": "many"})


def a_file(path: Path) -> None:
    path.write_text("text")


def nothing(path: Path) -> None:
    pass


@pytest.mark.parametrize("make", [nothing, a_file, array, version_2, foreign, no_json, no_number])
def test_what_is_no_store_of_ours_is_told(tmp_path: Path, make: Any) -> None:
    make(tmp_path / "a.zarr")
    with pytest.raises(StoreError, match=f"{tmp_path}/a.zarr is not a store of this project"):
        ShardedStore(tmp_path / "a.zarr")


@pytest.mark.parametrize("make", [array, foreign, no_json])
def test_a_foreign_group_is_left_as_it_is(tmp_path: Path, make: Any) -> None:
    make(tmp_path / "a.zarr")
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    with pytest.raises(StoreError, match="not a store of this project"):
        create_store(tmp_path / "a.zarr", [PIXELS], 6, 1, {})
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before


def test_an_array_that_is_not_there_is_told(store: ShardedStore) -> None:
    with pytest.raises(StoreError, match=r"a\.zarr has no array s1"):
        store.read(0, "s1")


def test_a_store_opened_for_reading_is_not_written(store: ShardedStore) -> None:
    with pytest.raises(StoreError, match=f"{store.path} was opened for reading"):
        ShardedStore(store.path).write(0, "pixels", filled(6))
    assert keys(store, "pixels") == []


@pytest.mark.parametrize("killed_after", [0, 1, 2, 3])
def test_a_half_made_store_is_made_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, killed_after: int) -> None:
    create_array = zarr.Group.create_array
    made: list[str] = []

    def until_killed(self: zarr.Group, name: str, **options: Any) -> Any:
        if len(made) == killed_after:
            raise KeyboardInterrupt
        made.append(name)
        return create_array(self, name, **options)

    monkeypatch.setattr(zarr.Group, "create_array", until_killed)
    with pytest.raises(KeyboardInterrupt):
        create_store(tmp_path / "a.zarr", [PIXELS, BLOCKS], 6, 1, {"title": "test"})
    monkeypatch.undo()
    with pytest.raises(StoreError):
        ShardedStore(tmp_path / "a.zarr")
    create_store(tmp_path / "a.zarr", [PIXELS, BLOCKS], 6, 1, {"title": "test"})
    group = zarr.open_group(tmp_path / "a.zarr", mode="r")
    assert dict(group.attrs) == {"title": "test", "shard_size": 6}
    assert sorted(group.array_keys()) == ["band", "blocks", "pixels", "valid"]


def test_a_killed_writer_leaves_no_key_and_its_partial_is_swept(store: ShardedStore) -> None:
    code = """
import os, signal, sys
from pathlib import Path
import numpy as np
from infra.zarr_store import ShardedStore
store = ShardedStore(Path(sys.argv[1]), writable=True)
Path.replace = lambda self, target: os.kill(os.getpid(), signal.SIGKILL)
store.write(0, "valid", np.ones(6, bool))
"""
    command = [sys.executable, "-c", code, str(store.path)]
    killed = subprocess.run(command, cwd=Path(__file__).parents[2], check=False, capture_output=True, text=True)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    (left,) = keys(store, "valid")
    assert left.endswith(".partial")
    with pytest.raises(PipelineError, match="is not on disk"):  # nothing half-written is taken for a shard
        store.read(0, "valid")
    assert sweep_partials(store.path.parent) == 1
    assert keys(store, "valid") == []


def test_inner_chunks_divide_the_shard_and_compress(store: ShardedStore) -> None:
    metadata = json.loads((store.path / "pixels" / "zarr.json").read_text())
    (sharding,) = metadata["codecs"]
    assert metadata["chunk_grid"]["configuration"]["chunk_shape"] == [6, 2, 4, 4]
    assert sharding["configuration"]["chunk_shape"] == [3, 2, 4, 4]
    (blosc,) = [codec for codec in sharding["configuration"]["codecs"] if codec["name"] == "blosc"]
    assert blosc["configuration"]["cname"] == "lz4"
    assert blosc["configuration"]["shuffle"].endswith("shuffle")


@pytest.mark.parametrize(
    ("whole", "at_most", "expected"),
    [(512, 16, 16), (500, 16, 10), (7, 16, 7), (7, 6, 1), (1, 1, 1), (12, 5, 4), (512, 4096, 512)],
)
def test_divisor(whole: int, at_most: int, expected: int) -> None:
    by_brute_force: Sequence[int] = [n for n in range(1, whole + 1) if whole % n == 0 and n <= at_most]
    assert divisor(whole, at_most) == max(by_brute_force) == expected


def test_the_mark_of_a_half_made_store_is_no_attribute_of_a_whole_one(store: ShardedStore) -> None:
    assert zarr_store._HALF_MADE not in (store.path / "zarr.json").read_text()


@pytest.fixture
def remote(s3_folder: ObjectPath) -> ShardedStore:
    create_store(s3_folder / "a.zarr", [PIXELS, BLOCKS], 6, 3, {"title": "test"})
    return ShardedStore(s3_folder / "a.zarr", writable=True)


def test_object_storage_holds_the_same_bytes_as_a_folder(store: ShardedStore, remote: ShardedStore) -> None:
    """But for empty shards of arrays that zarr-python writes, every key of both stores is compared."""
    for kept in (store, remote):
        kept.write(2, "pixels", filled(6))
        kept.write(1, "blocks", np.arange(20, dtype="float32").reshape(4, 5), first_row=2)
        kept.write(2, "valid", np.array([True] * 5 + [False]))
        with closing(kept.writer(0)) as writer:
            writer.append("pixels", filled(6, 1)[:2])
            writer.append("pixels", filled(6, 1)[2:])
            writer.commit()
        create_store(kept.path, [PIXELS, BLOCKS], 6, 4, {"title": "test"})
    ours, theirs = (
        {str(path.relative_to(kept.path)): path.read_bytes() for path in kept.path.rglob("*") if path.is_file()}
        for kept in (remote, store)
    )
    assert ours == theirs
    for name, rows in (("pixels", {}), ("pixels", {"first_row": 3, "rows": 2}), ("valid", {})):
        np.testing.assert_array_equal(remote.read(2, name, **rows), store.read(2, name, **rows))
    assert remote.n_shards == 4, "a store that is open sees what the driver made room for"


def test_a_zarr_shard_is_one_request(s3: S3Server, remote: ShardedStore) -> None:
    remote.array("pixels")
    s3.requests.clear()
    remote.write(1, "pixels", filled(6))
    (put,) = [line for line in s3.requests if line.startswith("PUT")]
    assert put == f"PUT /{BUCKET}/{remote.path.key}/pixels/c/1/0/0/0?"  # type: ignore[attr-defined]
    s3.requests.clear()
    np.testing.assert_array_equal(remote.read(1, "pixels"), filled(6))
    assert s3.count("GET", "/pixels/c/1") == 1


def test_shards_outlive_faults_and_lost_ones_are_told(s3: S3Server, remote: ShardedStore) -> None:
    for method in ("GET", "PUT", "HEAD"):
        s3.faults.append(Fault("status", 503, method=method, key="/c/1/", times=2))
        s3.faults.append(Fault("cut", method=method, key="zarr.json"))
    remote.write(1, "pixels", filled(6))
    s3.faults.append(Fault("half", method="GET", key="/c/1/"))
    np.testing.assert_array_equal(remote.read(1, "pixels"), filled(6))
    for shard in (0, 2):
        with pytest.raises(PipelineError, match=f"shard {shard} of s3://.*/pixels is not on disk"):
            remote.read(shard, "pixels")
    s3.faults[:] = [Fault("status", 503, key="/c/1", times=1000)]
    with pytest.raises(TransientError, match="503"):
        remote.read(1, "pixels")
    with pytest.raises(TransientError, match="503"):
        remote.write(1, "pixels", filled(6))
    with pytest.raises(TransientError, match="503"):
        remote.write(1, "valid", np.ones(6, bool))
    s3.faults[:] = [Fault("status", 403, times=1000)]
    with pytest.raises(StoreError, match="access denied"):
        remote.write(1, "valid", np.ones(6, bool))
    with pytest.raises(StoreError, match="access denied"):
        ShardedStore(remote.path)


def test_what_is_no_store_on_object_storage_is_told(s3_folder: ObjectPath) -> None:
    with pytest.raises(StoreError, match=r"s3://.*/none.zarr is not a store of this project"):
        ShardedStore(s3_folder / "none.zarr")
