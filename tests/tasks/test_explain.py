"""The explanation stage on a small store: rows, maps, judgements and quarantine, against plain loops over the files."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest
import rasterio
import torch
import torch.nn.functional as F  # noqa: N812
from sklearn.metrics import roc_auc_score

import classifiers
from classifiers import checkpoint
from classifiers.cam.faithfulness import judge_faithfulness
from classifiers.cam.methods import METHODS, STEPS
from classifiers.cam.target import Target
from infra.bigearthnet.classes import CLASSES, NAMES
from infra.errors import ConfigError, UnknownNameError
from infra.parts import recorded_configs
from infra.tables import EXPLANATIONS, QUARANTINED_MAPS
from infra.zarr_store import ShardedStore
from tasks import explain, map_store
from tasks.branch import Branch
from tasks.explain import QUARANTINED, Explained, ExplainLabels, ExplainPlan, patch_seed
from tasks.explained_patch import PatchExplainer
from tasks.map_store import read_map
from tasks.plan import Plan
from tasks.score import ScoredClassifier, ShardScorer, create_map_stores, scored_classifier
from tests.tasks.small_store import branch_of, copied, snapshot, untrained
from tests.tasks.test_branch import files_of

LOCAL = ("area_share", "judd_auc", "pointing", "iou_95", "iou_90", "iou_85", "iou_80", "iou_75", "similarity")
FAITHFUL = ("average_drop", "average_increase", "deletion_auc", "insertion_auc")
QUICK = {"rise": {"masks": 4}, "occlusion": {"window": 60, "stride": 60}, "lime": {"samples": 8, "cells": 2}}

type Row = dict[str, Any]
type Floats = np.ndarray[Any, np.dtype[np.float64]]


@pytest.fixture(scope="module")
def network_file(store: Plan, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return untrained(branch_of(store), tmp_path_factory.mktemp("linear") / "0.safetensors")


@pytest.fixture(scope="module")
def mlp_file(store: Plan, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of another head, whose gradients differ between patches."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = classifiers.build("resnet18", len(NAMES), 3, head="mlp").eval()
    file = tmp_path_factory.mktemp("mlp") / "0.safetensors"
    return untrained(branch_of(store), file, head="mlp", network=network)


@pytest.fixture
def plan(store: Plan, tmp_path: Path) -> Plan:
    return copied(store, tmp_path / "store")


@pytest.fixture
def _few_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    """Deletion and insertion in 6 steps instead of 36, where their values are not what is asked about."""
    monkeypatch.setattr(explain, "judge_faithfulness", partial(judge_faithfulness, steps=6))


def explained(
    plan: Plan, file: Path, wanted: ExplainPlan, shards: Sequence[int] = (0,), branch: Branch | None = None
) -> Mapping[str, Explained]:
    branch = branch or branch_of(plan)
    scored = scored_classifier(branch, "resnet18", {0: file}, wanted)
    create_map_stores(branch, [scored], plan.shard_size, max(plan.shards) + 1)
    worker = ShardScorer(branch, [scored])
    for shard in shards:
        worker.run(shard)
    return scored.explanations


def patches_of(plan: Plan, shard: int) -> list[Row]:
    rows: list[Row] = plan.parts.read(shard).sort_by("row").to_pylist()
    return rows


def input_of(plan: Plan, shard: int, file: Path) -> dict[str, torch.Tensor]:
    """What the network sees of each patch, from the archive's files, (1, 3, 120, 120)."""
    standardise = checkpoint.load(file).standardiser
    dn = np.minimum(np.stack(list(files_of(plan, shard, ("B04", "B03", "B02")))), 3000) / 3000
    return {
        row["patch_id"]: standardise(torch.from_numpy(x[None]).float())
        for row, x in zip(patches_of(plan, shard), dn, strict=True)
    }


def maps_by_hand(
    plan: Plan,
    shard: int,
    file: Path,
    method: str,
    options: Mapping[str, Any] | None = None,
    only: Collection[str] | None = None,
) -> dict[str, torch.Tensor]:
    """Maps of each patch, or of some only, one patch at a time, (L or 1, h, w)."""
    network = checkpoint.load(file).network
    return {
        name: classifiers.explain(network, x, method, seeds=[patch_seed(name)], **(options or {}))[0]
        for name, x in input_of(plan, shard, file).items()
        if only is None or name in only
    }


def truth_of(plan: Plan, patch_id: str, label: str) -> np.ndarray[Any, np.dtype[np.bool_]]:
    """Where the file of the reference map has one of the label's CORINE codes."""
    root = plan.paths.root.parent / "archive"
    (path,) = (root / "Reference_Maps").rglob(f"{patch_id}_reference_map.tif")
    with rasterio.open(path) as file:
        codes = file.read(1)
    (entry,) = (c for c in CLASSES if c.name == label)
    return np.isin(codes, list(entry.clc))


