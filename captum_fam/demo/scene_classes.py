"""The classes of the objects in planted scenes: a texture in a palette on a silhouette.

Each of the three is shared by many classes, so neither color nor shape gives a class away. The textures of the novel
classes occur in no base scene at all.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from captum_fam.demo.textures import BASE_TEXTURES, NOVEL_TEXTURES, Array, distance_to_middle

REPEATS = {"fine": 0.075, "coarse": 0.14}
"""By grain, the length of one repeat of a texture over the scene's side, sqrt(height * width)."""

PALETTES = {
    "ink-cream": ((0.11, 0.12, 0.17), (0.96, 0.92, 0.82)),
    "teal-sand": ((0.02, 0.42, 0.44), (0.96, 0.84, 0.58)),
    "navy-coral": ((0.11, 0.17, 0.43), (0.98, 0.52, 0.42)),
    "plum-mustard": ((0.36, 0.09, 0.36), (0.95, 0.75, 0.18)),
    "forest-lime": ((0.04, 0.31, 0.17), (0.74, 0.89, 0.32)),
    "brown-sky": ((0.36, 0.19, 0.09), (0.55, 0.82, 0.97)),
}
"""By name, a dark and a light color, RGB in [0, 1]."""

_SILHOUETTES = ("disc", "square", "triangle", "hexagon", "star", "flower", "gear", "egg")


@dataclass(frozen=True)
class SceneClass:
    """What all objects of one class share; place, size, rotation, tint and light vary.

    Attributes:
        grain: ``"fine"`` or ``"coarse"``: the length of one repeat of the texture.
        palette: a dark and a light color, such as ``"navy-coral"``.
        texture: the pattern, such as ``"zigzag"``.
        silhouette: the shape, such as ``"star"``.
    """

    grain: str
    palette: str
    texture: str
    silhouette: str

    def __str__(self) -> str:
        return f"{self.grain} {self.palette} {self.texture} {self.silhouette}"


def _combine(textures: Iterable[str]) -> list[SceneClass]:
    """All combinations in a fixed, mixed order, with the silhouettes spread evenly over them."""
    combinations = [
        SceneClass(grain, palette, texture, _SILHOUETTES[(3 * t + 5 * p + g) % len(_SILHOUETTES)])
        for t, texture in enumerate(textures)
        for g, grain in enumerate(REPEATS)
        for p, palette in enumerate(PALETTES)
    ]
    # Of the first thirty seeds, the one that spreads all traits most evenly over objects and distractors.
    order = np.random.default_rng(15).permutation(len(combinations))
    return [combinations[i] for i in order]


CLASSES: tuple[SceneClass, ...] = (*_combine(BASE_TEXTURES), *_combine(NOVEL_TEXTURES))
"""The 192 classes; a label is a position in this tuple. The first 144 are base, the last 48 novel."""


def outline(silhouette: str, angle: Array) -> Array:
    """The distance from the center of a silhouette to its edge in each direction, at most 1.

    Args:
        silhouette: the name in :attr:`SceneClass.silhouette`.
        angle: directions in radians, of any shape.

    Example:
        >>> outline("square", np.array([0.0, math.pi / 4])).round(3)
        array([1.   , 0.736])
    """
    if silhouette == "disc":
        return np.ones_like(angle)
    if silhouette == "egg":
        return 0.72 / np.hypot(0.72 * np.cos(angle), np.sin(angle))
    if silhouette == "flower":
        return 0.83 + 0.17 * np.cos(5 * angle)
    if silhouette == "gear":
        return 0.88 + 0.12 * np.tanh(4 * np.cos(8 * angle))
    if silhouette == "star":
        return 0.55 / (1.0 - 0.9 * distance_to_middle(angle * (5 / (2 * math.pi))))
    corners, roundness = {"triangle": (3, 0.3), "square": (4, 0.1), "hexagon": (6, 0.0)}[silhouette]
    step = 2 * math.pi / corners
    # A regular polygon in polar coordinates, mixed with the disc around it as far as its corners are round.
    return roundness + (1 - roundness) * math.cos(step / 2) / np.cos(angle % step - step / 2)


@functools.cache
def share_of_disc(silhouette: str) -> float:
    """The area of a silhouette over the area of the disc around it.

    Example:
        >>> share_of_disc("disc")
        1.0
    """
    angle = np.linspace(0, 2 * math.pi, 1440, endpoint=False, dtype=np.float32)
    return float(np.mean(outline(silhouette, angle) ** 2))
