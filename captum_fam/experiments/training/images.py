"""Images for training: decoded once, held as bytes, and changed at random batch by batch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import pad
from torch.utils.data import Dataset

from captum_fam._files import write_all_or_nothing
from captum_fam.embedding import Batch, DatasetEmbedder
from captum_fam.experiments.distributed import Ranks
from captum_fam.images import normalize_bytes

# Tries to fit a rectangle into the image, as in torchvision's RandomErasing.
_TRIES = 10


class LabeledImages(NamedTuple):
    """Decoded images of one size.

    Attributes:
        images: ``(n, 3, H, W)`` uint8.
        labels: ``(n,)`` int64.
    """

    images: Tensor
    labels: Tensor

    def where(self, chosen: Tensor) -> LabeledImages:
        """The images of a boolean mask ``(n,)``."""
        return LabeledImages(self.images[chosen], self.labels[chosen])


def read_images(
    dataset: Dataset[Any],
    file: str | Path | None = None,
    *,
    num_workers: int = 0,
    ranks: Ranks | None = None,
    progress: bool = False,
) -> LabeledImages:
    """Decode every image of a data set, so that no epoch waits for a decoder: 21 kB per image of 84 x 84.

    Args:
        dataset: items ``(image, label)`` or ``(image, label, boxes)``; the images float in [0, 1], of one size, not
            normalized.
        file: keeps the images; read instead of decoding, if it is there. Processes that share a run need it.
            Default: None.
        num_workers: processes that decode. Default: 0.
        ranks: the processes that share the run: the first one decodes. Default: this one alone.
        progress: show a progress bar. Default: False.

    Raises:
        UnreadableImageError: for an image that is missing or broken; ``BoxedImages.check`` lists them all.
        ValueError: for images of different sizes.
    """
    ranks = ranks or Ranks()
    if file is None:
        return _decode(dataset, num_workers, progress)
    file = Path(file)
    if ranks.is_first and not file.is_file():
        decoded = _decode(dataset, num_workers, progress)
        with write_all_or_nothing(file.parent) as scratch:
            torch.save(tuple(decoded), scratch / file.name)
    ranks.wait()
    return LabeledImages(*torch.load(file, weights_only=True, mmap=True))


def _decode(dataset: Dataset[Any], num_workers: int, progress: bool) -> LabeledImages:
    def compute(batch: Batch) -> dict[str, Tensor]:
        return {"images": (batch.images * 255).round().byte()}

    embedder = DatasetEmbedder(compute, dataset, num_workers=num_workers, progress="decode" if progress else None)
    rows = embedder.run()
    return LabeledImages(rows.column("images"), rows.labels)


@dataclass(frozen=True)
class Augmentation:
    """Crop, mirror and erase at random: the training images of Cross Attention Network.

    An image is padded with black and a window of its own size cut out, mirrored half the time, normalized; then, with
    probability ``erasing``, a rectangle of 2 to 40 % of its area and an aspect ratio of 0.3 to 1 / 0.3 is filled with
    the gray (0.4914, 0.4822, 0.4465), written after the normalization as in the authors' code.

    Args:
        padding: pixels on each side. Default: 8.
        mirror: probability to swap left and right. Default: 0.5.
        erasing: probability to erase a rectangle. Default: 0.5.
    """

    padding: int = 8
    mirror: float = 0.5
    erasing: float = 0.5

    def __call__(
        self, images: Tensor, mean: Sequence[float], std: Sequence[float], generators: Sequence[Any]
    ) -> Tensor:
        """Change a batch.

        Args:
            images: ``(B, 3, H, W)`` uint8, on any device.
            mean: of the RGB channels in [0, 1].
            std: that they are divided by.
            generators: of random numbers on the CPU; each changes an equal share of the batch, in order.

        Returns:
            float32 ``(B, 3, H, W)`` in the memory format channels last.
        """
        count, _, height, width = images.shape
        each = count // len(generators)
        draws = [self._draw(each, height, width, generator) for generator in generators]
        top, left, mirrored, box = (torch.cat(parts).to(images.device) for parts in zip(*draws, strict=True))
        rows = top[:, None] + torch.arange(height, device=images.device)
        columns = torch.arange(width, device=images.device).expand(count, -1)
        columns = left[:, None] + torch.where(mirrored[:, None], width - 1 - columns, columns)
        padded = pad(images, [self.padding] * 4)
        index = torch.arange(count, device=images.device)[:, None, None]
        # The channels come last, where convolutions like them.
        cut = padded.permute(0, 2, 3, 1)[index, rows[:, :, None], columns[:, None, :]]
        pixels = normalize_bytes(cut.permute(0, 3, 1, 2), mean, std)
        erased = _within(box[:, 0], box[:, 2], height)[:, :, None] & _within(box[:, 1], box[:, 3], width)[:, None, :]
        gray = torch.tensor([0.4914, 0.4822, 0.4465], device=images.device).view(3, 1, 1)
        return torch.where(erased[:, None], gray, pixels)

    def _draw(self, count: int, height: int, width: int, generator: torch.Generator) -> tuple[Tensor, ...]:
        """Top, left, whether mirrored, and the erased rectangle ``(y0, x0, y1, x1)``, empty where there is none."""

        def uniform(*shape: int) -> Tensor:
            return torch.rand(*shape, generator=generator)

        top, left = (uniform(2, count) * (2 * self.padding + 1)).long()
        mirrored = uniform(count) < self.mirror
        area = height * width * (0.02 + 0.38 * uniform(count, _TRIES))
        aspect = 0.3 + (1 / 0.3 - 0.3) * uniform(count, _TRIES)
        # Several rectangles are drawn, and the first that fits into the image is taken, if any does.
        size = torch.stack([(area * aspect).sqrt(), (area / aspect).sqrt()], -1).round()
        room = torch.tensor([height, width]) - size
        fits = (room > 0).all(-1)
        first = fits.float().argmax(1)
        chosen = torch.arange(count), first
        start = (uniform(count, 2) * (room[chosen] + 1)).floor()
        erase = (uniform(count) < self.erasing) & fits[chosen]
        box = torch.cat([start, start + size[chosen]], 1)
        return top, left, mirrored, box * erase[:, None]


def _within(start: Tensor, end: Tensor, length: int) -> Tensor:
    positions = torch.arange(length, device=start.device)
    return (positions >= start[:, None]) & (positions < end[:, None])


def generator_for(*numbers: int) -> torch.Generator:
    """A generator whose random numbers depend on these numbers alone."""
    state = np.random.SeedSequence(numbers).generate_state(1, np.uint64)[0]
    return torch.Generator().manual_seed(int(state))