def enlarged(cam: torch.Tensor) -> Floats:
    """One rectified map on the patch's grid."""
    large = F.interpolate(cam.clamp(min=0)[None, None].double(), size=120, mode="bilinear", align_corners=False)
    return np.asarray(large[0, 0].numpy())


def localised(cam: torch.Tensor, mask: np.ndarray[Any, np.dtype[np.bool_]]) -> dict[str, float | None]:
    """The localisation of one map as the papers define it; None where undefined."""
    found: dict[str, float | None] = {"area_share": mask.mean()}
    large = enlarged(cam)
    if not large.any():
        return found | dict.fromkeys((*LOCAL[1:], "correlation"))
    flat, inside = large.ravel(), mask.ravel()
    is_full = inside.all()
    found["judd_auc"] = None if is_full else roc_auc_score(inside, flat)
    found["pointing"] = inside[np.isclose(flat, flat.max(), rtol=1e-6)].mean()
    falling = np.argsort(-flat, kind="stable")
    share = np.cumsum(flat[falling]) / flat.sum()
    for percent in (95, 90, 85, 80, 75):
        chosen = np.zeros(len(flat), bool)
        chosen[falling[: 1 + np.argmax(share >= percent / 100 - 1e-9)]] = True
        found[f"iou_{percent}"] = (chosen & inside).sum() / (chosen | inside).sum()
    found["similarity"] = np.minimum(flat / flat.sum(), inside / inside.sum()).sum()
    found["correlation"] = None if is_full or not np.ptp(flat) else np.corrcoef(flat, inside)[0, 1]
    return found


def rows_by_key(table: pa.Table) -> dict[tuple[str, str], Row]:
    rows = {(row["patch_id"], row["label"]): row for row in table.to_pylist()}
    assert len(rows) == table.num_rows
    return rows


@pytest.mark.parametrize("method", ["grad_cam", "eigen_cam", "random"])
def test_localisation_is_that_of_other_libraries_on_the_archives_map(
    store: Plan, plan: Plan, network_file: Path, method: str
) -> None:
    """Every label is judged: those on the map by it, those that are not there are null."""
    item = explained(plan, network_file, ExplainPlan((method,), "all"))[method]
    table = item.parts.read(0)
    assert table.schema.equals(EXPLANATIONS)
    maps = maps_by_hand(store, 0, network_file, method)
    judged = 0
    for (patch, label), row in rows_by_key(table).items():
        mask = truth_of(store, patch, label)
        if not mask.any():
            assert {row[name] for name in (*LOCAL, "correlation")} == {None}
            continue
        cam = maps[patch][NAMES.index(label) if len(maps[patch]) > 1 else 0]
        for name, value in localised(cam, mask).items():
            # One pixel more or less, of equal energy but for rounding, moves an IoU by its share.
            tolerance = 2e-3 if name.startswith("iou") else 1e-4
            expected = None if value is None else pytest.approx(value, abs=tolerance)
            assert row[name] == expected, (name, patch, label)
        judged += 1
    assert judged > len(maps)
    assert table.num_rows == 19 * len(maps)


def test_without_a_reference_map_nothing_is_localised(plan: Plan, network_file: Path) -> None:
    """Of one patch of a shard; the others are judged as ever, and nobody looks at what its row holds."""
    patches = plan.parts.read(0)
    without = patches["patch_id"][1].as_py()
    has_map = pc.not_equal(patches["patch_id"], without)
    plan.parts.write(
        0, patches.set_column(patches.schema.get_field_index("has_map"), patches.schema.field("has_map"), has_map)
    )
    rows = rows_by_key(explained(plan, network_file, ExplainPlan(("grad_cam",), "all"))["grad_cam"].parts.read(0))
    of_it = [row for (patch, _), row in rows.items() if patch == without]
    assert len(of_it) == 19
    assert {row[name] for row in of_it for name in (*LOCAL, "correlation")} == {None}
    assert any(row["coverage"] is not None for row in of_it)
    assert {patch for (patch, _), row in rows.items() if row["area_share"] is not None} == {
        patch for patch, _ in rows
    } - {without}


def test_a_shard_without_any_map_reads_none(plan: Plan, network_file: Path) -> None:
    patches = plan.parts.read(0)
    none = pa.array([False] * patches.num_rows)
    plan.parts.write(
        0, patches.set_column(patches.schema.get_field_index("has_map"), patches.schema.field("has_map"), none)
    )
    for path in (plan.paths.archive / "reference_map" / "c" / "0").rglob("*"):
        if path.is_file():
            path.unlink()
    table = explained(plan, network_file, ExplainPlan(("grad_cam",), "true"))["grad_cam"].parts.read(0)
    assert table.num_rows > 0
    assert table["area_share"].null_count == table.num_rows


