"""Oracles: round trips, hashlib, and files broken on purpose."""

import hashlib
import json
import os
from dataclasses import replace
from pathlib import Path

import pytest
import safetensors
import safetensors.torch
import torch

from classifiers.checkpoint import TrainedClassifier, load, reorder_labels, sha256
from classifiers.registry import build
from infra.errors import ConfigError, ShapeError, WeightsError


@pytest.fixture(scope="module")
def trained() -> TrainedClassifier:
    torch.manual_seed(0)
    network = build("resnet18", 3, in_channels=2)
    return TrainedClassifier(
        name="resnet18",
        head="linear",
        labels=("Pastures", "Wälder, gemischt", "Inland waters"),
        bands=("B04", "B03"),
        mean=(0.1, 0.2),
        std=(0.3, 0.4),
        seed=7,
        network=network.to(memory_format=torch.channels_last),
        sr={"model": "bicubic", "config": "01234567"},
        thresholds=(0.5, 0.4, 1 / 3),
    )


def test_round_trip_keeps_everything_and_the_callers_seed(trained: TrainedClassifier, tmp_path: Path) -> None:
    path = tmp_path / "new folder" / "c.safetensors"
    trained.save(path)
    torch.manual_seed(11)
    found = load(path)
    drawn = torch.rand(1)
    torch.manual_seed(11)
    assert torch.equal(drawn, torch.rand(1))
    assert replace(found, network=trained.network) == trained
    assert not found.network.training
    x = torch.randn(2, 2, 32, 32)
    trained.network.eval()
    with torch.no_grad():
        torch.testing.assert_close(found.network(x), trained.network(x))
    assert all(torch.equal(v, trained.network.state_dict()[k]) for k, v in found.network.state_dict().items())
    assert [p.name for p in path.parent.iterdir()] == ["c.safetensors"]  # no temporary file stays


def test_equal_classifiers_give_equal_bytes(trained: TrainedClassifier, tmp_path: Path) -> None:
    path = tmp_path / "c.safetensors"
    trained.save(path)
    assert load(path).to_bytes() == path.read_bytes() == trained.to_bytes()
    assert sha256(path) == hashlib.sha256(path.read_bytes()).hexdigest()
    assert replace(trained, seed=8).to_bytes() != trained.to_bytes()


def test_thresholds_default_to_a_half(trained: TrainedClassifier) -> None:
    assert replace(trained, thresholds=()).thresholds == (0.5, 0.5, 0.5)
    assert trained.standardiser.mean == (0.1, 0.2)


