from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest
import torch
import torch.nn.functional as F  # noqa: N812

import classifiers
from classifiers import checkpoint
from infra.bigearthnet.bands import BAND_SETS, RGB, STATISTICS
from infra.bigearthnet.classes import NAMES
from infra.errors import ConfigError, PipelineError
from infra.parts import StageParts
from infra.storage import StorePaths
from infra.tables import EXPLANATIONS, PATCHES, predictions_schema
from infra.zarr_store import ShardedStore, create_store
from tasks.backbone import Backbone
from tasks.branch import Branch
from tasks.explain import QUARANTINED, ExplainLabels, ExplainPlan
from tasks.features import ShardFeatures, features_parts
from tasks.ingest import ShardIngester
from tasks.map_store import read_map
from tasks.plan import Plan, make_plan
from tasks.score import ScoredClassifier, ShardScorer, create_map_stores, scored_classifier
from tasks.super_resolve import ShardSuperResolver
from tests.tasks.small_store import MAX_DN, branch_of, copied, snapshot, untrained, v2
from tests.tasks.test_branch import files_of, streamed

THRESHOLDS = tuple(np.linspace(0.2, 0.8, 19).tolist())


@pytest.fixture(scope="module")
def checkpoints(store: Plan, tmp_path_factory: pytest.TempPathFactory) -> Mapping[int, Path]:
    """Two seeds on the branch "none"."""
    folder = tmp_path_factory.mktemp("checkpoints")
    branch = branch_of(store)
    return {seed: untrained(branch, folder / f"{seed}.safetensors", seed, thresholds=THRESHOLDS) for seed in (0, 1)}


@pytest.fixture
def plan(store: Plan, tmp_path: Path) -> Plan:
    return copied(store, tmp_path / "store")


def score(
    plan: Plan,
    checkpoints: Mapping[int, Path],
    shards: tuple[int, ...] = (0,),
    labels: ExplainLabels = "predicted",
    branch: Branch | None = None,
    methods: tuple[str, ...] = ("grad_cam",),
) -> ScoredClassifier:
    branch = branch or branch_of(plan)
    scored = scored_classifier(branch, "resnet18", checkpoints, ExplainPlan(methods, labels))
    create_map_stores(branch, [scored], plan.shard_size, max(plan.shards) + 1)
    worker = ShardScorer(branch, [scored])
    for shard in shards:
        assert worker.run(shard).patches == plan.parts.read(shard).num_rows
    return scored


def by_hand(
    store: Plan, shard: int, path: Path, bands: tuple[str, ...] = RGB
) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    """Probabilities and Grad-CAM maps of a shard's patches, one patch at a time, from the archive's files."""
    network = checkpoint.load(path).network
    limits = np.array([[[6000 if band == "B08" else MAX_DN]] for band in bands])
    mean, std = (np.array([[[getattr(STATISTICS[band], k)]] for band in bands]) / limits for k in ("mean", "std"))
    probs, maps = [], []
    for dn in files_of(store, shard, bands):
        x = (np.minimum(dn, limits) / limits - mean) / std
        batch = torch.from_numpy(x[None]).float()
        with torch.no_grad():
            probs.append(torch.sigmoid(network(batch))[0].numpy())
        maps.append(classifiers.explain(network, batch, "grad_cam")[0].numpy())
    return np.stack(probs), np.stack(maps)


def raw_maps(path: Path, shard: int) -> np.ndarray[Any, Any]:
    """Every map of a shard as it is stored, times its scale."""
    store = ShardedStore(path)
    return store.read(shard, "maps").astype(np.float32) * store.read(shard, "scale")[:, :, None, None]  # type: ignore[operator,no-any-return]


def probs_of(table: pa.Table) -> np.ndarray[Any, Any]:
    return np.array(table["probs"].to_pylist(), np.float32)


