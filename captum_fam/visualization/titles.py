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
        for word in map(printable, _words(paragraph)):
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


def _words(paragraph: str) -> list[str]:
    """The words of a paragraph; the sign of a percentage stays with its number."""
    words: list[str] = []
    for word in paragraph.split():
        if words and word.startswith("%"):
            words[-1] += f" {word}"
        else:
            words.append(word)
    return words


def _pieces(word: str, inches: float, font: FontProperties) -> list[str]:
    """A word in pieces that are no wider than ``inches``, broken behind "_", "-" or "/" where there is one."""
    pieces = []
    while _width(word, font) > inches and len(word) > 1:
        # The longest beginning that fits; it has one letter at least.
        fitting = next((end for end in range(2, len(word)) if _width(word[:end], font) > inches), len(word)) - 1
        parted = max(word.rfind(sign, 0, fitting) for sign in "_-/") + 1
        end = parted or fitting
        pieces.append(word[:end])
        word = word[end:]
    return [*pieces, word]


def _width(text: str, font: FontProperties) -> float:
    """The width of a text in inches."""
    return float(text_to_path.get_text_width_height_descent(text, font, False)[0]) / _POINTS_PER_INCH
