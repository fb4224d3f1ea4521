"""`superscene explain`: figures from a finished run, and a run that ends with judged maps."""

import csv
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
import torch
from typer.testing import CliRunner

from flows.cli import app
from flows.commands import runs
from flows.config import RunConfig, load_config, validated
from flows.explain import draw_patch, draw_sheet, first_seed, likeliest
from infra.errors import ConfigError, PipelineError, StoreError, UnknownNameError
from infra.parts import StageParts
from infra.storage import StorePaths
from tasks import explained_patch
from tasks.explained_patch import PatchPlace
from tests.flows.stores import Inputs, maps_by_patch, superscene

METHODS = ["grad_cam", "eigen_cam", "rise"]


@pytest.fixture
def config(inputs: Inputs, tmp_path: Path) -> RunConfig:
    """The finished run's, with more methods than it had."""
    explain = {"methods": METHODS, "options": {"rise": {"masks": 4}}}
    return load_config(inputs.config(inputs.reference, tmp_path / "RUN.yaml", explain=explain))


@pytest.fixture(scope="module")
def patches(inputs: Inputs) -> pd.DataFrame:
    return pd.read_parquet(inputs.reference / "tables" / "patches").set_index("patch_id")


def words(path: Path) -> list[str]:
    """The texts of an SVG."""
    return re.findall(r"<!-- (.*?) -->", path.read_text())


def test_a_figure_has_a_row_for_each_model_and_a_column_for_each_method(
    inputs: Inputs, config: RunConfig, patches: pd.DataFrame, tmp_path: Path
) -> None:
    """Of the label that the tables call the likeliest of the true ones, with its probabilities."""
    patch_id, patch = next(iter(patches[patches.split == "test"].iterrows()))
    assert draw_patch(config, str(patch_id), tmp_path / "figure.svg", None, None) == [tmp_path / "figure.svg"]
    found = words(tmp_path / "figure.svg")
    assert len(re.findall(r'<g id="axes_\d+">', (tmp_path / "figure.svg").read_text())) == 2 * 4
    assert [word for word in found if word in {"picture", *METHODS}] == ["picture", *METHODS]
    assert [word for word in found if word in {"none", "bicubic"}] == ["none", "bicubic"]
    predictions = pd.read_parquet(inputs.reference / "tables" / "predictions")
    probs = predictions[predictions.patch_id == patch_id].set_index("sr").probs
    labels = pd.read_parquet(inputs.reference / "tables" / "classes").sort_values("label_index").label.tolist()
    likely = max(patch["labels"], key=lambda label: probs["none"][labels.index(label)])
    assert any(word.startswith(f"{likely}, ") and word.endswith(" % of the patch") for word in found)
    shown = [float(word.removeprefix("p = ")) for word in found if word.startswith("p = ")]
    expected = [probs[sr][labels.index(likely)] for sr in ("none", "bicubic")]
    assert shown == pytest.approx(expected, abs=0.0051)


