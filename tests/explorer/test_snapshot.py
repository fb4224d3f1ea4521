"""The columns in memory are those of the tables, whatever a store lacks."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import shapely

from explorer.snapshot import read_snapshot
from infra.errors import StoreError
from infra.storage import StorePaths
from infra.tables import PATCHES, publish
from tests.explorer.oracle import frame
from tests.explorer.store import SHARD, Made, make_store


def test_columns_are_those_of_the_table(made: Made) -> None:
    patches, rows = read_snapshot(made.paths), frame(made)
    assert patches.ids.to_pylist() == rows["patch_id"].tolist()
    assert patches.shard.tolist() == rows["shard"].tolist()
    assert patches.row.tolist() == rows["row"].tolist()
    for name in ("split", "country", "season", "acquired", "tile", "crs"):
        assert [getattr(patches, name).name(i) for i in range(len(rows))] == rows[name].tolist(), name
    assert patches.has_snow.tolist() == rows["has_snow"].astype(int).tolist()
    assert set(patches.has_cloud.tolist()) == {-1}
    for i, (labels, wkb) in enumerate(zip(rows["labels"], rows["geometry"], strict=True)):
        found = patches.true_labels(i)
        assert (None if found is None else sorted(found)) == (None if labels is None else sorted(labels))
        if wkb is None:
            assert np.isnan(patches.corners[i]).all()
        else:
            ring = np.asarray(shapely.from_wkb(wkb).exterior.coords)[:4]
            np.testing.assert_allclose(patches.corners[i], ring, atol=2e-6)
    assert patches.has_pixels.all()


def test_every_patch_is_found_by_its_name_and_no_other_text_is(made: Made) -> None:
    patches = read_snapshot(made.paths)
    assert [patches.find(str(name)) for name in patches.ids.to_pylist()] == list(range(len(patches)))
    for text in ("", "S2A", "zzz", "\udcff", "..", "../../etc/passwd", made.rows[0]["patch_id"] + "\x00"):
        assert patches.find(text) is None


def test_patches_of_a_lost_shard_have_no_pixels(tmp_path: Path) -> None:
    made = make_store(tmp_path, run=False, lost_shard=True)
    patches = read_snapshot(made.paths)
    assert patches.has_pixels.tolist() == (patches.shard == 0).tolist()
    assert 0 < int((patches.shard == 0).sum()) == SHARD


def test_odd_footprints_become_the_box_around_them_and_damaged_ones_none(tmp_path: Path) -> None:
    triangle = shapely.to_wkb(shapely.Polygon([(1, 1), (5, 1), (3, 4)]))
    row = {
        "shard": 0,
        "labels": ["a"],
        "split": "all",
        "has_s1": False,
        "has_map": False,
        "nodata_share": 0.0,
        "source_version": "t",
    }
    geometries = [triangle, b"", b"damaged", None]
    rows = [{**row, "patch_id": f"p{i}", "row": i, "geometry": wkb} for i, wkb in enumerate(geometries)]
    paths = StorePaths(tmp_path)
    publish(paths.table("patches"), pa.Table.from_pylist(rows, PATCHES), PATCHES, ["patch_id"])
    patches = read_snapshot(paths)
    assert patches.labels == ("a",)  # there is no tables/classes yet
    np.testing.assert_array_equal(patches.corners[0], [[1, 1], [5, 1], [5, 4], [1, 4]])
    assert np.isnan(patches.corners[1:]).all()
    assert not patches.has_pixels.any()
    assert patches.country.names == ()


def test_a_store_without_patches_is_refused(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="holds no patches yet"):
        read_snapshot(StorePaths(tmp_path))
