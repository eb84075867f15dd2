"""The images of the supports of queries, as the model takes them."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from captum_fam.explanation.reading.model import PreprocessingLike
from captum_fam.explanation.reading.pictures import open_picture
from captum_fam.support import LeaveOutSupport, Neighbors, Support, SupportPerQuery, SupportSet

SupportNames = Sequence[str | None] | Sequence[Sequence[str | None]] | None
"""The names of the files of supports, by row, or by query and row; None for a support that is no file."""


class SupportImages:
    """The images of the supports of queries, as the model takes them.

    Args:
        support: a :class:`~captum_fam.SupportSet` or :class:`~captum_fam.SupportPerQuery` of images, or
            :class:`~captum_fam.Neighbors` with ``images``.
        preprocessing: a function that gives the preprocessing of the pictures of neighbors.
        device: the device of the pictures of neighbors; None for the CPU.
        dtype: the type of the pictures of neighbors; None for that of the preprocessing.
        names: the names of the files of the supports, by row, or by query and row. Default: None, they are no files.

    Raises:
        ValueError: for a support without images.

    Example:
        >>> SupportImages(SupportSet(images, labels), None, None, None).of(query=0, row=3).shape
        torch.Size([3, 224, 224])
    """

    def __init__(
        self,
        support: Support,
        preprocessing: Callable[[], PreprocessingLike],
        device: torch.device | None,
        dtype: torch.dtype | None,
        names: SupportNames = None,
    ) -> None:
        self.support = support.support if isinstance(support, LeaveOutSupport) else support
        self._preprocessing, self._device, self._dtype, self._names = preprocessing, device, dtype, names
        if isinstance(self.support, Neighbors):
            remedy = (
                "Neighbors(images=...), a function from an id to its image" if self.support.images is None else None
            )
        elif isinstance(self.support, SupportSet | SupportPerQuery):
            remedy = "a support of images in the place of embeddings" if self.support.holds_embeddings else None
        else:
            remedy = "a SupportSet of images, pictures or folders, or Neighbors(images=...)"
        if remedy is not None:
            raise ValueError(
                f'sides="both" needs the images of the supports, and {type(support).__name__} has none; pass {remedy}'
            )

    @property
    def are_hits(self) -> bool:
        """Whether the supports are the hits of a search, which belong to a query whatever their class."""
        return isinstance(self.support, Neighbors)

    def of(self, query: int, row: int) -> Tensor | None:
        """The image of a support as the model takes it, ``(C, *spatial)``.

        Args:
            query: the position of the query.
            row: the position of the support, as in :attr:`Explanation.support_rows
                <captum_fam.explanation.Explanation.support_rows>`.

        Returns:
            The image; None for a hit of a search without an image. A hit whose image is a tensor of floating-point
            numbers is taken as the model takes it.

        Raises:
            UnreadableImageError: for a file that cannot be read.
        """
        if isinstance(self.support, Neighbors):
            image = self.support.image(query, row)
            if image is None or (isinstance(image, Tensor) and image.is_floating_point()):
                return image
            return self._preprocessing()(open_picture(image)).to(self._device, self._dtype)
        assert isinstance(self.support, SupportSet | SupportPerQuery)
        inputs = self.support.inputs
        return inputs[row] if isinstance(self.support, SupportSet) else inputs[query, row]

    def is_hit(self, query: int, row: int) -> bool:
        """Whether a search has found a hit of this rank, for the hits of a search.

        Args:
            query: the position of the query.
            row: the rank.
        """
        assert isinstance(self.support, Neighbors)
        ids = self.support.ids[query]
        return 0 <= row < len(ids) and ids[row] is not None

    def label(self, query: int, row: int, class_names: Sequence[str], target: int) -> str:
        """The name of the class of a support.

        Args:
            query: the position of the query.
            row: the position of the support.
            class_names: the names of the classes.
            target: the explained class, of which all supports are that are no hits of a search.
        """
        labels = self.support.labels if isinstance(self.support, Neighbors) else None
        return class_names[target if labels is None else int(labels[query, row])]

    def name(self, query: int, row: int, label: str) -> str:
        """The name of a support: the id of a hit, the name of a file without its suffix, else its class and position.

        Args:
            query: the position of the query.
            row: the position of the support.
            label: the name of the class of the support.
        """
        if isinstance(self.support, Neighbors):
            return str(self.support.ids[query][row])
        given = None if self._names is None else self._names[row if isinstance(self.support, SupportSet) else query]
        name = given if given is None or isinstance(given, str) else given[row]
        return f"{label}-{row}" if name is None else name
