"""Eq. 11-18 of arXiv 2307.05017 in float64, one query, one support, one channel at a time, in plain loops.

Independent of the package: nothing of it is imported, and no formula is vectorised or collapsed over supports.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]

EPSILON = 1e-6  # the documented lower bound of |s_k|

MEASURES = (
    "cosine",
    "dot",
    "squared-euclidean",
    "squared-euclidean/difference",
    "euclidean",
    "euclidean/difference",
    "bilinear",
    "mahalanobis",
    "mahalanobis/difference",
)
LINEAR_MEASURES = tuple(name for name in MEASURES if not name.endswith("/difference"))


def length(vector: Sequence[float] | Array) -> float:
    return math.sqrt(math.fsum(float(v) ** 2 for v in vector))


def inner(a: Sequence[float] | Array, b: Sequence[float] | Array) -> float:
    return math.fsum(float(x) * float(y) for x, y in zip(a, b, strict=True))


def times(matrix: Array, vector: Sequence[float] | Array) -> list[float]:
    return [inner(row, vector) for row in matrix]


# Section IV-B: pooling


def pool(activation: Array, kind: str, sharpness: float = 2.0, exponent: float = 3.0) -> Array:
    """Z = p(A) for ``(N, *spatial)``."""
    pooled = []
    for channel in activation:
        values = [float(v) for v in channel.ravel()]
        if kind == "gap":
            pooled.append(math.fsum(values) / len(values))
        elif kind == "gmp":
            pooled.append(max(values))
        elif kind == "lse":
            pooled.append(math.log(math.fsum(math.exp(sharpness * v) for v in values) / len(values)) / sharpness)
        elif kind == "gem":
            cut = [max(v, EPSILON) for v in values]
            pooled.append((math.fsum(v**exponent for v in cut) / len(cut)) ** (1 / exponent))
        else:
            raise KeyError(kind)
    return np.array(pooled)


def pool_slope(activation: Array, kind: str, sharpness: float = 2.0, exponent: float = 3.0) -> Array:
    """dz_n / dA_{n,p} for every position p, of the shape of ``activation``."""
    slopes = []
    for channel, z in zip(activation, pool(activation, kind, sharpness, exponent), strict=True):
        values = [float(v) for v in channel.ravel()]
        if kind == "gap":
            slope = [1 / len(values)] * len(values)
        elif kind == "gmp":
            ties = sum(v == z for v in values)
            slope = [float(v == z) / ties for v in values]
        elif kind == "lse":
            slope = [math.exp(sharpness * (v - z)) / len(values) for v in values]
        else:
            slope = [(v / z) ** (exponent - 1) / len(values) if v > EPSILON else 0.0 for v in values]
        slopes.append(np.reshape(slope, channel.shape))
    return np.array(slopes)


# Eq. 11 and 14: similarities


def score(measure: str, z: Array, t: Array, matrix: Array | None = None) -> float:
    """s(Z, Z_k)."""
    name = measure.split("/")[0]
    if name == "cosine":
        norms = length(z) * length(t)
        return inner(z, t) / norms if norms else 0.0
    if name == "dot":
        return inner(z, t)
    if name == "bilinear":
        assert matrix is not None
        return inner(z, times(matrix, t))
    gap = [float(a) - float(b) for a, b in zip(z, t, strict=True)]
    if name == "squared-euclidean":
        return -inner(gap, gap)
    if name == "euclidean":
        return -length(gap)
    assert name == "mahalanobis"
    assert matrix is not None
    return -inner(gap, times(matrix, gap))


def explained(measure: str, z: Array, t: Array, matrix: Array | None = None) -> float:
    """What the contributions of one support sum to."""
    value = score(measure, z, t, matrix)
    if measure in ("squared-euclidean", "euclidean", "mahalanobis"):
        value -= score(measure, np.zeros_like(z), t, matrix)
    return value


# Eq. 15 and its like: contributions to one support, without 1 / |s_k|


def contributions(measure: str, z: Array, t: Array, matrix: Array | None = None) -> list[float]:
    """c_j for every feature j."""
    found = []
    for j in range(len(z)):
        gap = float(z[j] - t[j])
        if measure == "cosine":
            norms = length(z) * length(t)
            c = float(z[j]) * float(t[j]) / norms if norms else 0.0
        elif measure == "dot":
            c = float(z[j] * t[j])
        elif measure == "bilinear":
            assert matrix is not None
            c = float(z[j]) * inner(matrix[j], t)
        elif measure == "squared-euclidean/difference":
            c = -gap * gap
        elif measure == "euclidean/difference":
            distance = -score(measure, z, t)
            c = -gap * gap / distance if distance else 0.0
        elif measure == "mahalanobis/difference":
            assert matrix is not None
            c = -gap * inner(matrix[j], z - t)
        elif measure == "squared-euclidean":
            c = float(t[j]) ** 2 - gap * gap
        elif measure == "euclidean":
            # ‖t‖ - d, in the proportions of t_j² - (z_j - t_j)² where both are not zero.
            reach = length(t) - score(measure, z, t)
            c = (float(t[j]) ** 2 - gap * gap) / reach if reach else 0.0
        else:
            assert measure == "mahalanobis"
            assert matrix is not None
            c = float(z[j]) * (inner(matrix[j], t) - inner(matrix[j], z - t))
        found.append(c)
    return found


def linear_weights(measure: str, z: Array, t: Array, matrix: Array | None = None) -> list[float]:
    """u_j of the measure written as sum_j z_j u_j."""
    if measure == "cosine":
        norms = length(z) * length(t)
        return [float(v) / norms if norms else 0.0 for v in t]
    if measure == "dot":
        return [float(v) for v in t]
    if measure == "bilinear":
        assert matrix is not None
        return times(matrix, t)
    if measure == "squared-euclidean":
        return [2 * float(b) - float(a) for a, b in zip(z, t, strict=True)]
    if measure == "euclidean":
        reach = length(t) - score(measure, z, t)
        return [(2 * float(b) - float(a)) / reach if reach else 0.0 for a, b in zip(z, t, strict=True)]
    assert measure == "mahalanobis"
    assert matrix is not None
    return [2 * a - b for a, b in zip(times(matrix, t), times(matrix, z), strict=True)]


def support_sum(
    measure: str,
    z: Array,
    supports: Array,
    support_weights: Sequence[float] | Array,
    support_scale: str,
    linear: bool = False,
    matrix: Array | None = None,
) -> list[float]:
    """sum_k w_k c^k (or w_k u^k), with 1 / |s_k| where ``support_scale`` is "paper"."""
    total = [0.0] * len(z)
    for t, weight in zip(supports, support_weights, strict=True):
        weight = float(weight)
        if support_scale == "paper":
            weight /= max(abs(explained(measure, z, t, matrix)), EPSILON)
        part = (linear_weights if linear else contributions)(measure, z, t, matrix)
        total = [a + weight * b for a, b in zip(total, part, strict=True)]
    return total


# Eq. 18 in its three readings, Eq. 12, Eq. 13


def on_channels(
    measure: str,
    z: Array,
    embedding: Array,
    supports: Array,
    support_weights: Sequence[float] | Array,
    head: Array | None,
    weighting: str = "paper",
    support_scale: str = "paper",
    matrix: Array | None = None,
) -> list[float]:
    """C on the channels; ``head`` is the weight (J, N) of a linear layer from ``z`` to ``embedding``."""
    linear = weighting != "paper"
    cotangent = support_sum(measure, embedding, supports, support_weights, support_scale, linear, matrix)
    if head is None:
        carried = cotangent
    else:
        carried = [math.fsum(head[j, n] * cotangent[j] for j in range(len(cotangent))) for n in range(len(z))]
    return [float(a) * b for a, b in zip(z, carried, strict=True)] if weighting == "contributions" else carried


def normalize(values: Sequence[float], how: str) -> list[float]:
    """Eq. 12 and its alternatives."""
    if how == "none":
        return list(values)
    if how == "minmax":
        low, high = min(values), max(values)
        return [1.0 if high == low else (v - low) / (high - low) for v in values]
    if how == "relu":
        high = max(max(values), 0.0)
        return [max(v, 0.0) / high if high else 0.0 for v in values]
    assert how == "maxabs"
    high = max(abs(v) for v in values)
    return [v / high if high else 0.0 for v in values]


def weighted_map(activation: Array, weights: Sequence[float]) -> Array:
    """Eq. 13 for ``(N, *spatial)``."""
    total = np.zeros(activation.shape[1:])
    for channel, weight in zip(activation, weights, strict=True):
        total = total + weight * channel
    return total


def fam(
    activation: Array,
    pooling: str,
    supports: Array,
    support_weights: Sequence[float] | Array,
    head: Array | None = None,
    bias: Array | None = None,
    measure: str = "cosine",
    weighting: str = "paper",
    normalization: str = "minmax",
    support_scale: str = "paper",
    matrix: Array | None = None,
) -> Array:
    """The map of one query: activation ``(N, *spatial)``, supports as embeddings ``(K, J)``."""
    z = pool(activation, pooling)
    embedding = embed(z, head, bias)
    c = on_channels(measure, z, embedding, supports, support_weights, head, weighting, support_scale, matrix)
    return weighted_map(activation, normalize(c, normalization))


def embed(z: Array, head: Array | None = None, bias: Array | None = None) -> Array:
    """Z' = W Z + b."""
    if head is None:
        return z
    return np.array(times(head, z)) + (0 if bias is None else bias)


def similarity_cam(
    activation: Array,
    pooling: str,
    supports: Array,
    support_weights: Sequence[float] | Array,
    head: Array | None = None,
    bias: Array | None = None,
    measure: str = "cosine",
    matrix: Array | None = None,
) -> tuple[Array, float, float]:
    """The exact map M_p of one query, the explained score, and the bias's share <b, u> of it."""
    z = pool(activation, pooling)
    embedding = embed(z, head, bias)
    u = support_sum(measure, embedding, supports, support_weights, "none", linear=True, matrix=matrix)
    on_n = u if head is None else [math.fsum(head[j, n] * u[j] for j in range(len(u))) for n in range(len(z))]
    slope = pool_slope(activation, pooling)
    total = math.fsum(
        float(w) * explained(measure, embedding, t, matrix) for t, w in zip(supports, support_weights, strict=True)
    )
    return weighted_map(slope * activation, on_n), total, 0.0 if bias is None else inner(bias, u)
