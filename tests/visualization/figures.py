"""What the tests of figures share."""

from __future__ import annotations

import torch
from matplotlib.axes import Axes

from captum_fam.visualization import MapFigure

PHOTO = torch.rand(3, 12, 20, generator=torch.Generator().manual_seed(0))


def panels(figure: MapFigure) -> list[Axes]:
    """The axes with a title, from left to right."""
    return [ax for ax in figure.axes if ax.get_title()]
