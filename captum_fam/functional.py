"""The Feature Activation Map as equations on plain tensors.

Equation numbers are those of Liao, Gao and Zhang, "Feature Activation Map" (arXiv 2307.05017), section IV.
Shapes: B queries, K supports, C classes, N channels, J embedding features, ``*spatial`` one to three
spatial dimensions. The support is ``(K, J)`` when all queries of the batch share their supports, and ``(B, K, J)``
when every query has supports of its own. No function expands a shared ``(K, J)`` support to ``(B, K, J)``.
"""

from __future__ import annotations

import operator
from typing import Any

import torch
from torch import Tensor

EPSILON = 1e-6
r"""Lower bound of \|s_k\| in Eq. 15, relative to its largest possible value (1 for the cosine); also the lower bound of
the activations that GeM pools."""


def widen(tensor: Tensor) -> Tensor:
    """Convert half precision to float32, the least precision in which sums are computed; keep float32 and float64."""
    return tensor.float() if tensor.dtype in (torch.float16, torch.bfloat16) else tensor


def common_precision(query: Tensor, support: Tensor) -> tuple[Tensor, Tensor]:
    """Convert both tensors to the wider of their two dtypes, and at least to float32."""
    dtype = torch.promote_types(widen(query).dtype, widen(support).dtype)
    return query.to(dtype), support.to(dtype)


def is_finite(tensor: Tensor) -> bool:
    """Whether a tensor holds neither NaN nor inf."""
    # A finite sum proves that all values are finite, at a fraction of the cost of a mask. A sum that is not finite
    # proves nothing, because finite values can overflow: then the values are looked at one by one.
    return bool(widen(tensor).sum().isfinite()) or bool(tensor.isfinite().all())


# Rounding: which sums are zero, and which scores are equal, up to rounding errors


def rounding(count: float | Tensor, dtype: torch.dtype) -> float | Tensor:
    """Rounding error of a sum, relative to the sum of its terms' magnitudes: ``(4 + sqrt(count) / 2) * eps``.

    The errors of the single additions have both signs, so the error of the sum grows with the square root of the
    count: Higham and Mary, "A New Approach to Probabilistic Rounding Error Analysis", SIAM Journal on Scientific
    Computing 41 (2019). The constant 4 covers the errors of the factors of each term. The result is about four times
    the largest error that products of random matrices show.

    Args:
        count: the number of terms; a tensor of counts gives one error per count.
        dtype: the floating-point type of the sum.

    Example:
        >>> rounding(64, torch.float64) / torch.finfo(torch.float64).eps
        8.0
    """
    return (4 + count**0.5 / 2) * torch.finfo(dtype).eps


def rounding_of_supports(count: float | Tensor, dtype: torch.dtype) -> float | Tensor:
    """Rounding error of a weighted sum of ``count`` supports: eight times :func:`rounding`.

    The factor covers two facts: the embeddings of the supports are themselves results of long sums, and supports may be
    copies of one image, whose errors all have the same sign.
    """
    return 8 * rounding(count, dtype)


def first_largest(scores: Tensor, noise: Tensor) -> Tensor:
    """The class with the largest score in each row; among scores that are equal up to rounding, the first class.

    Args:
        scores: ``(B, C)``.
        noise: the largest rounding error that each score can have, ``(B, C)``.

    Returns:
        Class indices, ``(B,)``.

    Example:
        >>> first_largest(torch.tensor([[0.2, 0.5, 0.5000001]]), torch.full((1, 3), 1e-6))
        tensor([1])
    """
    best, at = scores.max(1, keepdim=True)
    return (scores >= best - noise - noise.gather(1, at)).int().argmax(1)


def zero_within(values: Tensor, noise: Tensor) -> Tensor:
    """Set values to zero that are no larger than their rounding error; gradients stay as they are.

    Args:
        values: any shape.
        noise: the largest rounding error that each value can have, same shape.

    Example:
        >>> zero_within(torch.tensor([3e-8, -0.5]), torch.tensor([1e-6, 1e-6]))
        tensor([ 0.0000, -0.5000])
    """
    return values - values.detach().masked_fill(values.abs() > noise, 0)


def moderate(rows: Tensor) -> Tensor:
    """Scale each row to a largest magnitude between 1/2 and 1, so that its squares neither over- nor underflow.

    The scale factors are powers of two, so that scaling rounds nothing; gradients treat them as constants. A row of
    zeros stays as it is.
    """
    return rows * _moderation(rows)


