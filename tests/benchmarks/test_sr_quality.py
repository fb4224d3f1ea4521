"""The benchmark's own pieces, and what the shipped weights reach on pixels that they were never shown."""

import runpy
from pathlib import Path

import numpy as np
import pytest
import torch

import sr_models
from sr_models.quality import psnr_db, reduce_mean
from sr_models.wald_pairs import ImageSet

BENCHMARK = runpy.run_path(str(Path(__file__).parents[2] / "benchmarks" / "sr_quality.py"))
MAX_DN = BENCHMARK["MAX_DN"]


def test_rows_are_the_means_over_the_images() -> None:
    rng = np.random.default_rng(0)
    images = tuple(torch.from_numpy(rng.integers(0, 3000, (3, 120, 124), np.uint16)) for _ in range(2))
    bicubic = sr_models.load("bicubic")
    row = BENCHMARK["measure"]("noise", ImageSet("noise", images, MAX_DN), "bicubic", bicubic)
    x = torch.stack(images).float() / 3000
    assert row.psnr_db == pytest.approx(float(psnr_db(bicubic(reduce_mean(x)), x).mean()), abs=1e-4)
    assert (row.images, row.weights_sha256) == (2, None)
    assert row.reflectance_mae > 0


def test_tiles_are_the_patches_of_the_image_in_rows() -> None:
    image = torch.arange(3 * 250 * 370).reshape(3, 250, 370)
    tiles = BENCHMARK["_tiles"](image)
    assert tiles.shape == (6, 3, 120, 120)
    assert torch.equal(tiles[4], image[:, 120:240, 120:240])


def test_the_figure_shows_the_busiest_places_side_by_side(tmp_path: Path) -> None:
    from PIL import Image

    dn = torch.full((3, 480, 480), 500, dtype=torch.int32)
    dn[:, 240:360:2, 120:240] = 2500  # one busy place
    resolvers = {"bicubic": sr_models.load("bicubic"), "srresnet (ours)": sr_models.load("bicubic")}
    BENCHMARK["figure"](ImageSet("drawn", (dn,), MAX_DN), resolvers, tmp_path / "figure.webp")
    assert BENCHMARK["_busiest"](dn.float(), 120, 1) == [(240, 120)]
    with Image.open(tmp_path / "figure.webp") as picture:
        assert picture.size == (4 * 246 - 6, 24 + 3 * 246 - 6)


def test_the_shipped_weights_beat_bicubic_on_the_held_out_quarter(shared_data: Path) -> None:
    sets = BENCHMARK["test_sets"](shared_data)
    quarter = sets[BENCHMARK["QUARTER"]]
    (dn,) = quarter.images
    whole = 1068 - 534
    assert dn.shape == (3, whole // 4 * 4, whole // 4 * 4)
    part = ImageSet("part", (dn[:, 240:360].contiguous(),), MAX_DN)
    resolvers = {name: BENCHMARK["models"](shared_data)[name] for name in ("bicubic", "srresnet (ours)")}
    rows = {name: BENCHMARK["measure"](name, part, name, resolver) for name, resolver in resolvers.items()}
    ours, bicubic = rows["srresnet (ours)"], rows["bicubic"]
    assert ours.psnr_db - bicubic.psnr_db >= 0.5
    assert ours.ssim - bicubic.ssim >= 0.02
    assert ours.reflectance_mae < bicubic.reflectance_mae
    eurosat = sets["EuroSAT, held out"]
    some = ImageSet("some", eurosat.images[:10], eurosat.max_dn)
    control, fitted = (BENCHMARK["measure"]("some", some, name, r).psnr_db for name, r in resolvers.items())
    assert fitted - control >= 0.3
