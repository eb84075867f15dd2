"""Texts of the user inside HTML."""

from __future__ import annotations

import html
import re

from captum_fam._text import printable

_LONGEST = 1000
_MINUS = re.compile(r"(?:(?<!\w)|(?<=\de))-(?=\d)")


def safe_text(text: object) -> str:
    r"""A text that HTML shows as it is.

    Args:
        text: the text, or an object whose text is taken.

    Returns:
        The text on one line, at most 1000 characters of it. Markup and quotes are escaped for HTML. Control characters,
        characters that turn the direction of the text around them, and lone surrogates are escaped as in Python.

    Example:
        >>> safe_text("<b>'\\udcff")
        '&lt;b&gt;&#x27;\\udcff'
    """
    return html.escape(printable(text, _LONGEST))


def safe_name(text: object) -> str:
    """A name that HTML shows as it is, with no effect on the direction of the text around it.

    Args:
        text: as for :func:`safe_text`.

    Example:
        >>> safe_name("a_jay")
        '<bdi>a_<wbr>jay</bdi>'
    """
    # A line may break behind an underscore: names of files have few other places.
    return f"<bdi>{safe_text(text).replace('_', '_<wbr>')}</bdi>"


def safe_numbers(text: object) -> str:
    r"""A text with numbers that HTML shows, with the minus sign that the script of the page writes, too.

    Args:
        text: as for :func:`safe_text`.

    Example:
        >>> safe_numbers("-0.12 <1") == "\N{MINUS SIGN}0.12 &lt;1"
        True
    """
    return _MINUS.sub("\N{MINUS SIGN}", safe_text(text))


def counted(number: int, noun: str, plural: str) -> str:
    """A number with its noun.

    Example:
        >>> counted(1, "row", "rows"), counted(1200, "match", "matches")
        ('1 row', '1,200 matches')
    """
    return f"{number:,} {noun if number == 1 else plural}"
