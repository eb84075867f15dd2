"""Links of the package's own names: those of docstrings and annotations, and those of code in the text of pages.

A docstring may name a thing by the module that defines it, by its public name, or by the name alone; the suite holds
that no two public classes or functions have one name. A name that exists and has no page stays code without a link. A
name that does not exist is left to Sphinx, whose warning fails the build.
"""

from __future__ import annotations

import functools
import importlib
import pkgutil
import re
from typing import Any

import api_pages
from docutils import nodes
from sphinx import addnodes
from sphinx.application import Sphinx
from sphinx.environment import BuildEnvironment
from sphinx.transforms.post_transforms import SphinxPostTransform

# What a word of code in a text has to look like to be taken for a name of the API: ``LayerFAM``, ``explain(...)``,
# ``captum_fam.attr.find_layer``.
_NAME_IN_TEXT = re.compile(r"((?:captum_fam\.)?[A-Za-z_][\w.]*)(\([^()]*\))?$")
# Names of the API that are words of their own in texts.
_WORDS_OF_OTHERS = {"Any", "Dot", "Grid", "Over", "Batch", "Result", "Support", "Gallery"}


@functools.cache
def places() -> dict[str, str]:
    """The module that defines each public class and function of the package, by its name alone."""
    found: dict[str, str] = {}
    package = importlib.import_module(api_pages.PACKAGE)
    for info in pkgutil.walk_packages(package.__path__, f"{api_pages.PACKAGE}."):
        if not info.name.endswith("__main__"):
            for name, home in api_pages.homes(info.name).items():
                if home == info.name:
                    found.setdefault(name, home)
    return found


def documented(module: str, names: list[str]) -> tuple[bool, str | None]:
    """Look a name up.

    Args:
        module: the module that defines the first of the names.
        names: the name, and the names of members below it.

    Returns:
        Whether there is such a thing, and the name under which the site has it (None: it has no page).
    """
    try:
        owner = importlib.import_module(module)
        home = api_pages.home_of(module, names[0])
        thing = getattr(owner, names[0])
        for name in names[1:]:
            annotations = getattr(thing, "__annotations__", {})
            thing = getattr(thing, name) if hasattr(thing, name) else annotations[name]
    except (ImportError, AttributeError, KeyError):
        return False, None
    public = api_pages.public_api().get((home, names[0]))
    return True, ".".join([public.name, *names[1:]]) if public else None


def find(target: str, module: str | None = None, owner: str | None = None) -> tuple[bool, str | None]:
    """Look a name up as a docstring gives it.

    Args:
        target: the name.
        module: the module that the docstring is shown in.
        owner: the class that the docstring is shown in.

    Returns:
        Whether there is such a thing, and the name under which the site has it (None: it has no page).
    """
    parts = target.split(".")
    if target in api_pages.MODULES:
        return True, target
    if parts[0] == api_pages.PACKAGE:
        for end in range(len(parts) - 1, 0, -1):
            exists, name = documented(".".join(parts[:end]), parts[end:])
            if exists:
                return exists, name
        return _is_module(target), None
    if owner and module:
        exists, name = find(f"{module}.{owner}.{target}")
        if exists:
            return exists, name
    if parts[0] in places():
        return documented(places()[parts[0]], parts)
    return False, None


def _is_module(name: str) -> bool:
    try:
        importlib.import_module(name)
    except ImportError:
        return False
    return True


def resolve(
    app: Sphinx, env: BuildEnvironment, node: addnodes.pending_xref, content: nodes.TextElement
) -> nodes.Node | None:
    """Resolve a reference that Sphinx does not find.

    Args:
        app: the application of Sphinx.
        env: its environment.
        node: the reference.
        content: what is shown in its place.

    Returns:
        A link, the content without a link, or None for a name that is not there.
    """
    if node.get("refdomain") != "py":
        return None
    target = node["reftarget"]
    exists, name = find(target, node.get("py:module"), node.get("py:class"))
    if not exists:
        return content if is_foreign(target) else None
    return link(env, app, node.get("refdoc", env.docname), name, content) or content


@functools.cache
def is_foreign(target: str) -> bool:
    """Whether a name belongs to another package, whose inventory may be out of reach.

    Args:
        target: the name.

    Returns:
        True for the name of another package, or of a thing that modules of this package import from one.
    """
    root = target.partition(".")[0]
    if root == api_pages.PACKAGE:
        return False
    if "." in target or not target.isidentifier():
        return True
    import builtins

    return hasattr(builtins, target) or target in _imported_from_others()


@functools.cache
def _imported_from_others() -> set[str]:
    package = importlib.import_module(api_pages.PACKAGE)
    found: set[str] = set()
    for info in pkgutil.walk_packages(package.__path__, f"{api_pages.PACKAGE}."):
        if not info.name.endswith("__main__"):
            found |= vars(importlib.import_module(info.name)).keys()
    return found - places().keys()


def link(
    env: BuildEnvironment, app: Sphinx, page: str, name: str | None, content: nodes.TextElement
) -> nodes.reference | None:
    """A link to a documented name.

    Args:
        env: the environment of Sphinx.
        app: the application of Sphinx.
        page: the page that the link stands on.
        name: the name under which the site has the thing.
        content: what is shown.

    Returns:
        The link, or None where the site does not have the thing.
    """
    objects = env.domains.python_domain.objects
    if name is None or name not in objects:
        return None
    entry = objects[name]
    made = nodes.reference("", "", internal=True, reftitle=name)
    made["refuri"] = app.builder.get_relative_uri(page, entry.docname) + "#" + entry.node_id
    made += content
    return made


class LinkCode(SphinxPostTransform):
    """Turns code in the text of pages that names a thing of the API into a link."""

    default_priority = 400

    def run(self, **_: Any) -> None:
        """Run over one page."""
        if self.env.docname.startswith("api/"):
            return
        for code in list(self.document.findall(nodes.literal)):
            if _is_inside(code, (nodes.reference, nodes.title, addnodes.pending_xref)):
                continue
            found = _NAME_IN_TEXT.match(code.astext())
            if not found or found[1] in _WORDS_OF_OTHERS:
                continue
            name = found[1]
            if not (name.startswith("captum_fam.") or found[2] or (name[0].isupper() and not name.isupper())):
                continue
            exists, target = find(name)
            made = link(self.env, self.app, self.env.docname, target, code.deepcopy()) if exists else None
            if made is not None:
                code.replace_self(made)


def _is_inside(node: nodes.Node, kinds: tuple[type, ...]) -> bool:
    parent = node.parent
    while parent is not None:
        if isinstance(parent, kinds):
            return True
        parent = parent.parent
    return False


def setup(app: Sphinx) -> dict[str, Any]:
    """Register the links.

    Args:
        app: the application of Sphinx.

    Returns:
        What Sphinx asks of an extension.
    """
    app.connect("missing-reference", resolve, priority=900)  # after intersphinx
    app.add_post_transform(LinkCode)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
