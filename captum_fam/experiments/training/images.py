"""Images for training, which are decoded once, kept as bytes, and changed at random in each batch."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import pad
from torch.utils.data import Dataset

from captum_fam._files import write_all_or_nothing
from captum_fam._tensor_files import read_tensors
from captum_fam.embedding import Batch, DatasetEmbedder
from captum_fam.embedding.ranks import Ranks
from captum_fam.experiments.data.labels import labels_of
from captum_fam.images import normalize_bytes

# The number of attempts to draw a rectangle that fits into the image, as in torchvision's RandomErasing.
_ATTEMPTS = 10


class LabeledImages(NamedTuple):
    """Decoded images of one size.

    Attributes:
        images: ``(n, 3, H, W)`` uint8.
        labels: class of each image, ``(n,)`` int64.

    Example:
        >>> images = LabeledImages(torch.zeros(3, 3, 84, 84, dtype=torch.uint8), torch.tensor([0, 1, 1]))
        >>> images.where(images.labels == 1).labels
        tensor([1, 1])
    """

    images: Tensor
    labels: Tensor

    def where(self, chosen: Tensor) -> LabeledImages:
        """Select images.

        Args:
            chosen: whether to select an image, boolean ``(n,)``.

        Returns:
            The selected images with their labels.
        """
        return LabeledImages(self.images[chosen], self.labels[chosen])


def read_images(
    dataset: Dataset[Any],
    file: str | Path | None = None,
    *,
    num_workers: int = 0,
    ranks: Ranks | None = None,
    progress: bool = False,
) -> LabeledImages:
    """Decode every image of a data set into memory, so that no epoch waits for a decoder.

    An image of 84 x 84 pixels needs 21 kB.

    Args:
        dataset: items ``(image, label)`` or ``(image, label, boxes)``; images are float in [0, 1], of one size, and not
            normalized.
        file: path of a file for the decoded images, which is read if it exists, and written otherwise; None for no
            file, if a single process runs. Default: None.
        num_workers: number of processes that decode images. Default: 0.
        ranks: the processes that share the run, of which the first decodes. Default: this process alone.
        progress: show a progress bar. Default: False.

    Returns:
        The images and their labels.

    Raises:
        UnreadableImageError: for an image that is missing or broken; ``BoxedImages.check`` lists them all.
        ValueError: for images of different sizes, or a file that is damaged or holds another data set.

    Example:
        >>> from captum_fam.demo import PlantedScenes
        >>> read_images(PlantedScenes("novel", length=10, size=84)).images.shape
        torch.Size([10, 3, 84, 84])
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
    return LabeledImages(*read_stored(file, dataset, "images", _are_images, mmap=True))


def read_stored(
    file: Path, dataset: Dataset[Any], kind: str, fits: Callable[[Tensor], bool], *, mmap: bool = False
) -> tuple[Tensor, Tensor]:
    """Read one value per item of a data set, and the labels, from a file that this or an earlier process wrote.

    Args:
        file: path of the file.
        dataset: the data set.
        kind: what the values are, such as ``"features"``, for the message.
        fits: function that tells whether the values have the right type and shape.
        mmap: whether the values are read from the file when they are used. Default: False.

    Returns:
        The values ``(n, ...)`` and the labels, int64 ``(n,)``.

    Raises:
        ValueError: for a file that is damaged, or holds the values of another data set.
    """
    remedy = "delete it: it is then made again"
    content = read_tensors(file, remedy, mmap=mmap)
    expected = labels_of(dataset) if hasattr(dataset, "labels") or hasattr(dataset, "targets") else None
    if not (
        isinstance(content, tuple)
        and len(content) == 2
        and all(isinstance(part, Tensor) and part.shape[:1] == (len(dataset),) for part in content)  # type: ignore[arg-type]
        and fits(content[0])
        and content[1].dim() == 1
        and content[1].dtype == torch.int64
        and (expected is None or torch.equal(content[1], expected))
    ):
        raise ValueError(f"{file} holds the {kind} of another data set; {remedy}")
    return content


def _are_images(values: Tensor) -> bool:
    return values.dtype == torch.uint8 and values.dim() == 4


