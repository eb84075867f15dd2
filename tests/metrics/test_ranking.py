from __future__ import annotations

import numpy as np
import torch

from captum_fam.metrics import cell_mask, region_auroc, upsample


def test_auroc_counts_pairs_of_pixels() -> None:
    maps = torch.randint(0, 5, (6, 1, 4, 3)).double()
    mask = torch.rand(6, 9, 7) > 0.6
    expected = []
    for raised, inside in zip(upsample(maps, (9, 7)).numpy(), mask.numpy(), strict=True):
        within, without = raised[inside][:, None], raised[~inside][None]
        expected.append((within > without).mean() + 0.5 * (within == without).mean())
    np.testing.assert_allclose(region_auroc(maps, mask).numpy(), expected, rtol=1e-12)


def test_auroc_with_many_ties() -> None:
    maps = torch.tensor([[[1.0, 1.0, 0.0, 0.0]], [[0.0, 1.0, 1.0, 1.0]]])
    inside = torch.tensor([True, False, True, False]).expand(2, 1, 4)
    # of four pairs: a win, two ties, a loss; and two losses, two ties
    assert region_auroc(maps, inside).tolist() == [0.5, 0.25]


def test_auroc_does_not_see_a_monotone_change() -> None:
    maps = torch.randn(5, 8, 6, dtype=torch.float64)
    mask = cell_mask(torch.tensor([0, 1, 2, 3, 0]), (8, 6))
    assert region_auroc(maps, mask).equal(region_auroc((3 * maps).exp(), mask))


def test_auroc_is_one_for_the_region_itself_and_chance_for_a_flat_map() -> None:
    mask = cell_mask(torch.tensor([2, 1]), (6, 8))
    assert region_auroc(mask.float(), mask).tolist() == [1, 1]
    assert region_auroc(-mask.float(), mask).tolist() == [0, 0]
    # interpolation adds rounding noise to 0.3, which must not be ranked
    assert region_auroc(torch.full((2, 1, 5, 7), 0.3), cell_mask(torch.tensor([2, 1]), (33, 41))).tolist() == [0.5, 0.5]


def test_auroc_is_undefined_without_inside_or_outside_and_for_nan() -> None:
    mask = torch.stack([torch.zeros(3, 3), torch.ones(3, 3), torch.eye(3), torch.eye(3)]).bool()
    maps = torch.rand(4, 3, 3)
    maps[2, 0, 0] = torch.nan
    assert region_auroc(maps, mask).isnan().tolist() == [True, True, True, False]


def test_auroc_takes_boxes_too() -> None:
    maps, boxes = torch.rand(2, 1, 3, 3), torch.tensor([[1, 1, 4, 3], [0, 0, 2, 6]])
    mask = torch.zeros(2, 6, 5, dtype=torch.bool)
    mask[0, 1:3, 1:4] = mask[1, :, :2] = True
    assert region_auroc(maps, boxes, (6, 5)).equal(region_auroc(maps, mask))
