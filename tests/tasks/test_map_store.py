from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import xarray
import zarr

from infra.errors import StoreError
from infra.zarr_store import ShardedStore
from tasks.map_store import create_map_store, is_map_store, read_map, write_maps

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
