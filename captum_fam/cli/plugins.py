"""Plug-ins: code of a user that is imported before a command runs, and whose registered names the command accepts."""

from __future__ import annotations

from captum_fam._user_code import import_code


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
        import_code(name)
    except ImportError as error:
        raise ImportError(f"--plugin {name}: {error}") from error
