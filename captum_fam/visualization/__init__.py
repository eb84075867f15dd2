"""Figures of similarity maps."""

from captum_fam.visualization.match import (
    MATCH_COLORS,
    ImageLike,
    MapFigure,
    MapLike,
    Scale,
    overlay,
    unnormalize,
    visualize_match,
)

__all__ = ["MATCH_COLORS", "ImageLike", "MapFigure", "MapLike", "Scale", "overlay", "unnormalize", "visualize_match"]
