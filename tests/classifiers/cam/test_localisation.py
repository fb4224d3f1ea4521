"""Oracles: scikit-learn's area under the ROC, NumPy's correlation, loops over pixels, and hand numbers."""

from dataclasses import asdict

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from sklearn.metrics import roc_auc_score
from torch import Tensor
from torch.nn import functional

from classifiers.cam import localisation
from classifiers.cam.grid import are_finite, on_grid
from classifiers.cam.localisation import LOCALISATION, localise
from infra.errors import ShapeError

SIZE = 12


def numbers(maps: Tensor, masks: Tensor) -> dict[str, list[float]]:
    return {name: getattr(localise(maps, masks), name).tolist() for name in LOCALISATION}


def one_by_one(values: NDArray[np.float64], mask: NDArray[np.bool_]) -> dict[str, float]:
    """Return the numbers of one non-negative map on the mask's grid, from their definitions."""
    flat, inside = values.ravel(), mask.ravel()
    order = sorted(range(len(flat)), key=lambda i: (-flat[i], i))
    found = {
        "area_share": float(inside.mean()),
        "judd_auc": float(roc_auc_score(inside, flat)),
        "pointing": float(np.mean([inside[i] for i in range(len(flat)) if flat[i] == flat.max()])),
        "similarity": sum(min(v / flat.sum(), m / inside.sum()) for v, m in zip(flat, inside, strict=True)),
        "correlation": float(np.corrcoef(flat, inside)[0, 1]),
    }
    for percent in (95, 90, 85, 80, 75):
        held, energy = set[int](), 0.0
        for i in order:
            held.add(i)
            energy += flat[i]
            if energy >= percent * flat.sum() / 100:
                break
        truth = {int(i) for i in np.flatnonzero(inside)}
        found[f"iou_{percent}"] = len(held & truth) / len(held | truth)
    return found


def cases() -> tuple[Tensor, Tensor]:
    """Return maps without ties, half zero, of few values and of one pixel, and random masks, on one grid."""
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(30, SIZE, SIZE, generator=generator)
    maps = torch.cat([noise.abs() + 0.01, noise, (noise * 1.5).round(), noise[:5]])
    maps[-5:] = 0
    maps[-5:, 3, 7] = 4.0
    level = 0.1 + 0.8 * torch.rand(len(maps), 1, 1, generator=generator)
    return maps, torch.rand(len(maps), SIZE, SIZE, generator=generator) < level


def test_equal_the_definitions_one_pixel_at_a_time() -> None:
    maps, masks = cases()
    found = numbers(maps, masks)
    assert list(found) == list(LOCALISATION)
    for row in range(len(maps)):
        expected = one_by_one(maps[row].double().clamp(min=0).numpy(), masks[row].numpy())
        for name, value in expected.items():
            assert found[name][row] == pytest.approx(value, abs=2e-6), (row, name)


def test_coarse_maps_are_rectified_first_and_then_enlarged() -> None:
    maps = torch.randn(8, 4, 4, generator=torch.Generator().manual_seed(1))
    masks = torch.rand(8, 40, 40, generator=torch.Generator().manual_seed(2)) < 0.3
    found = numbers(maps, masks)
    large = functional.interpolate(maps.clamp(min=0)[:, None].double(), size=(40, 40), mode="bilinear")[:, 0]
    for row in range(len(maps)):
        expected = one_by_one(large[row].numpy(), masks[row].numpy())
        for name in ("judd_auc", "iou_95", "iou_75", "similarity", "correlation"):
            # Where the edges are held, the oracle's rounding breaks some of the ties.
            assert found[name][row] == pytest.approx(expected[name], abs=5e-3), (row, name)


def test_by_hand() -> None:
    """A map of 4, 3, 2, 1 in the corner of a 4 x 4 grid, and a mask of the 4, the 2 and two places of no value."""
    maps, masks = torch.zeros(1, 4, 4), torch.zeros(1, 4, 4, dtype=torch.bool)
    maps[0, 0] = torch.tensor([4.0, 3.0, 2.0, 1.0])
    masks[0, 0, 0] = masks[0, 0, 2] = masks[0, 3, 0] = masks[0, 3, 1] = True
    found = {name: value for name, (value,) in numbers(maps, masks).items()}
    # Of the 12 pixels outside, 4 beats all, 2 all but the 3, and each zero ties with 10.
    assert found["judd_auc"] == pytest.approx((12 + 11 + 5 + 5) / (4 * 12))
    assert (found["area_share"], found["pointing"]) == (0.25, 1.0)
    # 9 of 10 are held by {4, 3, 2}, 8 too, since {4, 3} hold 7.
    assert found["iou_90"] == found["iou_80"] == found["iou_75"] == pytest.approx(2 / 5)
    assert found["iou_95"] == pytest.approx(2 / 6)
    assert found["similarity"] == pytest.approx(0.25 + 0.2)


def test_a_map_on_the_mask_is_all_right_and_its_opposite_all_wrong() -> None:
    masks = torch.zeros(2, 8, 8, dtype=torch.bool)
    masks[:, 2:5, 3:7] = True
    maps = torch.stack([masks[0].float() * 7, 1 - masks[0].float()])
    found = numbers(maps, masks)
    assert found["judd_auc"] == found["pointing"] == found["similarity"] == [1.0, 0.0]
    assert found["correlation"] == pytest.approx([1.0, -1.0])
    assert found["iou_95"] == [1.0, 0.0]


