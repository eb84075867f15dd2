"""Does the score follow the map? Masked inputs, average drop, increase in confidence, deletion and insertion."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Literal

import torch
from torch import Tensor

from captum_fam.metrics.maps import Energy, find_empty, find_nan, normalize_maps, upsample

ScoreFunc = Callable[[Tensor], Tensor]


def masked_inputs(
    inputs: Tensor,
    maps: Tensor,
    mean: Sequence[float] | Tensor | None = None,
    std: Sequence[float] | Tensor | None = None,
    energy: Energy = "minmax",
) -> Tensor:
    """X' = norm(up(L)) ∘ X, the images of which average drop and increase in confidence take the score.

    Args:
        inputs: what the model takes, normalized by the data's mean and standard deviation, ``(B, C, H, W)``.
        maps: ``(B, 1, h, w)`` or ``(B, h, w)``.
        mean: of each channel. With ``mean`` and ``std`` the raw pixels are masked and then normalized anew, so
            that what is masked turns black; without them the normalized tensor is masked, and it turns to the
            mean color.
        std: of each channel.
        energy: how a map becomes a mask, ``"minmax"`` or ``"positive"``; see :func:`normalize_maps`.

    Returns:
        ``(B, C, H, W)`` in the type of the inputs; NaN for an :func:`empty <find_empty>` map and one with NaN or inf,
        so that no score of it is taken for one.

    Raises:
        ValueError: if only one of ``mean`` and ``std`` is given, or the shapes do not fit.

    Example:
        >>> masked_inputs(torch.full((1, 3, 1, 2), 2.0), torch.tensor([[[1.0, 5.0]]]))[0, 0]
        tensor([[0., 2.]])
    """
    mask = _masks(inputs, maps, energy).masked_fill(find_empty(maps, energy)[:, None, None, None], torch.nan)
    return apply_masks(inputs, mask, mean, std)


def apply_masks(
    inputs: Tensor,
    mask: Tensor,
    mean: Sequence[float] | Tensor | None = None,
    std: Sequence[float] | Tensor | None = None,
) -> Tensor:
    """:func:`masked_inputs` with masks that are in [0, 1] already and broadcast to the inputs."""
    if mean is None and std is None:
        return (inputs * mask).to(inputs.dtype)
    if mean is None or std is None:
        raise ValueError("mean and std come together: pass both to mask raw pixels, none to mask the normalized ones")
    # mask (std X + mean) = std X' + mean, solved for X'
    black = torch.as_tensor(mean).to(mask) / torch.as_tensor(std).to(mask)
    return (inputs * mask + (mask - 1) * black.view(-1, 1, 1)).to(inputs.dtype)


def average_drop(scores: Tensor, masked_scores: Tensor, eps: float = 1e-6) -> Tensor:
    """Eq. 21 for each sample, max(0, s - s') / s; the paper prints the mean in percent.

    Chattopadhay et al., "Grad-CAM++", WACV 2018, on a similarity.

    Args:
        scores: s, the similarity of the query, ``(B,)``.
        masked_scores: s', that of the query masked by its map, ``(B,)``.
        eps: s of at most this has no relative drop.

    Returns:
        ``(B,)``; NaN where s is ``eps`` or less and where a score is NaN.

    Raises:
        ValueError: if the shapes differ.

    Example:
        >>> average_drop(torch.tensor([1.0, 0.5]), torch.tensor([0.25, 0.75]))
        tensor([0.7500, 0.0000])
    """
    _check_scores(scores, masked_scores)
    drop = (scores - masked_scores).clamp_min(0) / scores
    return drop.masked_fill(scores <= eps, torch.nan)


def increase_in_confidence(scores: Tensor, masked_scores: Tensor, eps: float = 1e-6) -> Tensor:
    """Eq. 22 for each sample, 1 where s < s', else 0.

    Chattopadhay et al., "Grad-CAM++", WACV 2018, on a similarity.

    Args:
        scores: s, ``(B,)``.
        masked_scores: s', ``(B,)``.
        eps: s of at most this is left out, so that the mean is over the same samples as that of
            :func:`average_drop`; ``-math.inf`` leaves none out.

    Returns:
        ``(B,)``; NaN where s is ``eps`` or less and where a score is NaN.

    Raises:
        ValueError: if the shapes differ.

    Example:
        >>> increase_in_confidence(torch.tensor([1.0, 0.5]), torch.tensor([0.25, 0.75]))
        tensor([0., 1.])
    """
    _check_scores(scores, masked_scores)
    undefined = (scores <= eps) | scores.isnan() | masked_scores.isnan()
    increased = (scores < masked_scores).to(scores.dtype)
    return increased.masked_fill(undefined, torch.nan)


def perturbation_curve(
    score_func: ScoreFunc,
    inputs: Tensor,
    maps: Tensor,
    mode: Literal["deletion", "insertion"] = "deletion",
    steps: int = 50,
    baseline: float | Tensor = 0.0,
) -> Tensor:
    """The score while pixels are deleted, or inserted into a baseline, the highest of the map first.

    Petsiuk, Das and Saenko, RISE (BMVC 2018), on a similarity. Pixels of the same height come in a fixed random
    order, since raster order would favor the upper left.

    Args:
        score_func: takes images ``(B, C, H, W)`` and gives a score each, ``(B,)``. It is called ``steps + 1`` times
            on the whole batch, in its order, without a graph.
        inputs: ``(B, C, H, W)``.
        maps: ``(B, 1, h, w)`` or ``(B, h, w)``.
        mode: ``"deletion"`` (a good map lets the score fall early) or ``"insertion"`` (rise early).
        steps: equal shares of the pixels, one changed at each step.
        baseline: what stands in the place of a deleted pixel, and what insertion starts from: a number in the units
            of the normalized inputs (0 is the mean color) or a tensor that broadcasts to the inputs, such as
            :func:`blurred` inputs.

    Returns:
        ``(B, steps + 1)``, the score with 0, 1/steps, ..., all of the pixels deleted or inserted; NaN for a flat map
        and one with NaN or inf.

    Raises:
        ValueError: for an unknown mode, no steps, or a score function that does not give one score an image.

    Example:
        >>> scores = SimilarityToSupport(model, support)
        >>> curve = perturbation_curve(lambda x: scores(x)[:, 3], queries, attributions)
        >>> area = area_under_curve(curve)
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
                    f"score_func must give one score an image, shape {tuple(inputs.shape[:1])}, "
                    f"got {tuple(scores.shape)}; select the class to explain"
                )
            columns.append(scores)
    undefined = find_nan(maps) | find_empty(maps)
    return torch.stack(columns, 1).masked_fill(undefined[:, None], torch.nan)


