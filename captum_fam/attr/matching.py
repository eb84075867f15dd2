"""Matching the positions of two activations: which part of the query looks like which part of a support.

Plain tensors, as in :mod:`captum_fam.functional`. P and Q are the numbers of positions of query and support.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from captum_fam import functional as F

# Bounds the (B, P, Q) block of similarities that is held at a time: 2^24 values are 64 MiB in float32.
_BLOCK = 2**24


def descriptors(activation: Tensor, window: int = 3) -> Tensor:
    """Unit vectors of every position, each the mean of the activation in a window around it.

    Args:
        activation: ``(B, N, *spatial)``.
        window: side of the window in positions, odd; 1 takes each position alone. The border is repeated.

    Returns:
        ``(B, P, N)``, float32 at least.
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

    ``log(mean_q(exp(r cos(a_p, b_q)))) / r``: towards the best cosine as r grows, the mean cosine as r falls.

    Args:
        query: descriptors ``(B, P, N)``.
        support: descriptors ``(K, Q, N)`` shared by the batch.
        sharpness: r > 0.

    Returns:
        ``(B, P, K)``.
    """
    matches = query.new_empty(*query.shape[:2], len(support))
    rows = max(1, _BLOCK // (query.shape[1] * support.shape[1]))
    for k, one in enumerate(support):
        for start in range(0, len(query), rows):
            part = slice(start, start + rows)
            cosines = (query[part] @ one.T).clamp_(-1, 1)
            matches[part, :, k] = (torch.logsumexp(sharpness * cosines, -1) - math.log(len(one))) / sharpness
    return matches


def best_match(query: Tensor, support: Tensor) -> tuple[Tensor, Tensor]:
    """The best single partner of each position of a query in each support image.

    Args:
        query: descriptors ``(B, P, N)``.
        support: descriptors ``(K, Q, N)``.

    Returns:
        Its cosine and its flat position in the support, both ``(B, P, K)``.
    """
    best = [(query[i] @ support.flatten(0, 1).T).unflatten(1, support.shape[:2]).max(-1) for i in range(len(query))]
    return torch.stack([one.values for one in best]).clamp_(-1, 1), torch.stack([one.indices for one in best])
