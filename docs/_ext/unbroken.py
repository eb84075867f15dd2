"""Keeps together in a line what is read as one: a number and its interval, ``2 x 2``, a formula and its full stop."""

from __future__ import annotations

import re
from typing import Any

from docutils import nodes
from sphinx.application import Sphinx

SPACE = "\N{NO-BREAK SPACE}"
JOINER = "\N{WORD JOINER}"


def unbroken(text: str) -> str:
    r"""A text without places to break a line that a reader would stumble over.

    Args:
        text: the text.

    Returns:
        The text; some of its spaces do not break.

    Example:
        >>> unbroken("0.27 ± 0.01 of 2 x 2").split(" ")
        ['0.27\xa0±\xa00.01', 'of', '2\xa0x\xa02']
    """
    text = re.sub(r" ± ", f"{SPACE}±{SPACE}", text)
    text = re.sub(r"(?<=\d) (?=%)", SPACE, text)
    text = re.sub(r"(?<=\d), (?=-?[\d.e+-]+\])", f",{SPACE}", text)
    return re.sub(r"(?<=\d) x (?=\d)", f"{SPACE}x{SPACE}", text)


def keep_together(app: Sphinx, doctree: nodes.document) -> None:
    """Rewrite the texts of a page; code is left alone.

    Args:
        app: the application of Sphinx.
        doctree: the page.
    """
    for text in list(doctree.findall(nodes.Text)):
        parent = text.parent
        if isinstance(parent, nodes.FixedTextElement | nodes.literal | nodes.math | nodes.raw):
            continue
        new = unbroken(text)
        before = parent[parent.index(text) - 1] if parent.index(text) else None
        if isinstance(before, nodes.math) and re.match(r"[.,;:?!)]", new):
            new = JOINER + new
        if new != text:
            parent.replace(text, nodes.Text(new))


def setup(app: Sphinx) -> dict[str, Any]:
    """Register the rewriting.

    Args:
        app: the application of Sphinx.

    Returns:
        What Sphinx asks of an extension.
    """
    app.connect("doctree-read", keep_together)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
