"""Does the score survive the mask? Average drop and increase in confidence, one value per sample."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from captum_fam.metrics.maps import Energy, find_empty, normalize_maps

LEAST_SCORE = 1e-6
"""The score up to which a measure relative to the score is undefined, because the score is too small to divide by."""


def masked_inputs(
    inputs: Tensor,
    maps: Tensor,
    mean: Sequence[float] | Tensor | None = None,
    std: Sequence[float] | Tensor | None = None,
    energy: Energy = "minmax",
) -> Tensor:
    """The images multiplied by their maps, X' = norm(up(L)) ∘ X, for average drop and increase in confidence.

    Args:
        inputs: inputs of the model, normalized by the mean and standard deviation of the data, ``(B, C, H, W)``.
        maps: ``(B, 1, h, w)`` or ``(B, h, w)``; interpolated to the size of the inputs here.
        mean: mean of each channel. With ``mean`` and ``std`` the raw pixels are masked and then normalized again, so
            that masked pixels turn black. With None the normalized inputs are masked, so that masked pixels turn to the
            mean color. Default: None.
        std: standard deviation of each channel. Default: None.
        energy: how a map becomes a mask, ``"minmax"`` or ``"positive"``; see :func:`normalize_maps`. Default:
            ``"minmax"``.

    Returns:
        ``(B, C, H, W)`` in the dtype of the inputs. All NaN for an :func:`empty <find_empty>` map and for a map with
        NaN or inf: such a map is no mask, and NaN keeps its score out of every mean.

    Raises:
        ValueError: if only one of ``mean`` and ``std`` is given, or the shapes do not fit.

    Example:
        >>> masked_inputs(torch.full((1, 3, 1, 2), 2.0), torch.tensor([[[1.0, 5.0]]]))[0, 0]
        tensor([[0., 2.]])
    """
    if inputs.dim() != 4 or len(inputs) != len(maps):
        raise ValueError(
            f"inputs has shape {tuple(inputs.shape)} and maps {tuple(maps.shape)}; "
            "pass images (B, C, H, W) and one map per image"
        )
    masks = normalize_maps(maps, (inputs.shape[2], inputs.shape[3]), energy)
    masks = masks.masked_fill(find_empty(maps, energy)[:, None, None], torch.nan)
    return apply_masks(inputs, masks[:, None], mean, std)


def apply_masks(
    inputs: Tensor,
    mask: Tensor,
    mean: Sequence[float] | Tensor | None = None,
    std: Sequence[float] | Tensor | None = None,
) -> Tensor:
    """The images multiplied by masks, such as the constant mask of a baseline; see :func:`masked_inputs`.

    Args:
        inputs: as in :func:`masked_inputs`, ``(B, C, H, W)``.
        mask: values in [0, 1], a tensor that broadcasts to the inputs.
        mean: as in :func:`masked_inputs`. Default: None.
        std: as in :func:`masked_inputs`. Default: None.

    Returns:
        ``(B, C, H, W)`` in the dtype of the inputs.

    Raises:
        ValueError: if only one of ``mean`` and ``std`` is given.

    Example:
        >>> apply_masks(torch.full((1, 1, 1, 2), 2.0), torch.tensor([0.5, 1.0]))[0, 0]
        tensor([[1., 2.]])
    """
    if mean is None and std is None:
        return (inputs * mask).to(inputs.dtype)
    if mean is None or std is None:
        raise ValueError("mean and std come together: pass both to mask raw pixels, or none to mask normalized pixels")
    # Raw pixels are std X + mean. The result X' solves mask (std X + mean) = std X' + mean.
    black = torch.as_tensor(mean).to(mask) / torch.as_tensor(std).to(mask)
    return (inputs * mask + (mask - 1) * black.view(-1, 1, 1)).to(inputs.dtype)


def average_drop(scores: Tensor, masked_scores: Tensor, eps: float = LEAST_SCORE) -> Tensor:
    """The relative drop max(0, s - s') / s of the score under the mask, Eq. 21 of the FAM paper (arXiv 2307.05017).

    Introduced by Chattopadhay et al., "Grad-CAM++" (WACV 2018), for class scores; here s is a similarity. The paper
    prints the mean in percent; this function returns shares. The measure favors maps that hide little: compare it with
    the average drop of a constant mask.

    Args:
        scores: s, the similarity of each query to its support, ``(B,)``.
        masked_scores: s', the similarity of the query masked by its map, ``(B,)``.
        eps: largest score s for which the relative drop is undefined. Default: 1e-6.

    Returns:
        ``(B,)``, 0 or more; NaN where s is ``eps`` or less, and where a score is NaN.

    Raises:
        ValueError: if the shapes differ.

    Example:
        >>> average_drop(torch.tensor([1.0, 0.5]), torch.tensor([0.25, 0.75]))
        tensor([0.7500, 0.0000])
    """
    _check_scores(scores, masked_scores)
    drop = (scores - masked_scores).clamp_min(0) / scores
    return drop.masked_fill(scores <= eps, torch.nan)


def increase_in_confidence(scores: Tensor, masked_scores: Tensor, eps: float = LEAST_SCORE) -> Tensor:
    """1 where the score rises under the mask, s < s', and 0 elsewhere; Eq. 22 of the FAM paper (arXiv 2307.05017).

    Introduced by Chattopadhay et al., "Grad-CAM++" (WACV 2018), for class scores; here s is a similarity.

    Args:
        scores: s, the similarity of each query to its support, ``(B,)``.
        masked_scores: s', the similarity of the query masked by its map, ``(B,)``.
        eps: largest score s for which the result is NaN, so that the mean is over the same samples as the mean of
            :func:`average_drop`; ``-math.inf`` keeps all samples. Default: 1e-6.

    Returns:
        ``(B,)``; NaN where s is ``eps`` or less, and where a score is NaN.

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


def _check_scores(scores: Tensor, masked_scores: Tensor) -> None:
    if scores.shape != masked_scores.shape:
        raise ValueError(
            f"scores has shape {tuple(scores.shape)} and masked_scores {tuple(masked_scores.shape)}; "
            "pass one score and one masked score per query"
        )