def test_predictions_are_those_of_a_plain_loop(store: Plan, plan: Plan, checkpoints: Mapping[int, Path]) -> None:
    scored = score(plan, checkpoints, (0, 3))
    for shard in (0, 3):
        table = scored.predictions.read(shard)
        assert table.schema.equals(predictions_schema(19))
        patches = store.parts.read(shard).sort_by("row")
        for seed, path in checkpoints.items():
            of_seed = table.filter(pc.equal(table["seed"], seed))
            for column in ("patch_id", "split", "labels"):
                assert of_seed[column].to_pylist() == patches[column].to_pylist()
            probs = probs_of(of_seed)
            np.testing.assert_allclose(probs, by_hand(store, shard, path)[0], atol=1e-5)
            expected = [[NAMES[i] for i in range(19) if row[i] >= np.float32(THRESHOLDS[i])] for row in probs]
            assert of_seed["predicted"].to_pylist() == expected
            assert 0 < sum(map(len, expected)) < 19 * len(expected)
        assert table.num_rows == 2 * patches.num_rows


def test_four_bands_go_from_the_files_to_the_network(store: Plan, plan: Plan, tmp_path: Path) -> None:
    bands = BAND_SETS["10m"]
    branch = branch_of(plan, bands=bands)
    path = untrained(branch, tmp_path / "four.safetensors")
    scored = score(plan, {0: path}, branch=branch)
    probs, maps = by_hand(store, 0, path, bands)
    np.testing.assert_allclose(probs_of(scored.predictions.read(0)), probs, atol=1e-5)
    stored = raw_maps(plan.paths.maps("grad_cam", scored.explanations["grad_cam"].parts.config), 0)
    rows = np.sort(store.parts.read(0)["row"].to_numpy())
    np.testing.assert_allclose(stored[rows], maps, rtol=1e-3, atol=1e-5 * maps.max())
    rgb = branch_of(plan)
    assert rgb.pixels.config != branch.pixels.config
    with pytest.raises(ConfigError, match="bands"):  # trained on four bands, asked to judge three
        scored_classifier(rgb, "resnet18", {0: path}, ExplainPlan(("grad_cam",)))


def test_maps_are_those_of_explain(store: Plan, plan: Plan, checkpoints: Mapping[int, Path]) -> None:
    scored = score(plan, checkpoints)
    maps_store = ShardedStore(plan.paths.maps("grad_cam", scored.explanations["grad_cam"].parts.config))
    maps, valid = raw_maps(maps_store.path, 0), maps_store.read(0, "valid").astype(np.bool_)
    rows = np.sort(store.parts.read(0)["row"].to_numpy())
    np.testing.assert_array_equal(np.flatnonzero(valid), rows)
    expected = by_hand(store, 0, checkpoints[0])[1]
    assert expected.shape == (6, 19, 4, 4)
    assert expected.max() > 0.01
    np.testing.assert_allclose(maps[rows], expected, rtol=1e-3, atol=1e-5 * expected.max())
    assert np.isnan(maps[~valid]).all()
    with pytest.raises(PipelineError, match="is not on disk"):  # not scored yet
        maps_store.read(1, "maps")


@pytest.mark.parametrize("labels", get_args(ExplainLabels))
def test_explanations_have_a_row_for_each_label_asked_for(
    store: Plan, plan: Plan, checkpoints: Mapping[int, Path], labels: ExplainLabels
) -> None:
    scored = score(plan, {0: checkpoints[0]}, labels=labels)
    parts = scored.explanations["grad_cam"].parts
    table = parts.read(0)
    assert table.schema.equals(EXPLANATIONS)
    predictions = {row["patch_id"]: row for row in scored.predictions.read(0).to_pylist()}
    wanted = {
        (patch, label)
        for patch, row in predictions.items()
        for label in (NAMES if labels == "all" else row["predicted" if labels == "predicted" else "labels"] or ())
    }
    assert {(row["patch_id"], row["label"]) for row in table.to_pylist()} == wanted
    assert table.num_rows == len(wanted) > 0
    place = {row["patch_id"]: row["row"] for row in store.parts.read(0).to_pylist()}
    for row in table.to_pylist():
        assert row["map_store"] == f"maps/grad_cam-{parts.config}.zarr"
        assert (row["map_index"], row["map_label"]) == (place[row["patch_id"]], NAMES.index(row["label"]))
        assert row["prob"] == predictions[row["patch_id"]]["probs"][row["map_label"]]
        assert row["seed"] == 0
        here = read_map(ShardedStore(plan.paths.root / row["map_store"]), row["map_index"], row["map_label"])
        large = F.interpolate(torch.from_numpy(here)[None, None], size=120, mode="bilinear")[0, 0].double().numpy()
        if not large.any():
            assert row["coverage"] is row["entropy"] is row["centroid_row"] is row["centroid_col"] is None
            continue
        share = large / large.sum()
        assert row["coverage"] == pytest.approx(np.mean(large > 0), abs=1e-6)
        assert row["centroid_row"] == pytest.approx((share.sum(axis=1) * (np.arange(120) + 0.5) / 120).sum(), abs=1e-4)
        assert row["centroid_col"] == pytest.approx((share.sum(axis=0) * (np.arange(120) + 0.5) / 120).sum(), abs=1e-4)
        spread = -(share[share > 0] * np.log(share[share > 0])).sum() / np.log(120**2)
        assert row["entropy"] == pytest.approx(spread, abs=1e-4)