@pytest.mark.usefixtures("_few_steps")
@pytest.mark.parametrize("method", ["rise", "occlusion", "lime"])
def test_costly_methods_see_the_sample_alone(store: Plan, plan: Plan, network_file: Path, method: str) -> None:
    """One patch of shard 0, and none of shard 1."""
    (*_, chosen) = [row["patch_id"] for row in patches_of(store, 0) if row["labels"]]
    sample = frozenset({chosen})
    wanted = ExplainPlan((method,), "true", QUICK, sample_size=1, sample=sample)
    items = explained(plan, network_file, wanted, (0, 1))
    table = items[method].parts.read(0)
    truth = {row["patch_id"]: row["labels"] for row in patches_of(store, 0)}
    assert set(rows_by_key(table)) == {(name, label) for name in sample for label in truth[name]}
    assert all(table["sampled"].to_pylist())
    assert items[method].parts.read(1).num_rows == 0
    maps = maps_by_hand(store, 0, network_file, method, QUICK[method], sample)
    opened = ShardedStore(plan.paths.maps(method, items[method].parts.config))
    for row in patches_of(store, 0):
        for label in range(19):
            found = read_map(opened, row["row"], label)
            if row["patch_id"] not in sample:
                assert np.isnan(found).all()
                continue
            expected = maps[row["patch_id"]][label].numpy()
            assert found.shape == expected.shape
            np.testing.assert_allclose(found, expected, rtol=1e-3, atol=2e-4 * np.abs(expected).max())
    assert not opened.read(1, "valid").any()


@pytest.mark.usefixtures("_few_steps")
def test_score_cam_is_costly_too(store: Plan, plan: Plan, network_file: Path) -> None:
    (name, *_) = [row["patch_id"] for row in patches_of(store, 3)]
    wanted = ExplainPlan(("score_cam",), "true", sample_size=1, sample=frozenset({name}))
    item = explained(plan, network_file, wanted, (3,))["score_cam"]
    assert set(item.parts.read(3)["patch_id"].to_pylist()) == {name}
    x = input_of(store, 3, network_file)[name]
    expected = classifiers.explain(checkpoint.load(network_file).network, x, "score_cam")[0].numpy()
    opened = ShardedStore(plan.paths.maps("score_cam", item.parts.config))
    index = 3 * plan.shard_size + patches_of(store, 3)[0]["row"]
    found = np.stack([read_map(opened, index, label) for label in range(19)])
    np.testing.assert_allclose(found, expected, rtol=2e-3, atol=1e-3 * expected.max())


def test_without_a_sample_costly_methods_run_everywhere_and_nothing_is_judged_by_passes(
    store: Plan, plan: Plan, network_file: Path
) -> None:
    items = explained(plan, network_file, ExplainPlan(("rise", "grad_cam"), "true", QUICK))
    labelled = {row["patch_id"] for row in patches_of(store, 0) if row["labels"]}
    for item in items.values():
        table = item.parts.read(0)
        assert set(table["patch_id"].to_pylist()) == labelled
        assert not any(table["sampled"].to_pylist())
        assert all(table[name].null_count == table.num_rows for name in FAITHFUL)


@pytest.mark.parametrize(("method", "steps"), [("grad_cam", STEPS), ("eigen_cam", 6)])
def test_faithfulness_is_of_the_row_s_patch_and_label(
    store: Plan, plan: Plan, network_file: Path, monkeypatch: pytest.MonkeyPatch, method: str, steps: int
) -> None:
    """Drop and increase by hand; deletion and insertion of one map at a time, in all steps and in few."""
    if steps != STEPS:
        monkeypatch.setattr(explain, "judge_faithfulness", partial(judge_faithfulness, steps=steps))
    patches = [row for row in patches_of(store, 0) if row["labels"]]
    sample = frozenset({patches[2]["patch_id"]})
    wanted = ExplainPlan((method,), "true", sample_size=1, sample=sample)
    rows = rows_by_key(explained(plan, network_file, wanted)[method].parts.read(0))
    network, maps = checkpoint.load(network_file).network, maps_by_hand(store, 0, network_file, method, only=sample)
    inputs = input_of(store, 0, network_file)
    judged = 0
    for (patch, label), row in rows.items():
        if patch not in sample:
            assert {row[name] for name in FAITHFUL} == {None}
            assert not row["sampled"]
            continue
        index, x = NAMES.index(label), inputs[patch]
        cam = maps[patch][index if len(maps[patch]) > 1 else 0]
        if not (cam > 0).any():
            assert {row[name] for name in FAITHFUL} == {None}
            continue
        low, high = cam.clamp(min=0).min(), cam.max()
        scaled = F.interpolate(((cam.clamp(min=0) - low) / (high - low))[None, None], size=120, mode="bilinear")
        with torch.no_grad():
            whole, masked = (float(torch.sigmoid(network(seen))[0, index]) for seen in (x, x * scaled))
            assert row["prob"] == pytest.approx(whole, abs=1e-5)
            assert row["average_drop"] == pytest.approx(100 * max(0, whole - masked) / whole, abs=0.01)
            assert row["average_increase"] == (100 if whole < masked else 0)
            target = Target(network, x, tuple(range(19)))
            alone = judge_faithfulness(target, cam[None], torch.tensor([0]), torch.tensor([index]), steps)
        for name in ("deletion_auc", "insertion_auc"):
            assert row[name] == pytest.approx(float(getattr(alone, name)), abs=1e-4)
        judged += 1
    assert judged > 0
    assert len({patch for patch, _ in rows}) == len(patches)


