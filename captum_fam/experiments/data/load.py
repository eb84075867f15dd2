"""The data sets of the experiments, by the path of their folder."""

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
from captum_fam.experiments.data.scene_source import SCENES_TO_EVALUATE, is_scenes, number_of_scenes
from captum_fam.experiments.two_part_model import TwoPartModel
from captum_fam.images import image_to_tensor, read_image


class ScenesWithBoxes(Dataset[BoxedImage]):
    """Planted scenes as items ``(image, label, boxes)``.

    Args:
        scenes: the scenes.
        model: model whose normalization the images get; the scenes must have the size of the model.
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
    """Images in class folders, such as ImageNet's training images: items ``(image, label)``, without boxes.

    Labels number the folders in alphabetical order.

    Args:
        root: folder of the class folders.
        model: model whose geometry and normalization the images get.

    Raises:
        FileNotFoundError: if ``root`` has no folders, or a folder has no images.
    """

    def __init__(self, root: str | Path, model: TwoPartModel) -> None:
        super().__init__(root)
        self.class_names = tuple(self.classes)
        self.records = _FolderRecords(self.samples)
        self.geometry = model.geometry
        self._normalize = model.normalize

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        resized, _ = self.geometry(self.photograph(index), _NO_BOXES)
        return self._normalize(image_to_tensor(resized)), self.targets[index]

    def photograph(self, index: int) -> Image.Image:
        """The image of an item before the geometry.

        Args:
            index: position of the item.

        Returns:
            The image in RGB, turned upright by its EXIF orientation.
        """
        path, _ = self.samples[index]
        return read_image(path)


_NO_BOXES = torch.empty(0, 4)


class _FolderRecords(Sequence[ImageRecord]):
    """Records that are made when they are read, because a folder may have a million images."""

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
    """A data set with images as inputs of a model, with classes, and with boxes where the data set has boxes.

    Args:
        source: folder of CUB-200-2011 or a part of it; folder of ImageNet's validation images, with ``boxes``; folder
            of class folders, which has no boxes; ``"scenes"`` or ``"scenes:LENGTH"`` for planted scenes (1,000 scenes
            without a length); or ``package.module:factory``, a function of the model and the split.
        split: for CUB a split of :class:`~captum_fam.experiments.data.CUB200`; for scenes ``"base"`` or ``"novel"``;
            other folders ignore the split.
        model: model whose geometry and normalization the images get.
        boxes: folder of ImageNet's XML files, or ``LOC_val_solution.csv``; None for other data. Default: None.

    Returns:
        The data set, with items ``(image, label, boxes)`` or ``(image, label)``.

    Raises:
        FileNotFoundError: if there is no such folder, or no image in the folder.
        ValueError: for an unknown split, or for scenes and a model that crops images: scenes have no margin.
    """
    text = str(source)
    if is_scenes(source):
        if model.framing == "crop":
            raise ValueError("geometry: scenes are drawn in the size of the model and cannot be cropped; use squash")
        length = number_of_scenes(source, SCENES_TO_EVALUATE)
        return ScenesWithBoxes(PlantedScenes(split, length=length, size=model.size), model)  # type: ignore[arg-type]
    root = Path(source)
    if ":" in text and not root.exists():
        module, _, attribute = text.partition(":")
        dataset: Dataset[Any] = getattr(importlib.import_module(module), attribute)(model, split)
        return dataset
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
            f"images by class ({error}); for a data set of your own pass package.module:factory"
        ) from error
