"""Datasets by the name of their folder."""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset
from torchvision.datasets import ImageFolder

from captum_fam.demo import CLASSES, PlantedScenes
from captum_fam.experiments.data.boxed_images import BoxedImage, ImageRecord
from captum_fam.experiments.data.cub import CUB200
from captum_fam.experiments.data.imagenet import ImageNetBoxes
from captum_fam.experiments.split_model import TwoPartModel
from captum_fam.images import image_to_tensor, read_image


class ScenesWithBoxes(Dataset[BoxedImage]):
    """Planted scenes as items ``(image, label, boxes)``.

    Args:
        scenes: the scenes.
        model: whose normalization the images get; its size must be that of the scenes.
    """

    def __init__(self, scenes: PlantedScenes, model: TwoPartModel) -> None:
        self.scenes = scenes
        self.labels = torch.tensor(scenes.targets)
        self.class_names = tuple(map(str, CLASSES))
        self._normalize = model.normalize

    def __len__(self) -> int:
        return len(self.scenes)

    def __getitem__(self, index: int) -> BoxedImage:
        scene = self.scenes.scene(index)
        return BoxedImage(self._normalize(scene.image), scene.label, torch.tensor([scene.box], dtype=torch.float32))


class ClassFolders(ImageFolder):
    """A folder for each class, such as ImageNet's training images: items ``(image, label)``, without boxes.

    Labels number the folders by name.

    Args:
        root: of the class folders.
        model: whose geometry and normalization the images get.

    Raises:
        FileNotFoundError: if ``root`` has no folders, or one of them no images.
    """

    def __init__(self, root: str | Path, model: TwoPartModel) -> None:
        super().__init__(root)
        self.class_names = tuple(self.classes)
        self.records = _FolderRecords(self.samples)
        self.geometry = model.geometry
        self._normalize = model.normalize

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        framed, _ = self.geometry(self.photograph(index), _NO_BOXES)
        return self._normalize(image_to_tensor(framed)), self.targets[index]

    def photograph(self, index: int) -> Image.Image:
        """The image of an item, upright and in RGB: what the geometry is applied to."""
        path, _ = self.samples[index]
        return read_image(path)


_NO_BOXES = torch.empty(0, 4)


class _FolderRecords(Sequence[ImageRecord]):
    """Made when they are asked for: there may be a million."""

    def __init__(self, samples: Sequence[tuple[str, int]]) -> None:
        self._samples = samples

    def __len__(self) -> int:
        return len(self._samples)

    def __getitem__(self, index: Any) -> Any:
        path, label = self._samples[index]
        return ImageRecord(Path(path), label, _NO_BOXES)


def load_dataset(
    source: str | Path, split: str, model: TwoPartModel, *, boxes: str | Path | None = None
) -> Dataset[Any]:
    """Images as a model takes them, with classes and boxes.

    Args:
        source: the folder of CUB-200-2011 or a part of it; the folder of ImageNet's validation images, with
            ``boxes``; a folder of class folders, without boxes; ``"scenes"`` or ``"scenes:LENGTH"``, planted scenes; or
            ``package.module:factory``, a function of the model and the split.
        split: of CUB: ``"base"``, ``"val"``, ``"novel"``, ``"train"``, ``"test"``, ``"retrieval-test"``, ...; of the
            scenes ``"base"`` or ``"novel"``; other folders have none.
        model: gives geometry and normalization.
        boxes: ImageNet's XML folder, or ``LOC_val_solution.csv``.

    Raises:
        FileNotFoundError: if there is no such folder, or no images in it.
        ValueError: for an unknown split, or scenes cropped, which have no margin.
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
    try:
        return ClassFolders(root, model)
    except FileNotFoundError as error:
        raise FileNotFoundError(
            f"data {source} is neither CUB-200-2011 (no images.txt) nor, without --boxes, ImageNet, nor folders of "
            f"images by class ({error}); a dataset of your own comes as package.module:factory"
        ) from error