@pytest.mark.parametrize("method", ["eigen_cam", "hessian_ciam", "random"])
def test_methods_without_labels_have_one_map_for_all_rows_of_a_patch(
    store: Plan, plan: Plan, network_file: Path, method: str
) -> None:
    item = explained(plan, network_file, ExplainPlan((method,), "true"))[method]
    rows = item.parts.read(0).to_pylist()
    assert {(row["patch_id"], row["label"]) for row in rows} == {
        (row["patch_id"], label) for row in patches_of(store, 0) for label in row["labels"] or ()
    }
    assert {row["map_label"] for row in rows} == {0}
    opened, maps = ShardedStore(plan.paths.root / rows[0]["map_store"]), maps_by_hand(store, 0, network_file, method)
    assert opened.array("maps").shape[1:] == (1, 4, 4)
    for row in rows:
        expected = maps[row["patch_id"]][0].numpy()
        found = read_map(opened, row["map_index"], 0)
        np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-3 * expected.max())


def test_patches_without_a_predicted_label_have_maps_and_no_rows(store: Plan, plan: Plan, tmp_path: Path) -> None:
    """Whole batches of them, and single ones."""
    never = untrained(branch_of(store), tmp_path / "never.safetensors", thresholds=(1.1,) * 19)
    probs = [torch.sigmoid(checkpoint.load(never).network(x)).detach()[0] for x in input_of(store, 0, never).values()]
    largest = sorted(float(p.max()) for p in probs)
    some = untrained(branch_of(store), tmp_path / "some.safetensors", thresholds=(sum(largest[2:4]) / 2,) * 19)
    for file, patches in ((never, 0), (some, 3)):
        branch = branch_of(plan, batch_size=2)
        wanted = ExplainPlan(
            ("grad_cam", "random"), sample_size=1, sample=frozenset(store.parts.read(0)["patch_id"][:1].to_pylist())
        )
        for item in explained(plan, file, wanted, branch=branch).values():
            assert len(set(item.parts.read(0)["patch_id"].to_pylist())) == patches
            assert item.parts.read_side(QUARANTINED, 0).num_rows == 0
            opened = ShardedStore(plan.paths.maps(item.method, item.parts.config))
            assert all(not np.isnan(read_map(opened, row["row"], 0)).any() for row in patches_of(store, 0))


