"""What a reader does in the window of a report, and what the reader sees."""

from __future__ import annotations

import re
from typing import Any

import numpy as np

SENTENCE = re.compile(
    r"carries (?:about )?(\S+) % of the score \((?:about )?(\S+) of (\S+)\)"
    r"(?:; their surroundings have cosine (\S+))?\."
    r"(?: With all cells of the other photograph: (?:about )?(\S+) %\.)?"
)


def photo(window: Any, side: str, place: int = 0, of_row: int = 0) -> Any:
    return window.locator(f"#row-{of_row} .{side} > .photo").nth(place)


def point(window: Any, box: Any, cell: int, grid: tuple[int, int], *, click: bool = False) -> None:
    """Move to the center of a cell."""
    box.scroll_into_view_if_needed()
    area, (rows, columns) = box.bounding_box(), grid
    x = area["x"] + area["width"] * (cell % columns + 0.5) / columns
    y = area["y"] + area["height"] * (cell // columns + 0.5) / rows
    (window.mouse.click if click else window.mouse.move)(x, y)


def numbers(window: Any, place: int = 0, of_row: int = 0) -> list[float]:
    """Percent, share, score, cosine and percent of all cells in a readout; NaN for what is not said."""
    text = window.locator(f"#row-{of_row} .readout").nth(place).inner_text()
    text = text.replace("\u2212", "-").replace("\u00a0", " ")
    found = SENTENCE.search(text)
    assert found is not None, text
    return [float("nan") if group is None else float(group) for group in found.groups()]


def mark_cells(box: Any, grid: tuple[int, int]) -> list[int]:
    """The cells that are marked in a photograph."""
    script = "box => [...box.querySelectorAll('.mark')].map((mark) => [mark.style.left, mark.style.top])"
    places = box.evaluate(script)
    columns, rows = grid[1], grid[0]
    return [int(float(top[:-1]) * rows / 100) * columns + int(float(left[:-1]) * columns / 100) for left, top in places]


def pixels(box: Any, kind: str = "map") -> np.ndarray[Any, Any]:
    """The colors of a canvas over a photograph, ``(rows, columns, 4)``."""
    width, height, values = box.locator(f"canvas.{kind}").evaluate(
        "one => [one.width, one.height, [...one.getContext('2d').getImageData(0, 0, one.width, one.height).data]]"
    )
    return np.asarray(values).reshape(height, width, 4)
