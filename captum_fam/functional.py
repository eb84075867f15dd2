"""The Feature Activation Map as equations on plain tensors.

Equation numbers are those of Liao, Gao and Zhang, "Feature Activation Map" (arXiv 2307.05017), section IV.
Shapes: B queries, K supports, C classes, N channels, J embedding features, ``*spatial`` one to three
spatial dimensions. A support is ``(K, J)`` when the whole batch shares it and ``(B, K, J)`` when every
query has its own; nothing here builds a ``(B, K, J)`` tensor from a shared one.
"""

from __future__ import annotations

import torch
from torch import Tensor

EPSILON = 1e-6
r"""Lower bound of \|s_k\| in Eq. 15, relative to the most that it can be (1 for the cosine), and of what GeM pools."""


def widen(tensor: Tensor) -> Tensor:
    """Half precision becomes float32, in which all sums are kept; float32 and float64 stay as they are."""
    return tensor.float() if tensor.dtype in (torch.float16, torch.bfloat16) else tensor


def common_precision(query: Tensor, support: Tensor) -> tuple[Tensor, Tensor]:
    """Both tensors in the wider of their types, float32 at least."""
    dtype = torch.promote_types(widen(query).dtype, widen(support).dtype)
    return query.to(dtype), support.to(dtype)


def is_finite(tensor: Tensor) -> bool:
    """Whether a tensor holds neither NaN nor inf."""
    # A finite sum is proof and costs a fraction of a mask of all values; an overflowing one proves nothing.
    return bool(widen(tensor).sum().isfinite()) or bool(tensor.isfinite().all())


# Rounding: what a sum cannot tell from zero, and what it cannot tell apart


def rounding(count: float | Tensor, dtype: torch.dtype) -> float | Tensor:
    """Error of a sum of ``count`` terms, relative to the sum of their magnitudes: ``(4 + sqrt(count) / 2) * eps``.

    A tensor of counts gives the errors of as many sums.

    The errors of single additions point both ways, so that they grow with the root of the count: Higham and Mary, "A
    New Approach to Probabilistic Rounding Error Analysis", SIAM Journal on Scientific Computing 41 (2019). The result
    is about four times the largest error of products of random matrices; the four units are those of the factors.
    """
    return (4 + count**0.5 / 2) * torch.finfo(dtype).eps


def rounding_of_supports(count: float | Tensor, dtype: torch.dtype) -> float | Tensor:
    """:func:`rounding` of a weighted sum of ``count`` supports, eight times that of other terms.

    Supports may be copies of one image, whose errors all point the same way, and their embeddings are themselves the
    ends of long sums.
    """
    return 8 * rounding(count, dtype)


def first_largest(scores: Tensor, noise: Tensor) -> Tensor:
    """The class of the largest score of each row, the first of those that only rounding sets apart.

    Args:
        scores: ``(B, C)``.
        noise: how far rounding can have moved each score, ``(B, C)``.

    Returns:
        Class indices, ``(B,)``.

    Example:
        >>> first_largest(torch.tensor([[0.2, 0.5, 0.5000001]]), torch.full((1, 3), 1e-6))
        tensor([1])
    """
    best, at = scores.max(1, keepdim=True)
    return (scores >= best - noise - noise.gather(1, at)).int().argmax(1)


def zero_within(values: Tensor, noise: Tensor) -> Tensor:
    """Values that are only rounding become zero; their gradient stays what it is.

    Example:
        >>> zero_within(torch.tensor([3e-8, -0.5]), torch.tensor([1e-6, 1e-6]))
        tensor([ 0.0000, -0.5000])
    """
    return values - values.detach().masked_fill(values.abs() > noise, 0)


def moderate(rows: Tensor) -> Tensor:
    """Rows scaled to a largest magnitude of 1/2 to 1, whose squares and differences are in range.

    The factors are powers of two, so that nothing is rounded, and constants for the gradient. A row of zeros stays.
    """
    return rows * _moderation(rows)


