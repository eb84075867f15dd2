"""Which supports stand for which class, and with what weight."""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
from torch import Tensor, nn

from captum_fam import functional as F


class Members(ABC):
    """The linear forms that make scores of classes of the similarities to K supports (Eq. 11).

    Attributes:
        n_classes: C.
        present: which classes have a support, boolean ``(B, C)``; None: all of them.
    """

    n_classes: int
    present: Tensor | None = None

    @abstractmethod
    def average(self, values: Tensor) -> Tensor:
        """The weighted sum over the supports of each class: ``(B, K)`` -> ``(B, C)``; zero for a class without any."""

    @abstractmethod
    def weights(self, classes: Tensor) -> Tensor:
        """The weight of every support for one class per query: ``(B,)`` -> ``(B, K)``."""

    @abstractmethod
    def others(self) -> Members:
        """What stands against each class: the mean of the other classes.

        Raises:
            ValueError: where there is no other class.
        """

    def require_others(self) -> None:
        """Refuse queries that have no support of a second class, where a foil is one.

        Raises:
            ValueError: for these.
        """
        return

    @property
    @abstractmethod
    def counts(self) -> Tensor:
        """The number of supports of each class, ``(C,)`` or ``(B, C)``."""

    def followed_by(self, n_supports: int) -> Members:
        """The same forms where other supports stand behind these, which are of no class."""
        return _FollowedMembers(self, n_supports)


class SharedMembers(Members):
    """Supports that are the same for all queries.

    Args:
        matrix: ``(C, K)``; row c takes the mean over the supports of class c.
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
    """Supports of each query's own, each with a label: the neighbors that a search has found.

    A class that none of the supports of a query belongs to cannot be explained for that query.

    Args:
        labels: ``(B, K)``.
        weights: of each support in its class, ``(B, K)``, zero for padding; they are scaled to sum to one per class.
        class_names: C names.
        remedy: what to do where a class has no support, for the message.
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
            query = int((count < 2).nonzero()[0])
            raise ValueError(f"foil: all supports of query {query} are of one class{self._remedy}")

    def of_others(self, classes: Tensor) -> Tensor:
        """The mean of :meth:`weights` of the other classes that have a support, ``(B, K)``."""
        is_other = self._labels != classes.unsqueeze(1)
        count = self.present.sum(1) - self.present.gather(1, classes.unsqueeze(1)).squeeze(1).long()
        return self._weights * is_other / count.unsqueeze(1)

    def _require(self, is_there: Tensor, classes: Tensor) -> None:
        if not is_there.all():
            query = int((~is_there).nonzero()[0])
            name = self._class_names[int(classes[query])]
            raise ValueError(f"support: query {query} has no support of class {name}{self._remedy}")


class _OtherRows(Members):
    """The mean of the other classes that have a support, for each class and query."""

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
    """The forms of other members, which do not look at the last supports."""

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

    def others(self) -> Members:
        return _FollowedMembers(self._members.others(), self._n_supports)


class SameForAll(Members):
    """Supports of each query's own that count alike for every class.

    Args:
        weights: of each support, ``(B, K)``; rows sum to one.
        n_classes: C.
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
        raise ValueError("foil: the support is the same for every class, so that no class stands against another")
