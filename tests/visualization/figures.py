"""What the tests of figures share."""

from __future__ import annotations

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg

from captum_fam.visualization import MapFigure

PHOTO = torch.rand(3, 12, 20, generator=torch.Generator().manual_seed(0))


def panels(figure: MapFigure) -> list[Axes]:
    """The axes with a title, from left to right."""
    return [ax for ax in figure.axes if ax.get_title()]


def painted(figure: MapFigure) -> np.ndarray:
    """The pixels of a figure, RGB in 0 to 255."""
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3].astype(int)


def whole_figure(height: int, width: int) -> MapFigure:
    """A figure of one pixel per pixel of an image, filled by its axes."""
    figure = MapFigure(figsize=(width / 100, height / 100), dpi=100)
    figure.add_axes((0, 0, 1, 1)).axis("off")
    return figure
