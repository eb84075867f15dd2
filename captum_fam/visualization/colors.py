"""The colors of a map, and the value that has the full color.

All figures use the same colors: red is evidence for the match, blue is evidence against the match (or for the foil),
and zero is transparent. The scale is linear and symmetric about zero, and ends at the largest magnitude, so that no
value is clipped.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal, get_args

import numpy as np
from matplotlib.colors import LinearSegmentedColormap

from captum_fam.visualization.pixels import Array

ColorScale = Literal["shared", "own"]

MATCH_COLORS = LinearSegmentedColormap.from_list(
    "match",
    [
        (0.05, 0.12, 0.45, 0.90),
        (0.14, 0.40, 0.80, 0.78),
        (0.40, 0.75, 0.98, 0.55),
        (1.00, 1.00, 1.00, 0.00),
        (1.00, 0.72, 0.22, 0.55),
        (0.90, 0.22, 0.10, 0.78),
        (0.50, 0.00, 0.08, 0.90),
    ],
    N=513,  # odd, so that zero has a color of its own
)
"""Blue, transparent, red. Opacity is part of the color map, so that a color bar looks like the map over the image."""


def color_limit(values: Array) -> float:
    """The magnitude that has the full color: the largest magnitude of the map.

    Args:
        values: a map of any shape.

    Returns:
        The largest magnitude; 1 for a map of zeros, which is transparent on any scale.

    Example:
        >>> color_limit(np.array([[-3.0, 2.0]]))
        3.0
    """
    return float(np.abs(values).max(initial=0)) or 1.0


def color_limits(maps: Mapping[str, Array], scale: ColorScale) -> dict[str, float]:
    """The :func:`color_limit` of each of several maps.

    Args:
        maps: maps by title, each of any shape.
        scale: ``"shared"`` for the largest magnitude of all maps, so that equal colors mean equal values; ``"own"`` for
            the largest magnitude of each map.

    Returns:
        Magnitudes by title.

    Raises:
        ValueError: for an unknown scale.

    Example:
        >>> color_limits({"a": np.array([1.0]), "b": np.array([-4.0])}, "shared")
        {'a': 4.0, 'b': 4.0}
    """
    if scale not in get_args(ColorScale):
        raise ValueError(f'scale must be "shared" or "own", got {scale!r}')
    if scale == "own":
        return {title: color_limit(values) for title, values in maps.items()}
    largest = max((np.abs(values).max(initial=0) for values in maps.values()), default=0.0)
    return dict.fromkeys(maps, float(largest) or 1.0)
