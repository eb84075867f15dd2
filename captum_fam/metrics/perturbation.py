"""Deletion and insertion: how fast does the score fall or rise, as pixels are deleted or inserted in map order?"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor

from captum_fam.metrics.confidence import LEAST_SCORE
from captum_fam.metrics.maps import find_empty, find_nan, upsample

ScoreFunc = Callable[[Tensor], Tensor]
Mode = Literal["deletion", "insertion"]

PERTURBATION_STEPS = 20
"""The number of steps of a curve, with an equal share of the pixels each; a step is one pass through the model."""


def deletion_auc(
    score_func: ScoreFunc,
    inputs: Tensor,
    maps: Tensor,
    steps: int = PERTURBATION_STEPS,
    baseline: float | Tensor = 0.0,
    relative: bool = True,
    eps: float = LEAST_SCORE,
    scores: Tensor | None = None,
) -> Tensor:
    """Area under the curve of the score while pixels are deleted, the highest pixel of the map first; low is good.

    The measure of Petsiuk, Das and Saenko, RISE (BMVC 2018), for a similarity instead of a probability. The size of a
    similarity differs between queries. By default the area is therefore divided by the score of the whole image: 1
    means that the score stays as high as for the whole image. ``relative=False`` gives the area itself, as in RISE.

    Args:
        score_func: takes images ``(B, C, H, W)`` and returns one score per image, ``(B,)``; see
            :func:`perturbation_curve`.
        inputs: ``(B, C, H, W)``.
        maps: ``(B, 1, h, w)`` or ``(B, h, w)``; interpolated to the size of the inputs here.
        steps: number of steps, each with an equal share of the pixels. Default: 20.
        baseline: value of deleted pixels, a number or a tensor that broadcasts to the inputs. Default: 0.
        relative: divide the area by the score of the whole image. Default: True.
        eps: largest score of the whole image for which the relative area is undefined. Default: 1e-6.
        scores: scores of the whole images, ``(B,)``, if they are known; None takes the scores from the curves. Default:
            None.

    Returns:
        ``(B,)``; NaN for a flat map, for a map with NaN or inf, and, with ``relative``, where the score of the whole
        image is ``eps`` or less.

    Raises:
        ValueError: for maps of another shape, ``steps`` below 1, or a score function that does not return one score
            per image.

    Example:
        >>> image, total = torch.tensor([[[[1.0, 3.0]]]]), lambda x: x.sum((1, 2, 3))
        >>> deletion_auc(total, image, torch.tensor([[[0.0, 1.0]]]), steps=2)
        tensor([0.3750])
        >>> deletion_auc(total, image, torch.tensor([[[0.0, 1.0]]]), steps=2, relative=False)
        tensor([1.5000])
    """
    curve = perturbation_curve(score_func, inputs, maps, "deletion", steps, baseline)
    return perturbation_auc(curve, "deletion", relative, eps, scores)


def insertion_auc(
    score_func: ScoreFunc,
    inputs: Tensor,
    maps: Tensor,
    steps: int = PERTURBATION_STEPS,
    baseline: float | Tensor = 0.0,
    relative: bool = True,
    eps: float = LEAST_SCORE,
    scores: Tensor | None = None,
) -> Tensor:
    """Area under the curve of the score while pixels are inserted, the highest pixel of the map first; high is good.

    The counterpart of :func:`deletion_auc`, where the measure is explained.

    Args:
        score_func: as in :func:`deletion_auc`.
        inputs: as in :func:`deletion_auc`.
        maps: as in :func:`deletion_auc`.
        steps: as in :func:`deletion_auc`. Default: 20.
        baseline: the images into which the pixels are inserted, a number or a tensor that broadcasts to the inputs,
            such as :func:`blurred` inputs. Default: 0.
        relative: as in :func:`deletion_auc`. Default: True.
        eps: as in :func:`deletion_auc`. Default: 1e-6.
        scores: as in :func:`deletion_auc`. Default: None.

    Returns:
        As :func:`deletion_auc`.

    Raises:
        ValueError: as :func:`deletion_auc`.

    Example:
        >>> image, total = torch.tensor([[[[1.0, 3.0]]]]), lambda x: x.sum((1, 2, 3))
        >>> insertion_auc(total, image, torch.tensor([[[0.0, 1.0]]]), steps=2)
        tensor([0.6250])
    """
    curve = perturbation_curve(score_func, inputs, maps, "insertion", steps, baseline)
    return perturbation_auc(curve, "insertion", relative, eps, scores)


def perturbation_auc(
    curve: Tensor, mode: Mode, relative: bool = True, eps: float = LEAST_SCORE, scores: Tensor | None = None
) -> Tensor:
    """:func:`deletion_auc` or :func:`insertion_auc` from a curve that was computed before.

    Args:
        curve: result of :func:`perturbation_curve`, ``(B, steps + 1)``.
        mode: ``"deletion"``, whose curve begins with the whole image, or ``"insertion"``, whose curve ends with the
            whole image.
        relative: as in :func:`deletion_auc`. Default: True.
        eps: as in :func:`deletion_auc`. Default: 1e-6.
        scores: as in :func:`deletion_auc`. Default: None.

    Returns:
        As :func:`deletion_auc`.

    Example:
        >>> perturbation_auc(torch.tensor([[4.0, 1.0, 0.0]]), "deletion")
        tensor([0.3750])
    """
    # The x-axis is the share of the changed pixels, from 0 to 1.
    area = torch.trapezoid(curve, dx=1 / (curve.shape[1] - 1), dim=1)
    if not relative:
        return area
    whole = curve[:, 0 if mode == "deletion" else -1] if scores is None else scores
    return area / whole.masked_fill(whole <= eps, torch.nan)


def perturbation_curve(
    score_func: ScoreFunc,
    inputs: Tensor,
    maps: Tensor,
    mode: Mode = "deletion",
    steps: int = PERTURBATION_STEPS,
    baseline: float | Tensor = 0.0,
) -> Tensor:
    """The score while pixels are deleted, or inserted into a baseline, the highest pixel of the map first.

    The curve of Petsiuk, Das and Saenko, RISE (BMVC 2018), for a similarity instead of a probability. Pixels of equal
    height are changed in a fixed random order, because raster order would favor the upper left corner.

    Args:
        score_func: takes images ``(B, C, H, W)`` and returns one score per image, ``(B,)``. It is called
            ``steps + 1`` times on the whole batch, in the order of the batch, under ``torch.no_grad``.
        inputs: ``(B, C, H, W)``.
        maps: ``(B, 1, h, w)`` or ``(B, h, w)``; interpolated to the size of the inputs here.
        mode: ``"deletion"``, where the score falls early for a good map; or ``"insertion"``, where the score rises
            early. Default: ``"deletion"``.
        steps: number of steps, each of which changes an equal share of the pixels. Default: 20.
        baseline: value of deleted pixels, and of pixels that are not inserted yet: a number in the units of the
            normalized inputs, or a tensor that broadcasts to the inputs, such as :func:`blurred` inputs. Default: 0,
            the mean color.

    Returns:
        Scores with a share of 0, 1/steps, ..., 1 of the pixels changed, ``(B, steps + 1)``; NaN for a flat map and for
        a map with NaN or inf.

    Raises:
        ValueError: for maps of another shape, an unknown mode, ``steps`` below 1, or a score function that does not
            return one score per image.

    Example:
        >>> scores = SimilarityToSupport(model, support)
        >>> curve = perturbation_curve(lambda x: scores(x)[:, 3], queries, attributions)
    """
    if mode not in ("deletion", "insertion"):
        raise ValueError(f'mode must be "deletion" or "insertion", got {mode!r}')
    if steps < 1:
        raise ValueError(f"steps must be at least 1, got {steps}")
    size = (inputs.shape[-2], inputs.shape[-1])
    rank = _descending_ranks(upsample(maps, size).nan_to_num())
    removed = torch.as_tensor(baseline, dtype=inputs.dtype, device=inputs.device).expand_as(inputs)
    before, after = (inputs, removed) if mode == "deletion" else (removed, inputs)
    columns = []
    with torch.no_grad():
        for step in range(steps + 1):
            changed = (rank < step / steps * rank[0].numel())[:, None]
            scores = score_func(torch.where(changed, after, before))
            if scores.shape != inputs.shape[:1]:
                raise ValueError(
                    f"score_func must return one score per image, shape {tuple(inputs.shape[:1])}, "
                    f"got {tuple(scores.shape)}; select the score of the explained class"
                )
            columns.append(scores)
    undefined = find_nan(maps) | find_empty(maps)
    return torch.stack(columns, 1).masked_fill(undefined[:, None], torch.nan)


def blurred(inputs: Tensor, sigma: float | None = None) -> Tensor:
    """Images under a Gaussian blur, a baseline for insertion that has no edges.

    Args:
        inputs: ``(B, C, H, W)``.
        sigma: standard deviation of the Gaussian, in pixels; None for 5 at a side of 224 pixels and in proportion at
            other sides. Default: None.

    Returns:
        ``(B, C, H, W)`` in the dtype of the inputs.

    Example:
        >>> spot = torch.eye(9)[4].outer(torch.eye(9)[4])
        >>> blurred(spot[None, None], sigma=0.5)[0, 0, 4, 3:6]
        tensor([0.0837, 0.6187, 0.0837])
    """
    from torchvision.transforms.functional import gaussian_blur

    side = min(inputs.shape[-2:])
    sigma = 5 * side / 224 if sigma is None else sigma
    # torchvision reflects the border of the image, which must be shorter than the image.
    reach = min(math.ceil(3 * sigma), side - 1)
    blur: Tensor = gaussian_blur(inputs, [2 * reach + 1] * 2, [sigma] * 2)
    return blur


def _descending_ranks(maps: Tensor) -> Tensor:
    """The rank of each pixel within its map, ``(B, H, W)``: 0 for the highest pixel."""
    flat = maps.flatten(1)
    # A stable sort leaves pixels of equal height in the order of the shuffle.
    shuffle = torch.randperm(flat.shape[1], generator=torch.Generator().manual_seed(0)).to(flat.device)
    order = shuffle[flat[:, shuffle].sort(stable=True, dim=1, descending=True).indices]
    ranks = torch.arange(flat.shape[1], device=flat.device).expand_as(order)
    return torch.empty_like(order).scatter_(1, order, ranks).view_as(maps)
