"""Few-shot episodes of planted scenes."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from captum_fam.demo.rendering import Scene


@dataclass(frozen=True)
class Episode:
    """A few-shot task: ``way`` classes with ``shot`` support scenes and ``query`` query scenes each.

    Scenes are ordered by class. Distractors belong to none of the classes of the episode, and no class of distractors
    occurs in both a support and a query scene. So a query shares only its object with a support scene of its class.

    Attributes:
        classes: the ``way`` classes, positions in :data:`~captum_fam.demo.scene_classes.CLASSES`.
        support: ``way * shot`` scenes.
        query: ``way * query`` scenes.
    """

    classes: tuple[int, ...]
    support: tuple[Scene, ...]
    query: tuple[Scene, ...]

    @property
    def support_images(self) -> Tensor:
        """The images of the support, float32 ``(way * shot, 3, H, W)``."""
        return torch.stack([scene.image for scene in self.support])

    @property
    def support_labels(self) -> Tensor:
        """The classes of the support as positions in ``classes``, int64 ``(way * shot,)``."""
        return torch.tensor([self.classes.index(scene.label) for scene in self.support])

    @property
    def query_images(self) -> Tensor:
        """The images of the queries, float32 ``(way * query, 3, H, W)``."""
        return torch.stack([scene.image for scene in self.query])

    @property
    def query_labels(self) -> Tensor:
        """The classes of the queries as positions in ``classes``, int64 ``(way * query,)``."""
        return torch.tensor([self.classes.index(scene.label) for scene in self.query])
