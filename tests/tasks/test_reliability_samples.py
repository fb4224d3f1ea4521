"""Maps of samples come reduced, a few at a time; oracles are means by hand and the allocator's own count."""

import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tasks import reliability_samples
from tasks.map_store import MapWriter, create_map_store
from tasks.reliability_samples import SampleReader
from tests.tasks.planted_maps import LABELS, PlantedStore, plan_of, planted, planted_maps, planted_store


def everything(store: PlantedStore) -> np.ndarray[Any, np.dtype[np.float32]]:
    reader = SampleReader(store.job(plan_of()))
    parts = [maps for shard in store.shards for _, maps in reader.maps(shard, reader.samples(shard))]
    return np.concatenate(parts)


def test_large_maps_come_as_means_over_areas(tmp_path: Path) -> None:
    """6 pixels enlarged to 96: each of the 64 is 1.5 of those, all of one value, or half of two."""
    case = planted(20, 10)
    found = everything(planted_store(tmp_path, case, enlarged=16))
    assert found.shape == (30, 3, 64, 64)
    raw = planted_maps(case.odd).repeat(16, axis=2).repeat(16, axis=3)
    scaled = raw / np.abs(raw).max(axis=(2, 3), keepdims=True)
    thrice = scaled.repeat(2, axis=2).repeat(2, axis=3).reshape(30, 3, 64, 3, 64, 3)
    np.testing.assert_allclose(found, thrice.mean(axis=(3, 5)), rtol=0, atol=1e-3)  # stored in half precision


def test_a_map_of_all_labels_comes_once(tmp_path: Path) -> None:
    case = planted(20, 10)
    each, shared = (everything(planted_store(tmp_path / str(s), case, shared=s)) for s in (False, True))
    assert shared.shape == (30, 1, 6, 6)
    assert np.array_equal(shared[:, 0], each[:, 0])


def test_what_is_read_at_once_is_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of 3 labels by 240 x 240 pixels, a shard of 64 patches takes 44 MB; in single precision, 8 MB are asked for."""
    store = planted_store(tmp_path, planted(64, 1), shard_size=64, enlarged=40)
    job = store.job(plan_of())
    monkeypatch.setattr(reliability_samples, "_BYTES_AT_ONCE", 8 << 20)
    reader = SampleReader(job)
    samples = reader.samples(0)
    of_shard = 4 * 64 * 3 * 240 * 240
    tracemalloc.start()
    places: list[int] = []
    for rows, maps in reader.maps(0, samples):
        places += range(rows.start, rows.stop)
        assert maps.nbytes < 1 << 20
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert places == list(range(64))
    assert peak < 3 * (8 << 20) < of_shard


def test_maps_come_in_the_order_of_their_patches_alone(tmp_path: Path) -> None:
    """Patches without maps are no samples."""
    store = planted_store(tmp_path, planted(40, 1), shard_size=64)
    job = store.job(plan_of())
    create_map_store(job.map_store, LABELS, (6, 6), 64, len(store.shards), {})
    writer = MapWriter(job.map_store, 0)
    chosen = np.array([3, 17, 39])
    writer.add(chosen, planted_maps(np.zeros((3, 3), np.bool_)))
    writer.close()
    reader = SampleReader(job)
    samples = reader.samples(0)
    assert samples.rows.tolist() == chosen.tolist()
    ((rows, maps),) = reader.maps(0, samples)
    assert (rows, maps.shape) == (slice(0, 3), (3, 3, 6, 6))
