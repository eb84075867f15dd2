"""Writes ``docs/api/``: one page for each module of the public API, and one for each class and function of a module.

The public names of a module are its ``__all__``, which :func:`public_names` reads without an import of what the names
stand for. A name that several modules offer has one page, under the shortest of its public names.
"""

from __future__ import annotations

import ast
import functools
import importlib
import inspect
import re
from pathlib import Path
from typing import Any, NamedTuple

from sphinx import addnodes
from sphinx.application import Sphinx
from sphinx.util import inspect as sphinx_inspect
from sphinx.util.typing import stringify_annotation
from written import write_pages

PACKAGE = "captum_fam"

SECTIONS: dict[str, tuple[str, ...]] = {
    "One call": ("captum_fam", "captum_fam.explanation", "captum_fam.callbacks", "captum_fam.demo"),
    "Maps": ("captum_fam.attr", "captum_fam.attr.way_back", "captum_fam.functional", "captum_fam.pooling"),
    "What is compared": ("captum_fam.similarity", "captum_fam.support"),
    "Models and data": ("captum_fam.models", "captum_fam.preprocessing", "captum_fam.embedding"),
    "Pictures": ("captum_fam.visualization", "captum_fam.report"),
    "Measures and experiments": (
        "captum_fam.metrics",
        "captum_fam.experiments",
        "captum_fam.experiments.data",
        "captum_fam.experiments.measures",
        "captum_fam.experiments.protocols",
        "captum_fam.experiments.networks",
        "captum_fam.experiments.training",
    ),
}
"""The modules of the public API, by what a reader looks for."""

MODULES = tuple(module for modules in SECTIONS.values() for module in modules)

# Members that a reader calls come before those that a subclass defines.
_FIRST = ("attribute", "details", "explain", "figure", "show")

# A text longer than this is not printed as the value of a constant.
LONGEST_VALUE = 160


class Public(NamedTuple):
    """A public name.

    Attributes:
        name: the shortest public name, with its module.
        home: the module whose source defines it.
        kind: "class", "function" or "data".
        thing: what the name stands for.
    """

    name: str
    home: str
    kind: str
    thing: Any

    @property
    def short(self) -> str:
        """The name without its module."""
        return self.name.rpartition(".")[2]

    @property
    def module(self) -> str:
        """The module of the shortest public name."""
        return self.name.rpartition(".")[0]


@functools.cache
def homes(module: str) -> dict[str, str]:
    """The module that each name of a module comes from.

    Args:
        module: name of the module.

    Returns:
        Names that the source of the module defines, with the module itself, and names that the source imports from this
        package, with the module that they are imported from.
    """
    file = Path(importlib.import_module(module).__file__ or "")
    stub = file.with_suffix(".pyi")
    found: dict[str, str] = {}
    body = ast.parse((stub if stub.exists() else file).read_text(encoding="utf-8")).body
    for node in [inner for outer in body for inner in (outer.body if isinstance(outer, ast.If) else [outer])]:
        if isinstance(node, ast.ImportFrom) and (node.module or "").partition(".")[0] == PACKAGE:
            found.update({alias.asname or alias.name: node.module or "" for alias in node.names})
        elif isinstance(node, ast.ClassDef | ast.FunctionDef):
            found[node.name] = module
        elif isinstance(node, ast.Assign | ast.AnnAssign):
            for target in node.targets if isinstance(node, ast.Assign) else [node.target]:
                if isinstance(target, ast.Name):
                    found[target.id] = module
    return found


def home_of(module: str, name: str) -> str:
    """The module whose source defines a name.

    Args:
        module: a module that has the name.
        name: the name.

    Returns:
        The module; ``module`` itself for a name that comes from another package.
    """
    while (source := homes(module).get(name, module)) != module:
        module = source
    return module


