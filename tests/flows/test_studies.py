"""Other archives and bands through the very same flow: pictures with a truth, and all bands with a published file."""

from inspect import unwrap
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pytest
import safetensors.torch
import timm
import torch
from PIL import Image
from torch.nn.functional import interpolate

from flows import archive
from flows.config import TrainConfig, validated
from infra.bigearthnet.classes import NAMES
from tasks.backbone import Backbone
from tests.flows.stores import Inputs, run_flows, superscene

CLASSES = ("blocks", "noise", "stripes")
EDGE = 128


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Eight pictures of each of three classes."""
    root, rng = tmp_path_factory.mktemp("pictures"), np.random.default_rng(0)
    for label in CLASSES:
        (root / label).mkdir()
        for i in range(8):
            noise = rng.integers(0, 60, (EDGE, EDGE, 3))
            wave = {
                "blocks": 120 * np.kron(rng.integers(0, 2, (8, 8)), np.ones((16, 16), int)),
                "noise": rng.integers(0, 120, (EDGE, EDGE)),
                "stripes": 120 * (np.indices((EDGE, EDGE))[0] // 8 % 2),
            }[label]
            Image.fromarray((noise + wave[..., None]).astype(np.uint8)).save(root / label / f"{i}.png")
    return root


@pytest.fixture(scope="module")
def stores(inputs: Inputs, pictures: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Stores of both runs."""
    folder = tmp_path_factory.mktemp("studies")
    study = inputs.config(
        folder / "pictures",
        archive={"layout": "image-folder", "root": str(pictures), "validation_share": 0.4},
        shard_size=8,
        degrade=4,
        sr=["none", "bicubic", "hr"],
        classifiers=["resnet18", "one", "which"],
        variants={
            "one": {"network": "resnet18", "train": {"one_against_rest": "stripes", "head": "mlp"}},
            "which": {"network": "resnet18", "train": {"loss": "softmax", "augment": True}},
        },
        train={"freeze_backbone": True, "epochs": 3, "batch_size": 8, "seeds": [0, 1, 2]},
        explain={"methods": []},
    )
    torch.manual_seed(0)
    published = folder / "published.safetensors"
    network = timm.create_model("resnet18", num_classes=19, in_chans=12)
    state = {f"model.vision_encoder.{key}": value for key, value in network.state_dict().items()}
    safetensors.torch.save_file(state, published)
    all_bands = inputs.config(
        folder / "bands",
        bands="s1s2",
        sr=["none"],
        classifiers=["published"],
        trained={"published": str(published)},
        weights={},
        explain={"methods": []},
    )
    result = run_flows([study, all_bands])
    assert result.returncode == 0, result.stderr
    return folder / "pictures", folder / "bands"


def test_every_classifier_knows_its_labels(stores: tuple[Path, Path]) -> None:
    predictions = pd.read_parquet(stores[0] / "tables" / "predictions")
    assert pd.read_parquet(stores[0] / "tables" / "classes").label.tolist() == list(CLASSES)
    of_each = predictions.groupby("classifier", observed=True).probs
    probs = {name: np.stack(rows.to_list()).astype(float) for name, rows in of_each}
    assert np.isnan(probs["one"]).all(axis=0).tolist() == [True, True, False]
    np.testing.assert_allclose(probs["which"].sum(axis=1), 1, atol=1e-5)
    which = predictions[predictions.classifier == "which"]
    best = np.array(CLASSES)[np.stack(which.probs.to_list()).argmax(axis=1)]
    assert [row.tolist() for row in which.predicted] == [[name] for name in best]
    assert len(predictions) == 24 * 3 * 3 * 3  # patches, branches, classifiers, seeds


