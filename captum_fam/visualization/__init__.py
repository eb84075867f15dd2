"""Figures of similarity maps: a match, a pair, a grid of images and maps, and the parts that they are drawn from.

Images, signals, volumes and videos can be drawn.
"""

from captum_fam.images import unnormalize
from captum_fam.visualization.colors import MATCH_COLORS, ColorScale, color_limit, color_limits
from captum_fam.visualization.figure import MapFigure
from captum_fam.visualization.grid import ColumnBlock, GridCell, visualize_grid
from captum_fam.visualization.marks import draw_boxes, draw_color_bar, draw_outline
from captum_fam.visualization.match import SupportMap, visualize_match
from captum_fam.visualization.match_lines import PairLines
from captum_fam.visualization.pair import visualize_pair
from captum_fam.visualization.panel import draw_image, draw_map, overlay
from captum_fam.visualization.pixels import ImageLike, MapLike, to_map, to_rgb
from captum_fam.visualization.style import MapStyle

__all__ = [
    "MATCH_COLORS",
    "ColorScale",
    "ColumnBlock",
    "GridCell",
    "ImageLike",
    "MapFigure",
    "MapLike",
    "MapStyle",
    "PairLines",
    "SupportMap",
    "color_limit",
    "color_limits",
    "draw_boxes",
    "draw_color_bar",
    "draw_image",
    "draw_map",
    "draw_outline",
    "overlay",
    "to_map",
    "to_rgb",
    "unnormalize",
    "visualize_grid",
    "visualize_match",
    "visualize_pair",
]