def _moderation(rows: Tensor) -> Tensor:
    """The power of two that :func:`moderate` multiplies each row with, ``(..., 1)``."""
    peak = rows.detach().abs().amax(-1, keepdim=True)
    tiny = torch.finfo(rows.dtype).tiny
    # Mantissa divided by value is a power of two, exactly, within the range of normal numbers.
    factor = (torch.frexp(peak).mantissa / peak).clamp(tiny, 1 / tiny)
    return torch.where(peak == 0, 1.0, factor)


# Pooling, section IV-B: Z = p(f(X))


def global_average_pool(activation: Tensor) -> Tensor:
    """GAP: ``(B, N, *spatial)`` -> ``(B, N)``, the mean over all positions."""
    return activation.flatten(2).mean(-1)


def global_max_pool(activation: Tensor) -> Tensor:
    """GMP: ``(B, N, *spatial)`` -> ``(B, N)``, the largest value over all positions."""
    return activation.flatten(2).amax(-1)


def log_sum_exp_pool(activation: Tensor, sharpness: float = 10.0) -> Tensor:
    """LSE: ``(B, N, *spatial)`` -> ``(B, N)``, ``log(mean(exp(r A))) / r`` with r the sharpness.

    The limit is GAP for r to 0, and GMP for r to infinity. Pinheiro and Collobert, CVPR 2015.
    """
    positions = widen(activation).flatten(2)
    count = torch.full((), positions.shape[-1], dtype=positions.dtype, device=positions.device)
    pooled = ((sharpness * positions).logsumexp(-1) - count.log()) / sharpness
    return pooled.to(activation.dtype)


def generalized_mean_pool(activation: Tensor, exponent: float = 3.0) -> Tensor:
    """GeM: ``(B, N, *spatial)`` -> ``(B, N)``, ``mean(A^p)^(1/p)`` of activations that are at least ``EPSILON``.

    Radenovic, Tolias and Chum, TPAMI 2019.
    """
    positions = widen(activation).flatten(2).clamp_min(EPSILON)
    # Powers of the values themselves can underflow: 1e-6 ** 8 is zero in float32, and the root of zero has no gradient.
    # So the values are divided by their largest value first. This scale cancels, so that it needs no gradient.
    scale = positions.detach().amax(-1, keepdim=True)
    pooled = scale.squeeze(-1) * (positions / scale).pow(exponent).mean(-1).pow(1 / exponent)
    return pooled.to(activation.dtype)


# Vectors of queries and supports; supports are shared by the batch, or each query has its own


def pairwise_dot(query: Tensor, support: Tensor) -> Tensor:
    """Dot product of each query ``(B, J)`` with each of its supports: ``(B, K)``."""
    if support.dim() == 2:
        return query @ support.T
    return torch.einsum("bj,bkj->bk", query, support)


def combine_supports(support_weights: Tensor, support: Tensor) -> Tensor:
    """Each query's weighted sum of its supports: weights ``(B, K)`` -> ``(B, J)``."""
    if support.dim() == 2:
        return support_weights @ support
    return torch.einsum("bk,bkj->bj", support_weights, support)


def each_support(support: Tensor) -> tuple[Tensor, ...]:
    """The supports as K tensors: each ``(J,)`` for shared supports, ``(B, J)`` for supports per query."""
    return support.unbind(-2)


def unit(vectors: Tensor) -> Tensor:
    """Scale each row to length one, also rows whose squares over- or underflow; a row of zeros stays zero."""
    scaled = moderate(vectors)
    length = scaled.norm(dim=-1, keepdim=True)
    return scaled / torch.where(length == 0, 1.0, length)


def lengths(vectors: Tensor) -> Tensor:
    """Norm of each row, also of rows whose squares over- or underflow: ``(..., J)`` -> ``(...,)``."""
    plain = vectors.norm(dim=-1)
    if not _is_extreme(plain).any():
        return plain
    factor = _moderation(vectors)
    return ((vectors * factor).norm(dim=-1) / factor.squeeze(-1)).clamp_max(torch.finfo(plain.dtype).max)


def products_of_lengths(query: Tensor, support: Tensor) -> Tensor:
    """‖Z‖‖t‖ for each query and each of its supports, ``(B, K)``: an upper bound of the sum of ``abs(z_j t_j)``."""
    return lengths(query).unsqueeze(1) * lengths(support)


def directed(support: Tensor) -> tuple[Tensor, Tensor]:
    """Supports of which only the directions matter, and the norms to divide by.

    A product with the supports is divided by the norms afterwards, because unit vectors would need a copy of all
    supports. Only supports whose squares over- or underflow are rescaled here.

    Returns:
        The supports in their shape, and their norms, ``(K,)`` or ``(B, K)``; the norm of a zero vector is given as 1.
    """
    length = support.norm(dim=-1)
    extreme = _is_extreme(length)
    if extreme.any():
        support = torch.where(extreme.unsqueeze(-1), moderate(support), support)
        length = support.norm(dim=-1)
    return support, torch.where(length == 0, 1.0, length)


