"""The rows of a gallery, as the mean similarity needs them: their sum, some of them, or all of them."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable

import torch
from torch import Tensor

from captum_fam._arithmetic import plain_arithmetic
from captum_fam.similarity import Similarity
from captum_fam.similarity.registry import are_equal
from captum_fam.support._version import version_of
from captum_fam.support.mean_form import MeanForm

BLOCK_BYTES = 32 * 2**20

NO_ROWS = "left_out: nothing can be left out of a mean vector; pass the embeddings of the gallery"


class GalleryRows(ABC):
    """The embeddings of a gallery, which a support with :attr:`Support.forms_gallery` gives.

    Attributes:
        left_out: rows that are left out for each query, ``(B, E)``; -1 leaves nothing out. None for no rows.

    Example:
        >>> rows: GalleryRows = SupportSet(torch.eye(3), ["jay", "jay", "wren"]).gallery_rows()
        >>> len(rows), rows.features
        (3, 3)
    """

    left_out: Tensor | None = None

    @abstractmethod
    def __len__(self) -> int:
        """The number of rows, M."""

    @property
    @abstractmethod
    def features(self) -> int:
        """The length of the embeddings, J."""

    @abstractmethod
    def total(self, form: MeanForm) -> Tensor:
        """The sum of the lifted rows, float64 ``(L,)`` on the CPU."""

    @abstractmethod
    def some(self, rows: Tensor) -> Tensor:
        """The embeddings of some rows, ``(n,) -> (n, J)``."""

    @abstractmethod
    def whole(self) -> Tensor:
        """All embeddings, ``(M, J)``.

        Raises:
            ValueError: where they are not in one place.
        """


class RowSums:
    """Sums of lifted rows, by similarity: each is computed once, and again after the similarity or the rows change.

    Args:
        compute: gives the sum of the rows that a form lifts, float64 ``(L,)`` on the CPU.
        embeddings: the rows, ``(M, J)``.
    """

    def __init__(self, compute: Callable[[MeanForm], Tensor], embeddings: Tensor) -> None:
        self._compute = compute
        self._embeddings = embeddings
        self._known: list[tuple[Similarity, object, Tensor]] = []

    def of(self, form: MeanForm) -> Tensor:
        """The sum of the rows that a form lifts.

        Args:
            form: lifts rows.
        """
        # A similarity is compared by the values that it has now: a sum of other values must not stay in the list.
        known = [one for one in self._known if one[1] == version_of(one[0], self._embeddings)]
        for similarity, _, total in known:
            if are_equal(similarity, form.similarity):
                return total
        version = version_of(form.similarity, self._embeddings)
        total = self._compute(form)
        self._known = [*known, (form.similarity, version, total)]
        return total


def sum_of_rows(embeddings: Tensor, form: MeanForm) -> Tensor:
    """The sum of lifted rows in one pass, block by block, in float64: squares of long rows cancel in a mean.

    Args:
        embeddings: ``(M, J)``, of any floating-point type.
        form: lifts rows.

    Returns:
        float64 ``(L,)`` on the CPU.
    """
    step = max(1, BLOCK_BYTES // (8 * embeddings.shape[1]))
    with plain_arithmetic(embeddings.device):
        blocks = embeddings.detach().split(step)
        parts = [form.lift((block.cpu() if block.is_mps else block).double()).sum(0) for block in blocks]
        return torch.stack(parts).sum(0).cpu()


class TensorRows(GalleryRows):
    """Rows in one tensor.

    Args:
        embeddings: ``(M, J)``.
        left_out: rows that are left out for each query, ``(B, E)``. Default: None, no rows.
        sums: sums of the rows that are kept. Default: None, sums are computed in every call.

    Example:
        >>> TensorRows(torch.eye(3), left_out=torch.tensor([[0], [-1]])).some(torch.tensor([2]))
        tensor([[0., 0., 1.]])
    """

    def __init__(self, embeddings: Tensor, left_out: Tensor | None = None, sums: RowSums | None = None) -> None:
        self._embeddings = embeddings
        self._sums = sums
        self.left_out = left_out

    def __len__(self) -> int:
        return len(self._embeddings)

    @property
    def features(self) -> int:
        return self._embeddings.shape[1]

    def total(self, form: MeanForm) -> Tensor:
        return sum_of_rows(self._embeddings, form) if self._sums is None else self._sums.of(form)

    def some(self, rows: Tensor) -> Tensor:
        return self._embeddings[rows.to(self._embeddings.device)]

    def whole(self) -> Tensor:
        return self._embeddings


class MeanOfRows(GalleryRows):
    """The mean embedding in the place of rows that nobody has kept.

    Args:
        mean: ``(J,)``; for the cosine, the mean of embeddings of length one.
    """

    def __init__(self, mean: Tensor) -> None:
        self._mean = mean

    def __len__(self) -> int:
        return 1

    @property
    def features(self) -> int:
        return len(self._mean)

    def total(self, form: MeanForm) -> Tensor:
        if form.needs_squares:
            raise ValueError(_needs_rows(form.similarity))
        if form.takes_units:
            length = float(self._mean.double().norm())
            if length > 1 + 1e-3:
                raise ValueError(
                    "gallery: a mean vector for this similarity is the mean of embeddings of length one, whose length "
                    f"is at most 1, got {length:.3g}; scale each embedding to length one before the mean"
                )
        return self._mean.detach().cpu().double()

    def some(self, rows: Tensor) -> Tensor:
        raise ValueError(NO_ROWS)

    def whole(self) -> Tensor:
        raise ValueError("gallery: this similarity needs all embeddings of the gallery, and not their mean vector")


def _needs_rows(similarity: Similarity) -> str:
    return (
        f"gallery: the mean of {type(similarity).__name__} over a gallery does not follow from the mean vector; pass "
        "the embeddings of the gallery"
    )