def test_map_index_counts_shards(plan: Plan, checkpoints: Mapping[int, Path]) -> None:
    parts = score(plan, {0: checkpoints[0]}, (1,), "all").explanations["grad_cam"].parts
    rows = {row["patch_id"]: row["row"] for row in plan.parts.read(1).to_pylist()}
    assert all(row["map_index"] == 8 + rows[row["patch_id"]] for row in parts.read(1).to_pylist())


def test_batch_size_changes_nothing_beyond_rounding(
    plan: Plan, checkpoints: Mapping[int, Path], tmp_path: Path
) -> None:
    other = copied(plan, tmp_path / "other")
    one = score(plan, checkpoints, labels="all", branch=branch_of(plan, batch_size=1))
    five = score(other, checkpoints, labels="all", branch=branch_of(other, batch_size=5))
    assert one.predictions.config == five.predictions.config
    a, b = (
        item.predictions.read(0).sort_by([("seed", "ascending"), ("patch_id", "ascending")]) for item in (one, five)
    )
    assert a.drop(["probs", "predicted"]).equals(b.drop(["probs", "predicted"]))
    np.testing.assert_allclose(probs_of(a), probs_of(b), atol=1e-5)
    x, y = (item.explanations["grad_cam"].parts.read(0) for item in (one, five))
    names = ["patch_id", "label", "seed", "map_store", "map_index", "map_label"]
    assert x.select(names).equals(y.select(names))
    np.testing.assert_allclose(x["prob"].to_numpy(), y["prob"].to_numpy(), atol=1e-5)


def test_what_is_done_is_left_alone_and_what_is_missing_is_written_alone(
    plan: Plan, checkpoints: Mapping[int, Path]
) -> None:
    scored = score(plan, {0: checkpoints[0]}, (0, 1))
    before = snapshot(plan.paths.root)
    score(plan, {0: checkpoints[0]}, (0, 1))
    assert snapshot(plan.paths.root) == before
    maps = plan.paths.maps("grad_cam", scored.explanations["grad_cam"].parts.config)
    for parts, written in (
        (scored.predictions, set()),
        (scored.explanations["grad_cam"].parts, set(maps.rglob("c/0/*"))),
    ):
        parts.path(0).unlink()
        score(plan, {0: checkpoints[0]}, (0, 1))
        after = snapshot(plan.paths.root)
        assert {path: content for path, (_, content) in after.items()} == {
            path: content for path, (_, content) in before.items()
        }
        touched = {path for path in after if after[path] != before[path]}
        own = {parts.path(0), parts.side_path(QUARANTINED, 0)}
        assert parts.path(0) in touched
        assert all(path in own or (written and maps in path.parents) for path in touched)
        assert not any("c/1/" in str(path) for path in touched)
        before = after