def _is_extreme(length: Tensor) -> Tensor:
    """Which norms come from squares that have overflowed or lost digits; true for zero vectors too."""
    limits = torch.finfo(length.dtype)
    return (length < (limits.tiny / limits.eps) ** 0.5) | length.isinf()


# Similarity and its contributions, section IV-B and IV-C


def class_similarity(similarities: Tensor, class_weights: Tensor) -> Tensor:
    """Eq. 11, the mean similarity to the supports of each class.

    Args:
        similarities: s(Z, Z_k), ``(B, K)``.
        class_weights: ``(C, K)``, row c holds 1 / K_c at the supports of class c and 0 elsewhere.

    Returns:
        S, ``(B, C)``.

    Example:
        >>> similarities, class_weights = torch.tensor([[0.2, 0.6, 0.9]]), torch.tensor([[0.5, 0.5, 0.0], [0, 0, 1]])
        >>> class_similarity(similarities, class_weights)
        tensor([[0.4000, 0.9000]])
    """
    return similarities @ class_weights.T


def cosine_similarity(query: Tensor, support: Tensor) -> Tensor:
    """Eq. 14, the cosine of each query ``(B, J)`` with each of its supports: ``(B, K)``.

    The cosine with a zero vector is 0. All values are in [-1, 1], also with rounding.

    Example:
        >>> cosine_similarity(torch.tensor([[3.0, 4.0]]), torch.tensor([[1.0, 0.0], [0.0, 2.0]]))
        tensor([[0.6000, 0.8000]])
    """
    support, length = directed(support)
    return within_one(pairwise_dot(unit(query), support) / length)


def within_one(cosines: Tensor) -> Tensor:
    """Clamp cosines to [-1, 1], which rounding may have left; gradients stay as they are."""
    return cosines + (cosines.clamp(-1, 1) - cosines).detach()


def support_shares(support_weights: Tensor, similarities: Tensor, bound: Tensor | None = None) -> Tensor:
    r"""The factor 1 / \|s_k\| of Eq. 15: ``(B, K)`` weights -> ``(B, K)`` weights.

    The factor turns contributions to s_k into shares of s_k, so that the least similar support has the largest weight.
    \|s_k\| has a lower bound, so that the weight of a support orthogonal to the query is large but finite.

    Args:
        support_weights: ``(B, K)``.
        similarities: s_k, ``(B, K)``.
        bound: the largest possible \|s_k\| for vectors of these lengths, ``(B, K)``. ``EPSILON`` is relative to the
            bound, so that shares do not depend on the scale of the embeddings. Default: None, the bound 1 of the
            cosine.

    Example:
        >>> support_shares(torch.tensor([[0.5, 0.5]]), torch.tensor([[0.5, -0.25]]))
        tensor([[1., 2.]])
    """
    return support_weights / _floored(similarities, bound)


def shares_rounding(similarities: Tensor, features: int, bound: Tensor | None = None) -> Tensor:
    r"""Relative error of 1 / \|s_k\| in :func:`support_shares`, at most 1/2: ``(B, K)``.

    s_k is a sum over the features. Its rounding error is relative to the magnitudes of the terms, which may have
    cancelled in the sum. The result is at most 1/2, because the factor of a single support is the same for all features
    and so cannot change its map.

    Args:
        similarities: s_k, ``(B, K)``.
        features: the number of features, J.
        bound: as for :func:`support_shares`.
    """
    error = rounding(features, similarities.dtype) * _bound(similarities, bound)
    return (error / _floored(similarities, bound)).clamp_max(0.5)


def _floored(similarities: Tensor, bound: Tensor | None) -> Tensor:
    r"""\|s_k\| with its lower bound, ``(B, K)``."""
    floored = torch.maximum(similarities.abs(), EPSILON * _bound(similarities, bound))
    # The bound itself is zero for zero vectors, whose contributions are zero whatever the factor is.
    return torch.where(floored == 0, 1.0, floored)


def _bound(similarities: Tensor, bound: Tensor | None) -> Tensor:
    return similarities.new_ones(()) if bound is None else bound


