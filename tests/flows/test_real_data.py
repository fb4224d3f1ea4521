"""The flow over real BigEarthNet patches and a real Sentinel-2 cell, with the reference store's classifiers."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import rasterio
import zarr

from infra.bigearthnet.bands import S2_GROUPS
from tests.flows.stores import Inputs, run_flows

BRANCHES = {
    "bigearthnet_v2": ["none", "bicubic"],
    "bigearthnet_v1": ["none", "bicubic"],
    "sentinel2_l2a_cell": ["none"],  # its 64 patches, four times as large, would be most of the work
}


@pytest.fixture(scope="module")
def stores(inputs: Inputs, shared_data: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("real")
    archives: dict[str, dict[str, object]] = {
        "bigearthnet_v2": {"layout": "bigearthnet-v2", "subset": "present"},
        "bigearthnet_v1": {"layout": "bigearthnet-v1", "subset": "present", "include_flagged": True},
        "sentinel2_l2a_cell": {"layout": "scene"},
    }
    configs = [
        inputs.config(
            folder / name,
            None,
            archive={**archive, "root": str(shared_data / name)},
            models_from=str(inputs.reference),
            shard_size=16,
            sr=BRANCHES[name],
        )
        for name, archive in archives.items()
    ]
    result = run_flows(configs)
    assert result.returncode == 0, result.stderr
    return {name: folder / name for name in archives}


@pytest.mark.parametrize(
    ("name", "patches"), [("bigearthnet_v2", 1), ("bigearthnet_v1", 18), ("sentinel2_l2a_cell", 64)]
)
def test_every_patch_is_stored_predicted_and_explained(stores: dict[str, Path], name: str, patches: int) -> None:
    tables = stores[name] / "tables"
    stored = pd.read_parquet(tables / "patches")
    assert len(stored) == patches
    predictions = pd.read_parquet(tables / "predictions")
    assert sorted(predictions["patch_id"]) == sorted([*stored["patch_id"]] * len(BRANCHES[name]))
    explanations = pd.read_parquet(tables / "explanations")
    rows = explanations.groupby("method", observed=True).size()
    assert {"grad_cam"} <= set(rows.index) <= {"grad_cam", "random"}
    assert set(rows) == {predictions["predicted"].map(len).sum()}
    for map_store in explanations["map_store"].unique():
        assert (stores[name] / map_store / "zarr.json").exists()
    run = pd.read_parquet(tables / "runs").iloc[-1]
    assert run["inputs"] == run["patches"] + run["quarantined"] + run["absent"]
    assert "<table" in (stores[name] / "report" / "index.html").read_text(encoding="utf-8")


def test_the_malformed_label_file_is_in_quarantine_alone(stores: dict[str, Path]) -> None:
    (row,) = pd.read_parquet(stores["bigearthnet_v1"] / "tables" / "quarantine").to_dict("records")
    assert row["patch_id"] == "S2A_MSIL2A_20170613T101031_0_46"
    assert row["reason"] == "malformed_metadata"


def test_v1_labels_are_those_of_v2(stores: dict[str, Path], shared_data: Path) -> None:
    names = ("metadata", "metadata_for_patches_with_snow_cloud_or_shadow")
    v2 = pd.concat([pd.read_parquet(shared_data / "bigearthnet_v2" / f"{name}.parquet") for name in names])
    expected = v2.set_index("s2v1_name")["labels"]
    stored = pd.read_parquet(stores["bigearthnet_v1"] / "tables" / "patches")
    for patch in stored.to_dict("records"):
        assert sorted(patch["labels"]) == sorted(expected[patch["patch_id"]])


@pytest.mark.parametrize(
    ("name", "pattern"),
    [
        ("bigearthnet_v2", "bigearthnet_v2/BigEarthNet-S2/*/{id}/{id}_{band}.tif"),
        ("bigearthnet_v1", "bigearthnet_v1/BigEarthNet-v1.0/{id}/{id}_{band}.tif"),
    ],
)
def test_pixels_are_rasterios(stores: dict[str, Path], shared_data: Path, name: str, pattern: str) -> None:
    store = zarr.open_group(stores[name] / "archive.zarr", mode="r")
    for patch in pd.read_parquet(stores[name] / "tables" / "patches").to_dict("records"):
        for group in S2_GROUPS:
            array = store[group.array]
            assert isinstance(array, zarr.Array)
            values = np.asarray(array[patch["shard"] * 16 + patch["row"]])
            for i, band in enumerate(group.bands):
                (file,) = shared_data.glob(pattern.format(id=patch["patch_id"], band=band))
                with rasterio.open(file) as dataset:
                    np.testing.assert_array_equal(values[i], dataset.read(1))


def test_the_scene_is_cut_on_its_grid(stores: dict[str, Path], shared_data: Path) -> None:
    store = zarr.open_group(stores["sentinel2_l2a_cell"] / "archive.zarr", mode="r")
    array = store["s2_10m"]
    assert isinstance(array, zarr.Array)
    (file,) = shared_data.glob("sentinel2_l2a_cell/*/B08.tif")
    with rasterio.open(file) as dataset:
        whole = dataset.read(1)
    for patch in pd.read_parquet(stores["sentinel2_l2a_cell"] / "tables" / "patches").to_dict("records"):
        row, column = (int(number) for number in patch["patch_id"].split("_")[-2:])
        window = whole[row * 120 : (row + 1) * 120, column * 120 : (column + 1) * 120]
        np.testing.assert_array_equal(np.asarray(array[patch["shard"] * 16 + patch["row"]])[3], window)
