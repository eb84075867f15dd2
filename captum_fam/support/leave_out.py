"""A support set without the supports that are a query itself."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from typing import Any

import torch
from torch import Tensor

from captum_fam import functional as F
from captum_fam._arithmetic import plain_arithmetic
from captum_fam._captum import TargetType
from captum_fam.similarity import Similarity
from captum_fam.support.base import Support
from captum_fam.support.checks import as_exclusion, check_batch, check_embedding_sizes
from captum_fam.support.comparison import Comparison
from captum_fam.support.gallery_rows import TensorRows
from captum_fam.support.members import RowMembers
from captum_fam.support.support_per_query import SupportPerQuery
from captum_fam.support.support_set import SupportSet

_N_PROBES = 16


class LeaveOutSupport(Support):
    """A support set that leaves out some supports for each query, such as the query itself.

    The score of a class is the mean over the supports that are left (Eq. 11). A class without a support that is left
    has the score -inf for this query; it is never predicted, and cannot be explained.

    Args:
        support: the supports that all queries share.
        left_out: True for the supports that are left out for each query, boolean ``(B, K)``.

    Attributes:
        support: the support set.
        left_out: boolean ``(B, K)``.

    Raises:
        TypeError: for a support that is no :class:`~captum_fam.SupportSet`, or a mask that is not boolean.
        ValueError: for a mask of another shape, or a query without a support that is left.

    Example:
        >>> support = SupportSet(torch.eye(3), ["jay", "jay", "wren"])
        >>> others = LeaveOutSupport(support, torch.tensor([[True, False, False], [False, False, True]]))
        >>> others.compare(torch.tensor([[1.0, 0.0, 0.0], [0.0, 0.6, 0.8]])).scores
        tensor([[0.0000, 0.0000],
                [0.3000,   -inf]])
    """

    forms_gallery = True

    def __init__(self, support: SupportSet, left_out: Tensor) -> None:
        if not isinstance(support, SupportSet):
            raise TypeError(f"support must be a SupportSet, got {type(support).__name__}")
        if left_out.dtype != torch.bool:
            raise TypeError(f"left_out must be boolean, got {left_out.dtype}")
        if left_out.dim() != 2 or left_out.shape[1] != len(support):
            raise ValueError(
                f"left_out must be (B, {len(support)}), one per query and support, got {tuple(left_out.shape)}"
            )
        nothing_left = left_out.all(1).nonzero()
        if len(nothing_left):
            raise ValueError(
                f"support: nothing is left for query {int(nothing_left[0])}, every support is the query itself"
            )
        self.support = support
        self.left_out = left_out
        self.class_names = support.class_names

    @property
    def class_counts(self) -> list[int]:
        """The number of supports per class before any is left out."""
        return self.support.class_counts

    @property
    def per_query(self) -> bool:
        return True

    def for_queries(self, start: int, stop: int) -> LeaveOutSupport:
        """The supports of the queries ``start`` to ``stop - 1``."""
        return LeaveOutSupport(self.support, self.left_out[start:stop])

    def check_queries(self, inputs: tuple[Tensor, ...], args: tuple[Any, ...] | None) -> None:
        self.support.check_queries(inputs, args)
        check_batch(self.left_out, len(inputs[0]))

    def embed(self, forward_func: Callable[..., Any], additional_forward_args: Any = None) -> LeaveOutSupport:
        """Embed the images of the support set with ``forward_func``, each image once."""
        return LeaveOutSupport(self.support.embed(forward_func, additional_forward_args), self.left_out)

    def prototypes(self) -> SupportPerQuery:
        """One support per query and class: the mean embedding of the supports of the class that are left.

        Raises:
            ValueError: for a set of images, which must be embedded first.
        """
        embeddings = F.widen(self.support.embeddings())
        with plain_arithmetic(embeddings.device):
            is_left = ~self.left_out.to(embeddings.device)
            members = self.support.class_weights(embeddings.dtype) > 0
            weights = (is_left.unsqueeze(1) & members).to(embeddings.dtype)
            counts = weights.sum(2, keepdim=True)
            means = weights @ embeddings / counts.clamp_min(1)
        classes = torch.arange(self.n_classes).expand(len(means), -1)
        return SupportPerQuery(means, classes, self.class_names, is_support=(counts > 0).squeeze(2))

    def compare(self, query: Tensor, target: TargetType = None, similarity: Similarity | None = None) -> Comparison:
        """Compare each query ``(B, J)`` with the supports that are left for it.

        Raises:
            ValueError: for a set of images, which must be embedded first, or for queries that do not fit.
        """
        embeddings = self.support.embeddings()
        check_embedding_sizes(query, embeddings)
        check_batch(self.left_out, len(query))
        return Comparison(query, embeddings, self.members(), self.measure(similarity), self.class_names, target)

    def gallery_rows(self) -> TensorRows:
        """The supports that are left for each query, whatever their class, as the rows of a gallery."""
        rows = [left_out.nonzero().flatten().tolist() for left_out in self.left_out]
        return TensorRows(self.support.embeddings(), as_exclusion(rows, torch.device("cpu")))

    def members(self) -> RowMembers:
        """Which supports belong to which class, for each query."""
        labels = self.support.labels.expand(len(self.left_out), -1)
        inputs = self.support.inputs
        dtype = F.widen(inputs[:1]).dtype if inputs.is_floating_point() else torch.float32
        weights = (~self.left_out.to(labels.device)).to(dtype)
        return RowMembers(labels, weights, self.class_names, " besides the query itself")


def same_ids(own_ids: Sequence[Hashable], ids: Sequence[Hashable]) -> Tensor:
    """Which supports have the id of a query.

    Args:
        own_ids: the ids of B queries; None for a query without an id.
        ids: the ids of K supports; None for a support without an id.

    Returns:
        boolean ``(B, K)``.

    Example:
        >>> same_ids(["a.png", None], ["b.png", "a.png", None])
        tensor([[False,  True, False],
                [False, False, False]])
    """
    places: dict[Hashable, list[int]] = {}
    for place, one in enumerate(ids):
        if one is not None:
            places.setdefault(one, []).append(place)
    same = torch.zeros(len(own_ids), len(ids), dtype=torch.bool)
    for query, own in enumerate(own_ids):
        same[query, places.get(own, [])] = True
    return same


def same_inputs(queries: Tensor, supports: Tensor) -> Tensor:
    """Which supports are equal to a query in every value.

    Args:
        queries: inputs of the model, ``(B, ...)``.
        supports: inputs of the model, ``(K, ...)``.

    Returns:
        boolean ``(B, K)``; False for inputs of another shape or dtype.

    Example:
        >>> same_inputs(torch.eye(2), torch.tensor([[0.0, 1.0], [1.0, 1.0], [1.0, 0.0]]))
        tensor([[False, False,  True],
                [ True, False, False]])
    """
    if queries.shape[1:] != supports.shape[1:] or queries.dtype != supports.dtype:
        return torch.zeros(len(queries), len(supports), dtype=torch.bool)
    # A few values tell most inputs apart. Only the other pairs are compared in full, since there may be many supports.
    shape = queries.shape[1:]
    probes = torch.linspace(0, shape.numel() - 1, min(_N_PROBES, shape.numel())).long()
    places: tuple[Any, ...] = (slice(None), *torch.unravel_index(probes, shape))
    same = (queries[places].detach().cpu().unsqueeze(1) == supports[places].detach().cpu()).all(2)
    for query, support in same.nonzero().tolist():
        same[query, support] = torch.equal(queries[query].to(supports.device), supports[support])
    return same
