"""Similarities by name: an open registry, looked up at each call."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import TypeVar, overload

from captum_fam._files import sha256_of
from captum_fam.similarity.base import Similarity
from captum_fam.similarity.learned import Learned, Metric

SimilarityLike = str | Similarity | Metric
"""A registered name, a :class:`Similarity`, or a metric on two batches of embeddings (:class:`Learned`)."""

SimilarityMaker = Callable[[], Similarity]
"""A class, or a function, that makes a similarity without arguments."""

_Maker = TypeVar("_Maker", bound=SimilarityMaker)

_MAKERS: dict[str, SimilarityMaker] = {}


@overload
def register_similarity(name: str, make: _Maker) -> _Maker: ...


@overload
def register_similarity(name: str, make: None = None) -> Callable[[_Maker], _Maker]: ...


def register_similarity(name: str, make: _Maker | None = None) -> _Maker | Callable[[_Maker], _Maker]:
    """Give a similarity a name, by which everything that takes a similarity finds it from then on.

    Args:
        name: a text that is not taken.
        make: a class, or a function, that makes the similarity without arguments; called for each look-up.
            Default: None, for use as a decorator.

    Returns:
        ``make`` itself, so that a decorated class stays what it is; without it the decorator.

    Raises:
        TypeError: for a name that is no text, or a ``make`` that is a similarity or not callable.
        ValueError: for an empty name, or one that is taken.

    Example:
        >>> from captum_fam.similarity import EuclideanDifference, Similarity, get_similarity, register_similarity
        >>> @register_similarity("bhattacharyya")
        ... class Overlap(Similarity):  # the Bhattacharyya coefficient, for supports that the batch shares
        ...     def score(self, query, support):
        ...         return query.sqrt() @ support.sqrt().T
        ...
        ...     def contributions(self, query, support, support_weights):
        ...         return query.sqrt() * (support_weights @ support.sqrt())
        >>> get_similarity("bhattacharyya")
        Overlap()
        >>> make = register_similarity("dead-channels-match", EuclideanDifference)  # as a function
        >>> get_similarity("dead-channels-match")
        EuclideanDifference(squared=False)
    """
    if not isinstance(name, str):
        raise TypeError(f"name must be a text, got {name!r}")
    if not name:
        raise ValueError("name must not be empty")
    if name in _MAKERS:
        raise ValueError(f"name {name!r} is taken by another similarity; choose another name")
    if make is None:
        return lambda decorated: register_similarity(name, decorated)
    if isinstance(make, Similarity) or not callable(make):
        raise TypeError(f"make must be a class or a function without arguments that makes a Similarity, got {make!r}")
    _MAKERS[name] = make
    return make


def list_similarities() -> list[str]:
    """Names of all registered similarities, in alphabetical order.

    Example:
        >>> "cosine" in list_similarities()
        True
    """
    return sorted(_MAKERS)


def get_similarity(similarity: SimilarityLike) -> Similarity:
    """A similarity by its registered name, as an object, or as a metric.

    Args:
        similarity: a name of :func:`list_similarities`; a :class:`Similarity`, which is returned as it is; or a
            callable on two batches of embeddings, which becomes :class:`Learned`.

    Raises:
        ValueError: for an unknown name.
        TypeError: for anything that is neither a name, a :class:`Similarity` nor callable; for a name whose ``make``
            made no :class:`Similarity`.

    Example:
        >>> get_similarity("squared-euclidean")
        Euclidean(squared=True)
    """
    if isinstance(similarity, Similarity):
        return similarity
    if isinstance(similarity, str):
        if similarity not in _MAKERS:
            raise ValueError(f"similarity must be one of {', '.join(list_similarities())}, got {similarity!r}")
        made = _MAKERS[similarity]()
        if not isinstance(made, Similarity):
            raise TypeError(f"similarity {similarity!r} is registered with a make that made no Similarity: {made!r}")
        return made
    if isinstance(similarity, type):
        raise TypeError(f"similarity is the class {similarity.__name__}; pass an instance, {similarity.__name__}()")
    if callable(similarity):
        return Learned(similarity)
    raise TypeError(f"similarity must be a name, a Similarity or a callable, got {type(similarity).__name__}")


def similarity_name(similarity: SimilarityLike) -> str:
    """A text that stands for a similarity in settings and files; the same in each run, and for equal similarities.

    Args:
        similarity: as for :func:`get_similarity`.

    Returns:
        The registered name, also of an object that equals what a registered class (or ``functools.partial`` of a
        class) makes; else the object's ``repr``, followed by a hash of its parameters and buffers if it has any. A
        metric that is a plain function goes by its own name: two functions of one name are not told apart.

    Raises:
        ValueError, TypeError: as :func:`get_similarity`.

    Example:
        >>> import torch
        >>> from captum_fam.similarity import Bilinear, Euclidean, similarity_name
        >>> (
        ...     similarity_name("cosine"),
        ...     similarity_name(Euclidean(squared=True)),
        ...     similarity_name(Learned(max, n_steps=9)),
        ... )
        ('cosine', 'squared-euclidean', 'Learned(max, n_steps=9)')
        >>> similarity_name(Bilinear(torch.eye(2)))
        'Bilinear() sha256:...'
    """
    made = get_similarity(similarity)
    if isinstance(similarity, str):
        return similarity
    description = _describe(made)
    for name in list_similarities():
        # A function may load a file or fail: only a class, or a partial of one, is asked whether it makes the same.
        make: object = _MAKERS[name]
        made_class = make.func if isinstance(make, partial) else make
        if made_class is type(made) and _describe(get_similarity(name)) == description:
            return name
    return description


def _describe(similarity: Similarity) -> str:
    state = [*similarity.named_parameters(), *similarity.named_buffers()]
    if not state:
        return repr(similarity)
    return f"{similarity!r} sha256:{sha256_of(*(part for named in state for part in named))[:16]}"
