"""The stretch against NumPy in float64, over every DN there is."""

import numpy as np
import pytest
import torch

import sr_models
from infra.errors import ConfigError, ShapeError
from sr_models.stretch import as_tensor

ALL_DN = np.arange(65_536, dtype=np.uint16)


@pytest.mark.parametrize("max_dn", [1, 255, 2047, 3000, 4095, 10_000, 65_535])
def test_every_dn_survives_the_round_trip(max_dn: int) -> None:
    back = sr_models.to_dn(sr_models.to_unit(ALL_DN, max_dn), max_dn).cpu().numpy()
    assert back.dtype == np.uint16
    np.testing.assert_array_equal(back, np.minimum(ALL_DN, max_dn))


def test_unit_values_are_those_of_float64() -> None:
    unit = sr_models.to_unit(ALL_DN.reshape(4, 64, 256), 3000)
    assert unit.dtype == torch.float32
    assert unit.shape == (4, 64, 256)
    np.testing.assert_allclose(unit.numpy().ravel(), np.minimum(ALL_DN, 3000) / 3000.0, rtol=1e-7)


@pytest.mark.parametrize("dtype", [torch.uint16, torch.int32, torch.int64])
def test_arrays_and_tensors_of_any_integer_dtype_agree(dtype: torch.dtype) -> None:
    tensor = torch.from_numpy(ALL_DN.astype(np.int64)).to(dtype)
    assert torch.equal(sr_models.to_unit(tensor, 3000), sr_models.to_unit(ALL_DN, 3000))
    assert torch.equal(sr_models.to_unit(ALL_DN.astype(">u2"), 3000), sr_models.to_unit(ALL_DN, 3000))


def test_read_only_and_strided_memory_is_left_alone() -> None:
    dn = np.arange(100, dtype=np.uint16)
    dn.flags.writeable = False
    expected = np.arange(100)[::-2] / 50
    np.testing.assert_allclose(sr_models.to_unit(dn[::-2], 50).numpy(), expected.clip(0, 1), rtol=1e-6)
    x = torch.tensor([0.25])
    sr_models.to_dn(x, 100)
    tensor = torch.tensor([7000], dtype=torch.int32)
    sr_models.to_unit(tensor, 100)
    assert (x.item(), tensor.item(), as_tensor(dn).tolist()) == (0.25, 7000, list(range(100)))


def test_halves_go_to_the_even_dn_and_the_rest_is_clamped() -> None:
    x = torch.tensor([-1.0, 0.125, 0.375, 0.625, 0.875, 1.0, 9.0, float("inf")])
    assert sr_models.to_dn(x, 4).tolist() == [0, 0, 2, 2, 4, 4, 4, 4]
    assert sr_models.to_dn(torch.tensor([0.5], dtype=torch.float16), 65_535).tolist() == [32_768]


def test_clipped_share_counts_pixels_not_values() -> None:
    dn = np.zeros((2, 3, 2, 4), dtype=np.uint16)
    dn[0, 0, 0, 0] = dn[0, 1, 0, 0] = dn[0, 2, 1, 3] = 3001  # two of eight pixels, one in two bands
    dn[1] = 3000
    assert sr_models.clipped_share(dn, 3000).tolist() == [0.25, 0.0]


def test_refusals() -> None:
    for bad in (0, -1, 65_536):
        with pytest.raises(ConfigError, match="max_dn"):
            sr_models.to_unit(ALL_DN, bad)
        with pytest.raises(ConfigError, match="max_dn"):
            sr_models.to_dn(torch.zeros(1), bad)
    with pytest.raises(ShapeError, match="integer"):
        sr_models.to_unit(np.zeros(3), 3000)  # type: ignore[arg-type]
    with pytest.raises(ShapeError, match="integer"):
        sr_models.to_unit(torch.zeros(3), 3000)
    with pytest.raises(ShapeError, match="floating point"):
        sr_models.to_dn(torch.zeros(3, dtype=torch.int32), 3000)
    with pytest.raises(ShapeError, match="N, C, H, W"):
        sr_models.clipped_share(ALL_DN, 3000)
