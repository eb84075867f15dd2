"""Does the score survive the mask? Average drop and increase in confidence, one value per sample."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from captum_fam.metrics.maps import Energy, find_empty, normalize_maps

LEAST_SCORE = 1e-6
"""A score of at most this is too small to be divided by: measures relative to the score are undefined there."""


def masked_inputs(
    inputs: Tensor,
    maps: Tensor,
    mean: Sequence[float] | Tensor | None = None,
    std: Sequence[float] | Tensor | None = None,
    energy: Energy = "minmax",
) -> Tensor:
    """X' = norm(up(L)) ∘ X: the images multiplied by their maps, for average drop and increase in confidence.

    Args:
        inputs: what the model takes, normalized by the mean and standard deviation of the data, ``(B, C, H, W)``.
        maps: ``(B, 1, h, w)`` or ``(B, h, w)``; interpolated to the size of the inputs here.
        mean: of each channel. With ``mean`` and ``std`` the raw pixels are masked and then normalized anew, so that
            masked pixels turn black. With None (default) the normalized tensor is masked, and masked pixels turn to
            the mean color.
        std: of each channel; default None.
        energy: how a map becomes a mask, ``"minmax"`` (default) or ``"positive"``; see :func:`normalize_maps`.

    Returns:
        ``(B, C, H, W)`` in the type of the inputs. All NaN for an :func:`empty <find_empty>` map and for a map with
        NaN or inf: such a map hides nothing in particular, and NaN keeps its score out of every mean.

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
    """:func:`masked_inputs` with masks that exist already, such as the constant mask of a baseline.

    Args:
        inputs: as in :func:`masked_inputs`, ``(B, C, H, W)``.
        mask: in [0, 1], a tensor that broadcasts to the inputs.
        mean: as in :func:`masked_inputs`; default None.
        std: as in :func:`masked_inputs`; default None.

    Returns:
        ``(B, C, H, W)`` in the type of the inputs.

    Raises:
        ValueError: if only one of ``mean`` and ``std`` is given.

    Example:
        >>> apply_masks(torch.full((1, 1, 1, 2), 2.0), torch.tensor([0.5, 1.0]))[0, 0]
        tensor([[1., 2.]])
    """
    if mean is None and std is None:
        return (inputs * mask).to(inputs.dtype)
    if mean is None or std is None:
        raise ValueError("mean and std come together: pass both to mask raw pixels, none to mask the normalized ones")
    # Pixels are std X + mean. Solve mask (std X + mean) = std X' + mean for X'.
    black = torch.as_tensor(mean).to(mask) / torch.as_tensor(std).to(mask)
    return (inputs * mask + (mask - 1) * black.view(-1, 1, 1)).to(inputs.dtype)


def average_drop(scores: Tensor, masked_scores: Tensor, eps: float = LEAST_SCORE) -> Tensor:
    """Eq. 21 of the FAM paper (arXiv 2307.05017), max(0, s - s') / s per sample.

    Introduced by Chattopadhay et al., "Grad-CAM++" (WACV 2018) for class scores; here s is a similarity. The paper
    prints the mean in percent, this is a share. The measure favors maps that hide little: print it beside the average
    drop of a constant mask.

    Args:
        scores: s, the similarity of each query to its support, ``(B,)``.
        masked_scores: s', the similarity of the query masked by its map, ``(B,)``.
        eps: a score s of at most ``eps`` has no relative drop; default 1e-6.

    Returns:
        ``(B,)``, 0 or more; NaN where s is ``eps`` or less and where a score is NaN.

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
    """Eq. 22 of the FAM paper (arXiv 2307.05017), 1 where s < s' and 0 elsewhere.

    Introduced by Chattopadhay et al., "Grad-CAM++" (WACV 2018) for class scores; here s is a similarity.

    Args:
        scores: s, the similarity of each query to its support, ``(B,)``.
        masked_scores: s', the similarity of the query masked by its map, ``(B,)``.
        eps: a score s of at most ``eps`` (default 1e-6) is left out, so that the mean is over the same samples as
            that of :func:`average_drop`; ``-math.inf`` leaves none out.

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


def _check_scores(scores: Tensor, masked_scores: Tensor) -> None:
    if scores.shape != masked_scores.shape:
        raise ValueError(
            f"scores has shape {tuple(scores.shape)} and masked_scores {tuple(masked_scores.shape)}; pass one each"
        )
