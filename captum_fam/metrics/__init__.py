"""Measures of a map: functions that return one value per sample, and torchmetrics classes that average them.

The class for a function in ``NAME.py`` is in ``NAME_metric.py``. The functions need torch, and scipy where they draw a
box around a map. The classes need torchmetrics. ``captum-fam[eval]`` installs scipy and torchmetrics. Each module is
imported when a name of the module is first used, because the import of torchmetrics takes seconds. ``__init__.pyi``
lists the public names, for type checkers and for this module.
"""

from __future__ import annotations

import ast
import importlib
from pathlib import Path

_MODULES = {
    alias.name: statement.module
    for statement in ast.parse(Path(__file__).with_suffix(".pyi").read_text(encoding="utf-8")).body
    if isinstance(statement, ast.ImportFrom) and statement.module is not None
    for alias in statement.names
}
__all__ = sorted(_MODULES)


def __getattr__(name: str) -> object:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_MODULES[name]), name)
