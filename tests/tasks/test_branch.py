from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import rasterio
import torch
import torch.nn.functional as F  # noqa: N812

from infra.bigearthnet.bands import RGB
from infra.errors import ConfigError, PipelineError, WeightsError
from infra.node_files import share
from infra.object_store import ObjectPath
from infra.parts import StageParts
from infra.storage import StorePaths
from infra.zarr_store import ShardedStore
from sr_models import Condition
from sr_models.quality import QUALITY_COLUMNS
from sr_models.stretch import to_dn
from tasks import branch as branch_module
from tasks.branch import Branch, BranchReader, LandCover, make_branch
from tasks.plan import Plan
from tests.infra.s3_server import S3Server
from tests.tasks.small_store import MAX_DN, band_file, branch_of, inputs_of

CPU = torch.device("cpu")


def streamed(branch: Branch, shard: int) -> tuple[np.ndarray[Any, Any], list[int], list[pa.Table]]:
    """Pixels, rows and quality of one shard, and a check of the size of its batches."""
    patches = branch.ingest.read(shard)
    pixels, rows, quality = [], [], []
    for batch in BranchReader(branch, CPU).batches(shard, patches):
        assert len(batch.rows) == len(batch.x) <= branch.batch_size
        pixels.append(to_dn(batch.x, branch.max_dn).numpy())
        rows += batch.rows.tolist()
        quality += [batch.quality] if batch.quality is not None else []
    return np.concatenate(pixels), rows, quality


def files_of(plan: Plan, shard: int, names: tuple[str, ...] = RGB) -> np.ndarray[Any, Any]:
    """Bands of a shard's patches in the order of their rows, as rasterio reads the archive."""
    root = plan.paths.root.parent / "archive"
    patches = []
    for name in plan.parts.read(shard).sort_by("row")["patch_id"].to_pylist():
        bands = []
        for band in names:
            with rasterio.open(band_file(root, name, band)) as source:
                bands.append(source.read(1))
        patches.append(np.stack(bands))
    return np.stack(patches)


@pytest.mark.parametrize("shard", [0, 1, 2, 3])
def test_none_shows_the_clipped_patches_in_the_order_of_their_rows(store: Plan, shard: int) -> None:
    pixels, rows, quality = streamed(branch_of(store), shard)
    assert rows == sorted(store.parts.read(shard)["row"].to_pylist())
    np.testing.assert_array_equal(pixels, np.minimum(files_of(store, shard), MAX_DN))
    assert not quality


def test_the_store_has_holes(store: Plan) -> None:
    """What the other tests rely on."""
    assert store.parts.read(0)["row"].to_pylist() != list(range(store.parts.read(0).num_rows))
    assert store.parts.read(0).num_rows == 6


def test_bicubic_is_torch_s_on_the_unit_interval_rounded_to_dn(store: Plan) -> None:
    pixels, _, quality = streamed(branch_of(store, "bicubic"), 0)
    x = torch.from_numpy(files_of(store, 0).astype(np.float32)).clamp(max=MAX_DN) / MAX_DN
    y = F.interpolate(x, scale_factor=4, mode="bicubic", align_corners=False).clamp(0, 1) * MAX_DN
    difference = np.abs(pixels.astype(int) - y.numpy())
    assert difference.max() <= 0.5 + 1e-3
    assert pa.concat_tables(quality)["patch_id"].to_pylist() == (
        store.parts.read(0).sort_by("row")["patch_id"].to_pylist()
    )


@pytest.mark.parametrize("sr", ["none", "bicubic"])
def test_batch_size_changes_no_pixel(store: Plan, sr: str) -> None:
    (one, rows, some), (five, same_rows, others) = (
        streamed(branch_of(store, sr, batch_size=size), 0) for size in (1, 5)
    )
    np.testing.assert_array_equal(one, five)
    assert rows == same_rows
    if sr == "bicubic":
        a, b = pa.concat_tables(some), pa.concat_tables(others)
        assert a.select(["patch_id", "sr", "config"]).equals(b.select(["patch_id", "sr", "config"]))
        for name in a.schema.names[3:]:
            np.testing.assert_allclose(a[name].to_numpy(), b[name].to_numpy(), rtol=1e-4, atol=1e-5, err_msg=name)


