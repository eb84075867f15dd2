"""Text from outside, such as names in files, made fit for a terminal and for messages."""

from __future__ import annotations

import os
import reprlib
import unicodedata
from pathlib import Path

# Control characters, characters that turn the direction of the text, lone surrogates, separators of lines and
# paragraphs. Joiners have the category Cf too, but are part of names in several scripts.
_UNPRINTABLE = {"Cc", "Cf", "Cs", "Zl", "Zp"}
_JOINERS = "\u200c\u200d"
_MOST_BITS = 1024
_LONGEST_LEAF = 30
_LONGEST_PATH = 1 << 16
_LONGEST_REASON = 500


def printable(text: object, limit: int = 200) -> str:
    r"""Text that a terminal shows as it is, on one line, and that any output can encode in UTF-8.

    Args:
        text: a text, or any object, of which the text is taken. Containers are shown to a small depth, so that neither
            a large nor a deeply nested one costs time.
        limit: largest number of characters that are shown. Default: 200.

    Returns:
        The text with control characters, characters that change the direction of writing, line separators and lone
        surrogates as escapes. A text of more than ``limit`` characters is cut, and its length stands behind it.

    Example:
        >>> printable("layer\x1b[2J\n")
        'layer\\x1b[2J\\n'
        >>> printable("weight" * 1000, limit=8)
        'weightwe... (6000 characters)'
    """
    text = _text_of(text, limit)
    shown = "".join(_escaped(char) for char in text[:limit])
    if len(text) <= limit and len(shown) <= limit:
        return shown
    return f"{shown[:limit]}... ({len(text)} characters)"


def printable_path(path: str | Path) -> str:
    r"""A path for messages: on one line, and never shortened, because the end of a path names the file.

    Args:
        path: the path.

    Returns:
        The path as :func:`printable` gives it.

    Example:
        >>> printable_path("birds/new\nline.jpg")
        'birds/new\\nline.jpg'
    """
    return printable(os.fspath(path), limit=_LONGEST_PATH)


def first_line(error: BaseException) -> str:
    r"""The first line of the message of an exception, as the reason in another message.

    Args:
        error: an exception of another library, whose message may have many lines.

    Returns:
        The line as :func:`printable` gives it, at most 500 characters.

    Example:
        >>> first_line(ValueError("bad size\nTry another one."))
        'bad size'
    """
    return printable(str(error).strip().partition("\n")[0], limit=_LONGEST_REASON)


def _text_of(value: object, limit: int) -> str:
    if isinstance(value, str):
        return value
    if isinstance(value, int) and value.bit_length() > _MOST_BITS:
        # Python refuses to write such a number in decimal digits, or takes long.
        return f"integer of {value.bit_length()} bits"
    if isinstance(value, bytes | bytearray):
        return repr(bytes(value)) if len(value) <= limit else f"{len(value)} bytes"
    if isinstance(value, tuple | list | dict | set | frozenset):
        return _Shallow().repr(value)
    return str(value)


class _Shallow(reprlib.Repr):
    """Writes three levels of a container, and six elements of each."""

    def __init__(self) -> None:
        super().__init__()
        self.maxlevel = 3
        self.maxdict = self.maxother = 6

    def repr1(self, x: object, level: int) -> str:
        if isinstance(x, tuple | list | dict | set | frozenset):
            return super().repr1(x, level)
        if isinstance(x, str):
            return repr(x[:_LONGEST_LEAF])
        if x is None or isinstance(x, int | float | bytes):
            return _text_of(x, _LONGEST_LEAF)
        return f"<{type(x).__name__}>"  # the text of another object can be of any length


def _escaped(char: str) -> str:
    if unicodedata.category(char) not in _UNPRINTABLE or char in _JOINERS:
        return char
    return char.encode("unicode_escape").decode("ascii")
