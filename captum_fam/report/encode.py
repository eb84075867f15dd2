"""Numbers and pictures as text in an HTML file, small and without loss that a reader could see."""

from __future__ import annotations

import base64
import io
import json
import zlib
from collections.abc import Sequence
from typing import Any

import numpy as np
from PIL import Image

from captum_fam.report.page import Array, CellMatches, ReportMap, ReportPair, ReportRow

SIDE = 224
"""The longer side of a photograph in pixels."""

MOST_CELLS = 32 * 32
"""Of images with more cells, only the best matches are kept, because the matrix grows with the square of this."""

_QUALITY = 76
_LARGEST_16 = 32767
_LARGEST_8 = 127
_FEWEST_STEPS = 4
_NO_COSINE = -32768


def picture_uri(image: Image.Image) -> str:
    """A small JPEG of an image as a data address.

    Args:
        image: the image, RGB of any size.

    Returns:
        ``data:image/jpeg;base64,...``, with sides of at most 224 pixels.

    Example:
        >>> picture_uri(Image.new("RGB", (900, 600)))[:23]
        'data:image/jpeg;base64,'
    """
    small = image.copy()
    small.thumbnail((SIDE, SIDE))
    file = io.BytesIO()
    small.convert("RGB").save(file, "JPEG", quality=_QUALITY, optimize=True)
    return "data:image/jpeg;base64," + base64.b64encode(file.getvalue()).decode("ascii")


def safe_json(content: object) -> str:
    r"""JSON that can stand inside an HTML element: no character of it can end the element or begin another.

    Args:
        content: anything that JSON can represent; a lone surrogate becomes an escape.

    Returns:
        ASCII text.

    Example:
        >>> safe_json({"name": "</script>\udcff"})
        '{"name":"\\u003c/script>\\udcff"}'
    """
    return json.dumps(content, separators=(",", ":"), allow_nan=False).replace("<", "\\u003c")


def row_data(row: ReportRow) -> dict[str, Any]:
    """The numbers of a row, as the script of the page reads them.

    Maps are 16-bit integers, each with a scale. A matrix of matches has 8-bit integers, and each of its rows a step:
    1/127 of the largest magnitude of the matrix, or a quarter of the largest magnitude of the row if this is less. The
    best match of each cell of either image has its share and its cosine with 16 bits beside. All numbers of a row are
    compressed together, so that the browser reads them when the row is looked at.

    Args:
        row: the row.

    Returns:
        A mapping that JSON can represent.

    Example:
        >>> from captum_fam.report import ReportMap, ReportSide
        >>> row = ReportRow(ReportSide("a", Image.new("RGB", (9, 9)), [ReportMap(32767 * np.eye(3))]))
        >>> row_data(row)["query"]
        [[{'at': 0, 'shape': [3, 3], 'scale': 1.0}, None]]
    """
    numbers = _Numbers()
    query = _maps_data(numbers, row.query.maps)
    pairs = [_pair_data(numbers, pair) for pair in row.pairs]
    return {"query": query, "pairs": pairs, **numbers.packed()}


def quantized(matrix: Array) -> tuple[Array, Array]:
    """The 8-bit numbers of a matrix, and the step of each of its rows.

    Args:
        matrix: ``(Q, P)``.

    Returns:
        int8 ``(Q, P)`` and float64 ``(Q,)``: the first times the second is the matrix, with an error of at most half a
        step.

    Example:
        >>> numbers, steps = quantized(np.array([[1.27, -0.5], [0.06, 0.05]]))
        >>> numbers, steps.round(4)
        (array([[127, -50], [  6,   5]], dtype=int8), array([0.01, 0.01]))
    """
    largest = np.abs(matrix).max(1, initial=0)
    steps = np.minimum(largest.max(initial=0) / _LARGEST_8, largest / _FEWEST_STEPS)
    # The steps that the page reads: they have 16 bits, and are rounded up so that no number exceeds 8 bits.
    unit = steps.max(initial=0) / _LARGEST_16
    steps = np.ceil(steps / (unit or 1)) * unit
    numbers = np.rint(matrix / np.where(steps > 0, steps, 1)[:, None])
    return numbers.clip(-_LARGEST_8, _LARGEST_8).astype(np.int8), steps


