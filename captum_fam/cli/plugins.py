"""Code of the user's own that is imported before a command runs, so that what it registers can be named there."""

from __future__ import annotations

import sys
from importlib import import_module
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path


def load_plugin(name: str) -> None:
    """Import a module, or a file that ends in ``.py``.

    Args:
        name: ``package.module``, or the path of a file, which is imported under its own name without ``.py``.

    Raises:
        ImportError: if there is no such module or file, or it raises; the message names both.
    """
    try:
        if name.endswith(".py"):
            _import_file(Path(name).resolve())
        else:
            import_module(name)
    except Exception as error:  # a plug-in may fail in any way
        raise ImportError(f"--plugin {name}: {type(error).__name__}: {error}") from error


def _import_file(path: Path) -> None:
    found = sys.modules.get(path.stem)
    if found is not None:
        if getattr(found, "__file__", None) == str(path):
            return  # imported before, as by an earlier run in this process
        raise ImportError(f"a module called {path.stem} is imported already; give the file another name")
    spec = spec_from_file_location(path.stem, path)
    if spec is None or spec.loader is None:
        raise ImportError("it is no Python file")
    module = module_from_spec(spec)
    # Objects of its classes are pickled for worker processes, which looks the module up by name.
    sys.modules[path.stem] = module
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[path.stem]
        raise
