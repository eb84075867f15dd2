"""Queries as people have them: tensors, arrays, files, folders and images of PIL."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL.Image import Image
from torch import Tensor

from captum_fam._files import sha256_of
from captum_fam.explanation.reading.arguments import check_inputs
from captum_fam.explanation.reading.model import PreprocessingLike
from captum_fam.explanation.reading.pictures import as_pictures, check_no_urls, check_sizes, kind_in_words, read_batches
from captum_fam.image_files import find_queries, names_of_files
from captum_fam.support import Gallery, MemoryBank, Neighbors, ShardedMemoryBank, Support, SupportPerQuery, SupportSet
from captum_fam.support.leave_out import same_ids, same_inputs

Inputs = Any
"""A tensor or array of queries, or pictures: paths, a folder, images of PIL, uint8 arrays."""


@dataclass(frozen=True)
class Queries:
    """A batch of queries.

    Attributes:
        inputs: queries as the model takes them, ``(B, C, *spatial)``.
        names: names of the queries; None if they have none. Default: None.
        photos: the queries for display; None if they are no pictures. Default: None.
    """

    inputs: Tensor
    names: tuple[str, ...] | None = None
    photos: tuple[Image, ...] | None = None


def read_queries(
    inputs: Inputs,
    preprocessing: Callable[[], PreprocessingLike],
    batch_size: int,
    device: torch.device | None,
    dtype: torch.dtype | None = None,
) -> Queries:
    """Read queries.

    Args:
        inputs: a tensor or an array of floating-point numbers ``(B, C, *spatial)``; or pictures: a path, a folder, the
            bytes of a file, an image of PIL, uint8 pixels ``(H, W, C)``, or a sequence of these.
        preprocessing: a function that gives the preprocessing of pictures; it is called for pictures only.
        batch_size: how many pictures are read at once.
        device: the device of arrays and pictures; None for the CPU.
        dtype: the type of arrays and pictures, because numpy makes float64 where a model takes float32. Default: None,
            that of the array or the preprocessing.

    Returns:
        The queries. The names of files are those of :func:`~captum_fam.image_files.names_of_files`.

    Raises:
        TypeError: for anything else.
        ValueError: for a tensor of another shape, a folder without images, or pictures of different input sizes.
        UnreadableImageError: for a picture that cannot be read.
    """
    pictures = as_pictures(inputs)
    if pictures is None:
        is_array = isinstance(inputs, np.ndarray) and np.issubdtype(inputs.dtype, np.floating)
        queries = torch.from_numpy(inputs).to(device, dtype) if is_array else inputs
        if not isinstance(queries, Tensor):
            raise TypeError(
                "inputs must be a tensor or an array of floating-point numbers (B, C, H, W), or pictures: paths, a "
                f"folder, images of PIL, uint8 arrays (H, W, C); got {kind_in_words(inputs)}"
            )
        check_inputs(queries)
        return Queries(queries)
    check_no_urls(pictures, "inputs")
    names = None
    paths = [Path(picture) for picture in pictures if isinstance(picture, str | Path)]
    if len(paths) == len(pictures):
        # A file that is named twice is two queries, which may have two targets; in a folder it is there once.
        files = list(find_queries(paths, "inputs")) if any(path.is_dir() for path in paths) else paths
        pictures, names = list(files), tuple(names_of_files(files))
    batches = list(read_batches(pictures, preprocessing(), batch_size, device, dtype=dtype))
    check_sizes((batch.inputs for batch in batches), "inputs", "explain them one by one")
    photos = tuple(photo for batch in batches for photo in batch.photos)
    return Queries(torch.cat([batch.inputs for batch in batches]), names, photos)


@dataclass(frozen=True)
class OwnSupports:
    """The supports that are a query themselves.

    Attributes:
        left_out: which supports are left out for each query, boolean ``(B, K)``; None if there are none.
        is_only: which queries are all of their own supports, and keep them, boolean ``(B,)``.
    """

    left_out: Tensor | None
    is_only: Tensor


def find_queries_among(
    support: object, ids: Any, queries: Tensor, notes: list[str], *, is_foil: bool = False
) -> OwnSupports:
    """Find the supports that are a query themselves, by equal inputs of the model.

    Args:
        support: the support, or the foil; only the supports of a :class:`~captum_fam.SupportSet`, a
            :class:`~captum_fam.SupportPerQuery` and a :class:`~captum_fam.support.Gallery` of a set can be found.
        ids: hashes of the inputs of the K supports, or one list of hashes per query; None if only the support has them.
        queries: inputs of the model, ``(B, ...)``.
        notes: the list to which a note for the user is added.
        is_foil: whether the support is a foil, for the words of the note. Default: False.

    Returns:
        The supports to leave out, and the queries for which none would be left.
    """
    is_gallery = isinstance(support, Gallery)
    support = support.source if isinstance(support, Gallery) else support
    if not isinstance(support, SupportSet | SupportPerQuery) or (ids is None and support.holds_embeddings):
        return OwnSupports(None, torch.zeros(len(queries), dtype=torch.bool))
    same, is_support = _same(support, ids, queries)
    is_only = (same | ~is_support).all(1)
    whole, part = ("foil", "in their own foil") if is_foil else ("supports", "among their own supports")
    whole, part = ("image of the gallery", "in the gallery") if is_gallery else (whole, part)
    if is_only.any():
        notes.append(
            f"{int(is_only.sum())} of {len(queries)} queries are their own only {whole}: the score of an image "
            "compared with itself says nothing"
        )
    same = same & ~is_only.unsqueeze(1)
    n_found = int(same.any(1).sum())
    if n_found:
        notes.append(f"{n_found} of {len(queries)} queries are {part}, as the same image; there they are left out")
    return OwnSupports(same.to(queries.device) if n_found else None, is_only)


def _same(support: SupportSet | SupportPerQuery, ids: Any, queries: Tensor) -> tuple[Tensor, Tensor]:
    """Which supports are a query, and which entries are supports at all, boolean ``(B, K)`` on the CPU."""
    if isinstance(support, SupportSet):
        if ids is None:
            same = same_inputs(queries, support.inputs)
        else:
            same = same_ids([sha256_of(one) for one in queries], ids)
        return same, torch.ones_like(same)
    entries = torch.ones(support.inputs.shape[:2], dtype=torch.bool)
    same = torch.zeros_like(entries)
    for query, one in enumerate(queries.split(1)):
        if ids is None:
            same[query] = same_inputs(one, support.inputs[query])[0]
        else:
            same[query, : len(ids[query])] = same_ids([sha256_of(one[0])], ids[query])[0]
    is_support = entries if support.is_support is None else support.is_support.cpu()
    return same & is_support, is_support


def own_embedding_in_words(support: Support, foil: object, *, is_foil: bool) -> str:
    """The note that a query seems to be compared with itself, and how to leave it out.

    Args:
        support: the support.
        foil: the foil.
        is_foil: whether the query is found among the supports of its foil.
    """
    found = "the most similar support of the foil of a query" if is_foil else "the most similar support of a query"
    place = "in its own foil" if is_foil else "among its own supports"
    ways = {
        MemoryBank: " (MemoryBank.using(exclude=...))",
        Neighbors: " (Neighbors.without(...))",
        SupportSet: " (SupportSet.without(...))",
    }
    # The supports of a named foil are supports of other classes.
    is_set = is_foil and not isinstance(foil, str)
    way = "" if is_set else next((way for kind, way in ways.items() if isinstance(support, kind)), "")
    return f"{found} has the embedding of the query, as if the query were {place}; leave it out there{way}"


def are_made_by_a_model(support: Support) -> bool:
    """Whether the supports are images, or embeddings of images by rule: those of banks and of search engines.

    Args:
        support: the support.
    """
    is_gallery = isinstance(support, MemoryBank | ShardedMemoryBank | Neighbors)
    return is_gallery or not getattr(support, "holds_embeddings", True)
