"""Pages of the repository that stand outside ``docs/``, and links that lead outside.

Tutorials, ``CONTRIBUTING.md`` and ``CHANGELOG.md`` are copied into ``docs/`` before the site is built. Relative links
are written for readers of the repository; on the site, a link to a page of the site is a link between pages, and any
other link to a file of the repository leads to the repository in the web.
"""

from __future__ import annotations

import posixpath
import re
from collections.abc import Callable
from pathlib import Path, PurePosixPath
from typing import Any

import jupytext
from sphinx.application import Sphinx
from written import write_page, write_pages

BORROWED = {
    "CONTRIBUTING.md": "contributing.md",
    "CHANGELOG.md": "changelog.md",
    "CODE_OF_CONDUCT.md": "code-of-conduct.md",
    "GOVERNANCE.md": "governance.md",
    "SECURITY.md": "security.md",
}
"""Pages outside ``docs/`` that the site has, by their path in the repository; those that are not there are left out."""

TUTORIALS = "tutorials"

# Code in a line, or the end of [text](target) and ![text](target) without a scheme and not within the page. Code comes
# first, so that no link in code is found, and a link whose text is code is.
_CODE_OR_LINK = re.compile(r"(`+)[^`]+\1|(\]\(<?)(?![a-z][a-z0-9+.-]*:|#)([^)\s>#]+)(#[^)\s>]*)?(>?\))")
_NO_SUMMARY = ("Download:", "Written by", "`python -m", "on AMD", "- ", "* ")
_FENCE = re.compile(r"^ {0,3}(`{3,}|~{3,})")


def on_the_site(source: str, target: str, root: Path, repository: str) -> str:
    """What a relative link of a page is on the site.

    Args:
        source: path of the page in the repository, as in ``docs/results/README.md``.
        target: the link, without the part behind ``#``.
        root: folder of the repository.
        repository: address of the repository in the web.

    Returns:
        A link from the page on the site, or an address in the web.
    """
    where = posixpath.normpath(posixpath.join(posixpath.dirname(source), target))
    is_lent = where in BORROWED or _is_tutorial(where)
    if where.startswith("docs/") or (is_lent and (root / where).is_file()):
        return posixpath.relpath(_page(where), posixpath.dirname(_page(source)) or ".")
    if where.startswith(".."):
        return target
    kind = "tree" if (root / where).is_dir() else "blob"
    return f"{repository}/{kind}/main/{where}"


def _page(path: str) -> str:
    """The path below ``docs/`` of a file of the repository, or the same path for a file that the site does not have."""
    return BORROWED.get(path, path.removeprefix("docs/"))


def _is_tutorial(path: str) -> bool:
    return PurePosixPath(path).parent.as_posix() == TUTORIALS and PurePosixPath(path).match("[0-9]*.md")


def source_of(page: str) -> str:
    """The path in the repository of a page of the site.

    Args:
        page: path of the page below ``docs/``, as in ``results/README.md``.

    Returns:
        The path.
    """
    lent = {site: path for path, site in BORROWED.items()}
    if page in lent:
        return lent[page]
    return page if _is_tutorial(page) else f"docs/{page}"


def rewrite_links(text: str, source: str, root: Path, repository: str) -> str:
    """Rewrite the relative links of a page for the site.

    Args:
        text: the page, in markdown.
        source: path of the page in the repository.
        root: folder of the repository.
        repository: address of the repository in the web.

    Returns:
        The page. Links in code are left as they are.
    """
    return _with_links(text, lambda target: on_the_site(source, target, root, repository))


def _with_links(text: str, change: Callable[[str], str]) -> str:
    """Change the targets of the relative links outside code."""

    def rewritten(found: re.Match[str]) -> str:
        return found[0] if found[1] else f"{found[2]}{change(found[3])}{found[4] or ''}{found[5]}"

    lines: list[str] = []
    fence = ""
    for line in text.splitlines(keepends=True):
        mark = _FENCE.match(line)
        kind = line[mark.end() :].strip() if mark else ""
        if fence:
            is_end = mark and mark[1].startswith(fence) and not kind
            fence = "" if is_end else fence
            lines.append(line)
        elif mark and (not kind.startswith("{") or kind.startswith(("{code-cell}", "{code-block}"))):
            fence = mark[1]
            lines.append(line)
        else:  # text, or a directive, whose body is text
            lines.append(_CODE_OR_LINK.sub(rewritten, line))
    return "".join(lines)


