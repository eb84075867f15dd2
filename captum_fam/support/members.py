"""Which supports belong to which class, and with what weight."""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
from torch import Tensor, nn

from captum_fam import functional as F
from captum_fam._text import printable


class Members(ABC):
    """The weight of each of K supports in the score of each class (Eq. 11).

    Attributes:
        n_classes: C.
        present: which classes have a support, boolean ``(B, C)``; None if all classes have supports.

    Example:
        >>> from captum_fam.support import Members
        >>> members: Members = SupportSet(torch.eye(3), [0, 0, 1]).compare(torch.eye(3)[:1]).members
        >>> members.average(torch.tensor([[0.2, 0.4, 0.9]]))  # similarities to three supports, scores of two classes
        tensor([[0.3000, 0.9000]])
    """

    n_classes: int
    present: Tensor | None = None

    @abstractmethod
    def average(self, values: Tensor) -> Tensor:
        """The weighted sum of values over the supports of each class.

        Args:
            values: one value per support, such as the similarities, ``(B, K)``.

        Returns:
            ``(B, C)``; zero for a class without supports.
        """

    @abstractmethod
    def weights(self, classes: Tensor) -> Tensor:
        """The weight of each support in the score of one class per query.

        Args:
            classes: the class of each query, ``(B,)``.

        Returns:
            ``(B, K)``.

        Raises:
            ValueError: if a query has no support of its class.
        """

    @abstractmethod
    def others(self) -> Members:
        """The weights of a foil: for each class the mean of the other classes.

        Raises:
            ValueError: if there is only one class.
        """

    def require_others(self) -> None:
        """Check that each query has supports of two classes at least, as a foil of other classes needs.

        Raises:
            ValueError: for a query whose supports all belong to one class.
        """
        return

    @property
    @abstractmethod
    def counts(self) -> Tensor:
        """The number of supports of each class, ``(C,)`` or ``(B, C)``."""

    def followed_by(self, n_supports: int) -> Members:
        """The same weights for a longer list of supports, whose last supports belong to no class.

        Args:
            n_supports: how many supports are added at the end.
        """
        return _FollowedMembers(self, n_supports)


class SharedMembers(Members):
    """Weights for supports that all queries share.

    Args:
        matrix: the weights, ``(C, K)``. For Eq. 11, row c holds 1 / K_c at the supports of class c and 0 elsewhere.

    Example:
        >>> members = SharedMembers(torch.tensor([[0.5, 0.5, 0.0], [0.0, 0.0, 1.0]]))
        >>> members.average(torch.tensor([[0.2, 0.4, 0.9]]))
        tensor([[0.3000, 0.9000]])
    """

    def __init__(self, matrix: Tensor) -> None:
        self.matrix = matrix
        self.n_classes = len(matrix)

    @property
    def counts(self) -> Tensor:
        return self.matrix.count_nonzero(1)

    def average(self, values: Tensor) -> Tensor:
        return F.class_similarity(values, self.matrix.to(values.dtype))

    def weights(self, classes: Tensor) -> Tensor:
        return self.matrix[classes]

    def others(self) -> Members:
        if self.n_classes < 2:
            raise ValueError("foil='others' needs a support of at least two classes, got one")
        return SharedMembers((self.matrix.sum(0) - self.matrix) / (self.n_classes - 1))

    def followed_by(self, n_supports: int) -> SharedMembers:
        return SharedMembers(nn.functional.pad(self.matrix, (0, n_supports)))


class RowMembers(Members):
    """Weights for labeled supports of each query, such as the neighbors that a search has found.

    A class can be explained for a query only if the query has a support of this class.

    Args:
        labels: the class of each support, ``(B, K)``.
        weights: the weight of each support, ``(B, K)``, not negative; zero for padding. They are scaled to sum to one
            per query and class.
        class_names: C names.
        remedy: the end of the error message for a class without a support. Default: an empty text.

    Example:
        >>> members = RowMembers(torch.tensor([[1, 0, 1]]), torch.ones(1, 3), ("jay", "wren", "tit"))
        >>> members.average(torch.tensor([[0.2, 0.4, 0.8]])), members.present
        (tensor([[0.4000, 0.5000, 0.0000]]), tensor([[ True,  True, False]]))
    """

    def __init__(self, labels: Tensor, weights: Tensor, class_names: tuple[str, ...], remedy: str = "") -> None:
        self.n_classes = len(class_names)
        self._labels = labels
        self._class_names = class_names
        self._remedy = remedy
        totals = weights.new_zeros(len(labels), self.n_classes).scatter_add_(1, labels, weights)
        present = totals > 0
        self.present: Tensor = present
        self._weights = weights / torch.where(present, totals, 1).gather(1, labels)

    @property
    def counts(self) -> Tensor:
        ones = (self._weights != 0).long()
        return torch.zeros_like(self.present, dtype=torch.long).scatter_add_(1, self._labels, ones)

    def average(self, values: Tensor) -> Tensor:
        sums = values.new_zeros(len(values), self.n_classes)
        return sums.scatter_add(1, self._labels, values * self._weights.to(values.dtype))

    def weights(self, classes: Tensor) -> Tensor:
        self._require(self.present.gather(1, classes.unsqueeze(1)).squeeze(1), classes)
        return self._weights * (self._labels == classes.unsqueeze(1))

    def others(self) -> Members:
        return _OtherRows(self)

    def require_others(self) -> None:
        count = self.present.sum(1)
        if not (count > 1).all():
            after = (
                f" are of one class{self._remedy}, so that no other class stands against it; leave out such queries, "
                "or explain them without a foil"
            )
            raise LackingSupportError("foil: all supports of ", count < 2, after)

    def of_others(self, classes: Tensor) -> Tensor:
        """The weights of a foil for one class per query: the mean of all other classes that have supports.

        Args:
            classes: the class of each query, ``(B,)``.

        Returns:
            ``(B, K)``.
        """
        is_other = self._labels != classes.unsqueeze(1)
        count = self.present.sum(1) - self.present.gather(1, classes.unsqueeze(1)).squeeze(1).long()
        return self._weights * is_other / count.unsqueeze(1)

    def _require(self, has_support: Tensor, classes: Tensor) -> None:
        """Refuse classes ``(B,)`` for queries without a support of their class."""
        if not has_support.all():
            lacking = int(classes[int((~has_support).nonzero()[0])])
            name, concerned = self._class_names[lacking], ~has_support & (classes == lacking)
            verb = "has" if concerned.sum() == 1 else "have"
            after = (
                f" {verb} no support of class {printable(name)}{self._remedy}; leave out such queries, or explain "
                "their predicted classes"
            )
            raise LackingSupportError("support: ", concerned, after)


