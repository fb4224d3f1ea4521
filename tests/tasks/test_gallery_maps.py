from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F  # noqa: N812

from infra.bigearthnet.classes import NAMES
from tasks.gallery_maps import MISSING, NOT_MADE, UNTAUGHT, StoredMaps
from tasks.gallery_rows import explained_folders
from tasks.report.numbers import Numbers
from tests.tasks.gallery_store import add_maps, bright
from tests.tasks.report.report_store import Made, Wanted, make_store

KNOWN = NAMES[:3]


def stored(made: Made) -> StoredMaps:
    numbers = Numbers(made.paths)
    return StoredMaps(numbers, explained_folders(numbers, "resnet18"), 120)


def patch(row: int) -> dict[str, Any]:
    return {"shard": 0, "row": row}


@pytest.fixture
def made(tmp_path: Path) -> Made:
    return make_store(tmp_path, Wanted(sr=("none", "bicubic")))


def test_maps_of_all_sizes_come_onto_the_grid_of_the_patch(made: Made) -> None:
    """A 4 x 4 map of a small input, a 15 x 15 one of an enlarged input, and one of the grid itself."""
    rng = np.random.default_rng(0)
    raw = {}
    for sr, method, edge, unit in (
        ("none", "layer_cam", 4, 1e-6),
        ("bicubic", "layer_cam", 15, 1e6),
        ("none", "rise", 120, 1.0),
    ):
        raw[sr, method] = (unit * rng.random((4, 3, edge, edge))).astype(np.float32)
        add_maps(made.paths, sr, method, raw[sr, method], names=KNOWN)
    maps = stored(made)
    for (sr, method), values in raw.items():
        for row, label in ((0, 0), (2, 1), (3, 2)):
            found = maps.read(sr, method, patch(row), KNOWN[label])
            expected = F.interpolate(torch.from_numpy(values[row, label])[None, None], size=120, mode="bilinear")[0, 0]
            assert found.values is not None
            np.testing.assert_allclose(found.values, expected, atol=1e-3 * float(expected.max()))  # half precision
            assert found.why_not == ""


def test_one_place_on_the_ground_is_one_place_in_maps_of_every_size(made: Made) -> None:
    for edge, sr in ((4, "none"), (16, "bicubic")):
        add_maps(made.paths, sr, "layer_cam", np.stack([bright("lower left", edge)] * 3), names=KNOWN)
    maps = stored(made)
    for sr in ("none", "bicubic"):
        values = maps.read(sr, "layer_cam", patch(1), KNOWN[0]).values
        assert values is not None
        # Beyond half a pixel of the coarser map, all of the quarter is bright and all else is dark.
        assert (values[75:, :45] == 3).all()
        assert not values[:45].any()
        assert not values[:, 75:].any()


def test_what_is_not_drawn_says_why(made: Made) -> None:
    cams = np.ones((3, 3, 4, 4), np.float32)
    cams[0, 0, 1, 2] = np.nan
    cams[0, 1, 1, 2] = np.inf
    cams[0, 2] = 0
    cams[1, 0] = -1
    add_maps(made.paths, "none", "layer_cam", cams, rows=(0, 1, 3), names=KNOWN)
    maps = stored(made)
    why = [maps.read("none", "layer_cam", patch(row), label) for row in (0, 1, 2) for label in KNOWN]
    words = ["not finite", "not finite", "nowhere above 0", "nowhere above 0", "", "", *[NOT_MADE] * 3]
    assert [found.why_not for found in why] == words
    assert [found.values is None for found in why] == [word != "" for word in words]
    assert maps.read("none", "layer_cam", patch(1), NAMES[5]).why_not == UNTAUGHT
    assert maps.read("bicubic", "layer_cam", patch(1), KNOWN[0]).why_not == NOT_MADE
    assert maps.read("none", "rise", patch(1), KNOWN[0]).why_not == NOT_MADE
    assert maps.read("none", "layer_cam", {"shard": 9, "row": 0}, KNOWN[0]).why_not == NOT_MADE
    assert [maps.has("none", "layer_cam", patch(row)) for row in range(4)] == [True, True, False, True]


