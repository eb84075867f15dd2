"""The interface of everything that queries are compared with."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any

from torch import Tensor

from captum_fam._captum import TargetType
from captum_fam.similarity import Similarity, get_similarity
from captum_fam.support.comparison import Comparison


class Support(ABC):
    """What queries are compared with: a support set, a memory bank, the neighbors that a search engine found.

    A new kind of support says how to :meth:`compare`. Every method of this package then explains it, and as a
    :class:`~captum_fam.SimilarityToSupport` every method of Captum; foils work on top.

    Attributes:
        class_names: C names.
        similarity: the measure of this support, where it has one of its own; None: that of the method.

    Example:
        >>> from captum_fam.support import Comparison, SameForAll, Support
        >>> class Nearest(Support):
        ...     '''The nearest of a few embeddings, whatever its class.'''
        ...
        ...     def __init__(self, embeddings):
        ...         self.embeddings, self.class_names = embeddings, ("nearest",)
        ...
        ...     def compare(self, query, target=None, similarity=None):
        ...         measure = self.measure(similarity)
        ...         best = measure.score(query, self.embeddings).argmax(1)
        ...         members = SameForAll(torch.ones(len(query), 1), n_classes=1)
        ...         return Comparison(query, self.embeddings[best][:, None], members, measure, self.class_names, target)
        >>> Nearest(torch.eye(3)).compare(torch.tensor([[0.6, 0.8, 0.0]])).score
        tensor([0.8000])
    """

    class_names: tuple[str, ...] = ("support",)
    similarity: Similarity | None = None

    @property
    def n_classes(self) -> int:
        """The number of classes, C."""
        return len(self.class_names)

    @property
    def images(self) -> Tensor | None:
        """The images of the support, ``(K, C, H, W)``; None where there are embeddings only."""
        return None

    @property
    def class_counts(self) -> list[int]:
        """The number of supports of each class; zeros where it is not known."""
        return [0] * self.n_classes

    @property
    def per_query(self) -> bool:
        """Whether the support belongs to one batch of queries, of which each has its own."""
        return False

    def for_queries(self, start: int, stop: int) -> Support:
        """The support of the queries ``start`` to ``stop - 1`` of its batch; itself where all queries share it."""
        return self

    @abstractmethod
    def compare(self, query: Tensor, target: TargetType = None, similarity: Similarity | None = None) -> Comparison:
        """Compare queries with the support.

        Args:
            query: embeddings ``(B, J)``; gradients pass through them to the scores.
            target: the class to explain, in any form that Captum takes; default: the predicted class.
            similarity: the measure that the model decides with; default: that of the support, else the cosine.

        Raises:
            ValueError: for queries that do not fit the support.
        """

    def embed(self, forward_func: Callable[..., Any], additional_forward_args: Any = None) -> Support:
        """The same support as embeddings under ``forward_func``; itself where it holds embeddings already."""
        return self

    def check_queries(self, inputs: tuple[Tensor, ...], args: tuple[Any, ...] | None) -> None:
        """Refuse queries that the images of the support cannot go through a model with.

        Args:
            inputs: the tensors of the queries.
            args: further arguments of the model.

        Raises:
            ValueError: for these.
        """
        return

    def for_every_class(self) -> Support:
        """The same support, comparing with supports of every class, as a foil and scores of all classes need them."""
        return self

    def measure(self, similarity: Similarity | None) -> Similarity:
        """The measure to compare with.

        Raises:
            ValueError: where support and method have different ones.
        """
        if similarity is None:
            return self.similarity or get_similarity("cosine")
        if self.similarity is not None and type(self.similarity) is not type(similarity):
            raise ValueError(
                f"similarity of the support is {self.similarity} but the map explains {similarity}; give both the same"
            )
        return similarity
