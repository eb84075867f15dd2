from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest
import torch

from captum_fam.metrics import find_empty, find_nan, normalize_maps, upsample


def bilinear(image: npt.NDArray[np.float64], height: int, width: int) -> npt.NDArray[np.float64]:
    """Pixel by pixel: the center of each output pixel, in input coordinates, between its four neighbors."""
    rows, columns = image.shape
    out = np.empty((height, width))
    for i in range(height):
        for j in range(width):
            y = min(max((i + 0.5) * rows / height - 0.5, 0.0), rows - 1)
            x = min(max((j + 0.5) * columns / width - 0.5, 0.0), columns - 1)
            top, left = int(y), int(x)
            bottom, right = min(top + 1, rows - 1), min(left + 1, columns - 1)
            upper = image[top, left] * (1 - (x - left)) + image[top, right] * (x - left)
            lower = image[bottom, left] * (1 - (x - left)) + image[bottom, right] * (x - left)
            out[i, j] = upper * (1 - (y - top)) + lower * (y - top)
    return out


def test_interpolation_is_bilinear_between_pixel_centers() -> None:
    maps = torch.randn(2, 1, 3, 5, dtype=torch.float64)
    expected = np.stack([bilinear(one[0].numpy(), 13, 8) for one in maps])
    np.testing.assert_allclose(upsample(maps, (13, 8)).numpy(), expected, rtol=1e-12, atol=1e-12)


def test_minmax_is_taken_after_the_interpolation() -> None:
    maps = torch.randn(3, 1, 3, 5, dtype=torch.float64)
    for one, result in zip(maps, normalize_maps(maps, (13, 8)), strict=True):
        raised = bilinear(one[0].numpy(), 13, 8)
        expected = (raised - raised.min()) / (raised.max() - raised.min())
        np.testing.assert_allclose(result.numpy(), expected, rtol=1e-12, atol=1e-12)


def test_minmax_reaches_zero_and_one_exactly() -> None:
    result = normalize_maps(torch.randn(50, 1, 5, 5), (31, 17)).flatten(1)
    assert (result.amin(1) == 0).all()
    assert (result.amax(1) == 1).all()


def test_positive_part_cuts_at_zero() -> None:
    maps = torch.tensor([[[-2.0, 1.0], [4.0, 0.0]]])
    torch.testing.assert_close(normalize_maps(maps, energy="positive"), torch.tensor([[[0.0, 0.25], [1.0, 0.0]]]))


def test_flat_map_stays_zero_though_interpolation_adds_rounding_noise() -> None:
    # 0.3 is not the sum of its bilinear shares in float32: min-max alone would make a picture of the noise.
    maps = torch.full((2, 1, 5, 7), 0.3)
    raised = upsample(maps, (33, 41))
    assert raised.amax() > raised.amin()
    assert (normalize_maps(maps, (33, 41)) == 0).all()


def test_flat_positive_map_is_one_everywhere_in_its_positive_part() -> None:
    assert (normalize_maps(torch.full((2, 1, 5, 7), 0.3), (33, 41), "positive") == 1).all()


def test_negative_map_has_no_positive_part() -> None:
    assert (normalize_maps(-torch.rand(2, 1, 3, 4) - 0.1, (9, 7), "positive") == 0).all()


def test_nan_and_inf_make_the_whole_map_nan_and_no_other() -> None:
    maps = torch.rand(4, 1, 3, 4)
    maps[1, 0, 0, 0] = torch.nan
    maps[2, 0, 1, 1] = torch.inf
    maps[3, 0, 1, 1] = -torch.inf
    for energy in ("minmax", "positive"):
        result = normalize_maps(maps, (9, 7), energy)
        assert result[0].isfinite().all()
        assert result[1:].isnan().all()
    assert find_nan(maps).tolist() == [False, True, True, True]


def test_empty_is_flat_up_to_rounding_or_without_positive_value() -> None:
    noisy = torch.full((1, 2, 2), 1000.0)
    noisy[0, 0, 0] = torch.nextafter(torch.tensor(1000.0), torch.tensor(2000.0))
    real = noisy.clone()
    real[0, 0, 0] = 1000.01
    maps = torch.cat([torch.zeros(1, 2, 2), torch.ones(1, 2, 2), noisy, real, -torch.rand(1, 2, 2)])
    assert find_empty(maps).tolist() == [True, True, True, False, False]
    assert find_empty(maps, "positive").tolist() == [True, False, False, False, True]


def test_tiny_maps_are_not_flat() -> None:
    maps = torch.rand(1, 1, 4, 4) * 1e-30
    assert not find_empty(maps).any()
    torch.testing.assert_close(normalize_maps(maps), normalize_maps(maps * 1e30), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("size", [None, (9, 7)])
def test_maps_whose_range_is_larger_than_the_largest_number_are_brought_to_one(size: tuple[int, int] | None) -> None:
    maps = torch.tensor([[[3e38, -3e38, 0.0]], [[3.4e38, 3.4e38, -1e38]]])
    small = maps / 1e38
    for energy in ("minmax", "positive"):
        torch.testing.assert_close(normalize_maps(maps, size, energy), normalize_maps(small, size, energy))
        assert not find_empty(maps, energy).any()
    torch.testing.assert_close(normalize_maps(maps)[0], torch.tensor([[1.0, 0.0, 0.5]]))
    assert not find_nan(maps).any()


def test_maps_of_the_smallest_numbers_are_brought_to_one() -> None:
    maps = torch.tensor([[[4e-45, 0.0, 1.4e-45]]])
    assert normalize_maps(maps)[0, 0, 0] == 1
    assert normalize_maps(maps)[0, 0, 1] == 0


def test_half_precision_is_computed_in_float32() -> None:
    maps = torch.rand(2, 1, 3, 5).bfloat16()
    torch.testing.assert_close(normalize_maps(maps, (9, 7)), normalize_maps(maps.float(), (9, 7)), rtol=0, atol=0)


def test_the_maps_given_are_left_as_they_are() -> None:
    maps = torch.randn(2, 1, 4, 4, requires_grad=True)
    before = maps.detach().clone()
    for energy in ("minmax", "positive"):
        assert not normalize_maps(maps, None, energy).requires_grad
        torch.testing.assert_close(maps.detach(), before, rtol=0, atol=0)


@pytest.mark.parametrize("shape", [(4, 4), (2, 3, 4, 4), (2, 1, 1, 4, 4)])
def test_maps_of_another_shape_are_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"maps .*\(B, 1, h, w\)"):
        upsample(torch.rand(shape))


def test_unknown_energy_is_refused() -> None:
    with pytest.raises(ValueError, match=r"energy .*'softmax'"):
        normalize_maps(torch.rand(1, 2, 2), energy="softmax")  # type: ignore[arg-type]
