"""The experiments of the paper end to end: few-shot, contrastive, retrieval and mosaics, with any methods and measures.

A protocol describes an experiment. :func:`evaluate` runs the protocol and writes a table; a run can be resumed, and can
have any number of processes. :func:`register_protocol` and :func:`register_measure` add protocols and measures of your
own.

Each module is imported when a name of the module is first used, because the networks of the paper, which are part of
this package, need neither the protocols nor the extra ``eval``. ``__init__.pyi`` lists the public names, for type
checkers and for this module.
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
