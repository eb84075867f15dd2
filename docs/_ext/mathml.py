"""Equations as MathML, which browsers draw themselves: no script, and nothing from another server."""

from __future__ import annotations

import html
import re
from typing import Any
from xml.etree import ElementTree

from docutils import nodes
from docutils.utils.math import MathError
from docutils.utils.math.latex2mathml import tex2mathml
from sphinx.application import Sphinx
from sphinx.util import logging

_NAMESPACE = "http://www.w3.org/1998/Math/MathML"
ElementTree.register_namespace("", _NAMESPACE)
LOGGER = logging.getLogger(__name__)

# Equations in a line may be wider than a telephone when their LaTeX is longer.
LONG = 30


def mathml(tex: str, as_block: bool) -> str:
    r"""An equation as MathML.

    Args:
        tex: the equation in LaTeX.
        as_block: whether the equation stands in a line of its own.

    Returns:
        The element ``math``.

    Example:
        >>> "<mi>a</mi>" in mathml("a", False)
        True
    """
    text = str(tex2mathml(tex.replace("\\dots", "\\ldots"), as_block))
    # Entities of HTML, which XML does not know.
    text = re.sub(r"&(?!(?:amp|lt|gt|quot|apos);)\w+;", lambda entity: html.unescape(entity[0]), text)
    math = ElementTree.fromstring(text)
    for element in list(math.iter(f"{{{_NAMESPACE}}}munderover")):
        _accent_inside(element)
    # Chromium without a font of equations draws the bar of such an accent into its letter.
    return ElementTree.tostring(math, encoding="unicode").replace(' accent="true"', "")


def _accent_inside(element: ElementTree.Element) -> None:
    """Turn a letter with an accent above and an index below into a letter with an accent, and an index beside it."""
    base, index, accent = element
    if accent.tag.endswith("}mo") and accent.get("stretchy") == "false":
        element.clear()
        element.tag = f"{{{_NAMESPACE}}}msub"
        letter = ElementTree.SubElement(element, f"{{{_NAMESPACE}}}mover", {"accent": "true"})
        letter.extend([base, accent])
        element.append(index)


def _element(node: nodes.math | nodes.math_block, as_block: bool) -> str:
    tex = node.astext()
    if as_block and "\\\\" in tex and "\\begin" not in tex:
        tex = f"\\begin{{align}}{tex}\\end{{align}}"
    try:
        return mathml(tex, as_block)
    except MathError as error:
        LOGGER.warning("equation that is no MathML: %s: %s", tex, error, location=node)
        return f"<code>{nodes.unescape(tex)}</code>"


def visit_inline(writer: Any, node: nodes.math) -> None:
    """Write an equation within a line.

    Args:
        writer: the writer of HTML.
        node: the equation.
    """
    classes = "math-inline long" if len(node.astext()) > LONG else "math-inline"
    writer.body.append(f'<span class="{classes}">{_element(node, False)}</span>')
    raise nodes.SkipNode


def visit_block(writer: Any, node: nodes.math_block) -> None:
    """Write an equation in a line of its own.

    Args:
        writer: the writer of HTML.
        node: the equation.
    """
    number = f'<span class="eqno">({node["number"]})</span>' if node.get("number") else ""
    writer.body.append(writer.starttag(node, "div", CLASS="math-block"))
    writer.body.append(f"{_element(node, True)}{number}</div>\n")
    raise nodes.SkipNode


def setup(app: Sphinx) -> dict[str, Any]:
    """Register the renderer.

    Args:
        app: the application of Sphinx.

    Returns:
        What Sphinx asks of an extension.
    """
    app.add_html_math_renderer("mathml", (visit_inline, None), (visit_block, None))
    return {"parallel_read_safe": True, "parallel_write_safe": True}