def test_a_map_without_contrast_scores_what_chance_does() -> None:
    """Exactly, though it is enlarged from 0.3, which float32 rounds."""
    masks = torch.rand(1, 20, 20, generator=torch.Generator().manual_seed(0)) < 0.4
    area = float(masks.float().mean())
    found = {name: value for name, (value,) in numbers(torch.full((1, 3, 3), 0.3), masks).items()}
    assert found["judd_auc"] == 0.5
    assert found["pointing"] == pytest.approx(area)
    assert found["similarity"] == pytest.approx(area)
    assert np.isnan(found["correlation"])
    first = masks.flatten()[: 400 * 80 // 100]  # ties are held in row-major order
    assert found["iou_80"] == pytest.approx(int(first.sum()) / (int(masks.sum()) + len(first) - int(first.sum())))


def test_random_maps_have_half_of_the_area_and_hit_by_chance() -> None:
    """The mean of M areas spreads by sqrt((P + 1) / (12 n1 n0 M)), the variance of the Mann-Whitney statistic."""
    generator = torch.Generator().manual_seed(0)
    count, size = 400, 24
    masks = torch.zeros(count, size, size, dtype=torch.bool)
    masks[:, :9] = True
    inside, outside = 9 * size, (size - 9) * size
    found = localise(torch.rand(count, size, size, generator=generator), masks)
    spread = ((size**2 + 1) / (12 * inside * outside)) ** 0.5
    assert abs(float(found.judd_auc.mean()) - 0.5) < 4 * spread / count**0.5
    assert float(found.judd_auc.std()) == pytest.approx(spread, rel=0.2)
    share = 9 / size
    assert abs(float(found.pointing.mean()) - share) < 4 * (share * (1 - share) / count) ** 0.5
    assert float(found.correlation.mean()) == pytest.approx(0, abs=4 / (count * size**2) ** 0.5)


@pytest.mark.parametrize("factor", [2.0**-100, 7.0, 1e30])
def test_do_not_depend_on_the_scale(factor: float) -> None:
    maps, masks = cases()
    one, other = numbers(maps, masks), numbers(maps * factor, masks)
    for name, values in one.items():
        assert other[name] == pytest.approx(values, abs=2e-6), name


def test_zero_maps_and_maps_that_are_not_finite_are_null_and_told_apart() -> None:
    maps = torch.rand(6, 5, 5, generator=torch.Generator().manual_seed(0))
    maps[0], maps[1] = 0.0, -1.0
    maps[2, 1, 1], maps[3, 1, 1], maps[4, 1, 1] = torch.nan, torch.inf, -torch.inf
    masks = torch.zeros(6, 10, 10, dtype=torch.bool)
    masks[:, :3] = True
    found = localise(maps, masks)
    for name in LOCALISATION[1:]:
        assert getattr(found, name).isnan().tolist() == [True] * 5 + [False], name
    assert found.area_share.tolist() == pytest.approx([0.3] * 6)
    assert are_finite(maps).tolist() == [True, True, False, False, False, True]
    alone = localise(maps[5:], masks[5:])
    assert all(torch.equal(getattr(found, name)[5:], getattr(alone, name)) for name in LOCALISATION)


def test_empty_and_full_masks() -> None:
    maps = torch.rand(2, 6, 6, generator=torch.Generator().manual_seed(0))
    masks = torch.stack([torch.zeros(6, 6), torch.ones(6, 6)]) == 1
    found = numbers(maps, masks)
    assert found["area_share"] == found["pointing"] == [0.0, 1.0]
    assert np.isnan(found["judd_auc"]).all()
    assert np.isnan(found["correlation"]).all()
    assert np.isnan(found["similarity"]).tolist() == [True, False]
    assert found["iou_90"][0] == 0
    held = (maps[1].flatten().sort(descending=True).values.cumsum(0) < 0.9 * maps[1].sum()).sum() + 1
    assert found["iou_90"][1] == pytest.approx(int(held) / 36)


def test_negative_zeros_are_zeros() -> None:
    maps = torch.zeros(1, 4, 4)
    maps[0, 1, 1] = 1.0
    masks = torch.rand(1, 4, 4, generator=torch.Generator().manual_seed(0)) < 0.5
    assert numbers(torch.where(maps == 0, -0.0, maps), masks) == numbers(maps, masks)


def test_do_not_depend_on_chunks_and_take_no_map_at_all(monkeypatch: pytest.MonkeyPatch) -> None:
    maps, masks = cases()
    monkeypatch.setattr(localisation, "_PIXELS_AT_ONCE", 7 * SIZE**2)
    parts = localise(maps, masks)
    monkeypatch.setattr(localisation, "_PIXELS_AT_ONCE", 1)
    single = localise(maps, masks)
    for name in LOCALISATION:
        torch.testing.assert_close(getattr(parts, name), getattr(single, name), rtol=0, atol=0, equal_nan=True)
    assert all(value.shape == (0,) for value in asdict(localise(maps[:0], masks[:0])).values())


def test_maps_of_several_resolutions_compare() -> None:
    """A map and its enlargement say the same."""
    maps = torch.rand(4, 3, 3, generator=torch.Generator().manual_seed(0))
    masks = torch.rand(4, 12, 12, generator=torch.Generator().manual_seed(1)) < 0.5
    one, other = numbers(maps, masks), numbers(on_grid(maps, 12), masks)
    for name, values in one.items():
        assert other[name] == pytest.approx(values, abs=1e-6), name


def test_refuses_masks_of_another_kind() -> None:
    maps = torch.rand(2, 3, 3)
    for masks in (torch.ones(2, 4, 4), torch.ones(3, 4, 4) == 1, torch.ones(2, 4, 5) == 1, torch.ones(4, 4) == 1):
        with pytest.raises(ShapeError, match="boolean masks"):
            localise(maps, masks)