def test_a_map_that_is_not_finite_is_quarantined_and_the_others_stay(
    store: Plan, plan: Plan, network_file: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    ids = [row["patch_id"] for row in patches_of(store, 0) if row["labels"]]
    bad, labels = ids[2], next(row["labels"] for row in patches_of(store, 0) if row["patch_id"] == ids[2])
    entry = METHODS["grad_cam"]

    def poisoned(target: Target, options: Any) -> torch.Tensor:
        maps = entry.run(target, options).clone()
        if patch_seed(bad) in target.seeds:
            maps[list(target.seeds).index(patch_seed(bad)), NAMES.index(labels[0]), 1, 2] = torch.nan
        return maps

    sound = explained(copied(store, tmp_path / "sound"), network_file, ExplainPlan(("grad_cam",), "true"))["grad_cam"]
    monkeypatch.setattr(explain, "METHODS", {**METHODS, "grad_cam": replace(entry, run=poisoned)})
    item = explained(plan, network_file, ExplainPlan(("grad_cam",), "true"))["grad_cam"]
    faults = item.parts.read_side(QUARANTINED, 0)
    assert faults.schema.equals(QUARANTINED_MAPS)
    (fault,) = faults.to_pylist()
    assert (fault["patch_id"], fault["label"], fault["seed"], fault["reason"]) == (bad, labels[0], 0, "not finite")
    expected = [row for row in sound.parts.read(0).to_pylist() if (row["patch_id"], row["label"]) != (bad, labels[0])]
    found = item.parts.read(0).to_pylist()
    assert found == expected
    assert len(expected) == sound.parts.read(0).num_rows - 1
    opened = ShardedStore(plan.paths.maps("grad_cam", item.parts.config))
    row = next(row["row"] for row in patches_of(store, 0) if row["patch_id"] == bad)
    nan = [bool(np.isnan(read_map(opened, row, label)).any()) for label in range(19)]
    assert [NAMES[i] for i in range(19) if nan[i]] == [labels[0]]


def test_a_patch_s_map_that_is_not_finite_is_quarantined_once_and_has_no_row(
    store: Plan, plan: Plan, network_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a method without labels, and of a map of infinite values."""
    bad = next(row for row in patches_of(store, 0) if len(row["labels"] or ()) > 1)
    entry = METHODS["eigen_cam"]

    def poisoned(target: Target, options: Any) -> torch.Tensor:
        maps = entry.run(target, options).clone()
        if patch_seed(bad["patch_id"]) in target.seeds:
            maps[list(target.seeds).index(patch_seed(bad["patch_id"])), 0, 0, 0] = torch.inf
        return maps

    monkeypatch.setattr(explain, "METHODS", {**METHODS, "eigen_cam": replace(entry, run=poisoned)})
    item = explained(plan, network_file, ExplainPlan(("eigen_cam",), "true"))["eigen_cam"]
    faults = item.parts.read_side(QUARANTINED, 0).to_pylist()
    assert [(row["patch_id"], row["label"]) for row in faults] == [(bad["patch_id"], "patch")]
    assert bad["patch_id"] not in item.parts.read(0)["patch_id"].to_pylist()


def test_maps_are_written_while_their_shard_runs_and_are_the_same(
    store: Plan, plan: Plan, network_file: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Patch by patch, in Zarr shards of two: what lies before the last one added is on disk."""
    wanted, batch_size = ExplainPlan(("grad_cam",), "true"), 1
    first = copied(store, tmp_path / "whole")
    whole = explained(first, network_file, wanted, branch=branch_of(first, batch_size=batch_size))["grad_cam"]
    monkeypatch.setattr(map_store, "_WRITTEN_AT_ONCE", 2)
    entry, on_disk = METHODS["grad_cam"], []

    def watched(target: Target, options: Any) -> torch.Tensor:
        on_disk.append(len(list(plan.paths.root.glob("maps/**/maps/c/*/0/0/0"))))
        return entry.run(target, options)

    monkeypatch.setattr(explain, "METHODS", {**METHODS, "grad_cam": replace(entry, run=watched)})
    item = explained(plan, network_file, wanted, branch=branch_of(plan, batch_size=batch_size))["grad_cam"]
    rows = [row["row"] for row in patches_of(store, 0)]
    assert on_disk == [0, *(row // 2 for row in rows[:-1])]
    assert on_disk[-1] > 1
    assert item.parts.read(0).equals(whole.parts.read(0))
    stores = [ShardedStore(p.paths.maps("grad_cam", item.parts.config)) for p in (first, plan)]
    assert [opened.block("maps") for opened in stores] == [8, 2]
    for name in ("maps", "scale", "valid"):
        np.testing.assert_array_equal(stores[1].read(0, name), stores[0].read(0, name))


@pytest.mark.usefixtures("_few_steps")
@pytest.mark.parametrize("labels", ["predicted", "true", "all"])
def test_activations_that_are_not_finite_have_every_map_of_theirs_quarantined(
    store: Plan, plan: Plan, tmp_path: Path, labels: ExplainLabels
) -> None:
    """Of all methods that take no passes of their own, by a channel that is NaN; random maps do not look at it.

    Probabilities are NaN too, so that nothing is predicted; one patch has no true label. Neither hides a map.
    """
    network = classifiers.build("resnet18", len(NAMES), 3).eval()
    with torch.no_grad():
        network.backbone.get_submodule("layer4.1.bn2").get_parameter("bias")[0] = torch.nan
    file = untrained(branch_of(store), tmp_path / "nan.safetensors", network=network)
    cheap = tuple(method for method, entry in METHODS.items() if entry.is_cheap(network))
    patches = patches_of(store, 0)
    assert any(row["labels"] is None for row in patches)
    wanted = {
        (row["patch_id"], label)
        for row in patches
        for label in {"predicted": (), "true": row["labels"] or (), "all": NAMES}[labels]
    }
    sample = frozenset(row["patch_id"] for row in patches[:2])
    items = explained(plan, file, ExplainPlan(cheap, labels, sample_size=2, sample=sample))
    assert len(items) == len(cheap) > 9
    for method, item in items.items():
        faults = item.parts.read_side(QUARANTINED, 0).to_pylist()
        rows, stored = item.parts.read(0), ShardedStore(plan.paths.maps(method, item.parts.config))
        maps = [read_map(stored, row["row"], 0) for row in patches]
        if method == "random":
            assert (len(faults), set(rows_by_key(rows))) == (0, wanted)
            assert np.isfinite(maps).all()
        else:
            of_each = NAMES if METHODS[method].per_label else ("patch",)
            keys = [(row["patch_id"], row["label"]) for row in faults]
            assert sorted(keys) == sorted((row["patch_id"], label) for row in patches for label in of_each), method
            assert rows.num_rows == 0
            assert np.isnan(maps).all()


@pytest.mark.usefixtures("_few_steps")
def test_batches_and_the_order_of_shards_change_nothing_beyond_rounding(
    store: Plan, mlp_file: Path, tmp_path: Path
) -> None:
    """Noise, masks and gradients of the batch's own included."""
    sample = frozenset([next(row["patch_id"] for row in patches_of(store, 3)[1:] if row["labels"])])
    methods = ("grad_cam", "random", "rise", "hessian_ciam")
    wanted = ExplainPlan(methods, "true", {"rise": QUICK["rise"]}, 1, sample)
    runs = []
    for name, batch_size, shards in (("one", 1, (0, 3)), ("five", 5, (3, 0))):
        plan = copied(store, tmp_path / name)
        items = explained(plan, mlp_file, wanted, shards, branch_of(plan, batch_size=batch_size))
        runs.append((plan, items))
    for method in methods:
        (first, a), (second, b) = ((plan, items[method]) for plan, items in runs)
        assert a.parts.config == b.parts.config
        for shard in (0, 3):
            ours, theirs = a.parts.read(shard), b.parts.read(shard)
            assert ours.num_rows == theirs.num_rows
            for name in EXPLANATIONS.names:
                if not pa.types.is_floating(ours.schema.field(name).type):
                    assert ours[name].equals(theirs[name])
            maps = [
                np.asarray(ShardedStore(plan.paths.maps(method, a.parts.config)).read(shard, "maps"), np.float32)
                * np.asarray(ShardedStore(plan.paths.maps(method, a.parts.config)).read(shard, "scale"), np.float32)[
                    ..., None, None
                ]
                for plan in (first, second)
            ]
            np.testing.assert_allclose(maps[0], maps[1], rtol=2e-3, atol=1e-5)
            for name in ("prob", "coverage", "entropy", "centroid_row", "average_drop", "deletion_auc"):
                left, right = (t[name].to_pandas().to_numpy(float) for t in (ours, theirs))
                np.testing.assert_allclose(left, right, rtol=1e-4, atol=2e-4)


def test_configs_follow_whatever_determines_rows_and_maps_and_nothing_else(
    store: Plan, network_file: Path, mlp_file: Path
) -> None:
    def config(wanted: ExplainPlan, file: Path = network_file, batch_size: int = 5, method: str = "rise") -> str:
        branch = branch_of(store, batch_size=batch_size)
        return scored_classifier(branch, "resnet18", {0: file}, wanted).explanations[method].parts.config

    plain = ExplainPlan(("rise",), "true")
    first = config(plain)
    assert config(plain, batch_size=1) == first
    assert config(ExplainPlan(("grad_cam", "rise"), "true")) == first
    assert config(ExplainPlan(("rise",), "true", {"rise": {"masks": 4000}})) == first  # the default, spelled out
    whole, decimal = ({"lime": {"ridge": number}} for number in (2, 2.0))  # as YAML has them
    assert config(ExplainPlan(("lime",), "true", whole), method="lime") == config(
        ExplainPlan(("lime",), "true", decimal), method="lime"
    )
    assert config(ExplainPlan(("rise",), "true", sample=frozenset("x"))) == first  # without a size there is no sample
    others = [
        config(ExplainPlan(("rise",), "all")),
        config(ExplainPlan(("rise",), "true", {"rise": {"masks": 4}})),
        config(ExplainPlan(("rise",), "true", sample_size=1, sample=frozenset("a"))),
        config(ExplainPlan(("rise",), "true", sample_size=1, sample=frozenset("b"))),  # more patches came
        config(ExplainPlan(("rise",), "true", sample_size=2, sample=frozenset("ab"))),
        config(plain, mlp_file),
    ]
    assert len({first, *others}) == 7


def test_configs_follow_the_one_network_that_is_explained(store: Plan, plan: Plan, tmp_path: Path) -> None:
    """Further seeds have predictions of their own, and the maps of the first stay as they are."""
    branch = branch_of(plan)
    files = {seed: untrained(branch, tmp_path / f"{seed}.safetensors", seed) for seed in (0, 1)}
    wanted = ExplainPlan(("grad_cam",), "true")

    def scored(seeds: Sequence[int], name: str = "resnet18", of: Branch = branch) -> ScoredClassifier:
        return scored_classifier(of, name, {seed: files[seed] for seed in seeds}, wanted)

    one = scored((0,))
    create_map_stores(branch, [one], plan.shard_size, max(plan.shards) + 1)
    ShardScorer(branch, [one]).run(3)
    before = snapshot(plan.paths.root)
    both = scored((0, 1))
    assert both.explanations == one.explanations
    assert both.predictions != one.predictions
    ShardScorer(branch, [both]).run(3)
    assert snapshot(plan.paths.root).items() >= before.items()
    assert both.predictions.read(3)["seed"].to_pylist().count(1) == len(patches_of(store, 3))
    clipped = branch_of(plan)
    clipped = replace(clipped, pixels=replace(clipped.pixels, config="a0000000"))
    others = [scored((1,)), scored((1, 0)), scored((0,), "another"), scored((0,), of=clipped)]
    configs = [item.explanations["grad_cam"].parts.config for item in (one, *others)]
    assert configs[1] == configs[2]  # the first of the two is explained
    assert len(set(configs)) == 4


def test_methods_added_later_leave_those_that_are_done_alone(plan: Plan, network_file: Path) -> None:
    explained(plan, network_file, ExplainPlan(("grad_cam",), "true"), (0, 1))
    before = snapshot(plan.paths.root)
    items = explained(plan, network_file, ExplainPlan(("cam", "grad_cam", "random"), "true"), (0, 1))
    after = snapshot(plan.paths.root)
    assert {path: after[path] for path in before} == before
    added = after.keys() - before.keys()
    for method in ("cam", "random"):
        item = items[method]
        assert {item.parts.path(0), item.parts.path(1)} <= added
        assert any(plan.paths.maps(method, item.parts.config) in path.parents for path in added)
    assert not any("predictions" in path.parts for path in added)


def test_a_method_for_linear_heads_alone_is_refused_before_any_work(store: Plan, plan: Plan, mlp_file: Path) -> None:
    before = snapshot(plan.paths.root)
    with pytest.raises(ConfigError, match="cam needs a head that is one linear layer; resnet18 has another"):
        scored_classifier(branch_of(plan), "resnet18", {0: mlp_file}, ExplainPlan(("grad_cam", "cam")))
    after = snapshot(plan.paths.root, without=[path.name for path in (plan.paths.work / "configs").glob("*")])
    assert all(path in before for path in after)
    with pytest.raises(UnknownNameError, match="no explanation method 'lucky'"):
        scored_classifier(branch_of(store), "resnet18", {0: mlp_file}, ExplainPlan(("lucky",)))


@pytest.mark.parametrize(
    ("method", "options", "words"),
    [
        ("grad_plus_plus_score_cam", {"reduce_input": True}, "an input of 4 x 4 pixels, the size of the map, resnet18"),
        ("occlusion", {"window": 121}, "a window of 121 x 121 pixels does not fit an input of 120 x 120"),
        ("rise", {"cells": 121}, "121 cells do not fit an edge of an input of 120 x 120"),
        ("lime", {"cells": 121}, "121 cells do not fit an edge of an input of 120 x 120"),
    ],
)
def test_options_that_do_not_fit_the_branch_are_refused_before_any_work(
    store: Plan, network_file: Path, method: str, options: dict[str, Any], words: str
) -> None:
    before = [row for row in recorded_configs(store.paths) if row["stage"] == "explanations"]
    wanted = ExplainPlan(("grad_cam", method), options={method: options})
    with pytest.raises(ConfigError, match=words):
        scored_classifier(branch_of(store), "resnet18", {0: network_file}, wanted)
    with pytest.raises(ConfigError, match=words):
        PatchExplainer(branch_of(store), network_file, [method], {method: options})
    assert [row for row in recorded_configs(store.paths) if row["stage"] == "explanations"] == before


@pytest.mark.parametrize(
    "method",
    ["grad_cam", "grad_cam_pp", "layer_cam", "ablation_cam", "x_grad_cam", "smooth_grad_cam_pp", "hessian_ciam"],
)
def test_maps_of_a_head_with_hidden_units_are_those_of_explain(
    store: Plan, plan: Plan, mlp_file: Path, method: str
) -> None:
    """Inside the stage's pass, which needs no gradients, as outside."""
    options: dict[str, Any] = {}
    sample: frozenset[str] = frozenset()
    wanted = ExplainPlan((method,), "true")
    if method == "smooth_grad_cam_pp":  # the only one that needs passes of its own here
        options, sample = {"samples": 1}, frozenset([patches_of(store, 3)[1]["patch_id"]])
        wanted = ExplainPlan((method,), "true", {method: options}, sample_size=1, sample=sample)
    item = explained(plan, mlp_file, wanted, (3,))[method]
    opened = ShardedStore(plan.paths.maps(method, item.parts.config))
    network, inputs = checkpoint.load(mlp_file).network, input_of(store, 3, mlp_file)
    for row in patches_of(store, 3):
        name, index = row["patch_id"], 3 * plan.shard_size + row["row"]
        if sample and name not in sample:
            assert np.isnan(read_map(opened, index, 0)).all()
            continue
        maps = classifiers.explain(network, inputs[name], method, seeds=[patch_seed(name)], **options)
        expected = maps[0].numpy()
        found = np.stack([read_map(opened, index, label) for label in range(len(expected))])
        np.testing.assert_allclose(found, expected, rtol=2e-3, atol=1e-3 * expected.max())


def first_at_480(store: Plan, shard: int) -> torch.Tensor:
    """Reflectance of a shard's first patch as the branch `bicubic` has it, (1, 3, 480, 480)."""
    dn = np.minimum(next(iter(files_of(store, shard, ("B04", "B03", "B02")))), 3000)
    lr = torch.from_numpy(dn[None].astype(np.float32) / 3000)
    large = F.interpolate(lr, scale_factor=4, mode="bicubic", align_corners=False).clamp(0, 1)
    return (large * 3000).round() / 3000


def test_numbers_of_signed_maps_finer_than_the_patch_are_of_the_rectified_map(
    store: Plan, plan: Plan, tmp_path: Path
) -> None:
    """Occlusion's windows end within a pixel of the patch, whose mean of both signs would have one sign or none."""
    branch = branch_of(plan, "bicubic", batch_size=2)
    file = untrained(branch, tmp_path / "480.safetensors")
    options: dict[str, Any] = {"window": 250, "stride": 250}
    wanted = ExplainPlan(("occlusion",), "all", {"occlusion": options})
    rows = rows_by_key(explained(plan, file, wanted, (3,), branch)["occlusion"].parts.read(3))
    trained, name = checkpoint.load(file), patches_of(store, 3)[0]["patch_id"]
    maps = classifiers.explain(trained.network, trained.standardiser(first_at_480(store, 3)), "occlusion", **options)[0]
    differ = 0
    for label, cam in zip(NAMES, maps, strict=True):
        positive, signed = (m.reshape(120, 4, 120, 4).mean(dim=(1, 3)) for m in (cam.clamp(min=0), cam))
        share = float((positive > 0).double().mean())
        assert rows[name, label]["coverage"] == (pytest.approx(share, abs=1e-6) if share else None)
        differ += share != float((signed > 0).double().mean())
        mask = truth_of(store, name, label)
        if mask.any():
            for column in ("judd_auc", "similarity", "correlation"):
                expected = localised(positive, mask)[column]
                assert rows[name, label][column] == (None if expected is None else pytest.approx(expected, abs=1e-3))
    assert differ


def test_maps_finer_than_the_patch_are_stored_on_its_grid(store: Plan, plan: Plan, tmp_path: Path) -> None:
    """RISE on 480 pixels, of which 4 x 4 are a pixel of the patch."""
    branch = branch_of(plan, "bicubic", batch_size=2)
    file = untrained(branch, tmp_path / "480.safetensors")
    wanted = ExplainPlan(("rise", "grad_cam"), "true", {"rise": {"masks": 2}})
    items = explained(plan, file, wanted, (3,), branch)
    opened = ShardedStore(plan.paths.maps("rise", items["rise"].parts.config))
    assert opened.array("maps").shape[1:] == (19, 120, 120)
    assert ShardedStore(plan.paths.maps("grad_cam", items["grad_cam"].parts.config)).array("maps").shape[1:] == (
        19,
        15,
        15,
    )
    first = patches_of(store, 3)[0]
    trained = checkpoint.load(file)
    x = trained.standardiser(first_at_480(store, 3))
    maps = classifiers.explain(trained.network, x, "rise", masks=2)[0].reshape(19, 120, 4, 120, 4).mean(dim=(2, 4))
    for label in (0, 7):
        found = read_map(opened, 3 * plan.shard_size + first["row"], label)
        np.testing.assert_allclose(found, maps[label].numpy(), rtol=2e-3, atol=1e-3 * float(maps[label].max()))
