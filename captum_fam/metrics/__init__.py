"""Measures of a map: functions that return one value per sample, and torchmetrics classes that average them.

A function of ``NAME.py`` has its class beside it in ``NAME_metric.py``. The functions need torch, those that draw a box
around a map scipy too; the classes need torchmetrics (``captum-fam[eval]`` has both). Nothing is imported before it is
used, because torchmetrics takes seconds. ``__init__.pyi`` is the list of the public names, for type checkers and here.
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
