"""A tiny run of the prediction benchmark, and its check of probabilities."""

import json
import runpy
from pathlib import Path

import numpy as np
import pytest
from torch import nn

from classifiers import CLASSIFIERS
from classifiers.registry import ClassifierSpec

BENCHMARK = runpy.run_path(str(Path(__file__).parents[2] / "benchmarks" / "prediction.py"))
TINY = (
    *("--patches", "2", "--seed-patches", "3", "--sr", "bicubic", "--batch-size", "2", "--seeds", "2"),
    *("--networks", "resnet18", "small", "--one", "resnet18", "--repeats", "1"),
)
SMALL = ClassifierSpec(
    timm_name=None,
    backbone=lambda channels: nn.Sequential(nn.Conv2d(channels, 8, 3, 4, 1), nn.ReLU()),
    feature_channels=8,
    target_layer="1",
    first_conv="0.weight",
    classifier="fc.",
    min_size=4,
    licence="none",
    paper="none",
)


def test_a_tiny_run_has_every_way_and_its_ratios_are_those_of_its_rates(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("classifiers.registry.CLASSIFIERS", {**CLASSIFIERS, "small": SMALL})
    out = tmp_path / "results" / "prediction.json"
    BENCHMARK["main"]([*TINY, "--out", str(out)])
    result = json.loads(out.read_text())
    rows = {(row["case"], row["way"]): row for row in result["rows"]}
    fused, each, loop = (BENCHMARK[name] for name in ("FUSED", "EACH", "LOOP"))
    one, many, seeds = "one classifier", "2 classifiers", "2 seeds, no SR"
    assert set(rows) == {
        *((one, way) for way in (fused, loop)),
        *((many, way) for way in (fused, each, loop)),
        *((seeds, way) for way in (fused, each)),
    }
    for (case, _), row in rows.items():
        assert row["patches"] == (3 if case == seeds else 2)
        assert 0 < row["seconds"] <= row["slowest"]
        assert row["patches_per_second"] * row["seconds"] == pytest.approx(row["patches"])
        assert row["fused_over"] * row["patches_per_second"] == pytest.approx(rows[case, fused]["patches_per_second"])
        assert row["fused_over_by_cpu"] * rows[case, fused]["cpu_seconds"] == pytest.approx(row["cpu_seconds"])
        assert row["difference"] <= 1e-5
    stages = {case: [part for part in result["stages"] if part["case"] == case] for case in (one, many, seeds)}
    assert [part["stage"] for part in stages[many]] == [
        "read",
        "pixels (bicubic)",
        "backbone of resnet18",
        "backbone of small",
        "heads, tables, rest",
    ]
    for case, parts in stages.items():
        assert all(part["seconds"] >= 0 for part in parts)
        assert parts[-1]["seconds"] == 0 or sum(part["share"] for part in parts) == pytest.approx(1)
        assert all(part["share"] * rows[case, fused]["seconds"] == pytest.approx(part["seconds"]) for part in parts)
    printed = capsys.readouterr().out
    assert all(name in printed for name in (fused, each, loop, one, many, seeds))


def test_other_probabilities_are_found_out() -> None:
    check = BENCHMARK["largest_difference"]
    expected = {("resnet18", 0): np.linspace(0, 1, 6, dtype=np.float32).reshape(2, 3)}
    near = {key: values + np.float32(2e-6) for key, values in expected.items()}
    assert check(near, expected) == pytest.approx(2e-6, abs=1e-7)
    with pytest.raises(SystemExit, match=r"differ by 2\.0e-05"):
        check({key: values + np.float32(2e-5) for key, values in expected.items()}, expected)
    alike = {key: np.full_like(values, 0.5) for key, values in expected.items()}
    with pytest.raises(SystemExit, match="between patches"):  # a check of these would show nothing
        check(alike, alike)