def cosine_contributions(query: Tensor, support: Tensor, support_weights: Tensor) -> Tensor:
    """Eq. 15, the contribution of each feature to the weighted sum of cosines, in one matrix product.

    Args:
        query: Z, ``(B, J)``.
        support: Z_k, ``(K, J)`` or ``(B, K, J)``.
        support_weights: ``(B, K)``. The weights 1 / K give contributions that sum to S of Eq. 11;
            :func:`support_shares` of these weights give Eq. 15 as printed.

    Returns:
        c, ``(B, J)``, with ``c.sum(1) == (support_weights * cosine_similarity(query, support)).sum(1)``.

    Example:
        >>> cosine_contributions(torch.tensor([[3.0, 4.0]]), torch.eye(2), torch.tensor([[0.5, 0.5]]))
        tensor([[0.3000, 0.4000]])
    """
    return unit(query) * combine_unit_supports(support_weights, support)


def combine_unit_supports(support_weights: Tensor, support: Tensor) -> Tensor:
    """Each query's weighted sum of its supports scaled to length one: weights ``(B, K)`` -> ``(B, J)``.

    Zero vectors add nothing.
    """
    support, length = directed(support)
    return combine_supports(support_weights / length, support)


# Contribution weights transformation, section IV-D


def transform_contributions(contributions: Tensor, weight: Tensor) -> Tensor:
    """Eq. 18, C = W x C': contributions ``(B, J)`` on the embedding -> ``(B, N)`` on the channels.

    Args:
        contributions: C', ``(B, J)``.
        weight: the weight of the ``torch.nn.Linear`` head, ``(J, N)``; the paper's W is its transpose.
            The bias of the head belongs to no channel and does not appear in the equation.

    Returns:
        C, ``(B, N)``.

    Example:
        >>> transform_contributions(torch.tensor([[1.0, 2.0]]), torch.tensor([[1.0, 0.0, 3.0], [0.0, 1.0, 1.0]]))
        tensor([[1., 2., 5.]])
    """
    return contributions @ weight


# Importance coefficients and the map, section IV-B


def minmax(contributions: Tensor) -> Tensor:
    """Eq. 12, contributions ``(B, N)`` scaled to [0, 1] over the channels of each sample.

    If the contributions of all channels are equal up to rounding, all get the weight one.

    Example:
        >>> minmax(torch.tensor([[-1.0, 0.0, 3.0], [2.0, 2.0, 2.0]]))
        tensor([[0.0000, 0.2500, 1.0000],
                [1.0000, 1.0000, 1.0000]])
    """
    scaled = moderate(contributions)
    low, span, constant = _range(scaled)
    return torch.where(constant, 1.0, (scaled - low) / torch.where(constant, 1.0, span))


def rectify(contributions: Tensor) -> Tensor:
    """An alternative to Eq. 12: negative contributions ``(B, N)`` become zero, and the largest becomes one.

    A row without positive contributions becomes zero.

    Example:
        >>> rectify(torch.tensor([[-4.0, 1.0, 2.0]]))
        tensor([[0.0000, 0.5000, 1.0000]])
    """
    return maxabs(contributions.clamp_min(0))


def maxabs(contributions: Tensor) -> Tensor:
    """An alternative to Eq. 12: contributions ``(B, N)`` divided by their largest magnitude, so that signs remain.

    A row of zeros stays zero.

    Example:
        >>> maxabs(torch.tensor([[-4.0, 1.0, 2.0]]))
        tensor([[-1.0000,  0.2500,  0.5000]])
    """
    largest = contributions.abs().amax(1, keepdim=True)
    return contributions / torch.where(largest == 0, 1.0, largest)


