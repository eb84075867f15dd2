"""A similarity that was learned: any differentiable metric, explained along a path."""

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
"""Two batches of embeddings ``(B, J)``, query and support, to similarities ``(B,)``."""


class Learned(LinearSimilarity):
    r"""Any differentiable metric, explained by Captum's integrated gradients on the embedding.

    The weights are the mean gradient on the way from the zero vector, :math:`u = \int_0^1 \nabla_Z s(a Z, t)\, da`
    (Sundararajan, Taly and Yan, "Axiomatic Attribution for Deep Networks", ICML 2017), for metrics such as that of
    relation networks (Sung et al., CVPR 2018). Contributions sum to score(Z) - score(0) up to the quadrature, whose
    weights Captum keeps in float32: about 1e-7 at best. Only the metric is run along the path, never the
    backbone. A metric that jumps at the zero vector, such as one that normalizes its inputs, has no such sum;
    a warning says when more than a twentieth is missing.

    Args:
        metric: maps two batches of embeddings ``(B, J)``, query and support, to similarities ``(B,)``; larger is
            more similar.
        n_steps: points of the quadrature, as in ``captum.attr.IntegratedGradients``. Default: 50.

    Raises:
        ValueError: in use, if the metric does not return ``(B,)``.

    Example:
        >>> square = Learned(lambda query, support: (query * support).sum(1) ** 2)
        >>> query, support = torch.tensor([[3.0, 4.0]]), torch.tensor([[1.0, 0.5]])
        >>> square(query, support), square.contributions(query, support, torch.ones(1, 1)).round(decimals=3)
        (tensor([[25.]]), tensor([[15., 10.]]))
    """

    explains_whole_score = False
    # Nothing is known about the score of the zero embedding.
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
        # A module shows itself; of a function the name, because its repr holds an address that changes with each run.
        name = getattr(self.metric, "__qualname__", type(self.metric).__name__)
        return f"n_steps={self.n_steps}" if isinstance(self.metric, nn.Module) else f"{name}, n_steps={self.n_steps}"

    def _follow_path(self, query: Tensor, support: Tensor, support_weights: Tensor, *, are_weights: bool) -> Tensor:
        path = IntegratedGradients(self._compare, multiply_by_inputs=False)
        with torch.inference_mode(False):
            # Autograd cannot save what was made in inference mode; a copy it can.
            query = query.clone()
            total, magnitude = torch.zeros_like(query), torch.zeros_like(query)
            # One support after the other: the graph of all would hold their number times the path.
            for vectors, weight in zip(F.each_support(support), support_weights.unbind(1), strict=True):
                if weight.any():
                    vectors = vectors.expand_as(query).clone()
                    slope = path.attribute(query, additional_forward_args=vectors, n_steps=self.n_steps)
                    term = weight.unsqueeze(1) * slope.detach()
                    total += term
                    magnitude += term.abs()
        self._warn_of_gap(query * total, support_weights * self.explained(query, support))
        values = total if are_weights else query * total
        return drop_rounding_of_sum(values, magnitude, query, are_weights=are_weights, count=support.shape[-2])

    def _compare(self, query: Tensor, support: Tensor) -> Tensor:
        similarity = self.metric(query, support)
        if similarity.shape != query.shape[:1]:
            raise ValueError(
                f"similarity: the learned metric must return one value per pair, shape {tuple(query.shape[:1])}, "
                f"got {tuple(similarity.shape)}"
            )
        return similarity

    @staticmethod
    def _warn_of_gap(contributions: Tensor, explained: Tensor) -> None:
        gap = (contributions.sum(1) - explained.sum(1)).abs()
        if (gap > 0.05 * explained.abs().sum(1) + 1e-5 * contributions.abs().sum(1)).any():
            warnings.warn(
                "contributions of the learned metric do not sum to score(Z) - score(0): raise n_steps, or name the "
                'similarity (similarity="cosine") if the metric depends on the direction of the embedding alone',
                stacklevel=3,
            )