def _moderation(rows: Tensor) -> Tensor:
    peak = rows.detach().abs().amax(-1, keepdim=True)
    tiny = torch.finfo(rows.dtype).tiny
    # Mantissa over value is a power of two, and exact within the range of normal numbers.
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

    Between GAP (r to 0) and GMP (r to infinity); Pinheiro and Collobert, CVPR 2015.
    """
    positions = widen(activation).flatten(2)
    count = torch.full((), positions.shape[-1], dtype=positions.dtype, device=positions.device)
    pooled = ((sharpness * positions).logsumexp(-1) - count.log()) / sharpness
    return pooled.to(activation.dtype)


def generalized_mean_pool(activation: Tensor, exponent: float = 3.0) -> Tensor:
    """GeM: ``(B, N, *spatial)`` -> ``(B, N)``, ``mean(A^p)^(1/p)`` of activations cut at ``EPSILON``.

    Radenovic, Tolias and Chum, TPAMI 2019.
    """
    positions = widen(activation).flatten(2).clamp_min(EPSILON)
    # Powers of the values themselves leave the range of float32 (1e-6^8 is zero in it, and its root has no gradient).
    # The scale cancels, so that its own gradient is zero.
    scale = positions.detach().amax(-1, keepdim=True)
    pooled = scale.squeeze(-1) * (positions / scale).pow(exponent).mean(-1).pow(1 / exponent)
    return pooled.to(activation.dtype)


# A support, shared by the batch or one per query


def pairwise_dot(query: Tensor, support: Tensor) -> Tensor:
    """Dot product of every query ``(B, J)`` with its supports: ``(B, K)``."""
    if support.dim() == 2:
        return query @ support.T
    return torch.einsum("bj,bkj->bk", query, support)


def combine_supports(support_weights: Tensor, support: Tensor) -> Tensor:
    """Each query's weighted sum of its supports: weights ``(B, K)`` -> ``(B, J)``."""
    if support.dim() == 2:
        return support_weights @ support
    return torch.einsum("bk,bkj->bj", support_weights, support)


def each_support(support: Tensor) -> tuple[Tensor, ...]:
    """The supports one by one: K tensors ``(J,)`` of a shared support, ``(B, J)`` where each query has its own."""
    return support.unbind(-2)


def unit(vectors: Tensor) -> Tensor:
    """Rows of length one, whatever their length was; a zero row stays zero."""
    scaled = moderate(vectors)
    length = scaled.norm(dim=-1, keepdim=True)
    return scaled / torch.where(length == 0, 1.0, length)


def lengths(vectors: Tensor) -> Tensor:
    """Norm of each row, also where its square is out of range: ``(..., J)`` -> ``(...,)``."""
    plain = vectors.norm(dim=-1)
    if not _is_extreme(plain).any():
        return plain
    factor = _moderation(vectors)
    return ((vectors * factor).norm(dim=-1) / factor.squeeze(-1)).clamp_max(torch.finfo(plain.dtype).max)


def products_of_lengths(query: Tensor, support: Tensor) -> Tensor:
    """‖Z‖‖t‖ for every query and each of its supports, ``(B, K)``: an upper bound of the sum of all |z_j t_j|."""
    return lengths(query).unsqueeze(1) * lengths(support)


def directed(support: Tensor) -> tuple[Tensor, Tensor]:
    """Supports for their directions alone, and their norms, ``(K,)`` or ``(B, K)``; 1 for a zero vector.

    Dividing by the norms after a product spares a copy of all supports: only one whose square is out of range is
    rescaled.
    """
    length = support.norm(dim=-1)
    extreme = _is_extreme(length)
    if extreme.any():
        support = torch.where(extreme.unsqueeze(-1), moderate(support), support)
        length = support.norm(dim=-1)
    return support, torch.where(length == 0, 1.0, length)


