"""Reliability of pictures of two classes: planted errors, maps of costly methods on a sample, a fit that is lent."""

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from infra.archives.images import drawn_split
from tests.flows.stores import Inputs, maps_by_patch, run_flows

pytestmark = pytest.mark.slow  # two stores, one of which lends to the other: minutes

SHARE = 0.6
SAMPLE = 24
COLOURS = {"blue": (40, 40, 220), "red": (220, 40, 40)}
EXPLAIN = {
    "methods": ["occlusion", "lime"],
    "sample": SAMPLE,
    "options": {"occlusion": {"window": 8, "stride": 8}, "lime": {"cells": 4, "samples": 40}},
}
OF_VALIDATION = [
    # class, colour, whether the square is in the lower right corner, pictures
    ("red", "red", False, 18),
    ("blue", "blue", False, 18),
    ("red", "blue", False, 2),
    ("blue", "red", False, 2),
    ("blue", "red", True, 20),
]
"""What is red has the label red, but for all of the lower right corner and a tenth of the rest."""


def square(colour: str, lower_right: bool, rng: np.random.Generator) -> Image.Image:
    """A noisy square in a corner of a picture that has the colour of ImageNet's mean, and so says nothing."""
    values = np.full((32, 32, 3), (124, 116, 104))
    corner = slice(16, 32) if lower_right else slice(16)
    values[corner, corner] = np.array(COLOURS[colour]) + rng.integers(-30, 31, (16, 16, 3))
    return Image.fromarray(values.astype(np.uint8))


@pytest.fixture(scope="module")
def planted(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, pd.DataFrame]:
    """The pictures, and of each of the validation split what it shows, by patch."""
    root, rng = tmp_path_factory.mktemp("pictures"), np.random.default_rng(0)
    free: dict[tuple[str, str], list[str]] = {}
    for i in range(400):
        for label in COLOURS:
            name = f"{label}/{i:03d}"
            free.setdefault((label, drawn_split(name, SHARE, seed=0)), []).append(name)
    of_training = [(label, label, corner, 5) for label in COLOURS for corner in (False, True)]
    shown = []
    for split, kinds in (("train", of_training), ("validation", OF_VALIDATION)):
        for label, colour, lower_right, count in kinds:
            for _ in range(count):
                name = free[label, split].pop(0)
                (root / label).mkdir(exist_ok=True)
                square(colour, lower_right, rng).save(root / f"{name}.png")
                shown.append({"patch_id": name, "split": split, "colour": colour, "lower_right": lower_right})
    table = pd.DataFrame(shown).set_index("patch_id")
    return root, table[table.split == "validation"]


def settings(pictures: Path) -> dict[str, Any]:
    """A run on the pictures, of a classifier of two exclusive classes and one that knows a single one."""
    return {
        "archive": {"layout": "image-folder", "root": str(pictures), "validation_share": SHARE},
        "shard_size": 40,
        "sr": ["bicubic"],  # 128 pixels: the last stage of a ResNet-18 has 4 x 4 places
        "classifiers": ["two", "one"],
        "variants": {
            "two": {"network": "resnet18", "train": {"loss": "softmax"}},
            "one": {"network": "resnet18", "train": {"one_against_rest": "red"}},
        },
        "train": {"freeze_backbone": True, "augment": False, "epochs": 20, "batch_size": 8, "lr": 0.01},
        "reliability": {"clusters": 3, "kernel_scale": 0.5},
    }


