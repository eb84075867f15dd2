"""The registry of similarities by name, to which anyone can add."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from inspect import signature
from typing import TypeVar, overload

from torch import Tensor

from captum_fam._files import sha256_of
from captum_fam._registration import check_not_taken
from captum_fam.similarity.base import Similarity
from captum_fam.similarity.learned import Learned, Metric

SimilarityLike = str | Similarity | Metric
"""A registered name, a :class:`Similarity`, or a metric, which becomes :class:`Learned`."""

SimilarityMaker = Callable[[], Similarity]
"""A class, or a function without arguments, that makes a similarity."""

_Maker = TypeVar("_Maker", bound=SimilarityMaker)

_MAKERS: dict[str, SimilarityMaker] = {}


@overload
def register_similarity(name: str, make: _Maker) -> _Maker: ...


@overload
def register_similarity(name: str, make: None = None) -> Callable[[_Maker], _Maker]: ...


def register_similarity(name: str, make: _Maker | None = None) -> _Maker | Callable[[_Maker], _Maker]:
    """Give a similarity a name. Every function that takes a similarity accepts the name from then on.

    Args:
        name: a text that no other similarity has as its name.
        make: a class, or a function without arguments, that makes the similarity; called for each look-up.
            Default: None, for use as a decorator.

    Returns:
        ``make`` itself, so that a decorated class stays what it is; the decorator if ``make`` is None.

    Raises:
        TypeError: for a name that is no text, or a ``make`` that is a similarity, not callable or needs arguments.
        ValueError: for an empty name, or a name that is taken.

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
    if make is None:
        return lambda decorated: register_similarity(name, decorated)
    if isinstance(make, Similarity) or not callable(make):
        raise TypeError(f"make must be a class or a function without arguments that makes a Similarity, got {make!r}")
    if _needs_arguments(make):
        raise TypeError(
            f"make must be a class or a function without arguments that makes a Similarity, and {make!r} needs "
            "arguments; a metric of two embeddings is registered by register_similarity(name, lambda: Learned(metric))"
        )
    check_not_taken(name, _MAKERS.get(name), make, "similarity")
    _MAKERS[name] = make
    return make


def _needs_arguments(make: SimilarityMaker) -> bool:
    try:
        signature(make).bind()
    except ValueError:  # some functions in C have no signature
        return False
    except TypeError:
        return True
    return False


def list_similarities() -> list[str]:
    """The names of all registered similarities, in alphabetical order.

    Example:
        >>> "cosine" in list_similarities()
        True
    """
    return sorted(_MAKERS)


def get_similarity(similarity: SimilarityLike) -> Similarity:
    """Convert a name or a metric to a :class:`Similarity`.

    Args:
        similarity: a name of :func:`list_similarities`; a :class:`Similarity`, which is returned as it is; or a
            metric, a callable of two batches of embeddings. Metrics of PyTorch and pytorch-metric-learning become the
            similarities that they are, see :func:`~captum_fam.similarity.known_metrics.known_metric`; any other
            metric becomes :class:`Learned`.

    Returns:
        The similarity; a new object for a name or a metric.

    Raises:
        ValueError: for an unknown name, or a known metric that cannot be explained.
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
        product = _MAKERS[similarity]()
        if not isinstance(product, Similarity):
            raise TypeError(f"similarity {similarity!r} is registered with a make that made no Similarity: {product!r}")
        return product
    if isinstance(similarity, type):
        raise TypeError(f"similarity is the class {similarity.__name__}; pass an instance, {similarity.__name__}()")
    if callable(similarity):
        # The classes in this file register themselves here, so that the file imports this file.
        from captum_fam.similarity.known_metrics import known_metric

        return known_metric(similarity) or Learned(similarity)
    raise TypeError(f"similarity must be a name, a Similarity or a callable, got {type(similarity).__name__}")


def are_equal(first: Similarity, second: Similarity) -> bool:
    """Whether two similarities give the same scores: the same class, options, parameters and buffers.

    Two metrics that are plain functions of one name cannot be told apart.

    Example:
        >>> import torch
        >>> from captum_fam.similarity import Bilinear, Euclidean
        >>> are_equal(Bilinear(torch.eye(2)), Bilinear(torch.eye(2))), are_equal(Euclidean(), Euclidean(squared=True))
        (True, False)
    """
    if first is second:
        return True
    state, other_state = _state(first), _state(second)
    if type(first) is not type(second) or repr(first) != repr(second) or state.keys() != other_state.keys():
        return False
    pairs = [(tensor, other_state[name]) for name, tensor in state.items()]
    return all(a.dtype == b.dtype and a.shape == b.shape and a.equal(b.to(a.device)) for a, b in pairs)


def similarity_name(similarity: SimilarityLike) -> str:
    """A text for a similarity in settings and files, which is the same in each run and for equal similarities.

    Args:
        similarity: as for :func:`get_similarity`.

    Returns:
        The registered name, if ``similarity`` is a name, or an object equal to the object that a registered class (or
        ``functools.partial`` of a class) makes. Otherwise the ``repr`` of the object, followed by a hash of its
        parameters and buffers if there are any. A metric that is a plain function is represented by its name, so that
        two functions of the same name get the same text.

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
    resolved = get_similarity(similarity)
    if isinstance(similarity, str):
        return similarity
    for name in list_similarities():
        # Only the maker of the same class is called: other makers may load a file, or fail.
        make: object = _MAKERS[name]
        made_class = make.func if isinstance(make, partial) else make
        if made_class is type(resolved) and are_equal(get_similarity(name), resolved):
            return name
    return _describe(resolved)


def _describe(similarity: Similarity) -> str:
    """The ``repr`` of a similarity, with a hash of its parameters and buffers if there are any."""
    state = _state(similarity)
    if not state:
        return repr(similarity)
    return f"{similarity!r} sha256:{sha256_of(*(part for named in state.items() for part in named))[:16]}"


def _state(similarity: Similarity) -> dict[str, Tensor]:
    """Parameters and buffers by name."""
    return {**dict(similarity.named_parameters()), **dict(similarity.named_buffers())}
