"""Tables for a terminal."""

from __future__ import annotations

from collections.abc import Sequence


def align_columns(rows: Sequence[Sequence[str]], align: str = "") -> list[str]:
    r"""The lines of a table whose columns are as wide as their longest cell.

    Args:
        rows: cells by row, the head first; all rows have the same length.
        align: one character per column, ``"<"`` for left and ``">"`` for right; by default all columns are left.

    Returns:
        One line per row, two spaces between columns and none at the end.

    Raises:
        ValueError: for rows or an ``align`` of different lengths.

    Example:
        >>> print(*align_columns([["method", "n"], ["fam", "12"]], "<>"), sep="\n")
        method   n
        fam     12
    """
    columns = list(zip(*rows, strict=True))
    widths = [max(map(len, column)) for column in columns]
    sides = align or "<" * len(widths)
    return [
        "  ".join(f"{cell:{side}{width}}" for cell, side, width in zip(row, sides, widths, strict=True)).rstrip()
        for row in rows
    ]