def _range(contributions: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Smallest contribution, span to the largest, and whether the span is only rounding: each ``(B, 1)``."""
    low, high = contributions.aminmax(dim=1, keepdim=True)
    # A matrix product may add up its terms in another order for each column, so that equal contributions differ by
    # rounding. Scaled to [0, 1], these differences would look like a map.
    noise = 32 * torch.finfo(contributions.dtype).eps * torch.maximum(low.abs(), high.abs())
    return low, high - low, high - low <= noise


def activation_map(activation: Tensor, weights: Tensor) -> Tensor:
    """Eq. 13, the sum of the activation maps weighted by channel.

    Args:
        activation: A, ``(B, N, *spatial)``.
        weights: the importance coefficients, ``(B, N)``.

    Returns:
        L, ``(B, 1, *spatial)``, in float32 where the activation is in half precision.

    Example:
        >>> activation = torch.tensor([[[1.0, 0.0], [2.0, 4.0]]])  # one sample, two channels, two positions
        >>> activation_map(activation, torch.tensor([[1.0, 0.5]]))
        tensor([[[2., 2.]]])
    """
    positions = widen(activation).flatten(2)
    summed = torch.bmm(weights.to(positions.dtype).unsqueeze(1), positions)
    return summed.reshape(activation.shape[0], 1, *activation.shape[2:])


def support_blind_share(activation: Tensor, contributions: Tensor) -> Tensor:
    """Share of a min-max weighted map's energy that does not depend on the support.

    Eq. 12 and 13 give L = a * sum_n C_n A^n + b * sum_n A^n with a = 1 / (max C - min C) and b = -a * min C.
    The second sum is the same for every support. The share is the absolute energy of the second sum, divided by the
    absolute energies of both sums together.

    Args:
        activation: A, ``(B, N, *spatial)``.
        contributions: C, ``(B, N)``.

    Returns:
        ``(B,)`` in [0, 1].

    Example:
        >>> support_blind_share(torch.rand(1, 2, 3, 3), torch.tensor([[0.0, 1.0]]))  # the smallest contribution is 0
        tensor([0.])
    """
    low, _, constant = (statistic.squeeze(1) for statistic in _range(contributions))
    both = torch.stack([torch.ones_like(contributions), contributions], 1)
    positions = widen(activation).flatten(2)
    blind, aware = torch.bmm(both.to(positions.dtype), positions).abs().sum(2).unbind(1)
    # A constant C gives all channels the weight one: the map is the second sum alone.
    blind = torch.where(constant, 1.0, blind * low.abs())
    aware = torch.where(constant, 0.0, aware)
    return blind / (blind + aware).clamp_min(torch.finfo(blind.dtype).tiny)


# Smoothing: this package's addition to the paper


def smooth_maps(maps: Tensor, window: int) -> Tensor:
    r"""A mean filter that keeps the sum of every map.

    Each position spreads its value equally over those positions of its window that lie in the map:
    :math:`M'_q = \sum_{p:\, q \in W(p)} M_p / |W(p)|`. The window W(p) has the side ``window`` along every axis and p
    in its middle; at the border it is cut. Nothing leaves the map, so that an account of a score stays as it is. The
    price: a constant map is not constant afterwards. Positions at the border get less, and those next to them more.

    Args:
        maps: ``(B, N, *spatial)``.
        window: the side of the window in positions, odd; 1 leaves the maps as they are. A window may be larger than
            the map.

    Returns:
        The maps in their shape; in float32 where they are in half precision.

    Raises:
        ValueError: for a window that is not an odd whole number of at least 1, or maps without a spatial dimension.

    Example:
        >>> smooth_maps(torch.tensor([[[0.0, 6.0, 0.0, 0.0]], [[6.0, 0.0, 0.0, 0.0]]]), 3)
        tensor([[[2., 2., 2., 0.]],
        <BLANKLINE>
                [[3., 3., 0., 0.]]])
    """
    window = check_window("window", window)
    if maps.dim() < 3:
        raise ValueError(f"maps must have the shape (B, N, *spatial), got {tuple(maps.shape)}")
    maps = widen(maps)
    # The window is a product of intervals, and so is |W(p)| of their lengths: the axes are filtered one by one.
    for axis, length in enumerate(maps.shape[2:], start=2):
        reach = min(window // 2, length - 1)
        if reach:
            maps = _spread(maps.movedim(axis, -1), reach).movedim(-1, axis)
    return maps


def check_window(name: str, window: Any) -> int:
    """Check the side of a window.

    Args:
        name: the name of the argument, for the message.
        window: the side, a whole number of Python, NumPy or PyTorch.

    Returns:
        The side as a number of Python.

    Raises:
        ValueError: for anything but an odd whole number of at least 1.

    Example:
        >>> check_window("smooth", torch.tensor(5))
        5
    """
    try:
        side = 0 if isinstance(window, bool) else operator.index(window)
    except TypeError:  # no whole number
        side = 0
    if side < 1 or side % 2 == 0:
        raise ValueError(f"{name} must be an odd whole number of at least 1, got {window!r}")
    return side


def _spread(values: Tensor, reach: int) -> Tensor:
    """Spread each value equally over the positions of the last axis that are at most ``reach`` away."""
    length = values.shape[-1]
    position = torch.arange(length, device=values.device)
    counts = (position + reach).clamp_max(length - 1) - (position - reach).clamp_min(0) + 1
    rows = (values / counts).reshape(-1, 1, length)
    # The mean over a window that is filled up with zeros, times the side of the window, is the sum.
    sums = torch.nn.functional.avg_pool1d(rows, 2 * reach + 1, stride=1, padding=reach) * (2 * reach + 1)
    return sums.view(values.shape)