def area_under_curve(curve: Tensor) -> Tensor:
    """Area under ``(B, steps + 1)`` scores over the share of pixels in [0, 1], by trapezia: ``(B,)``.

    In units of the score, as RISE has it. ``captum-fam evaluate`` divides it by the score of the whole image, since
    similarities, unlike probabilities, differ in size between queries.

    Example:
        >>> area_under_curve(torch.tensor([[4.0, 1.0, 0.0]]))
        tensor([1.5000])
    """
    return torch.trapezoid(curve, dx=1 / (curve.shape[1] - 1), dim=1)


def blurred(inputs: Tensor, sigma: float | None = None) -> Tensor:
    """Images under a Gaussian blur, the baseline of insertion that has no edges of its own.

    Args:
        inputs: ``(B, C, H, W)``.
        sigma: in pixels; None: 5 at a side of 224, and in proportion.

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


def _masks(inputs: Tensor, maps: Tensor, energy: Energy) -> Tensor:
    if inputs.dim() != 4 or len(inputs) != len(maps):
        raise ValueError(
            f"inputs has shape {tuple(inputs.shape)} and maps {tuple(maps.shape)}; "
            "give images (B, C, H, W) and a map each"
        )
    return normalize_maps(maps, (inputs.shape[2], inputs.shape[3]), energy)[:, None]


def _descending_ranks(maps: Tensor) -> Tensor:
    """0 for the highest pixel of each map, ``(B, H, W)``."""
    flat = maps.flatten(1)
    shuffle = torch.randperm(flat.shape[1], generator=torch.Generator().manual_seed(0)).to(flat.device)
    order = shuffle[flat[:, shuffle].sort(stable=True, dim=1, descending=True).indices]
    counting = torch.arange(flat.shape[1], device=flat.device).expand_as(order)
    return torch.empty_like(order).scatter_(1, order, counting).view_as(maps)


def _check_scores(scores: Tensor, masked_scores: Tensor) -> None:
    if scores.shape != masked_scores.shape:
        raise ValueError(
            f"scores has shape {tuple(scores.shape)} and masked_scores {tuple(masked_scores.shape)}; give one each"
        )
