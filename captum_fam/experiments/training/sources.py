"""The images for a training, from a folder or from planted scenes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset, Subset

from captum_fam.demo.scenes import PlantedScenes
from captum_fam.embedding.ranks import Ranks
from captum_fam.experiments.data.cub import CUB200, CUBSplit
from captum_fam.experiments.data.labels import labels_of
from captum_fam.experiments.data.scene_source import SCENES_TO_TRAIN, is_scenes, number_of_scenes
from captum_fam.experiments.training.images import LabeledImages, read_images
from captum_fam.geometry import Geometry
from captum_fam.models import EmbeddingModel


def few_shot_images(
    source: str | Path,
    net: EmbeddingModel,
    cache: str | Path,
    *,
    num_workers: int = 0,
    ranks: Ranks | None = None,
    progress: bool = False,
) -> dict[str, LabeledImages]:
    """Decoded images for few-shot training.

    Args:
        source: folder of CUB-200-2011 or a part of it; or ``"scenes"`` or ``"scenes:LENGTH"`` for planted scenes (8,000
            scenes without a length), of which every fourth base class is for validation.
        net: model whose geometry the images get.
        cache: folder for the decoded images.
        num_workers: number of processes that decode images. Default: 0.
        ranks: the processes that share the run. Default: this process alone.
        progress: show progress bars. Default: False.

    Returns:
        Images by split: ``"base"``, ``"val"`` and ``"novel"``.

    Raises:
        FileNotFoundError: if there is no such folder, or a table is missing in the folder.
        UnreadableImageError: for an image that is missing or broken.
        ValueError: for a length of scenes that is no number.

    Example:
        >>> from captum_fam.models import create_model
        >>> images = few_shot_images("scenes:100", create_model("conv4net"), cache=".")
        >>> {split: len(part.labels) for split, part in images.items()}
        {'base': 75, 'val': 25, 'novel': 25}
    """
    datasets = _few_shot_datasets(source, net)
    kind = "images-scenes" if is_scenes(source) else "images"
    parts = {}
    for split, dataset in datasets.items():
        count = f"-{len(dataset)}" if is_scenes(source) else ""  # type: ignore[arg-type]
        file = Path(cache) / f"{kind}-{split}{count}-{net.size}.pt"
        parts[split] = read_images(dataset, file, num_workers=num_workers, ranks=ranks, progress=progress)
    if not is_scenes(source):
        return parts
    is_validation = _is_validation(parts["base"].labels)
    return {
        "base": parts["base"].where(~is_validation),
        "val": parts["base"].where(is_validation),
        "novel": parts["novel"],
    }


def few_shot_labels(source: str | Path, net: EmbeddingModel) -> dict[str, Tensor]:
    """The classes of the images of :func:`few_shot_images`, without reading an image.

    Args:
        source: as for :func:`few_shot_images`.
        net: model whose geometry the images get.

    Returns:
        The class of each image, ``(n,)``, by split: ``"base"``, ``"val"`` and ``"novel"``.

    Raises:
        FileNotFoundError: if there is no such folder, or a table is missing in the folder.
        ValueError: for a length of scenes that is no number.

    Example:
        >>> from captum_fam.models import create_model
        >>> labels = few_shot_labels("scenes:100", create_model("conv4net"))
        >>> {split: len(part) for split, part in labels.items()}
        {'base': 75, 'val': 25, 'novel': 25}
    """
    labels = {split: labels_of(dataset) for split, dataset in _few_shot_datasets(source, net).items()}
    if is_scenes(source):
        is_validation = _is_validation(labels["base"])
        labels = {
            "base": labels["base"][~is_validation],
            "val": labels["base"][is_validation],
            "novel": labels["novel"],
        }
    return labels


def _few_shot_datasets(source: str | Path, net: EmbeddingModel) -> dict[str, Dataset[Any]]:
    """The data sets that are read for few-shot training; the base scenes include those for the validation."""
    if is_scenes(source):
        length = number_of_scenes(source, SCENES_TO_TRAIN)
        return {
            "base": PlantedScenes("base", length=length, size=net.size),
            "novel": PlantedScenes("novel", length=length // 4, size=net.size),
        }
    splits: tuple[CUBSplit, ...] = ("base", "val", "novel")
    return {split: CUB200(source, split, net.geometry) for split in splits}


def _is_validation(labels: Tensor) -> Tensor:
    """The base scenes for the validation: those of every fourth class."""
    return labels % 4 == 3


def retrieval_data(
    source: str | Path, geometry: Geometry | None, size: int | tuple[int, int]
) -> tuple[Dataset[Any], Dataset[Any]]:
    """Data sets for metric learning: images for the training, and images of other classes for the test.

    Args:
        source: folder of CUB-200-2011 or a part of it, of which the first half of the classes is for the training; or
            ``"scenes"`` or ``"scenes:LENGTH"`` for planted scenes (8,000 scenes without a length), of which the base
            classes are for the training.
        geometry: geometry of photographs; None for the size of the file.
        size: side of the scenes, or ``(height, width)``, in pixels.

    Returns:
        The data set for the training, and the data set for the test.

    Raises:
        FileNotFoundError: if there is no such folder, or a table is missing in the folder.
        ValueError: for a length of scenes that is no number.

    Example:
        >>> train, test = retrieval_data("scenes:100", geometry=None, size=84)
        >>> len(train), len(test)
        (100, 25)
    """
    if is_scenes(source):
        count = number_of_scenes(source, SCENES_TO_TRAIN)
        return PlantedScenes("base", length=count, size=size), PlantedScenes("novel", length=count // 4, size=size)
    return CUB200(source, "retrieval-train", geometry), CUB200(source, "retrieval-test", geometry)


def holdout_mask(labels: Tensor, every: int) -> Tensor:
    """The items of every Nth class, which are held out of a training.

    Args:
        labels: class of every item, ``(n,)``.
        every: N, at least 2; of each N classes in ascending order, the last class is held out. 0 holds out none.

    Returns:
        Whether an item is held out, boolean ``(n,)``.

    Raises:
        ValueError: for a negative number, or for 1, which would hold out all items.

    Example:
        >>> holdout_mask(torch.tensor([0, 1, 2, 3]), every=2)
        tensor([False,  True, False,  True])
    """
    if every < 0 or every == 1:
        raise ValueError(f"every must be 0 or at least 2, got {every}")
    _, positions = labels.unique(return_inverse=True)
    return positions % every == every - 1 if every else torch.zeros_like(labels, dtype=torch.bool)


def split_holdout(dataset: Dataset[Any], every: int) -> tuple[Dataset[Any], Dataset[Any] | None]:
    """Split a data set into the items for a training and the items of every Nth class.

    Args:
        dataset: data set with labels.
        every: N, as in :func:`holdout_mask`.

    Returns:
        The data set without every Nth class, and the data set of every Nth class; all items and None if ``every`` is 0.

    Raises:
        ValueError: as :func:`holdout_mask`, or if the data set has no labels.

    Example:
        >>> rest, held_out = split_holdout(PlantedScenes("novel", length=100), every=2)
        >>> len(rest), len(held_out)
        (50, 50)
    """
    if not every:
        return dataset, None
    is_held_out = holdout_mask(labels_of(dataset), every)
    return LabeledSubset(dataset, ~is_held_out), LabeledSubset(dataset, is_held_out)


class LabeledSubset(Subset[Any]):
    """The items of a data set at which a mask is true, with their labels."""

    def __init__(self, dataset: Dataset[Any], chosen: Tensor) -> None:
        super().__init__(dataset, chosen.nonzero()[:, 0].tolist())
        self.labels = labels_of(dataset)[chosen]
