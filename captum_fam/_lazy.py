"""Packages whose modules are imported when a name of theirs is first used."""

from __future__ import annotations

import ast
import importlib
from collections.abc import Callable
from pathlib import Path


def lazy_names(package: str, file: str) -> tuple[list[str], Callable[[str], object]]:
    """The public names of a package, and its ``__getattr__`` (PEP 562).

    The names, and the modules they live in, are those of the ``import`` lines of ``__init__.pyi``, which type checkers
    read too: so the list stands once.

    Args:
        package: ``__name__`` of the package.
        file: ``__file__`` of the package.

    Returns:
        The names in alphabetical order, and the function.

    Example:
        >>> import captum_fam.metrics
        >>> names, get = lazy_names("captum_fam.metrics", captum_fam.metrics.__file__)
        >>> "energy_proportion" in names, get("energy_proportion").__module__
        (True, 'captum_fam.metrics.energy')
    """
    modules = {
        alias.name: statement.module
        for statement in ast.parse(Path(file).with_suffix(".pyi").read_text(encoding="utf-8")).body
        if isinstance(statement, ast.ImportFrom) and statement.module is not None
        for alias in statement.names
    }

    def get(name: str) -> object:
        if name not in modules:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        return getattr(importlib.import_module(modules[name]), name)

    return sorted(modules), get
