"""The images of pairs among what they are contrasted with: each is left out of the contrast of its own side."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from captum_fam._files import sha256_of
from captum_fam.explanation.pairs.pair_sides import PairFoil, PairGallery
from captum_fam.explanation.reading.compared import Ids, ReadFoil
from captum_fam.similarity import Similarity
from captum_fam.support import Comparison, Gallery, LeaveOutSupport, Neighbors, Support, SupportSet


@dataclass(frozen=True, eq=False)
class SharedContrast:
    """What all queries of an explanation are contrasted with, before anything is left out of it.

    Attributes:
        foil: the foil.
        ids: hashes of the pictures that the foil or the gallery was made of; None if there are none.
        left_out: which supports of the foil are left out for each query, boolean ``(B, F)``; None for none.
        support: what the queries are compared with; also the gallery of ``foil="gallery"``.
        support_ids: hashes of the pictures that the support was made of; None if there are none.
    """

    foil: ReadFoil
    ids: Ids
    left_out: Tensor | None
    support: Support
    support_ids: Ids

    def foils_of_supports(
        self,
        entries: Sequence[tuple[int, int]],
        inputs: Sequence[Tensor],
        foils: Sequence[PairFoil | None],
        comparisons: Sequence[Comparison],
        model: Callable[..., Any],
        notes: list[str],
    ) -> list[PairFoil | None]:
        """The foil of the side of the support of each pair: without the image of the support itself.

        Args:
            entries: for each pair the position of its query and of its support.
            inputs: the image of the support of each pair, as the model takes it.
            foils: the foil of each query.
            comparisons: the comparison of each batch of queries with the support.
            model: maps a batch of images to embeddings.
            notes: the list to which a note for the user is added.
        """
        known = [foils[query] for query, _ in entries]
        foil, own = self._own_rows(entries, inputs)
        if foil is None:
            return known
        own, found = without_only_rows(foil, own, "supports")
        # Supports that are the gallery are in it by rule.
        notes += [] if isinstance(self.foil, str) else found
        without_query = [self.left_out is not None and bool(self.left_out[query].any()) for query, _ in entries]
        changed = [n for n, rows in enumerate(own) if rows or without_query[n]]
        if not changed:
            return known
        rows, places = [own[n] for n in changed], [entries[n][0] for n in changed]
        made: Sequence[PairFoil | None]
        if isinstance(foil, Gallery):
            queries = torch.cat([comparison.query.detach() for comparison in comparisons])[places]
            gallery = self._embedded(comparisons) or foil.embed(model)
            made = _foils_of_gallery(gallery, places, rows, queries, comparisons[0].similarity)
        else:
            made = foils_of_set(foil.embed(model), rows)
        for n, one in zip(changed, made, strict=True):
            known[n] = one
        return known

    def _own_rows(
        self, entries: Sequence[tuple[int, int]], inputs: Sequence[Tensor]
    ) -> tuple[Gallery | SupportSet | None, list[list[int]]]:
        """The foil as an object, and for each pair the rows of it that are the support of the pair."""
        foil, ids, support = self.foil, self.ids, self.support
        if isinstance(foil, str) and foil == "gallery":
            support = support.support if isinstance(support, LeaveOutSupport) else support
            foil, ids = Gallery(support), self.support_ids
        if foil is None or isinstance(foil, str):
            return None, []
        by_image = rows_by_image(foil, ids)
        hashes = [sha256_of(image) for image in inputs] if by_image else []
        own = [by_image.get(one, []) for one in hashes] or [[] for _ in entries]
        vectors = rows_of_foil(foil)
        if isinstance(support, Neighbors) and isinstance(vectors, Tensor) and vectors.dim() == 2:
            # A hit has the embedding that it has in the gallery, bit by bit.
            hits = [support.inputs[query, row].to(vectors) for query, row in entries]
            same = [(vectors == hit).all(1).nonzero().flatten().tolist() for hit in hits]
            own = [sorted({*rows, *others}) for rows, others in zip(own, same, strict=True)]
        return foil, own

    def _embedded(self, comparisons: Sequence[Comparison]) -> Gallery | None:
        """The gallery that the support is itself, with the embeddings that the queries were compared with."""
        support, vectors = self.support, comparisons[0].support
        support = support.support if isinstance(support, LeaveOutSupport) else support
        if self.foil != "gallery" or not isinstance(support, SupportSet) or not isinstance(vectors, Tensor):
            return None
        is_whole = vectors.dim() == 2 and len(vectors) == len(support)
        return Gallery(vectors.detach()) if is_whole else None


def rows_of_foil(foil: Gallery | SupportSet) -> Tensor | None:
    """The images or embeddings of a foil, ``(F, ...)``; None for a mean vector, and for a bank on a disk.

    Args:
        foil: the foil.
    """
    source = foil.source if isinstance(foil, Gallery) else foil
    source = source.support if isinstance(source, LeaveOutSupport) else source
    rows = source.inputs if isinstance(source, SupportSet) else getattr(source, "embeddings", None)
    return rows if isinstance(rows, Tensor) else None


def rows_by_image(foil: Gallery | SupportSet, ids: Any) -> Mapping[str, list[int]]:
    """The rows of a foil by the hash of their image; nothing where the images are not known.

    Args:
        foil: the foil.
        ids: hashes of the pictures that the foil was made of; None if there are none.
    """
    images = rows_of_foil(foil)
    if ids is None and images is not None and images.dim() > 2:
        ids = [sha256_of(image) for image in images]
    rows: dict[str, list[int]] = {}
    for row, one in enumerate(ids or ()):
        rows.setdefault(one, []).append(row)
    return rows


def foils_of_set(foil: SupportSet, own: Sequence[Collection[int]]) -> list[PairFoil]:
    """The mean score of the classes of a foil, for each of some images, without the rows that are the image itself.

    Args:
        foil: a foil of embeddings.
        own: for each image the rows that are left out, not all of them.

    Example:
        >>> foil = SupportSet(torch.eye(3), ["jay", "jay", "wren"])
        >>> [one.weights for one in foils_of_set(foil, [[], [0]])]
        [tensor([0.2500, 0.2500, 0.5000]), tensor([0.0000, 0.5000, 0.5000])]
    """
    vectors = foil.embeddings()
    members = (foil.class_weights() > 0).to(torch.promote_types(vectors.dtype, torch.float32))
    made = []
    for rows in own:
        kept = members.clone()
        kept[:, list(rows)] = 0
        counts = kept.sum(1, keepdim=True)
        made.append(PairFoil(vectors, (kept / counts.clamp_min(1)).sum(0) / (counts > 0).sum()))
    return made


def without_only_rows(
    foil: Gallery | SupportSet, own: Sequence[Collection[int]], images: str
) -> tuple[list[list[int]], list[str]]:
    """The rows of a foil that are left out for some images, but never all rows of the foil.

    Args:
        foil: the foil.
        own: for each image the rows that are the image itself.
        images: what the images are, for the notes.

    Returns:
        The rows; and notes on the images that are in their own contrast.

    Example:
        >>> without_only_rows(Gallery(torch.eye(3)), [[1], []], "supports")[1]
        ['1 of 2 supports are in the gallery, as the same image; there they are left out on their own side']
    """
    rows, place = rows_of_foil(foil), "gallery" if isinstance(foil, Gallery) else "foil"
    is_only = [rows is not None and len(one) == len(rows) for one in own]
    left_out = [[] if only else sorted(one) for one, only in zip(own, is_only, strict=True)]
    n_found, n_only, notes = sum(map(bool, left_out)), sum(is_only), []
    if n_only:
        notes.append(
            f"{n_only} of {len(own)} {images} are the only image of their {place}: the score of an image compared with "
            "itself says nothing"
        )
    if n_found:
        notes.append(
            f"{n_found} of {len(own)} {images} are in the {place}, as the same image; there they are left out on their "
            "own side"
        )
    return left_out, notes


def _foils_of_gallery(
    gallery: Gallery, places: Sequence[int], own: Sequence[list[int]], queries: Tensor, similarity: Similarity
) -> list[PairFoil | None]:
    """The mean similarity to a gallery of embeddings for each pair, without the rows of its support."""
    if not gallery.per_query:
        return PairGallery(gallery, own).foils(range(len(own)), queries, similarity)
    made: list[PairFoil | None] = []
    for place, rows, query in zip(places, own, queries.split(1), strict=True):
        one = gallery.for_queries(place, place + 1)
        left_out = [] if one.left_out is None else one.left_out[0].tolist()
        made += PairGallery(one, [[*rows, *left_out]]).foils([0], query, similarity)
    return made