def test_failed_save_leaves_the_old_file_and_nothing_else(
    trained: TrainedClassifier, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "c.safetensors"
    path.write_bytes(b"old")

    def fail(_handle: int) -> None:
        raise OSError("disk full")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(OSError, match="disk full"):
        trained.save(path)
    assert path.read_bytes() == b"old"
    assert len(list(tmp_path.iterdir())) == 1


def test_refuses_fields_that_contradict_each_other(trained: TrainedClassifier) -> None:
    with pytest.raises(ShapeError, match="each once"):
        replace(trained, labels=("a", "a", "b"))
    with pytest.raises(ShapeError, match="thresholds"):
        replace(trained, thresholds=(0.5,))
    with pytest.raises(ShapeError, match="one mean"):
        replace(trained, mean=(0.5,))
    with pytest.raises(ConfigError, match="choose one of sigmoid, softmax"):
        replace(trained, activation="tanh")  # type: ignore[arg-type]


def rewrite(path: Path, target: Path, changes: dict[str, object], drop: str | None = None) -> Path:
    """Write a copy of a checkpoint with other metadata, or without one of its tensors or metadata."""
    with safetensors.safe_open(path, framework="pt") as file:
        metadata = json.loads(file.metadata()["superscene"])
    tensors = {key: value for key, value in safetensors.torch.load_file(path).items() if key != drop}
    merged = {key: value for key, value in (metadata | changes).items() if key != drop}
    safetensors.torch.save_file(tensors, target, {"superscene": json.dumps(merged)})
    return target


def test_the_activation_is_kept_and_files_of_format_1_mean_sigmoid(trained: TrainedClassifier, tmp_path: Path) -> None:
    path, old = tmp_path / "c.safetensors", tmp_path / "old.safetensors"
    replace(trained, activation="softmax").save(path)
    assert load(path).activation == "softmax"
    found = load(rewrite(path, old, {"format": 1}, drop="activation"))
    assert replace(found, network=trained.network) == trained
    with pytest.raises(WeightsError, match="no 'activation' in its metadata"):
        load(rewrite(path, old, {}, drop="activation"))
    with pytest.raises(WeightsError, match="no activation 'tanh'"):
        load(rewrite(path, old, {"activation": "tanh"}))


@pytest.mark.parametrize("head", ["linear", "mlp"])
def test_labels_in_another_order_keep_their_logits_and_thresholds(trained: TrainedClassifier, head: str) -> None:
    torch.manual_seed(1)
    first = replace(trained, head=head, network=build("resnet18", 3, in_channels=2, head=head).eval())
    wanted = ("Inland waters", "Pastures", "Wälder, gemischt")
    second = reorder_labels(first, wanted)
    x = torch.randn(4, 2, 32, 32)
    with torch.no_grad():
        before, after = ({label: c.network(x)[:, i] for i, label in enumerate(c.labels)} for c in (first, second))
    assert second.labels == wanted
    for label in wanted:
        torch.testing.assert_close(after[label], before[label], rtol=0, atol=0)
    assert dict(zip(second.labels, second.thresholds, strict=True)) == dict(
        zip(first.labels, first.thresholds, strict=True)
    )
    assert reorder_labels(second, first.labels).to_bytes() == first.to_bytes() != second.to_bytes()


def test_other_labels_cannot_be_reordered(trained: TrainedClassifier) -> None:
    with pytest.raises(WeightsError, match=r"lacks Sea; it alone has Inland waters"):
        reorder_labels(trained, ("Pastures", "Sea", "Wälder, gemischt"))
    with pytest.raises(WeightsError, match=r"3 labels .* 4 others"):
        reorder_labels(trained, (*trained.labels, "Pastures"))


def test_refuses_broken_files(trained: TrainedClassifier, tmp_path: Path) -> None:
    good, bad = tmp_path / "good.safetensors", tmp_path / "bad.safetensors"
    trained.save(good)
    assert load(rewrite(good, bad, {})).labels == trained.labels  # the helper itself does no harm
    with pytest.raises(WeightsError, match="no checkpoint at"):
        load(tmp_path / "none")
    bad.write_bytes(good.read_bytes()[:-100])
    with pytest.raises(WeightsError, match="cannot be read as a safetensors file"):
        load(bad)
    safetensors.torch.save_file({"a": torch.zeros(1)}, bad)
    with pytest.raises(WeightsError, match="no 'superscene' metadata"):
        load(bad)
    with pytest.raises(WeightsError, match="no 'bands' in its metadata"):
        load(rewrite(good, bad, {}, drop="bands"))
    with pytest.raises(WeightsError, match=r"does not hold resnet18 with 2 labels and 2 bands: head\.weight is"):
        load(rewrite(good, bad, {"labels": ["a", "b"], "thresholds": [0.5, 0.5]}))
    with pytest.raises(WeightsError, match="3 labels but 2 thresholds"):
        load(rewrite(good, bad, {"thresholds": [0.5, 0.5]}))
    with pytest.raises(WeightsError, match=r"1 tensors missing \(head.bias\)"):
        load(rewrite(good, bad, {}, drop="head.bias"))
    with pytest.raises(WeightsError, match="no classifier 'vgg'"):
        load(rewrite(good, bad, {"name": "vgg"}))
    with pytest.raises(WeightsError, match="format is 9"):
        load(rewrite(good, bad, {"format": 9}))
    with pytest.raises(WeightsError, match="deviations > 0"):
        load(rewrite(good, bad, {"std": [0.0, 1.0]}))
    with pytest.raises(WeightsError, match="cannot be used"):
        load(rewrite(good, bad, {"mean": None}))


@pytest.mark.parametrize(
    "changes",
    [
        {"seed": float("inf")},
        {"seed": None},
        {"sr": 3},
        {"sr": ["a"]},
        {"labels": 3},
        {"bands": None},
        {"name": "../../x"},
        {"name": "os.system"},
        {"format": []},
        {"thresholds": {"a": 1}},
        {"mean": ["x", "y"]},
    ],
)
def test_refuses_metadata_of_any_kind(trained: TrainedClassifier, tmp_path: Path, changes: dict[str, object]) -> None:
    good, bad = tmp_path / "good.safetensors", tmp_path / "bad.safetensors"
    trained.save(good)
    with pytest.raises(WeightsError):
        load(rewrite(good, bad, changes))


def test_refuses_metadata_nested_without_end(trained: TrainedClassifier, tmp_path: Path) -> None:
    trained.save(tmp_path / "good.safetensors")
    tensors = safetensors.torch.load_file(tmp_path / "good.safetensors")
    bad = tmp_path / "bad.safetensors"
    for text in ("[" * 100_000, '{"seed":' * 100_000, "[" * 100_000 + "]" * 100_000):
        safetensors.torch.save_file(tensors, bad, {"superscene": text})
        with pytest.raises(WeightsError):
            load(bad)
