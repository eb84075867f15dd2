"""The matplotlib figure that all functions of this package draw in."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from PIL import Image

from captum_fam._files import write_all_or_nothing

PANEL_HEIGHT = 2.2
"""The height of an image in a figure of a match, in inches."""

WIDEST_PANEL = 2.5
"""The largest width of a panel divided by the height of a panel; wider images are drawn less high."""


PNG_LEVEL = 3
"""How hard PNG files of photographs are compressed, from 1 to 9."""


class MapFigure(Figure):
    """A matplotlib figure that pyplot does not manage, so that it need not be closed. A notebook shows it.

    Example:
        >>> figure = MapFigure(figsize=(2, 2))
        >>> figure.save("empty.png")
    """

    def save(self, path: str | Path, dpi: float = 150) -> None:
        """Write the figure to a file, completely or not at all.

        Args:
            path: the file; its suffix gives the format. The folder is created if it does not exist.
            dpi: pixels per inch. Default: 150.

        Raises:
            ValueError: for a suffix that matplotlib does not know.
            OSError: if the file cannot be written.
        """
        path = Path(path)
        # A photograph hardly gets smaller with the highest compression of PNG, which takes a third of the time.
        options = {"pil_kwargs": {"compress_level": PNG_LEVEL}} if path.suffix.lower() == ".png" else {}
        with write_all_or_nothing(path.parent) as folder:
            self._write(folder / path.name, dpi=dpi, **options)

    def as_image(self) -> Image.Image:
        """The whole figure as an RGB image, with the figure's own number of pixels per inch.

        Example:
            >>> MapFigure(figsize=(3, 2), dpi=100).as_image().size
            (300, 200)
        """
        canvas = FigureCanvasAgg(self)
        canvas.draw()
        return Image.fromarray(np.asarray(canvas.buffer_rgba())).convert("RGB")

    def _repr_png_(self) -> bytes:
        buffer = io.BytesIO()
        self._write(buffer, format="png", dpi=100)
        return buffer.getvalue()

    def _write(self, target: Any, **options: Any) -> None:
        self.savefig(target, bbox_inches="tight", pad_inches=0.08, facecolor="white", **options)
