"""SeeSR through the whole flow: from a folder in the official layout, in the tiny random configuration."""

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import zarr

from flows.config import load_config
from infra.errors import ConfigError
from sr_models.seesr.tiny import write_tiny_folder
from tests.flows.stores import PATCHES, Inputs, part_states, run_flows, superscene

OPTIONS = {"steps": 2, "land_cover": "predictions"}


def seesr_yaml(inputs: Inputs, store: Path, **changes: object) -> Path:
    weights = store.parent / "official"
    if not weights.exists():
        write_tiny_folder(weights)
    settings: dict[str, object] = {
        "sr": ["none", "seesr"],
        "weights": {"resnet18": str(inputs.backbone), "seesr": str(weights)},
        "sr_options": {"seesr": OPTIONS},
    }
    return inputs.config(store, None, **{**settings, **changes})


@pytest.fixture(scope="module")
def stores(inputs: Inputs, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """The same run twice: in shards of four patches one by one, and in shards of 64, of two SR shards, four at once."""
    folder = tmp_path_factory.mktemp("seesr")
    one, other = folder / "one", folder / "other"
    configs = [
        seesr_yaml(inputs, one, resources={"batch_size": 1}),
        seesr_yaml(inputs, other, shard_size=64, resources={"batch_size": 4}),
    ]
    result = run_flows(configs)
    assert result.returncode == 0, result.stderr
    assert result.stderr.count("tiny random configuration") >= 1  # never silently
    return one, other


def pixels(store: Path) -> dict[str, np.ndarray]:
    """The stored SR pixels of every patch."""
    (folder,) = (path for path in (store / "sr").iterdir() if path.name.startswith("seesr-"))
    group = zarr.open_group(folder, mode="r")
    size = int(str(group.attrs["shard_size"]))
    values = np.asarray(group["sr"])
    patches = pd.read_parquet(store / "tables" / "patches")
    return {row.patch_id: values[row.shard * size + row.row].astype(int) for row in patches.itertuples()}


def test_every_patch_is_stored_judged_and_predicted(stores: tuple[Path, Path]) -> None:
    for store in stores:
        n = len(pd.read_parquet(store / "tables" / "patches"))
        assert n == PATCHES - PATCHES // 24
        assert {image.shape for image in pixels(store).values()} == {(3, 480, 480)}
        quality = pd.read_parquet(store / "tables" / "sr_quality")
        assert len(quality[quality["sr"] == "seesr"]) == n
        predictions = pd.read_parquet(store / "tables" / "predictions")
        assert predictions["sr"].value_counts().to_dict() == {"none": n, "seesr": n}


def test_a_patch_is_the_same_in_any_batch_and_shard(stores: tuple[Path, Path]) -> None:
    """What is told of it, too: the classifiers of both stores were trained alike."""
    one, other = (pixels(store) for store in stores)
    assert one.keys() == other.keys()
    for name, image in one.items():
        assert np.abs(image - other[name]).max() <= 1  # a half may round either way
    images = list(one.values())
    assert np.abs(images[0] - images[1]).mean() > 1


def test_options_weights_and_predictions_are_in_the_config(stores: tuple[Path, Path]) -> None:
    for store in stores:
        configs = pd.read_parquet(store / "tables" / "configs")
        (text,) = configs.loc[configs["stage"] == "super_resolve", "json"]
        found = json.loads(text)
        assert (found["sr"], found["steps"], found["guidance"], found["seed"]) == ("seesr", 2, 5.5, 0)
        assert len(found["weights_sha256"]) == 64
        assert found["land_cover"] == "predictions"
        (told,) = (row for row in configs.itertuples() if row.config == found["land_cover_of"])
        assert told.stage == "predictions"
        assert json.loads(told.json)["classifier"] == "resnet18"


def test_a_patch_can_be_drawn_with_what_it_was_told(stores: tuple[Path, Path], tmp_path: Path) -> None:
    store = stores[0]
    patch = pd.read_parquet(store / "tables" / "patches")["patch_id"][0]
    out = tmp_path / "patch.png"
    before = part_states(store)
    result = superscene("explain", store.with_suffix(".yaml"), "--patch", patch, "--out", out)
    assert result.returncode == 0, result.stderr
    assert out.stat().st_size > 0
    assert part_states(store) == before


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"sr_options": {"seesr": {"stepps": 2}}}, "seesr has no option 'stepps': did you mean steps"),
        ({"sr_options": {"seesr": {"steps": 0}}}, "seesr: steps: "),
        ({"sr_options": {"hat": {"steps": 2}}}, "hat has no options, but steps was given"),
        ({"sr_options": {"sesr": {}}}, "no SR model in sr_options called 'sesr': did you mean seesr"),
        ({"sr": ["seesr", "none"]}, "name none before seesr"),
        ({"keep_sr": "never"}, "keep_sr: never: seesr is too slow to be computed twice"),
        ({"sr_dtype": "float16"}, "seesr does not run in float16"),
        ({"weights": {"seesr": "/nowhere"}}, "weights: seesr: there is no folder /nowhere"),
        ({"weights": {}}, "seesr needs weights, but no weight folder was given.*ram_swin_large_14m.pth.*weights/seesr"),
    ],
)
def test_what_cannot_be_is_told_before_anything_runs(
    inputs: Inputs, tmp_path: Path, changes: dict[str, object], said: str
) -> None:
    backbone = {"train": {"backbone": "random"}} if "weights" in changes else {}
    with pytest.raises(ConfigError, match=said):
        load_config(seesr_yaml(inputs, tmp_path / "store", **changes, **backbone))


def test_a_folder_that_lacks_a_file_is_told_by_name(inputs: Inputs, tmp_path: Path) -> None:
    path = seesr_yaml(inputs, tmp_path / "store")
    (tmp_path / "official" / "DAPE.pth").unlink()
    with pytest.raises(ConfigError, match=r"DAPE\.pth: SeeSR's DAPE"):
        load_config(path)
