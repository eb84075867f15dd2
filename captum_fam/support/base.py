"""The interface of everything that queries are compared with."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any

from torch import Tensor

from captum_fam._captum import TargetType
from captum_fam.similarity import Similarity, get_similarity
from captum_fam.similarity.registry import are_equal
from captum_fam.support.comparison import Comparison
from captum_fam.support.gallery_rows import GalleryRows


class Support(ABC):
    """What queries are compared with: a support set, a memory bank, or the neighbors that a search engine found.

    A new kind of support defines :meth:`compare`. Then every map method of this package explains the comparison, and
    every method of Captum explains it as a :class:`~captum_fam.SimilarityToSupport`. Foils work with every support.

    Attributes:
        class_names: C names.
        similarity: the similarity of this support. None, the default, if the support works with any similarity.
        forms_gallery: whether all supports together are a gallery for ``foil="gallery"``, see :meth:`gallery_rows`.
            Default: False.
        is_contrasted: whether a foil, a gallery or a number is subtracted from the scores already. Default: False.

    Example:
        >>> from captum_fam.support import Comparison, SameForAll, Support
        >>> class Nearest(Support):
        ...     '''The embedding that is nearest to the query, as the only support.'''
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
    forms_gallery: bool = False
    is_contrasted: bool = False

    @property
    def n_classes(self) -> int:
        """The number of classes, C."""
        return len(self.class_names)

    @property
    def class_counts(self) -> list[int]:
        """The number of supports per class; zeros if it is not known."""
        return [0] * self.n_classes

    @property
    def per_query(self) -> bool:
        """Whether each query of a batch has supports of its own, so that the support fits this batch only."""
        return False

    def for_queries(self, start: int, stop: int) -> Support:
        """The support for a part of the batch.

        Args:
            start: the first query of the part.
            stop: the query behind the last query of the part.

        Returns:
            The support of these queries; the support itself if all queries share it.
        """
        return self

    @abstractmethod
    def compare(self, query: Tensor, target: TargetType = None, similarity: Similarity | None = None) -> Comparison:
        """Compare queries with the support.

        Args:
            query: embeddings ``(B, J)``; the scores are differentiable in them.
            target: the class to explain, in any form that Captum takes. Default: None, the predicted class.
            similarity: the similarity that the model decides with. Default: None, the similarity of the support if it
                has one, else the cosine.

        Returns:
            Similarities, scores of classes and support weights.

        Raises:
            ValueError: for queries that do not fit the support, or another similarity than that of the support.
        """

    def embed(self, forward_func: Callable[..., Any], additional_forward_args: Any = None) -> Support:
        """Embed the images of the support.

        Args:
            forward_func: maps a batch of images to embeddings ``(B, J)``.
            additional_forward_args: further arguments of ``forward_func``. Default: None.

        Returns:
            A support that holds embeddings; the support itself if it holds embeddings already.
        """
        return self

    def check_queries(self, inputs: tuple[Tensor, ...], args: tuple[Any, ...] | None) -> None:
        """Check that the images of the support can go through the same model as the queries.

        Args:
            inputs: the input tensors of the model, queries first.
            args: further arguments of the model; None if there are none.

        Raises:
            ValueError: if the images of the support do not fit the queries.
        """
        return

    def for_every_class(self) -> Support:
        """The same support, but :meth:`compare` compares each query with supports of every class.

        Foils and scores of all classes need this. A memory bank, for example, otherwise chooses rows of the explained
        class only.
        """
        return self

    def gallery_rows(self) -> GalleryRows:
        """All supports as the rows of a gallery, for a support with ``forms_gallery``.

        Raises:
            ValueError: for images, which must be embedded first; or for a support that is no gallery.
        """
        raise ValueError(f"{type(self).__name__} has no rows for a gallery")

    def measure(self, similarity: Similarity | None) -> Similarity:
        """The similarity to compare with.

        Args:
            similarity: the similarity of the method; None if the method works with any similarity.

        Returns:
            The similarity of the method, else of the support, else the cosine.

        Raises:
            ValueError: if support and method have different similarities.
        """
        if similarity is None:
            return self.similarity or get_similarity("cosine")
        own = self.similarity
        if own is not None and not are_equal(own, similarity):
            raise ValueError(
                f"similarity of the support is {self.similarity} but the map explains {similarity}; "
                "use the same similarity for both"
            )
        return similarity


def require_plain(support: object, argument: str) -> None:
    """Refuse to contrast what is no support, or a support whose scores are contrasted already.

    Args:
        support: the support to wrap.
        argument: the argument that asks for the contrast, for the message.

    Raises:
        TypeError: for anything but a support.
        ValueError: for a support with ``is_contrasted``.
    """
    if not isinstance(support, Support):
        raise TypeError(f"support must be a Support (SupportSet, MemoryBank, ...), got {type(support).__name__}")
    if support.is_contrasted:
        raise ValueError(
            f"{argument}: the support, a {type(support).__name__}, has a foil, a gallery or a threshold already; pass "
            "the support without it"
        )
