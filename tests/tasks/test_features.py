from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import classifiers
from classifiers import checkpoint
from infra.bigearthnet.bands import RGB, STATISTICS
from infra.errors import WeightsError
from infra.tables import PATCHES
from tasks.backbone import Backbone, load_network
from tasks.features import ShardFeatures, features_parts
from tasks.plan import Plan
from tests.tasks.small_store import MAX_DN, branch_of, copied, untrained
from tests.tasks.test_branch import files_of


@pytest.fixture(scope="module")
def backbone(store: Plan, tmp_path_factory: pytest.TempPathFactory) -> Backbone:
    path = untrained(branch_of(store), tmp_path_factory.mktemp("backbone") / "0.safetensors")
    return Backbone("resnet18", "archive", path)


@pytest.fixture
def plan(store: Plan, tmp_path: Path) -> Plan:
    return copied(store, tmp_path / "store")


def pooled_by_hand(store: Plan, shard: int, file: Path) -> np.ndarray[Any, Any]:
    """Means over space of the backbone's output, one patch at a time, from the archive's files."""
    network = checkpoint.load(file).network
    mean, std = ([[[getattr(STATISTICS[band], k) / MAX_DN]] for band in RGB] for k in ("mean", "std"))
    rows = []
    for dn in files_of(store, shard):
        x = torch.from_numpy((np.minimum(dn, MAX_DN) / MAX_DN - mean) / std).float()
        with torch.no_grad():
            rows.append(network.backbone(x[None])[0].double().numpy().mean(axis=(1, 2)))
    return np.stack(rows)


@pytest.mark.parametrize("batch_size", [1, 5])
def test_features_are_those_of_a_plain_loop(store: Plan, plan: Plan, backbone: Backbone, batch_size: int) -> None:
    assert backbone.file is not None
    branch = branch_of(plan, batch_size=batch_size)
    parts = features_parts(branch, backbone, augment=False)
    assert ShardFeatures(branch, backbone, parts, augment=False).run(0).patches == 6
    table = parts.read(0)
    assert table["patch_id"].to_pylist() == store.parts.read(0).sort_by("row")["patch_id"].to_pylist()
    features = np.array(table["features"].to_pylist())
    assert features.shape == (6, 512)
    expected = pooled_by_hand(store, 0, backbone.file)
    assert expected.std(axis=0).max() > 0.1
    np.testing.assert_allclose(features, expected, rtol=1e-4, atol=1e-5)


def test_a_shard_without_patches_has_an_empty_part(plan: Plan, backbone: Backbone) -> None:
    plan.parts.write(1, PATCHES.empty_table())
    parts = features_parts(branch_of(plan), backbone, augment=False)
    assert ShardFeatures(branch_of(plan), backbone, parts, augment=False).run(1).patches == 0
    assert parts.read(1).num_rows == 0


def test_config_is_that_of_pixels_and_backbone(store: Plan, backbone: Backbone, tmp_path: Path) -> None:
    assert backbone.file is not None
    elsewhere = tmp_path / "elsewhere"
    elsewhere.write_bytes(backbone.file.read_bytes())
    other = untrained(branch_of(store), tmp_path / "other", seed=1)
    first = features_parts(branch_of(store), backbone, augment=False).config
    assert (
        features_parts(branch_of(store, batch_size=1), Backbone("resnet18", "archive", elsewhere), augment=False).config
        == first
    )
    others = [
        features_parts(branch_of(store, "bicubic"), backbone, augment=False),
        features_parts(branch_of(store), Backbone("resnet18", "archive", other), augment=False),
        features_parts(branch_of(store), Backbone("resnet18", "weights", backbone.file), augment=False),
        features_parts(branch_of(store), replace(backbone, network="resnet50"), augment=False),
    ]
    assert len({first, *(parts.config for parts in others)}) == 5


def test_a_network_starts_from_its_backbone_and_a_head_of_the_seed(backbone: Backbone, tmp_path: Path) -> None:
    assert backbone.file is not None
    trained = checkpoint.load(backbone.file).network.backbone.state_dict()
    weights = tmp_path / "weights.pth"
    torch.save(trained, weights)
    for source in (backbone, Backbone("resnet18", "weights", weights)):
        torch.manual_seed(5)
        network = load_network(source, num_labels=4, bands=RGB)
        for key, value in network.backbone.state_dict().items():
            torch.testing.assert_close(value, trained[key], rtol=0, atol=0)
        torch.manual_seed(5)
        torch.testing.assert_close(network.head.weight, load_network(source, num_labels=4, bands=RGB).head.weight)
        assert network.num_labels == 4
    torch.manual_seed(5)
    at_random = load_network(Backbone("resnet18", "random"), 4, RGB).state_dict()
    torch.manual_seed(5)
    for key, value in classifiers.build("resnet18", 4).state_dict().items():
        torch.testing.assert_close(at_random[key], value, rtol=0, atol=0)
    with pytest.raises(WeightsError, match="no weight file at"):
        load_network(Backbone("resnet18", "weights", tmp_path / "none"), 4, RGB)
