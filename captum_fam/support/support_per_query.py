"""Supports that belong to one query each."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from captum_fam import functional as F
from captum_fam._captum import TargetType
from captum_fam.similarity import Similarity
from captum_fam.support.base import Support
from captum_fam.support.checks import (
    check_batch,
    check_embedding_sizes,
    check_images,
    check_support_tensor,
    plain_tensor,
)
from captum_fam.support.comparison import Comparison
from captum_fam.support.embedding import embed_supports
from captum_fam.support.labels import LabelRows, check_class_names, encode_label_rows
from captum_fam.support.members import Members, RowMembers, SameForAll, SharedMembers


class SupportPerQuery(Support):
    """K supports for each query of a batch, as in retrieval: the partner of a pair, or the hits of a search.

    Args:
        inputs: images ``(B, K, C, H, W)`` or embeddings ``(B, K, J)``: K supports for each of B queries.
        labels: the class of each support, ``(B, K)``: names, or whole numbers of any type and size, as nested lists, a
            tensor or an array. The classes are the different labels in ascending order. With ``class_names``, whole
            numbers are indices of the names. Default: None, all supports belong to one class.
        class_names: C names in the order of the class indices. Default: the different labels in ascending order, as
            texts; ``("support",)`` without labels.
        is_support: False for entries that only fill up the K of a query, boolean ``(B, K)``. Default: None, all entries
            are supports.

    Attributes:
        inputs: images ``(B, K, C, H, W)`` or embeddings ``(B, K, J)``.
        labels: class indices, int64 ``(B, K)``; None without labels.
        is_support: boolean ``(B, K)``; None if all entries are supports.

    Raises:
        TypeError: if ``inputs`` is no tensor of real numbers, or ``labels`` are neither whole numbers nor names.
        ValueError: for a shape without supports per query, NaN or inf, or labels that do not fit.

    Example:
        >>> support = SupportPerQuery(torch.rand(2, 5, 64))  # five hits for each of two queries
        >>> support.compare(torch.rand(2, 64)).similarities.shape
        torch.Size([2, 5])
    """

    def __init__(
        self,
        inputs: Tensor,
        labels: LabelRows | None = None,
        class_names: Sequence[str] | None = None,
        *,
        is_support: Tensor | None = None,
    ) -> None:
        check_support_tensor(inputs)
        if inputs.dim() < 3:
            raise ValueError(
                f"support must be embeddings (B, K, J) or images (B, K, C, H, W), got shape {tuple(inputs.shape)}"
            )
        shape = inputs.shape[:2]
        if is_support is not None and is_support.shape != shape:
            raise ValueError(f"is_support must be {tuple(shape)}, one per support, got {tuple(is_support.shape)}")
        if is_support is not None and not is_support.any(1).all():
            raise ValueError(f"is_support: query {int((~is_support.any(1)).nonzero()[0])} has no support at all")
        self.inputs = plain_tensor(inputs)
        self.is_support = is_support
        self.labels: Tensor | None = None
        self.class_names = ("support",) if class_names is None else check_class_names(class_names)
        if labels is not None:
            mask = torch.ones(shape, dtype=torch.bool) if is_support is None else is_support
            indices, self.class_names = encode_label_rows(labels, class_names, mask)
            self.labels = indices.to(inputs.device)

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
        return self._part(slice(start, stop))

    def leave_out(self, left_out: Tensor) -> SupportPerQuery:
        """The supports without some of them.

        Args:
            left_out: True for the supports that are left out, boolean ``(B, K)``.

        Returns:
            New supports of the same shape, whose entries that are left out are no supports.

        Raises:
            ValueError: for a query without a support that is left.

        Example:
            >>> support = SupportPerQuery(torch.tensor([[[1.0, 0.0], [0.6, 0.8]]]))
            >>> support.leave_out(torch.tensor([[True, False]])).compare(torch.tensor([[1.0, 0.0]])).scores
            tensor([[0.6000]])
        """
        kept = ~left_out.to(self.inputs.device)
        others = self._part(slice(None))
        others.is_support = kept if self.is_support is None else kept & self.is_support.to(kept.device)
        if not others.is_support.any(1).all():
            raise ValueError(f"left_out: nothing is left for query {int((~others.is_support.any(1)).nonzero()[0])}")
        return others

    def _part(self, queries: slice) -> SupportPerQuery:
        """The supports of some queries."""
        part = copy.copy(self)
        part.inputs = self.inputs[queries]
        part.labels = None if self.labels is None else self.labels[queries]
        part.is_support = None if self.is_support is None else self.is_support[queries]
        return part

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
            TypeError: if ``forward_func`` does not give a floating-point tensor, or has weights of another dtype than
                the images.
            ValueError: if ``forward_func`` does not give finite embeddings ``(B, J)``.
        """
        if self.holds_embeddings:
            return self
        embedded = copy.copy(self)
        flat = embed_supports(forward_func, self.inputs.flatten(0, 1), additional_forward_args)
        embedded.inputs = flat.unflatten(0, self.inputs.shape[:2])
        return embedded

    def compare(self, query: Tensor, target: TargetType = None, similarity: Similarity | None = None) -> Comparison:
        """Compare each query with its own supports.

        Raises:
            ValueError: for a support of images, which must be embedded first, or for queries that do not fit.
        """
        if not self.holds_embeddings:
            raise ValueError("support holds images but embeddings are needed; pass support.embed(model)")
        check_embedding_sizes(query, self.inputs)
        check_batch(self.inputs, len(query))
        measure = self.measure(similarity)
        return Comparison(query, self.inputs, self.members(), measure, self.class_names, target)

    def members(self) -> Members:
        """Which supports belong to which class, for each query."""
        dtype = F.widen(self.inputs[:1, :1]).dtype if self.inputs.is_floating_point() else torch.float32
        weights = self.inputs.new_ones(self.inputs.shape[:2], dtype=dtype)
        if self.is_support is not None:
            weights = weights * self.is_support.to(weights)
        if self.labels is None and self.is_support is None:
            return SharedMembers(weights[:1] / weights.shape[1])
        if self.labels is None:
            return SameForAll(weights / weights.sum(1, keepdim=True), self.n_classes)
        return RowMembers(self.labels, weights, self.class_names)