def _is_extreme(length: Tensor) -> Tensor:
    """Norms whose squares have overflowed or lost digits, those of zero vectors among them."""
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
    """
    return similarities @ class_weights.T


def cosine_similarity(query: Tensor, support: Tensor) -> Tensor:
    """Eq. 14, the cosine of each query ``(B, J)`` with each of its supports: ``(B, K)``.

    A zero vector has similarity 0 to everything. Rounding takes no value out of [-1, 1].
    """
    support, length = directed(support)
    return within_one(pairwise_dot(unit(query), support) / length)


def within_one(cosines: Tensor) -> Tensor:
    """Cosines that rounding took out of [-1, 1] are cut; their gradient stays what it is."""
    return cosines + (cosines.clamp(-1, 1) - cosines).detach()


def support_shares(support_weights: Tensor, similarities: Tensor, bound: Tensor | None = None) -> Tensor:
    r"""The factor 1 / \|s_k\| of Eq. 15: ``(B, K)`` weights -> ``(B, K)`` weights.

    \|s_k\| is bounded below, so a support orthogonal to the query gives a large but finite weight. The factor turns
    contributions to s_k into shares of it: the least similar support counts most.

    Args:
        support_weights: ``(B, K)``.
        similarities: s_k, ``(B, K)``.
        bound: the most that \|s_k\| can be for vectors of these lengths, ``(B, K)``; None: 1, that of the cosine.
            ``EPSILON`` is relative to it, so that shares do not change with the scale of the embeddings.
    """
    return support_weights / _floored(similarities, bound)


def shares_rounding(similarities: Tensor, features: int, bound: Tensor | None = None) -> Tensor:
    r"""Relative error of 1 / \|s_k\| in :func:`support_shares`, at most 1/2: ``(B, K)``.

    s_k is a sum over the features, whose error is relative to the magnitudes of its terms, and may have cancelled. At
    most 1/2, because a support alone has its map however dissimilar it is: a common factor is no noise.
    """
    error = rounding(features, similarities.dtype) * _bound(similarities, bound)
    return (error / _floored(similarities, bound)).clamp_max(0.5)


def _floored(similarities: Tensor, bound: Tensor | None) -> Tensor:
    floored = torch.maximum(similarities.abs(), EPSILON * _bound(similarities, bound))
    # Vectors of zeros leave nothing to be shared.
    return torch.where(floored == 0, 1.0, floored)


def _bound(similarities: Tensor, bound: Tensor | None) -> Tensor:
    return similarities.new_ones(()) if bound is None else bound


def cosine_contributions(query: Tensor, support: Tensor, support_weights: Tensor) -> Tensor:
    """Eq. 15, the contribution of each feature to the weighted sum of cosines, in one matrix product.

    Args:
        query: Z, ``(B, J)``.
        support: Z_k, ``(K, J)`` or ``(B, K, J)``.
        support_weights: ``(B, K)``: 1 / K gives contributions that sum to S of Eq. 11;
            :func:`support_shares` of that gives Eq. 15 as printed.

    Returns:
        c, ``(B, J)``, with ``c.sum(1) == (support_weights * cosine_similarity(query, support)).sum(1)``.
    """
    return unit(query) * combine_unit_supports(support_weights, support)


def combine_unit_supports(support_weights: Tensor, support: Tensor) -> Tensor:
    """:func:`combine_supports` of the supports scaled to length one, zero vectors left out: ``(B, J)``."""
    support, length = directed(support)
    return combine_supports(support_weights / length, support)


# Contribution weights transformation, section IV-D


def transform_contributions(contributions: Tensor, weight: Tensor) -> Tensor:
    """Eq. 18, C = W x C': contributions ``(B, J)`` on the embedding -> ``(B, N)`` on the channels.

    Args:
        contributions: C', ``(B, J)``.
        weight: the weight of the ``torch.nn.Linear`` head, ``(J, N)``; the paper's W is its transpose.
            A bias belongs to no channel and has no part in the equation.
    """
    return contributions @ weight


# Importance coefficients and the map, section IV-B


def minmax(contributions: Tensor) -> Tensor:
    """Eq. 12, contributions ``(B, N)`` scaled to [0, 1] over the channels of each sample.

    Channels that all contribute alike, up to rounding, get the weight one.
    """
    contributions = moderate(contributions)
    low, span, constant = _range(contributions)
    return torch.where(constant, 1.0, (contributions - low) / torch.where(constant, 1.0, span))


def rectify(contributions: Tensor) -> Tensor:
    """In the place of Eq. 12: negative contributions ``(B, N)`` cut, the largest one; zeros where none is positive."""
    return maxabs(contributions.clamp_min(0))


def maxabs(contributions: Tensor) -> Tensor:
    """In the place of Eq. 12: the largest magnitude of ``(B, N)`` one, signs kept; zeros stay zeros."""
    largest = contributions.abs().amax(1, keepdim=True)
    return contributions / torch.where(largest == 0, 1.0, largest)


def _range(contributions: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The least contribution of each sample, the span to the largest, and whether that is only rounding: ``(B, 1)``."""
    low, high = contributions.aminmax(dim=1, keepdim=True)
    # The order of a matrix product's sums differs between columns; scaled to [0, 1] their rounding would be a map.
    rounding = 32 * torch.finfo(contributions.dtype).eps * torch.maximum(low.abs(), high.abs())
    return low, high - low, high - low <= rounding


def activation_map(activation: Tensor, weights: Tensor) -> Tensor:
    """Eq. 13, the sum of the activation maps weighted by channel.

    Args:
        activation: A, ``(B, N, *spatial)``.
        weights: the importance coefficients, ``(B, N)``.

    Returns:
        L, ``(B, 1, *spatial)``, summed in float32 where the activation is in half precision.
    """
    positions = widen(activation).flatten(2)
    summed = torch.bmm(weights.to(positions.dtype).unsqueeze(1), positions)
    return summed.reshape(activation.shape[0], 1, *activation.shape[2:])


def support_blind_share(activation: Tensor, contributions: Tensor) -> Tensor:
    """Share of a min-max weighted map's energy that does not depend on the support, in [0, 1], ``(B,)``.

    Eq. 12 and 13 give L = a * sum_n C_n A^n + b * sum_n A^n with a = 1 / (max C - min C) and b = -a * min C.
    The second sum is the same for every support; the share is its absolute energy over that of both.
    """
    low, _, constant = (one.squeeze(1) for one in _range(contributions))
    both = torch.stack([torch.ones_like(contributions), contributions], 1)
    positions = widen(activation).flatten(2)
    blind, aware = torch.bmm(both.to(positions.dtype), positions).abs().sum(2).unbind(1)
    # A constant C leaves nothing but the support-blind sum.
    blind = torch.where(constant, 1.0, blind * low.abs())
    aware = torch.where(constant, 0.0, aware)
    return blind / (blind + aware).clamp_min(torch.finfo(blind.dtype).tiny)
