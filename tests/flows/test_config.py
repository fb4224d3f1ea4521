from pathlib import Path

import pytest

from flows.config import ArchiveConfig, RunConfig, TrainConfig, load_config
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


@pytest.mark.parametrize(("written_as", "labels"), [("true", "true"), ("'true'", "true"), ("all", "all")])
def test_labels_to_explain_need_no_quotes(tmp_path: Path, written_as: str, labels: str) -> None:
    """YAML takes a bare `true` for a boolean."""
    config = load_config(written(tmp_path, GOOD + f"explain: {{labels: {written_as}}}"))
    assert config.explain.labels == labels
    changed = load_config(written(tmp_path, GOOD), [f"explain.labels={written_as}"])
    assert changed.explain.labels == labels
    assert RunConfig.model_validate_json(config.model_dump_json()) == config


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
        (GOOD.replace("backbone: random", "backbone: random, lr: .inf"), ["train.lr", "finite"]),
        (GOOD.replace("backbone: random", "backbone: random, mixup: .inf"), ["train.mixup", "finite"]),
        (GOOD.replace("backbone: random", "backbone: random, seeds: [-1]"), ["train.seeds.0", "greater than or equal"]),
        (GOOD.replace("backbone: random", "backbone: random, seeds: [3000000000]"), ["train.seeds.0", "2147483648"]),
        (GOOD.replace("random", "random, loss: softmax, thresholds: tuned"), ["train", "softmax", "thresholds: half"]),
        (GOOD + "shard_size: 8\nshard_size: 16", ["shard_size is given twice", "line 7"]),
        (GOOD.replace("backbone: random", "epochs: 3, epochs: 5"), ["epochs is given twice"]),
        (GOOD + "shard_size: 0", ["shard_size"]),
        (GOOD + "sr_input_max_dn: 70000", ["sr_input_max_dn"]),
        (GOOD + "explain: {methods: [lucky]}", ["lucky", "grad_cam"]),
        (GOOD + "explain: {methods: [cam, cam]}", ["twice"]),
        (GOOD + "explain: {sample: 0}", ["explain.sample"]),
        (GOOD + "explain: {labels: false}", ["explain.labels", "predicted"]),
        (GOOD + "explain: {options: {rise: {masks: 4}}}", ["rise", "not among the methods"]),
        (GOOD + "explain: {methods: [rise], options: {rise: {mask: 4}}}", ["explain", "does not take mask", "masks"]),
        (GOOD + "explain: {methods: [rise], options: {rise: {masks: 0}}}", ["explain", "at least 1 mask"]),
        (GOOD + "explain: {methods: [rise], options: {rise: {masks: many}}}", ["masks is a int", "'many'"]),
        (
            GOOD.replace("random", "random, head: mlp") + "explain: {methods: [cam]}",
            ["explain.methods", "cam needs a head of one linear layer", "resnet18", "grad_cam"],
        ),
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
        (GOOD.replace("v2,", "v2, image_size: 64,"), ["archive", "bigearthnet-v2", "no use for image_size"]),
        (GOOD + "sr: [none, hr]", ["hr", "degrade: 4"]),
        (GOOD + "bands: s2", ["bands: s2", "branch none"]),
        (GOOD + "bands: s1s2\nsr: [none]\ndegrade: 4", ["bands: s1s2", "without degrade"]),
        (GOOD + "degrade: 3", ["degrade"]),
        (GOOD.replace("[resnet18]", "[resnet18, fast]"), ["classifier", "'fast'", "inception_v4"]),
        (GOOD + "variants: {fast: {network: vgg}}", ["variants.fast.network", "vgg"]),
        (GOOD + "variants: {resnet50: {network: resnet18}}", ["resnet50", "names of their own"]),
        (GOOD + "variants: {a-b: {network: resnet18}}", ["'a-b' cannot name a classifier"]),
        (
            GOOD.replace("[resnet18]", "[fast]") + "variants: {fast: {network: resnet18, train: {epoch: 3}}}",
            ["variants.fast.train.epoch", "no such setting"],
        ),
        (GOOD + "trained: {mine: /nowhere.safetensors}", ["trained: mine", "/nowhere.safetensors"]),
        (GOOD.replace("random", "random, loss: softmax, one_against_rest: Pastures"), ["one_against_rest", "bce"]),
        (GOOD + "weights: {realesrgan: '${NO_SUCH_VARIABLE}/w.pth'}", ["NO_SUCH_VARIABLE", "not set"]),
    ],
)
def test_wrong_settings_are_named_in_one_sentence(tmp_path: Path, text: str, words: list[str]) -> None:
    with pytest.raises(ConfigError) as caught:
        load_config(written(tmp_path, text))
    message = str(caught.value)
    assert all(word in message for word in words), message
    assert "\n" not in message


@pytest.mark.parametrize(
    ("method", "option", "words"),
    [
        ("rise", "keep: 1", "keep in (0, 1)"),
        ("rise", "keep: .nan", "finite"),
        ("rise", "cells: -8", "at least 1 mask and 2 cells"),
        ("rise", "seed: -1", "a seed from 0"),
        ("lime", "samples: 0", "2 samples"),
        ("lime", "kernel_width: 0", "kernel_width and ridge above 0"),
        ("lime", "ridge: .inf", "finite"),
        ("occlusion", "stride: 12", "1 <= stride <= window"),
        ("smooth_grad_cam_pp", "samples: 0", "samples >= 1 and noise >= 0"),
        ("smooth_grad_cam_pp", "noise: -0.5", "samples >= 1 and noise >= 0"),
        ("smooth_grad_cam_pp", "noise: none", "noise is a float"),
        ("random", "seed: 1.5", "seed is a int"),
        ("score_cam", "weights: logits", "difference or softmax"),
        ("grad_plus_plus_score_cam", "reduce_input: 1", "reduce_input is a bool"),
    ],
)
def test_values_that_a_method_has_no_use_for_are_wrong_settings(
    tmp_path: Path, method: str, option: str, words: str
) -> None:
    text = GOOD + f"explain: {{methods: [{method}], options: {{{method}: {{{option}}}}}}}"
    with pytest.raises(ConfigError) as caught:
        load_config(written(tmp_path, text))
    message = str(caught.value)
    assert all(word in message for word in ("explain", method, words)), message
    assert "\n" not in message