def test_a_selection_of_patches_in_any_order(store: Plan) -> None:
    branch = branch_of(store, batch_size=2)
    patches = store.parts.read(0)
    chosen = patches.take([4, 1, 2])
    found = [batch.rows.tolist() for batch in BranchReader(branch, CPU).batches(0, chosen)]
    in_order = sorted(chosen["row"].to_pylist())
    assert found == [in_order[:2], in_order[2:]]


def test_a_shard_without_patches_has_no_batch(store: Plan) -> None:
    assert not list(BranchReader(branch_of(store), CPU).batches(0, store.parts.read(0).slice(0, 0)))


def test_config_is_that_of_what_determines_the_pixels(tmp_path: Path) -> None:
    def config(weights: bytes | None, max_dn: int = 3000, batch_size: int = 16, ingest: str = "a1b2c3d4") -> str:
        parts = StageParts(StorePaths(tmp_path), "ingest", ingest)
        if weights is None:
            return make_branch(inputs_of(parts, max_dn), "bicubic", None, batch_size=batch_size).pixels.config
        file = tmp_path / f"weights-{batch_size}"
        file.write_bytes(weights)
        return make_branch(inputs_of(parts, max_dn), "realesrgan", file, batch_size=batch_size).pixels.config

    assert config(b"one") == config(b"one", batch_size=1)  # another path too
    others = [config(None), config(None, 3001), config(None, ingest="b1b2c3d4"), config(b"one"), config(b"other")]
    assert len(set(others)) == 5
    with pytest.raises(WeightsError, match="realesrgan needs weights"):
        make_branch(inputs_of(StageParts(StorePaths(tmp_path), "ingest", "a1b2c3d4")), "realesrgan", tmp_path / "none")


def test_arrays_say_what_they_hold(store: Plan, monkeypatch: pytest.MonkeyPatch) -> None:
    bicubic, none = branch_of(store, "bicubic"), branch_of(store)
    (array,) = bicubic.arrays()
    assert (array.shape, array.names, array.attributes["gsd_m"]) == ((3, 480, 480), ("B04", "B03", "B02"), 2.5)
    assert (bicubic.scale, none.scale) == (4, 1)
    assert bicubic.quality_outputs == [bicubic.quality]
    assert not none.quality_outputs
    assert bicubic.store == store.paths.root / "sr" / f"bicubic-{bicubic.pixels.config}.zarr"
    monkeypatch.setattr(branch_module, "_STORED_BLOCK", 4)
    assert bicubic.arrays()[0].zarr_shard == 4


def test_rgb_of_a_shard_is_in_the_order_of_its_bands(store: Plan) -> None:
    rgb = BranchReader(branch_of(store), CPU).archive_rows(0)
    s2 = ShardedStore(store.paths.archive).read(0, "s2_10m")  # B02, B03, B04, B08
    np.testing.assert_array_equal(rgb, np.stack([s2[:, 2], s2[:, 1], s2[:, 0]], axis=1))


@pytest.mark.parametrize(
    ("size", "degrade", "possible"),
    [(12, 1, True), (8, 1, False), (14, 1, False), (12, 4, True), (8, 4, False), (20, 4, True)],
)
def test_sizes_whose_pixels_cannot_be_judged_are_refused_before_any_work(
    store: Plan, size: int, degrade: int, possible: bool
) -> None:
    """Wald's protocol reduces what the model sees, by 4; SSIM has a window of 11; the truth needs no protocol."""
    whole = branch_of(store).inputs
    group = replace(whole.format.groups[0], size=size)
    inputs = replace(whole, format=replace(whole.format, groups=(group,)), degrade=degrade)
    assert make_branch(inputs, "none", None).size == size // degrade
    if not possible:
        with pytest.raises(ConfigError, match=f"bicubic: patches of {size} pixels cannot be judged.*image_size"):
            make_branch(inputs, "bicubic", None)
        return
    branch = make_branch(inputs, "bicubic", None)
    truth = torch.randint(0, 3000, (2, 3, size, size), dtype=torch.int32).to(torch.uint16)
    judged = BranchReader(branch, CPU).stream([(truth.numpy(), ())])
    columns = np.concatenate([batch.columns for batch in judged], axis=1)
    assert np.isfinite(columns[list(QUALITY_COLUMNS).index("ssim")]).all()


