"""The images of the recipes, by the name of their folder."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset, Subset

from captum_fam.demo.scenes import PlantedScenes
from captum_fam.experiments.data.cub import CUB200, CUBSplit
from captum_fam.experiments.data.labels import labels_of
from captum_fam.experiments.distributed import Ranks
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
    """Images of the splits ``"base"``, ``"val"`` and ``"novel"``.

    Args:
        source: the folder of CUB-200-2011 or a part of it, or ``"scenes:LENGTH"``: planted scenes, every fourth of
            their base classes for validation.
        net: gives the geometry.
        cache: folder for the decoded images.
        num_workers: processes that decode.
        ranks: the processes that share the run.
        progress: show progress bars.

    Raises:
        FileNotFoundError: if there is no such folder, or it lacks a table.
    """
    cache = Path(cache)
    if _is_scenes(source):
        length = _n_scenes(source)
        read = {}
        for split, count in (("base", length), ("novel", length // 4)):
            scenes = PlantedScenes(split, length=count, size=net.size)  # type: ignore[arg-type]
            file = cache / f"images-scenes-{split}-{count}-{net.size}.pt"
            read[split] = read_images(scenes, file, num_workers=num_workers, ranks=ranks, progress=progress)
        validation = read["base"].labels % 4 == 3
        return {
            "base": read["base"].where(~validation),
            "val": read["base"].where(validation),
            "novel": read["novel"],
        }
    splits: tuple[CUBSplit, ...] = ("base", "val", "novel")
    return {
        split: read_images(
            CUB200(source, split, net.geometry),
            cache / f"images-{split}-{net.size}.pt",
            num_workers=num_workers,
            ranks=ranks,
            progress=progress,
        )
        for split in splits
    }


def retrieval_data(source: str | Path, geometry: Geometry | None, size: int) -> tuple[Dataset[Any], Dataset[Any]]:
    """Images to train on and, of other classes, to test on.

    Args:
        source: the folder of CUB-200-2011 or a part of it: the first half of the classes and the rest; or
            ``"scenes:LENGTH"``: planted scenes, base and novel.
        geometry: of photographs; None: as they are.
        size: of the scenes.

    Raises:
        FileNotFoundError: if there is no such folder, or it lacks a table.
    """
    if _is_scenes(source):
        count = _n_scenes(source)
        return PlantedScenes("base", length=count, size=size), PlantedScenes("novel", length=count // 4, size=size)
    return CUB200(source, "retrieval-train", geometry), CUB200(source, "retrieval-test", geometry)


def holdout_mask(labels: Tensor, every: int) -> Tensor:
    """Which items ``(n,)`` are of every Nth class; none for 0.

    Args:
        labels: the class of every item, ``(n,)``.
        every: N: of the classes in ascending order the last of every N.

    Raises:
        ValueError: for a negative number, or 1, which leaves nothing to train on.
    """
    if every < 0 or every == 1:
        raise ValueError(f"every must be 0 or at least 2, got {every}")
    _, positions = labels.unique(return_inverse=True)
    return positions % every == every - 1 if every else torch.zeros_like(labels, dtype=torch.bool)


def split_holdout(dataset: Dataset[Any], every: int) -> tuple[Dataset[Any], Dataset[Any] | None]:
    """A data set without every Nth class, and the items of those classes; all items and None for 0."""
    if not every:
        return dataset, None
    chosen = holdout_mask(labels_of(dataset), every)
    return _Chosen(dataset, ~chosen), _Chosen(dataset, chosen)


class _Chosen(Subset[Any]):
    def __init__(self, dataset: Dataset[Any], chosen: Tensor) -> None:
        super().__init__(dataset, chosen.nonzero()[:, 0].tolist())
        self.labels = labels_of(dataset)[chosen]


def _is_scenes(source: str | Path) -> bool:
    return str(source).partition(":")[0] == "scenes"


def _n_scenes(source: str | Path) -> int:
    return int(str(source).partition(":")[2] or 8000)
