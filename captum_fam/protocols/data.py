"""Datasets by the name of their folder."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import Dataset

from captum_fam.data.boxed_images import Sample
from captum_fam.data.cub import CUB200
from captum_fam.data.imagenet import ImageNetBoxes
from captum_fam.data.scenes import CLASSES, PlantedScenes
from captum_fam.protocols.model import TwoPartModel


class ScenesWithBoxes(Dataset[Sample]):
    """Planted scenes as items ``(image, label, boxes)``.

    Args:
        scenes: the scenes.
        model: whose normalisation the images get; its size must be that of the scenes.
    """

    def __init__(self, scenes: PlantedScenes, model: TwoPartModel) -> None:
        self.scenes = scenes
        self.labels = torch.tensor(scenes.targets)
        self.class_names = tuple(map(str, CLASSES))
        self._normalize = model.normalize

    def __len__(self) -> int:
        return len(self.scenes)

    def __getitem__(self, index: int) -> Sample:
        scene = self.scenes.scene(index)
        return Sample(self._normalize(scene.image), scene.label, torch.tensor([scene.box], dtype=torch.float32))


def load_dataset(
    source: str | Path, split: str, model: TwoPartModel, *, boxes: str | Path | None = None
) -> Dataset[Any]:
    """Images as a model takes them, with classes and boxes.

    Args:
        source: the folder of CUB-200-2011 or a part of it; the folder of ImageNet's validation images, with
            ``boxes``; ``"scenes"`` or ``"scenes:LENGTH"``, planted scenes; or ``package.module:factory``, a function of
            the model and the split.
        split: of CUB: ``"base"``, ``"val"``, ``"novel"``, ``"train"``, ``"test"``, ``"retrieval-test"``, ...; of the
            scenes ``"base"`` or ``"novel"``; ImageNet's validation images have none.
        model: gives geometry and normalisation.
        boxes: ImageNet's XML folder, or ``LOC_val_solution.csv``.

    Raises:
        FileNotFoundError: if there is no such folder.
        ValueError: for a folder of another kind, an unknown split, or scenes cropped, which have no margin.
    """
    text = str(source)
    if text.partition(":")[0] == "scenes":
        if model.framing == "crop":
            raise ValueError("geometry: scenes are drawn in the model's size and cannot be cropped; use squash")
        length = int(text.partition(":")[2] or 1000)
        return ScenesWithBoxes(PlantedScenes(split, length=length, size=model.size), model)  # type: ignore[arg-type]
    root = Path(source)
    if ":" in text and not root.exists():
        module, _, attribute = text.partition(":")
        made: Dataset[Any] = getattr(importlib.import_module(module), attribute)(model, split)
        return made
    if boxes is not None:
        return ImageNetBoxes(root, boxes, geometry=model.geometry, transform=model.normalize)
    if (root / "images.txt").is_file():
        return CUB200(root, split, model.geometry, model.normalize)  # type: ignore[arg-type]
    if not root.is_dir():
        raise FileNotFoundError(f"data {source}: no such folder")
    raise ValueError(
        f"data {source} is neither CUB-200-2011 (no images.txt) nor, without --boxes, ImageNet; a dataset of your own "
        "comes as package.module:factory"
    )
