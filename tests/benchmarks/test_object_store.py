import pytest

from benchmarks.object_store import Row, measure, median_rates


def test_both_clients_do_the_same_work(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_REGION"):
        monkeypatch.setenv(name, "")  # the benchmark sets them: put back afterwards
    rows = measure(parts=3, part_bytes=100, shards=1, shard_size=16, repeats=1)
    assert [row.unit for row in rows] == ["1/s", "1/s", "names/s", "MB/s of pixels", "MB/s of pixels"]
    assert all(row.obstore > 0 and row.fsspec > 0 for row in rows)


def test_the_ratio_tells_how_many_times_as_fast_obstore_is() -> None:
    assert Row("", "", obstore=6.0, fsspec=4.0).ratio == 1.5
    turns: list[str] = []
    median_rates({"a": None, "b": None}, 3, 1.0, lambda client, name: turns.append(name))  # type: ignore[dict-item]
    assert turns == ["a", "b"] * 3
