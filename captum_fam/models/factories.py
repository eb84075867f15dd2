"""Models that a function of the user makes: ``package.module:factory`` and ``path/to/file.py:factory``."""

from __future__ import annotations

import difflib
import re
from pathlib import Path
from types import ModuleType

from torch import nn

from captum_fam._text import first_line
from captum_fam._user_code import first_on_path, import_code
from captum_fam.models.embedding_model import EmbeddingModel

_FORM = "package.module:factory or path/to/file.py:factory"


def names_factory(name: str) -> bool:
    """Whether a name has the form of a factory, not that of a model of a library such as ``timm/hf-hub:NAME``.

    Args:
        name: name of a model, of any form.

    Returns:
        Whether it is ``package.module:factory`` or ``path/to/file.py:factory``; the factory itself may be missing.

    Example:
        >>> names_factory("my_models.py:build"), names_factory("timm/hf-hub:timm/resnet18.a1_in1k")
        (True, False)
    """
    code, colon, factory = name.rpartition(":")
    is_code = code.endswith(".py") or re.fullmatch(r"[^\W\d]\w*(\.[^\W\d]\w*)*", code) is not None
    return bool(colon) and is_code and re.fullmatch(r"[\w.]*", factory) is not None


def call_factory(name: str, **options: object) -> object:
    """Import the code that a name of a factory names, and call the factory.

    Args:
        name: ``package.module:factory`` or ``path/to/file.py:factory``. The factory is a function or a class; a module
            variable that holds a network is taken as it is.
        options: arguments of the factory, by name. Default: none.

    Returns:
        What the factory returns.

    Raises:
        ImportError: if the code cannot be imported; the message has the reason.
        ValueError: if the code has no such name, or the factory cannot be called or raises an exception.

    Example:
        >>> call_factory("torch.nn:Conv2d", in_channels=3, out_channels=4, kernel_size=5)
        Conv2d(3, 4, kernel_size=(5, 5), stride=(1, 1))
    """
    code, _, attribute = name.rpartition(":")
    try:
        module = import_code(code, rename=True)
    except ImportError as error:
        raise ImportError(f"model {name!r}: {error}{_similar_files(code)}", name=error.name) from error
    made: object = module
    for part in attribute.split("."):
        if not hasattr(made, part):
            raise ValueError(f"model {name!r}: {code} has no {attribute or 'name behind the colon'}{_offers(module)}")
        made = getattr(made, part)
    if isinstance(made, nn.Module | EmbeddingModel | tuple):
        return made
    if not callable(made):
        raise ValueError(f"model {name!r}: {attribute} is a {type(made).__name__}, expected a function or a class")
    folder = Path(code).resolve().parent if code.endswith(".py") else Path.cwd()
    try:
        with first_on_path(folder):  # a factory may import a file beside it
            return made(**options)
    except (Exception, SystemExit) as error:  # a factory may fail in any way
        raise ValueError(f"model {name!r}: {attribute} raised {type(error).__name__}: {first_line(error)}") from error


def _offers(module: ModuleType) -> str:
    """The functions and classes that a module defines itself, in words."""
    own = [
        key
        for key, value in vars(module).items()
        if callable(value) and not key.startswith("_") and getattr(value, "__module__", None) == module.__name__
    ]
    return f"; it has {', '.join(own[:10])}" if own else f"; expected {_FORM}"


def _similar_files(code: str) -> str:
    """A hint at a file of a similar name, in words."""
    path = Path(code)
    if not code.endswith(".py") or path.is_file() or not path.parent.is_dir():
        return ""
    close = difflib.get_close_matches(path.name, [file.name for file in path.parent.glob("*.py")])
    return f"; did you mean {path.parent / close[0]}?" if close else ""
