"""Data sets for the tests of the experiments: scenes that are damaged, or have files."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch.utils.data import Dataset

from captum_fam.experiments.data.boxed_images import BoxedImage, ImageRecord
from captum_fam.experiments.data.load import ScenesWithBoxes
from captum_fam.images import UnreadableImageError


class Damaged(Dataset[BoxedImage]):
    """The scenes, some unreadable, some so bright that the network overflows."""

    def __init__(
        self, scenes: ScenesWithBoxes, unreadable: set[int] = frozenset(), overflowing: set[int] = frozenset()
    ) -> None:  # type: ignore[assignment]
        self.scenes = scenes
        self.labels = scenes.labels
        self.unreadable = unreadable
        self.overflowing = overflowing

    def __len__(self) -> int:
        return len(self.scenes)

    def __getitem__(self, index: int) -> BoxedImage:
        if index in self.unreadable:
            raise UnreadableImageError(f"scene-{index}.jpg: corrupt")
        image, label, boxes = self.scenes[index]
        return BoxedImage(image * torch.inf if index in self.overflowing else image, label, boxes)


class Filed(Dataset[BoxedImage]):
    """Some of the scenes, each with a file name of its own."""

    def __init__(self, scenes: ScenesWithBoxes, items: Sequence[int], folder: str = "data") -> None:
        self.scenes = scenes
        self.items = list(items)
        self.labels = scenes.labels[self.items]
        self.class_names = scenes.class_names
        self.records = [
            ImageRecord(Path(folder) / f"{item}.jpg", int(scenes.labels[item]), scenes[item].boxes) for item in items
        ]

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, index: int) -> BoxedImage:
        return self.scenes[self.items[index]]
