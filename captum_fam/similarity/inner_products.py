"""Similarities that are inner products: cosine, dot product, and a dot product through a matrix."""

from __future__ import annotations

import torch
from torch import Tensor

from captum_fam import functional as F
from captum_fam.similarity.closed_form import ClosedFormSimilarity
from captum_fam.similarity.matrix import check_features, check_square
from captum_fam.similarity.registry import register_similarity


class _InnerProduct(ClosedFormSimilarity):
    """A similarity whose rounding errors are relative to the product of the lengths."""

    def magnitude(self, query: Tensor, support: Tensor, scores: Tensor) -> Tensor:
        # The products z_j t_j have both signs and may cancel, so that the score says nothing about their size.
        return self.bound(query, support)


@register_similarity("cosine")
class Cosine(_InnerProduct):
    r"""Cosine of the angle, Eq. 14 of the paper: :math:`s = \langle Z, t \rangle / \|Z\| \|t\|`, in [-1, 1].

    Contributions :math:`z_j t_j / \|Z\| \|t\|` are Eq. 15 and sum to the score. The weights are
    :math:`t_j / \|Z\| \|t\|`, with the norm of the query as a constant, and 0 for a query of zeros.

    Example:
        >>> query, support = torch.tensor([[3.0, 4.0]]), torch.tensor([[1.0, 0.0]])
        >>> Cosine()(query, support), Cosine().contributions(query, support, torch.ones(1, 1))
        (tensor([[0.6000]]), tensor([[0.6000, 0.0000]]))
    """

    ignores_length = True

    def score(self, query: Tensor, support: Tensor) -> Tensor:
        return F.cosine_similarity(query, support)

    def terms(self, query: Tensor, support: Tensor, support_weights: Tensor) -> Tensor:
        return self._weights(query, support.abs(), support_weights)

    def weights_of_parts(self, query: Tensor, support: Tensor, parts: Tensor) -> Tensor:
        # Divided one after the other: the product of two lengths could over- or underflow.
        for vectors in (support, query):
            length = F.lengths(vectors).view(-1, 1, 1)
            parts = torch.where(length == 0, 0.0, parts / torch.where(length == 0, 1.0, length))
        return parts

    def _weights(self, query: Tensor, support: Tensor, support_weights: Tensor) -> Tensor:
        length = F.lengths(query).unsqueeze(1)
        return torch.where(length == 0, 0.0, F.combine_unit_supports(support_weights, support) / length)

    def _contributions(self, query: Tensor, support: Tensor, support_weights: Tensor) -> Tensor:
        # The query times the weights would divide by the length of the query, which may over- or underflow.
        return F.cosine_contributions(query, support, support_weights)


@register_similarity("dot")
class Dot(_InnerProduct):
    r"""Dot product, :math:`s = \langle Z, t \rangle`; contributions :math:`z_j t_j` sum to the score.

    Eq. 14 and 15 without the norms: the similarity of maximum inner product search.

    Example:
        >>> query, support = torch.tensor([[3.0, 4.0]]), torch.tensor([[2.0, 0.5]])
        >>> Dot()(query, support), Dot().contributions(query, support, torch.ones(1, 1))
        (tensor([[8.]]), tensor([[6., 2.]]))
    """

    is_linear = True

    def score(self, query: Tensor, support: Tensor) -> Tensor:
        return F.pairwise_dot(query, support)

    def bound(self, query: Tensor, support: Tensor) -> Tensor:
        return F.products_of_lengths(query, support)

    def terms(self, query: Tensor, support: Tensor, support_weights: Tensor) -> Tensor:
        return F.combine_supports(support_weights, support.abs())

    def weights_of_parts(self, query: Tensor, support: Tensor, parts: Tensor) -> Tensor:
        return parts

    def _weights(self, query: Tensor, support: Tensor, support_weights: Tensor) -> Tensor:
        return F.combine_supports(support_weights, support)


class Bilinear(_InnerProduct):
    r"""A dot product through a matrix, :math:`s = Z^\top M t`; contributions :math:`z_j (M t)_j` sum to the score.

    Chechik et al., "Large Scale Online Learning of Image Similarity Through Ranking" (OASIS), JMLR 2010.

    Args:
        matrix: M, ``(J, J)``, of any floating-point type; it is used in the dtype and on the device of the embeddings.

    Raises:
        ValueError: if the matrix is not square or holds NaN or inf; in use, for embeddings with another number of
            features than J.

    Example:
        >>> swap = Bilinear(torch.tensor([[0.0, 1.0], [1.0, 0.0]]))
        >>> swap(torch.tensor([[3.0, 4.0]]), torch.tensor([[1.0, 0.0]]))
        tensor([[4.]])
    """

    is_linear = True
    matrix: Tensor

    def __init__(self, matrix: Tensor) -> None:
        super().__init__()
        check_square(matrix)
        self.register_buffer("matrix", matrix.detach())

    def score(self, query: Tensor, support: Tensor) -> Tensor:
        return F.pairwise_dot(query, self._project(support))

    def bound(self, query: Tensor, support: Tensor) -> Tensor:
        matrix = self.matrix.to(support).abs()
        # An upper bound of the largest singular value of the matrix; 1 for the identity.
        stretch = (matrix.sum(0).amax() * matrix.sum(1).amax()).sqrt()
        return stretch * F.products_of_lengths(query, support)

    def terms(self, query: Tensor, support: Tensor, support_weights: Tensor) -> Tensor:
        return F.combine_supports(support_weights, support.abs()) @ self.matrix.to(support).abs().T

    def weights_of_parts(self, query: Tensor, support: Tensor, parts: Tensor) -> Tensor:
        return self._project(parts)

    def _weights(self, query: Tensor, support: Tensor, support_weights: Tensor) -> Tensor:
        return self._project(F.combine_supports(support_weights, support))

    def _terms_per_weight(self, support: Tensor) -> int:
        # A sum over the K supports, and a sum over the J features in the product with the matrix.
        return sum(support.shape[-2:])

    def _project(self, support: Tensor) -> Tensor:
        """M t, ``(..., J)``."""
        check_features(self.matrix, support)
        return support @ self.matrix.to(support).T