def test_several_classifiers_in_one_pass(plan: Plan, checkpoints: Mapping[int, Path], tmp_path: Path) -> None:
    """As each alone."""
    other = copied(plan, tmp_path / "other")
    branch = branch_of(plan)
    both = [
        scored_classifier(branch, "resnet18", {s: checkpoints[s]}, ExplainPlan(("grad_cam",), "true")) for s in (0, 1)
    ]
    create_map_stores(branch, both, plan.shard_size, 4)
    ShardScorer(branch, both).run(0)
    for seed, item in enumerate(both):
        alone = score(other, {seed: checkpoints[seed]}, labels="true")
        assert item.predictions.read(0).equals(alone.predictions.read(0))
        assert item.explanations["grad_cam"].parts.read(0).equals(alone.explanations["grad_cam"].parts.read(0))


def test_without_methods_there_are_predictions_alone(plan: Plan, checkpoints: Mapping[int, Path]) -> None:
    scored = score(plan, {0: checkpoints[0]}, methods=())
    assert scored.outputs == [scored.predictions]
    assert scored.predictions.done() == {0}
    assert not (plan.paths.root / "maps").exists()


def test_a_shard_without_patches_has_empty_parts(plan: Plan, checkpoints: Mapping[int, Path]) -> None:
    plan.parts.write(1, PATCHES.empty_table())
    scored = score(plan, checkpoints, (1,))
    assert scored.predictions.read(1).equals(predictions_schema(19).empty_table())
    assert scored.explanations["grad_cam"].parts.read(1).equals(EXPLANATIONS.empty_table())
    store = ShardedStore(plan.paths.maps("grad_cam", scored.explanations["grad_cam"].parts.config))
    assert np.isnan(raw_maps(store.path, 1)).all()
    assert not store.read(1, "valid").any()


def test_streamed_bicubic_writes_its_quality_and_stored_gives_the_same(archive_root: Path, tmp_path: Path) -> None:
    plan = make_plan(v2(archive_root), StorePaths(tmp_path / "store"), "bigearthnet-v2", 2)
    ShardIngester(v2(archive_root), plan.format, plan.parts).run(0)
    branch = branch_of(plan, "bicubic")
    path = untrained(branch, tmp_path / "0.safetensors")
    pixels, _, quality = streamed(branch, 0)
    scored = score(plan, {0: path}, labels="all", branch=branch)
    assert branch.quality.read(0).equals(pa.concat_tables(quality))
    x = checkpoint.load(path).standardiser(torch.from_numpy(pixels.astype(np.float32)) / MAX_DN)
    network = checkpoint.load(path).network
    with torch.no_grad():
        expected = torch.sigmoid(network(x)).numpy()
    np.testing.assert_allclose(probs_of(scored.predictions.read(0)), expected, atol=1e-5)
    store = ShardedStore(plan.paths.maps("grad_cam", scored.explanations["grad_cam"].parts.config))
    maps = classifiers.explain(network, x, "grad_cam").numpy()
    assert maps.shape == (2, 19, 15, 15)
    np.testing.assert_allclose(raw_maps(store.path, 0), maps, rtol=1e-3, atol=1e-5 * maps.max())

    before = scored.predictions.path(0).read_bytes(), scored.explanations["grad_cam"].parts.path(0).read_bytes()
    create_store(branch.store, branch.arrays(), 2, 1, {})
    ShardSuperResolver(branch).run(0)
    for parts in scored.outputs:
        parts.path(0).unlink()
    score(plan, {0: path}, labels="all", branch=branch)
    assert (
        scored.predictions.path(0).read_bytes(),
        scored.explanations["grad_cam"].parts.path(0).read_bytes(),
    ) == before


def test_checkpoints_of_other_labels_or_another_branch_are_refused(store: Plan, tmp_path: Path) -> None:
    none, bicubic = branch_of(store), branch_of(store, "bicubic")
    alphabetical = untrained(none, tmp_path / "a", labels=tuple(sorted(NAMES)))
    with pytest.raises(ConfigError, match="has the labels Agro-forestry areas"):
        scored_classifier(none, "resnet18", {0: alphabetical}, ExplainPlan(()))
    other = untrained(bicubic, tmp_path / "b")
    with pytest.raises(ConfigError, match=r"was trained on .*sr bicubic.* this run's none branch is .*sr none"):
        scored_classifier(none, "resnet18", {0: other}, ExplainPlan(()))
    clipped = replace(none, identity={**none.identity, "max_dn": [4000] * 3})
    with pytest.raises(ConfigError, match=r"max_dn \[3000, 3000, 3000\]"):
        scored_classifier(clipped, "resnet18", {0: untrained(none, tmp_path / "c")}, ExplainPlan(()))


