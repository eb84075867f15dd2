"""The data sets of the experiments, by the path of their folder."""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

from captum_fam._text import printable_path
from captum_fam._user_code import import_code
from captum_fam.demo import CLASSES, PlantedScenes
from captum_fam.embedding.labeled_folder import ClassFolderImages
from captum_fam.experiments.data.boxed_images import BoxedImage
from captum_fam.experiments.data.cub import CUB200
from captum_fam.experiments.data.imagenet import ImageNetBoxes
from captum_fam.experiments.data.scene_source import SCENES_TO_EVALUATE, is_scenes, number_of_scenes
from captum_fam.experiments.two_part_model import TwoPartModel
from captum_fam.geometry import Squash
from captum_fam.images import image_to_tensor


class ScenesWithBoxes(Dataset[BoxedImage]):
    """Planted scenes as items ``(image, label, boxes)``.

    Args:
        scenes: the scenes.
        model: model whose normalization the images get. The scenes must have the size of the model; those for a model
            of rectangular images have its longer side, and are squashed.
    """

    def __init__(self, scenes: PlantedScenes, model: TwoPartModel) -> None:
        self.scenes = scenes
        self.labels = torch.tensor(scenes.targets)
        self.class_names = tuple(map(str, CLASSES))
        self._normalize = model.normalize
        self._squash = Squash(model.height_and_width)

    def __len__(self) -> int:
        return len(self.scenes)

    def __getitem__(self, index: int) -> BoxedImage:
        scene = self.scenes.scene(index)
        image, boxes = scene.image, torch.tensor([scene.box], dtype=torch.float32)
        _, height, width = image.shape
        if (height, width) != self._squash.size:
            boxes = self._squash.map_boxes(boxes, width, height)
            image = nn.functional.interpolate(image[None], self._squash.size, mode="bilinear", antialias=True)[0]
        return BoxedImage(self._normalize(image), scene.label, boxes)


class ClassFolders(ClassFolderImages):
    """Images in class folders, such as ImageNet's training images: items ``(image, label)``, without boxes.

    Args:
        root: folder of the class folders, as for :class:`~captum_fam.embedding.labeled_folder.ClassFolderImages`.
        model: model whose geometry and normalization the images get.

    Raises:
        FileNotFoundError: if there is no such folder.
        ValueError: if no folder in ``root`` has images.
    """

    def __init__(self, root: str | Path, model: TwoPartModel) -> None:
        super().__init__(root, stacklevel=2)
        self.geometry = model.geometry
        self._normalize = model.normalize

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        photo, label = super().__getitem__(index)
        resized, _ = self.geometry(photo, _NO_BOXES)
        return self._normalize(image_to_tensor(resized)), label


_NO_BOXES = torch.empty(0, 4)


def load_dataset(
    source: str | Path, split: str, model: TwoPartModel, *, boxes: str | Path | None = None
) -> Dataset[Any]:
    """A data set with images as inputs of a model, with classes, and with boxes where the data set has boxes.

    Args:
        source: folder of CUB-200-2011 or a part of it; folder of ImageNet's validation images, with ``boxes``; folder
            of class folders, which has no boxes; ``"scenes"`` or ``"scenes:LENGTH"`` for planted scenes (1,000 scenes
            without a length); or ``package.module:factory`` or ``file.py:factory``, a function of the model and the
            split.
        split: for CUB a split of :class:`~captum_fam.experiments.data.CUB200`; for scenes ``"base"`` or ``"novel"``;
            other folders ignore the split.
        model: model whose geometry and normalization the images get.
        boxes: folder of ImageNet's XML files, or ``LOC_val_solution.csv``; None for other data. Default: None.

    Returns:
        The data set, with items ``(image, label, boxes)`` or ``(image, label)``.

    Raises:
        FileNotFoundError: if there is no such folder, or no image in the folder.
        ValueError: for an unknown split, for scenes and a model that crops images, because scenes have no margin, or
            for a factory that cannot be imported, takes other arguments, or gives no data set.
    """
    text, name = str(source), printable_path(source)
    if is_scenes(source):
        if model.resize == "crop":
            raise ValueError("resize: scenes are drawn in the size of the model and cannot be cropped; use squash")
        length = number_of_scenes(source, SCENES_TO_EVALUATE)
        return ScenesWithBoxes(PlantedScenes(split, length=length, size=max(model.height_and_width)), model)  # type: ignore[arg-type]
    root = Path(source)
    if ":" in text and not root.exists():
        return _made_by(text, model, split)
    if boxes is not None:
        return ImageNetBoxes(root, boxes, geometry=model.geometry, transform=model.normalize)
    if (root / "images.txt").is_file():
        return CUB200(root, split, model.geometry, model.normalize)  # type: ignore[arg-type]
    if not root.is_dir():
        raise FileNotFoundError(f"data {name}: no such folder")
    try:
        return ClassFolders(root, model)
    except ValueError as error:
        raise FileNotFoundError(
            f"data {name} is neither CUB-200-2011 (no images.txt) nor, without --boxes, ImageNet, nor "
            f"folders of images by class ({error}); for a data set of your own pass package.module:factory"
        ) from error


def _made_by(source: str, model: TwoPartModel, split: str) -> Dataset[Any]:
    """The data set of a user's function."""
    module, _, attribute = source.rpartition(":")
    name = printable_path(source)
    try:
        factory = getattr(import_code(module), attribute, None)
    except ImportError as error:
        raise ValueError(f"data {name}: no such folder, and no function to import ({error})") from error
    if not callable(factory):
        raise ValueError(f"data {name}: {module} has no function {attribute!r}")
    try:
        inspect.signature(factory).bind(model, split)
    except (TypeError, ValueError) as error:
        raise ValueError(f"data {name}: must take the model and the split ({error})") from error
    dataset = factory(model, split)
    if not (hasattr(dataset, "__getitem__") and hasattr(dataset, "__len__")):
        raise ValueError(
            f"data {name}: gave {type(dataset).__name__}, expected a data set of known length with items "
            "(image, label) or (image, label, boxes)"
        )
    made: Dataset[Any] = dataset
    return made
