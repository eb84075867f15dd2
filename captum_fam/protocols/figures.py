"""Grids of queries and maps."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from torch import Tensor

from captum_fam.visualization import MapFigure, overlay

_PANEL = 1.9  # inches


@dataclass(frozen=True)
class Picture:
    """One row of a grid.

    Attributes:
        title: of the query.
        image: the query, ``(3, H, W)`` in [0, 1].
        supports: by title, an image of what it was compared with.
        maps: by title, ``(1, h, w)``.
    """

    title: str
    image: Tensor
    supports: Mapping[str, Tensor]
    maps: Mapping[str, Tensor]


def picture_grid(pictures: Sequence[Picture]) -> MapFigure:
    """Queries, supports and maps over the query, a row a query; every map is scaled by its own largest magnitude.

    Red speaks for the match and blue against it, as everywhere.
    """
    columns = max(1 + len(picture.supports) + len(picture.maps) for picture in pictures)
    figure = MapFigure(figsize=(_PANEL * columns, _PANEL * 1.25 * len(pictures)), layout="constrained")
    axes = figure.subplots(len(pictures), columns, squeeze=False)
    for row, picture in zip(axes, pictures, strict=True):
        panels = [(picture.title, _pixels(picture.image))]
        panels += [(title, _pixels(image)) for title, image in picture.supports.items()]
        panels += [(title, np.asarray(overlay(picture.image, one))) for title, one in picture.maps.items()]
        for ax in row:
            ax.axis("off")
        for ax, (title, pixels) in zip(row, panels, strict=False):
            ax.imshow(pixels)
            # Underscores stand for spaces in the names of folders.
            lines = [textwrap.fill(line.replace("_", " "), 26) for line in title.split("\n")]
            ax.set_title("\n".join(lines), fontsize=7)
    return figure


def _pixels(image: Tensor) -> np.ndarray[tuple[int, ...], np.dtype[np.float32]]:
    pixels: np.ndarray[tuple[int, ...], np.dtype[np.float32]] = image.movedim(0, -1).clamp(0, 1).float().cpu().numpy()
    return pixels
