"""Plug-ins: code of a user that is imported before a command runs, and whose registered names the command accepts."""

from __future__ import annotations

import sys
from importlib import import_module
from importlib.util import find_spec, module_from_spec, spec_from_file_location
from pathlib import Path


def load_plugin(name: str) -> None:
    """Import a module, or a file that ends in ``.py``.

    Args:
        name: ``package.module``, or the path of a file. The module of a file has the name of the file without ``.py``.

    Raises:
        ImportError: if there is no such module or file, or if its code raises an exception. The message has the name
            and the exception.

    Example:
        >>> load_plugin("json")
    """
    try:
        if name.endswith(".py"):
            _import_file(Path(name).resolve())
        else:
            import_module(name)
    except Exception as error:  # a plug-in may fail in any way
        raise ImportError(f"--plugin {name}: {type(error).__name__}: {error}") from error


def _import_file(path: Path) -> None:
    imported = sys.modules.get(path.stem)
    if imported is not None:
        if getattr(imported, "__file__", None) == str(path):
            return  # by an earlier run in this process
        raise ImportError(f"a module called {path.stem} is imported already; give the file another name")
    # The folder of the file may be on the path of Python already: then the file itself is what is found.
    installed = find_spec(path.stem)
    if installed is not None and installed.origin != str(path):
        raise ImportError(f"a module called {path.stem} is installed, and others import it; give the file another name")
    spec = spec_from_file_location(path.stem, path)
    if spec is None or spec.loader is None:
        raise ImportError("it is no Python file")
    module = module_from_spec(spec)
    # Worker processes get pickled objects of the classes of the plug-in. Pickle looks up the module by its name.
    sys.modules[path.stem] = module
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[path.stem]
        raise