def public_names(module: str) -> list[str]:
    """The public names of a module.

    Args:
        module: name of the module.

    Returns:
        ``__all__``, or what the module itself defines without a leading underscore.
    """
    imported = importlib.import_module(module)
    if hasattr(imported, "__all__"):
        return sorted(imported.__all__)
    classes_and_functions = {
        name
        for name, value in vars(imported).items()
        if not name.startswith("_") and inspect.isroutine(value) | inspect.isclass(value)
    }
    return sorted(name for name in classes_and_functions if getattr(imported, name).__module__ == module)


def kind_of(thing: Any) -> str:
    """Class, function or data.

    Args:
        thing: what a public name stands for.

    Returns:
        ``"class"``, ``"function"`` or ``"data"``; an alias of a type is data.
    """
    if inspect.isclass(thing) and not hasattr(thing, "__origin__"):
        return "class"
    return "function" if inspect.isroutine(thing) else "data"


@functools.cache
def public_api() -> dict[tuple[str, str], Public]:
    """The public API.

    Returns:
        Every public name, by its defining module and its name there. A name that several modules offer is one entry.
    """
    found: dict[tuple[str, str], Public] = {}
    for module in sorted(MODULES, key=lambda name: name.count(".")):
        for name in public_names(module):
            home = home_of(module, name)
            thing = getattr(importlib.import_module(module), name)
            found.setdefault((home, name), Public(f"{module}.{name}", home, kind_of(thing), thing))
    return found


def of_module(module: str) -> list[Public]:
    """The public names that a module offers, those with a page in another module among them.

    Args:
        module: name of the module.

    Returns:
        The names, in alphabetical order.
    """
    return [public_api()[home_of(module, name), name] for name in public_names(module)]


def members_of(owner: type) -> list[str]:
    """The documented members of a class that this package defines, those of its bases in this package among them.

    Args:
        owner: the class.

    Returns:
        Names, those of the class itself first, each in the order of the source.
    """
    found: dict[str, None] = {}
    for base in owner.__mro__:
        if base.__module__.partition(".")[0] != PACKAGE:
            continue
        for name, member in vars(base).items():
            is_member = inspect.isroutine(member) or isinstance(member, property | functools.cached_property)
            if is_member and not name.startswith("_") and _says_something(owner, name):
                found.setdefault(name)
    return sorted(found, key=lambda name: _FIRST.index(name) if name in _FIRST else len(_FIRST))


def _says_something(owner: type, name: str) -> bool:
    """Whether the text of a member, its own or inherited, is one of this package."""
    for base in owner.__mro__:
        member = vars(base).get(name)
        text = getattr(member, "__doc__", None)
        if text:
            # matplotlib writes a method into each subclass of its artists.
            module = getattr(member, "__module__", None) or base.__module__
            is_own = module.partition(".")[0] == base.__module__.partition(".")[0] == PACKAGE
            return is_own and not text.startswith("Alias for field number")
    return False


def write_api(app: Sphinx) -> None:
    """Write the pages of the API.

    Args:
        app: the application of Sphinx.
    """
    pages = {"index.rst": _index()}
    for module in MODULES:
        pages[f"{module}.rst"] = _module_page(module)
    for public in public_api().values():
        if public.kind != "data":
            pages[f"{public.name}.rst"] = _object_page(public)
    write_pages(Path(app.srcdir) / "api", pages)


def first_sentence(thing: Any) -> str:
    """The first sentence of the docstring.

    Args:
        thing: a module, class or function.

    Returns:
        The sentence in one line, or "" without a docstring.
    """
    paragraph = " ".join((inspect.getdoc(thing) or "").partition("\n\n")[0].split())
    paragraph = re.sub(r":meth:`(\w+)`", r"``\1``", paragraph)  # a method of the class, which a table is not about
    return re.split(r"(?<=\.) ", paragraph.replace("Eq. ", "Eq.\N{NO-BREAK SPACE}"), maxsplit=1)[0]


def _title(text: str) -> str:
    return f"{text}\n{'=' * len(text)}\n"