def test_weights_may_lie_on_object_storage(
    store: Plan, s3: S3Server, s3_folder: ObjectPath, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of two workers on a node one fetches them, and what they see is as with the file that was shared."""
    monkeypatch.setenv("SUPERSCENE_CACHE", str(tmp_path / "cache"))
    branch = branch_of(store, "srresnet")
    assert branch.weights is not None
    remote = replace(branch, weights=share(branch.weights, StorePaths(s3_folder)))
    lr = files_of(store, 0)[:1]
    s3.requests.clear()
    seen = [BranchReader(chosen, CPU).engine.super_resolve(torch.from_numpy(lr), MAX_DN) for chosen in (remote, remote)]
    assert s3.count("GET", branch.weights.name) == 1
    torch.testing.assert_close(seen[0], BranchReader(branch, CPU).engine.super_resolve(torch.from_numpy(lr), MAX_DN))
    torch.testing.assert_close(seen[1], seen[0], rtol=0, atol=0)


class TestConditions:
    """What a branch tells a model that is told of its patches."""

    def reader(self, plan: Plan, land_cover: str, told: LandCover | None = None) -> BranchReader:
        options = {"steps": 1, "land_cover": land_cover}
        branch = make_branch(branch_of(plan).inputs, "seesr_tiny", None, options=options, land_cover=told)
        return BranchReader(branch, CPU)

    def test_no_other_model_is_told_anything(self, store: Plan) -> None:
        assert BranchReader(branch_of(store, "bicubic"), CPU).conditions(0, store.parts.read(0)) == ()

    def test_names_alone(self, store: Plan) -> None:
        patches = store.parts.read(0)
        told = self.reader(store, "none").conditions(0, patches)
        assert told == [Condition(name) for name in patches["patch_id"].to_pylist()]

    def test_labels_of_the_archive(self, store: Plan) -> None:
        """One of the first two shards has the patch without labels."""
        told = [c for shard in (0, 1) for c in self.reader(store, "labels").conditions(shard, store.parts.read(shard))]
        rows = [row for shard in (0, 1) for row in store.parts.read(shard).to_pylist()]
        assert told == [Condition(row["patch_id"], tuple(row["labels"] or ())) for row in rows]
        assert {bool(condition.land_cover) for condition in told} == {True, False}

    def test_predictions_of_one_seed(self, store: Plan, tmp_path: Path) -> None:
        predictions = StageParts(StorePaths(tmp_path), "predictions", "a1b2c3d4")
        names = store.parts.read(0)["patch_id"].to_pylist()
        rows = [{"patch_id": n, "seed": seed, "predicted": [f"{n} {seed}"]} for seed in (1, 3) for n in reversed(names)]
        predictions.write(0, pa.Table.from_pylist(rows))
        reader = self.reader(store, "predictions", LandCover(predictions, "resnet18", 3, "c0ffee"))
        assert reader.conditions(0, store.parts.read(0)) == [Condition(name, (f"{name} 3",)) for name in names]
        with pytest.raises(PipelineError, match="is told the predictions of resnet18, and those of shard 1 failed"):
            reader.conditions(1, store.parts.read(1))

    def test_the_network_that_predicts_is_part_of_the_config(self, store: Plan, tmp_path: Path) -> None:
        """Not the other seeds beside it, on which the predictions' own config depends."""
        awaiting = self.reader(store, "predictions").branch
        assert awaiting.awaits_predictions
        records = {path.stem for path in (store.paths.work / "configs").iterdir()}
        assert awaiting.pixels.config not in records  # it will never be
        parts = [StageParts(StorePaths(tmp_path), "predictions", config) for config in ("a1b2c3d4", "b1b2c3d4")]
        told = [LandCover(p, "resnet18", 0, digest) for p, digest in zip([*parts, parts[0]], "aab", strict=True)]
        branches = [self.reader(store, "predictions", item).branch for item in told]
        assert not any(branch.awaits_predictions for branch in branches)
        assert branches[0].pixels == branches[1].pixels
        assert len({branch.pixels.config for branch in (awaiting, *branches)}) == 3
        assert branches[2].identity["land_cover_of"] == "resnet18 b"

    def test_what_is_always_stored_is_not_made_again_on_the_way(self, store: Plan) -> None:
        reader = self.reader(store, "none")
        with pytest.raises(PipelineError, match="not all SR shards of shard 1 are stored; the next run tries again"):
            list(reader.batches(1, store.parts.read(1)))
