from collections import Counter

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from infra.errors import TrainingError
from sr_models.wald_pairs import (
    MARGIN,
    Crop,
    ImageSet,
    cut,
    draw_batch,
    draw_crop,
    draw_set,
    image_part,
    scene_areas,
    wald_pair,
)

SCALE = 4


def coordinates(height: int, width: int) -> torch.Tensor:
    """An image whose pixels say where they are: (row, column, 0)."""
    rows, columns = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    return torch.stack([rows, columns, torch.zeros_like(rows)]).int()


def noise(*sizes: tuple[int, int], name: str = "noise", weight: float = 1.0) -> ImageSet:
    rng = np.random.default_rng(0)
    images = tuple(torch.from_numpy(rng.integers(0, 3000, (3, *size), np.uint16)) for size in sizes)
    return ImageSet(name, images, 3000, weight)


def test_a_pair_by_hand_is_clipped_first_and_then_averaged() -> None:
    """One pixel of 6,000 DN among 15 of 0 counts as 3,000: the input is 1/16, as `quality.wald` has it."""
    dn = torch.zeros(3, 4, 4, dtype=torch.int32)
    dn[0, 1, 2], dn[1], dn[2, :, :2] = 6000, 1500, 3000
    images = ImageSet("one", (dn,), 3000)
    lr, hr = wald_pair(cut(images, Crop(0, 0, 0, 0), 4)[None], SCALE)
    assert lr.flatten().tolist() == [1 / 16, 0.5, 0.5]
    assert hr[0, 0, 1, 2] == 1


@settings(max_examples=60, deadline=None)
@given(
    height=st.integers(160, 400), width=st.integers(160, 400), seed=st.integers(0, 2**31), step=st.integers(0, 10**6)
)
def test_no_crop_ever_touches_the_held_out_quarter_or_the_validation_strip(
    height: int, width: int, seed: int, step: int
) -> None:
    scene = coordinates(height, width)
    images = tuple(scene[:, a.top : a.bottom, a.left : a.right] for a in scene_areas(height, width, "train"))
    _, hr = draw_batch([ImageSet("scene", images, 65_535)], seed, step, range(6), 32, SCALE)
    rows, columns = (hr[:, :2] * 65_535).round().int().unbind(1)
    assert len(np.unique(rows)) >= 32
    held_out = (rows >= height // 2 - MARGIN) & (columns >= width // 2 - MARGIN)
    assert not held_out.any()
    assert not ((rows >= height - height // 8 - MARGIN) & (columns < width // 2)).any()


@pytest.mark.parametrize(("height", "width"), [(1068, 1068), (534, 534), (10980, 10980), (161, 240)])
def test_the_parts_of_a_scene_are_apart_and_the_test_is_the_lower_right_quarter(height: int, width: int) -> None:
    seen = np.zeros((height, width), np.uint8)
    for code, part in enumerate(("train", "validation", "test"), start=1):
        for area in scene_areas(height, width, part):  # type: ignore[arg-type]
            region = seen[area.top : area.bottom, area.left : area.right]
            assert not region.any(), "areas overlap"
            region[:] = code
    assert (seen[height // 2 :, width // 2 :] == 3).all()
    assert (seen == 3).sum() == (height - height // 2) * (width - width // 2)
    for top, left in ((MARGIN, 0), (0, MARGIN), (MARGIN, MARGIN)):  # shifted copies: nothing else within the margin
        shifted = seen[top:, left:], seen[: height - top, : width - left]
        for a, b in (shifted, shifted[::-1]):
            assert not ((a == 3) & (b > 0) & (b != 3)).any()


def test_a_crop_is_turned_as_numpy_turns() -> None:
    images = noise((40, 30))
    plain = images.images[0].numpy()[:, 5:21, 7:23] / np.float32(3000)
    for turn in range(8):
        expected = np.rot90(plain[:, :, ::-1] if turn >= 4 else plain, turn % 4, axes=(1, 2))
        np.testing.assert_allclose(cut(images, Crop(0, 5, 7, turn), 16), expected, rtol=1e-6)


def test_workers_share_the_batch_that_one_would_take() -> None:
    images = [noise((64, 64), (48, 80)), noise((64, 64), name="other", weight=3)]
    for step in range(5):
        whole = draw_batch(images, 3, step, range(8), 32, SCALE)
        shares = [draw_batch(images, 3, step, range(rank, 8, 2), 32, SCALE) for rank in range(2)]
        for kind in (0, 1):
            torch.testing.assert_close(torch.stack([s[kind] for s in shares], 1).flatten(0, 1), whole[kind])


def test_seeds_and_steps_give_other_crops() -> None:
    images = noise((200, 200)).images
    places = {draw_crop(images, 16, seed, step, sample) for seed in (0, 1) for step in range(10) for sample in range(4)}
    assert len(places) > 75


def test_sets_are_drawn_by_weight_and_images_by_their_room() -> None:
    sets = [noise((64, 64), name="a", weight=3), noise((64, 64), name="b", weight=1)]
    drawn = Counter(draw_set(sets, 0, step).name for step in range(2000))
    assert drawn["a"] / 2000 == pytest.approx(0.75, abs=0.04)
    images = noise((16, 16), (16, 34)).images  # 1 place against 19
    chosen = Counter(draw_crop(images, 16, 0, 0, sample).image for sample in range(2000))
    assert chosen[1] / 2000 == pytest.approx(19 / 20, abs=0.02)


def test_crops_are_as_large_as_the_images_allow() -> None:
    assert noise((64, 64)).crop_edge(96, SCALE) == 64
    assert noise((200, 50)).crop_edge(96, SCALE) == 48
    assert noise((200, 200)).crop_edge(96, SCALE) == 96
    with pytest.raises(TrainingError, match="the smallest edge is 15 pixels"):
        noise((200, 15)).crop_edge(96, SCALE)
    with pytest.raises(TrainingError, match="0 images"):
        noise().crop_edge(96, SCALE)


def test_images_of_a_folder_are_parted_by_their_names_alone() -> None:
    parts = Counter(image_part(f"Forest/Forest_{i}.jpg") for i in range(4000))
    assert parts["test"] / 4000 == pytest.approx(0.10, abs=0.015)
    assert parts["validation"] / 4000 == pytest.approx(0.05, abs=0.012)


def test_a_digest_sees_pixels_sizes_and_the_stretch() -> None:
    images = noise((16, 16))
    changed = images.images[0].int()
    changed[0, 0, 0] += 1
    others = [
        ImageSet("noise", images.images, 2999),
        ImageSet("noise", (changed.to(torch.uint16),), 3000),
        ImageSet("noise", (images.images[0].reshape(3, 8, 32),), 3000),
    ]
    assert len({images.digest(), *(other.digest() for other in others)}) == 4
    assert noise((16, 16), name="renamed").digest() == images.digest()
