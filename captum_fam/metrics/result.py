"""The entry of a table that summarizes the values of many samples: a mean with its 95 % interval and counts."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor


class Result(NamedTuple):
    """A mean with its 95 % interval, the number of samples in the mean, and the numbers of samples left out.

    Attributes:
        value: the mean over samples, or the mean over groups of the means within the groups; NaN without any sample.
        half_width: half the width of the 95 % interval, 1.96 std / sqrt(n), with the population's standard deviation
            (ddof 0) and n the number of samples or groups; NaN if n is below two.
        n: number of samples in the mean.
        n_nan: number of samples left out because the map or the score holds NaN or inf. Default: 0.
        n_empty: number of samples whose map is flat, so that it has neither a box nor any energy. These samples are
            left out, unless the measure has a value for a flat map (IoU 0, AUROC 0.5); then they also count in ``n``.
            Default: 0.
        n_skipped: number of samples left out because the measure is undefined for another reason: no box in the image,
            or a score of zero or less. Default: 0.
        n_groups: number of groups in the mean; None for a mean over samples. Default: None.
    """

    value: float
    half_width: float
    n: int
    n_nan: int = 0
    n_empty: int = 0
    n_skipped: int = 0
    n_groups: int | None = None


def summarize(
    values: Tensor, groups: Tensor | None = None, nan: Tensor | None = None, empty: Tensor | None = None
) -> Result:
    """Mean of the values that are not NaN, with its 95 % interval and the numbers of samples left out.

    With groups this is the average in few-shot tables: the mean within each episode first, then the mean over the
    episodes. A group without a value is left out. Sums are exact, so that neither the order of the samples nor their
    distribution over processes changes the result.

    Args:
        values: one value per sample, ``(n,)``; NaN where the measure is undefined.
        groups: group of each sample, such as its episode, integers ``(n,)``; None for the mean over samples. Default:
            None.
        nan: whether the map or the score of a sample holds NaN or inf, boolean ``(n,)``, as from :func:`find_nan`; None
            if none does. Default: None.
        empty: whether the map of a sample is flat, boolean ``(n,)``, as from :func:`find_empty`; None if none is.
            Default: None.

    Returns:
        The mean, its interval and the counts.

    Raises:
        ValueError: if the arguments differ in length.

    Example:
        >>> summarize(torch.tensor([0.5, 0.75, 1.0, torch.nan]), groups=torch.tensor([0, 0, 1, 1]))[:3]
        (0.8125, 0.2598..., 3)
    """
    for name, other in (("groups", groups), ("nan", nan), ("empty", empty)):
        if other is not None and other.shape != values.shape:
            raise ValueError(
                f"{name} has shape {tuple(other.shape)} but values {tuple(values.shape)}; pass one entry per sample"
            )
    all_false = torch.zeros_like(values, dtype=torch.bool)
    is_nan = all_false if nan is None else nan
    is_empty = all_false if empty is None else empty
    defined = ~values.isnan()
    numbers = values[defined].detach().double().cpu().numpy()
    means = numbers if groups is None else _group_means(numbers, groups[defined].cpu().numpy())
    value, half_width = _mean_and_half_width(means)
    return Result(
        value=value,
        half_width=half_width,
        n=len(numbers),
        n_nan=int(is_nan.sum()),
        n_empty=int((is_empty & ~is_nan).sum()),
        n_skipped=int((~defined & ~is_nan & ~is_empty).sum()),
        n_groups=None if groups is None else len(means),
    )


def _group_means(numbers: np.ndarray, groups: np.ndarray) -> np.ndarray:
    """The mean of each group, in ascending order of the groups."""
    order = np.argsort(groups, kind="stable")
    _, starts = np.unique(groups[order], return_index=True)
    # math.fsum is exact. The result of numpy's sum would depend on the order in which the processes were joined.
    return np.array(
        [math.fsum(part.tolist()) / len(part) for part in np.split(numbers[order], starts[1:]) if len(part)]
    )


def _mean_and_half_width(numbers: np.ndarray) -> tuple[float, float]:
    n = len(numbers)
    if n == 0:
        return math.nan, math.nan
    mean = math.fsum(numbers.tolist()) / n
    if n == 1:
        return mean, math.nan
    variance = math.fsum(((numbers - mean) ** 2).tolist()) / n
    return mean, 1.96 * math.sqrt(variance / n)
