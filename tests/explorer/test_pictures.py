"""Pictures are the pixels of the Zarr stores, to the last bit."""

import io
import json
import shutil
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from numpy.typing import NDArray
from PIL import Image
from starlette.testclient import TestClient

import sr_models
from explorer.app import make_app
from infra.bigearthnet.classes import CLASSES
from infra.storage import StorePaths
from infra.tables import RUNS, publish, read_table
from tests.explorer.conftest import client_of, of_patch
from tests.explorer.store import SHARD, Made

PICKED = (0, 2, 13, SHARD, 59)


def picture(client: TestClient, patch: str, what: str, **query: str) -> NDArray[np.uint8]:
    answer = client.get(of_patch(patch, f"/{what}.png", **query))
    assert answer.status_code == 200, answer.text
    assert answer.headers["content-type"] == "image/png"
    return np.asarray(Image.open(io.BytesIO(answer.content), formats=["PNG"]))


def by_hand(red: NDArray[np.uint16], green: NDArray[np.uint16], blue: NDArray[np.uint16]) -> NDArray[np.uint8]:
    share = np.minimum(np.stack([red, green, blue], axis=-1) / 3000, 1)
    return np.rint(255 * share ** (1 / 1.5)).astype(np.uint8)


@pytest.mark.parametrize("i", PICKED)
def test_true_and_false_colour(client: TestClient, made: Made, i: int) -> None:
    blue, green, red, infrared = made.dn[i]
    patch = made.rows[i]["patch_id"]
    np.testing.assert_array_equal(picture(client, patch, "true-colour"), by_hand(red, green, blue))
    halved = (infrared / 2).round().astype(np.uint16)  # stretched half as much
    np.testing.assert_array_equal(picture(client, patch, "false-colour"), by_hand(halved, red, green))


@pytest.mark.parametrize("i", PICKED)
def test_sr_models_stored_and_computed(client: TestClient, made: Made, i: int) -> None:
    blue, green, red, _ = made.dn[i]
    patch = made.rows[i]["patch_id"]
    of = {sr: picture(client, patch, "branch", branch=branch) for sr, branch in made.branches.items()}
    np.testing.assert_array_equal(of["none"], by_hand(red, green, blue))
    np.testing.assert_array_equal(of["srresnet"], by_hand(*made.sr_dn[i]))
    engine = sr_models.SrEngine(sr_models.load("bicubic", device="cpu"))
    enlarged = engine.super_resolve(np.stack([red, green, blue])[None], max_dn=3000)[0]
    np.testing.assert_array_equal(of["bicubic"], by_hand(*enlarged))


def test_the_input_of_sr_models_is_as_coarse_as_they_see_it(made: Made, tmp_path: Path) -> None:
    """With `degrade: 4`, means of 4 x 4 pixels."""
    shutil.copytree(made.paths.root, tmp_path / "store")
    folder = StorePaths(tmp_path / "store").table("runs")
    (run,) = read_table(folder).to_pylist()
    run["run_yaml"] = json.dumps({**json.loads(run["run_yaml"]), "degrade": 4})
    publish(folder, pa.Table.from_pylist([run], RUNS), RUNS, ["run_id"], file_stem=f"run-{run['run_id']}")
    coarse = made.dn[0].reshape(4, 30, 4, 30, 4).mean(axis=(2, 4)).round().astype(np.uint16)
    found = picture(client_of(make_app(tmp_path / "store")), made.rows[0]["patch_id"], "input")
    assert found.shape == (30, 30, 3)
    np.testing.assert_array_equal(found, by_hand(coarse[2], coarse[1], coarse[0]))


def test_the_input_of_sr_models_is_else_the_patch(client: TestClient, made: Made, unfinished: Path) -> None:
    blue, green, red, _ = made.dn[0]
    patch = made.rows[0]["patch_id"]
    np.testing.assert_array_equal(picture(client, patch, "input"), by_hand(red, green, blue))
    answer = client_of(make_app(unfinished)).get(of_patch(patch, "/input.png"))
    assert (answer.status_code, answer.json()["detail"]) == (404, "no run has ended in this store")


def test_land_cover_has_the_colours_of_the_classes(client: TestClient, made: Made) -> None:
    found = picture(client, made.rows[2]["patch_id"], "land-cover")
    colour = {code: (*bytes.fromhex(c.colour[1:]), 255) for c in CLASSES for code in c.clc}
    expected = [[colour.get(code, (0, 0, 0, 0)) for code in row] for row in made.codes[2].tolist()]
    np.testing.assert_array_equal(found, np.array(expected, np.uint8))
    assert client.get(of_patch(made.rows[13]["patch_id"], "/land-cover.png")).status_code == 404  # has_map is false


def test_pixels_that_are_lost_are_not_found(unfinished: Path, made: Made) -> None:
    client = client_of(make_app(unfinished))
    here, lost = (made.rows[i]["patch_id"] for i in (0, SHARD))
    assert client.get(of_patch(here, "/true-colour.png")).status_code == 200
    answer = client.get(of_patch(lost, "/true-colour.png"))
    assert answer.status_code == 404
    assert "not in archive.zarr" in answer.json()["detail"]
