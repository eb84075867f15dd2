"""Breaking titles into lines of a given width."""

from __future__ import annotations

from functools import cache

from matplotlib import rcParams
from matplotlib.font_manager import FontProperties, findfont, fontManager, get_font
from matplotlib.textpath import text_to_path

from captum_fam._text import printable

_POINTS_PER_INCH = 72
_UNKNOWN = "□"  # what readers know as a letter that no font has

# Fonts for letters that the font of matplotlib lacks, such as Chinese ones; those that are installed are used.
_MORE_FONTS = (
    "Noto Sans CJK SC",
    "Noto Sans CJK JP",
    "Noto Sans SC",
    "Source Han Sans SC",
    "WenQuanYi Micro Hei",
    "WenQuanYi Zen Hei",
    "Droid Sans Fallback",
    "Microsoft YaHei",
    "Yu Gothic",
    "Malgun Gothic",
    "PingFang SC",
    "Hiragino Sans",
    "Apple SD Gothic Neo",
    "Arial Unicode MS",
)


def text_font(size: float, weight: str = "normal") -> FontProperties:
    """The font of texts in figures: that of matplotlib, and installed ones for the letters that it lacks.

    Args:
        size: the size in points.
        weight: ``"normal"`` or ``"bold"``. Default: ``"normal"``.

    Example:
        >>> text_font(9).get_size()
        9.0
    """
    installed = {font.name for font in fontManager.ttflist}
    families = [*rcParams["font.family"], *(name for name in _MORE_FONTS if name in installed)]
    return FontProperties(family=families, size=size, weight=weight)


def wrap_title(text: str, inches: float, font: FontProperties) -> list[str]:
    """Break a text into lines; a box stands for a letter that no font has, of which matplotlib would warn.

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
        for word in (_known(printable(word), font) for word in _words(paragraph)):
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


def _known(word: str, font: FontProperties) -> str:
    """A word with a box for each letter that the fonts lack."""
    letters = _letters(tuple(font.get_family()))
    return "".join(letter if ord(letter) in letters else _UNKNOWN for letter in word)


@cache
def _letters(families: tuple[str, ...]) -> frozenset[int]:
    """The letters that fonts have, as numbers of Unicode."""
    return frozenset().union(
        *(get_font(findfont(FontProperties(family=[family]))).get_charmap() for family in families)
    )


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