@pytest.fixture(scope="module")
def folder(inputs: Inputs, planted: tuple[Path, pd.DataFrame], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Stores of runs: `own`, and `borrower`; a third run asks for what is not there."""
    folder = tmp_path_factory.mktemp("sources")
    common = settings(planted[0])
    own, borrower = folder / "own", folder / "borrower"
    borrowed = {**common, "models_from": str(own), "classifiers": ["one"]}
    configs = [
        inputs.config(own, folder / "grad_cam.yaml", **common),
        inputs.config(borrower, **borrowed),
        inputs.config(borrower, folder / "refused.yaml", **borrowed | {"reliability": {"clusters": 2}}),
    ]
    result = run_flows(configs)
    assert result.returncode == 2, result.stderr
    refusal = f"superscene: models_from: {own} has no reliability of these settings for grad_cam maps of one on"
    assert refusal in result.stderr, result.stderr
    return folder


@pytest.fixture(scope="module")
def costly(inputs: Inputs, planted: tuple[Path, pd.DataFrame], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store whose maps are of a sample: one run on those of occlusion, one on those of LIME."""
    store = tmp_path_factory.mktemp("costly") / "store"
    common = {**settings(planted[0]), "sr": ["none"], "classifiers": ["two"], "explain": EXPLAIN}
    of_methods = [{"method": method, "clusters": 2, "pooled": True} for method in ("occlusion", "lime")]
    configs = [
        inputs.config(store, store.with_name(f"{section['method']}.yaml"), **common | {"reliability": section})
        for section in of_methods
    ]
    result = run_flows(configs)
    assert result.returncode == 0, result.stderr
    return store


def table(store: Path, name: str, **where: object) -> pd.DataFrame:
    found = pd.read_parquet(store / "tables" / name)
    for column, value in where.items():
        found = found[found[column] == value]
    return found


@pytest.mark.parametrize(("classifier", "labels"), [("two", {"blue", "red"}), ("one", {"red"})])
def test_every_decision_of_two_classes_has_a_score(folder: Path, classifier: str, labels: set[str]) -> None:
    rows = table(folder / "own", "reliability", sr="bicubic", classifier=classifier)
    patches = table(folder / "own", "patches")
    assert len(patches) == 80
    assert set(zip(rows.patch_id, rows.label, strict=True)) == {(p, k) for p in patches.patch_id for k in labels}
    assert len(rows) == 80 * len(labels)
    assert rows.reliability.notna().all()
    for (label, cluster), members in rows[rows.split == "validation"].groupby(["label", "cluster"], observed=True):
        np.testing.assert_allclose(
            members.cluster_error_rate, (members.predicted != members.truth).mean(), err_msg=label
        )
        (counted,) = table(
            folder / "own",
            "reliability_clusters",
            classifier=classifier,
            label=label,
            cluster=cluster,
            sr="bicubic",
            split="validation",
        ).n
        assert counted == len(members)


@pytest.mark.parametrize("classifier", ["two", "one"])
def test_the_corner_that_errs_is_found_and_flipped(
    folder: Path, planted: tuple[Path, pd.DataFrame], classifier: str
) -> None:
    """Red squares of the lower right corner are all wrong, a tenth of other ones: 24 errors of 60 become 4."""
    rows = table(folder / "own", "reliability", classifier=classifier, label="red", split="validation", sr="bicubic")
    rows = rows.set_index("patch_id").join(planted[1][["colour", "lower_right"]])
    assert np.array_equal(rows.predicted, rows.colour == "red")
    np.testing.assert_allclose(rows.cluster_error_rate, np.where(rows.lower_right, 1.0, 0.1))
    assert np.array_equal(rows.adjusted, rows.predicted & ~rows.lower_right)
    metrics = table(folder / "own", "reliability_metrics", classifier=classifier, label="red", metric="accuracy")
    metrics = metrics[(metrics.sr == "bicubic") & (metrics.split == "validation")]
    value = dict(zip(zip(metrics.score, metrics.reference.fillna(""), strict=True), metrics.value, strict=True))
    assert value["predicted", ""] == pytest.approx(36 / 60)
    assert value["adjusted", ""] == pytest.approx(56 / 60)
    assert value["adjusted", "predicted"] == pytest.approx(20 / 60)


@pytest.mark.parametrize(("method", "size"), [("occlusion", 32), ("lime", 4)])
def test_maps_of_costly_methods_score_the_sample_and_no_other_patch(costly: Path, method: str, size: int) -> None:
    """What speaks for one class speaks against the other: the labels of a patch are in different clusters."""
    clusters = table(costly, "reliability_clusters", method=method, split="fit")
    (config,) = set(clusters.config)
    rows = table(costly, "reliability", sr="none", classifier="two", config=config)
    maps = table(costly, "explanations", sr="none", classifier="two", method=method)
    sampled = set(maps.patch_id[maps.sampled])
    assert set(rows.patch_id) == sampled
    assert rows.groupby("split", observed=True).patch_id.nunique().to_dict() == {"train": 20, "validation": SAMPLE}
    assert rows.groupby("patch_id").label.agg(set).map(len).eq(2).all()
    assert len(rows) == 2 * len(sampled)
    assert rows.reliability.notna().all()
    validation = rows[rows.split == "validation"]
    assert set(clusters.height) == set(clusters.width) == {size}
    assert clusters.n.sum() == len(validation) == 2 * SAMPLE
    of_corner = set()
    for row in clusters.to_dict("records"):
        members = validation[validation.cluster == row["cluster"]]
        wrong = members.predicted != members.truth
        assert (row["n"], row["fp"] + row["fn"]) == (len(members), wrong.sum())
        np.testing.assert_allclose(members.cluster_error_rate, wrong.mean())
        of_corner.add((row["prototype"].argmax() == 0, row["prototype"].argmin() == 0))
    assert (validation.groupby("patch_id").cluster.nunique() == 2).all()
    assert of_corner == {(True, False), (False, True)}  # where most squares are, for the label and against it


def test_every_method_keeps_its_rows(costly: Path) -> None:
    clusters = table(costly, "reliability_clusters")
    assert set(clusters.method) == {"occlusion", "lime"}


@pytest.mark.parametrize("store", ["own", "borrower"])
def test_the_report_shows_them(folder: Path, store: str) -> None:
    page = (folder / store / "report" / "index.html").read_text(encoding="utf-8")
    assert 'id="reliability-table"' in page


def test_a_store_that_borrows_a_classifier_borrows_its_reliability(folder: Path) -> None:
    own, borrower = folder / "own", folder / "borrower"
    (stages,) = table(borrower, "runs").stages
    done = [stage["stage"] for stage in stages if stage["done"]]
    assert "reliability bicubic one" in done
    assert not [name for name in done if name.startswith(("fit reliability", "train", "features"))]
    assert not list((borrower / "checkpoints").glob("*"))
    keys = ["patch_id", "label"]
    ours = table(borrower, "reliability").set_index(keys).sort_index()
    theirs = table(own, "reliability", sr="bicubic", classifier="one").set_index(keys).sort_index()
    assert len(ours) == len(theirs) == 80
    maps = [maps_by_patch(store) for store in (borrower, own)]
    keys_of_maps = [(patch, "bicubic", "grad_cam") for patch, _ in ours.index]
    equal = [np.array_equal(maps[0][key], maps[1][key]) for key in keys_of_maps]
    assert np.mean(equal) > 0.9
    columns = ["cluster", "cluster_error_rate", "reliability", "adjusted"]
    pd.testing.assert_frame_equal(ours.loc[equal, columns], theirs.loc[equal, columns], check_exact=True)


def test_a_fit_of_other_settings_is_not_borrowed_and_nothing_of_the_run_is_published(folder: Path) -> None:
    """The fixture has read the refusal; one run before it is all that the store tells of."""
    assert len(table(folder / "borrower", "runs")) == 1
    (config,) = set(table(folder / "borrower", "reliability_clusters").config)
    (other,) = set(table(folder / "own", "reliability_clusters", classifier="one", sr="bicubic").config)
    assert config == other  # it follows from the maps and the fit, whatever the store
