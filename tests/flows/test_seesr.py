"""SeeSR through the whole flow: from a folder in the official layout, in the tiny random configuration."""

import hashlib
import json
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import rasterio
import torch
import zarr

import classifiers
import sr_models
from flows.archive import archive
from flows.config import RunConfig, load_config
from flows.explain import draw_patch
from infra.archives.synthetic import write_synthetic_archive
from infra.errors import ConfigError
from sr_models.seesr.tiny import write_tiny_folder
from tests.flows.stores import Inputs, part_states, superscene

OPTIONS = {"steps": 2, "land_cover": "predictions"}
PATCHES = 12


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An archive, and the tiny random configuration in the official layout."""
    folder = tmp_path_factory.mktemp("seesr")
    write_synthetic_archive(folder / "archive", PATCHES)
    write_tiny_folder(folder / "official")
    torch.manual_seed(0)
    torch.save(classifiers.build("resnet18", 1).backbone.state_dict(), Inputs(folder).backbone)
    return folder


def seesr_yaml(folder: Path, store: Path, **changes: object) -> Path:
    settings: dict[str, object] = {
        "shard_size": 64,  # of two SR shards
        "sr": ["none", "seesr"],
        "weights": {"seesr": str(folder / "official"), "resnet18": str(Inputs(folder).backbone)},
        "sr_options": {"seesr": OPTIONS},
    }
    return Inputs(folder).config(store, None, **{**settings, **changes})


@pytest.fixture(scope="module")
def store(folder: Path, prefect_server: None) -> Path:
    result = superscene("run", seesr_yaml(folder, folder / "store"))
    assert result.returncode == 0, result.stderr
    assert "tiny random configuration" in result.stderr  # never silently
    return folder / "store"


def pixels(store: Path) -> dict[str, np.ndarray]:
    """The stored SR pixels of every patch."""
    (folder,) = (path for path in (store / "sr").iterdir() if path.name.startswith("seesr-"))
    group = zarr.open_group(folder, mode="r")
    size = int(str(group.attrs["shard_size"]))
    values = np.asarray(group["sr"])
    patches = pd.read_parquet(store / "tables" / "patches").to_dict("records")
    return {patch["patch_id"]: values[patch["shard"] * size + patch["row"]].astype(int) for patch in patches}


def test_every_patch_is_stored_judged_and_predicted(store: Path) -> None:
    images = list(pixels(store).values())
    assert len(images) == PATCHES
    assert {image.shape for image in images} == {(3, 480, 480)}
    assert np.abs(images[0] - images[1]).mean() > 1
    quality = pd.read_parquet(store / "tables" / "sr_quality")
    assert quality["sr"].value_counts().to_dict() == {"seesr": PATCHES}
    predictions = pd.read_parquet(store / "tables" / "predictions")
    assert predictions["sr"].value_counts().to_dict() == {"none": PATCHES, "seesr": PATCHES}
    (run,) = pd.read_parquet(store / "tables" / "runs").to_dict("records")
    (stage,) = (stage for stage in run["stages"] if stage["stage"] == "super-resolve seesr, SR shards")
    assert (stage["done"], stage["patches"]) == (6, PATCHES)  # two SR shards for each of three splits


def test_pixels_are_what_the_model_makes_of_each_patch_alone(folder: Path, store: Path) -> None:
    """Told the labels that the first classifier gave to the patch as it is; DN may differ by a rounding."""
    predictions = pd.read_parquet(store / "tables" / "predictions")
    told = predictions[predictions["sr"] == "none"].set_index("patch_id")["predicted"]
    assert told.map(len).max() > 0
    resolver = sr_models.load("seesr", folder / "official", options=OPTIONS)
    for name, image in list(pixels(store).items())[::4]:
        (scene,) = (folder / "archive" / "BigEarthNet-S2").glob(f"*/{name}")
        bands = []
        for band in ("B04", "B03", "B02"):
            with rasterio.open(scene / f"{name}_{band}.tif") as source:
                bands.append(source.read(1))
        x = torch.from_numpy(np.minimum(np.stack(bands), 3000) / np.float32(3000))[None].float()
        y = resolver(x, [sr_models.Condition(name, tuple(told[name]))])[0].numpy() * 3000
        assert np.abs(image - y).max() <= 1


def test_options_weights_and_predictions_are_in_the_config(store: Path) -> None:
    configs = pd.read_parquet(store / "tables" / "configs")
    (text,) = configs.loc[configs["stage"] == "super_resolve", "json"].loc[lambda c: c.str.contains('"seesr"')]
    found = json.loads(text)
    assert (found["sr"], found["steps"], found["guidance"], found["seed"]) == ("seesr", 2, 5.5, 0)
    assert len(found["weights_sha256"]) == 64
    assert found["land_cover"] == "predictions"
    (file,) = (store / "checkpoints").glob("none-resnet18-*/seed-*.safetensors")
    assert found["land_cover_of"] == f"resnet18 {hashlib.sha256(file.read_bytes()).hexdigest()}"


def test_a_patch_can_be_drawn(folder: Path, store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config, before = load_config(store.with_suffix(".yaml")), part_states(store)
    patch = pd.read_parquet(store / "tables" / "patches")["patch_id"][0]
    (file,) = draw_patch(config, patch, tmp_path / "patch.png", None, None)
    assert file.stat().st_size > 0
    assert part_states(store) == before


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"sr_options": {"seesr": {"stepps": 2}}}, "seesr: there is no option 'stepps': did you mean 'steps'"),
        ({"sr_options": {"seesr": {"steps": 0}}}, "seesr: steps: "),
        ({"sr_options": {"hat": {"steps": 2}}}, "hat has no options, but steps was given"),
        ({"sr_options": {"sesr": {}}}, "no SR model in sr_options called 'sesr': did you mean 'seesr'"),
        ({"sr": ["seesr", "none"]}, "name none before seesr"),
        ({"shard_size": 509}, "shard_size: 509 cannot be cut into SR shards of some 32 patches"),
        ({"keep_sr": "never"}, "keep_sr: never: seesr is too slow to be computed twice"),
        ({"sr_dtype": "float16"}, "seesr does not run in float16"),
        (
            {"weights": {"seesr": "/nowhere"}, "train": {"backbone": "random"}},
            "weights: seesr: there is no folder /nowhere",
        ),
        (
            {"weights": {}},
            "seesr needs weights, but no weight folder was given.*ram_swin_large_14m.pth.*/seesr, or name their folder",
        ),
    ],
)
def test_what_cannot_be_is_told_before_anything_runs(
    folder: Path, tmp_path: Path, changes: dict[str, object], said: str
) -> None:
    with pytest.raises(ConfigError, match=said):
        load_config(seesr_yaml(folder, tmp_path / "store", **changes))


def test_training_alone_cannot_tell_predictions(tmp_path: Path) -> None:
    """Told before the archive is read, which is not even there."""
    settings = {
        "archive": {"layout": "bigearthnet-v2"},
        "store": tmp_path / "none",
        "train": {"backbone": "random"},
        "sr": ["none", "seesr_tiny"],
        "sr_options": {"seesr_tiny": OPTIONS},
    }
    with pytest.raises(ConfigError, match=r"seesr_tiny: `land_cover: predictions`.*`superscene predict`"):
        archive.fn(RunConfig.model_validate(settings), "train")
    assert not (tmp_path / "none").exists()


def test_a_folder_that_lacks_a_file_is_told_by_name(folder: Path, tmp_path: Path) -> None:
    shutil.copytree(folder / "official", tmp_path / "official")
    (tmp_path / "official" / "DAPE.pth").unlink()
    path = seesr_yaml(
        folder, tmp_path / "store", weights={"seesr": str(tmp_path / "official")}, train={"backbone": "random"}
    )
    with pytest.raises(ConfigError, match=r"DAPE\.pth: SeeSR's DAPE"):
        load_config(path)
