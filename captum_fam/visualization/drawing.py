"""The interface of the kinds of inputs that can be drawn, and the choice of the kind for an input."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Protocol

from matplotlib.axes import Axes
from matplotlib.image import AxesImage
from PIL import Image

from captum_fam.visualization.image import ImageDrawing
from captum_fam.visualization.pixels import Array, ImageLike, MapLike
from captum_fam.visualization.signal import SignalDrawing
from captum_fam.visualization.style import DEFAULT_STYLE, MapStyle
from captum_fam.visualization.volume import VolumeDrawing


class InputDrawing(Protocol):
    """An input that can be drawn, alone and with a map.

    All maps and masks are arrays of the size of the input, as :func:`~captum_fam.visualization.to_map` gives them.

    Example:
        >>> drawing: InputDrawing = ImageDrawing.of(photo)
    """

    @property
    def size(self) -> tuple[int, ...]:
        """The size of a map over the input."""

    @property
    def aspect(self) -> float:
        """The width of the panel divided by its height."""

    @property
    def note(self) -> str:
        """What is not drawn as it is, in words for a title; an empty text if all is drawn as it is."""

    @property
    def thumbnail(self) -> InputDrawing:
        """What is drawn of the input where it is small."""

    def draw(self, ax: Axes) -> object:
        """Draw the input alone on axes."""

    def draw_map(self, ax: Axes, values: Array, limit: float, style: MapStyle = DEFAULT_STYLE) -> AxesImage:
        """Draw a map over the input on axes; values of the magnitude ``limit`` have the full color."""

    def draw_mask(self, ax: Axes, mask: Array) -> None:
        """Draw where a mask is above one half, on axes with the input."""

    def overlay(self, values: Array, limit: float, style: MapStyle = DEFAULT_STYLE) -> Image.Image:
        """An RGB image of the map over the input."""


def drawing_of(image: ImageLike, maps: Iterable[MapLike] = (), name: str = "image") -> InputDrawing:
    """Find out by shapes whether an input is an image, a signal or a volume.

    Args:
        image: an image in any form that :func:`~captum_fam.visualization.to_rgb` takes; a signal ``(L,)`` or
            ``(C, L)``; or a volume or video, a tensor ``(C, D, H, W)`` or an array ``(D, H, W, C)``.
        maps: the maps over the input. Two dimensions are a signal if there are maps and all have one row, ``(l,)`` or
            ``(1, l)``; otherwise they are a gray image. Default: no maps.
        name: the name of the input in error messages. Default: ``"image"``.

    Returns:
        The drawing of the input.

    Raises:
        ValueError: for another shape, images or volumes outside [0, 1], NaN or inf.

    Example:
        >>> type(drawing_of(torch.rand(2, 50), [torch.rand(1, 12)])).__name__
        'SignalDrawing'
        >>> type(drawing_of(torch.rand(20, 50), [torch.rand(5, 12)])).__name__
        'ImageDrawing'
    """
    dims = 3 if isinstance(image, Image.Image) else image.ndim
    shapes = [tuple(attribution.shape) for attribution in maps]
    have_one_row = bool(shapes) and all(len(shape) == 1 or (len(shape) == 2 and shape[0] == 1) for shape in shapes)
    if dims == 1 or (dims == 2 and have_one_row):
        return SignalDrawing.of(image, name)
    return VolumeDrawing.of(image, name) if dims == 4 else ImageDrawing.of(image, name)