def test_three_seeds_allow_a_verdict_and_the_tables_say_so(stores: tuple[Path, Path]) -> None:
    comparisons = pd.read_parquet(stores[0] / "tables" / "comparisons")
    pairs = set(zip(comparisons.sr, comparisons.reference, strict=True))
    assert pairs == {("bicubic", "none"), ("hr", "none"), ("hr", "bicubic")}
    assert comparisons.significant.notna().any()
    assert set(comparisons.n_seeds) == {3}
    table = pd.read_parquet(stores[0] / "tables" / "paper_table_1")
    assert len(table) == 3 * 3 * table.split.nunique()
    assert "hr (ceiling)" in (stores[0] / "report" / "tables.md").read_text()


def test_quality_is_measured_against_the_picture_itself(stores: tuple[Path, Path], pictures: Path) -> None:
    quality = pd.read_parquet(stores[0] / "tables" / "sr_quality").set_index("patch_id")
    for name in ("blocks/0", "noise/3"):
        hr = np.asarray(Image.open(pictures / f"{name}.png")).transpose(2, 0, 1).astype(np.float64)
        lr = np.rint(hr.reshape(3, 32, 4, 32, 4).mean(axis=(2, 4)))
        sr = interpolate(torch.from_numpy(lr)[None] / 255, scale_factor=4, mode="bicubic", align_corners=False)
        error = np.mean((np.rint(sr.clamp(0, 1)[0].numpy() * 255) / 255 - hr / 255) ** 2)
        assert quality.loc[name, "psnr_db"] == pytest.approx(-10 * np.log10(error), abs=0.02)
    assert quality.reflectance_mae.isna().all()


def test_a_published_classifier_sees_all_bands(stores: tuple[Path, Path]) -> None:
    predictions = pd.read_parquet(stores[1] / "tables" / "predictions")
    patches = pd.read_parquet(stores[1] / "tables" / "patches")
    assert len(predictions) == patches.has_s1.sum() > 0
    assert not np.isnan(np.stack(predictions.probs.to_list()).astype(float)).any()
    assert len(predictions.probs.iloc[0]) == len(NAMES)


def test_variants_of_a_network_share_the_backbone_trained_on_the_archive(monkeypatch: pytest.MonkeyPatch) -> None:
    """They ask for one fit, under the network's name: its checkpoint is there for all, whoever came first."""
    config = validated(
        {
            "archive": {"layout": "image-folder"},
            "store": "store",
            "classifiers": ["resnet18", "frozen"],
            "variants": {"frozen": {"network": "resnet18", "train": {"freeze_backbone": True}}},
            "train": {"backbone": "archive"},
        },
        "RUN.yaml",
    )
    fits: list[tuple[str, TrainConfig, Backbone]] = []

    def fit(*asked: Any) -> dict[int, Path]:
        fits.append((asked[3], asked[4], asked[5]))
        return {0: Path(f"{asked[3]}.safetensors")}

    monkeypatch.setattr(archive, "_fit", fit)
    monkeypatch.setattr(archive, "_branch", lambda *_: None)
    run: Any = SimpleNamespace(config=config, weights={})
    nothing: Any = None
    found = [unwrap(archive.fit_backbone.fn)(run, nothing, nothing, name) for name in config.classifiers]
    assert found == [Backbone("resnet18", "archive", Path("resnet18.safetensors"))] * 2
    assert fits[0][0] == fits[1][0]
    assert fits[0][1:] == fits[1][1:]


def test_part_of_an_archive_is_evaluated_from_what_is_there(stores: tuple[Path, Path]) -> None:
    run_yaml = stores[0].with_suffix(".yaml")
    found = superscene("evaluate", run_yaml, "--where", "split = 'validation'")
    assert found.returncode == 0, found.stderr
    assert "f1" in found.stdout
    for condition, words in (("split = 'nowhere'", "no "), ("no_such_column = 1", "no_such_column")):
        refused = superscene("evaluate", run_yaml, "--where", condition)
        assert refused.returncode == 2
        assert words in refused.stderr
        assert "Traceback" not in refused.stderr
