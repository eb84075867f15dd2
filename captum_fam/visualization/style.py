"""How a map is drawn over its input: one object for all figures."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Literal, get_args

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import Colormap, ListedColormap
from matplotlib.image import AxesImage
from matplotlib.patheffects import withStroke

from captum_fam.visualization.colors import END_COLORS, STRENGTH, match_colors
from captum_fam.visualization.pixels import Array

StyleName = Literal["overlay", "outline"]

_COLORS = 513  # odd, so that zero has a color of its own
_LINE_IN_BAR = 0.012  # half the width of the line in the color bar, as a share of the largest magnitude
_LINE_WIDTH = 1.6  # in points
_RIM_WIDTH = 3.0


@dataclass(frozen=True)
class MapStyle:
    """How a map is drawn over its input.

    Attributes:
        kind: ``"overlay"`` for transparent colors over the input; ``"outline"`` for lines around the strongest parts,
            which leave the input as it is. Lines of positive values are solid, lines of negative values are dashed.
            Default: ``"overlay"``.
        gray: whether an image below a map is gray. Default: False, the image keeps its colors.
        strength: the opacity of the full color of an overlay, above 0 and at most 1. Default: 0.72.
        level: the magnitude at which an outline is drawn, as a share of the magnitude of the full color, between 0 and
            1. Default: 0.5.

    Raises:
        ValueError: for an unknown kind, or numbers out of range.

    Example:
        >>> MapStyle("outline", level=0.25)
        MapStyle(kind='outline', gray=False, strength=0.72, level=0.25)
    """

    kind: StyleName = "overlay"
    gray: bool = False
    strength: float = STRENGTH
    level: float = 0.5

    def __post_init__(self) -> None:
        if self.kind not in get_args(StyleName):
            raise ValueError(f'style must be "overlay", "outline" or a MapStyle, got {self.kind!r}')
        if not 0 < self.strength <= 1:
            raise ValueError(f"strength must be above 0 and at most 1, got {self.strength}")
        if not 0 < self.level < 1:
            raise ValueError(f"level must be between 0 and 1, got {self.level}")

    @classmethod
    def of(cls, style: StyleLike) -> MapStyle:
        """The style of a name, or the style itself."""
        return style if isinstance(style, MapStyle) else cls(style)

    @cached_property
    def colors(self) -> Colormap:
        """The color map: the colors of the overlay, or of an outline the colors of its lines at their values."""
        overlay = match_colors(self.strength)
        if self.kind == "overlay":
            return overlay
        positions = np.linspace(-1, 1, _COLORS)
        table = overlay(np.where(positions < 0, 0.0, 1.0))
        table[:, 3] = np.abs(np.abs(positions) - self.level) <= _LINE_IN_BAR
        return ListedColormap(table, name="outline")

    def below(self, pixels: Array) -> Array:
        """The colors of an image below a map.

        Args:
            pixels: ``(H, W, 3)`` in [0, 1].

        Returns:
            The image itself, or for ``gray`` the mean of its channels, ``(H, W, 3)``.
        """
        return np.broadcast_to(pixels.mean(2, keepdims=True), pixels.shape) if self.gray else pixels

    def blend(self, pixels: Array, values: Array, limit: float) -> Array:
        """Lay the colors of an overlay over an image.

        Args:
            pixels: ``(H, W, 3)`` in [0, 1].
            values: the map, ``(H, W)``.
            limit: the magnitude that has the full color.

        Returns:
            ``(H, W, 3)`` in [0, 1].
        """
        # A matplotlib color map takes positions in [0, 1]; the value zero is at 0.5.
        colors = self.colors(0.5 + 0.5 * values / limit)
        opacity = colors[..., 3:]
        blended: Array = (1 - opacity) * self.below(pixels) + opacity * colors[..., :3]
        return blended

    def draw_values(self, ax: Axes, values: Array, limit: float) -> AxesImage:
        """Draw a map over an image that is on the axes already.

        Args:
            ax: matplotlib axes with an image of the same size.
            values: the map, ``(H, W)``.
            limit: the magnitude that has the full color.

        Returns:
            The artist with the values and the colors, for the color bar; it is invisible for an outline.
        """
        heat = ax.imshow(values, cmap=self.colors, vmin=-limit, vmax=limit)
        if self.kind == "outline":
            heat.set_visible(False)
            for sign, dashes in ((-1, (0, (2.5, 1.2))), (1, "solid")):
                # Matplotlib warns of a level that no value reaches, and needs two rows and two columns.
                if min(values.shape) > 1 and (sign * values).max() > self.level * limit:
                    lines = ax.contour(
                        sign * values,
                        [self.level * limit],
                        colors=[END_COLORS[sign]],
                        linewidths=_LINE_WIDTH,
                        linestyles=[dashes],
                    )
                    lines.set_path_effects([withStroke(linewidth=_RIM_WIDTH, foreground="white")])
        return heat


StyleLike = MapStyle | StyleName
"""A style, or the name of a kind with the defaults of everything else."""

DEFAULT_STYLE = MapStyle()
"""An overlay on the image in color."""
