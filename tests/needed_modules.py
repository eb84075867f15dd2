"""The modules that the code of a page or a tutorial imports beyond the core, and which of them are missing here."""

from __future__ import annotations

import contextlib
import importlib.util
import re
from collections.abc import Iterable


def needs(text: str) -> list[str]:
    """The modules that ``<!-- needs: timm, faiss -->`` names, in the first line or below the header of a notebook."""
    named = re.search(r"\A(?:---\n.*?\n---\n)?\s*<!-- needs: ([\w., -]+?) -->", text, re.DOTALL)
    return [name.strip() for name in named[1].split(",")] if named else []


def missing(names: Iterable[str]) -> list[str]:
    """The modules that cannot be imported."""
    return [name for name in names if not _is_installed(name)]


def _is_installed(name: str) -> bool:
    with contextlib.suppress(ModuleNotFoundError):  # of a package around the module
        return importlib.util.find_spec(name) is not None
    return False
