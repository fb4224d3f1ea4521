"""Stretch, nodata: by hand, by brute force, and there and back."""

import numpy as np
import pytest

from infra.errors import ConfigError
from sr_models import to_dn, to_unit
from tasks.scene_pixels import Stretch, filled, stretch_for, with_nodata


def test_the_stretch_of_dn_is_that_of_the_archive() -> None:
    dn = np.arange(4000, dtype=np.uint16).reshape(1, 4, 1000)
    stretch = stretch_for("uint16", "a.tif", 0, None)
    unit = stretch.to_unit(dn)
    np.testing.assert_array_equal(unit, to_unit(dn, 3000).numpy())
    np.testing.assert_array_equal(stretch.from_unit(unit, "uint16"), to_dn(to_unit(dn, 3000), 3000).numpy())


@pytest.mark.parametrize(
    ("dtype", "low", "high"),
    [("uint8", 0, 255), ("uint16", 0, 65535), ("int16", -300, 32767), ("int16", -32768, 32767), ("uint16", 1000, 4000)],
)
def test_integers_within_the_stretch_survive_exactly(dtype: str, low: int, high: int) -> None:
    values = np.arange(low, high + 1).astype(dtype)
    stretch = stretch_for(dtype, "a.tif", low, high)
    np.testing.assert_array_equal(stretch.from_unit(stretch.to_unit(values), dtype), values)


def test_by_hand_with_an_offset() -> None:
    stretch = Stretch(1000, 4000)
    values = np.array([0, 1000, 2500, 4000, 9000], np.uint16)
    np.testing.assert_array_equal(stretch.to_unit(values), np.array([0, 0, 0.5, 1, 1], np.float32))
    np.testing.assert_array_equal(stretch.outside(values), [True, False, False, False, True])


def test_what_cannot_be_stretched_is_refused() -> None:
    with pytest.raises(ConfigError, match="complex64"):
        stretch_for("complex64", "a.tif", 0, None)
    with pytest.raises(ConfigError, match="needs to be the greater"):
        stretch_for("uint16", "a.tif", 3000, None)
    with pytest.raises(ConfigError, match="uint8"):
        stretch_for("uint8", "a.tif", 0, 3000)


def by_brute_force(x: np.ndarray, valid: np.ndarray, reach: int) -> list[list[set[float]]]:
    """Return, for every pixel, the values that the nearest pixels with data have."""
    rows, columns = np.nonzero(valid)
    allowed = []
    for i in range(x.shape[0]):
        line = []
        for j in range(x.shape[1]):
            distance = (rows - i) ** 2 + (columns - j) ** 2
            near = distance == distance.min()
            line.append(set(x[rows[near], columns[near]]) if distance.min() <= reach**2 else {0.0})
        allowed.append(line)
    return allowed


def test_gaps_take_the_nearest_value_within_reach() -> None:
    rng = np.random.default_rng(0)
    x = rng.random((2, 23, 31), np.float32)
    valid = rng.random(x.shape) < 0.03
    x[~valid] = np.nan
    got = filled(x, valid, 6)
    assert np.isfinite(got).all()
    zeros = 0
    for band in range(2):
        allowed = by_brute_force(x[band], valid[band], 6)
        assert all(got[band, i, j] in allowed[i][j] for i in range(23) for j in range(31))
        zeros += sum(cell == {0.0} for line in allowed for cell in line)
    assert zeros > 0


def test_gaps_are_filled_alike_wherever_the_image_is_cut() -> None:
    rng = np.random.default_rng(1)
    x = rng.random((1, 90, 40), np.float32)
    valid = rng.random(x.shape) < 0.02
    whole = filled(x, valid, 7)
    for first, last in ((20, 50), (33, 34), (60, 83)):
        part = filled(x[:, first - 7 : last + 7], valid[:, first - 7 : last + 7], 7)
        np.testing.assert_array_equal(part[:, 7:-7], whole[:, first:last])


def test_a_model_that_sees_one_pixel_needs_no_neighbours() -> None:
    x, valid = np.ones((1, 3, 4), np.float32), np.ones((1, 3, 4), np.bool_)
    valid[:, :, 2:] = False
    np.testing.assert_array_equal(filled(x, valid, 0), [[[1, 1, 0, 0]] * 3])


def test_nodata_fills_its_blocks_and_nothing_else() -> None:
    valid = np.array([[[True, False], [True, True]]])
    values = np.array([[[0, 1, 2, 3], [0, 5, 6, 7], [8, 0, 9, 9], [9, 9, 9, 9]]], np.uint16)
    got = with_nodata(values, valid, 2, 0, Stretch(0, 3000))
    np.testing.assert_array_equal(got, [[[1, 1, 0, 0], [1, 5, 0, 0], [8, 1, 9, 9], [9, 9, 9, 9]]])


def test_nodata_at_the_upper_end_is_moved_down() -> None:
    values = np.array([[[255, 254]]], np.uint8)
    valid = np.ones((1, 1, 2), np.bool_)
    np.testing.assert_array_equal(with_nodata(values, valid, 1, 255, Stretch(0, 255)), [[[254, 254]]])


def test_floats_near_the_nodata_value() -> None:
    values = np.array([[[0.0, 0.2, 0.1]]], np.float32)
    got = with_nodata(values.copy(), np.array([[[True, True, False]]]), 1, 0.0, Stretch(0, 0.3))
    assert got[0, 0, 0] == pytest.approx(3e-7)
    assert list(got[0, 0, 1:]) == [np.float32(0.2), 0]
    got = with_nodata(values.copy(), np.array([[[True, True, False]]]), 1, np.nan, Stretch(0, 0.3))
    np.testing.assert_array_equal(got, np.array([[[0.0, 0.2, np.nan]]], np.float32))
