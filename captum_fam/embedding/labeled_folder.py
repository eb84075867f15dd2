"""A folder with one folder of images per class, as a data set."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset

from captum_fam._text import printable_path
from captum_fam._warnings import warn_user
from captum_fam.image_files import find_class_folders
from captum_fam.image_folders import NO_IMAGE, list_images, skipped_in_words
from captum_fam.images import read_image


@dataclass(frozen=True)
class ImageOfClass:
    """An image file and its class.

    Attributes:
        path: the file.
        label: the class index.
    """

    path: Path
    label: int


class ClassFolderImages(Dataset[Any]):
    """The images of a folder with one folder of images per class: items ``(image, label)``.

    Labels number the folders in alphabetical order. The images of folders inside a class folder belong to the class.
    Hidden folders, folders of results of this package and folders without images are no classes; a warning names them.

    Args:
        folder: the folder.
        stacklevel: how many calls up the line of the user is, at which the warning points. Default: 1, the line that
            makes the data set.

    Attributes:
        class_names: the names of the class folders.
        labels: the class index of each item, int64 ``(len,)``.
        records: file and class of each item.
        skipped: why each file or folder inside ``folder`` is left out, by its path.

    Raises:
        FileNotFoundError: if there is no such folder.
        ValueError: for a folder without class folders that hold images.

    Example:
        >>> for name in ("jay", "wren"):
        ...     Path("birds", name).mkdir(parents=True)
        ...     Image.new("RGB", (8, 6)).save(f"birds/{name}/1.png")
        >>> birds = ClassFolderImages("birds")
        >>> birds.class_names, birds[1]
        (('jay', 'wren'), (<PIL.Image.Image image mode=RGB size=8x6 at ...>, 1))
    """

    def __init__(self, folder: str | Path, *, stacklevel: int = 1) -> None:
        name = printable_path(folder)
        if not Path(folder).is_dir():
            raise FileNotFoundError(f"{name}: no such folder; expected a folder with one folder of images per class")
        classes = find_class_folders(folder, deep=True)
        if not classes:
            direct = len(list_images(folder).files)
            beside = f", but {direct} images that are in no class folder" if direct else ""
            raise ValueError(f"{name}: holds no folder with images{beside}; expected one folder of images per class")
        self.skipped = classes.skipped
        # Any other file may lie beside the images. A folder may have been meant as a class.
        folders = {path: reason for path, reason in self.skipped.items() if reason != NO_IMAGE and path.is_dir()}
        if folders:
            warn_user(f"{name}: left out as no classes: {skipped_in_words(folders)}", stacklevel + 1)
        self.class_names = tuple(classes)
        self.labels = torch.repeat_interleave(torch.tensor([len(files) for files in classes.values()]))
        self.records = _Records([str(path) for files in classes.values() for path in files], self.labels)

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, index: int) -> tuple[Any, int]:
        return self.photograph(index), int(self.labels[index])

    def photograph(self, index: int) -> Image.Image:
        """The image of an item.

        Args:
            index: position of the item.

        Returns:
            The image in RGB, turned upright by its EXIF orientation.

        Raises:
            UnreadableImageError: for an image that is missing or broken.
        """
        return read_image(self.records[index].path)


class _Records(Sequence[ImageOfClass]):
    """Records that are made when they are read, because a folder may have a million images."""

    def __init__(self, paths: Sequence[str], labels: Tensor) -> None:
        self._paths = paths
        self._labels = labels

    def __len__(self) -> int:
        return len(self._paths)

    def __getitem__(self, index: Any) -> Any:
        return ImageOfClass(Path(self._paths[index]), int(self._labels[index]))
