"""The textures of planted scenes.

A texture is a function of coordinates, in units of one repeat. It returns the share of the light color of the palette
at each point, in [0, 1].
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.floating[Any]]
Texture = Callable[[Array, Array], Array]


def _soft_step(height: Array, slope: float) -> Array:
    """A threshold at zero with soft edges, so that small images have no aliasing."""
    return np.clip(0.5 + slope * height, 0.0, 1.0)


def distance_to_middle(x: Array) -> Array:
    """The distance to the middle of the repeat: 0.5 at the ends of the repeat, 0 in the middle.

    Example:
        >>> distance_to_middle(np.array([0.0, 0.25, 0.5, 1.5]))
        array([0.5 , 0.25, 0.  , 0.  ])
    """
    return np.abs(x % 1.0 - 0.5)


def turned(x: Array, y: Array, angle: float) -> Array:
    """The coordinate along an axis that is turned by an angle in radians.

    Example:
        >>> turned(np.array([3.0]), np.array([4.0]), math.pi / 2)
        array([4.])
    """
    return math.cos(angle) * x + math.sin(angle) * y


def _stripes(x: Array, y: Array) -> Array:
    return _soft_step(np.sin(2 * math.pi * x), 2.5)


def _checks(x: Array, y: Array) -> Array:
    return _soft_step(np.sin(math.pi * x) * np.sin(math.pi * y), 4.0)


def _hexagonal(x: Array, y: Array) -> Array:
    """The distance to the nearest point of a hexagonal lattice, which consists of two rectangular lattices."""
    tall = math.sqrt(3)
    return np.minimum(
        np.hypot(distance_to_middle(x), tall * distance_to_middle(y / tall)),
        np.hypot(distance_to_middle(x + 0.5), tall * distance_to_middle(y / tall + 0.5)),
    )


def _dots(x: Array, y: Array) -> Array:
    return _soft_step(0.3 - _hexagonal(x, y), 6.0)


def _rings(x: Array, y: Array) -> Array:
    return _soft_step(np.cos(2 * math.pi * np.hypot(x, y)), 2.5)


def _zigzag(x: Array, y: Array) -> Array:
    return _soft_step(np.sin(2 * math.pi * (y + 1.6 * distance_to_middle(0.6 * x))), 2.5)


def _bricks(x: Array, y: Array) -> Array:
    row = np.floor(1.6 * y)  # every other row is shifted by half a brick
    seam = np.minimum(0.5 - distance_to_middle(1.6 * y), 1.8 * (0.5 - distance_to_middle(0.9 * x + 0.5 * (row % 2))))
    return _soft_step(seam - 0.17, 6.0)


def _trellis(x: Array, y: Array) -> Array:
    """Lines in three directions."""
    lines = [np.abs(distance_to_middle(turned(x, y, k * math.pi / 3)) - 0.5) for k in range(3)]
    return _soft_step(np.minimum.reduce(lines) - 0.12, 6.0)


def _blobs(x: Array, y: Array) -> Array:
    """Waves whose lengths and directions have no common repeat, so that all blobs look different."""
    waves = [np.cos(2 * math.pi * pace * turned(x, y, k * 2.4) + k) for k, pace in enumerate((0.47, 0.55, 0.61, 0.7))]
    return _soft_step(np.sum(waves, axis=0), 1.5)


def _petals(x: Array, y: Array) -> Array:
    """Circles around the corners of a square grid; two circles overlap in a petal."""
    across, along = x % 1.0, y % 1.0
    corners = [np.hypot(across - i, along - j) for i in (0, 1) for j in (0, 1)]
    return _soft_step(0.7 - np.sort(np.stack(corners), axis=0)[1], 7.0)


def _scales(x: Array, y: Array) -> Array:
    row = np.floor(2 * y)  # every other row is shifted by half a scale
    arc = np.hypot((x + 0.5 * (row % 2)) % 1.0 - 0.5, 0.6 * (2 * y - row))
    return np.clip(1.0 - 6.4 * np.abs(arc - 0.25), 0.0, 1.0)


def _crosses(x: Array, y: Array) -> Array:
    across, along = distance_to_middle(x), distance_to_middle(y)
    return _soft_step(0.16 - np.maximum(np.minimum(across, along), np.maximum(across, along) - 0.26), 7.0)


def _triangles(x: Array, y: Array) -> Array:
    """Waves in three directions, whose sum has triangles of both colors."""
    waves = [np.sin(2 * math.pi * turned(x, y, k * 2 * math.pi / 3)) for k in range(3)]
    return _soft_step(np.sum(waves, axis=0), 1.2)


def _plaid(x: Array, y: Array) -> Array:
    return 0.5 * (_stripes(x, y) + _stripes(y, x))


def _spiral(x: Array, y: Array) -> Array:
    return _soft_step(np.cos(2 * math.pi * np.hypot(x, y) + np.arctan2(y, x)), 2.5)


def _bubbles(x: Array, y: Array) -> Array:
    return _soft_step(0.11 - np.abs(np.hypot(distance_to_middle(x), distance_to_middle(y)) - 0.3), 7.0)


def _dashes(x: Array, y: Array) -> Array:
    row = np.floor(1.8 * y)
    gap = np.minimum(0.26 - distance_to_middle(1.8 * y), 1.8 * (0.33 - distance_to_middle(0.8 * x + 0.37 * row)))
    return _soft_step(gap, 5.0)


BASE_TEXTURES: dict[str, Texture] = {
    "stripes": _stripes,
    "checks": _checks,
    "dots": _dots,
    "rings": _rings,
    "zigzag": _zigzag,
    "bricks": _bricks,
    "trellis": _trellis,
    "blobs": _blobs,
    "petals": _petals,
    "scales": _scales,
    "crosses": _crosses,
    "triangles": _triangles,
}
NOVEL_TEXTURES: dict[str, Texture] = {
    "plaid": _plaid,
    "spiral": _spiral,
    "bubbles": _bubbles,
    "dashes": _dashes,
}
TEXTURES = BASE_TEXTURES | NOVEL_TEXTURES
"""All textures by name."""

# Base textures only: novel textures must not occur in base scenes.
WALLPAPERS = ("stripes", "checks", "dots", "zigzag", "bricks", "blobs")
"""The textures that may cover a background faintly."""