def _index() -> str:
    parts = [
        _title("Python API"),
        "Types come from the annotations, texts from the docstrings, whose examples run in the test suite. Names that",
        "most programs need can be imported from ``captum_fam`` itself.\n",
    ]
    for section, modules in SECTIONS.items():
        parts += [f"{section}\n{'-' * len(section)}\n", ".. list-table::", "   :widths: 40 60", ""]
        for module in modules:
            parts += [f"   * - :doc:`{module} <{module}>`"]
            parts += [f"     - {first_sentence(importlib.import_module(module))}"]
        parts += [""]
    parts += [".. toctree::", "   :hidden:", "", *(f"   {module}" for module in MODULES), ""]
    return "\n".join(parts)


def _module_page(module: str) -> str:
    parts = [":html_theme.sidebar_secondary.remove: true\n", _title(module), f".. py:module:: {module}\n"]
    parts += [inspect.getdoc(importlib.import_module(module)) or "", ""]
    names = of_module(module)
    for title, kind in (("Classes", "class"), ("Functions", "function")):
        rows = [public for public in names if public.kind == kind]
        if rows:
            role = "class" if kind == "class" else "func"
            parts += [f"{title}\n{'-' * len(title)}\n", ".. list-table::", "   :widths: 35 65", ""]
            for public in rows:
                parts += [f"   * - :py:{role}:`~{public.name}`", f"     - {first_sentence(public.thing)}"]
            parts += [""]
    data = [public for public in names if public.kind == "data" and public.module == module]
    if data:
        parts += ["Types and constants\n-------------------\n"]
        for public in data:
            parts += [_data_entry(public)]
    pages = [public.name for public in names if public.kind != "data" and public.module == module]
    if pages:
        parts += [".. toctree::", "   :hidden:", ""]
        parts += [f"   {name.rpartition('.')[2]} <{name}>" for name in pages]
        parts += [""]
    return "\n".join(parts)


def _object_page(public: Public) -> str:
    parts = [_title(public.short), f".. py:currentmodule:: {public.module}\n"]
    parts += [f".. auto{public.kind}:: {public.name}"]
    if public.kind == "class":
        members = ", ".join(members_of(public.thing))
        parts += [f"   :members: {members}"] if members else []
        parts += ["   :show-inheritance:"]
    parts += ["", f".. minigallery:: {public.name}", "   :add-heading: In pictures", ""]
    return "\n".join(parts)


def _data_entry(public: Public) -> str:
    value, text = _assignment(public)
    lines = [f".. py:data:: {public.name}", ""]
    if len(value) <= LONGEST_VALUE and value != "{}":  # a registry, which fills later
        lines += [f"   ``{value}``", ""]
    lines += [f"   {line}".rstrip() for line in text.splitlines()]
    return "\n".join([*lines, ""])


def _assignment(public: Public) -> tuple[str, str]:
    """The source of a constant, and the text below it."""
    file = Path(importlib.import_module(public.home).__file__ or "")
    body = ast.parse(file.read_text(encoding="utf-8")).body
    for node, after in zip(body, [*body[1:], None], strict=True):
        targets = node.targets if isinstance(node, ast.Assign) else [getattr(node, "target", None)]
        if not any(isinstance(target, ast.Name) and target.id == public.short for target in targets):
            continue
        is_text = isinstance(after, ast.Expr) and isinstance(after.value, ast.Constant)
        text = inspect.cleandoc(after.value.value) if is_text and isinstance(after.value.value, str) else ""
        value = getattr(node, "value", None)
        return (ast.unparse(value) if value is not None else "", text)
    return "", ""