def test_configs_are_those_of_what_determines_the_rows(
    store: Plan, checkpoints: Mapping[int, Path], tmp_path: Path
) -> None:
    def configs(
        paths: Mapping[int, Path], labels: ExplainLabels = "true", ingest: str | None = None, batch_size: int = 5
    ) -> tuple[str, str]:
        parts = StageParts(StorePaths(tmp_path / "store"), "ingest", ingest or store.parts.config)
        branch = branch_of(replace(store, parts=parts), batch_size=batch_size)
        scored = scored_classifier(branch, "resnet18", paths, ExplainPlan(("grad_cam",), labels))
        return scored.predictions.config, scored.explanations["grad_cam"].parts.config

    elsewhere = tmp_path / "elsewhere"
    elsewhere.write_bytes(checkpoints[0].read_bytes())
    first = configs({0: checkpoints[0]})
    assert configs({0: elsewhere}, batch_size=1) == first
    assert configs({0: checkpoints[0]}, "all")[0] == first[0]
    assert configs({0: checkpoints[0]}, "all")[1] != first[1]
    others = [configs({0: checkpoints[1]}), configs(checkpoints), configs({0: checkpoints[0]}, ingest="a1b2c3d4")]
    assert len({first[0], *(other[0] for other in others)}) == 4
    assert len({first[1], others[0][1], others[2][1]}) == 3
    assert others[1][1] == first[1]  # further seeds predict, and are not explained
    turned = configs({seed: checkpoints[seed] for seed in (1, 0)})
    assert turned[0] == others[1][0]  # the same predictions
    assert turned[1] != others[1][1]  # maps of another network: the first seed's


def features_of_shards(plan: Plan, file: Path, shards: tuple[int, ...], *, augment: bool) -> StageParts:
    backbone = Backbone("resnet18", "archive", file)
    parts = features_parts(branch_of(plan), backbone, augment=augment)
    worker = ShardFeatures(branch_of(plan), backbone, parts, augment=augment)
    for shard in shards:
        worker.run(shard)
    return parts


@pytest.mark.parametrize("augment", [False, True])
def test_stored_features_give_what_pixels_give(
    plan: Plan, checkpoints: Mapping[int, Path], tmp_path: Path, augment: bool
) -> None:
    """Patch by patch, where rows of the shard are holes, of shards with features and of one without."""
    of_pixels = score(plan, {0: checkpoints[0]}, (0, 2), methods=())
    features = features_of_shards(plan, checkpoints[0], (0,), augment=augment)
    scored = scored_classifier(branch_of(plan), "stored", {0: checkpoints[0]}, ExplainPlan(()), features)
    worker = ShardScorer(branch_of(plan), [scored])
    for shard in (0, 2):
        worker.run(shard)
        found, expected = scored.predictions.read(shard), of_pixels.predictions.read(shard)
        assert np.ptp(probs_of(expected), axis=0).max() > 0.01  # patches differ, so a row of another would show
        np.testing.assert_allclose(probs_of(found), probs_of(expected), atol=1e-5)
        for column in ("patch_id", "split", "seed", "labels"):
            assert found[column].to_pylist() == expected[column].to_pylist()


@pytest.mark.parametrize("augment", [False, True])
def test_a_shard_without_patches_has_no_stored_features_to_predict_from(
    plan: Plan, checkpoints: Mapping[int, Path], augment: bool
) -> None:
    plan.parts.write(1, PATCHES.empty_table())
    features = features_of_shards(plan, checkpoints[0], (1,), augment=augment)
    scored = scored_classifier(branch_of(plan), "resnet18", checkpoints, ExplainPlan(()), features)
    assert ShardScorer(branch_of(plan), [scored]).run(1).patches == 0
    assert scored.predictions.read(1).equals(predictions_schema(19).empty_table())
