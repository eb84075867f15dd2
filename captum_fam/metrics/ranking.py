"""Are the pixels of the object higher than all other pixels? The AUROC of a region, one value per sample."""

from __future__ import annotations

import torch
from torch import Tensor

from captum_fam.metrics.boxes import Boxes, region_mask_of_maps
from captum_fam.metrics.maps import Size, find_empty, find_nan, upsample


def region_auroc(maps: Tensor, region: Boxes, size: Size | None = None) -> Tensor:
    """How often a pixel inside the region is higher than a pixel outside; equal pixels count half.

    This is the area under the ROC curve, computed from ranks (Mann and Whitney, 1947): (R - n (n + 1) / 2) / (n m) with
    n pixels inside, m pixels outside and R the sum of the ranks inside. The area depends only on the order of the
    pixels: a sharper map of the same order has the same value.

    Args:
        maps: ``(B, 1, h, w)`` or ``(B, h, w)``; interpolated to ``size`` here.
        region: boolean mask ``(B, H, W)``, such as the :func:`cell_mask` of a mosaic; or boxes in pixels of the input,
            as in :func:`energy_proportion`.
        size: height and width of the input, in pixels; None is allowed only if the region is a mask. Default: None.

    Returns:
        ``(B,)`` in [0, 1]; chance is 0.5. 0.5 for a flat map; NaN for a map with NaN or inf, and for a region of all
        pixels or none.

    Raises:
        ValueError: if the shapes do not fit, or if the region is of boxes and ``size`` is None.

    Example:
        >>> region_auroc(torch.tensor([[[1.0, 3.0], [0.0, -2.0]]]), torch.tensor([[0, 0, 1, 1]]), size=(2, 2))
        tensor([0.6667])
    """
    mask = region_mask_of_maps(maps, region, size)
    inside = mask.flatten(1)
    resized = upsample(maps, (mask.shape[1], mask.shape[2])).flatten(1)
    # Rounding noise of the interpolation must not rank the pixels of a flat map.
    ranks = average_ranks(resized.masked_fill(find_empty(maps)[:, None], 0))
    n_inside = inside.sum(1).double()
    n_outside = inside.shape[1] - n_inside
    wins = (ranks * inside).sum(1) - n_inside * (n_inside + 1) / 2
    return (wins / (n_inside * n_outside)).masked_fill(find_nan(maps), torch.nan).to(resized.dtype)


def average_ranks(flat: Tensor) -> Tensor:
    """Ranks within each row; equal numbers share the mean of their ranks.

    Args:
        flat: B rows of P numbers, ``(B, P)``.

    Returns:
        Ranks from 1 to P, float64 ``(B, P)``.

    Example:
        >>> average_ranks(torch.tensor([[3.0, 1.0, 3.0]]))
        tensor([[2.5000, 1.0000, 2.5000]], dtype=torch.float64)
    """
    ordered, order = flat.sort(1)
    count = flat.shape[1]
    position = torch.arange(count, device=flat.device)
    # In a sorted row, a run of equal numbers reaches from one step of the values to the next step.
    step = ordered[:, 1:] != ordered[:, :-1]
    edge = step.new_ones(len(flat), 1)
    # First and last position of the run of each number, counted from zero; their mean plus one is the shared rank.
    first = torch.where(torch.cat([edge, step], 1), position, 0).cummax(1).values
    last = torch.where(torch.cat([step, edge], 1), position, count).flip(1).cummin(1).values.flip(1)
    return torch.empty_like(flat, dtype=torch.float64).scatter_(1, order, (first + last + 2).double() / 2)
