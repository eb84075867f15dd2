"""How fast does the score fall, or rise, as pixels are taken in the order of the map? Deletion and insertion."""

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
"""The number of equal shares of the pixels in which a curve is drawn; each step is one pass through the model."""


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
    """Area under the score while pixels are deleted, the highest of the map first; low is good.

    Petsiuk, Das and Saenko, RISE (BMVC 2018), for a similarity. RISE's area is in units of a probability
    (``relative=False``). Similarities differ in size between queries, so that the area is divided by the score of the
    whole image here: 1 means that the score stays as high as it is for the whole image.

    Args:
        score_func: takes images ``(B, C, H, W)`` and returns one score per image, ``(B,)``; see
            :func:`perturbation_curve`.
        inputs: ``(B, C, H, W)``.
        maps: ``(B, 1, h, w)`` or ``(B, h, w)``.
        steps: equal shares of the pixels; default 20.
        baseline: what stands in the place of a deleted pixel, a number (default 0) or a tensor.
        relative: divide by the score of the whole image (default True).
        eps: with ``relative``, a score of the whole image of at most ``eps`` has no area; default 1e-6.
        scores: of the whole images, ``(B,)``, if they are known; None (default): the ends of the curves.

    Returns:
        ``(B,)``; NaN for a flat map, for a map with NaN or inf, and where the score of the whole image is too small.

    Raises:
        ValueError: if ``steps`` is below 1, or the score function returns something else than one score per image.

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
    """Area under the score while pixels are inserted into a baseline, the highest of the map first; high is good.

    The counterpart of :func:`deletion_auc`, with the same arguments, results and errors; ``baseline`` is what
    insertion starts from, such as :func:`blurred` inputs.

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
    """:func:`deletion_auc` or :func:`insertion_auc` of a curve that exists already.

    Args:
        curve: of :func:`perturbation_curve`, ``(B, steps + 1)``.
        mode: ``"deletion"``, whose curve begins with the whole image, or ``"insertion"``, whose curve ends with it.
        relative: as in :func:`deletion_auc`; default True.
        eps: as in :func:`deletion_auc`; default 1e-6.
        scores: as in :func:`deletion_auc`; default None.

    Returns:
        ``(B,)``.

    Example:
        >>> perturbation_auc(torch.tensor([[4.0, 1.0, 0.0]]), "deletion")
        tensor([0.3750])
    """
    # The trapezoidal rule over the share of pixels in [0, 1].
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
    """The score while pixels are deleted, or inserted into a baseline, the highest of the map first.

    Petsiuk, Das and Saenko, RISE (BMVC 2018), for a similarity. Pixels of the same height come in a fixed random
    order, since raster order would favor the upper left.

    Args:
        score_func: takes images ``(B, C, H, W)`` and returns one score per image, ``(B,)``. It is called
            ``steps + 1`` times on the whole batch, in the order of the batch, under ``torch.no_grad``.
        inputs: ``(B, C, H, W)``.
        maps: ``(B, 1, h, w)`` or ``(B, h, w)``.
        mode: ``"deletion"`` (default; a good map lets the score fall early) or ``"insertion"`` (rise early).
        steps: equal shares of the pixels, one changed at each step; default 20.
        baseline: what stands in the place of a deleted pixel, and what insertion starts from: a number in the units
            of the normalized inputs (default 0, the mean color) or a tensor that broadcasts to the inputs, such as
            :func:`blurred` inputs.

    Returns:
        ``(B, steps + 1)``, the score with 0, 1/steps, ..., all of the pixels deleted or inserted; NaN for a flat map
        and for a map with NaN or inf.

    Raises:
        ValueError: for an unknown mode, ``steps`` below 1, or a score function that returns something else than one
            score per image.

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
                    f"got {tuple(scores.shape)}; select the class to explain"
                )
            columns.append(scores)
    undefined = find_nan(maps) | find_empty(maps)
    return torch.stack(columns, 1).masked_fill(undefined[:, None], torch.nan)


def blurred(inputs: Tensor, sigma: float | None = None) -> Tensor:
    """Images under a Gaussian blur: a baseline of insertion that adds no edges to those of the image.

    Args:
        inputs: ``(B, C, H, W)``.
        sigma: in pixels; None (default): 5 for a side of 224 pixels, and in proportion for others.

    Returns:
        ``(B, C, H, W)`` in the type of the inputs.

    Example:
        >>> spot = torch.eye(9)[4].outer(torch.eye(9)[4])
        >>> blurred(spot[None, None], sigma=0.5)[0, 0, 4, 3:6]
        tensor([0.0837, 0.6187, 0.0837])
    """
    from torchvision.transforms.functional import gaussian_blur

    side = min(inputs.shape[-2:])
    sigma = 5 * side / 224 if sigma is None else sigma
    # The reflected border must be shorter than the image.
    reach = min(math.ceil(3 * sigma), side - 1)
    blur: Tensor = gaussian_blur(inputs, [2 * reach + 1] * 2, [sigma] * 2)
    return blur


def _descending_ranks(maps: Tensor) -> Tensor:
    """0 for the highest pixel of each map, ``(B, H, W)``."""
    flat = maps.flatten(1)
    # A stable sort of shuffled pixels leaves pixels of the same height in the order of the shuffle.
    shuffle = torch.randperm(flat.shape[1], generator=torch.Generator().manual_seed(0)).to(flat.device)
    order = shuffle[flat[:, shuffle].sort(stable=True, dim=1, descending=True).indices]
    counting = torch.arange(flat.shape[1], device=flat.device).expand_as(order)
    return torch.empty_like(order).scatter_(1, order, counting).view_as(maps)
