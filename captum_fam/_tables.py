"""Tables for a terminal."""

from __future__ import annotations

from collections.abc import Sequence


def align_columns(rows: Sequence[Sequence[str]], align: str = "") -> list[str]:
    r"""The lines of a table in which each column is as wide as its longest cell.

    Args:
        rows: the cells of each row, the head first; all rows have equally many cells.
        align: one character per column, ``"<"`` for left-aligned and ``">"`` for right-aligned. Default: all columns
            left-aligned.

    Returns:
        One line per row, with two spaces between columns and no spaces at the end.

    Raises:
        ValueError: if the rows have different lengths, or ``align`` has another length than the rows.

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
