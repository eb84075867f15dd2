"""Names of registered parts: a name belongs to one part, which may be defined again."""

from __future__ import annotations


def check_not_taken(name: str, old: object | None, new: object, kind: str) -> None:
    """Refuse a name that another part has.

    The same part may come again, with the same name in the same module, because a cell of a notebook runs twice and a
    module is reloaded. The new definition then takes the place of the old one.

    Args:
        name: the name.
        old: the class or function that has the name; None if the name is free.
        new: the class or function that is to have the name.
        kind: what the parts are, such as ``"method"``.

    Raises:
        ValueError: for the name of another part.
    """
    if old is not None and _place(old) != _place(new):
        raise ValueError(f"name {name!r} is taken by another {kind}; choose another name")


def _place(part: object) -> object:
    """Module and name of a class or function; for anything without a name of its own, its identity."""
    name = getattr(part, "__qualname__", "<lambda>")
    return id(part) if "<lambda>" in name else (getattr(part, "__module__", None), name)
