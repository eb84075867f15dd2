"""The images of a contrastive training: for the views, and for the k-NN accuracy."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils.data import Dataset

from captum_fam._text import printable_path
from captum_fam.demo.scenes import PlantedScenes
from captum_fam.embedding.labeled_folder import ClassFolderImages
from captum_fam.embedding.ranks import Ranks
from captum_fam.experiments.data.cub import CUB200
from captum_fam.experiments.data.imagenet import ImageNetBoxes
from captum_fam.experiments.data.labels import labels_of
from captum_fam.experiments.data.scene_source import SCENES_TO_TRAIN, is_scenes, number_of_scenes
from captum_fam.experiments.training.images import LabeledImages, read_images
from captum_fam.experiments.training.sources import LabeledSubset
from captum_fam.geometry import Geometry, Squash
from captum_fam.images import image_to_tensor
from captum_fam.models import EmbeddingModel


class ContrastiveImages(NamedTuple):
    """The data sets of a contrastive training, with items ``(image, label)`` or ``(image, label, boxes)``.

    Attributes:
        train: images of any size, of which views are made.
        bank: the same images in the size of the model, which vote in the k-NN accuracy; None without held-out images.
        val: the held-out images in the size of the model, whose class is asked; None if there are none.
    """

    train: Dataset[Any]
    bank: Dataset[Any] | None
    val: Dataset[Any] | None


def contrastive_images(
    source: str | Path,
    net: EmbeddingModel,
    hold_out: int,
    *,
    split: str | None = None,
    boxes: str | Path | None = None,
    stored: int | None = None,
    cache: str | Path = ".",
    num_workers: int = 0,
    ranks: Ranks | None = None,
    progress: bool = False,
) -> ContrastiveImages:
    """The images for :func:`~captum_fam.experiments.training.train_contrastive`.

    Args:
        source: folder of CUB-200-2011 or a part of it; folder of class folders, such as ImageNet's training images;
            folder of ImageNet's validation images, with ``boxes``; or ``"scenes"`` or ``"scenes:LENGTH"`` for planted
            scenes (8,000 scenes without a length), which are always drawn once and kept in memory.
        net: model whose geometry the images for the k-NN accuracy get.
        hold_out: N, where every Nth image of each class is held out; 0 for none.
        split: split of CUB (``"train"`` if None) or of the scenes (``"base"`` if None); other folders have none.
            Default: None.
        boxes: folder of ImageNet's XML files, or ``LOC_val_solution.csv``. Default: None.
        stored: side in pixels to which images are squashed and decoded once, into memory; None reads the files in every
            epoch. Default: None.
        cache: folder for the decoded images. Default: the current folder.
        num_workers: number of processes that decode images. Default: 0.
        ranks: the processes that share the run. Default: this process alone.
        progress: show progress bars. Default: False.

    Returns:
        The data sets.

    Raises:
        FileNotFoundError: if there is no such folder, or a table or all images are missing in the folder.
        UnreadableImageError: for an image that is missing or broken.
        ValueError: for an unknown split, a length of scenes that is no number, or too few images to hold out.

    Example:
        >>> from captum_fam.models import create_model
        >>> images = contrastive_images("scenes:120", create_model("conv4net"), 5, split="novel")
        >>> len(images.train), len(images.bank), len(images.val)
        (96, 96, 24)
    """

    def kept(geometry: Geometry | None, size: int | tuple[int, int]) -> Dataset[Any]:
        name = f"contrastive-{Path(source).name.replace(':', '-')}-{split or 'train'}-{size}.pt"
        dataset = _dataset(source, geometry, size, split, boxes)
        options = {"num_workers": num_workers, "ranks": ranks, "progress": progress}
        return StoredImages(read_images(dataset, Path(cache) / name, **options))  # type: ignore[arg-type]

    if is_scenes(source):
        whole = small = kept(None, net.size)
    elif stored is not None:
        whole = kept(Squash(stored, net.interpolation), stored)
        small = whole if stored == net.size else kept(net.geometry, net.size)
    else:
        whole, small = (_dataset(source, geometry, net.size, split, boxes) for geometry in (None, net.geometry))
    if not hold_out:
        return ContrastiveImages(whole, None, None)
    held_out = _every_nth_of_each_class(labels_of(whole), hold_out)
    if not held_out.any():
        raise ValueError(
            f"data {printable_path(source)}: no class has {hold_out} images, of which one could be held out; "
            "lower hold_out, or pass 0"
        )
    return ContrastiveImages(
        LabeledSubset(whole, ~held_out), LabeledSubset(small, ~held_out), LabeledSubset(small, held_out)
    )


class StoredImages(Dataset[tuple[Tensor, int]]):
    """Decoded images as a data set with items ``(image, label)``, images float32 in [0, 1].

    Args:
        images: the decoded images.

    Example:
        >>> images = StoredImages(LabeledImages(torch.full((3, 3, 8, 8), 255, dtype=torch.uint8), torch.arange(3)))
        >>> float(images[2][0].max()), images[2][1]
        (1.0, 2)
    """

    def __init__(self, images: LabeledImages) -> None:
        self.images, self.labels = images

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return self.images[index].float() / 255, int(self.labels[index])


class _ClassFolders(ClassFolderImages):
    """Images in class folders as tensors in [0, 1], resized where a geometry is given."""

    def __init__(self, root: str | Path, geometry: Geometry | None) -> None:
        super().__init__(root)
        self.geometry = geometry

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        photo, label = super().__getitem__(index)
        if self.geometry is not None:
            photo, _ = self.geometry(photo, torch.empty(0, 4))
        return image_to_tensor(photo), label


def _dataset(
    source: str | Path,
    geometry: Geometry | None,
    size: int | tuple[int, int],
    split: str | None,
    boxes: str | Path | None,
) -> Dataset[Any]:
    """The images of a source; scenes have the size, all others what the geometry makes of the files."""
    if is_scenes(source):
        length = number_of_scenes(source, SCENES_TO_TRAIN)
        return PlantedScenes(split or "base", length=length, size=size)  # type: ignore[arg-type]
    if boxes is None and (Path(source) / "images.txt").is_file():
        return CUB200(source, split or "train", geometry)  # type: ignore[arg-type]
    if split is not None:
        raise ValueError(f"split={split!r} is for CUB-200-2011 and scenes; data {printable_path(source)} has no splits")
    if boxes is not None:
        return ImageNetBoxes(source, boxes, geometry=geometry)
    try:
        return _ClassFolders(source, geometry)
    except ValueError as error:
        raise FileNotFoundError(
            f"data {printable_path(source)} is neither CUB-200-2011 (no images.txt) nor, without --boxes, ImageNet, "
            f"nor folders of images by class ({error})"
        ) from error


def _every_nth_of_each_class(labels: Tensor, every: int) -> Tensor:
    """Whether an item is the Nth, 2Nth, ... of its class, boolean ``(n,)``."""
    order = labels.argsort(stable=True)
    counts = labels.unique(return_counts=True)[1]
    starts = (counts.cumsum(0) - counts).repeat_interleave(counts)
    place = torch.empty_like(labels)
    place[order] = torch.arange(len(labels)) - starts
    return place % every == every - 1


def evenly_spaced(dataset: Dataset[Any], most: int) -> Dataset[Any]:
    """A data set, or as many evenly spaced items of it as are wanted at most.

    Args:
        dataset: data set with labels.
        most: number of items, at least 1.

    Example:
        >>> images = StoredImages(LabeledImages(torch.zeros(9, 3, 8, 8, dtype=torch.uint8), torch.arange(9)))
        >>> [label for _, label in map(evenly_spaced(images, 4).__getitem__, range(4))]
        [0, 2, 4, 6]
    """
    length = len(labels_of(dataset))
    if length <= most:
        return dataset
    chosen = torch.zeros(length, dtype=torch.bool)
    chosen[torch.arange(most) * length // most] = True
    return LabeledSubset(dataset, chosen)
