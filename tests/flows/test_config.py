from pathlib import Path

import pytest

from flows.config import load_config
from infra.errors import ConfigError

GOOD = """
archive: {layout: bigearthnet-v2, root: /data/BigEarthNet}
store: /data/store
classifiers: [resnet18]
train: {backbone: random}
"""


def written(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "RUN.yaml"
    path.write_text(text, encoding="utf-8")
    return path


def test_defaults_are_those_of_the_documentation(tmp_path: Path) -> None:
    config = load_config(written(tmp_path, GOOD))
    assert (config.shard_size, config.sr, config.sr_input_max_dn) == (512, ("none", "bicubic"), 3000)
    assert (config.train.epochs, config.train.lr, config.train.seeds) == (30, 1e-3, (0,))
    assert (config.archive.subset, config.archive.include_flagged, config.keep_sr) == ("all", False, "auto")


def test_settings_can_be_changed_on_the_command_line(tmp_path: Path) -> None:
    config = load_config(written(tmp_path, GOOD), ["train.epochs=3", "sr=[none]", "archive.subset=present"])
    assert (config.train.epochs, config.sr, config.archive.subset) == (3, ("none",), "present")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", ["holds no settings"]),
        ("[1, 2]", ["holds no settings"]),
        ("a: [", ["is not YAML"]),
        (GOOD + "colour: blue", ["colour", "no such setting"]),
        (GOOD.replace("bigearthnet-v2", "landsat"), ["archive.layout", "landsat", "bigearthnet-v1"]),
        (GOOD + "sr: [hta]", ["sr", "hta", "realesrgan"]),
        (GOOD + "sr: []", ["sr"]),
        (GOOD + "sr: [none, none]", ["twice"]),
        (GOOD + "sr: [realesrgan]", ["realesrgan", "weight file", "RealESRGAN_x4plus.pth"]),
        (GOOD + "weights: {realesrgan: /nowhere.pth}", ["/nowhere.pth"]),
        (GOOD + "weights: {vgg: /nowhere.pth}", ["vgg"]),
        (GOOD.replace("backbone: random", "backbone: weights"), ["resnet18", "weights: {resnet18: FILE}"]),
        (GOOD.replace("backbone: random", "backbone: random, freeze_backbone: true"), ["freeze_backbone", "noise"]),
        (GOOD.replace("backbone: random", "backbone: random, seeds: []"), ["train.seeds"]),
        (GOOD.replace("backbone: random", "backbone: random, lr: 0"), ["train.lr"]),
        (GOOD + "shard_size: 0", ["shard_size"]),
        (GOOD + "sr_input_max_dn: 70000", ["sr_input_max_dn"]),
        (GOOD + "explain: {methods: [lucky]}", ["lucky", "grad_cam"]),
        (GOOD + "models_from: /data/store", ["models_from", "itself"]),
        (GOOD.replace("store: /data/store", ""), ["store"]),
        (GOOD + "train_sr: {model: bicubic}", ["train_sr.model", "bicubic", "srresnet"]),
        (GOOD + "train_sr: {patches: 0}", ["train_sr", "nothing to train on"]),
        (GOOD + "train_sr: {crop: 50}", ["train_sr", "multiple of 4"]),
        (GOOD + "train_sr: {out: weights.pth}", ["train_sr", "weights.pth", ".safetensors"]),
        (GOOD + "train_sr: {start: /nowhere.pth}", ["train_sr", "/nowhere.pth"]),
        (GOOD + "train_sr: {ema: 1}", ["train_sr.ema"]),
        (GOOD + "train_sr: {sources: [{weight: 2}]}", ["train_sr.sources.0", "scene: FOLDER"]),
        (GOOD + "train_sr: {sources: [{images: /nowhere}]}", ["train_sr.sources.0", "/nowhere"]),
        (GOOD + "train_sr: {sources: [{scene: /, bands: [B04, B03, B10]}]}", ["train_sr.sources.0.bands", "B10"]),
        (GOOD + "train_sr: {sources: [{images: /, max_dn: 255}]}", ["train_sr.sources.0", "pictures of 8 bits"]),
    ],
)
def test_wrong_settings_are_named_in_one_sentence(tmp_path: Path, text: str, words: list[str]) -> None:
    with pytest.raises(ConfigError) as caught:
        load_config(written(tmp_path, text))
    message = str(caught.value)
    assert all(word in message for word in words), message
    assert "\n" not in message


@pytest.mark.parametrize("override", ["train.epochs", "store.deep=1", "sr=[none"])
def test_wrong_overrides_are_refused(tmp_path: Path, override: str) -> None:
    with pytest.raises(ConfigError, match="--set"):
        load_config(written(tmp_path, GOOD), [override])


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"cannot read .*none\.yaml"):
        load_config(tmp_path / "none.yaml")