def test_a_store_that_is_gone_or_of_an_earlier_layout_says_so(made: Made) -> None:
    add_maps(made.paths, "none", "layer_cam", np.ones((3, 4, 4), np.float32), names=KNOWN)
    add_maps(made.paths, "none", "eigen_cam", np.ones((1, 4, 4), np.float32))
    (layer,) = (made.paths.root / "maps").glob("layer_cam*")
    (eigen,) = (made.paths.root / "maps").glob("eigen_cam*")
    layer.rename(made.paths.root / "elsewhere")
    (eigen / "scale" / "zarr.json").unlink()
    maps = stored(made)
    assert maps.read("none", "layer_cam", patch(0), KNOWN[0]).why_not == MISSING
    assert maps.read("none", "eigen_cam", patch(0), KNOWN[0]).why_not == MISSING
    assert not maps.has("none", "layer_cam", patch(0))


def test_a_method_without_labels_has_one_map_for_all(made: Made) -> None:
    add_maps(made.paths, "none", "eigen_cam", bright("upper right")[None])
    maps = stored(made)
    found = [maps.read("none", "eigen_cam", patch(0), label).values for label in (NAMES[0], NAMES[18])]
    assert found[0] is not None
    assert found[1] is not None
    np.testing.assert_array_equal(found[0], found[1])
    assert found[0][:45, 75:].min() == 3


def test_methods_follow_the_run_and_noise_is_drawn_alone_only(made: Made) -> None:
    add_maps(made.paths, "bicubic", "random", np.ones((1, 4, 4), np.float32))
    add_maps(made.paths, "bicubic", "eigen_cam", np.ones((1, 4, 4), np.float32))
    maps = stored(made)
    assert maps.methods(["random", "rise", "eigen_cam", "grad_cam"]) == ["eigen_cam", "grad_cam"]
    assert maps.methods([]) == ["eigen_cam", "grad_cam"]
    numbers = Numbers(made.paths)
    noise = [f for f in explained_folders(numbers, "resnet18") if f.keys["method"] == "random"]
    assert StoredMaps(numbers, noise, 120).methods(["random"]) == ["random"]
    assert StoredMaps(numbers, [], 120).methods(["grad_cam"]) == []


def test_methods_whose_maps_differ_in_their_unit_alone_are_one(made: Made) -> None:
    """HiResCAM is LayerCAM times 1e5 but for rounding; XGrad-CAM too, on one of the branches; the rest is zeros."""
    cams = np.random.default_rng(0).random((4, 3, 4, 4)).astype(np.float32)
    for sr in ("none", "bicubic"):
        add_maps(made.paths, sr, "layer_cam", cams, names=KNOWN)
        add_maps(made.paths, sr, "hires_cam", cams * np.float32(1.0001e5), names=KNOWN)
        add_maps(made.paths, sr, "x_grad_cam", cams * 7 if sr == "none" else cams[:, ::-1].copy(), names=KNOWN)
        for method in ("ablation_cam", "cam"):
            add_maps(made.paths, sr, method, np.zeros((3, 4, 4), np.float32), names=KNOWN)
    maps = stored(made)
    methods = ["hires_cam", "x_grad_cam", "layer_cam", "ablation_cam", "cam", "rise"]
    every = [patch(row) for row in range(4)]
    groups = [("hires_cam", "layer_cam"), ("x_grad_cam",), ("ablation_cam",), ("cam",), ("rise",)]
    assert maps.distinct(methods, every) == groups
    assert maps.distinct([], every) == []
    assert maps.distinct(["layer_cam", "hires_cam"], []) == [("layer_cam",), ("hires_cam",)]  # nothing tells
