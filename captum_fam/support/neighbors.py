"""The hits of a search engine as supports."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from captum_fam._captum import TargetType
from captum_fam._text import printable
from captum_fam._warnings import warn_user
from captum_fam.similarity import Similarity, SimilarityLike, get_similarity
from captum_fam.support.comparison import Comparison
from captum_fam.support.hits import HitIds, Rows, read_ids, read_scores, read_vectors
from captum_fam.support.labels import LabelRows, Labels, encode_labels
from captum_fam.support.score_gap import gap_in_words
from captum_fam.support.support_per_query import SupportPerQuery

_INT64 = range(-(2**63), 2**63)


class Neighbors(SupportPerQuery):
    """The hits of a search for each of B queries, by FAISS, a vector database or any other search engine.

    The engine gives the ids of the hits, and its scores. The embeddings of the hits are taken from the gallery in
    memory, or from a function that looks up ids. Maps explain similarities that are computed from these embeddings. The
    first :meth:`compare` warns if the scores of the engine are others: because the index is quantized, because
    embeddings have changed since they were indexed, or because the engine uses another similarity.

    Args:
        ids: the ids of the hits, ``(B, K)``, the most similar first: positions in ``embeddings``, or whatever ids
            ``fetch`` takes, such as numbers, texts or UUIDs. A tensor, an array or nested lists. -1 and None say that a
            search has found fewer than K.
        scores: the scores of the engine, ``(B, K)``, larger for the more similar; for distances pass ``-distances``.
            Default: None, no scores.
        embeddings: the gallery, ``(M, J)``, a tensor or an array. Default: None, pass ``fetch`` instead.
        fetch: maps n different ids, each of which it gets once, to embeddings: ``(n, J)`` in the order of the ids, or a
            mapping from id to embedding. It gets an int64 tensor ``(n,)`` if the ids are whole numbers, else a list.
            Default: None, pass ``embeddings`` instead.
        images: maps one id to the image for display: a PIL image, a path or a tensor. Default: None, no images.
        labels: the class of each hit, ``(B, K)``; of each item of the gallery, ``(M,)``, if the ids are positions; or a
            mapping from id to class.
            Names, or whole numbers of any type and size. Default: None, all hits belong to one class.
        class_names: C names in the order of the class indices, as for :class:`~captum_fam.SupportPerQuery`. Default:
            the different labels in ascending order, as texts; ``("support",)`` without labels.

    Attributes:
        ids: Python values in B rows of K, None for no hit.
        scores: float64 ``(B, K)``, NaN for no hit; None without scores.

    Raises:
        TypeError: for ids, scores, embeddings or labels of the wrong kind.
        ValueError: if ``embeddings`` and ``fetch`` are both given or both missing, if ids are not in the gallery, if a
            query has no hit, if an embedding is missing or holds NaN or inf, or for shapes that do not fit.

    Example:
        >>> gallery = torch.eye(3)
        >>> ids, scores = torch.tensor([[0, 2], [1, 0]]), torch.tensor([[0.8, 0.6], [1.0, 0.0]])
        >>> hits = Neighbors(ids, scores, gallery, labels=["jay", "wren", "wren"])
        >>> query = torch.tensor([[0.8, 0.0, 0.6], [0.0, 1.0, 0.0]])
        >>> hits.compare(query).scores, hits.score_gap(query).abs().max() < 1e-6
        (tensor([[0.8000, 0.6000],
                [0.0000, 1.0000]]), tensor(True))
    """

    def __init__(
        self,
        ids: Rows,
        scores: Rows | None = None,
        embeddings: Tensor | np.ndarray[Any, Any] | None = None,
        *,
        fetch: Callable[[Any], Any] | None = None,
        images: Callable[[Any], Any] | None = None,
        labels: LabelRows | Labels | Mapping[Any, int] | Mapping[Any, str] | None = None,
        class_names: Sequence[str] | None = None,
    ) -> None:
        self.ids: HitIds = read_ids(ids)
        self.scores = None if scores is None else read_scores(scores, self.ids)
        if (embeddings is None) == (fetch is None):
            raise ValueError("pass either embeddings, the gallery (M, J), or fetch, a function of ids")
        for name, function in (("fetch", fetch), ("images", images)):
            if function is not None and not callable(function):
                raise TypeError(f"{name} must be a function of ids, got {type(function).__name__}")
        found = _different(self.ids)
        vectors = _from_gallery(embeddings, found) if fetch is None else _fetched(fetch, found)
        position = {one: index for index, one in enumerate(found)}
        is_hit = torch.tensor([[one is not None for one in row] for row in self.ids])
        rows = torch.tensor([[0 if one is None else position[one] for one in row] for row in self.ids])
        spread = vectors[rows.to(vectors.device)]
        labels_of_hits, names = _labels_of_hits(labels, class_names, self.ids)
        super().__init__(spread, labels_of_hits, names, is_support=is_hit)
        self.images = images
        self._first_query = 0
        self._is_checked = False
        self._warnings: list[str] = []  # shared with the parts that for_queries makes

    def __repr__(self) -> str:
        return (
            f"Neighbors({len(self.ids)} queries x {len(self.ids[0])} hits, features={self.inputs.shape[-1]}, "
            f"n_classes={self.n_classes})"
        )

    def image(self, query: int, rank: int) -> Any:
        """The image of a hit, as ``images`` gives it.

        Args:
            query: the position of the query in the batch.
            rank: the rank of the hit, 0 for the most similar.

        Returns:
            A PIL image, a path or a tensor; None if there is no hit of this rank.

        Raises:
            ValueError: for neighbors without ``images``.
        """
        if self.images is None:
            raise ValueError("images is missing; pass images=, a function that maps one id to an image")
        one = self.ids[query][rank]
        return None if one is None else self.images(one)

    def score_gap(self, query: Tensor, similarity: SimilarityLike | None = None) -> Tensor:
        """The score of the engine minus the similarity that is computed from the embeddings.

        Args:
            query: embeddings ``(B, J)``.
            similarity: the similarity to compare with, or its name. Default: None, the cosine.

        Returns:
            ``(B, K)``; NaN for no hit.

        Raises:
            ValueError: for neighbors without scores, or queries that do not fit.
        """
        if self.scores is None:
            raise ValueError("scores is missing; pass scores=, what the engine gave beside the ids")
        given = None if similarity is None else get_similarity(similarity)
        recomputed = super().compare(query.detach(), None, given).similarities
        return self.scores.to(recomputed) - recomputed

    def without(self, own_ids: Sequence[Hashable]) -> Neighbors:
        """The neighbors without the item that is the query itself, which an engine finds first.

        Args:
            own_ids: the id of each query in the index; None for a query that is not in the index.

        Returns:
            New neighbors.

        Raises:
            ValueError: for another number of ids than queries, or a query whose only hit is itself.

        Example:
            >>> hits = Neighbors([[0, 2], [1, 0]], embeddings=torch.eye(3)).without([0, 1])
            >>> hits.ids
            ((None, 2), (None, 0))
        """
        if len(own_ids) != len(self.ids):
            raise ValueError(f"own_ids must be one per query: got {len(own_ids)} for {len(self.ids)} queries")
        others = self._part(slice(None))
        rows = zip(self.ids, own_ids, strict=True)
        others.ids = read_ids([[None if one == own else one for one in row] for row, own in rows])
        others.is_support = torch.tensor([[one is not None for one in row] for row in others.ids])
        if others.scores is not None:
            others.scores = others.scores.masked_fill(~others.is_support, torch.nan)
        return others

    def for_queries(self, start: int, stop: int) -> Neighbors:
        """The hits of the queries ``start`` to ``stop - 1``, with their ids, scores and images."""
        return self._part(slice(start, stop))

    def compare(self, query: Tensor, target: TargetType = None, similarity: Similarity | None = None) -> Comparison:
        """Compare each query with the embeddings of its hits; the scores of the engine are checked, but not used.

        Warns:
            UserWarning: in the first call, if scores of the engine differ from the similarities by more than rounding
                explains.

        Raises:
            ValueError: for queries that do not fit.
        """
        comparison = super().compare(query, target, similarity)
        # Later calls may bring queries that a method has changed, with noise or along a path, which differ rightly.
        if self.scores is not None and not self._is_checked and not self._warnings:
            note = gap_in_words(
                comparison.query,
                self.inputs,
                self.scores,
                comparison.similarities,
                comparison.similarity,
                self.ids,
                self._first_query,
            )
            if note is not None:
                self._warnings.append(note)
                warn_user(note, 2)
            self._is_checked = True
        return comparison

    def _part(self, queries: slice) -> Neighbors:
        part: Neighbors = super()._part(queries)  # type: ignore[assignment]
        part.ids = self.ids[queries]
        part.scores = None if self.scores is None else self.scores[queries]
        part._first_query = self._first_query + (queries.start or 0)
        return part


def _different(ids: HitIds) -> list[Any]:
    """The different ids, in the order in which they come."""
    return list(dict.fromkeys(one for row in ids for one in row if one is not None))


def _from_gallery(gallery: object, ids: list[Any]) -> Tensor:
    """The rows ``(n, J)`` of a gallery ``(M, J)`` at positions."""
    if not isinstance(gallery, Tensor | np.ndarray):
        raise TypeError(f"embeddings must be a tensor or an array (M, J), got {type(gallery).__name__}")
    if gallery.ndim != 2:
        raise ValueError(f"embeddings must be a gallery (M, J), got shape {tuple(gallery.shape)}")
    for one in ids:
        if not isinstance(one, int):
            raise TypeError(f"ids must be positions in embeddings, whole numbers, got {printable(one)}; or pass fetch")
        if not 0 <= one < len(gallery):
            raise ValueError(f"ids must be -1 or positions in embeddings, 0..{len(gallery) - 1}, got {one}")
    return read_vectors(gallery[ids], ids, "embeddings")


def _fetched(fetch: Callable[[Any], Any], ids: list[Any]) -> Tensor:
    """The embeddings ``(n, J)`` that a function gives for ids."""
    are_numbers = all(isinstance(one, int) and one in _INT64 for one in ids)
    return read_vectors(fetch(torch.tensor(ids) if are_numbers else list(ids)), ids, "fetch")


def _labels_of_hits(labels: Any, class_names: Sequence[str] | None, ids: HitIds) -> tuple[Any, Sequence[str] | None]:
    """Labels ``(B, K)`` or None, and the names of all classes of the gallery if the labels are those of a gallery."""
    if labels is None:
        return None, class_names
    if isinstance(labels, Mapping):
        missing = [one for one in _different(ids) if one not in labels]
        if missing:
            raise ValueError(f"labels has no class for {len(missing)} ids, such as {printable(missing[0])}")
        return [[None if one is None else labels[one] for one in row] for row in ids], class_names
    is_flat = isinstance(labels, Tensor | np.ndarray) and labels.ndim == 1
    is_flat |= isinstance(labels, list | tuple) and not any(isinstance(one, list | tuple) for one in labels)
    if not is_flat:
        return labels, class_names
    for one in _different(ids):
        if not isinstance(one, int) or not 0 <= one < len(labels):
            raise ValueError(
                f"labels: its {len(labels)} entries have none for the id {printable(one)}; pass labels (B, K), or a "
                "mapping from id to class"
            )
    indices, names = encode_labels(labels, class_names, len(labels))
    return [[None if one is None else int(indices[one]) for one in row] for row in ids], names  # type: ignore[index]
