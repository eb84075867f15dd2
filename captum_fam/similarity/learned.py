"""Learned similarities: any differentiable metric, explained by integrated gradients."""

from __future__ import annotations

import warnings
from collections.abc import Callable

import torch
from captum.attr import IntegratedGradients
from torch import Tensor, nn

from captum_fam import functional as F
from captum_fam.rounding import drop_rounding_of_sum
from captum_fam.similarity.base import LinearSimilarity

Metric = Callable[[Tensor, Tensor], Tensor]
"""A function of two batches of embeddings ``(B, J)``, query and support, that returns similarities ``(B,)``."""


class Learned(LinearSimilarity):
    r"""Any differentiable metric, explained by Captum's integrated gradients on the embedding.

    The weights are the mean gradient on the path from the zero vector, :math:`u = \int_0^1 \nabla_Z s(a Z, t)\, da`
    (Sundararajan, Taly and Yan, "Axiomatic Attribution for Deep Networks", ICML 2017). An example of such a metric is
    the relation module of relation networks (Sung et al., CVPR 2018). Only the metric runs along the path, not the
    backbone.

    Contributions sum to score(Z) - score(0), up to the error of the quadrature. This error is 1e-7 at least, because
    Captum keeps the weights of the quadrature in float32. The sum is wrong for a metric that is not continuous at the
    zero vector, such as a metric that normalizes its inputs: if more than a twentieth is missing, there is a warning.

    Args:
        metric: maps two batches of embeddings ``(B, J)``, query and support, to similarities ``(B,)``; larger is
            more similar.
        n_steps: the number of points of the quadrature, as in ``captum.attr.IntegratedGradients``. Default: 50.

    Raises:
        ValueError: in use, if the metric does not return the shape ``(B,)``.

    Example:
        >>> square = Learned(lambda query, support: (query * support).sum(1) ** 2)
        >>> query, support = torch.tensor([[3.0, 4.0]]), torch.tensor([[1.0, 0.5]])
        >>> square(query, support), square.contributions(query, support, torch.ones(1, 1)).round(decimals=3)
        (tensor([[25.]]), tensor([[15., 10.]]))
    """

    explains_whole_score = False
    # The score of the zero embedding depends on the metric, and may be any number.
    vanishes_at_zero = False

    def __init__(self, metric: Metric, n_steps: int = 50) -> None:
        super().__init__()
        self.metric = metric
        self.n_steps = n_steps

    def score(self, query: Tensor, support: Tensor) -> Tensor:
        return torch.stack([self._compare(query, vectors.expand_as(query)) for vectors in F.each_support(support)], 1)

    def weights(self, query: Tensor, support: Tensor, support_weights: Tensor) -> Tensor:
        return self._follow_path(query, support, support_weights, are_weights=True)

    def contributions(self, query: Tensor, support: Tensor, support_weights: Tensor) -> Tensor:
        return self._follow_path(query, support, support_weights, are_weights=False)

    def extra_repr(self) -> str:
        # nn.Module prints a metric that is a module by itself. A function is printed by its name, because its repr has
        # an address, which differs between runs.
        name = getattr(self.metric, "__qualname__", type(self.metric).__name__)
        return f"n_steps={self.n_steps}" if isinstance(self.metric, nn.Module) else f"{name}, n_steps={self.n_steps}"

    def _follow_path(self, query: Tensor, support: Tensor, support_weights: Tensor, *, are_weights: bool) -> Tensor:
        """The weights, or contributions, ``(B, J)``, by integrated gradients for one support after the other."""
        path = IntegratedGradients(self._compare, multiply_by_inputs=False)
        with torch.inference_mode(False):
            # Autograd cannot use inference tensors. A copy that is made outside inference mode is a normal tensor.
            query = query.clone()
            total, magnitude = torch.zeros_like(query), torch.zeros_like(query)
            # One support at a time, because the graph for all of them would need K times the memory.
            for vectors, weight in zip(F.each_support(support), support_weights.unbind(1), strict=True):
                # Only the queries that the support counts for: in retrieval each query has a support of its own.
                rows = weight.nonzero()[:, 0]
                if len(rows):
                    vectors = vectors.expand_as(query)[rows]
                    slope = path.attribute(query[rows], additional_forward_args=vectors, n_steps=self.n_steps)
                    term = weight[rows].unsqueeze(1) * slope.detach()
                    total.index_add_(0, rows, term)
                    magnitude.index_add_(0, rows, term.abs())
        counts = support_weights.any(0)
        if counts.any():
            explained = self.explained(query, support[..., counts, :])
            if not explained.isfinite().all():
                raise ValueError(
                    "similarity: the learned metric is not finite for an embedding of zeros, from which its "
                    "contributions count; give a metric that is, such as log(1 + x) for log(x)"
                )
            self._warn_of_gap(query * total, support_weights[:, counts] * explained)
        values = total if are_weights else query * total
        return drop_rounding_of_sum(values, magnitude, query, are_weights=are_weights, count=support.shape[-2])

    def _compare(self, query: Tensor, support: Tensor) -> Tensor:
        """The metric with a check of its result, ``(B, J)`` and ``(B, J)`` -> ``(B,)``."""
        similarity = self.metric(query, support)
        if similarity.shape != query.shape[:1]:
            raise ValueError(
                f"similarity: the learned metric must return one value per pair, shape {tuple(query.shape[:1])}, "
                f"got {tuple(similarity.shape)}"
            )
        return similarity

    @staticmethod
    def _warn_of_gap(contributions: Tensor, explained: Tensor) -> None:
        """Warn if contributions ``(B, J)`` do not sum to the weighted explained scores ``(B, K)``."""
        gap = (contributions.sum(1) - explained.sum(1)).abs()
        if (gap > 0.05 * explained.abs().sum(1) + 1e-5 * contributions.abs().sum(1)).any():
            warnings.warn(
                "contributions of the learned metric do not sum to score(Z) - score(0): raise n_steps, or name the "
                'similarity (similarity="cosine") if the metric depends on the direction of the embedding alone',
                stacklevel=3,
            )
