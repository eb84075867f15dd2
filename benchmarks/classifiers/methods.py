"""Maps of a similarity to supports, where the supports are photographs of the class or the classifier's own rows."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor

from benchmarks.classifiers.networks import Classifier
from benchmarks.classifiers.queries import Queries
from captum_fam.experiments.table_methods import Foil, Maps, ScoresFor, get_methods
from captum_fam.similarity import SimilarityLike
from captum_fam.support import SimilarityToSupport, WeightedSupport

SHOT = 5  # photographs of the class that are supports, at most

BY_PHOTOGRAPHS = ("fam", "fam-foil", "similarity-cam", "similarity-cam-foil", "similarity-cam[smooth=5]-foil")
BY_ROWS = (*BY_PHOTOGRAPHS, "similarity-cam-runner-up", "similarity-cam[smooth=5]-runner-up")
FLOORS = ("mean-activation", "random", "center", "center-box", "uniform")


@dataclass(frozen=True)
class Method:
    """A row of the tables.

    Attributes:
        name: name of the row.
        maps: function from queries to their maps, ``(B, 1, h, w)``.
        slow: whether a map costs hundreds of passes, so that fewer images are explained. Default: False.
    """

    name: str
    maps: Callable[[Queries], Maps]
    slow: bool = False


@dataclass(frozen=True)
class Supports:
    """Embeddings that queries are compared with.

    Attributes:
        embeddings: ``(M, J)``.
        labels: class of each embedding, ``(M,)``.
        similarity: how similar two embeddings are.
        are_photographs: whether embedding m is photograph m; then no image is compared with what it shows itself.
    """

    embeddings: Tensor
    labels: Tensor
    similarity: SimilarityLike
    are_photographs: bool

    def scores_for(self, classifier: Classifier, queries: Queries) -> ScoresFor:
        """The score of the explained class of each query, by the foil that is subtracted.

        The foil ``"others"`` is the mean of all embeddings of other classes, ``"runner-up"`` that of the runner-up.

        Args:
            classifier: the network.
            queries: B queries; class b of the scores is the explained class of query b.
        """
        allowed = torch.ones(len(queries.classes), len(self.labels), dtype=torch.bool)
        if self.are_photographs:
            for query, rows in enumerate(queries.shown):
                allowed[query, rows] = False
        of_class = allowed & (self.labels == queries.classes[:, None])
        foils: dict[Foil | None, Tensor] = {
            "others": allowed & (self.labels != queries.classes[:, None]),
            "runner-up": allowed & (self.labels == queries.runners_up[:, None]),
        }
        weights = _equal_weights(
            torch.stack([self._some(row, shown) for row, shown in zip(of_class, queries.shown, strict=True)])
        )

        @cache
        def scores(foil: Foil | None) -> SimilarityToSupport:
            of_foil = None if foil is None else _equal_weights(foils[foil])
            support = WeightedSupport(self.embeddings, weights, of_foil)
            return SimilarityToSupport(classifier.model.tail, support, self.similarity)

        return scores

    def _some(self, members: Tensor, shown: list[int]) -> Tensor:
        """At most ``SHOT`` of the members, boolean ``(M,)``; which of them depends on the image alone."""
        rows = members.nonzero()[:, 0]
        chosen = torch.randperm(len(rows), generator=torch.Generator().manual_seed(shown[0]))[:SHOT]
        return torch.zeros_like(members).index_fill(0, rows[chosen], True)


def similarity_methods(classifier: Classifier, photographs: Tensor, labels: Tensor) -> list[Method]:
    """FAM and the additive map, for photographs of the class and for the rows of the classifier, and the baselines.

    Args:
        classifier: the network.
        photographs: embeddings of the photographs of the source, ``(n, J)``.
        labels: class of each photograph, ``(n,)``.
    """
    by_photographs = Supports(photographs, labels, "cosine", are_photographs=True)
    rows = classifier.rows
    by_rows = Supports(rows, torch.arange(len(rows)), "dot", are_photographs=False)
    return [
        *(_method(classifier, name, by_photographs, f"{name}, photographs") for name in BY_PHOTOGRAPHS),
        *(_method(classifier, name, by_rows, f"{name}, rows") for name in BY_ROWS),
        *(_method(classifier, name, by_rows, name) for name in FLOORS),
    ]


def _method(classifier: Classifier, name: str, supports: Supports, row: str) -> Method:
    (method,) = get_methods([name])

    def maps(queries: Queries) -> Maps:
        scores_for = supports.scores_for(classifier, queries)
        target = torch.arange(len(queries.classes))
        return method.maps(scores_for, classifier.model.tail, queries.activation, target, queries.size)

    return Method(row, maps)


def _equal_weights(members: Tensor) -> Tensor:
    """Equal weights of the members of each row, with a sum of one, ``(B, M)``."""
    return members.float() / members.sum(1, keepdim=True)
