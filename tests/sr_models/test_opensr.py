"""Improvement, omission and hallucination against hand-made images and the formulas in float64, pixel by pixel."""

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from numpy.typing import NDArray
from torch import Tensor

from infra.errors import ShapeError
from sr_models.opensr import SHARE_COLUMNS, detail_shares
from sr_models.quality import reduce_mean

IMPROVED, OMITTED, MADE_UP = SHARE_COLUMNS
SIZE = 48  # 16 x 16 are left inside the border


def images(n: int = 2, seed: int = 0) -> tuple[Tensor, Tensor]:
    """A truth of fine detail and its reduction."""
    hr = 0.1 + 0.8 * torch.rand(n, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(seed))
    return reduce_mean(hr), hr


def enlarged(lr: Tensor) -> Tensor:
    return F.interpolate(lr, scale_factor=4, mode="bilinear")


def shares_of(lr: Tensor, sr: Tensor, hr: Tensor) -> list[list[float]]:
    """Shares per image, in the order of the columns."""
    return torch.stack(list(detail_shares(lr, sr, hr).values()), dim=1).tolist()


def pixel_scores(x: float, y: float) -> list[float]:
    fade = 1 - math.exp(-0.05 * (x + y - 1))
    return [x + y * fade, y + x * fade, math.exp(-0.05 * x * y)]


def by_hand(lr: NDArray[np.float64], sr: NDArray[np.float64], hr: NDArray[np.float64], *, soft: bool) -> list[float]:
    """Shares of one image (3, H, W) from the definitions, one pixel at a time; lr is enlarged already."""
    inner = [(i, j) for i in range(16, SIZE - 16) for j in range(16, SIZE - 16)]

    def distance(a: NDArray[np.float64], b: NDArray[np.float64]) -> list[float]:
        return [float(np.mean([abs(a[c, p, q] - b[c, p, q]) / (a[c, p, q] + b[c, p, q]) for c in range(3)]))
                for p, q in inner]  # fmt: skip

    to_gain, to_truth, to_input = distance(lr, hr), distance(sr, hr), distance(sr, lr)
    least = sorted(to_gain)[int(0.75 * len(inner)) - 1]
    votes = []
    for gain, truth, low in zip(to_gain, to_truth, to_input, strict=True):
        if max(gain, truth, low) > least:
            scores = np.array(pixel_scores(truth / gain, low / gain))
            weights = np.exp(-scores / 0.25)
            votes.append(weights / weights.sum() if soft else np.eye(3)[scores.argmin()])
    return [float(v) for v in np.mean(votes, axis=0)]


def test_the_truth_itself_is_all_improvement() -> None:
    lr, hr = images()
    assert shares_of(lr, hr, hr) == [[1.0, 0.0, 0.0]] * 2


def test_the_enlarged_input_is_all_omission() -> None:
    lr, hr = images()
    assert shares_of(lr, enlarged(lr), hr) == [[0.0, 1.0, 0.0]] * 2


def test_detail_that_is_in_neither_is_all_hallucination() -> None:
    """Truth and input are one flat grey, the output is not."""
    hr = torch.full((1, 3, SIZE, SIZE), 0.5)
    sr = hr + 0.1 * (torch.arange(SIZE) % 2)
    found = detail_shares(reduce_mean(hr), sr, hr)
    assert [found[k].item() for k in SHARE_COLUMNS] == [0.0, 0.0, 1.0]


def test_strong_noise_is_mostly_hallucination() -> None:
    hr = 0.5 + 0.02 * (images()[1] - 0.5)
    noise = torch.rand(hr.shape, generator=torch.Generator().manual_seed(7))
    assert all(made_up > 0.95 for _, _, made_up in shares_of(reduce_mean(hr), noise, hr))


def test_the_middle_between_input_and_truth_hallucinates_nothing() -> None:
    """Distances 0.5 and 0.5 of the way: the product is small, so neither far from the truth nor from the input."""
    lr, hr = images()
    halfway = (enlarged(lr) + hr) / 2
    assert [made_up for _, _, made_up in shares_of(lr, halfway, hr)] == [0.0, 0.0]


