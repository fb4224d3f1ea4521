import tracemalloc
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import xarray
import zarr

from infra.errors import MisalignedWriteError, StoreError
from infra.zarr_store import ShardedStore
from tasks.map_store import MapWriter, create_map_store, is_map_store, read_map

LABELS = ("forest", "water", "sand")
HALF = 2.0**-11  # float16 has 11 bits: how far the nearest lies, relative to the value
SMALLEST = 2.0**-25  # half a step between the smallest halves


def made(path: Path, names: Sequence[str] = LABELS, shard_size: int = 8, n_shards: int = 2) -> ShardedStore:
    create_map_store(path, names, (4, 5), shard_size, n_shards, {"method": "grad_cam"})
    return ShardedStore(path)


def maps_of(n: int, labels: int = 3, seed: int = 0) -> np.ndarray:
    """Maps of very different scales, with negative values."""
    rng = np.random.default_rng(seed)
    scale = 10.0 ** rng.uniform(-30, 30, (n, labels, 1, 1))
    return (rng.normal(size=(n, labels, 4, 5)) * scale).astype(np.float32)


def write_maps(path: Path, shard: int, rows: np.ndarray, maps: np.ndarray) -> None:
    """All maps of a shard in one batch."""
    writer = MapWriter(path, shard)
    writer.add(rows, maps)
    writer.close()


def written(store: ShardedStore) -> dict[str, bytes]:
    return {
        str(path.relative_to(store.path)): path.read_bytes() for path in store.path.glob("*/c/**/*") if path.is_file()
    }


def test_maps_come_back_within_half_precision_whatever_their_scale(tmp_path: Path) -> None:
    store, rows, maps = made(tmp_path / "maps.zarr"), np.array([0, 3, 6]), maps_of(3)
    write_maps(store.path, 1, rows, maps)
    for at, row in enumerate(rows.tolist()):
        for label in range(3):
            found, expected = read_map(store, 8 + row, label), maps[at, label]
            assert found.dtype == np.float32
            largest = np.abs(expected).max()
            error = np.abs(found.astype(np.float64) - expected)
            assert (error <= (HALF * np.abs(expected) + SMALLEST * largest) * (1 + 1e-5)).all()
            assert np.abs(found).max() == largest  # the scale is kept in full
    valid = store.read(1, "valid")
    assert np.flatnonzero(valid).tolist() == [0, 3, 6]


def test_rows_without_a_map_are_nan_and_so_is_another_shard(tmp_path: Path) -> None:
    store = made(tmp_path / "maps.zarr")
    write_maps(store.path, 0, np.array([2]), maps_of(1))
    for index in (0, 1, 3, 7, 8, 15):
        assert np.isnan(read_map(store, index, 0)).all()
    assert not np.isnan(read_map(store, 2, 0)).any()


def test_a_shard_without_any_map_is_written_and_holds_none(tmp_path: Path) -> None:
    store = made(tmp_path / "maps.zarr")
    write_maps(store.path, 0, np.zeros(0, np.int64), np.zeros((0, 3, 4, 5), np.float32))
    assert np.isnan(store.read(0, "maps")).all()
    assert not store.read(0, "valid").any()


def test_a_zero_map_stays_zero(tmp_path: Path) -> None:
    store, maps = made(tmp_path / "maps.zarr"), maps_of(1)
    maps[0, 1] = 0
    write_maps(store.path, 0, np.array([0]), maps)
    np.testing.assert_array_equal(read_map(store, 0, 1), 0)
    assert read_map(store, 0, 0).any()


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_a_map_that_is_not_finite_is_nan_and_its_neighbours_are_kept(tmp_path: Path, value: float) -> None:
    store, maps = made(tmp_path / "maps.zarr"), maps_of(2)
    maps[0, 1, 2, 3] = value
    write_maps(store.path, 0, np.array([4, 5]), maps)
    assert np.isnan(read_map(store, 4, 1)).all()
    assert np.isnan(store.array("scale")[4, 1])
    for index, label in ((4, 0), (4, 2), (5, 1)):
        np.testing.assert_allclose(
            read_map(store, index, label), maps[index - 4, label], atol=HALF * np.abs(maps[index - 4, label]).max()
        )


def test_a_shard_of_several_zarr_shards_holds_every_row(tmp_path: Path) -> None:
    """96 patches are two Zarr shards of 48."""
    store = made(tmp_path / "maps.zarr", shard_size=96)
    assert store.block("maps") == 48
    rows = np.array([0, 46, 47, 48, 50, 95])
    maps = maps_of(6)
    write_maps(store.path, 1, rows, maps)
    for at, row in enumerate(rows.tolist()):
        np.testing.assert_allclose(
            read_map(store, 96 + row, 2), maps[at, 2], rtol=1.001 * HALF, atol=SMALLEST * np.abs(maps[at, 2]).max()
        )
    assert np.flatnonzero(~np.isnan(store.read(1, "scale")[:, 0].astype(float))).tolist() == rows.tolist()


