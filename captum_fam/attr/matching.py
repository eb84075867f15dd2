"""Matching the positions of two activations: which part of a query looks like which part of a support image.

Functions of plain tensors, like :mod:`captum_fam.functional`. P is the number of positions of a query, Q that of a
support image.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from captum_fam import functional as F

# The largest block (B, P, Q) of cosines in memory: 2^24 values are 64 MiB in float32.
_BLOCK = 2**24


def descriptors(activation: Tensor, window: int = 3) -> Tensor:
    """A unit vector for every position: the mean of the activation in a window around the position, scaled.

    Args:
        activation: ``(B, N, *spatial)``.
        window: side of the window in positions, odd; 1 takes each position alone. Outside the activation, the values of
            the border are repeated. Default: 3.

    Returns:
        The descriptors, ``(B, P, N)``, float32 or float64.

    Example:
        >>> descriptors(torch.tensor([[[3.0, 0.0], [4.0, 2.0]]]), window=1)
        tensor([[[0.6000, 0.8000],
                 [0.0000, 1.0000]]])
    """
    smooth = F.widen(activation)
    for dim in range(2, activation.dim()):
        reach = window // 2
        size = smooth.shape[dim]
        index = torch.arange(-reach, size + reach, device=smooth.device).clamp(0, size - 1)
        smooth = smooth.index_select(dim, index).unfold(dim, window, 1).mean(-1)
    return F.unit(smooth.flatten(2).transpose(1, 2))


def soft_best_match(query: Tensor, support: Tensor, sharpness: float = 20.0) -> Tensor:
    """How well each position of a query is matched somewhere in each support image.

    The result is ``log(mean_q(exp(r cos(a_p, b_q)))) / r``, which goes to the best cosine for large r and to the mean
    cosine for small r.

    Args:
        query: descriptors ``(B, P, N)``.
        support: descriptors ``(K, Q, N)``, shared by the batch.
        sharpness: r > 0. Default: 20.

    Returns:
        The soft maximum of the cosines, ``(B, P, K)``.

    Example:
        >>> query, support = torch.tensor([[[1.0, 0.0]]]), torch.tensor([[[1.0, 0.0], [0.0, 1.0]]])
        >>> soft_best_match(query, support, 1000.0)
        tensor([[[0.9993]]])
    """
    matches = query.new_empty(*query.shape[:2], len(support))
    rows = max(1, _BLOCK // (query.shape[1] * support.shape[1]))
    for k, image in enumerate(support):
        for start in range(0, len(query), rows):
            part = slice(start, start + rows)
            cosines = (query[part] @ image.T).clamp_(-1, 1)
            matches[part, :, k] = (torch.logsumexp(sharpness * cosines, -1) - math.log(len(image))) / sharpness
    return matches


def best_match(query: Tensor, support: Tensor) -> tuple[Tensor, Tensor]:
    """The best single partner of each position of a query in each support image.

    Args:
        query: descriptors ``(B, P, N)``.
        support: descriptors ``(K, Q, N)``.

    Returns:
        The cosine with the partner, and the position of the partner in the support image as one number in [0, Q), both
        ``(B, P, K)``.

    Example:
        >>> query, support = torch.tensor([[[1.0, 0.0]]]), torch.tensor([[[0.0, 1.0], [1.0, 0.0]]])
        >>> best_match(query, support)
        (tensor([[[1.]]]), tensor([[[1]]]))
    """
    best = [(query[i] @ support.flatten(0, 1).T).unflatten(1, support.shape[:2]).max(-1) for i in range(len(query))]
    cosines, positions = (torch.stack(values) for values in zip(*best, strict=True))
    return cosines.clamp_(-1, 1), positions
