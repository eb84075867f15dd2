"""Warnings that point at the user's line."""

from __future__ import annotations

import contextlib
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path

import captum
import torch

_LIBRARIES = tuple(str(Path(module.__file__).parent) for module in (captum, torch) if module.__file__)
# contextlib ends collected_notes. No suffix: Python 3.12.1 and 3.13.0 do not take a whole file name as a prefix.
_CONTEXTLIB = str(Path(contextlib.__file__).with_suffix(""))
_PREFIXES = (str(Path(__file__).parent), *_LIBRARIES, _CONTEXTLIB)


@contextlib.contextmanager
def collected_notes(stacklevel: int) -> Iterator[list[str]]:
    """Collect notes during a call, and issue each as one warning when the call ends, also when it fails.

    Args:
        stacklevel: how many calls up the user's line is; 1 is the caller of the function with this context.

    Yields:
        The list to which notes are added; equal notes give one warning.
    """
    notes: list[str] = []
    try:
        yield notes
    finally:
        for note in dict.fromkeys(notes):
            warn_user(note, stacklevel + 3)  # + this function, and the two functions that end a context


def warn_user(message: str, stacklevel: int) -> None:
    """Warn at the user's line that called into this package.

    Args:
        message: the text of the warning.
        stacklevel: how many calls up the user's line is; 1 is the caller of this function. From Python 3.12 on it is
            not needed: the first line outside this package, Captum, PyTorch and contextlib is found by file name, also
            where Captum calls this package.
    """
    if sys.version_info >= (3, 12):
        warnings.warn(message, skip_file_prefixes=_PREFIXES)
    else:
        warnings.warn(message, stacklevel=stacklevel + 1)