def test_texts_may_name_variables_of_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SOME_DATA", "/mnt/data")
    config = load_config(written(tmp_path, GOOD.replace("/data/BigEarthNet", "'${SOME_DATA}/BigEarthNet'")))
    assert config.archive.root == Path("/mnt/data/BigEarthNet")


def test_an_empty_variable_is_as_good_as_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SOME_DATA", "")
    with pytest.raises(ConfigError, match="SOME_DATA, which is empty"):
        load_config(written(tmp_path, GOOD.replace("/data/store", "'${SOME_DATA}/store'")))


def test_merge_keys_of_yaml_may_be_overridden(tmp_path: Path) -> None:
    text = GOOD.replace("{backbone: random}", "&base {backbone: random, epochs: 7}")
    text += "variants: {slow: {network: resnet50, train: {<<: *base, epochs: 9}}}\n"
    assert load_config(written(tmp_path, text)).variants["slow"].train == {"backbone": "random", "epochs": 9}


def test_pictures_have_a_stretch_of_their_own(tmp_path: Path) -> None:
    pictures = GOOD.replace("bigearthnet-v2", "image-folder")
    assert load_config(written(tmp_path, pictures)).sr_input_max_dn == 255
    assert load_config(written(tmp_path, pictures + "sr_input_max_dn: 65535")).sr_input_max_dn == 65535
    for layout, max_dn in (("image-folder", 255), ("bigearthnet-v2", 3000)):  # sections as Python has them
        config = RunConfig(archive=ArchiveConfig(layout=layout), store=tmp_path, train=TrainConfig(backbone="random"))
        assert config.sr_input_max_dn == max_dn


def test_a_variant_differs_from_the_run_in_what_it_says(tmp_path: Path) -> None:
    text = GOOD.replace("backbone: random", "backbone: random, epochs: 7, lr: 0.1")
    text = text.replace("[resnet18]", "[resnet18, slow]")
    config = load_config(written(tmp_path, text + "variants: {slow: {network: resnet50, train: {lr: 0.01}}}"))
    assert [config.network_of(name) for name in config.classifiers] == ["resnet18", "resnet50"]
    slow = config.train_of("slow")
    assert (slow.lr, slow.epochs, slow.backbone) == (0.01, 7, "random")
    assert config.train_of("resnet18").lr == 0.1


def test_augmentation_is_for_whole_networks_unless_asked_for(tmp_path: Path) -> None:
    whole = load_config(written(tmp_path, GOOD)).train
    assert (whole.augments, whole.model_copy(update={"freeze_backbone": True}).augments) == (True, False)
    assert whole.model_copy(update={"freeze_backbone": True, "augment": True}).augments


@pytest.mark.parametrize("override", ["train.epochs", "store.deep=1", "sr=[none"])
def test_wrong_overrides_are_refused(tmp_path: Path, override: str) -> None:
    with pytest.raises(ConfigError, match="--set"):
        load_config(written(tmp_path, GOOD), [override])


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"cannot read .*none\.yaml"):
        load_config(tmp_path / "none.yaml")


def test_aliases_of_aliases_are_not_written_out(tmp_path: Path) -> None:
    """Nine lines stand for 10^9 texts; PyYAML keeps them as one, whoever goes through them does not."""
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 10)}]" for i in range(1, 9)]
    with pytest.raises(ConfigError, match="more than 100000 values"):
        load_config(written(tmp_path, GOOD + "\n".join(lines)))


def test_merges_of_merges_are_not_written_out(tmp_path: Path) -> None:
    """PyYAML copies what is merged, again at every level: each line stands for ten times what the one before does."""
    lines = ["l0: &l0 {x: 1}"]
    lines += [f"l{i}: &l{i} {{<<: [{', '.join([f'*l{i - 1}'] * 10)}]}}" for i in range(1, 7)]
    with pytest.raises(ConfigError, match="<< stands for more than 100000 values"):
        load_config(written(tmp_path, GOOD + "\n".join(lines)))
    with pytest.raises(ConfigError, match="--set"):
        load_config(written(tmp_path, GOOD), [f"further={{{', '.join(lines)}}}"])


def test_a_mapping_that_merges_itself_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="is not YAML"):
        load_config(written(tmp_path, GOOD + "further: &a {<<: *a, x: 1}\n"))


@pytest.mark.parametrize(
    "text", ["[" * 5000 + "]" * 5000, "2024-13-45", "9" * 5000, "!!python/object/apply:os.getcwd []", "? {a: 1}\n: 2"]
)
def test_yaml_that_python_chokes_on_is_one_sentence(tmp_path: Path, text: str) -> None:
    with pytest.raises(ConfigError, match="is not YAML") as caught:
        load_config(written(tmp_path, f"{GOOD}further: {text}\n"))
    assert "\n" not in str(caught.value)
    with pytest.raises(ConfigError, match="--set"):
        load_config(written(tmp_path, GOOD), [f"store={text}"])
