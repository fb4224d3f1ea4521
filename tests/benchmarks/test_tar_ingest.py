"""A tiny run of the benchmark, and the archive that it makes."""

import json
import os
import runpy
import shutil
import subprocess
import tarfile
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import rasterio

BENCHMARK = runpy.run_path(str(Path(__file__).parents[2] / "benchmarks" / "tar_ingest.py"))

pytestmark = pytest.mark.skipif(
    not (shutil.which("zstd") and shutil.which("tar")), reason="the peers zstd and tar are not installed"
)


def test_the_archive_holds_whole_patches_that_differ(tmp_path: Path) -> None:
    packed, n_bytes = BENCHMARK["prepare"](tmp_path, 14)
    assert packed.name == "BigEarthNet-S2.tar.zst"
    ids = pq.read_table(tmp_path / "metadata.parquet")["patch_id"].to_pylist()
    subprocess.run(["zstd", "-dq", str(packed)], check=True)
    plain = packed.with_suffix("")
    assert plain.stat().st_size == n_bytes
    with tarfile.open(plain) as tar:
        tar.extractall(tmp_path / "unpacked", filter="data")
    files = sorted((tmp_path / "unpacked").rglob("*.tif"))
    assert len(files) == 14 * 12
    assert sorted({path.parent.name for path in files}) == ids
    first, copy = (next((tmp_path / "unpacked").rglob(f"{ids[i]}_B02.tif")) for i in (0, 12))
    with rasterio.open(first) as one, rasterio.open(copy) as other:
        a, b = one.read(1), other.read(1)
    assert (a // 16 == b // 16).all()
    assert (a != b).mean() > 0.9


def test_a_tiny_run_has_every_row_and_its_share_is_that_of_its_rates(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    out = tmp_path / "results" / "tar_ingest.json"
    tiny = ["--shards", "2", "--shard-size", "16", "--processes", "1", "--repeats", "2", "--out", str(out)]
    monkeypatch.setattr("sys.argv", ["tar_ingest.py", *tiny])
    BENCHMARK["main"]()
    result = json.loads(out.read_text())
    assert (result["patches"], result["shards"], result["shard_size"], result["processes"]) == (32, 2, 16, 1)
    assert result["archive_bytes"] < result["tar_bytes"]
    rows = {row["name"]: row for row in result["rows"]}
    assert list(rows) == ["zstd -d | tar t", "Zarr write", "one pass", "tar ingest"]
    for row in rows.values():
        assert 0 < row["slowest"] <= row["patches_per_second"] <= row["fastest"]
        per_patch = result["tar_bytes"] / 32 / 1e6
        assert row["megabytes_per_second"] == pytest.approx(row["patches_per_second"] * per_patch)
        assert row["cpu_microseconds"] >= 0
    assert rows["one pass"]["cpu_microseconds"] > 100  # of this process, counted finely; Ray's are in hundredths
    both = rows["zstd -d | tar t"]["cpu_microseconds"] + rows["Zarr write"]["cpu_microseconds"]
    assert result["both_peers_patches_per_second"] == pytest.approx((os.cpu_count() or 1) * 1e6 / both)
    slower = min((rows["zstd -d | tar t"], rows["Zarr write"]), key=lambda row: row["patches_per_second"])
    assert result["slower_peer"] == slower["name"]
    share = result["share_of_slower_peer"]
    assert share == pytest.approx(rows["tar ingest"]["patches_per_second"] / slower["patches_per_second"])
    assert f"the slower peer: {share:.2f} by the clock" in capsys.readouterr().out