def one_entry_each(app: Sphinx, what: str, name: str, thing: Any, options: Any, lines: list[str]) -> None:
    """Give every argument of a docstring an entry of its own, so that each has its type.

    A docstring may say ``a, b: the same of both``, over several lines too, where Sphinx takes ``a,`` for a type of b.

    Args:
        app: the application of Sphinx.
        what: the kind of thing that the docstring belongs to.
        name: its name.
        thing: the thing.
        options: options of the directive.
        lines: the docstring, which is changed.
    """
    section, number = "", 0
    while number < len(lines):
        line = lines[number]
        heading = re.match(r"(\w[\w ]*):$", line)
        if heading:
            section = heading[1]
        elif section in ("Args", "Attributes") and re.match(r"    (?:\*{0,2}\w+, *)+", line):
            end = number + 1
            while end < len(lines) and ":" not in " ".join(lines[number:end]):
                end += 1
            listed, _, text = " ".join(part.strip() for part in lines[number:end]).partition(": ")
            after = end
            while after < len(lines) and (lines[after].startswith("        ") or not lines[after].strip()):
                after += 1
            rest = lines[end:after]
            entries = [one.strip() for one in listed.split(",")]
            lines[number:after] = [part for one in entries for part in (f"    {one}: {text}", *rest)]
            number += len(entries) * (1 + len(rest)) - 1
        number += 1


def types_of_classes(app: Sphinx, domain: str, kind: str, content: addnodes.desc_content) -> None:
    """Take the types of the arguments of a class from its ``__init__``, before they are put into the text.

    Sphinx takes them from the annotations of the class, where these have the names of arguments.

    Args:
        app: the application of Sphinx.
        domain: the domain of the described thing.
        kind: its kind.
        content: the description.
    """
    if domain != "py" or kind != "class":
        return
    name = f"{content.parent[0]['module']}.{content.parent[0]['fullname']}"
    public = {entry.name: entry for entry in public_api().values()}.get(name)
    if public is None or "__init__" not in vars(public.thing):
        return
    known = app.env.current_document.autodoc_annotations.setdefault(name, {})
    signature = sphinx_inspect.signature(public.thing.__init__, True)
    for parameter in signature.parameters.values():
        if parameter.annotation is not parameter.empty:
            known[parameter.name] = stringify_annotation(parameter.annotation, "smart")


def short_types(app: Sphinx, domain: str, kind: str, content: addnodes.desc_content) -> None:
    """Shorten the names behind a ``Literal`` in the types of arguments.

    Sphinx takes all that follows ``Literal[...]`` in a type for text, and would print its marks, as in
    ``~torch.Tensor``.

    Args:
        app: the application of Sphinx.
        domain: the domain of the described thing.
        kind: its kind.
        content: the description.
    """
    for types in app.env.current_document.autodoc_annotations.values():
        for name, text in types.items():
            before, mark, behind = text.partition("Literal[")
            types[name] = before + mark + re.sub(r"~(?:\w+\.)+", "", behind)


def no_type_before_a_colon(app: Sphinx, what: str, name: str, thing: Any, options: Any, lines: list[str]) -> None:
    """Keep napoleon from taking the words before a colon for a type: types come from the annotations.

    Napoleon looks at the first line of a property and of what is returned, so that an empty comment is put before it.

    Args:
        app: the application of Sphinx.
        what: the kind of thing that the docstring belongs to.
        name: its name.
        thing: the thing.
        options: options of the directive.
        lines: the docstring, which is changed.
    """
    for number in reversed(range(len(lines) - 1)):
        if lines[number] in ("Returns:", "Yields:") and ":" in lines[number + 1]:
            lines[number + 1 : number + 1] = ["    ..", ""]
    if what in ("property", "attribute"):
        lines[:0] = ["..", ""]


def setup(app: Sphinx) -> dict[str, Any]:
    """Register the writing.

    Args:
        app: the application of Sphinx.

    Returns:
        What Sphinx asks of an extension.
    """
    app.connect("object-description-transform", types_of_classes, priority=100)  # before autodoc
    app.connect("object-description-transform", short_types, priority=200)  # before autodoc
    app.connect("builder-inited", write_api)
    app.connect("autodoc-process-docstring", one_entry_each, priority=100)  # before napoleon
    app.connect("autodoc-process-docstring", no_type_before_a_colon, priority=100)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
