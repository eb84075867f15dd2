"""The matplotlib figure that all functions of this package draw in."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from captum_fam._files import write_all_or_nothing


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
        with write_all_or_nothing(path.parent) as folder:
            self._write(folder / path.name, dpi=dpi)

    def _repr_png_(self) -> bytes:
        buffer = io.BytesIO()
        self._write(buffer, format="png", dpi=100)
        return buffer.getvalue()

    def _write(self, target: Any, **options: Any) -> None:
        self.savefig(target, bbox_inches="tight", pad_inches=0.08, facecolor="white", **options)
