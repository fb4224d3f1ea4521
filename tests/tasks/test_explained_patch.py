import shutil
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F  # noqa: N812

import classifiers
from classifiers import checkpoint
from infra.bigearthnet.classes import NAMES
from infra.errors import ConfigError, UnknownNameError
from infra.storage import StorePaths
from tasks.explain import patch_seed
from tasks.explained_patch import (
    PatchExplainer,
    checkpoint_files,
    find_checkpoint,
    find_patch,
    patch_places,
    truth_mask,
)
from tasks.plan import Plan
from tests.tasks.small_store import branch_of, untrained
from tests.tasks.test_branch import files_of
from tests.tasks.test_explain import patches_of, truth_of

BANDS = ("B04", "B03", "B02")
OPTIONS: Mapping[str, Mapping[str, Any]] = {"lime": {"samples": 4, "cells": 2}}


def dn_of(plan: Plan, shard: int, patch_id: str) -> np.ndarray:
    """B04, B03, B02 of a patch, from its files."""
    at = [row["patch_id"] for row in patches_of(plan, shard)].index(patch_id)
    return np.asarray(list(files_of(plan, shard, BANDS))[at])


@pytest.mark.parametrize("sr", ["none", "bicubic"])
def test_a_view_has_the_pixels_probabilities_and_maps_of_the_patch(store: Plan, tmp_path: Path, sr: str) -> None:
    """The last patch of a shard with holes, so that a row of another would show."""
    branch = branch_of(store, sr)
    file = untrained(branch, tmp_path / "0.safetensors")
    (*_, last) = patches_of(store, 0)
    place = find_patch(branch.inputs, store.ingested(), last["patch_id"])
    methods, options = ("grad_cam", "random", "lime"), OPTIONS
    view = PatchExplainer(branch, file, methods, options).view(place)

    dn = np.minimum(dn_of(store, 0, last["patch_id"]), 3000)
    x = torch.from_numpy(dn[None].astype(np.float32) / 3000)
    if sr == "bicubic":
        x = (F.interpolate(x, scale_factor=4, mode="bicubic").clamp(0, 1) * 3000).round() / 3000
    grey = np.rint(255 * x[0].double().numpy() ** (1 / 1.5)).transpose(1, 2, 0)
    assert view.rgb.shape == grey.shape
    assert np.abs(view.rgb - grey).max() <= 1
    trained = checkpoint.load(file)
    seen = trained.standardiser(x)
    with torch.no_grad():
        np.testing.assert_allclose(view.probs, torch.sigmoid(trained.network(seen))[0].numpy(), atol=1e-5)
    assert (view.sr, view.labels, tuple(view.maps)) == (sr, NAMES, methods)
    for method in methods:
        raw = classifiers.explain(
            trained.network, seen, method, seeds=[patch_seed(last["patch_id"])], **options.get(method, {})
        )
        large = F.interpolate(raw.clamp(min=0), size=120, mode="bilinear")[0].numpy()
        for label in (0, 11):
            expected = large[label if len(large) > 1 else 0]
            found = view.map_of(method, NAMES[label])
            np.testing.assert_allclose(found, expected, atol=1e-4 * np.abs(large).max())
    assert view.prob_of(NAMES[11]) == float(view.probs[11])


def test_patches_are_found_by_name(store: Plan) -> None:
    inputs = branch_of(store).inputs
    every = {row["patch_id"]: (shard, row) for shard in store.ingested() for row in patches_of(store, shard)}
    places = list(patch_places(inputs, store.ingested()))
    assert len(places) == len(every) == 22
    for place in places:
        shard, row = every[place.patch_id]
        labels = None if row["labels"] is None else tuple(row["labels"])
        assert (place.shard, place.row, place.labels, place.has_map) == (shard, row["row"], labels, True)
        assert find_patch(inputs, store.ingested(), place.patch_id) == place
    assert sum(place.labels is None for place in places) == 1
    with pytest.raises(UnknownNameError, match=r"no patch 'nobody'.*B04, B03, B02.*tables/predictions"):
        find_patch(inputs, store.ingested(), "nobody")
    with pytest.raises(UnknownNameError):  # it lies in a shard of another split
        find_patch(inputs, store.ingested("test"), patches_of(store, 0)[0]["patch_id"])


def test_the_truth_is_the_archive_s_reference_map(store: Plan) -> None:
    inputs = branch_of(store).inputs
    (*_, last) = patches_of(store, 2)
    place = find_patch(inputs, store.ingested(), last["patch_id"])
    for label in NAMES:
        mask = truth_mask(inputs, place, label)
        assert mask is not None
        np.testing.assert_array_equal(mask, truth_of(store, last["patch_id"], label))
    without = replace(place, has_map=False)
    assert truth_mask(inputs, without, NAMES[0]) is None


def test_a_checkpoint_is_told_by_its_bytes(store: Plan, tmp_path: Path) -> None:
    """Wherever it lies, and whatever else was trained for the branch since."""
    stores = [StorePaths(tmp_path / name) for name in ("one", "two")]
    files = [
        untrained(branch_of(store), stores[0].checkpoint("none", "resnet18", "aaaaaaaa", 0), 0),
        untrained(branch_of(store), stores[1].checkpoint("none", "resnet18", "bbbbbbbb", 1), 1),
    ]
    shutil.copytree(stores[0].root / "checkpoints", stores[0].root / "elsewhere")
    untrained(branch_of(store), stores[0].checkpoint("bicubic", "resnet18", "aaaaaaaa", 2), 2)
    untrained(branch_of(store), stores[0].checkpoint("none", "resnet18_wide", "aaaaaaaa", 3), 3)
    found = checkpoint_files(stores, "none", "resnet18")
    assert found == files
    for file in files:
        assert find_checkpoint(found, "none", "resnet18", checkpoint.sha256(file)) == file
    digest = checkpoint.sha256(files[1])
    files[1].unlink()
    with pytest.raises(ConfigError, match=f"resnet18 on none with the SHA-256 {digest[:8]}.* is gone: run the flow"):
        find_checkpoint(found, "none", "resnet18", digest)


def test_what_cannot_be_explained_is_refused_when_it_is_loaded(store: Plan, tmp_path: Path) -> None:
    none = branch_of(store)
    network = classifiers.build("resnet18", len(NAMES), 3, head="mlp").eval()
    mlp = untrained(none, tmp_path / "mlp.safetensors", head="mlp", network=network)
    with pytest.raises(ConfigError, match="cam needs a head that is one linear layer"):
        PatchExplainer(none, mlp, ["cam"])
    with pytest.raises(UnknownNameError, match="lucky"):
        PatchExplainer(none, mlp, ["lucky"])
    with pytest.raises(ConfigError, match="rise does not take mask"):
        PatchExplainer(none, mlp, ["rise"], {"rise": {"mask": 4}})
    with pytest.raises(ConfigError, match="was trained on"):
        PatchExplainer(branch_of(store, "bicubic"), mlp, ["grad_cam"])
