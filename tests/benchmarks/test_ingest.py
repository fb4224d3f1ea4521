import json
from pathlib import Path

import pytest

from benchmarks import ingest


def run(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> None:
    monkeypatch.setattr("sys.argv", ["ingest.py", *arguments])
    ingest.main()


def test_a_tiny_run_has_every_row_and_its_shares_are_those_of_its_rates(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("SUPERSCENE_DATA", raising=False)
    out = tmp_path / "results" / "ingest.json"
    tiny = ("--shards", "2", "--shard-size", "16", "--seconds", "0.05", "--repeats", "2")
    run(monkeypatch, *tiny, "--out", str(out))
    result = json.loads(out.read_text())
    assert (result["shards"], result["shard_size"], result["patches"]) == (2, 16, 32)
    assert result["pixel_bytes_per_patch"] == 2 * (4 * 120**2 + 6 * 60**2 + 2 * 20**2)
    assert result["codec"] == "blosc lz4, level 5, bitshuffle"
    assert result["codec"] in capsys.readouterr().out
    rows = {row["name"]: row for row in result["rows"]}
    assert {name: row["processes"] for name, row in rows.items()} == {
        "raw bytes (os.read)": 1,
        "rasterio loop": 1,
        "superscene reader": 1,
        "reading": 2,
        "reading and writing": 2,
    }
    for row in rows.values():
        assert 0 < row["slowest"] <= row["patches_per_second"] <= row["fastest"]
        assert row["megabytes_per_second"] == pytest.approx(row["patches_per_second"] * 0.16)
    shares = {(share["of"], share["over"]): share for share in result["shares"]}
    assert set(shares) == {
        ("superscene reader", "rasterio loop"),
        ("superscene reader", "raw bytes (os.read)"),
        ("reading and writing", "reading"),
    }
    for (of, over), share in shares.items():
        assert share["by_clock"] * rows[over]["patches_per_second"] == pytest.approx(rows[of]["patches_per_second"])
        assert share["by_fastest"] * rows[over]["fastest"] == pytest.approx(rows[of]["fastest"])
        assert share["by_cpu"] * rows[over]["patches_per_cpu_second"] == pytest.approx(
            rows[of]["patches_per_cpu_second"]
        )


def test_shards_that_cannot_be_dealt_out_evenly_are_refused(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit, match="2"):
        run(monkeypatch, "--shards", "3", "--processes", "2")
    assert "no multiple" in capsys.readouterr().err
