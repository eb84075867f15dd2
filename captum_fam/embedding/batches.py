"""A dataset batch by batch, in order, past items that cannot be read."""

from __future__ import annotations

import errno
from collections.abc import Iterator, Sequence
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from captum_fam.images import UnreadableImageError

OnError = Literal["raise", "skip"]


class Batch(NamedTuple):
    """Items of a dataset.

    Attributes:
        indices: their positions in the dataset, ``(B,)``.
        images: ``(B, C, H, W)``.
        labels: ``(B,)``.
        boxes: for each item ``(n, 4)``; empty for a dataset without boxes.
    """

    indices: Tensor
    images: Tensor
    labels: Tensor
    boxes: tuple[Tensor, ...]


class BatchLoader:
    """Batches of a dataset of ``(image, label)`` or ``(image, label, boxes)``, in order.

    The loading goes on where an image file is missing or broken, if it is told to: such items are left out, and
    ``skipped`` says which and why. Trouble of the machine (a disk that fails, too many open files) is always raised.

    Args:
        dataset: a map-style dataset: of this package, or any other such as torchvision's ``ImageFolder``.
        indices: the positions to read, in this order; all by default.
        batch_size: items a batch; a batch is smaller by what was skipped in it.
        num_workers: processes that read, as in ``torch.utils.data.DataLoader``.
        on_error: ``"raise"`` what the dataset raises, or ``"skip"`` items whose image cannot be read.

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
    ) -> None:
        if on_error not in ("raise", "skip"):
            raise ValueError(f'on_error must be "raise" or "skip", got {on_error!r}')
        positions = range(len(dataset)) if indices is None else indices  # type: ignore[arg-type]
        self.skipped: dict[int, str] = {}
        self._loader: DataLoader[Any] = DataLoader(
            _Numbered(dataset, positions, on_error == "skip"),
            batch_size,
            num_workers=num_workers,
            collate_fn=_collate,
            # A generator of its own: DataLoader draws from the global one otherwise.
            generator=torch.Generator(),
        )

    def __len__(self) -> int:
        """The number of batches, were nothing skipped."""
        return len(self._loader)

    def __iter__(self) -> Iterator[Batch]:
        self.skipped.clear()
        for batch, skipped in self._loader:
            self.skipped.update(skipped)
            if batch is not None:
                yield batch


class _Numbered(Dataset[Any]):
    """Items with their positions; the reason in the place of one that cannot be read."""

    def __init__(self, dataset: Dataset[Any], indices: Sequence[int], skip: bool) -> None:
        self.dataset = dataset
        self.indices = indices
        self.skip = skip

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, position: int) -> tuple[int, Any]:
        index = int(self.indices[position])
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
