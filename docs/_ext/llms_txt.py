"""Writes ``llms.txt`` and ``llms-full.txt``: the site for readers that are language models (llmstxt.org).

``llms.txt`` has a line for each page, in the order of the site. ``llms-full.txt`` has the text of all pages that people
wrote, in markdown, and a line for each name of the API.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import api_pages
from borrowed_pages import title_and_summary
from sphinx.application import Sphinx
from sphinx.environment import BuildEnvironment

ABOUT = """\
# captum-fam

> Explains vision models that decide by similarity instead of a classifier layer, as Captum attributions: the Feature
> Activation Map (FAM) as published, an exact map that adds up to the similarity, and a wrapper that opens Captum's
> methods to models without a classifier. Few-shot networks, k-NN models, image retrieval, re-identification, faces.

"""


def pages_in_order(env: BuildEnvironment, page: str) -> list[str]:
    """The pages below a page, in the order of the tables of contents.

    Args:
        env: the environment of Sphinx.
        page: name of the page to start from.

    Returns:
        Names of pages, each once, the first page first.
    """
    found: list[str] = []
    below = [page]
    while below:
        name = below.pop(0)
        if name not in found:
            found.append(name)
            below = [*env.toctree_includes.get(name, []), *below]
    return found


def _plain(text: str) -> str:
    """A text of a docstring in markdown: no roles, and code between single marks."""
    text = re.sub(r":math:`([^`]*)`", r"$\1$", text)
    text = re.sub(r":[\w:]+:`~?(?:[\w.]+\.)?(\w+)(?: <[^>]*>)?`", r"`\1`", text)
    return text.replace("``", "`")


def write_llms(app: Sphinx, error: Exception | None) -> None:
    """Write both files into the built site.

    Args:
        app: the application of Sphinx.
        error: what made the build fail, if anything did.
    """
    if error or app.builder.format != "html":
        return
    env, base = app.env, app.config.html_baseurl.rstrip("/")
    lines, texts = [ABOUT], [ABOUT]
    for top in [app.config.root_doc, *env.toctree_includes.get(app.config.root_doc, [])]:
        below = [top] if top == app.config.root_doc else pages_in_order(env, top)
        names = [name for name in below if not name.startswith("api/captum_fam")]
        lines += [f"## {env.titles[top].astext()}\n\n"] if top != app.config.root_doc else ["## Start\n\n"]
        for name in names:
            file = Path(env.doc2path(name))
            text = file.read_text(encoding="utf-8") if file.suffix == ".md" and file.exists() else ""
            summary = title_and_summary(text)[1]
            address = f"{base}/{app.builder.get_target_uri(name)}" if base else app.builder.get_target_uri(name)
            lines += [f"- [{env.titles[name].astext()}]({address})", f": {summary}\n" if summary else "\n"]
            if text and name != "cli":
                texts += [f"\n\n<!-- {name} -->\n\n", re.sub(r"```\{toctree\}.*?```\n?", "", text, flags=re.DOTALL)]
        lines += ["\n"]
    api = ["## API, one line a name\n\n"]
    for module in api_pages.MODULES:
        for public in api_pages.of_module(module):
            if public.module == module and public.kind != "data":
                address = app.builder.get_target_uri(f"api/{public.name}")
                address = f"{base}/{address}" if base else address
                api += [f"- [{public.name}]({address}): {_plain(api_pages.first_sentence(public.thing))}\n"]
    Path(app.outdir, "llms.txt").write_text("".join([*lines, *api]), encoding="utf-8")
    Path(app.outdir, "llms-full.txt").write_text("".join([*texts, "\n\n", *api]), encoding="utf-8")


def setup(app: Sphinx) -> dict[str, Any]:
    """Register the writing.

    Args:
        app: the application of Sphinx.

    Returns:
        What Sphinx asks of an extension.
    """
    app.connect("build-finished", write_llms)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
