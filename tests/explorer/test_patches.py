"""One patch: what is told of it is what the tables and the maps hold."""

import base64
import io
import shutil
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch
from matplotlib import colormaps
from PIL import Image
from starlette.testclient import TestClient
from torch.nn.functional import interpolate

from explorer.app import make_app
from infra.bigearthnet.classes import NAMES
from infra.parts import StageParts
from infra.storage import StorePaths
from infra.tables import hive_folder, predictions_schema, read_table
from tests.explorer.conftest import client_of, of_patch
from tests.explorer.oracle import UNSEEN
from tests.explorer.store import METHODS, NASTY, SHARD, SLASHED, THRESHOLD, Made, N


def test_facts_of_a_patch(client: TestClient, made: Made) -> None:
    row = made.rows[11]
    found = client.get(of_patch(row["patch_id"])).json()
    for column in ("patch_id", "split", "country", "season", "acquired", "tile", "crs", "shard", "row", "has_snow"):
        assert found[column] == row[column], column
    assert found["has_cloud"] is None
    assert set(found["labels"]) == set(row["labels"])
    assert found["false_colour"]
    assert found["land_cover"]
    nowhere = client.get(of_patch(made.rows[17]["patch_id"])).json()
    assert (nowhere["lon"], nowhere["footprint"]) == (None, None)


def test_neighbours_are_nearest_first_and_not_the_patch(client: TestClient, made: Made) -> None:
    patch = made.rows[0]["patch_id"]
    found = client.get(of_patch(patch, "/neighbours", limit=4)).json()["samples"]
    assert [sample["distance_km"] for sample in found] == pytest.approx([0, 1.2, 1.2, 1.2 * 2**0.5], abs=0.02)
    assert found[0]["patch_id"] == made.rows[N - 2]["patch_id"]  # the same ground on another day
    assert {sample["patch_id"] for sample in found[1:3]} == {made.rows[i]["patch_id"] for i in (2, 12)}
    assert client.get(of_patch(made.rows[17]["patch_id"], "/neighbours")).json() == {"samples": []}


@pytest.mark.parametrize("i", [3, 5, 40])
def test_decisions_of_a_branch(client: TestClient, made: Made, i: int) -> None:
    row, probs, scores = made.rows[i], made.probs["srresnet"][i], made.reliability["srresnet"][i]
    found = client.get(of_patch(row["patch_id"], "/branch", branch=made.branches["srresnet"])).json()
    assert (found["seed"], found["why_no_picture"]) == (4, "")
    assert [line["label"] for line in found["labels"]] == list(NAMES)
    np.testing.assert_allclose([line["prob"] for line in found["labels"]], probs, rtol=1e-6)
    for k, line in enumerate(found["labels"]):
        given, true = bool(probs[k] >= THRESHOLD), row["labels"] is not None and NAMES[k] in row["labels"]
        expected = {(1, 1): "right", (1, 0): "wrong", (0, 1): "missed", (0, 0): "absent"}[given, true]
        if row["labels"] is None:
            expected = "unknown" if given else "absent"
        assert line["verdict"] == expected
        if k == 0:
            assert (line["reliability"], line["cluster"], line["of_cluster"]) == (None, None, None)
        else:
            assert line["reliability"] == pytest.approx(scores[k])
            assert line["of_cluster"]["error_rate"] == pytest.approx(1 - scores[k])
            assert line["of_cluster"]["n"] == 320  # the fit's samples, not a split's
            assert line["of_cluster"]["prototype"] == [0, 0.25, 0.5, 1]


def test_parts_are_read_where_they_are(made: Made, tmp_path: Path) -> None:
    """A shard's part is small; here it says 1/2 of everything, so that it shows which one was read."""
    shutil.copytree(made.paths.root, tmp_path / "store")
    paths, (_, _, config) = StorePaths(tmp_path / "store"), made.branches["none"].split("/")
    folder = hive_folder(paths.table("predictions"), sr="none", classifier="resnet18", config=config)
    rows = [{**row, "probs": [0.5] * len(NAMES)} for row in read_table(folder).to_pylist()]
    StageParts(paths, "predictions", config).write(0, pa.Table.from_pylist(rows, predictions_schema(len(NAMES))))
    client = client_of(make_app(paths.root))

    def probs(i: int) -> list[float]:
        labels = client.get(of_patch(made.rows[i]["patch_id"], "/branch", branch=made.branches["none"])).json()[
            "labels"
        ]
        return [line["prob"] for line in labels]

    assert probs(0) == [0.5] * len(NAMES)
    assert probs(SHARD) == pytest.approx(made.probs["none"][SHARD].tolist())


