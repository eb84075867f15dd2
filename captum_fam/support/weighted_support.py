"""Embeddings with any weights in the scores of classes."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from captum_fam._captum import TargetType
from captum_fam.similarity import Similarity
from captum_fam.support.base import Support
from captum_fam.support.checks import check_embedding_sizes, check_support_tensor, plain_tensor
from captum_fam.support.comparison import Comparison
from captum_fam.support.gallery_rows import TensorRows
from captum_fam.support.labels import check_class_names
from captum_fam.support.members import SharedMembers


class WeightedSupport(Support):
    r"""Embeddings that all queries share, with a weight for each embedding in the score of each class.

    The score of class c is :math:`\sum_k w_{ck}\, s(Z, Z_k)`, minus the same sum with the weights of its foil.

    Args:
        embeddings: ``(K, J)``.
        class_weights: w, ``(C, K)``.
        foil_weights: the weights of the sum that is subtracted, ``(C, K)``, not negative. Default: None, no foil.
        class_names: C names. Default: the class indices.

    Raises:
        TypeError: for embeddings that are no floating-point tensor.
        ValueError: for weights of another shape, empty embeddings, NaN or inf.

    Example:
        >>> support = WeightedSupport(torch.eye(3), torch.tensor([[0.5, 0.5, 0.0], [0.0, 0.0, 1.0]]))
        >>> support.compare(torch.tensor([[0.6, 0.0, 0.8]])).scores
        tensor([[0.3000, 0.8000]])
    """

    forms_gallery = True

    def __init__(
        self,
        embeddings: Tensor,
        class_weights: Tensor,
        foil_weights: Tensor | None = None,
        class_names: Sequence[str] | None = None,
    ) -> None:
        self.embeddings = plain_tensor(check_support_tensor(embeddings, "embeddings"))
        if embeddings.dim() != 2:
            raise ValueError(f"embeddings must be (K, J), got shape {tuple(embeddings.shape)}")
        for name, weights in (("class_weights", class_weights), ("foil_weights", foil_weights)):
            if weights is None:
                continue
            if weights.dim() != 2 or weights.shape[1] != len(embeddings) or len(weights) != len(class_weights):
                raise ValueError(
                    f"{name} must be (C, K) with one column per embedding, got {tuple(weights.shape)} for "
                    f"{len(embeddings)} embeddings and {len(class_weights)} classes"
                )
            if not weights.isfinite().all() or (name == "foil_weights" and (weights < 0).any()):
                raise ValueError(f"{name} must be finite, and the weights of a foil not negative")
        names = [str(index) for index in range(len(class_weights))] if class_names is None else class_names
        self.class_names = check_class_names(names)
        if len(self.class_names) != len(class_weights):
            raise ValueError(f"class_names has {len(self.class_names)} names for {len(class_weights)} classes")
        self._members = SharedMembers(plain_tensor(class_weights))
        self._foil = None if foil_weights is None else SharedMembers(plain_tensor(foil_weights))
        self.is_contrasted = foil_weights is not None

    def gallery_rows(self) -> TensorRows:
        """All embeddings as the rows of a gallery, each with the same weight."""
        return TensorRows(self.embeddings)

    def compare(self, query: Tensor, target: TargetType = None, similarity: Similarity | None = None) -> Comparison:
        """Compare queries ``(B, J)`` with the embeddings.

        Raises:
            ValueError: for queries of another length or on another device than the embeddings.
        """
        check_embedding_sizes(query, self.embeddings)
        measure = self.measure(similarity)
        comparison = Comparison(query, self.embeddings, self._members, measure, self.class_names, target)
        return comparison if self._foil is None else comparison.against(self._foil)