class LackingSupportError(ValueError):
    """An error for queries that lack the supports that a class or a foil needs.

    Args:
        before: the words in front of the queries.
        concerned: which queries lack supports, boolean ``(B,)``.
        after: the words behind the queries.
        first: the number of the first query of the batch. Default: 0.

    Example:
        >>> print(LackingSupportError("support: ", torch.tensor([False, True]), " has no support", first=32))
        support: query 33 has no support
    """

    def __init__(self, before: str, concerned: Tensor, after: str, first: int = 0) -> None:
        super().__init__(f"{before}{_queries_in_words(concerned, first)}{after}")
        self._parts = before, concerned, after

    def in_batch(self, first: int) -> LackingSupportError:
        """The same error for a batch that is a part of another.

        Args:
            first: the position of its first query in the other.
        """
        return LackingSupportError(*self._parts, first=first)


def _queries_in_words(concerned: Tensor, first: int) -> str:
    """The queries for which a mask ``(B,)`` is True, the first ten by number."""
    numbers = [str(first + number) for number in concerned.nonzero().flatten().tolist()]
    if len(numbers) == 1:
        return f"query {numbers[0]}"
    shown = ", ".join(numbers[:10]) + (", ..." if len(numbers) > 10 else "")
    return f"queries {shown} ({len(numbers)} of {len(concerned)})"


class _OtherRows(Members):
    """The weights of a foil: for each class and query the mean of the other classes that have supports."""

    def __init__(self, rows: RowMembers) -> None:
        self.n_classes = rows.n_classes
        self._rows = rows

    @property
    def counts(self) -> Tensor:
        counts = self._rows.counts
        return counts.sum(1, keepdim=True) - counts

    def average(self, values: Tensor) -> Tensor:
        averages = self._rows.average(values)
        present = self._rows.present.to(values.dtype)
        count = present.sum(1, keepdim=True) - present
        return (averages.sum(1, keepdim=True) - averages) / count.clamp_min(1)

    def weights(self, classes: Tensor) -> Tensor:
        return self._rows.of_others(classes)

    def others(self) -> Members:
        raise NotImplementedError("a foil has no foil")


class _FollowedMembers(Members):
    """The weights of other members, for a longer list of supports whose last supports have the weight zero."""

    def __init__(self, members: Members, n_supports: int) -> None:
        self.n_classes = members.n_classes
        self.present = members.present
        self._members = members
        self._n_supports = n_supports

    @property
    def counts(self) -> Tensor:
        return self._members.counts

    def average(self, values: Tensor) -> Tensor:
        return self._members.average(values[:, : -self._n_supports])

    def weights(self, classes: Tensor) -> Tensor:
        return nn.functional.pad(self._members.weights(classes), (0, self._n_supports))

    def require_others(self) -> None:
        self._members.require_others()

    def others(self) -> Members:
        return _FollowedMembers(self._members.others(), self._n_supports)


class SameForAll(Members):
    """Weights for supports of each query, the same weights for every class.

    Args:
        weights: the weight of each support, ``(B, K)``; rows sum to one.
        n_classes: C.

    Example:
        >>> SameForAll(torch.tensor([[0.5, 0.5]]), n_classes=3).average(torch.tensor([[0.2, 0.4]]))
        tensor([[0.3000, 0.3000, 0.3000]])
    """

    def __init__(self, weights: Tensor, n_classes: int) -> None:
        self.n_classes = n_classes
        self._weights = weights

    @property
    def counts(self) -> Tensor:
        return self._weights.count_nonzero(1).unsqueeze(1).expand(-1, self.n_classes)

    def average(self, values: Tensor) -> Tensor:
        score = (values * self._weights.to(values.dtype)).sum(1, keepdim=True)
        return score.expand(-1, self.n_classes)

    def weights(self, classes: Tensor) -> Tensor:
        return self._weights

    def others(self) -> Members:
        return self

    def require_others(self) -> None:
        raise ValueError("foil: the support is the same for every class, so that no class stands against another")