class _Numbers:
    """Integers of 16 and of 8 bits, one behind the other."""

    def __init__(self) -> None:
        self._wide: list[Array] = []
        self._narrow: list[Array] = []

    def wide(self, values: Array) -> dict[str, Any]:
        """Keep values with 16 bits; returns where they are and their scale."""
        scale = float(np.abs(values).max(initial=0)) / _LARGEST_16
        return {**self.wide_integers(np.rint(values / (scale or 1))), "scale": scale}

    def wide_integers(self, values: Array) -> dict[str, Any]:
        place = {"at": sum(part.size for part in self._wide), "shape": list(values.shape)}
        self._wide.append(values.astype("<i2").ravel())
        return place

    def narrow(self, values: Array) -> dict[str, Any]:
        """Keep 8-bit integers; returns where they are among those of 8 bits."""
        place = {"at": sum(part.size for part in self._narrow), "shape": list(values.shape)}
        self._narrow.append(values.astype("i1").ravel())
        return place

    def packed(self) -> dict[str, Any]:
        """All numbers, those of 16 bits first."""
        parts = b"".join(part.tobytes() for part in [*self._wide, *self._narrow])
        # This strategy of zlib is for numbers, which have few repetitions.
        compressor = zlib.compressobj(7, zlib.DEFLATED, 15, 9, zlib.Z_FILTERED)
        packed = compressor.compress(parts) + compressor.flush()
        return {"wide": sum(part.size for part in self._wide), "bytes": len(packed), "numbers": _as_text(packed)}


def _as_text(data: bytes) -> str:
    """Bytes as text: 4 bytes are 5 digits to the base 85, a comma in the place of the sign that JSON has to escape."""
    return base64.b85encode(data, pad=True).decode("ascii").replace("<", ",")


def _maps_data(numbers: _Numbers, maps: Sequence[ReportMap | None]) -> list[Any]:
    """For each method the map and the plain map; null where there is none."""
    found: list[Any] = []
    for one in maps:
        if one is None or one.values is None:
            found.append(None)
            continue
        values = numbers.wide(one.values)
        same = one.plain is one.values
        found.append([values, values if same else None if one.plain is None else numbers.wide(one.plain)])
    return found


def _pair_data(numbers: _Numbers, pair: ReportPair) -> dict[str, Any]:
    data: dict[str, Any] = {
        "query": _maps_data(numbers, pair.query_maps),
        "support": _maps_data(numbers, pair.support.maps),
    }
    if pair.matches is not None:
        data["matches"] = _matches_data(numbers, pair.matches)
    return data


def _matches_data(numbers: _Numbers, matches: CellMatches) -> dict[str, Any]:
    data: dict[str, Any] = {
        "score": matches.score,
        "what": matches.what,
        "grids": [list(matches.query_grid), list(matches.support_grid)],
    }
    matrix = matches.matrix
    if matrix is None or max(matrix.shape) > MOST_CELLS:
        columns = (matches.query_grid[1], matches.support_grid[1])
        ends = [[y * columns[0] + x, v * columns[1] + u] for (y, x), (v, u), *_ in matches.top]
        data["top"] = [[*cells, one.share, one.cosine] for cells, one in zip(ends, matches.top, strict=True)]
        return data
    integers, steps = quantized(matrix)
    # Column by column, which compresses better: the numbers of a column are in steps of their own.
    data |= {"matrix": numbers.narrow(integers.T), "steps": numbers.wide(steps)}
    data["best"] = [
        _best_data(numbers, *values)
        for values in ((matrix, matches.cosines), (matrix.T, None if matches.cosines is None else matches.cosines.T))
    ]
    return data


def _best_data(numbers: _Numbers, matrix: Array, cosines: Array | None) -> dict[str, Any]:
    """The best match of each cell: its cell in the other image, its share and its cosine."""
    cells = matrix.argmax(1)
    rows = np.arange(len(matrix))
    if cosines is None:
        angles = np.full(len(rows), _NO_COSINE)
    else:
        angles = np.rint(cosines[rows, cells].clip(-1, 1) * _LARGEST_16)
    return {
        "cells": numbers.wide_integers(cells),
        "shares": numbers.wide(matrix[rows, cells]),
        "cosines": numbers.wide_integers(angles),
    }