def _decode(dataset: Dataset[Any], num_workers: int, progress: bool) -> LabeledImages:
    def compute(batch: Batch) -> dict[str, Tensor]:
        return {"images": (batch.images * 255).round().byte()}

    embedder = DatasetEmbedder(compute, dataset, num_workers=num_workers, progress="decode" if progress else None)
    rows = embedder.run()
    return LabeledImages(rows.column("images"), rows.labels)


@dataclass(frozen=True)
class Augmentation:
    """Random changes of training images, as in Cross Attention Network: crop, mirror and erase.

    An image is padded with black, cropped to its size at a random place, mirrored, and normalized. Then a rectangle of
    2 to 40 % of the area, with an aspect ratio of 0.3 to 1 / 0.3, is filled with the values (0.4914, 0.4822, 0.4465).
    As in the authors' code, the values are not normalized.

    Args:
        padding: width of the padding on each side, in pixels. Default: 8.
        mirror: probability that left and right are swapped. Default: 0.5.
        erasing: probability that a rectangle is erased. Default: 0.5.

    Example:
        >>> images = torch.zeros(2, 3, 84, 84, dtype=torch.uint8)
        >>> Augmentation()(images, (0.5, 0.5, 0.5), (0.2, 0.2, 0.2), [generator_for(0)]).shape
        torch.Size([2, 3, 84, 84])
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
            mean: mean of each RGB channel, for pixels in [0, 1].
            std: standard deviation of each RGB channel, for pixels in [0, 1].
            generators: generators of random numbers on the CPU. Each generator draws the changes of an equal share of
                the batch, in order.

        Returns:
            float32 ``(B, 3, H, W)``, normalized, in the memory format ``channels_last``.
        """
        count, _, height, width = images.shape
        share = count // len(generators)
        draws = [self._draw(share, height, width, generator) for generator in generators]
        top, left, mirrored, box = (torch.cat(parts).to(images.device) for parts in zip(*draws, strict=True))
        rows = top[:, None] + torch.arange(height, device=images.device)
        columns = torch.arange(width, device=images.device).expand(count, -1)
        columns = left[:, None] + torch.where(mirrored[:, None], width - 1 - columns, columns)
        padded = pad(images, [self.padding] * 4)
        index = torch.arange(count, device=images.device)[:, None, None]
        # With the channels last, which is the faster memory format for convolutions.
        cropped = padded.permute(0, 2, 3, 1)[index, rows[:, :, None], columns[:, None, :]]
        pixels = normalize_bytes(cropped.permute(0, 3, 1, 2), mean, std)
        erased = _within(box[:, 0], box[:, 2], height)[:, :, None] & _within(box[:, 1], box[:, 3], width)[:, None, :]
        gray = torch.tensor([0.4914, 0.4822, 0.4465], device=images.device).view(3, 1, 1)
        return torch.where(erased[:, None], gray, pixels)

    def _draw(self, count: int, height: int, width: int, generator: torch.Generator) -> tuple[Tensor, ...]:
        """Draw the changes of ``count`` images.

        Returns:
            Top and left of the crop in the padded image, whether the image is mirrored, and the erased rectangle
            ``(y0, x0, y1, x1)``, empty if nothing is erased.
        """

        def uniform(*shape: int) -> Tensor:
            return torch.rand(*shape, generator=generator)

        top, left = (uniform(2, count) * (2 * self.padding + 1)).long()
        mirrored = uniform(count) < self.mirror
        area = height * width * (0.02 + 0.38 * uniform(count, _ATTEMPTS))
        aspect = 0.3 + (1 / 0.3 - 0.3) * uniform(count, _ATTEMPTS)
        # The first of the rectangles that fits into the image is taken. If none fits, nothing is erased.
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
    """Whether each of ``length`` positions lies between start and end, ``(B, length)``."""
    positions = torch.arange(length, device=start.device)
    return (positions >= start[:, None]) & (positions < end[:, None])


def generator_for(*numbers: int) -> torch.Generator:
    """A generator of random numbers on the CPU, seeded by a sequence of numbers.

    Args:
        numbers: whole numbers of at least 0. Different sequences give independent random numbers.

    Example:
        >>> a, b = (torch.rand(1, generator=generator_for(1, 2)) for _ in range(2))
        >>> bool(a == b)
        True
    """
    state = np.random.SeedSequence(numbers).generate_state(1, np.uint64)[0]
    return torch.Generator().manual_seed(int(state))
