"""Breaking titles into lines of a given width."""

from __future__ import annotations

from matplotlib.font_manager import FontProperties
from matplotlib.textpath import text_to_path

from captum_fam._text import printable

_POINTS_PER_INCH = 72


def wrap_title(text: str, inches: float, font: FontProperties) -> list[str]:
    """Break a text into lines.

    Args:
        text: the text; its line breaks are kept.
        inches: the largest width of a line; a word that is wider is broken.
        font: the font of the text.

    Returns:
        The lines; an empty list for an empty text.

    Example:
        >>> wrap_title("red winged blackbird", 1.0, FontProperties(size=9))
        ['red winged', 'blackbird']
    """
    lines: list[str] = []
    for paragraph in text.split("\n") if text else ():
        line = ""
        # A class has the name of a folder, which may hold what no font has.
        for word in map(printable, paragraph.split()):
            longer = f"{line} {word}".strip()
            if _width(longer, font) <= inches:
                line = longer
                continue
            if line:
                lines.append(line)
            *full, line = _pieces(word, inches, font)
            lines += full
        lines.append(line)
    return lines


def _pieces(word: str, inches: float, font: FontProperties) -> list[str]:
    """A word in pieces that are no wider than ``inches``; a piece has one letter at least."""
    pieces = [""]
    for letter in word:
        if pieces[-1] and _width(pieces[-1] + letter, font) > inches:
            pieces.append("")
        pieces[-1] += letter
    return pieces


def _width(text: str, font: FontProperties) -> float:
    """The width of a text in inches."""
    return float(text_to_path.get_text_width_height_descent(text, font, False)[0]) / _POINTS_PER_INCH