@pytest.mark.parametrize("sizes", [[6], [1] * 6, [3, 3], [2, 4], [0, 5, 0, 1]])
def test_batches_change_no_byte(tmp_path: Path, sizes: Sequence[int]) -> None:
    """Against the whole shard as one array, scaled and written at once; 192 patches are three Zarr shards."""
    store = made(tmp_path / "maps.zarr", shard_size=192)
    assert store.block("maps") == 64
    rows, maps = np.array([0, 63, 64, 130, 131, 191]), maps_of(6)
    maps[2, 1], maps[3, 0, 0, 0], maps[4, 2] = 0, np.inf, -3
    writer = MapWriter(store.path, 1)
    for batch in np.split(np.arange(6), np.cumsum(sizes)[:-1]):
        writer.add(rows[batch], maps[batch])
    writer.close()
    found = written(store)

    whole = ShardedStore(made(tmp_path / "whole.zarr", shard_size=192).path, writable=True)
    scale = np.full((192, 3), np.nan, np.float32)
    scale[rows] = np.abs(maps).max(axis=(2, 3))
    scale[130, 0] = np.nan
    values = np.full((192, 3, 4, 5), np.nan, np.float32)
    values[rows] = maps / np.where(scale[rows] == 0, 1, scale[rows])[:, :, None, None]
    whole.write(1, "maps", values.astype(np.float16))
    whole.write(1, "scale", scale)
    whole.write(1, "valid", np.isin(np.arange(192), rows))
    assert found == written(whole)
    assert len([name for name in found if name.startswith("maps/")]) == 3


def test_maps_are_on_disk_as_soon_as_a_later_zarr_shard_has_one(tmp_path: Path) -> None:
    """And none of them is held: what is allocated does not grow with the shard."""
    create_map_store(tmp_path / "maps.zarr", LABELS, (60, 60), 512, 1, {})
    store = ShardedStore(tmp_path / "maps.zarr")
    block_bytes = 2 * store.block("maps") * 3 * 60**2
    rng = np.random.default_rng(0)
    writer = MapWriter(store.path, 0)
    held = []
    tracemalloc.start()
    try:
        for first in range(0, 512, 16):
            writer.add(np.arange(first, first + 16), rng.random((16, 3, 60, 60), np.float32))
            assert len(list(store.path.glob("maps/c/*/0/0/0"))) == first // 64
            held.append(tracemalloc.get_traced_memory()[0])
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    writer.close()
    assert store.block("maps") == 64
    assert max(held) < 1.2 * block_bytes
    assert peak < 3 * block_bytes  # a batch of 16 as it comes, as it is scaled, and a Zarr shard as it is compressed
    assert 8 * block_bytes == 2 * 512 * 3 * 60**2
    assert not np.isnan(store.read(0, "maps")).any()


def test_a_row_of_a_zarr_shard_that_is_written_is_refused(tmp_path: Path) -> None:
    store, maps = made(tmp_path / "maps.zarr", shard_size=128), maps_of(2)
    writer = MapWriter(store.path, 0)
    writer.add(np.array([70, 80]), maps)
    with pytest.raises(
        MisalignedWriteError, match=r"row 3 of shard 0 .* before 64 were written: add maps in the order"
    ):
        writer.add(np.array([3, 90]), maps)
    writer.add(np.array([127]), maps[:1])
    writer.close()
    assert np.flatnonzero(store.read(0, "valid")).tolist() == [70, 80, 127]


def test_a_method_without_labels_has_one_map_a_patch(tmp_path: Path) -> None:
    store, maps = made(tmp_path / "maps.zarr", ("patch",)), maps_of(8, labels=1)
    write_maps(store.path, 0, np.arange(8), maps)
    np.testing.assert_allclose(read_map(store, 7, 0), maps[7, 0], atol=HALF * np.abs(maps[7]).max())


def test_the_store_names_its_labels_and_grows(tmp_path: Path) -> None:
    store = made(tmp_path / "maps.zarr", n_shards=1)
    write_maps(store.path, 0, np.array([0]), maps_of(1))
    before = read_map(store, 0, 0)
    made(store.path, n_shards=3)
    assert store.n_shards == 3
    np.testing.assert_array_equal(read_map(store, 0, 0), before)
    opened = xarray.open_zarr(store.path, consolidated=False)
    assert opened["label"].values.tolist() == list(LABELS)
    assert opened["maps"].dims == ("patch", "label", "y", "x")
    assert opened.attrs["method"] == "grad_cam"


def test_a_store_of_an_earlier_layout_says_what_to_do(tmp_path: Path) -> None:
    group = zarr.open_group(tmp_path / "old.zarr", mode="w", attributes={"shard_size": 8})
    group.create_array("maps", shape=(8, 3, 4, 5), dtype="float16")
    assert not is_map_store(tmp_path / "old.zarr")
    assert not is_map_store(tmp_path / "none.zarr")
    assert is_map_store(made(tmp_path / "maps.zarr").path)
    with pytest.raises(StoreError, match=r"old\.zarr holds no maps with their scales.*run the flow again"):
        read_map(ShardedStore(tmp_path / "old.zarr"), 0, 0)
