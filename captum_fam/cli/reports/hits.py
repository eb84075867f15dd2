"""The neighbors of queries, wherever they come from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from torch import Tensor

from captum_fam.support import Neighbors


@dataclass(frozen=True)
class FoundHits:
    """The neighbors of a batch of queries.

    Attributes:
        neighbors: the neighbors; None if no query has one.
        kept: the positions of the queries that have neighbors, in the batch.
        predicted: for each of these queries the class of its neighbors: by their votes, or the class of the first one.
        files: for each of these queries the files of its neighbors.
        classes: for each of these queries the class of each of its neighbors; empty where it is not known.
        decisions: for each of these queries how its class follows from the neighbors, in words; empty without classes.
        remarks: for each of these queries what a row says of each of its neighbors; empty for nothing.
        note: how the scores of a search engine differ from the similarities of the model; None if they agree.
    """

    neighbors: Neighbors | None = None
    kept: tuple[int, ...] = ()
    predicted: tuple[str, ...] = ()
    files: tuple[tuple[Path, ...], ...] = ()
    classes: tuple[tuple[str, ...], ...] = ()
    decisions: tuple[str, ...] = ()
    remarks: tuple[tuple[str, ...], ...] = ()
    note: str | None = None


BY_NEAREST = "the class of the nearest image"
"""How the class of a query is found where neighbors do not vote, in words."""


class HitSource(Protocol):
    """Where the neighbors of queries come from."""

    def foil_of(self, files: Sequence[Path]) -> Any:
        """The images whose average is the foil of a batch of queries, as :func:`~captum_fam.explain` takes a gallery.

        Args:
            files: the files of the queries, which are left out of their own foils.

        Returns:
            The same object for all batches in which nothing is left out.
        """

    @property
    def notes(self) -> Sequence[str]:
        """What the user has to know."""

    def find(self, files: Sequence[Path], embedded: Tensor) -> FoundHits:
        """Find the neighbors of a batch of queries; a query is no neighbor of itself.

        Args:
            files: the files of the queries.
            embedded: their embeddings, ``(B, J)``.
        """

    def describe(self) -> Mapping[str, Any]:
        """Gallery and neighbors for the manifest, as JSON can represent them."""