def test_methods_are_those_that_saw_the_patch(client: TestClient, made: Made) -> None:
    def methods(i: int, sr: str) -> list[str]:
        return list(
            client.get(of_patch(made.rows[i]["patch_id"], "/branch", branch=made.branches[sr])).json()["methods"]
        )

    assert methods(0, "srresnet") == list(METHODS)
    assert methods(SHARD, "srresnet") == [METHODS[0]]
    assert methods(0, "none") == []


def test_maps_are_the_stored_ones(client: TestClient, made: Made) -> None:
    """Bilinear from 4 x 4 to 120 x 120 by torch, in units of the maximum; stored in half precision."""
    i, label = 6, 4
    query = {"branch": made.branches["srresnet"], "label": NAMES[label]}
    found = client.get(of_patch(made.rows[i]["patch_id"], "/maps", **query)).json()["maps"]
    assert [entry["method"] for entry in found] == list(METHODS)
    assert [entry["title"] for entry in found] == ["Grad-CAM", "LayerCAM"]
    for entry in found:
        cam = torch.from_numpy(made.maps[entry["method"]][i, label])[None, None]
        fine = interpolate(cam, size=(120, 120), mode="bilinear", align_corners=False)[0, 0].numpy()
        colour = 255 * colormaps["viridis"](fine / fine.max())[..., :3]
        png = base64.b64decode(entry["image"].removeprefix("data:image/png;base64,"))
        pixels = np.asarray(Image.open(io.BytesIO(png), formats=["PNG"]), np.float64)
        assert np.abs(pixels - colour).max() <= 4


def test_a_map_that_cannot_be_drawn_says_why(client: TestClient, made: Made) -> None:
    query = {"branch": made.branches["srresnet"], "label": NAMES[1]}
    maps = client.get(of_patch(made.rows[SHARD]["patch_id"], "/maps", **query)).json()["maps"]
    found = {entry["method"]: (entry["image"], entry["why_not"]) for entry in maps}
    assert found == {"grad_cam": (None, "nowhere above 0"), "layer_cam": (None, "not made")}


def test_a_patch_that_no_network_saw(client: TestClient, made: Made) -> None:
    assert (
        client.get(of_patch(made.rows[UNSEEN]["patch_id"], "/branch", branch=made.branches["none"])).json()["labels"]
        == []
    )


def test_names_of_any_kind_are_looked_up(client: TestClient) -> None:
    assert client.get(of_patch(NASTY)).json()["patch_id"] == NASTY


def test_a_name_with_slashes_is_one_name_everywhere(client: TestClient, made: Made) -> None:
    row, branch = made.rows[2], made.branches["srresnet"]
    assert client.get(of_patch(SLASHED)).json()["acquired"] == row["acquired"]
    around = client.get(of_patch(SLASHED, "/neighbours")).json()["samples"]
    assert around[0]["distance_km"] == pytest.approx(1.2, abs=0.02)
    probs = [line["prob"] for line in client.get(of_patch(SLASHED, "/branch", branch=branch)).json()["labels"]]
    np.testing.assert_allclose(probs, made.probs["srresnet"][2], rtol=1e-6)
    maps = client.get(of_patch(SLASHED, "/maps", branch=branch, label=NAMES[4])).json()["maps"]
    assert all(entry["image"] for entry in maps)
    for name in ("Forest", "Forest_1.jpg", f"{SLASHED}/", f"{SLASHED}/maps", f"/{SLASHED}"):
        assert client.get(of_patch(name)).status_code == 404


def test_a_store_whose_run_goes_on_shows_its_patches(unfinished: Path, made: Made) -> None:
    client = client_of(make_app(unfinished))
    store = client.get("/api/store").json()
    assert (store["n"], store["branches"], store["run"]) == (N, [], None)
    assert client.get(of_patch(made.rows[0]["patch_id"])).json()["has_pixels"]
    assert not client.get(of_patch(made.rows[SHARD]["patch_id"])).json()["has_pixels"]
    assert client.get("/api/samples", params={"branch": made.branches["none"]}).status_code == 422


@pytest.mark.parametrize("lost", ["reliability", "explanations", "reliability_clusters", "classes"])
def test_a_store_without_some_tables_works_without_them(made: Made, tmp_path: Path, lost: str) -> None:
    shutil.copytree(made.paths.root, tmp_path / "store", ignore=shutil.ignore_patterns(lost))
    client = client_of(make_app(tmp_path / "store"))
    branches = client.get("/api/store").json()["branches"]
    if lost == "classes":  # nobody knows which label a probability is of
        assert branches == []
        return
    scored = [False] * 3 if lost == "reliability" else [True, False, True]
    assert [one["has_reliability"] for one in branches] == scored
    found = client.get(of_patch(made.rows[0]["patch_id"], "/branch", branch=made.branches["srresnet"])).json()
    assert found["methods"] == ([] if lost == "explanations" else list(METHODS))
    assert len(found["labels"]) == len(NAMES)
    assert client.get("/api/samples", params={"branch": made.branches["srresnet"]}).status_code == 200
