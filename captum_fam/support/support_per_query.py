"""A support of every query's own."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor

from captum_fam import functional as F
from captum_fam._captum import TargetType
from captum_fam.embedding.forward import embed_images
from captum_fam.similarity import Similarity
from captum_fam.support.base import Support
from captum_fam.support.checks import (
    check_batch,
    check_embedding_sizes,
    check_finite,
    check_images,
    check_support_tensor,
)
from captum_fam.support.comparison import Comparison
from captum_fam.support.members import Members, RowMembers, SharedMembers


class SupportPerQuery(Support):
    """Images or embeddings that belong to one query each, as in retrieval: pairs, or the hits of a search.

    Args:
        inputs: images ``(B, K, C, H, W)`` or embeddings ``(B, K, J)``: K supports for each of B queries.
        labels: class indices ``(B, K)``; default: all supports are of one class.
        class_names: C names; default: ``("support",)``, or the indices where there are labels.

    Raises:
        TypeError: if ``inputs`` is no tensor of real numbers.
        ValueError: for a shape without supports per query, NaN or inf, or labels that do not fit.

    Example:
        >>> support = SupportPerQuery(torch.rand(2, 5, 64))  # five hits for each of two queries
        >>> support.compare(torch.rand(2, 64)).similarities.shape
        torch.Size([2, 5])
    """

    def __init__(self, inputs: Tensor, labels: Tensor | None = None, class_names: Sequence[str] | None = None) -> None:
        check_support_tensor(inputs)
        if inputs.dim() < 3:
            raise ValueError(
                f"support must be embeddings (B, K, J) or images (B, K, C, H, W), got shape {tuple(inputs.shape)}"
            )
        if labels is not None and labels.shape != inputs.shape[:2]:
            raise ValueError(f"labels must be {tuple(inputs.shape[:2])}, one per support, got {tuple(labels.shape)}")
        self.inputs = inputs.detach()
        self.labels = labels
        n_classes = 1 if labels is None else int(labels.max()) + 1
        self.class_names = tuple(class_names or (("support",) if labels is None else map(str, range(n_classes))))
        if len(self.class_names) < n_classes:
            raise ValueError(f"class_names has {len(self.class_names)} names, labels go up to {n_classes - 1}")

    @property
    def holds_embeddings(self) -> bool:
        """Whether there are embeddings to compare with, and no images that are to be embedded first."""
        return self.inputs.dim() == 3

    @property
    def class_counts(self) -> list[int]:
        """The number of supports per query, where they are of one class."""
        return [self.inputs.shape[1]] if self.labels is None else super().class_counts

    @property
    def per_query(self) -> bool:
        return True

    def for_queries(self, start: int, stop: int) -> SupportPerQuery:
        """The supports of the queries ``start`` to ``stop - 1``."""
        labels = None if self.labels is None else self.labels[start:stop]
        return SupportPerQuery(self.inputs[start:stop], labels, self.class_names)

    def check_queries(self, inputs: tuple[Tensor, ...], args: tuple[Any, ...] | None) -> None:
        if not self.holds_embeddings:
            check_images(self.inputs.flatten(0, 1), inputs, args)
        check_batch(self.inputs, len(inputs[0]))

    def embed(self, forward_func: Callable[..., Any], additional_forward_args: Any = None) -> SupportPerQuery:
        """The same supports as embeddings ``(B, K, J)`` under the present weights of ``forward_func``."""
        if self.holds_embeddings:
            return self
        flat = embed_images(forward_func, self.inputs.flatten(0, 1), additional_forward_args)
        return SupportPerQuery(check_finite(flat).unflatten(0, self.inputs.shape[:2]), self.labels, self.class_names)

    def compare(self, query: Tensor, target: TargetType = None, similarity: Similarity | None = None) -> Comparison:
        """Compare query b with the supports b.

        Raises:
            ValueError: for images, which are to be embedded first, or another number of queries.
        """
        if not self.holds_embeddings:
            raise ValueError("support holds images; pass support.embed(model), its embeddings")
        check_embedding_sizes(query, self.inputs)
        check_batch(self.inputs, len(query))
        weights = F.widen(self.inputs).new_ones(self.inputs.shape[:2])
        members: Members
        if self.labels is None:
            members = SharedMembers(weights[:1] / weights.shape[1])
        else:
            members = RowMembers(self.labels.to(query.device), weights, self.class_names)
        return Comparison(query, self.inputs, members, self.measure(similarity), self.class_names, target)
