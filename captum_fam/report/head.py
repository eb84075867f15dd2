"""The head of a report: the policy, the style, the switches and what all rows share."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Iterable
from importlib import resources

import numpy as np

from captum_fam.report.encode import safe_json
from captum_fam.report.page import ColorMeaning, ReportMethod, ReportPage
from captum_fam.report.text import counted, safe_name, safe_text
from captum_fam.visualization.colors import STRENGTH, match_colors

_COLORS = 257  # odd, so that zero has a color of its own
_HINT = (
    "Point at a photograph, or tap it: the page marks the cells that match in the other photograph, and says how much "
    "of the score the two cells carry, and the cosine of the 3\u00d73 cells around each of the two."
)
_HINT_OF_MAPS = (
    "Point at a photograph, or tap it: the page says the value of the map there. This report has no cells that match."
)
_KEYS = (
    "Keys: Tab goes from row to row, Page Down and Page Up, Home and End to the photographs of a row, arrows to a "
    "cell; Enter or a click keeps the cell, so that you choose its partner; Escape lets it go; O takes the maps off."
)
_TAPS = "A tap keeps the cell: tap the other photograph to choose its partner, the cell again to let it go."


def asset(name: str) -> str:
    """The text of a file that belongs to the page.

    Args:
        name: ``"report.css"`` or ``"report.js"``.
    """
    return resources.files("captum_fam.report").joinpath(name).read_text("utf-8").replace("\r\n", "\n")


def _hash(text: str) -> str:
    """The source expression of a content security policy that allows this style or script only."""
    return "'sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode("ascii") + "'"


def page_head(page: ReportPage, count: int, wrong: int) -> str:
    """All that stands above the rows.

    Args:
        page: what all rows share.
        count: the number of rows.
        wrong: how many of them have a wrong prediction.
    """
    style, script = asset("report.css"), asset("report.js")
    policy = (
        f"default-src 'none'; img-src data:; style-src {_hash(style)}; script-src {_hash(script)}; "
        "base-uri 'none'; form-action 'none'"
    )
    # Opacity is given for full strength; the page multiplies it by the strength that the reader chooses.
    colors = np.rint(255 * match_colors(1.0)(np.linspace(0, 1, _COLORS))).astype(np.uint8)
    data = {
        "methods": [{"name": one.name, "unit": one.unit, "account": one.is_account} for one in page.methods],
        "contrast": page.contrast,
        "ends": {state: [one.below, one.above] for state, one in (("on", page.meaning), ("off", ColorMeaning()))},
        "colors": base64.b64encode(colors.tobytes()).decode("ascii"),
    }
    facts = "".join(
        f"<div><dt>{safe_text(name)}</dt><dd>{safe_name(value)}</dd></div>" for name, value in page.facts.items()
    )
    notes = "".join(f"<li>{safe_text(note)}</li>" for note in page.notes)
    wrong_words = f", {wrong:,} with a wrong prediction" if wrong else ""
    lines = [
        "<!doctype html>",
        '<html lang="en">',
        "<head>",
        '<meta charset="utf-8">',
        '<meta name="generator" content="captum-fam">',  # the command line replaces no other file
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">',
        '<meta name="viewport" content="width=device-width, initial-scale=1">',
        '<meta name="color-scheme" content="light dark">',
        '<meta name="referrer" content="no-referrer">',
        f"<title>{safe_text(page.title)}</title>",
        f"<style>{style}</style>",
        "</head>",
        "<body>",
        '<a class="skip" href="#rows">Skip to the photographs</a>',
        '<header class="top">',
        f'<div class="heading"><h1>{safe_name(page.title)}</h1>',
        f'<p class="count">{counted(count, "row", "rows")}{wrong_words}</p></div>',
        _legend(page.meaning),
        _controls(page.methods, page.contrast),
        "</header>",
        '<section class="about" aria-label="About this report">',
        f'<p class="hint">{_HINT if page.has_matches else _HINT_OF_MAPS} <span class="keys">{_KEYS}</span> '
        f'<span class="taps">{_TAPS}</span></p>',
        f'<p class="hint">{safe_text(page.contrast_note)}</p>' if page.contrast_note else "",
        f'<dl class="facts">{facts}</dl>' if facts else "",
        f'<ul class="notes">{notes}</ul>' if notes else "",
        "<noscript><p>The script of this file did not run, so that the photographs have no maps here. "
        "Open the file in a browser.</p></noscript>",
        "</section>",
        f'<script type="application/json" id="page">{safe_json(data)}</script>',
        '<main id="rows" tabindex="-1">',
        "",
    ]
    return "\n".join(lines)


def _controls(methods: Iterable[ReportMethod], contrast: str | None) -> str:
    """The switches."""
    names = [method.name for method in methods]
    groups = [
        _choice("Method", "method", [(str(index), name) for index, name in enumerate(names)]) if len(names) > 1 else "",
        "" if contrast is None else _choice("Contrast", "contrast", [("on", contrast), ("off", "none")]),
        _choice("Maps on", "sides", [("both", "both"), ("query", "query"), ("support", "support")]),
        _choice("Style", "look", [("smooth", "smooth"), ("cells", "cells"), ("outline", "outline")]),
        _choice("Full color", "scale", [("match", "per match"), ("row", "per row")]),
    ]
    strength = (
        '<div class="choice slide"><label for="strength">Strength</label>'
        f'<input type="range" id="strength" min="10" max="100" value="{round(100 * STRENGTH)}">'
        '<label class="off"><input type="checkbox" id="off"> maps off</label></div>'
    )
    return (
        '<details class="controls" open><summary>View</summary><form id="view">'
        f"{''.join(groups)}{strength}</form></details>"
    )


def _legend(meaning: ColorMeaning) -> str:
    """The scale of the colors; the script paints it, writes the unit, and keeps the words at its ends true."""
    below, above = safe_text(meaning.below), safe_text(meaning.above)
    return (
        f'<div class="legend" id="legend"><span class="ends"><span>{below}</span><span>0</span><span>{above}</span>'
        f'</span><canvas id="colors" role="img" aria-label="Color scale: blue is {below}, zero is transparent, orange '
        f'is {above}"></canvas><span id="unit"></span></div>'
    )


def _choice(title: str, name: str, options: Iterable[tuple[str, str]]) -> str:
    """One of several options, of which the first is chosen."""
    buttons = "".join(
        f'<label><input type="radio" name="{name}" value="{value}"{" checked" if index == 0 else ""}>'
        f"<span>{safe_name(words)}</span></label>"
        for index, (value, words) in enumerate(options)
    )
    return f'<fieldset class="choice"><legend>{title}</legend><div class="segments">{buttons}</div></fieldset>'
