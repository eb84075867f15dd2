"""Planted scenes: generated images in which the exact mask of the object that decides a match is known.

A scene shows one object of a labeled class on a cluttered background, beside one or two distractors of other classes.
The masks of object and distractors are known. So a map that claims to show what a query shares with its support can be
compared with the mask of the object. All scenes are drawn from a seed; nothing is downloaded.

A class is a texture in a palette on a silhouette. Many classes share each texture, palette and silhouette, and
distractors have the same sizes and contrasts as objects, so that neither color nor shape nor saliency identifies a
class. The textures of the novel classes do not occur in base scenes.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np
from torch import Tensor
from torch.utils.data import Dataset

from captum_fam.demo.rendering import Scene, render_scene
from captum_fam.demo.scene_classes import CLASSES
from captum_fam.demo.scene_episodes import Episode

Split = Literal["base", "novel"]

# Positions in CLASSES.
_OBJECTS = {"base": range(96), "novel": range(144, 168)}
_DISTRACTORS = {"base": range(96, 144), "novel": range(168, 192)}
# The first entry of every seed, so that splits and episodes have different random streams.
_SPLIT_STREAM = {"base": 0, "novel": 1}
_EPISODE_STREAM = 2


class PlantedScenes(Dataset[tuple[Tensor, int]]):
    """A data set of planted scenes with items ``(image, label)``; :meth:`scene` gives an item with masks and boxes.

    Item ``i`` shows class ``classes[i % len(classes)]``. The item depends on ``seed``, ``split``, ``size`` and ``i``
    only, not on the worker process that draws it. Items are drawn when they are read, which takes about two
    milliseconds at 84 x 84 pixels.

    Args:
        split: ``"base"`` with 96 classes, or ``"novel"`` with 24 classes, whose textures occur in no base scene.
            Default: ``"base"``.
        length: the number of scenes. Default: 10,000.
        size: the side, or ``(height, width)``, in pixels, at least 16. Default: 84.
        seed: a non-negative number. Default: 0.

    Attributes:
        classes: the labels of the objects.
        class_names: the name of each label, of all classes of both splits.
        distractor_classes: the labels of the distractors: 48 other classes for the base split, 24 for the novel split.
        targets: the label of each item.

    Raises:
        ValueError: for another split.

    Example:
        >>> scenes = PlantedScenes("novel", length=100, size=(64, 96))
        >>> image, label = scenes[7]
        >>> image.shape, label, scenes.scene(7).mask.shape
        (torch.Size([3, 64, 96]), 151, torch.Size([64, 96]))
    """

    def __init__(
        self, split: Split = "base", *, length: int = 10_000, size: int | tuple[int, int] = 84, seed: int = 0
    ) -> None:
        if split not in _OBJECTS:
            raise ValueError(f"split must be 'base' or 'novel', got {split!r}")
        self.split = split
        self.length = length
        self.size = size
        self.seed = seed
        self.classes = tuple(_OBJECTS[split])
        self.distractor_classes = tuple(_DISTRACTORS[split])
        self.class_names = tuple(map(str, CLASSES))
        self.targets = [self.classes[i % len(self.classes)] for i in range(length)]

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        scene = self.scene(index)
        return scene.image, scene.label

    def scene(self, index: int) -> Scene:
        """The scene of an item, with masks and boxes.

        Args:
            index: the position of the item.

        Raises:
            IndexError: for an index outside the data set.
        """
        label = self.targets[index]
        seed = (_SPLIT_STREAM[self.split], self.seed, index % self.length)
        return self._draw(label, self.distractor_classes, seed)

    def episode(self, way: int = 5, shot: int = 1, query: int = 15, *, seed: int = 0) -> Episode:
        """Draw a few-shot task from the classes of this split.

        Args:
            way: the number of classes. Default: 5.
            shot: support scenes per class. Default: 1.
            query: query scenes per class. Default: 15.
            seed: a non-negative number; equal seeds give equal episodes of this data set. Default: 0.

        Returns:
            The episode. Its scenes are not items of this data set.

        Raises:
            ValueError: for more classes than the split has, or a number below one.
        """
        if not 1 <= way <= len(self.classes):
            raise ValueError(f"way must be in 1..{len(self.classes)} for the {self.split} split, got {way}")
        if shot < 1 or query < 1:
            raise ValueError(f"shot and query must be at least 1, got {shot} and {query}")
        stream = (_EPISODE_STREAM, _SPLIT_STREAM[self.split], self.seed, seed)
        rng = np.random.default_rng(stream)
        classes = [int(label) for label in rng.choice(self.classes, way, replace=False)]
        pool = [int(label) for label in rng.permutation(self.distractor_classes)]
        half = len(pool) // 2  # support and query share no distractor class

        def scenes(per_class: int, distractors: Sequence[int], part: int) -> tuple[Scene, ...]:
            labels = [label for label in classes for _ in range(per_class)]
            return tuple(self._draw(label, distractors, (*stream, part, i)) for i, label in enumerate(labels))

        return Episode(tuple(classes), scenes(shot, pool[:half], 0), scenes(query, pool[half:], 1))

    def _draw(self, label: int, distractors: Sequence[int], seed: tuple[int, ...]) -> Scene:
        """A scene with one or two distractors of the given classes."""
        rng = np.random.default_rng(seed)
        chosen = rng.choice(distractors, rng.integers(1, 3), replace=False)
        return render_scene(label, chosen.tolist(), size=self.size, seed=(*seed, 1))
