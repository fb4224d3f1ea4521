"""Oracles: hand numbers and NumPy moments."""

import numpy as np
import pytest
import torch

from classifiers.standardise import Standardiser, from_archive_statistics
from infra.errors import ConfigError, ShapeError, UnknownNameError


def test_standardised_training_data_have_zero_mean_and_unit_deviation() -> None:
    x = np.random.default_rng(0).gamma(2.0, 0.1, (5, 3, 8, 8))
    mean, std = x.mean(axis=(0, 2, 3)), x.std(axis=(0, 2, 3))
    out = Standardiser(("a", "b", "c"), tuple(mean.tolist()), tuple(std.tolist()))(torch.from_numpy(x)).numpy()
    np.testing.assert_allclose(out.mean(axis=(0, 2, 3)), 0, atol=1e-12)
    np.testing.assert_allclose(out.std(axis=(0, 2, 3)), 1, atol=1e-12)


def test_published_statistics_are_divided_by_the_stretch_and_decibels_are_not() -> None:
    found = from_archive_statistics(["B04", "VV"], max_dn=3000)
    assert found.mean == (588.41 / 3000, -12.644)
    assert found.std == (684.57 / 3000, 5.133)
    x = torch.tensor([588.41 / 3000, -12.644 + 5.133]).view(1, 2, 1, 1)
    torch.testing.assert_close(found(x).flatten(), torch.tensor([0.0, 1.0]), atol=1e-6, rtol=0)


def test_refuses() -> None:
    with pytest.raises(UnknownNameError, match="B10"):
        from_archive_statistics(["B10"], max_dn=3000)
    with pytest.raises(ConfigError, match="max_dn"):
        from_archive_statistics(["B04"], max_dn=0)
    with pytest.raises(ShapeError, match="3 bands"):
        Standardiser(("a", "b", "c"), (0.0,), (1.0,))
    with pytest.raises(ConfigError, match="finite"):
        Standardiser(("a",), (float("nan"),), (1.0,))
    with pytest.raises(ShapeError, match=r"\(N, 1, H, W\)"):
        Standardiser(("a",), (0.0,), (1.0,))(torch.zeros(2, 3, 4, 4))
