"""Supports as people have them: files, folders, images, arrays and embeddings, with or without classes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import accumulate
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL.Image import Image
from torch import Tensor, nn

from captum_fam._files import sha256_of
from captum_fam.embedding.forward import embed_images
from captum_fam.explanation.reading.model import PreprocessingLike
from captum_fam.explanation.reading.pictures import (
    Picture,
    as_pictures,
    check_no_urls,
    check_sizes,
    kind_in_words,
    read_batches,
)
from captum_fam.explanation.reading.thumbnails import MOST_SHOWN, ListPictures, ThumbnailCollector
from captum_fam.image_files import find_classes, names_of_files
from captum_fam.support import Support, SupportPerQuery, SupportSet

SupportLike = Any
"""A support, a tensor or an array, pictures, a folder, or a mapping from classes to any of these."""

ONE_CLASS = "support"


@dataclass(frozen=True)
class PictureSupport:
    """A support that is made of pictures.

    Attributes:
        support: the images or embeddings of the pictures.
        ids: hashes of the inputs of the model, one per support. A query with the same hash is the same picture.
        thumbnails: small pictures for figures by the position of the support, of the first supports of each class.
        names: names of the files, all different, one per support; None for pictures that are no files.
    """

    support: SupportSet
    ids: list[str]
    thumbnails: Mapping[int, Image]
    names: list[str | None]


@dataclass
class SupportReader:
    """Makes supports of pictures, and of everything else that stands for a support.

    Attributes:
        model: maps a batch of inputs to embeddings ``(B, J)``.
        preprocessing: a function that gives the preprocessing of the model; it is called when there are pictures.
        batch_size: pictures per pass through the model.
        device: the device of the model; None for the CPU.
        keep_images: whether supports hold images, and not the embeddings of the images, which need less memory.
        ids: hashes of the inputs of the last support, in the order of its rows, or one list per query; None if it is
            not made of pictures.
        names: names of the files of the last support, in the same form; None for pictures that are no files.
        thumbnails: small pictures of the last support for figures, by row; None if it is not made of pictures.
    """

    model: Callable[..., Any]
    preprocessing: Callable[[], PreprocessingLike]
    batch_size: int
    device: torch.device | None
    keep_images: bool
    ids: list[str] | list[list[str]] | None = field(default=None, init=False)
    names: list[str | None] | list[list[str | None]] | None = field(default=None, init=False)
    thumbnails: Mapping[int, Image] | ListPictures | None = field(default=None, init=False)

    def read(self, support: SupportLike, name: str = "support") -> Support | Tensor:
        """Make a support.

        Args:
            support: a :class:`~captum_fam.Support`, which is returned as it is; a tensor or an array of floating-point
                numbers, images or embeddings; a picture, a folder of pictures, a folder of class folders, or a list of
                pictures; a list of such lists, one list per query; or a mapping from the name of a class to pictures,
                images ``(n, ...)``, embeddings ``(n, J)`` or one embedding ``(J,)``.
            name: the name of the argument, for messages. Default: ``"support"``.

        Returns:
            The support; a tensor for a tensor, whose meaning depends on the shape of the queries.

        Raises:
            TypeError: for anything else.
            ValueError: for a mapping without classes, or classes of different kinds.
            UnreadableImageError: for a picture that cannot be read.
        """
        self.ids = self.names = self.thumbnails = None
        if isinstance(support, PictureSupport):
            return self._with_ids(support)
        if isinstance(support, Support | Tensor):
            return support
        if isinstance(support, Mapping):
            return self._by_class(support, name)
        if isinstance(support, np.ndarray) and np.issubdtype(support.dtype, np.floating):
            array = torch.from_numpy(support).to(self.device)
            return array.to(float_type_of(self.model)) if array.dim() > 3 else array  # images of numpy are float64
        pictures = as_pictures(support)
        if pictures is not None:
            return self._with_ids(self.of_classes(_classes_of(pictures, name), name))
        lists = [as_pictures(one) for one in support] if isinstance(support, Sequence) and len(support) else [None]
        if None in lists:
            empty = [n for n, one in enumerate(support) if _is_empty(one)] if isinstance(support, list | tuple) else []
            if empty:
                raise ValueError(f"{name}: query {empty[0]} has no {name}s, its list is empty; leave the query out")
            raise TypeError(
                f"{name} must be a Support (SupportSet, MemoryBank, Neighbors, ...), a tensor, pictures (paths, images "
                f"of PIL, uint8 arrays), a folder, or a mapping from classes to these, got {kind_in_words(support)}"
            )
        return self._per_query([one for one in lists if one is not None], name)

    def _with_ids(self, support: PictureSupport) -> SupportSet:
        self.ids, self.names, self.thumbnails = support.ids, support.names, support.thumbnails
        return support.support

    def _by_class(self, support: Mapping[Any, Any], name: str) -> SupportSet:
        if not support:
            raise ValueError(f"{name} is an empty mapping, expected at least one class")
        twice = next((text for text, count in Counter(map(str, support)).items() if count > 1), None)
        if twice is not None:
            raise ValueError(f"{name}: two classes have the name {twice!r}, give each another name")
        pictures = {str(label): as_pictures(members) for label, members in support.items()}
        named = {label: _files_of(found, f"{name}[{label!r}]") for label, found in pictures.items() if found}
        if len(named) == len(support):
            return self._with_ids(self.of_classes(named, name))
        if named:
            raise ValueError(
                f"{name}: the members of {next(iter(named))!r} are pictures and those of other classes are not; give "
                "all classes in one form"
            )
        rows = {str(label): _as_rows(members, f"{name}[{label!r}]") for label, members in support.items()}
        first, first_part = next(iter(rows.items()))
        for label, part in rows.items():
            if part.shape[1:] != first_part.shape[1:]:
                raise ValueError(
                    f"{name}: a member of {label!r} has the shape {tuple(part.shape[1:])} and one of {first!r} "
                    f"{tuple(first_part.shape[1:])}; give all classes in one form"
                )
        labels = [label for label, part in rows.items() for _ in range(len(part))]
        return SupportSet(torch.cat(list(rows.values())).to(self.device), labels, list(rows))

    def of_classes(
        self,
        classes: Mapping[str, Sequence[Picture]],
        name: str,
        unreadable: dict[Any, str] | None = None,
        read: Callable[[int], object] = lambda _: None,
    ) -> PictureSupport:
        """Make a support of pictures by class.

        Args:
            classes: pictures by the name of their class.
            name: the name of the argument or option, for messages.
            unreadable: a dictionary that gets the reason for each picture that cannot be read, by the picture. Default:
                None, such a picture is an error.
            read: a function that is told how many further pictures are done. Default: nothing is told.

        Raises:
            UnreadableImageError: for a picture that cannot be read, if ``unreadable`` is None.
            ValueError: for a class without any picture that can be read.
        """
        parts: list[Tensor] = []
        ids: list[str] = []
        labels: list[str] = []
        kept: list[Picture] = []
        thumbnails = ThumbnailCollector(len(classes))
        for label, pictures in classes.items():
            reasons: dict[int, str] | None = None if unreadable is None else {}
            rows, own_ids = self._rows(pictures, range(len(pictures)), thumbnails, reasons, read)
            kept += [picture for position, picture in enumerate(pictures) if position not in (reasons or ())]
            if not own_ids:
                raise ValueError(f"{name}: no image of {label!r} could be read")
            if unreadable is not None and reasons:
                unreadable |= {pictures[position]: reason for position, reason in reasons.items()}
            parts += rows
            ids += own_ids
            labels += [label] * len(own_ids)
        self._check_sizes(parts, name)
        support = SupportSet(torch.cat(parts), labels, list(classes))
        return PictureSupport(support, ids, thumbnails.by_row, _names_of(kept))

    def _check_sizes(self, parts: Sequence[Tensor], name: str) -> None:
        if self.keep_images:
            check_sizes(parts, name, "the method compares positions of images of one size: choose another method")

    def _per_query(self, lists: Sequence[Sequence[Picture]], name: str) -> SupportPerQuery:
        """K pictures for each query; shorter lists are filled up with entries that are no supports."""
        for query, pictures in enumerate(lists):
            check_no_urls(pictures, f"{name}[{query}]")
        lengths = list(map(len, lists))
        thumbnails = ThumbnailCollector(len(lists), MOST_SHOWN + 1)
        places = [place for length in lengths for place in range(length)]
        parts, ids = self._rows([picture for pictures in lists for picture in pictures], places, thumbnails)
        self._check_sizes(parts, name)
        starts = [stop - length for stop, length in zip(accumulate(lengths), lengths, strict=True)]
        spans = [range(start, start + length) for start, length in zip(starts, lengths, strict=True)]
        self.ids = [[ids[row] for row in span] for span in spans]
        self.names = [_names_of(pictures) for pictures in lists]
        self.thumbnails = ListPictures([[thumbnails.by_row[row] for row in span[: MOST_SHOWN + 1]] for span in spans])
        rows = torch.cat(parts)
        longest = max(lengths)
        is_support = torch.arange(longest, device=rows.device) < torch.tensor(lengths, device=rows.device).unsqueeze(1)
        filled = rows.new_zeros(len(lists), longest, *rows.shape[1:])
        filled[is_support] = rows
        return SupportPerQuery(filled, is_support=None if is_support.all() else is_support)

    def _rows(
        self,
        pictures: Sequence[Picture],
        places: Sequence[int],
        thumbnails: ThumbnailCollector,
        unreadable: dict[int, str] | None = None,
        read: Callable[[int], object] = lambda _: None,
    ) -> tuple[list[Tensor], list[str]]:
        """Images or embeddings of pictures in batches, ``(k, ...)``, and the hashes of the images."""
        parts, ids = [], []
        dtype = float_type_of(self.model)
        for batch in read_batches(pictures, self.preprocessing(), self.batch_size, self.device, unreadable, dtype):
            thumbnails.add(batch.photos, [places[position] for position in batch.positions])
            parts.append(batch.inputs if self.keep_images else embed_images(self.model, batch.inputs))
            ids += [sha256_of(one) for one in batch.inputs]
            read(len(batch.positions))
        return parts, ids


def float_type_of(model: object) -> torch.dtype | None:
    """The floating-point type that a model takes, that of its parameters; None for a model without parameters.

    Args:
        model: any model.

    Example:
        >>> float_type_of(torch.nn.Linear(2, 2))
        torch.float32
    """
    parameters = model.parameters() if isinstance(model, nn.Module) else iter(())
    return next((parameter.dtype for parameter in parameters if parameter.is_floating_point()), None)


def _classes_of(pictures: Sequence[Picture], name: str) -> Mapping[str, Sequence[Picture]]:
    """Pictures by class: class folders give several classes, everything else is one class."""
    check_no_urls(pictures, name)
    paths = [Path(picture) for picture in pictures if isinstance(picture, str | Path)]
    if len(paths) == len(pictures):
        classes = find_classes(paths, name)
        return {ONE_CLASS if label == name else label: files for label, files in classes.items()}
    return {ONE_CLASS: pictures}


def _files_of(pictures: Sequence[Picture], name: str) -> Sequence[Picture]:
    """The pictures of one class, with the files of a folder in its place."""
    members = _classes_of(pictures, name)
    if len(members) > 1:
        raise ValueError(f"{name} holds the classes {', '.join(members)}, expected the pictures of one class")
    return next(iter(members.values()))


def _names_of(pictures: Sequence[Picture]) -> list[str | None]:
    """A name for each picture that is a file; names of files are all different."""
    files = {place: Path(one) for place, one in enumerate(pictures) if isinstance(one, str | Path)}
    names = dict(zip(files, names_of_files(list(files.values())), strict=True))
    return [names.get(place) for place in range(len(pictures))]


def _is_empty(one: object) -> bool:
    return isinstance(one, list | tuple) and not one


def _as_rows(members: object, name: str) -> Tensor:
    """The images or embeddings of one class, ``(n, ...)``."""
    if isinstance(members, np.ndarray):
        members = torch.from_numpy(members)
    if not isinstance(members, Tensor) or not members.dim():
        raise TypeError(
            f"{name} must be pictures, images (n, ...), embeddings (n, J) or one embedding (J,), got "
            f"{kind_in_words(members)}"
        )
    return members[None] if members.dim() == 1 else members
