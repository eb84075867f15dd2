"""The figure that everything is drawn in."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from captum_fam._files import write_all_or_nothing


class MapFigure(Figure):
    """A matplotlib figure outside pyplot: nothing to close, and a notebook shows it.

    Example:
        >>> figure = MapFigure(figsize=(2, 2))
        >>> figure.save("empty.png")
    """

    def save(self, path: str | Path, dpi: float = 150) -> None:
        """Write the figure; the file is whole or not there.

        Args:
            path: the file, in the format of its suffix; its folder is made.
            dpi: pixels per inch. Default: 150.

        Raises:
            ValueError: for a suffix that matplotlib does not know.
        """
        path = Path(path)
        with write_all_or_nothing(path.parent) as folder:
            self._write(folder / path.name, dpi=dpi)

    def _repr_png_(self) -> bytes:
        buffer = io.BytesIO()
        self._write(buffer, format="png", dpi=100)
        return buffer.getvalue()

    def _write(self, target: Any, **options: Any) -> None:
        self.savefig(target, bbox_inches="tight", pad_inches=0.08, facecolor="white", **options)
