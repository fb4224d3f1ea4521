"""A tiny run of the loaders' benchmark, and its own pieces."""

import json
import runpy
from pathlib import Path

import lmdb
import numpy as np
import pytest
import rasterio
import safetensors.numpy
import torch

from classifiers.training import TensorBatches

BENCHMARK = runpy.run_path(str(Path(__file__).parents[2] / "benchmarks" / "training.py"))
TINY = (
    *("--patches", "20", "--shard-size", "8", "--batch-size", "8", "--sr-patches", "16", "--sr-batch-size", "8"),
    *("--seconds", "0.01", "--repeats", "2", "--network", "resnet18", "--train-patches", "4"),
    *("--train-batch-size", "4", "--device", "cpu"),
)


def test_a_tiny_run_has_every_loader_and_its_ratios_are_those_of_its_rates(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "results" / "training.json"
    BENCHMARK["main"]([*TINY, "--workdir", str(tmp_path), "--out", str(out)])
    result = json.loads(out.read_text())
    rates = {(row["pixels"], row["loader"]): row for row in result["rates"]}
    ours, kept, single, tiffs = (BENCHMARK[name] for name in ("DISK", "KEPT", "LMDB", "TIFF"))
    small, large = ("RGB, 120 x 120", "10m bands, 120 x 120"), "stored SR, 480 x 480"
    assert set(rates) == {
        *((pixels, loader) for pixels in small for loader in (ours, kept, single, tiffs)),
        *((large, loader) for loader in (ours, kept, single)),
    }
    for (pixels, _), row in rates.items():
        assert (row["patches"], row["batch_size"]) == ((16, 8) if pixels == large else (20, 8))
        assert 0 < row["slowest"] <= row["patches_per_second"]
        assert min(row["gathered_per_second"], row["gathered_cold"], row["gathered_per_cpu_second"]) > 0
    ratios = {(ratio["pixels"], ratio["over"]): ratio for ratio in result["ratios"]}
    assert set(ratios) == {key for key in rates if key[1] != ours}
    for (pixels, over), ratio in ratios.items():
        for name, column in (
            ("standardised", "patches_per_second"),
            ("standardised_by_cpu", "patches_per_cpu_second"),
            ("gathered", "gathered_per_second"),
            ("gathered_cold", "gathered_cold"),
            ("gathered_by_cpu", "gathered_per_cpu_second"),
        ):
            assert ratio[name] * rates[pixels, over][column] == pytest.approx(rates[pixels, ours][column])
    # Twelve bands of 16 bits in a value, and what LMDB adds in whole pages; three or four files a patch.
    of_values = 2 * (4 * 120**2 + 6 * 60**2 + 2 * 20**2)
    assert of_values < rates[small[0], single]["file_bytes_per_patch"] < 1.1 * of_values
    assert 2 * 3 * 480**2 < rates[large, single]["file_bytes_per_patch"] < 1.1 * 2 * 3 * 480**2
    assert rates[small[0], tiffs]["file_bytes_per_patch"] < rates[small[1], tiffs]["file_bytes_per_patch"]
    assert [item["loader"] for item in result["waits"]] == [ours, kept, single, tiffs]
    for item in result["waits"]:
        assert (item["patches"], item["batch_size"], item["dtype"]) == (4, 4, "float32")
        assert 0 <= item["wait_share"] < 1
        assert item["device_patches_per_second"] * (1 - item["wait_share"]) == pytest.approx(item["patches_per_second"])
    assert {"torch", "lmdb", "safetensors", "rasterio", "zarr"} <= set(result["versions"])
    printed = capsys.readouterr().out
    assert all(name in printed for name in (ours, kept, single, tiffs, large, "needs a loader of"))


def test_a_value_of_the_database_holds_all_bands_by_name(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    bands = {"B02": rng.integers(0, 9999, (120, 120), np.uint16), "B01": rng.integers(0, 9999, (20, 20), np.uint16)}
    database = BENCHMARK["write_lmdb"](tmp_path / "lmdb", [("patch", bands)])
    try:
        database.forget()
        np.testing.assert_array_equal(BENCHMARK["LmdbPatches"](database, ["B02"]).read("patch"), bands["B02"][None])
    finally:
        database.close()
    with lmdb.open(str(tmp_path / "lmdb"), readonly=True) as environment, environment.begin() as transaction:
        assert [key for key, _ in transaction.cursor()] == [b"patch"]
        content = transaction.get(b"patch")
        assert content is not None
        value = safetensors.numpy.load(content)
    assert value.keys() == bands.keys()
    assert all(np.array_equal(value[name], bands[name]) for name in bands)


def test_the_folders_reader_gives_the_files_bands_in_the_order_asked_for(tmp_path: Path) -> None:
    name = "S2A_MSIL2A_20170601T101031_N9999_R022_T33UUP_00_07"
    for value, band in enumerate(("B02", "B04")):
        path = BENCHMARK["tiff"](tmp_path, name, band)
        path.parent.mkdir(parents=True, exist_ok=True)
        profile = {"driver": "GTiff", "width": 4, "height": 3, "count": 1, "dtype": "uint16"}
        with rasterio.open(path, "w", **profile, transform=rasterio.transform.from_origin(0, 0, 10, 10)) as file:
            file.write(np.full((1, 3, 4), value, np.uint16))
    read = BENCHMARK["TiffPatches"](tmp_path, ["B04", "B02"], [name]).read(name)
    np.testing.assert_array_equal(read, np.stack([np.ones((3, 4)), np.zeros((3, 4))]))


def test_a_loader_of_other_pixels_is_found_out() -> None:
    x, y = torch.rand(6, 3, 4, 4), torch.zeros(6, 2)
    loader = BENCHMARK["Loader"]
    one, shuffled = (
        loader(name, TensorBatches(x, y, 2, seed), list, lambda: None, 0) for name, seed in (("a", 0), ("b", 1))
    )
    BENCHMARK["check_equal"]([one, shuffled])
    other = loader("another", TensorBatches(x + torch.finfo(x.dtype).eps, y, 2, 0), list, lambda: None, 0)
    with pytest.raises(SystemExit, match="another does not give the samples of a"):
        BENCHMARK["check_equal"]([one, shuffled, other])


def test_more_patches_to_train_on_than_there_are_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        BENCHMARK["main"](["--patches", "16", "--train-patches", "16", "--device", "cpu"])
    assert "more than --patches" in capsys.readouterr().err
