"""Small pictures of supports and foils, which the figure of an explanation shows."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from PIL import Image
from torch import Tensor

from captum_fam.explanation.reading.arguments import for_display
from captum_fam.images import read_image, tensor_to_image
from captum_fam.support import Neighbors, SupportPerQuery, SupportSet

if TYPE_CHECKING:
    from captum_fam.explanation.result import Explanation
    from captum_fam.visualization import ImageLike

MOST_SHOWN = 9
"""How many supports a figure shows of a query, and how many of its foil."""

_MOST_KEPT = 600  # thumbnails of all classes together; a class has one at least
_SIDE = 224  # pixels

Pictures = Callable[[int, int], Sequence[Any]]
"""``pictures(query, row)``: the pictures of a support of a query, by its position in ``support_rows``."""


@dataclass(frozen=True)
class RowPictures:
    """Pictures of supports that all queries share.

    Attributes:
        by_row: the positions of supports in the whole support, each with its picture, by the position that is asked
            for: that of the support itself, or of its class for prototypes.
        left_out: which supports are left out for each query, boolean ``(B, K)``; None if there are none.

    Example:
        >>> RowPictures({1: [(1, "wren.jpg")]})(query=0, row=1)
        ['wren.jpg']
    """

    by_row: Mapping[int, Sequence[tuple[int, Any]]]
    left_out: Tensor | None = None

    def __call__(self, query: int, row: int) -> list[Any]:
        """The pictures of a support; none if it has no picture, or is left out for this query."""
        pictures = self.by_row.get(row, ())
        kept = [image for one, image in pictures if self.left_out is None or not self.left_out[query, one]]
        return list(map(_drawable, kept[:MOST_SHOWN]))

    def rows(self, query: int) -> list[int]:
        """The positions with a picture, the same for all queries."""
        return sorted(self.by_row)

    def of_queries(self, queries: Sequence[int]) -> RowPictures:
        """The pictures for some of the queries.

        Args:
            queries: the positions of the queries.
        """
        return self if self.left_out is None else replace(self, left_out=self.left_out[list(queries)])

    def by_class(self, labels: Tensor) -> RowPictures:
        """The pictures of prototypes: those of all supports of a class, by class.

        Args:
            labels: the class of each support, ``(K,)``.
        """
        grouped: dict[int, list[tuple[int, Any]]] = {}
        for row, pictures in self.by_row.items():
            grouped.setdefault(int(labels[row]), []).extend(pictures)
        return replace(self, by_row=grouped)


@dataclass(frozen=True)
class ListPictures:
    """Pictures of supports of each query's own.

    Attributes:
        lists: the first pictures of each query.

    Example:
        >>> ListPictures([["a.jpg"], ["b.jpg", "c.jpg"]])(query=1, row=1)
        ['c.jpg']
    """

    lists: Sequence[Sequence[Any]]

    def __call__(self, query: int, row: int) -> list[Any]:
        """The picture of a support."""
        return list(map(_drawable, self.lists[query][row : row + 1]))


@dataclass(frozen=True)
class HitPictures:
    """Pictures of the hits of a search, which are read when they are drawn.

    Attributes:
        images: maps one id to a path, an image of PIL or a tensor.
        ids: the ids of the hits of each query.
    """

    images: Callable[[Any], Any]
    ids: Sequence[Sequence[Any]]

    def __call__(self, query: int, row: int) -> list[Any]:
        """The picture of a hit; none for a foil behind the hits, or an id without a picture."""
        one = self.ids[query][row] if row < len(self.ids[query]) else None
        image = None if one is None else self.images(one)
        if isinstance(image, str | Path):
            image = read_image(image)
        return [] if image is None else [thumbnail_of(image) if isinstance(image, Image.Image) else image]


@dataclass(frozen=True)
class SelectedPictures:
    """The pictures of supports for some of the queries.

    Attributes:
        pictures: the pictures for all queries.
        queries: the positions of the queries among all.

    Example:
        >>> SelectedPictures(ListPictures([["a.jpg"], ["b.jpg"]]), [1])(query=0, row=0)
        ['b.jpg']
    """

    pictures: Pictures
    queries: Sequence[int]

    def __call__(self, query: int, row: int) -> Sequence[Any]:
        """The pictures of a support."""
        return self.pictures(self.queries[query], row)


@dataclass(frozen=True)
class KeptPictures:
    """Pictures of the supports that are shown of each query, as they were saved.

    Attributes:
        by_row: for each query the pictures by the position of the support.

    Example:
        >>> KeptPictures([{}, {3: ["wren.jpg"]}])(query=1, row=3)
        ['wren.jpg']
    """

    by_row: Sequence[Mapping[int, Sequence[Any]]]

    def __call__(self, query: int, row: int) -> list[Any]:
        """The pictures of a support; none if none were shown."""
        return list(self.by_row[query].get(row, ()))

    def rows(self, query: int) -> list[int]:
        """The positions with a picture, in the order in which they are shown."""
        return list(self.by_row[query])

    def of_queries(self, queries: Sequence[int]) -> KeptPictures:
        """The pictures for some of the queries.

        Args:
            queries: the positions of the queries.
        """
        return KeptPictures([self.by_row[query] for query in queries])


FoilPictures = RowPictures | KeptPictures
"""Pictures of the supports of a foil that is no class of the support."""


@dataclass
class ThumbnailCollector:
    """Keeps thumbnails while pictures of supports are read, of a bounded number of pictures.

    Args:
        n_parts: the number of classes.
        most: how many thumbnails a class has at most. Default: None, 600 for all classes together, and one at least.

    Attributes:
        by_row: the thumbnails by the position of the picture among all pictures that were read.
    """

    n_parts: int
    most: int | None = None
    by_row: dict[int, Image.Image] = field(default_factory=dict)
    _next: int = 0

    def add(self, photos: Sequence[Image.Image], places: Sequence[int]) -> None:
        """Take the next pictures.

        Args:
            photos: the pictures.
            places: the position of each picture in its class.
        """
        most = max(1, _MOST_KEPT // self.n_parts) if self.most is None else self.most
        for photo, place in zip(photos, places, strict=True):
            if place < most:
                self.by_row[self._next] = thumbnail_of(photo)
            self._next += 1


def thumbnail_of(photo: Image.Image) -> Image.Image:
    """A small copy of a picture.

    Args:
        photo: the picture.

    Example:
        >>> thumbnail_of(Image.new("RGB", (900, 600))).size
        (224, 149)
    """
    small = photo.copy()
    small.thumbnail((_SIDE, _SIDE))
    return small


def pictures_of(
    support: object,
    thumbnails: Mapping[int, Image.Image] | ListPictures | None,
    left_out: Tensor | None,
    are_classes: bool,
) -> Pictures | None:
    """The pictures of a support, as far as they are known.

    Args:
        support: the support.
        thumbnails: the thumbnails of the pictures that the support was made of, by row; None if they are not known.
        left_out: which supports are left out for each query, boolean ``(B, K)``; None if there are none.
        are_classes: whether queries are compared with prototypes, so that pictures are asked for by class.

    Returns:
        The pictures; those of a tensor of images are scaled to [0, 1] as queries are. None if none are known.
    """
    if isinstance(support, Neighbors):
        return None if support.images is None else HitPictures(support.images, support.ids)
    if isinstance(thumbnails, ListPictures):
        return thumbnails
    if thumbnails is None and isinstance(support, SupportPerQuery) and _are_photographs(support.inputs, 5):
        return ListPictures([list(rows[:MOST_SHOWN]) for rows in support.inputs])
    pictures = row_pictures(support, thumbnails, left_out)
    if pictures is not None and are_classes:
        assert isinstance(support, SupportSet)
        return pictures.by_class(support.labels)
    return pictures


def row_pictures(
    support: object, thumbnails: Mapping[int, Image.Image] | ListPictures | None, left_out: Tensor | None
) -> RowPictures | None:
    """The pictures of supports that all queries share, as :func:`pictures_of`; None for any other support.

    Args:
        support: the support.
        thumbnails: as for :func:`pictures_of`.
        left_out: as for :func:`pictures_of`.
    """
    if not isinstance(support, SupportSet):
        return None
    images: Mapping[int, Any] | ListPictures | None = thumbnails
    if images is None and _are_photographs(support.inputs, 4):
        images = dict(enumerate(support.inputs))
    if not images or isinstance(images, ListPictures):
        return None
    return RowPictures({row: [(row, image)] for row, image in images.items()}, left_out)


def _are_photographs(images: Tensor, dimensions: int) -> bool:
    """Whether inputs of a model are images of one or three channels, with so many dimensions of the whole tensor."""
    return images.dim() == dimensions and images.shape[-3] in (1, 3) and images.is_floating_point()


def _drawable(image: Any) -> Any:
    """A picture as figures draw it; an input of the model becomes a thumbnail only now, where it is drawn.

    Signals, volumes and images of other numbers of channels stay tensors, which figures draw as they draw queries.
    """
    if not isinstance(image, Tensor):
        return image
    shown = for_display(image[None].float())[0]
    is_photograph = shown.dim() == 3 and len(shown) in (1, 3)
    return thumbnail_of(tensor_to_image(shown)) if is_photograph else shown


def shown_pictures(why: Explanation, index: int) -> tuple[list[ImageLike], list[ImageLike]]:
    """The pictures of the supports and of the foil of a query, at most nine each.

    Args:
        why: the explanation.
        index: the position of the query.

    Returns:
        The supports of the explained class, and those of the foil; the most similar first. Supports without a known
        picture are left out.
    """
    supports, foils = (
        [image for images in by_row.values() for image in images][:MOST_SHOWN] for by_row in shown_by_row(why, index)
    )
    return supports, foils


def shown_by_row(why: Explanation, index: int) -> tuple[dict[int, list[ImageLike]], dict[int, list[ImageLike]]]:
    """The pictures of :func:`shown_pictures`, by the position of the support and of the support of the foil.

    Args:
        why: the explanation.
        index: the position of the query.
    """
    found, pictures = why.supports_of(index), why.support_pictures
    supports = _first(pictures, index, [one.row for one in found if one.weight > 0])
    if why.foil_pictures is not None:
        return supports, _first(why.foil_pictures, index, why.foil_pictures.rows(index))
    return supports, _first(pictures, index, [one.row for one in found if one.weight < 0])


def _first(pictures: Pictures | None, index: int, rows: Sequence[int]) -> dict[int, list[ImageLike]]:
    """The pictures of the supports at some rows, as many rows as nine pictures need."""
    shown: dict[int, list[ImageLike]] = {}
    if pictures is not None:
        for row in rows:
            images = list(pictures(index, row))
            shown |= {row: images} if images else {}
            if sum(map(len, shown.values())) >= MOST_SHOWN:
                break
    return shown
