"""The values in pickles that are read without code: records, names, keys, and a bound on the work of reading."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from captum_fam._text import printable

_LARGEST_KEY = 2**60
_LONGEST_KEY = 8
_MOST_STEPS = 10_000_000


class BrokenError(ValueError):
    """A pickle that no pickler writes, or that is cut off."""


class RefusedError(ValueError):
    """A file names something that is neither a tensor nor plain data, or takes more than a checkpoint needs."""


class Record:
    """An object whose class is not imported: its data, without code.

    The attributes of the object are the attributes of the record.

    Args:
        class_name: name of the class, with its module.
        arguments: arguments with which the object was made.

    Attributes:
        entries: the items, if the object is a mapping; the elements under their index, if the object is a list.

    Example:
        >>> record = Record("argparse.Namespace")
        >>> vars(record)["lr"] = 0.1
        >>> record, record.lr
        (Record of argparse.Namespace, 0.1)
    """

    __slots__ = ("__dict__", "arguments", "class_name", "entries")

    def __init__(self, class_name: str, *arguments: object) -> None:
        self.class_name = class_name
        self.arguments = arguments
        self.entries: dict[Any, Any] = {}

    def __repr__(self) -> str:
        return f"Record of {self.class_name}"


@dataclass(frozen=True)
class Name:
    """A function or a class that a pickle names.

    Attributes:
        name: the name, with its module.
        call: what a call by the pickle does instead; None for a name that is data, such as the factory of a
            ``defaultdict``, and cannot be called.
    """

    name: str
    call: Callable[..., Any] | None = None


class Budget:
    """The work that a file may cause: a step for each operation, for each element and for each 16 bytes copied.

    Args:
        n_bytes: size of the file. A pickle has at least one byte for an operation, and copies no byte many times.

    Example:
        >>> Budget(10_000).spend(100)
    """

    def __init__(self, n_bytes: int) -> None:
        self._left = min(_MOST_STEPS, 2**16 + 16 * n_bytes)

    def spend(self, steps: int) -> None:
        """Take steps.

        Args:
            steps: number of steps.

        Raises:
            RefusedError: (a ``ValueError``) if fewer steps are left.
        """
        self._left -= steps
        if self._left < 0:
            raise RefusedError("refused: reading it takes more steps than the reading of any checkpoint of its size")


def as_key(value: Any) -> Any:
    """A key of a dictionary, or an element of a set, whose hash takes no time.

    The size of a tuple of tuples can grow exponentially with its depth. Numbers of equal hashes make a dictionary slow.

    Args:
        value: the key: text, bytes, None, a number, a name, or a tuple of a few of these.

    Returns:
        The key; the text of a name.

    Raises:
        RefusedError: (a ``ValueError``) for any other key.

    Example:
        >>> as_key("layer1.weight"), as_key((0, 1))
        ('layer1.weight', (0, 1))
    """
    if isinstance(value, Name):
        return value.name
    if (
        value is None
        or isinstance(value, str | bytes | float)
        or (isinstance(value, int) and abs(value) < _LARGEST_KEY)
    ):
        return value
    if type(value) is tuple and len(value) <= _LONGEST_KEY and not any(isinstance(part, tuple) for part in value):
        return tuple(as_key(part) for part in value)
    raise RefusedError(f"refused: it has a key {in_words(value)}, expected a text, a number, or a few of these")


def in_words(value: Any) -> str:
    """A value of a pickle in a message.

    Args:
        value: any value. The text of a tensor would be long, and its numbers may not be read yet.

    Returns:
        A short text.

    Example:
        >>> in_words("socket"), in_words(torch.ones(1))
        ('socket', 'of type Tensor')
    """
    return printable(value, 60) if isinstance(value, str | int | tuple) else f"of type {type(value).__name__}"
