"""A data set batch by batch, in order, past items that cannot be read."""

from __future__ import annotations

import errno
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from captum_fam.images import UnreadableImageError

OnError = Literal["raise", "skip"]


class Batch(NamedTuple):
    """Items of a data set.

    Attributes:
        indices: the positions of the items in the data set, ``(B,)``.
        images: ``(B, C, H, W)``.
        labels: ``(B,)``.
        boxes: per item ``(n, 4)``; empty for a data set without boxes.
    """

    indices: Tensor
    images: Tensor
    labels: Tensor
    boxes: tuple[Tensor, ...]


class BatchLoader:
    """Batches of a data set of ``(image, label)`` or ``(image, label, boxes)``, in order.

    With ``on_error="skip"`` the loading goes on where an image file is missing or broken: such items are left out, and
    ``skipped`` says which and why. Trouble of the machine (a disk that fails, too many open files) is always raised.

    Args:
        dataset: a map-style data set: of this package, or any other such as torchvision's ``ImageFolder``.
        indices: the positions to read, in this order. Default: all.
        batch_size: items per batch; items that are skipped are missing in their batch. Default: 64.
        num_workers: processes that read, as in ``torch.utils.data.DataLoader``. Default: 0, this process.
        on_error: ``"raise"`` what the data set raises, or ``"skip"`` items whose image cannot be read.
            Default: ``"raise"``.
        left_out: items to skip without reading them, with the reason. Default: none.

    Attributes:
        skipped: of the items read so far those left out, by position, with the reason.

    Raises:
        ValueError: for an unknown ``on_error``, or images of different sizes in a batch.

    Example:
        >>> loader = BatchLoader(CUB200(root, "novel", Squash(84)), on_error="skip")
        >>> embeddings = torch.cat([model(batch.images) for batch in loader])
        >>> print(f"left out: {loader.skipped}")
    """

    def __init__(
        self,
        dataset: Dataset[Any],
        indices: Sequence[int] | None = None,
        batch_size: int = 64,
        num_workers: int = 0,
        on_error: OnError = "raise",
        left_out: Mapping[int, str] | None = None,
    ) -> None:
        if on_error not in ("raise", "skip"):
            raise ValueError(f'on_error must be "raise" or "skip", got {on_error!r}')
        positions = range(len(dataset)) if indices is None else indices  # type: ignore[arg-type]
        self.skipped: dict[int, str] = {}
        self._loader: DataLoader[Any] = DataLoader(
            _Numbered(dataset, positions, on_error == "skip", left_out or {}),
            batch_size,
            num_workers=num_workers,
            collate_fn=_collate,
            # A generator for this loader alone: DataLoader draws from the global one otherwise.
            generator=torch.Generator(),
        )

    def __len__(self) -> int:
        """The number of batches, were nothing skipped."""
        return len(self._loader)

    def __iter__(self) -> Iterator[Batch]:
        return (batch for batch, _ in self.with_skipped() if batch is not None)

    def with_skipped(self) -> Iterator[tuple[Batch | None, dict[int, str]]]:
        """Each batch with the items that are missing in it; None in place of a batch without any item."""
        self.skipped.clear()
        for batch, skipped in self._loader:
            self.skipped.update(skipped)
            yield batch, skipped


class _Numbered(Dataset[Any]):
    """Items with their positions; the reason in the place of an item that cannot be read."""

    def __init__(self, dataset: Dataset[Any], indices: Sequence[int], skip: bool, left_out: Mapping[int, str]) -> None:
        self.dataset = dataset
        self.indices = indices
        self.skip = skip
        self.left_out = left_out

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, position: int) -> tuple[int, Any]:
        index = int(self.indices[position])
        if index in self.left_out:
            return index, self.left_out[index]
        try:
            return index, self.dataset[index]
        except (OSError, UnreadableImageError) as error:
            # PIL raises OSErrors without a number for broken files.
            if not self.skip or getattr(error, "errno", None) not in (None, errno.ENOENT):
                raise
            return index, str(error)


def _collate(items: list[tuple[int, Any]]) -> tuple[Batch | None, dict[int, str]]:
    skipped = {index: item for index, item in items if isinstance(item, str)}
    read = [(index, item) for index, item in items if not isinstance(item, str)]
    if not read:
        return None, skipped
    images = [item[0] for _, item in read]
    shapes = {tuple(image.shape) for image in images}
    if len(shapes) > 1:
        raise ValueError(f"dataset gives images of different shapes, {sorted(shapes)}; give it a geometry")
    batch = Batch(
        torch.tensor([index for index, _ in read]),
        torch.stack(images),
        torch.tensor([int(item[1]) for _, item in read]),
        tuple(item[2] for _, item in read if len(item) > 2),
    )
    return batch, skipped
