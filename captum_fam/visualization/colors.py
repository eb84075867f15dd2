"""The colors of a map, and the value that has the full color.

All figures use the same colors: orange is evidence for the match, blue is evidence against the match (or for the foil),
and zero is transparent. People who see no red, no green or no blue can tell the two apart, and orange is the lighter
one, so that a print without colors shows the sign too. The scale is linear and symmetric about zero, and ends at the
largest magnitude, so that no value is clipped.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Mapping
from typing import Literal, TypeVar, get_args

import numpy as np
from matplotlib.colors import LinearSegmentedColormap

from captum_fam.visualization.pixels import Array

ColorScale = Literal["shared", "own"]
Key = TypeVar("Key", bound=Hashable)

STRENGTH = 0.72
"""The opacity of the full color where nothing else is asked for: the photograph below stays legible."""

# From the largest negative to the largest positive value: red, green, blue, and the opacity as a share of the strength.
# Weak values are nearly transparent, so that a haze over the whole photograph does not hide where the map is strong.
_ANCHORS = (
    (0.00, 0.16, 0.62, 1.00),
    (0.00, 0.36, 0.86, 0.62),
    (0.10, 0.52, 0.98, 0.14),
    (0.20, 0.60, 1.00, 0.00),
    (1.00, 0.72, 0.10, 0.00),
    (1.00, 0.66, 0.05, 0.14),
    (1.00, 0.53, 0.00, 0.62),
    (0.98, 0.34, 0.00, 1.00),
)
_PLACES = (0.0, 0.25, 0.4, 0.5, 0.5, 0.6, 0.75, 1.0)


def match_colors(strength: float) -> LinearSegmentedColormap:
    """The color map of all figures: blue, transparent, orange.

    Args:
        strength: the opacity of the full color, above 0 and at most 1.

    Example:
        >>> print("red {:.2f}, green {:.2f}, blue {:.2f}, opacity {:.2f}".format(*match_colors(0.5)(1.0)))
        red 0.98, green 0.34, blue 0.00, opacity 0.50
    """
    colors = [(*color, opacity * strength) for *color, opacity in _ANCHORS]
    # An odd number of colors, so that zero has a color of its own.
    return LinearSegmentedColormap.from_list("match", list(zip(_PLACES, colors, strict=True)), N=513)


MATCH_COLORS = match_colors(STRENGTH)
"""Blue, transparent, orange. Opacity is part of the color map, so that a color bar looks like the map over a photo."""

END_COLORS = {-1: _ANCHORS[0][:3], 1: _ANCHORS[-1][:3]}
"""The opaque full colors, by the sign of the value."""


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


def color_limits(
    maps: Mapping[Key, Array], scale: ColorScale, units: Mapping[Key, str] | None = None
) -> dict[Key, float]:
    """The :func:`color_limit` of each of several maps.

    Args:
        maps: maps by title, each of any shape.
        scale: ``"shared"`` for the largest magnitude of all maps of one unit, so that equal colors mean equal values;
            ``"own"`` for the largest magnitude of each map.
        units: the unit of each map, by title. A map that has no unit here, or an empty one, shares its scale with no
            other map. Default: None, all maps have the same unit.

    Returns:
        Magnitudes by title.

    Raises:
        ValueError: for an unknown scale.

    Example:
        >>> maps = {"a": np.array([1.0]), "b": np.array([-4.0])}
        >>> color_limits(maps, "shared")
        {'a': 4.0, 'b': 4.0}
        >>> color_limits(maps, "shared", {"a": "cosine", "b": "activation"})
        {'a': 1.0, 'b': 4.0}
    """
    limits: dict[Key, float] = {}
    for titles in same_scale(maps, scale, units):
        largest = max(np.abs(maps[title]).max(initial=0) for title in titles)
        limits |= dict.fromkeys(titles, float(largest) or 1.0)
    return {title: limits[title] for title in maps}


def same_scale(titles: Iterable[Key], scale: ColorScale, units: Mapping[Key, str] | None = None) -> list[list[Key]]:
    """Which maps share one scale of colors.

    Args:
        titles: the titles of the maps.
        scale: as for :func:`color_limits`.
        units: as for :func:`color_limits`. Default: None, all maps have the same unit.

    Returns:
        The titles of each scale, in the order of the maps.

    Raises:
        ValueError: for an unknown scale.

    Example:
        >>> same_scale("abc", "shared", {"a": "cosine", "b": "activation", "c": "cosine"})
        [['a', 'c'], ['b']]
    """
    if scale not in get_args(ColorScale):
        raise ValueError(f'scale must be "shared" or "own", got {scale!r}')
    groups: dict[tuple[str, Key | None], list[Key]] = {}
    for title in titles:
        unit = "" if units is None else units.get(title, "")
        is_alone = scale == "own" or (units is not None and not unit)
        groups.setdefault((unit, title if is_alone else None), []).append(title)
    return list(groups.values())