def test_maps_of_a_figure_are_those_of_the_run(
    inputs: Inputs, config: RunConfig, patches: pd.DataFrame, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before they are enlarged, to half precision."""
    stored = maps_by_patch(inputs.reference)
    patch_id = str(patches.index[-1])
    seen: list[torch.Tensor] = []

    def unchanged(maps: torch.Tensor, size: int) -> torch.Tensor:
        assert size == 120
        seen.append(maps[0])
        return maps

    monkeypatch.setattr(explained_patch, "on_grid", unchanged)
    monkeypatch.setattr("flows.explain.patch_figure", lambda *_: None)
    draw_patch(config, patch_id, tmp_path / "x.png", None, None)
    for sr, maps in (("none", seen[0]), ("bicubic", seen[len(METHODS)])):  # grad_cam is each branch's first
        expected = stored[patch_id, sr, "grad_cam"]
        np.testing.assert_allclose(maps.numpy(), expected, rtol=2e-3, atol=1e-3 * expected.max())


def test_a_sheet_shows_patches_of_the_split_and_its_table_says_which(
    inputs: Inputs, config: RunConfig, patches: pd.DataFrame, tmp_path: Path
) -> None:
    path = tmp_path / "sheet.svg"
    assert draw_sheet(config, 3, "test", path, "resnet18") == [path, tmp_path / "sheet.csv"]
    with (tmp_path / "sheet.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == len({row["patch_id"] for row in rows}) == 3
    predictions = pd.read_parquet(inputs.reference / "tables" / "predictions")
    probs = predictions[predictions.sr == "none"].set_index("patch_id").probs
    labels = pd.read_parquet(inputs.reference / "tables" / "classes").sort_values("label_index").label.tolist()
    labels_of = {str(name): list(row["labels"]) for name, row in patches.iterrows()}
    for row in rows:
        assert patches.loc[row["patch_id"], "split"] == "test"
        assert row["truth"].split(";") == labels_of[row["patch_id"]]
        assert row["label"] == labels[probs[row["patch_id"]].argmax()]
        assert float(row["prob"]) == pytest.approx(probs[row["patch_id"]].max(), abs=1e-4)
        assert [row[f"verdict_{method}"] for method in METHODS] == ["", "", ""]
    before = (tmp_path / "sheet.csv").read_bytes()
    draw_sheet(config, 3, "test", path, None)  # the same patches again
    assert (tmp_path / "sheet.csv").read_bytes() == before
    draw_sheet(config, 1000, "test", path, None)
    assert len((tmp_path / "sheet.csv").read_text().splitlines()) == 1 + (patches.split == "test").sum()


def test_a_sheet_leaves_out_patches_with_snow_or_cloud(inputs: Inputs, patches: pd.DataFrame, tmp_path: Path) -> None:
    """As far as anybody knows; where all have some, they are shown."""
    store = shutil.copytree(inputs.reference, tmp_path / "store")
    explain = {"methods": ["grad_cam"]}
    config = load_config(inputs.config(store, tmp_path / "RUN.yaml", explain=explain, sr=["none"]))
    (ingest,) = {path.parent for path in (store / "work" / "ingest").glob("*/part-*.parquet")}
    parts = StageParts(StorePaths(store), "ingest", ingest.name)

    def flag(snow: Callable[[str], bool], cloud: Callable[[str], bool]) -> None:
        for shard in parts.done():
            rows = parts.read(shard)
            for name, chosen in (("has_snow", snow), ("has_cloud", cloud)):
                values = pa.array([chosen(patch) or None for patch in rows["patch_id"].to_pylist()], pa.bool_())
                rows = rows.set_column(rows.schema.get_field_index(name), rows.schema.field(name), values)
            parts.write(shard, rows)

    of_test = sorted(patches.index[patches.split == "test"])
    for snow, cloud, expected in (
        (of_test[:1], of_test[1:2], of_test[2:]),
        (of_test, [], of_test),
    ):
        flag(snow.__contains__, cloud.__contains__)
        (tmp_path / "sheet.csv").unlink(missing_ok=True)
        draw_sheet(config, 1000, "test", tmp_path / "sheet.png", None)
        assert sorted(pd.read_csv(tmp_path / "sheet.csv").patch_id) == expected


def test_what_is_not_there_is_named(inputs: Inputs, config: RunConfig, patches: pd.DataFrame, tmp_path: Path) -> None:
    patch, out = str(patches.index[0]), tmp_path / "out.png"
    with pytest.raises(UnknownNameError, match="no patch 'nobody'"):
        draw_patch(config, "nobody", out, None, None)
    with pytest.raises(UnknownNameError, match="no label 'Lava': choose one of Urban fabric"):
        draw_patch(config, patch, out, "Lava", None)
    with pytest.raises(UnknownNameError, match="no classifier 'vgg': choose one of resnet18"):
        draw_patch(config, patch, out, None, "vgg")
    with pytest.raises(UnknownNameError, match="no classifier 'vgg': choose one of resnet18"):
        draw_sheet(config, 1, "test", out, "vgg")
    with pytest.raises(ConfigError, match=r"out\.jpg: figures end in"):
        draw_patch(config, patch, tmp_path / "out.jpg", None, None)
    with pytest.raises(ConfigError, match="no patch of the split 'nowhere': it has test, train, validation"):
        draw_sheet(config, 1, "nowhere", out, None)
    nothing = load_config(inputs.config(inputs.reference, tmp_path / "none.yaml", explain={"methods": []}))
    with pytest.raises(ConfigError, match=r"explain\.methods is empty"):
        draw_patch(nothing, patch, out, None, None)
    fresh = load_config(inputs.config(tmp_path / "fresh"))
    with pytest.raises(StoreError, match="no finished run"):
        draw_patch(fresh, patch, out, None, None)
    other = load_config(
        inputs.config(
            inputs.reference,
            tmp_path / "other.yaml",
            classifiers=["resnet18", "wide"],
            variants={"wide": {"network": "resnet18"}},
        )
    )
    with pytest.raises(ConfigError, match="no predictions of wide: run the flow first"):
        draw_patch(other, patch, out, None, "wide")
    assert not out.exists()
    assert not (tmp_path / "fresh").exists()


def test_a_checkpoint_that_is_gone_says_so(inputs: Inputs, patches: pd.DataFrame, tmp_path: Path) -> None:
    store = tmp_path / "store"
    shutil.copytree(inputs.reference, store)
    for path in (store / "checkpoints").rglob("*.safetensors"):
        path.unlink()
    with pytest.raises(ConfigError, match=r"the checkpoint of resnet18 on none with the SHA-256 .* is gone"):
        draw_patch(load_config(inputs.config(store)), str(patches.index[0]), tmp_path / "x.png", None, None)


def test_the_likeliest_of_the_true_labels_is_explained_or_of_all_where_none_is_known() -> None:
    class View:
        labels = ("a", "b", "c")

        def prob_of(self, label: str) -> float:
            return {"a": 0.2, "b": 0.9, "c": 0.5}[label]

    for truth, expected in ((("a", "c"), "c"), (("a", "unknown to it"), "a"), (None, "b"), ((), "b"), (("x",), "b")):
        place = PatchPlace("p", 0, 0, truth, has_map=True, clean=True)
        assert likeliest(View(), place) == expected  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("seeds", "fitted", "expected"),
    [([2, 10, 0], ["0", "10", "2"], "2"), ([2, 10, 0], ["0", "10"], "10"), ([5], ["3", "12"], "3")],
)
def test_the_network_explained_is_that_of_the_first_seed_fitted(
    seeds: list[int], fitted: list[str], expected: str
) -> None:
    """The tables' maps are of the first of train.seeds, and JSON sorts names: 10 before 2."""
    values = {
        "archive": {"layout": "bigearthnet-v2"},
        "store": "store",
        "classifiers": ["resnet18"],
        "train": {"backbone": "archive", "seeds": seeds},
    }
    assert first_seed(validated(values, "RUN.yaml"), "resnet18", fitted) == expected


@pytest.mark.parametrize(
    ("arguments", "words_of_it"),
    [
        (["--patch", "p", "--sheet", "3"], "choose one"),
        (["--label", "Pastures"], "--label is for --patch"),
        (["--sheet", "3", "--label", "Pastures"], "--label is for --patch"),
        (["--patch", "p", "--split", "test"], "--split is for --sheet"),
        (["--out", "figure.png"], "give --patch or --sheet"),
        (["--classifier", "resnet18"], "give --patch or --sheet"),
    ],
)
def test_options_that_do_not_fit_are_refused_before_anything_runs(
    arguments: list[str], words_of_it: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(runs, "run_until", lambda *_, **__: pytest.fail("the flow ran"))
    result = CliRunner().invoke(app, ["explain", "RUN.yaml", *arguments])
    assert isinstance(result.exception, PipelineError)
    assert words_of_it in str(result.exception)


def test_figures_are_written_by_the_command(
    inputs: Inputs, config: RunConfig, patches: pd.DataFrame, tmp_path: Path
) -> None:
    run_yaml, out = tmp_path / "RUN.yaml", tmp_path / "new" / "figure.png"
    methods = ["--set", "explain={methods: [cam]}"]
    result = CliRunner().invoke(
        app, ["explain", str(run_yaml), *methods, "--patch", str(patches.index[0]), "--out", str(out)]
    )
    assert result.exit_code == 0, result.output
    assert result.output.split() == ["written:", str(out)]
    assert out.read_bytes().startswith(b"\x89PNG")
    sheet = tmp_path / "sheet.webp"
    result = CliRunner().invoke(app, ["explain", str(run_yaml), *methods, "--sheet", "2", "--out", str(sheet)])
    assert result.exit_code == 0, result.output
    rows = pd.read_csv(tmp_path / "sheet.csv")
    assert set(patches.loc[rows.patch_id, "split"]) == {"validation"}


def test_options_that_do_not_fit_a_branch_stop_the_run_before_it_trains(inputs: Inputs, tmp_path: Path) -> None:
    """After the archive is read, which says how large patches are, and before anything else."""
    store = tmp_path / "store"
    methods, options = ["grad_plus_plus_score_cam"], {"grad_plus_plus_score_cam": {"reduce_input": True}}
    run_yaml = inputs.config(store, None, explain={"methods": methods, "options": options})
    result = superscene("explain", run_yaml)
    assert result.returncode == 2, result.stderr
    assert "an input of 4 x 4 pixels, the size of the map, resnet18 needs at least 32" in result.stderr
    made = {path.name for path in (store / "work").iterdir()}
    assert made == {"configs", "ingest", "lock", "plan", "progress.json", "run.json"}
    assert not (store / "checkpoints").exists()


@pytest.mark.slow
def test_the_command_alone_runs_until_maps_are_judged(inputs: Inputs, patches: pd.DataFrame, tmp_path: Path) -> None:
    """Of the network borrowed from another store: its maps are judged, no prediction is, and there is no report."""
    store = tmp_path / "store"
    run_yaml = inputs.config(
        store,
        None,
        models_from=str(inputs.reference),
        sr=["none"],
        explain={"methods": ["cam", "rise"], "labels": "true", "sample": 1, "options": {"rise": {"masks": 2}}},
    )
    result = superscene("explain", run_yaml)
    assert result.returncode == 0, result.stderr
    tables = {path.name for path in (store / "tables").iterdir()}
    assert "explanation_metrics" in tables
    assert not tables & {"metrics", "comparisons"}
    assert not (store / "report").exists()
    found = pd.read_parquet(store / "tables" / "explanation_metrics")
    assert set(found.method) == {"cam", "rise", "random", "uniform"}
    explained = pd.read_parquet(store / "tables" / "explanations").astype({"method": str})
    assert explained[explained.method == "rise"].groupby("split").patch_id.nunique().to_dict() == {
        "test": 1,
        "train": 1,
        "validation": 1,
    }
    assert explained[explained.sampled].groupby("split").patch_id.nunique().max() == 1
    of_all = found[found.label.isna() & found.area_quartile.isna() & found.reference.isna()]
    for (method, split), rows in explained.groupby(["method", "split"]):
        of_method = of_all[(of_all.method == method) & (of_all.split == split)]
        subsets = {"sample": rows[rows.sampled]} | ({} if method == "rise" else {"all": rows})
        assert set(of_method.subset) == set(subsets)
        for subset, chosen in subsets.items():
            means = of_method[of_method.subset == subset].set_index("metric")
            assert means.value["judd_auc"] == pytest.approx(chosen.judd_auc.mean(), abs=1e-6)
            assert means.n["judd_auc"] == chosen.judd_auc.count()
