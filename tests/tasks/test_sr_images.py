import shutil
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
import rasterio
import torch
from PIL import Image

from infra.errors import ArchiveError, ConfigError, TrainingError
from infra.zarr_store import ShardedStore
from sr_models.wald_pairs import image_part, scene_areas
from tasks import sr_images
from tasks.plan import Plan
from tasks.sr_images import ImageFolder, PatchPools, Scene, StorePatches, parts_by_place, pools, validation_sets
from tests.infra.archives.test_scene import NEW, OLD, pixels_of, write_scene


@pytest.fixture(scope="module")
def scene(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_scene(tmp_path_factory.mktemp("scenes") / OLD, pixels_of(240, 320))


def patches_of(plan: Plan, weight: float = 1.0) -> StorePatches:
    train, validation = plan.ingested("train"), plan.ingested("validation")
    return StorePatches(plan.parts, tuple(train), tuple(validation), 3000, weight)


def test_a_scene_is_read_as_rasterio_reads_it_and_only_its_parts(scene: Path) -> None:
    planes = [rasterio.open(scene / f"{band}.tif").read(1) for band in ("B04", "B03", "B02")]
    whole = np.stack(planes)
    for part in ("train", "validation", "test"):
        images = Scene(scene, max_dn=2800, weight=3).read(part)
        assert (images.max_dn, images.weight) == (2800, 3)
        areas = scene_areas(240, 320, part)
        for image, area in zip(images.images, areas, strict=True):
            np.testing.assert_array_equal(image.numpy(), whole[:, area.top : area.bottom, area.left : area.right])


def test_other_bands_of_a_scene_are_further_texture_and_never_choose(scene: Path) -> None:
    grey = Scene(scene, ("B05", "B05", "B05")).read("train")
    assert [image.shape[1:] for image in grey.images] == [(120 // 2 - 16, 160), (105 - 16 - 44, 80 - 16)]
    assert torch.equal(grey.images[0][0], grey.images[0][2])
    sets = validation_sets([Scene(scene), Scene(scene, ("B08", "B08", "B08"))], None)
    assert [chosen.name for chosen in sets] == [f"{OLD} B04 B03 B02"]
    with pytest.raises(TrainingError, match="no image to choose the weights by"):
        validation_sets([Scene(scene, ("B08", "B08", "B08"))], None)


def test_bands_of_two_grids_and_a_scene_without_a_band_are_refused(scene: Path, tmp_path: Path) -> None:
    with pytest.raises(ArchiveError, match="not of one size"):
        Scene(scene, ("B04", "B05", "B06")).read("train")
    with pytest.raises(ArchiveError, match="no file for"):
        Scene(tmp_path).read("train")


def test_the_offset_of_new_products_is_added(tmp_path: Path) -> None:
    folder = write_scene(tmp_path / NEW, pixels_of(240, 240))
    with pytest.raises(ArchiveError, match="boa_add_offset"):
        Scene(folder).read("test")
    raw = rasterio.open(folder / "B04.tif").read(1)[120:, 120:].astype(int)
    found = Scene(folder, boa_add_offset=-1000).read("test").images[0][0].numpy()
    np.testing.assert_array_equal(found, np.where(raw == 0, 0, np.maximum(raw - 1000, 1)))


def test_pictures_are_read_as_pillow_reads_them_and_parted_by_name(tmp_path: Path) -> None:
    rng = np.random.default_rng(1)
    names = [f"{group}/{group}_{i}.png" for group in ("Forest", "River") for i in range(40)]
    for name in names:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        Image.fromarray(rng.integers(0, 255, (16, 20, 3), np.uint8)).save(tmp_path / name)
    (tmp_path / "README.md").write_text("no picture")
    found = 0
    for part in ("train", "validation", "test"):
        images = ImageFolder(tmp_path).read(part).images
        expected = [name for name in sorted(names) if image_part(name) == part]
        assert len(images) == len(expected)
        for image, name in zip(images, expected, strict=True):
            np.testing.assert_array_equal(image.permute(1, 2, 0).numpy(), np.asarray(Image.open(tmp_path / name)))
        found += len(images)
    assert found == 80


def test_pictures_that_cannot_be_used_are_named(tmp_path: Path) -> None:
    with pytest.raises(ArchiveError, match="is not there"):
        ImageFolder(tmp_path / "nowhere").read("train")
    name = next(f"{i}.png" for i in range(99) if image_part(f"{i}.png") == "train")
    (tmp_path / name).write_bytes(b"\x89PNG no")
    with pytest.raises(ArchiveError, match=f"{name} cannot be read as a picture"):
        ImageFolder(tmp_path).read("train")
    Image.fromarray(np.zeros((8, 8), np.uint16)).save(tmp_path / name)
    with pytest.raises(ArchiveError, match="8 bits are needed"):
        ImageFolder(tmp_path).read("train")


def test_patches_are_parted_by_place_where_there_are_no_splits() -> None:
    """8 x 8 patches: 16 in the lower right quarter, the 4 left of its last row choose, 44 train."""
    ids = [f"{scene}_{row:02d}_{column:02d}" for scene in ("A_1", "B") for row in range(8) for column in range(8)]
    parts = parts_by_place(ids)
    by_part = {part: {name for name in ids if parts[name] == part} for part in ("train", "validation", "test")}
    assert {part: len(names) for part, names in by_part.items()} == {"train": 88, "validation": 8, "test": 32}
    assert by_part["validation"] == {f"{scene}_07_{column:02d}" for scene in ("A_1", "B") for column in range(4)}
    assert min(int(name.split("_")[-2]) for name in by_part["test"]) == 4
    odd = parts_by_place([f"A_{row}_{column}" for row in range(3) for column in range(3)])
    assert {name for name, part in odd.items() if part == "test"} == {"A_1_1", "A_1_2", "A_2_1", "A_2_2"}
    with pytest.raises(ConfigError, match="does not tell its row and column"):
        parts_by_place(["S2A_tile"])


def stored(plan: Plan, patch_ids: list[str]) -> np.ndarray[tuple[int, ...], np.dtype[np.uint16]]:
    """Pixels of patches by id, sorted, from the store itself."""
    store = ShardedStore(plan.paths.archive)
    found = {}
    for shard in plan.ingested():
        values = store.read(shard, "s2_10m")
        for row in plan.parts.read(shard).to_pylist():
            found[row["patch_id"]] = values[row["row"]][[2, 1, 0]]
    return np.stack([found[name] for name in sorted(patch_ids)])


def sorted_pixels(images: tuple[torch.Tensor, ...]) -> list[bytes]:
    return sorted(image.numpy().tobytes() for image in images)


def test_a_store_gives_its_clean_train_patches_and_chooses_by_its_validation_patches(store: Plan) -> None:
    def clean(split: str) -> list[str]:
        rows = [row for shard in store.ingested(split) for row in store.parts.read(shard).to_pylist()]
        return [row["patch_id"] for row in rows if not row["has_snow"] and not row["has_cloud"]]

    patches = patches_of(store)
    (train,) = pools([], patches, 0).at(0)
    assert sorted_pixels(train.images) == sorted(p.tobytes() for p in stored(store, clean("train")))
    (chosen,) = validation_sets([], patches)
    assert sorted_pixels(chosen.images) == sorted(p.tobytes() for p in stored(store, clean("validation")))
    assert patches.digest() == patches_of(store, weight=2).digest()


def test_pools_take_turns_and_depend_on_the_step_alone(store: Plan, monkeypatch: pytest.MonkeyPatch) -> None:
    (whole,) = pools([], patches_of(store), 5).at(0)
    monkeypatch.setattr(sr_images, "MEMORY_BYTES", 3 * 120 * 120 * 2 * 8)
    monkeypatch.setattr(sr_images, "STEPS_PER_POOL", 10)
    one = PatchPools(patches_of(store), [], 5)
    seen = [sorted_pixels(one.at(step)[0].images) for step in range(0, 60, 5)]
    assert seen[0] == seen[1]
    assert seen[0] != seen[2], "the second pool holds other patches"
    assert sorted(seen[0] + seen[2]) == sorted_pixels(whole.images), "two pools hold every patch once"
    late = PatchPools(patches_of(store), [], 5)
    assert sorted_pixels(late.at(45)[0].images) == seen[9]


def test_a_store_without_a_usable_patch_is_refused(store: Plan) -> None:
    empty = StorePatches(store.parts, (), tuple(store.ingested("validation")), 3000)
    with pytest.raises(TrainingError, match=r"train_sr\.patches"):
        pools([], empty, 0)


def test_a_band_that_only_names_another_file_is_refused(scene: Path, tmp_path: Path) -> None:
    copied = tmp_path / OLD
    shutil.copytree(scene, copied)
    (copied / "B04.tif").write_text(
        '<VRTDataset rasterXSize="320" rasterYSize="240"><VRTRasterBand dataType="UInt16" band="1"><SimpleSource>'
        f"<SourceFilename>{scene}/B04.tif</SourceFilename></SimpleSource></VRTRasterBand></VRTDataset>"
    )
    with pytest.raises(ArchiveError, match=r"B04\.tif cannot be read"):
        Scene(copied).read("train")


def test_a_picture_that_promises_too_many_pixels_or_is_another_format_is_refused(tmp_path: Path) -> None:
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png")
    data = (tmp_path / "a.png").read_bytes()
    head = b"IHDR" + struct.pack(">II", 60_000, 60_000) + data[24:29]
    bomb = data[:12] + head + struct.pack(">I", zlib.crc32(head)) + data[33:]
    Image.new("RGB", (8, 8)).save(tmp_path / "other.ppm")
    for content, words in ((bomb, "exceeds limit"), ((tmp_path / "other.ppm").read_bytes(), "cannot identify")):
        folder = tmp_path / words
        folder.mkdir()
        for name in range(16):  # some of any part
            (folder / f"{name}.png").write_bytes(content)
        with pytest.raises(ArchiveError, match=words):
            ImageFolder(folder).read("train")
