"""The image files of ``captum-fam explain``: which are classes, which are queries, and reading them in batches."""

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
"""Pixels of the longer side of overlays: more would make large files that show nothing more."""


def find_classes(paths: Sequence[Path], option: str) -> dict[str, list[Path]]:
    """Image files by class: files or one folder of images are one class, folders of folders or several are classes.

    Args:
        paths: as given.
        option: that they were given with, ``"--support"``; files that are one class get its name without dashes.

    Raises:
        ValueError: for a path that does not exist, a folder without images, or a mixture.
    """
    for path in paths:
        if not path.exists():
            raise ValueError(f"{option} {path}: no such file or folder")
    folders = [path for path in paths if path.is_dir()]
    if not folders:
        return {option.lstrip("-"): list(paths)}
    if len(folders) < len(paths):
        raise ValueError(f"{option}: give images, or folders, not both")
    if len(folders) == 1:
        inner = sorted(path for path in folders[0].iterdir() if path.is_dir() and find_images(path))
        if inner and find_images(folders[0]):
            raise ValueError(f"{option} {folders[0]} holds both images and folders of images; give one or the other")
        folders = inner or folders
    classes = {folder.resolve().name: find_images(folder) for folder in folders}
    if len(classes) < len(folders):
        raise ValueError(f"{option}: two folders have the same name, which is that of their class")
    for folder in folders:
        if not classes[folder.resolve().name]:
            raise ValueError(f"{option} {folder} holds no images ({', '.join(IMAGE_SUFFIXES)})")
    return classes


def find_queries(paths: Sequence[Path]) -> dict[Path, str]:
    """The query images, and the name of each for the results: that of its file, numbered where several have it.

    Raises:
        ValueError: for a folder without images.
    """
    names: dict[Path, str] = {}
    taken: set[str] = set()
    for path in paths:
        files = find_images(path) if path.is_dir() else [path]
        if not files:
            raise ValueError(f"QUERY {path} holds no images ({', '.join(IMAGE_SUFFIXES)})")
        for file in files:
            candidates = (file.stem if number == 1 else f"{file.stem}-{number}" for number in count(1))
            # Some file systems do not tell upper from lower case.
            names[file] = next(name for name in candidates if name.casefold() not in taken)
            taken.add(names[file].casefold())
    return names


@dataclass(frozen=True)
class ImageBatch:
    """Some of the readable images.

    Attributes:
        paths: of the B files.
        inputs: as the model takes them, ``(B, 3, size, size)``.
        photos: the images themselves, made smaller for display.
        sizes: height and width of each file.
    """

    paths: tuple[Path, ...]
    inputs: torch.Tensor
    photos: tuple[Image, ...]
    sizes: tuple[tuple[int, int], ...]


@dataclass
class ImageReader:
    """Reads images in batches for a model, names those that cannot be read, and goes on.

    Attributes:
        net: whose preprocessing the images get.
        device: of the batches.
        batch_size: images per batch.
        quiet: whether to show no progress bars.
        unreadable: the reason for each file that could not be read.
    """

    net: EmbeddingModel
    device: str
    batch_size: int
    quiet: bool = False
    unreadable: dict[Path, str] = field(default_factory=dict)

    def batches(self, paths: Iterable[Path]) -> Iterator[ImageBatch]:
        """The readable images, in batches."""
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
        """The readable images of all classes.

        Args:
            classes: files by class.
            option: that they were given with, for messages and the progress bar.
            keep_images: whether the support holds images; else embeddings, which take little memory for thousands.

        Raises:
            ValueError: if no image of a class can be read.
        """
        parts: list[torch.Tensor] = []
        labels: list[str] = []
        total = sum(map(len, classes.values()))
        with tqdm(total=total, desc=f"reading {option}", unit="image", disable=self.quiet or None) as bar:
            for name, paths in classes.items():
                before = len(labels)
                for batch in self.batches(paths):
                    parts.append(batch.inputs if keep_images else embed_images(self.net.model, batch.inputs))
                    labels += [name] * len(batch.paths)
                if len(labels) == before:
                    raise ValueError(f"{option}: no image of {name!r} could be read")
                bar.update(len(paths))
        return SupportSet(torch.cat(parts), labels, class_names=list(classes))