def test_half_the_image_restored() -> None:
    """Detail in every fifth column, so that the quantile is 0; of the 16 rows inside the border, 12 are restored."""
    lr = torch.full((1, 3, SIZE // 4, SIZE // 4), 0.5)
    hr = torch.full((1, 3, SIZE, SIZE), 0.5)
    hr[..., ::5] += 0.2
    sr = hr.clone()
    sr[:, :, 28:] = 0.5
    found = detail_shares(lr, sr, hr)
    assert [found[key].item() for key in SHARE_COLUMNS] == pytest.approx([12 / 16, 4 / 16, 0])


@pytest.mark.parametrize("soft", [False, True])
def test_the_formulas_pixel_by_pixel(soft: bool) -> None:
    lr, hr = images(n=3, seed=3)
    noise = torch.rand(hr.shape, generator=torch.Generator().manual_seed(4))
    sr = torch.stack([0.8 * hr[0] + 0.2 * noise[0], 0.6 * enlarged(lr)[1] + 0.4 * noise[1], noise[2]]) + 0.01
    found = torch.stack(list(detail_shares(lr, sr, hr, norm="softmin" if soft else "percent").values()), dim=1)
    up = enlarged(lr).double().numpy()
    expected = [by_hand(up[n], sr[n].double().numpy(), hr[n].double().numpy(), soft=soft) for n in range(3)]
    assert min(np.max(expected, axis=0)) > 0.1  # every share is met
    np.testing.assert_allclose(found.numpy(), expected, atol=2e-5 if soft else 1e-6)
    torch.testing.assert_close(found.sum(dim=1), torch.ones(3))


def test_softmin_of_the_truth_is_that_of_its_distances() -> None:
    """Distances 0 and 1 give the scores 0, 1 and exp(0) = 1, so 1 / (1 + 2 exp(-4))."""
    lr, hr = images()
    found = detail_shares(lr, hr, hr, norm="softmin")
    torch.testing.assert_close(found[IMPROVED], torch.full((2,), 1 / (1 + 2 * math.exp(-4))))


def test_each_image_by_itself_and_in_any_unit() -> None:
    lr, hr = images(n=4)
    sr = 0.5 * hr + 0.5 * torch.rand(hr.shape, generator=torch.Generator().manual_seed(1))
    whole = detail_shares(lr, sr, hr)
    for i in range(4):
        alone = detail_shares(lr[i : i + 1], sr[i : i + 1], hr[i : i + 1])
        assert all(torch.equal(alone[key][0], whole[key][i]) for key in SHARE_COLUMNS)
    in_dn = detail_shares(lr * 4096, sr * 4096, hr * 4096)  # a power of two: to the last bit
    assert all(torch.equal(in_dn[key], whole[key]) for key in SHARE_COLUMNS)


def test_null_without_detail_and_zeros_are_no_division() -> None:
    flat = torch.full((2, 3, SIZE, SIZE), 0.25)
    flat[1] = 0
    assert all(v.isnan().all() for v in detail_shares(reduce_mean(flat), flat, flat).values())
    _, hr = images(n=1)
    hr[:, :, 20:28, 20:28] = 0
    found = shares_of(reduce_mean(hr), hr, hr)
    assert found == [[1.0, 0.0, 0.0]]
    small = torch.rand(2, 3, 32, 64)
    assert all(v.isnan().all() and v.shape == (2,) for v in detail_shares(reduce_mean(small), small, small).values())


@pytest.mark.parametrize(
    ("lr", "sr", "hr"),
    [
        ((1, 3, 12, 12), (1, 3, 48, 48), (1, 3, 48, 44)),
        ((1, 3, 12, 12), (1, 3, 48, 44), (1, 3, 48, 44)),
        ((2, 3, 12, 12), (1, 3, 48, 48), (1, 3, 48, 48)),
        ((3, 12, 12), (3, 48, 48), (3, 48, 48)),
        ((1, 3, 96, 96), (1, 3, 48, 48), (1, 3, 48, 48)),
    ],
)
def test_shapes_that_do_not_go_together(lr: tuple[int, ...], sr: tuple[int, ...], hr: tuple[int, ...]) -> None:
    with pytest.raises(ShapeError, match="detail_shares needs"):
        detail_shares(torch.rand(lr), torch.rand(sr), torch.rand(hr))
