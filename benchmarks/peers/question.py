"""What every package is asked: on which model and layer, about which image and supports."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize

from captum_fam import SupportSet

Contrast = Literal["none", "others", "gallery"]


@dataclass(frozen=True)
class Subject:
    """A model as its user has it.

    Attributes:
        model: from images ``(B, 3, H, W)`` to embeddings ``(B, J)``.
        layer: the module whose output the maps explain.
        middle: a module before it, for recipes that explain an intermediate layer.
        mean: mean of each channel, with which the images were normalized.
        std: standard deviation of each channel, with which the images were normalized.
    """

    model: nn.Module
    layer: nn.Module
    middle: nn.Module
    mean: tuple[float, ...]
    std: tuple[float, ...]


@dataclass(frozen=True)
class Question:
    """Why is an image similar to the supports of a class?

    The score of class c is the mean cosine of the image to its K supports, which is the inner product of the unit
    embedding with the mean of the supports' unit embeddings. A contrast subtracts the mean score of the other classes,
    or the mean cosine to a gallery.

    Attributes:
        image: normalized, ``(1, 3, H, W)``.
        support_images: normalized, ``(C, K, 3, h, w)``.
        supports: their embeddings, ``(C, K, J)``.
        gallery: embeddings of other classes, ``(M, J)``.
        targets: the T classes to explain.
        contrast: what is subtracted.
    """

    image: Tensor
    support_images: Tensor
    supports: Tensor
    gallery: Tensor
    targets: tuple[int, ...]
    contrast: Contrast = "none"

    @cached_property
    def directions(self) -> Tensor:
        """The vectors whose inner products with the unit embedding are the explained scores, ``(T, J)``."""
        classes = normalize(self.supports, dim=-1).mean(1)
        if self.contrast == "gallery":
            classes = classes - normalize(self.gallery, dim=-1).mean(0)
        elif self.contrast == "others":
            classes = classes - (classes.sum(0) - classes) / (len(classes) - 1)
        return classes[list(self.targets)]

    @property
    def support_set(self) -> SupportSet:
        """The embedded supports of all classes."""
        n_classes, shot = self.supports.shape[:2]
        return SupportSet(self.supports.flatten(0, 1), torch.arange(n_classes).repeat_interleave(shot))

    @property
    def images(self) -> Tensor:
        """The image once for each target, ``(T, 3, H, W)``."""
        return self.image.expand(len(self.targets), -1, -1, -1)


def similarity(embedding: Tensor, direction: Tensor) -> Tensor:
    """The explained score of each row: the inner product of the unit embedding with a direction.

    Args:
        embedding: ``(..., J)``.
        direction: ``(..., J)``.
    """
    return (normalize(embedding, dim=-1) * direction).sum(-1)


Explain = Callable[[Subject, Question], Tensor]
"""A function from a question to maps ``(T, 1, h, w)``, as the package gives them."""


@dataclass(frozen=True)
class Row:
    """A method of a package.

    Attributes:
        package: name under which pip knows the package.
        method: name of the method.
        explain: the call that the documentation of the package shows.
        contrast: what is subtracted from the score.
        supports: what the call takes of the supports.
        slow: whether one map takes many passes, so that a mosaic is asked about one of its classes only.
        smoothed: whether the maps went through a mean filter, which is no part of the method.
    """

    package: str
    method: str
    explain: Explain
    contrast: Contrast = "none"
    supports: Literal["embeddings", "images", "nothing"] = "embeddings"
    slow: bool = False
    smoothed: bool = False

    @property
    def name(self) -> str:
        """Name of the row."""
        return self.method + {"none": "", "others": ", foil", "gallery": ", gallery"}[self.contrast]


def with_foil(row: Row) -> tuple[Row, Row]:
    """A row, and the row of the same method with the other classes as a foil.

    Args:
        row: the row without contrast.
    """
    return row, replace(row, contrast="others")
