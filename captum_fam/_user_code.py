"""Importing code of a user: a module by its dotted name, or a file by its path."""

from __future__ import annotations

import hashlib
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from importlib.util import find_spec, module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType

from captum_fam._text import first_line


def import_code(name: str, *, rename: bool = False) -> ModuleType:
    """Import a module, or a file that ends in ``.py``.

    A module of the current folder is found first, as ``python -m`` finds it; a file finds the modules of its own
    folder. ``sys.path`` is the same before and after.

    Args:
        name: ``package.module``, or the path of a file. The module of a file has the name of the file without ``.py``,
            and stands in ``sys.modules``, so that objects of its classes can be sent to worker processes.
        rename: whether the module of a file gets eight digits after its name if another module has the same name;
            otherwise this is an error. Default: False.

    Returns:
        The module.

    Raises:
        ImportError: if there is no such module or file, or if its code raises an exception. The message has the name,
            the exception and a hint.

    Example:
        >>> import_code("json").__name__
        'json'
    """
    try:
        if name.endswith(".py"):
            return _import_file(Path(name).resolve(), rename)
        here = Path.cwd() / f"{name}.py"
        if here.is_file():
            return _import_file(here.resolve(), rename)
        with first_on_path(Path.cwd()):
            return import_module(name)
    except ModuleNotFoundError as error:
        missing = error.name or ""
        is_itself = not name.endswith(".py") and (name == missing or name.startswith(f"{missing}."))
        hint = f"it is neither installed nor in {Path.cwd()}" if is_itself else f"{name} imports it: install it"
        raise ImportError(f"{error}; {hint}", name=error.name) from error
    except (Exception, SystemExit) as error:  # code of a user may fail in any way
        raise ImportError(f"{type(error).__name__}: {first_line(error)}") from error


def _import_file(path: Path, rename: bool) -> ModuleType:
    if not path.is_file():
        raise FileNotFoundError(f"there is no file {path}")
    name = path.stem.replace(".", "_")
    other = _other_module(name, path)
    if other and not rename:
        raise ImportError(f"a module called {name} is {other}; give the file another name")
    if other:
        name += f"_{hashlib.sha256(os.fsencode(path)).hexdigest()[:8]}"
    if name in sys.modules:
        return sys.modules[name]  # by an earlier run in this process
    spec = spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise ImportError("it is no Python file")
    module = module_from_spec(spec)
    # Worker processes get pickled objects of the classes of the module. Pickle looks up the module by its name.
    sys.modules[name] = module
    try:
        with first_on_path(path.parent):
            spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
    return module


def _other_module(name: str, path: Path) -> str:
    """How another module has the name of a file: imported already, or installed; "" if there is no other module."""
    imported = sys.modules.get(name)
    if imported is not None:
        return "" if getattr(imported, "__file__", None) == str(path) else "imported already"
    # The folder of the file may be on the path of Python already: then the file itself is what is found.
    installed = find_spec(name)
    is_other = installed is not None and installed.origin != str(path)
    return "installed, and others import it" if is_other else ""


@contextmanager
def first_on_path(folder: Path) -> Iterator[None]:
    """Look for modules in a folder first, as Python does for the folder of a script."""
    entry = str(folder)
    sys.path.insert(0, entry)
    try:
        yield
    finally:
        sys.path.remove(entry)
