"""The image files of ``captum-fam explain``: sorting them into classes and queries, and reading them in batches."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path

import torch
from PIL.Image import Image
from tqdm import tqdm

from captum_fam.embedding.forward import embed_images
from captum_fam.images import IMAGE_SUFFIXES, UnreadableImageError, find_images, read_image
from captum_fam.models import EmbeddingModel
from captum_fam.support import SupportSet

_DISPLAY_SIDE = 1024
"""Longer side of the overlays, in pixels. Larger overlays would make large files without more detail."""


def find_classes(paths: Sequence[Path], option: str) -> dict[str, list[Path]]:
    """Sort image files into classes.

    Image files, or one folder of images, are one class. Several folders, or a folder of class folders, are one class
    per folder.

    Args:
        paths: paths on the command line.
        option: option of the paths, such as ``"--support"``, for messages. A class of image files has the option
            without dashes as its name; a folder gives its own name to the class.

    Returns:
        Image files by class.

    Raises:
        ValueError: for a path that does not exist, a folder without images, a mixture of files and folders, or two
            folders with the same name.
    """
    for path in paths:
        if not path.exists():
            raise ValueError(f"{option} {path}: no such file or folder")
    folders = [path for path in paths if path.is_dir()]
    if not folders:
        return {option.lstrip("-"): list(paths)}
    if len(folders) < len(paths):
        raise ValueError(f"{option}: give either images or folders, not both")
    if len(folders) == 1:
        inner = sorted(path for path in folders[0].iterdir() if path.is_dir() and find_images(path))
        if inner and find_images(folders[0]):
            raise ValueError(f"{option} {folders[0]} holds both images and folders of images; give one or the other")
        folders = inner or folders
    classes = {folder.resolve().name: find_images(folder) for folder in folders}
    if len(classes) < len(folders):
        raise ValueError(f"{option}: two folders have the same name, but the names of the classes must differ")
    for folder in folders:
        if not classes[folder.resolve().name]:
            raise ValueError(f"{option} {folder} holds no images ({', '.join(IMAGE_SUFFIXES)})")
    return classes


def find_queries(paths: Sequence[Path]) -> dict[Path, str]:
    """Find the query images, and give each a name for the files of its results.

    Args:
        paths: image files, or folders of images.

    Returns:
        Names by file. The name is the name of the file without its suffix, with a number if an earlier file has the
        same name.

    Raises:
        ValueError: for a folder without images.

    Example:
        >>> list(find_queries([Path("wren.jpg"), Path("old/wren.jpg")]).values())
        ['wren', 'wren-2']
    """
    names: dict[Path, str] = {}
    taken_names: set[str] = set()
    for path in paths:
        files = find_images(path) if path.is_dir() else [path]
        if not files:
            raise ValueError(f"QUERY {path} holds no images ({', '.join(IMAGE_SUFFIXES)})")
        for file in files:
            candidates = (file.stem if number == 1 else f"{file.stem}-{number}" for number in count(1))
            # Some file systems do not distinguish upper and lower case.
            names[file] = next(name for name in candidates if name.casefold() not in taken_names)
            taken_names.add(names[file].casefold())
    return names


@dataclass(frozen=True)
class ImageBatch:
    """A batch of readable images.

    Attributes:
        paths: paths of the B files.
        inputs: inputs of the model, ``(B, 3, size, size)``.
        photos: the images as they are, at most 1024 pixels wide and high, for display.
        sizes: height and width of the image in each file, in pixels.
    """

    paths: tuple[Path, ...]
    inputs: torch.Tensor
    photos: tuple[Image, ...]
    sizes: tuple[tuple[int, int], ...]


@dataclass
class ImageReader:
    """Reads images in batches for a model; reports images that cannot be read, and continues without them.

    Attributes:
        net: the model, whose preprocessing the images get.
        device: device of the batches.
        batch_size: images per batch.
        quiet: whether progress bars are hidden. Default: False.
        unreadable: reason for each file that could not be read. Default: empty.
    """

    net: EmbeddingModel
    device: str
    batch_size: int
    quiet: bool = False
    unreadable: dict[Path, str] = field(default_factory=dict)

    def batches(self, paths: Iterable[Path]) -> Iterator[ImageBatch]:
        """Read images in batches, without the images that cannot be read.

        Args:
            paths: image files.

        Yields:
            Batches in the order of the files.
        """
        waiting: list[tuple[Path, torch.Tensor, Image, tuple[int, int]]] = []
        for path in paths:
            try:
                photo = read_image(path)
            except UnreadableImageError as error:
                self.unreadable[path] = str(error)
                tqdm.write(f"captum-fam: {error}", file=sys.stderr)
                continue
            inputs, size = self.net.preprocess(photo), (photo.height, photo.width)
            photo.thumbnail((_DISPLAY_SIDE, _DISPLAY_SIDE))
            waiting.append((path, inputs, photo, size))
            if len(waiting) == self.batch_size:
                yield self._batch(waiting)
                waiting = []
        if waiting:
            yield self._batch(waiting)

    def _batch(self, images: Sequence[tuple[Path, torch.Tensor, Image, tuple[int, int]]]) -> ImageBatch:
        paths, inputs, photos, sizes = zip(*images, strict=True)
        return ImageBatch(paths, torch.stack(inputs).to(self.device), photos, sizes)

    def support_set(self, classes: Mapping[str, Sequence[Path]], option: str, keep_images: bool) -> SupportSet:
        """A support set of the readable images of all classes.

        Args:
            classes: files by class.
            option: option of the files, for messages and the progress bar.
            keep_images: whether the support set holds images instead of embeddings, which need much less memory.

        Returns:
            The support set, on the device of the batches.

        Raises:
            ValueError: if no image of a class can be read.
        """
        parts: list[torch.Tensor] = []
        labels: list[str] = []
        total = sum(map(len, classes.values()))
        with tqdm(total=total, desc=f"reading {option}", unit="image", disable=self.quiet or None) as bar:
            for name, paths in classes.items():
                n_before = len(labels)
                for batch in self.batches(paths):
                    parts.append(batch.inputs if keep_images else embed_images(self.net.model, batch.inputs))
                    labels += [name] * len(batch.paths)
                if len(labels) == n_before:
                    raise ValueError(f"{option}: no image of {name!r} could be read")
                bar.update(len(paths))
        return SupportSet(torch.cat(parts), labels, class_names=list(classes))
