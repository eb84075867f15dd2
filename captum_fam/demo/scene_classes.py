"""The classes of the objects in planted scenes: a texture in a palette on a silhouette.

Many classes share each texture, palette and silhouette, so that neither color nor shape identifies a class. The
textures of the novel classes do not occur in base scenes.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from captum_fam.demo.textures import BASE_TEXTURES, NOVEL_TEXTURES, Array, distance_to_middle

REPEATS = {"fine": 0.075, "coarse": 0.14}
"""The length of one repeat of a texture by its grain, as a fraction of the scene's side sqrt(height * width)."""

PALETTES = {
    "ink-cream": ((0.11, 0.12, 0.17), (0.96, 0.92, 0.82)),
    "teal-sand": ((0.02, 0.42, 0.44), (0.96, 0.84, 0.58)),
    "navy-coral": ((0.11, 0.17, 0.43), (0.98, 0.52, 0.42)),
    "plum-mustard": ((0.36, 0.09, 0.36), (0.95, 0.75, 0.18)),
    "forest-lime": ((0.04, 0.31, 0.17), (0.74, 0.89, 0.32)),
    "brown-sky": ((0.36, 0.19, 0.09), (0.55, 0.82, 0.97)),
}
"""The dark and the light color of each palette, RGB in [0, 1]."""

_SILHOUETTES = ("disc", "square", "triangle", "hexagon", "star", "flower", "gear", "egg")


@dataclass(frozen=True)
class SceneClass:
    """A class of objects. Objects of one class differ in place, size, rotation, tint and light.

    Attributes:
        grain: the length of one repeat of the texture, ``"fine"`` or ``"coarse"``.
        palette: the name of a dark and a light color, such as ``"navy-coral"``.
        texture: the name of the pattern, such as ``"zigzag"``.
        silhouette: the name of the shape, such as ``"star"``.
    """

    grain: str
    palette: str
    texture: str
    silhouette: str

    def __str__(self) -> str:
        return f"{self.grain} {self.palette} {self.texture} {self.silhouette}"


def _combine(textures: Iterable[str]) -> list[SceneClass]:
    """The classes of all combinations of texture, grain and palette, in a mixed order that is always the same."""
    combinations = [
        SceneClass(grain, palette, texture, _SILHOUETTES[(3 * t + 5 * p + g) % len(_SILHOUETTES)])
        for t, texture in enumerate(textures)
        for g, grain in enumerate(REPEATS)
        for p, palette in enumerate(PALETTES)
    ]
    # Seed 15 is the one of the first thirty seeds that spreads all traits most evenly over objects and distractors.
    order = np.random.default_rng(15).permutation(len(combinations))
    return [combinations[i] for i in order]


CLASSES: tuple[SceneClass, ...] = (*_combine(BASE_TEXTURES), *_combine(NOVEL_TEXTURES))
"""The 192 classes; a label is a position in this tuple. The first 144 are base, the last 48 novel."""


def outline(silhouette: str, angle: Array) -> Array:
    """The distance from the center of a silhouette to its edge, by direction.

    Args:
        silhouette: the name of the shape.
        angle: directions in radians, of any shape.

    Returns:
        Distances of the same shape as ``angle``, at most 1.

    Raises:
        KeyError: for an unknown silhouette.

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
    # A regular polygon in polar coordinates, mixed with the disc around it; a larger share of the disc rounds the
    # corners more.
    return roundness + (1 - roundness) * math.cos(step / 2) / np.cos(angle % step - step / 2)


@functools.cache
def share_of_disc(silhouette: str) -> float:
    """The area of a silhouette divided by the area of the disc around it.

    Args:
        silhouette: the name of the shape.

    Example:
        >>> share_of_disc("disc")
        1.0
    """
    angle = np.linspace(0, 2 * math.pi, 1440, endpoint=False, dtype=np.float32)
    return float(np.mean(outline(silhouette, angle) ** 2))
