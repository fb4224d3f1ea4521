"""The layer of patches as GDAL reads it: what QGIS would show."""

from pathlib import Path

import geopandas as gpd
import pyogrio  # type: ignore[import-untyped]
import pytest
import shapely

from infra.errors import StoreError
from infra.storage import StorePaths
from tasks.export import Exported
from tasks.export_geopackage import LAYER, export_geopackage
from tests.tasks.export_store import LABELS, NOWHERE, PLACES, make_export_store, patch_rows, publish_patches


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    paths = make_export_store(tmp_path_factory.mktemp("gpkg") / "store")
    out = paths.root.parent / "patches.gpkg"
    assert export_geopackage(paths.root, out) == Exported(5)
    return out


def test_every_patch_is_a_feature_with_its_columns(file: Path) -> None:
    frame = gpd.read_file(file, layer=LAYER).set_index("patch_id")
    truth = {row["patch_id"]: row for row in patch_rows()}
    assert set(frame.index) == set(truth)
    for patch_id, row in truth.items():
        found = frame.loc[patch_id]
        assert (found["shard"], found["row"], found["split"]) == (row["shard"], row["row"], "test")
        assert found["nodata_share"] == 0.25
        assert bool(found["has_s1"]) == row["has_s1"]
        if patch_id == NOWHERE:
            assert found["geometry"] is None
            continue
        assert found["geometry"].equals_exact(shapely.from_wkb(row["geometry"]), 0)
        assert str(found["acquired"])[:10] == row["acquired"]
        assert (found["country"], found["tile"], found["crs"]) == (row["country"], row["tile"], row["crs"])
    labels = [None if not isinstance(text, str) else text for text in frame.loc[[p for p, _, _ in PLACES], "labels"]]
    assert labels == [None if names is None else f";{';'.join(names)};" if names else "" for names in LABELS]


def test_a_filter_as_in_qgis_finds_a_label(file: Path) -> None:
    found = pyogrio.read_dataframe(file, where="labels LIKE '%;Inland wetlands;%' AND country = 'Finland'")
    assert found["patch_id"].tolist() == [PLACES[1][0]]
    assert pyogrio.read_dataframe(file, where="labels LIKE '%;wetlands;%'").empty
    assert pyogrio.read_dataframe(file, bbox=(20, 55, 30, 65)).shape[0] == 3


def test_a_store_of_pictures_has_nothing_to_draw(tmp_path: Path) -> None:
    store = StorePaths(tmp_path / "store")
    publish_patches(store, [row for row in patch_rows() if row["patch_id"] == NOWHERE])
    with pytest.raises(StoreError, match=r"none of the 1 patches of .* has a place"):
        export_geopackage(store.root, tmp_path / "x.gpkg")
    assert not (tmp_path / "x.gpkg").exists()
