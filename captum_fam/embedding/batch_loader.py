"""Reading a data set batch by batch, in order, and skipping items that cannot be read."""

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
    """B items of a data set.

    Attributes:
        indices: the positions of the items in the data set, int64 ``(B,)``.
        images: ``(B, C, H, W)``.
        labels: int64 ``(B,)``.
        boxes: the boxes of each item, ``(n, 4)``; an empty tuple for a data set without boxes.
    """

    indices: Tensor
    images: Tensor
    labels: Tensor
    boxes: tuple[Tensor, ...]


class BatchLoader:
    """Batches of a data set, in order.

    With ``on_error="skip"``, items whose image file is missing or broken are skipped; ``skipped`` gives their positions
    and the reasons. Errors of the machine, such as a failing disk or too many open files, are raised in any case.

    Args:
        dataset: a map-style data set with items ``(image, label)`` or ``(image, label, boxes)``, from this package or
            any other, such as torchvision's ``ImageFolder``.
        indices: the positions to read, in this order. Default: None, all.
        batch_size: items per batch; a batch with skipped items is smaller. Default: 64.
        num_workers: processes that read, as in ``torch.utils.data.DataLoader``. Default: 0, this process.
        on_error: ``"raise"`` the errors of the data set, or ``"skip"`` items whose image cannot be read.
            Default: ``"raise"``.
        left_out: positions to skip without reading them, with the reasons. Default: None, no item.

    Attributes:
        skipped: the positions that have been skipped so far, with the reasons.

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
            # Without a generator of its own, a DataLoader would draw from PyTorch's global generator.
            generator=torch.Generator(),
        )

    def __len__(self) -> int:
        """The number of batches if no item is skipped."""
        return len(self._loader)

    def __iter__(self) -> Iterator[Batch]:
        return (batch for batch, _ in self.with_skipped() if batch is not None)

    def with_skipped(self) -> Iterator[tuple[Batch | None, dict[int, str]]]:
        """Iterate over batches together with the items that were skipped in them.

        Yields:
            A batch, or None if all its items were skipped; and the skipped positions with the reasons.
        """
        self.skipped.clear()
        for batch, skipped in self._loader:
            self.skipped.update(skipped)
            yield batch, skipped


class _Numbered(Dataset[Any]):
    """Items with their positions; for an item that is skipped, the reason as a text in the place of the item."""

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
            if isinstance(error, UnreadableImageError):
                is_of_machine = error.machine_error is not None
            else:
                # For a broken file, PIL raises an OSError without an error number; ENOENT is a missing file.
                is_of_machine = error.errno not in (None, errno.ENOENT)
            if not self.skip or is_of_machine:
                raise
            return index, str(error)


def _collate(items: list[tuple[int, Any]]) -> tuple[Batch | None, dict[int, str]]:
    """A batch of the items that were read, and the reasons of the items that were skipped."""
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
