"""Drawing a signal as lines, and a map as colors behind the lines."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.image import AxesImage
from matplotlib.ticker import MaxNLocator
from PIL import Image

from captum_fam.visualization.colors import END_COLORS
from captum_fam.visualization.figure import MapFigure
from captum_fam.visualization.pixels import Array, ImageLike, to_signal
from captum_fam.visualization.style import DEFAULT_STYLE, MapStyle

_MOST_CHANNELS = 6
_MOST_STEPS = 2000
"""More samples than this are drawn as the smallest and the largest value of each step: a panel has fewer pixels."""

# The size of an overlay, in inches; each further channel makes it higher.
_WIDTH = 8.0
_HEIGHT = 2.2
_FURTHER_CHANNEL = 0.35


@dataclass(frozen=True)
class SignalDrawing:
    """A signal that can be drawn, as :class:`~captum_fam.visualization.drawing.InputDrawing` describes.

    A single channel is drawn in its own units. Of several channels, the first six are drawn one below the other, each
    scaled to the same height.

    Attributes:
        values: ``(C, L)``.
        has_axes: whether samples and channels are numbered.

    Example:
        >>> SignalDrawing.of(torch.rand(2, 50)).size
        (50,)
    """

    values: Array
    has_axes: bool = True

    @classmethod
    def of(cls, signal: ImageLike, name: str = "image") -> SignalDrawing:
        """The drawing of a signal in any form that :func:`~captum_fam.visualization.pixels.to_signal` takes."""
        return cls(to_signal(signal, name))

    @property
    def size(self) -> tuple[int, ...]:
        """The number of samples."""
        return self.values.shape[1:]

    @property
    def aspect(self) -> float:
        """The width of the panel divided by its height."""
        return 1.8

    @property
    def note(self) -> str:
        """How many channels are drawn, if not all."""
        channels = len(self.values)
        return f"first {_MOST_CHANNELS} of {channels} channels" if channels > _MOST_CHANNELS else ""

    @property
    def thumbnail(self) -> SignalDrawing:
        """The same signal without numbers."""
        return replace(self, has_axes=False)

    def draw(self, ax: Axes) -> None:
        """Draw the lines of the channels on axes."""
        channels = self.values[:_MOST_CHANNELS]
        if len(channels) > 1:
            # The first channel is the uppermost, and each has a band of height 1 around its tick.
            channels = 0.8 * (_scaled(channels) - 0.5) + np.arange(len(channels))[::-1, None]
            low, high = -0.5, len(channels) - 0.5
        else:
            smallest, largest = channels.min(), channels.max()
            margin = 0.06 * (largest - smallest) or 0.5
            low, high = smallest - margin, largest + margin
        for channel in channels:
            positions, heights = _envelope(channel)
            # A line through one sample would have no length.
            ax.plot(positions, heights, color="black", linewidth=0.8, marker="o" if len(channel) == 1 else "")
        # A sample is as wide as a pixel of an image, from half before to half after its position.
        ax.set(xlim=(-0.5, self.size[0] - 0.5), ylim=(low, high))
        if not self.has_axes:
            ax.set(xticks=[], yticks=[])
            return
        ax.tick_params(labelsize=8)
        ax.xaxis.set_major_locator(MaxNLocator(nbins=5, integer=True))
        ax.set_xlabel("sample", fontsize=8)
        if len(channels) > 1:
            ax.set_yticks(range(len(channels)), labels=[str(number) for number in reversed(range(len(channels)))])
            ax.set_ylabel("channel", fontsize=8)
        else:
            ax.yaxis.set_major_locator(MaxNLocator(nbins=4))

    def draw_map(self, ax: Axes, values: Array, limit: float, style: MapStyle = DEFAULT_STYLE) -> AxesImage:
        """Draw a map ``(L,)`` as colors behind the lines, or of its strongest parts a bar below the lines."""
        self.draw(ax)
        extent = (*ax.get_xlim(), *ax.get_ylim())
        heat = ax.imshow(
            values[None], cmap=style.colors, vmin=-limit, vmax=limit, extent=extent, aspect="auto", zorder=0
        )
        if style.kind == "outline":
            heat.set_visible(False)
            for sign, color in END_COLORS.items():
                _draw_bar(ax, sign * values > style.level * limit, 0, 0.06, color, hatch="////" if sign < 0 else None)
        return heat

    def draw_mask(self, ax: Axes, mask: Array) -> None:
        """Draw a dark bar above the samples that a mask ``(L,)`` holds."""
        _draw_bar(ax, mask > 0.5, 0.95, 1, "black")

    def overlay(self, values: Array, limit: float, style: MapStyle = DEFAULT_STYLE) -> Image.Image:
        """A map ``(L,)`` behind the lines of the signal, with numbers of samples, 1200 pixels wide."""
        rows = min(len(self.values), _MOST_CHANNELS)
        figure = MapFigure(figsize=(_WIDTH, _HEIGHT + _FURTHER_CHANNEL * (rows - 1)), dpi=150, layout="constrained")
        self.draw_map(figure.add_subplot(), values, limit, style)
        return figure.as_image()


def _draw_bar(ax: Axes, inside: Array, bottom: float, top: float, color: Any, hatch: str | None = None) -> None:
    """Draw a bar over the samples inside; its ends are shares of the height of the panel."""
    # Each sample from its left to its right end, so that a single sample has a bar too.
    ends = np.arange(len(inside)).repeat(2) + np.tile([-0.5, 0.5], len(inside))
    ax.fill_between(
        ends,
        bottom,
        top,
        where=inside.repeat(2),
        facecolor=color,
        hatch=hatch,
        edgecolor="white",
        linewidth=0,
        transform=ax.get_xaxis_transform(),
    )


def _scaled(channels: Array) -> Array:
    """Each channel ``(C, L)`` scaled to [0, 1] by its smallest and largest value; one half if these are equal."""
    low, high = channels.min(1, keepdims=True), channels.max(1, keepdims=True)
    scaled: Array = np.where(high > low, (channels - low) / np.where(high > low, high - low, 1.0), 0.5)
    return scaled


def _envelope(channel: Array) -> tuple[Array, Array]:
    """Positions and heights of the line of a channel: the samples, or the lowest and highest sample of each step."""
    positions = np.arange(len(channel))
    if len(channel) <= 2 * _MOST_STEPS:
        return positions, channel
    starts = np.linspace(0, len(channel), _MOST_STEPS, endpoint=False).astype(int)
    lowest, highest = np.minimum.reduceat(channel, starts), np.maximum.reduceat(channel, starts)
    return starts.repeat(2), np.stack([lowest, highest], 1).ravel()
