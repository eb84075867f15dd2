"""Embeddings that count in the scores of classes with any weights."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from captum_fam._captum import TargetType
from captum_fam.similarity import Similarity
from captum_fam.support.base import Support
from captum_fam.support.checks import check_embedding_sizes, check_support_tensor
from captum_fam.support.comparison import Comparison
from captum_fam.support.members import SharedMembers


class WeightedSupport(Support):
    r"""Embeddings shared by all queries, and what each counts in the score of every class.

    The score of class c is :math:`\sum_k w_{ck}\, s(Z, Z_k)`, minus the same with the weights of its foil.

    Args:
        embeddings: ``(K, J)``.
        class_weights: w, ``(C, K)``.
        foil_weights: ``(C, K)``, not negative, subtracted; default: no foil.
        class_names: C names; default: the indices.

    Raises:
        TypeError: for embeddings that are no floating-point tensor.
        ValueError: for weights of another shape.

    Example:
        >>> support = WeightedSupport(torch.eye(3), torch.tensor([[0.5, 0.5, 0.0], [0.0, 0.0, 1.0]]))
        >>> support.compare(torch.tensor([[0.6, 0.0, 0.8]])).scores
        tensor([[0.3000, 0.8000]])
    """

    def __init__(
        self,
        embeddings: Tensor,
        class_weights: Tensor,
        foil_weights: Tensor | None = None,
        class_names: Sequence[str] | None = None,
    ) -> None:
        self.embeddings = check_support_tensor(embeddings, "embeddings").detach()
        for name, weights in (("class_weights", class_weights), ("foil_weights", foil_weights)):
            if weights is not None and (weights.dim() != 2 or weights.shape[1] != len(embeddings)):
                raise ValueError(
                    f"{name} must be (C, K) with one column per embedding, got {tuple(weights.shape)} for "
                    f"{len(embeddings)} embeddings"
                )
        self.class_names = tuple(class_names or map(str, range(len(class_weights))))
        self._members = SharedMembers(class_weights)
        self._foil = None if foil_weights is None else SharedMembers(foil_weights)

    def compare(self, query: Tensor, target: TargetType = None, similarity: Similarity | None = None) -> Comparison:
        """Compare queries ``(B, J)`` with the embeddings."""
        check_embedding_sizes(query, self.embeddings)
        measure = self.measure(similarity)
        comparison = Comparison(query, self.embeddings, self._members, measure, self.class_names, target)
        return comparison if self._foil is None else comparison.against(self._foil)