def title_and_summary(text: str) -> tuple[str, str]:
    """The title of a page and the first two sentences below it.

    Args:
        text: the page, in markdown.

    Returns:
        Title and sentences; "" for what the page does not have. What stands below a further heading, and how a table
        was written, is no summary.
    """
    body = re.sub(r"\A---\n.*?\n---\n", "", text, flags=re.DOTALL)
    body = re.sub(r"<!--.*?-->", "", body, flags=re.DOTALL)
    body = re.sub(r"^(`{3,}|:{3,}).*?^\1\s*?$", "", body, flags=re.DOTALL | re.MULTILINE)
    title = re.search(r"^# +(.+)$", body, re.MULTILINE)
    after = re.split(r"^##", body[title.end() :] if title else body, maxsplit=1, flags=re.MULTILINE)[0]
    paragraphs = [
        " ".join(block.split())
        for block in re.split(r"\n\s*\n", after)
        if re.match(r"\s*[\w*\[`\"']", block) and not block.lstrip().startswith(_NO_SUMMARY) and not block.endswith(":")
    ]
    plain = re.sub(r"!?\[([^\]]*)\]\([^)]*\)", r"\1", paragraphs[0]) if paragraphs else ""
    sentences = re.split(r"(?<=[\w)`*\"'][.?!]) (?=[A-Z`*\"'(])", plain)[:2]  # not behind the dots of `...`
    return (title[1].strip() if title else ""), " ".join(sentences)


def write_borrowed(app: Sphinx) -> None:
    """Copy the pages that stand outside ``docs/``, and write the downloads of the tutorials.

    Args:
        app: the application of Sphinx.
    """
    site, root = Path(app.srcdir), Path(app.srcdir).parent
    repository = app.config.repository_url
    for path, page in BORROWED.items():
        if (root / path).exists():
            write_page(site / page, rewrite_links((root / path).read_text("utf-8"), path, root, repository))
        else:
            (site / page).unlink(missing_ok=True)
    tutorials = sorted((root / TUTORIALS).glob("[0-9]*.md"))
    pages = {"index.md": _tutorials_index(tutorials)}
    downloads: dict[str, str] = {}
    for file in tutorials:
        text = file.read_text(encoding="utf-8")
        pages[file.name] = _with_downloads(rewrite_links(text, f"{TUTORIALS}/{file.name}", root, repository), file.stem)
        notebook = jupytext.reads(_for_download(text, repository), fmt="md:myst")
        downloads[f"{file.stem}.ipynb"] = jupytext.writes(_without_ids(notebook), fmt="ipynb") + "\n"
        downloads[f"{file.stem}.py"] = jupytext.writes(notebook, fmt="py:percent")
    write_pages(site / TUTORIALS, pages)
    write_pages(site / TUTORIALS / "downloads", downloads)


def _tutorials_index(tutorials: list[Path]) -> str:
    parts = [
        "# Tutorials\n\n",
        "Each tutorial is a notebook that was run when this site was built: its figures and numbers are those of its\n",
        "code. All run offline on a CPU, in less than two minutes. Each can be downloaded as a notebook and as a\n",
        "script.\n\n",
        "| tutorial | what it shows |\n|---|---|\n",
    ]
    for file in tutorials:
        title, summary = title_and_summary(file.read_text(encoding="utf-8"))
        parts += [f"| [{title}]({file.name}) | {summary.replace('|', '&#124;')} |\n"]
    parts += ["\n```{toctree}\n:hidden:\n\n", *(f"{file.stem}\n" for file in tutorials), "```\n"]
    return "".join(parts)


def _with_downloads(text: str, stem: str) -> str:
    """A tutorial with links to its downloads below its title."""
    links = (
        f"Download: {{download}}`notebook (.ipynb) <downloads/{stem}.ipynb>` ·\n"
        f"{{download}}`script (.py) <downloads/{stem}.py>`\n"
    )
    return re.sub(r"^(# .+\n)", lambda title: f"{title[1]}\n{links}", text, count=1, flags=re.MULTILINE)


def _for_download(text: str, repository: str) -> str:
    """A tutorial whose relative links lead to the repository, because it is read anywhere."""

    def in_the_repository(target: str) -> str:
        return f"{repository}/blob/main/{posixpath.normpath(posixpath.join(TUTORIALS, target))}"

    return _with_links(text, in_the_repository)


def _without_ids(notebook: Any) -> Any:
    """A notebook whose cells have ids that do not change from build to build."""
    for number, cell in enumerate(notebook.cells):
        cell["id"] = f"cell-{number}"
    return notebook


def rewrite_source(app: Sphinx, page: str, source: list[str]) -> None:
    """Rewrite the links of a page that stands in ``docs/`` itself.

    Args:
        app: the application of Sphinx.
        page: name of the page.
        source: a list with the text.
    """
    file = Path(app.env.doc2path(page))
    site = Path(app.srcdir)
    path = file.relative_to(site).as_posix()
    if file.suffix == ".md" and source_of(path) == f"docs/{path}" and path not in ("cli.md", "tutorials/index.md"):
        source[0] = rewrite_links(source[0], f"docs/{path}", site.parent, app.config.repository_url)


def setup(app: Sphinx) -> dict[str, Any]:
    """Register the copying and the links.

    Args:
        app: the application of Sphinx.

    Returns:
        What Sphinx asks of an extension.
    """
    app.add_config_value("repository_url", "", "env", str)
    app.connect("builder-inited", write_borrowed)
    app.connect("source-read", rewrite_source)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
