import base64
import io

import numpy as np
import pytest
from matplotlib import colormaps
from PIL import Image

from tasks.pictures import encode, outlined, overlay, thumbnail, why_not_drawn


def test_a_line_is_white_within_the_mask_and_black_without() -> None:
    """A quarter of a 4 x 4 mask is half of each edge of an 8 x 8 picture, where it goes on to two of its edges."""
    mask = np.zeros((4, 4), np.bool_)
    mask[:2, :2] = True
    expected = np.full((8, 8), 128, np.uint8)
    expected[3, :4] = expected[:4, 3] = 255
    expected[4, :4] = expected[:4, 4] = 0
    grey = np.full((8, 8, 3), 128, np.uint8)
    np.testing.assert_array_equal(outlined(grey, mask), expected[..., None].repeat(3, axis=2))
    assert (grey == 128).all()  # what was given is left alone
    for whole in (np.ones((4, 4), np.bool_), np.zeros((4, 4), np.bool_)):
        np.testing.assert_array_equal(outlined(grey, whole), grey)


def test_a_map_that_cannot_be_drawn_says_why() -> None:
    cam = np.array([[-1.0, 0.5], [0.0, -2.0]], np.float32)
    assert why_not_drawn(cam) == ""
    assert why_not_drawn(np.minimum(cam, 0)) == "nowhere above 0"
    assert why_not_drawn(np.zeros((2, 2), np.float32)) == "nowhere above 0"
    for bad in (np.nan, np.inf, -np.inf):
        assert why_not_drawn(np.where(cam == 0, bad, cam).astype(np.float32)) == "not finite"


@pytest.mark.parametrize("scale", [1e-30, 1.0, 1e30])
def test_a_map_is_drawn_from_0_to_its_own_maximum(scale: float) -> None:
    """On a flat grey of 100: 0.45 of it and 0.55 of viridis; what is below 0 is drawn as 0."""
    cam = np.array([[-9, -9, -9, 4], [-9, -9, -9, 4], [0, 0, 0, 2], [0, 0, 0, 2]], np.float32) * np.float32(scale)
    drawn = overlay(np.full((6, 6, 3), 100, np.uint8), cam, 80).astype(float)
    assert drawn.shape == (80, 80, 3)
    for rows, columns, level in (
        (slice(20), slice(20), 0.0),
        (slice(60, 80), slice(20), 0.0),
        (slice(20), slice(70, 80), 1.0),
        (slice(70, 80), slice(70, 80), 0.5),
    ):
        by_hand = 0.45 * 100 + 0.55 * 255 * np.array(colormaps["viridis"](level)[:3])
        np.testing.assert_allclose(drawn[rows, columns], np.broadcast_to(by_hand, drawn[rows, columns].shape), atol=1.5)


def test_thumbnails_repeat_pixels_or_average_them() -> None:
    rng = np.random.default_rng(0)
    small, large = (rng.integers(0, 256, (edge, edge, 3)).astype(np.uint8) for edge in (12, 480))
    np.testing.assert_array_equal(thumbnail(small, 120), small.repeat(10, axis=0).repeat(10, axis=1))
    means = large.reshape(120, 4, 120, 4, 3).mean(axis=(1, 3))
    np.testing.assert_allclose(thumbnail(large, 120), means, atol=1)


def test_encoded_pictures_come_back() -> None:
    rgb = np.random.default_rng(0).integers(0, 256, (8, 8, 3)).astype(np.uint8).repeat(8, axis=0).repeat(8, axis=1)
    picture = encode(rgb, "noise", lossless=True)
    kind, data = picture.uri.split(",")
    assert (kind, picture.size, picture.alt) == ("data:image/webp;base64", 64, "noise")
    np.testing.assert_array_equal(np.asarray(Image.open(io.BytesIO(base64.b64decode(data))).convert("RGB")), rgb)
