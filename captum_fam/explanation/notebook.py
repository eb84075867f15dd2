"""How a notebook, a window or a terminal shows an explanation."""

from __future__ import annotations

import base64
import html
import io
import sys
from collections.abc import Collection
from typing import TYPE_CHECKING

from captum_fam._text import printable

if TYPE_CHECKING:
    from captum_fam.explanation.result import Explanation
    from captum_fam.visualization import MapFigure

MOST_FIGURES = 4
"""How many queries a notebook shows of an explanation."""

_DPI = 72
_QUALITY = 75


def in_one_line(explanation: Explanation) -> str:
    """Number of queries, methods, layer, contrast and smoothing.

    Args:
        explanation: the explanation.
    """
    count, layers = len(explanation), explanation.about.get("layer", [])
    names = [repr(printable(name)) for name in ([layers] if isinstance(layers, str) else layers)]
    parts = [f"{count} {'query' if count == 1 else 'queries'}", explanation.method]
    parts += [f"beside: {', '.join(one.method for one in explanation.beside)}"] if explanation.beside else []
    parts += [f"layer{'s' * (len(names) > 1)} {', '.join(names)}"] if names else []
    parts += [explanation.contrast] if explanation.contrast else []
    parts += [f"smooth {explanation.smooth}"] if explanation.smooth > 1 else []
    return f"Explanation({', '.join(parts)})"


def as_bundle(
    explanation: Explanation, include: Collection[str] | None, exclude: Collection[str] | None
) -> dict[str, str]:
    """What a notebook asks for: the explanation as text and as HTML.

    Args:
        explanation: the explanation.
        include: the wanted kinds, such as ``"text/html"``; None or empty for all.
        exclude: the kinds that are not wanted; None for none.

    Returns:
        The representations by kind.
    """
    made = {"text/plain": in_one_line, "text/html": as_html}
    wanted = [kind for kind in made if (not include or kind in include) and kind not in (exclude or ())]
    return {kind: made[kind](explanation) for kind in wanted}


def as_html(explanation: Explanation) -> str:
    """The figures of the first queries as HTML, with the images inside.

    Args:
        explanation: the explanation.

    Returns:
        A line of text, at most four figures with their names and alternative texts, and how many more queries there
        are. All text is escaped.
    """
    parts = [f"<p><code>{html.escape(repr(explanation))}</code></p>"]
    for index in range(min(len(explanation), MOST_FIGURES)):
        caption = html.escape(line_of(explanation, index))
        data = base64.b64encode(_jpeg_of(explanation.figure(index))).decode("ascii")
        parts.append(
            f'<figure style="margin: 0 0 1em 0"><img alt="{caption}" style="max-width: 100%" '
            f'src="data:image/jpeg;base64,{data}"><figcaption>{caption}</figcaption></figure>'
        )
    more = len(explanation) - MOST_FIGURES
    if more > 0:
        parts.append(f"<p>... and {more} more: <code>explanation.show({MOST_FIGURES})</code></p>")
    return "\n".join(parts)


def line_of(explanation: Explanation, index: int) -> str:
    """Name, class, score and account of one query, as one line of text.

    Args:
        explanation: the explanation.
        index: the position of the query.
    """
    name, target = printable(explanation.names[index]), explanation.class_names[int(explanation.target[index])]
    accounts = "; ".join(f"{one.method} {one.account_text(index)}" for one in (explanation, *explanation.beside))
    return f"{name}: {printable(target)}, score {explanation.score_text(index)}; {accounts}"


def show_figure(explanation: Explanation, index: int) -> None:
    """Show the figure of one query, as :meth:`Explanation.show` describes.

    Args:
        explanation: the explanation.
        index: the position of the query.
    """
    if _is_notebook():
        from IPython.display import display

        display(explanation.figure(index))
        return
    print(line_of(explanation, index))
    import matplotlib.pyplot as plt

    window = plt.figure(layout="constrained")
    if window.canvas.required_interactive_framework is None:  # a canvas that only writes files
        plt.close(window)
        return
    axes = window.add_subplot()
    axes.imshow(explanation.figure(index).as_image())
    axes.axis("off")
    plt.show()


def _is_notebook() -> bool:
    """Whether a kernel of IPython runs the code; a kernel has loaded IPython long before."""
    ipython = sys.modules.get("IPython")
    return ipython is not None and hasattr(ipython.get_ipython(), "kernel")


def _jpeg_of(figure: MapFigure) -> bytes:
    """A figure as a small file: a notebook keeps it in its text, and photographs take much room as PNG."""
    figure.set_dpi(_DPI)
    buffer = io.BytesIO()
    figure.as_image().save(buffer, "jpeg", quality=_QUALITY, optimize=True, progressive=True)
    return buffer.getvalue()
