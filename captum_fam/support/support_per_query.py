"""Supports that belong to one query each."""

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
    plain_tensor,
    whole_numbers,
)
from captum_fam.support.comparison import Comparison
from captum_fam.support.members import Members, RowMembers, SameForAll, SharedMembers


class SupportPerQuery(Support):
    """K supports for each query of a batch, as in retrieval: the partner of a pair, or the hits of a search.

    Args:
        inputs: images ``(B, K, C, H, W)`` or embeddings ``(B, K, J)``: K supports for each of B queries.
        labels: the class of each support, ``(B, K)``. Default: None, all supports belong to one class.
        class_names: C names. Default: the class indices, or ``("support",)`` without labels.
        is_support: False for entries that only fill up the K of a query, boolean ``(B, K)``. Default: None, all entries
            are supports.

    Raises:
        TypeError: if ``inputs`` is no tensor of real numbers, or ``labels`` are no whole numbers.
        ValueError: for a shape without supports per query, NaN or inf, or labels that do not fit.

    Example:
        >>> support = SupportPerQuery(torch.rand(2, 5, 64))  # five hits for each of two queries
        >>> support.compare(torch.rand(2, 64)).similarities.shape
        torch.Size([2, 5])
    """

    def __init__(
        self,
        inputs: Tensor,
        labels: Tensor | None = None,
        class_names: Sequence[str] | None = None,
        *,
        is_support: Tensor | None = None,
    ) -> None:
        check_support_tensor(inputs)
        if inputs.dim() < 3:
            raise ValueError(
                f"support must be embeddings (B, K, J) or images (B, K, C, H, W), got shape {tuple(inputs.shape)}"
            )
        for name, values in (("labels", labels), ("is_support", is_support)):
            if values is not None and values.shape != inputs.shape[:2]:
                raise ValueError(
                    f"{name} must be {tuple(inputs.shape[:2])}, one per support, got {tuple(values.shape)}"
                )
        if labels is not None:
            labels = whole_numbers("labels", labels.flatten(), inputs.flatten(0, 1)).view(inputs.shape[:2])
        self.inputs = plain_tensor(inputs)
        self.labels = labels
        self.is_support = is_support
        n_classes = 1 if labels is None else int(labels.max()) + 1
        self.class_names = tuple(class_names or (("support",) if labels is None else map(str, range(n_classes))))
        if len(self.class_names) < n_classes:
            raise ValueError(f"class_names has {len(self.class_names)} names, labels go up to {n_classes - 1}")

    @property
    def holds_embeddings(self) -> bool:
        """Whether the support holds embeddings, and not images that must be embedded first."""
        return self.inputs.dim() == 3

    @property
    def class_counts(self) -> list[int]:
        """The number of supports per query if all belong to one class; zeros otherwise."""
        return [self.inputs.shape[1]] if self.labels is None else super().class_counts

    @property
    def per_query(self) -> bool:
        return True

    def for_queries(self, start: int, stop: int) -> SupportPerQuery:
        """The supports of the queries ``start`` to ``stop - 1``."""
        labels = None if self.labels is None else self.labels[start:stop]
        is_support = None if self.is_support is None else self.is_support[start:stop]
        return SupportPerQuery(self.inputs[start:stop], labels, self.class_names, is_support=is_support)

    def check_queries(self, inputs: tuple[Tensor, ...], args: tuple[Any, ...] | None) -> None:
        if not self.holds_embeddings:
            check_images(self.inputs.flatten(0, 1), inputs, args)
        check_batch(self.inputs, len(inputs[0]))

    def embed(self, forward_func: Callable[..., Any], additional_forward_args: Any = None) -> SupportPerQuery:
        """Embed the images of the support with ``forward_func``.

        Args:
            forward_func: maps a batch of images to embeddings ``(B, J)``.
            additional_forward_args: further arguments of ``forward_func``. Default: None.

        Returns:
            A support with embeddings ``(B, K, J)``; the support itself if it holds embeddings already.

        Raises:
            TypeError: if ``forward_func`` does not give a floating-point tensor.
            ValueError: if ``forward_func`` does not give finite embeddings ``(B, J)``.
        """
        if self.holds_embeddings:
            return self
        flat = embed_images(forward_func, self.inputs.flatten(0, 1), additional_forward_args)
        vectors = check_finite(flat).unflatten(0, self.inputs.shape[:2])
        return SupportPerQuery(vectors, self.labels, self.class_names, is_support=self.is_support)

    def compare(self, query: Tensor, target: TargetType = None, similarity: Similarity | None = None) -> Comparison:
        """Compare each query with its own supports.

        Raises:
            ValueError: for a support of images, which must be embedded first, or for queries that do not fit.
        """
        if not self.holds_embeddings:
            raise ValueError("support holds images but embeddings are needed; pass support.embed(model)")
        check_embedding_sizes(query, self.inputs)
        check_batch(self.inputs, len(query))
        weights = F.widen(self.inputs).new_ones(self.inputs.shape[:2])
        if self.is_support is not None:
            weights = weights * self.is_support.to(weights)
        members: Members
        if self.labels is None and self.is_support is None:
            members = SharedMembers(weights[:1] / weights.shape[1])
        elif self.labels is None:
            members = SameForAll(weights / weights.sum(1, keepdim=True), self.n_classes)
        else:
            members = RowMembers(self.labels.to(query.device), weights, self.class_names)
        return Comparison(query, self.inputs, members, self.measure(similarity), self.class_names, target)
