"""The panels of a figure that show an input alone, or a map over an input, and the scales that maps share."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from matplotlib.axes import Axes

from captum_fam.metrics.maps import find_empty
from captum_fam.visualization.colors import ColorScale, color_limits, same_scale
from captum_fam.visualization.drawing import InputDrawing
from captum_fam.visualization.marks import draw_color_bar
from captum_fam.visualization.pixels import Array, MapLike, to_map
from captum_fam.visualization.style import DEFAULT_STYLE, MapStyle


@dataclass(frozen=True)
class InputPanel:
    """An input alone.

    Attributes:
        drawing: the input.
        title: the lines above the panel.
        mask: the outline to draw, of the size of the input. Default: None.

    Example:
        >>> from captum_fam.visualization.drawing import drawing_of
        >>> InputPanel(drawing_of(photo), "query").aspect
        1.5
    """

    drawing: InputDrawing
    title: str
    mask: Array | None = None

    @property
    def aspect(self) -> float:
        """The width of the panel divided by its height."""
        return self.drawing.aspect

    def draw(self, ax: Axes) -> None:
        """Draw the input on axes."""
        self.drawing.draw(ax)
        if self.mask is not None:
            self.drawing.draw_mask(ax, self.mask)


@dataclass(frozen=True)
class ColorBar:
    """The color bar of a map's panel.

    Attributes:
        signed: whether the bar has a negative half.
        beside: whether the bar stands at the right of the panel; otherwise it stands below the panel.
        unit: the unit of the values.
    """

    signed: bool
    beside: bool
    unit: str


@dataclass(frozen=True)
class MapPanel:
    """A map over an input.

    Attributes:
        drawing: the input.
        title: the lines above the panel.
        values: the map, of the size of the input.
        unit: the unit of the values; an empty text if it is not known.
        style: how the map is drawn.
        mask: the outline to draw, of the size of the input. Default: None.
        limit: the magnitude that has the full color. Default: 1.
        bar: the color bar. Default: None.

    Example:
        >>> from captum_fam.visualization.drawing import drawing_of
        >>> panel = MapPanel.of(drawing_of(photo), attributions[0], "FAM", unit="activation")
        >>> panel.values.shape, panel.unit
        ((60, 90), 'activation')
    """

    drawing: InputDrawing
    title: str
    values: Array
    unit: str = ""
    style: MapStyle = DEFAULT_STYLE
    mask: Array | None = None
    limit: float = 1.0
    bar: ColorBar | None = None

    @classmethod
    def of(
        cls,
        drawing: InputDrawing,
        attribution: MapLike,
        title: str,
        *,
        name: str = "attribution",
        unit: str = "",
        style: MapStyle = DEFAULT_STYLE,
        mask: Array | None = None,
    ) -> MapPanel:
        """The panel of a map of any form; the title says if the map is the same everywhere.

        Args:
            drawing: the input.
            attribution: the map, in any form that :func:`~captum_fam.visualization.to_map` takes.
            title: the lines above the panel.
            name: the name of the map in error messages. Default: ``"attribution"``.
            unit: the unit of the values. Default: an empty text.
            style: how the map is drawn. Default: colors over the image in color.
            mask: the outline to draw, of the size of the input. Default: None.
        """
        lines = "\n".join(filter(None, (title, _flatness(attribution))))
        return cls(drawing, lines, to_map(attribution, drawing.size, name), unit, style, mask)

    @property
    def aspect(self) -> float:
        """The width of the panel divided by its height."""
        return self.drawing.aspect

    def draw(self, ax: Axes) -> None:
        """Draw the map over its input on axes, with its color bar."""
        heat = self.drawing.draw_map(ax, self.values, self.limit, self.style)
        if self.mask is not None:
            self.drawing.draw_mask(ax, self.mask)
        if self.bar is not None:
            draw_color_bar(heat, signed=self.bar.signed, beside=self.bar.beside, unit=self.bar.unit)


def on_scales(
    panels: Sequence[MapPanel], scale: ColorScale, *, units_are_known: bool, bars_below: bool = False
) -> list[MapPanel]:
    """The panels with their scales of colors and their color bars.

    If all maps share one scale, its color bar stands beside the last map; otherwise there is a bar below each map. Maps
    of zeros need no color bar.

    Args:
        panels: the panels of the maps.
        scale: ``"shared"`` for one scale of all maps of one unit, or ``"own"``.
        units_are_known: whether a map without a unit shares its scale with no other map.
        bars_below: whether each map has its color bar below it in any case, as in a figure with maps on other scales.
            Default: False.

    Raises:
        ValueError: for an unknown scale.
    """
    units = dict(enumerate(panel.unit for panel in panels)) if units_are_known else None
    limits = color_limits({number: panel.values for number, panel in enumerate(panels)}, scale, units)
    groups = same_scale(limits, scale, units)
    is_beside = scale == "shared" and len(groups) == 1 and not bars_below
    made = list(panels)
    for group in groups:
        on_scale = [panels[number].values for number in group]
        signed = any(bool((values < 0).any()) for values in on_scale)
        for number in group:
            panel = panels[number]
            has_bar = any(values.any() for values in on_scale) and (not is_beside or number == group[-1])
            bar = ColorBar(signed, is_beside, panel.unit) if has_bar else None
            made[number] = replace(panel, limit=limits[number], bar=bar)
    return made


def _flatness(attribution: MapLike) -> str:
    """The words for a map without differences; an empty text for other maps."""
    values = torch.as_tensor(attribution)
    if not values.any():
        return "zero everywhere"
    # Floating-point maps keep their dtype, because differences within its rounding do not count.
    precise = values if values.is_floating_point() else values.double()
    return "the same everywhere" if find_empty(precise.reshape(1, -1)).item() else ""
